"""The guarantees of a merge, on toy bases of both kinds and on Mistral's real model."""

import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from zhllama.artifact import fingerprint, read_record
from zhllama.config import UserError
from zhllama.tokenizer import check
from zhllama.tokenizer.alphabet import is_cjk
from zhllama.tokenizer.load import Loaded, load
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.write import sentencepiece_tokenizer

SIZE = 1500  # what the fixture `merged` adds


def words(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def added(merged: Loaded) -> list[str]:
    result = read_record(merged.directory)["result"]
    return [str(merged.fast.id_to_token(result["first_new"] + place)) for place in range(result["added"])]


class Runtimes:
    """The base, and every runtime of the merged tokenizer."""

    def __init__(self, base: Loaded, merged: Loaded) -> None:
        self.original = base.fast if base.proto is None else sentencepiece_tokenizer(base.proto)
        self.fast = merged.fast
        self.processor = None
        if merged.proto is not None:
            model = merged.proto.SerializeToString()
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def check(self, text: str) -> None:
        before = self.original.encode(text, add_special_tokens=False)
        after = self.fast.encode(text, add_special_tokens=False)
        assert check.outside_cjk(text, before) == check.outside_cjk(text, after)
        if not any(is_cjk(character) for character in text):
            assert before.ids == after.ids
        assert self.fast.decode(after.ids, skip_special_tokens=False) == text
        if self.processor is not None:
            assert self.processor.encode(text) == after.ids


# Every plane, but more of what breaks tokenizers; U+2581 is a space to SentencePiece by definition.
CHARACTERS = st.one_of(
    st.sampled_from("中国人民的一是不了，。“”— \n\t12aé　（）𠮷豈㐂〇カㄅ\u0301\u200d😀"),
    st.characters(codec="utf-8", exclude_characters="▁\x00"),
)


def test_any_text_keeps_its_guarantees(merged: tuple[Loaded, Loaded]) -> None:
    new = merged[1]
    runtimes = Runtimes(*merged)
    pieces = [piece for piece in added(new) if is_cjk(piece)] or list("中国人民")

    @settings(
        max_examples=300,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(st.one_of(st.text(CHARACTERS, max_size=8), st.sampled_from(pieces)), max_size=12))
    def holds(parts: list[str]) -> None:
        runtimes.check("".join(parts))

    holds()


def test_random_runs_of_pieces_keep_the_guarantees(merged: tuple[Loaded, Loaded], chinese_text: str) -> None:
    runtimes = Runtimes(*merged)
    source = random.Random(1)
    for _ in range(200):
        at = source.randrange(len(chinese_text) - 60)
        runtimes.check(chinese_text[at : at + source.randint(1, 60)])


def test_size_is_exact_and_ids_are_contiguous(merged: tuple[Loaded, Loaded]) -> None:
    base, new = merged
    result = read_record(new.directory)["result"]
    assert result["added"] == SIZE
    assert result["first_new"] == result["base_vocabulary"] == base.fast.get_vocab_size()
    assert (
        result["vocabulary"]
        == new.fast.get_vocab_size()
        == result["first_new"] + SIZE + len(result["specials"])
    )
    assert result["rows"] % 64 == 0
    assert 0 <= result["rows"] - result["vocabulary"] < 64
    assert result["base_tokenizer_fingerprint"] == fingerprint(base.file)


def test_the_trained_pieces_are_the_ones_merged_in_order(merged: tuple[Loaded, Loaded]) -> None:
    new = merged[1]
    trained = load(new.directory.parent / "t" / "chinese_sp.model").proto
    assert trained is not None
    if new.proto is not None:
        names = [piece.piece for piece in trained.pieces if piece.type == 1]
        assert names == added(new)


def test_scores_are_unique_and_below_the_base(merged: tuple[Loaded, Loaded]) -> None:
    base, new = merged
    if new.proto is None or base.proto is None:
        return
    first = len(base.proto.pieces)
    assert list(new.proto.pieces[:first]) == list(base.proto.pieces)
    scores = [piece.score for piece in new.proto.pieces[first : first + SIZE]]
    ranked = [piece.score for piece in base.proto.pieces if piece.type == 1 and piece.score > -1e8]
    assert scores == [min(ranked) - 1 - place for place in range(SIZE)]


def test_pad_is_new_and_never_eos(merged: tuple[Loaded, Loaded]) -> None:
    _, new = merged
    assert new.pad == "<pad>"
    assert new.pad != new.eos
    assert new.fast.encode("<pad>", add_special_tokens=False).ids == [new.fast.token_to_id("<pad>")]


@pytest.mark.parametrize(
    ("template", "eos", "marks"),
    [
        ("chatml", "<|im_end|>", ["<|im_start|>", "<|im_end|>"]),
        ("llama3", "<|eot_id|>", ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
        ("llama2", "</s>", []),
        ("alpaca", "</s>", []),
    ],
)
def test_templates_bring_their_marks(
    tmp_path: Path, sentencepiece_base: Path, template: str, eos: str, marks: list[str]
) -> None:
    chinese = words(tmp_path / "w.txt", "中国", "人民")
    config = MergeTokenizerConfig(
        str(sentencepiece_base),
        chinese,
        str(tmp_path / "m"),
        template=template,
        special=["<extra>"],  # type: ignore[arg-type]
    )
    merge_tokenizer(config)
    new = load(tmp_path / "m")
    result = read_record(tmp_path / "m")["result"]
    assert new.eos == eos
    assert result["specials"] == [*marks, "<extra>", "<pad>"]
    for token in result["specials"]:
        assert len(new.fast.encode(f"中{token}国", add_special_tokens=False).ids) >= 3
    assert new.chat_template is not None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "你好"}], tokenize=False)
    assert "你好" in text


def test_keep_takes_the_base_template_and_its_pad(tmp_path: Path, bytelevel_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bytelevel_base, base)
    settings_file = base / "tokenizer_config.json"
    content = json.loads(settings_file.read_text()) | {"chat_template": "{{ messages }}", "pad_token": "A"}
    settings_file.write_text(json.dumps(content))
    merge_tokenizer(MergeTokenizerConfig(str(base), words(tmp_path / "w.txt", "中国"), str(tmp_path / "m")))
    new = load(tmp_path / "m")
    assert new.chat_template == "{{ messages }}"
    assert new.pad == "A"
    assert new.settings["model_max_length"] == 2048
    assert read_record(tmp_path / "m")["result"]["specials"] == []


def test_ignore_merges_base(tmp_path: Path, bytelevel_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(bytelevel_base, base)
    state = json.loads((base / "tokenizer.json").read_text())
    state["model"]["ignore_merges"] = True
    (base / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False))
    merge_tokenizer(
        MergeTokenizerConfig(
            str(base), words(tmp_path / "w.txt", "中国人民", "人民银行", "国人"), str(tmp_path / "m")
        )
    )
    new = json.loads((tmp_path / "m" / "tokenizer.json").read_text())
    vocabulary = new["model"]["vocab"]
    pairs = {tuple(pair) for pair in new["model"]["merges"]}
    first = read_record(tmp_path / "m")["result"]["first_new"]
    assert new["model"]["ignore_merges"] is True
    for key in (key for key, index in vocabulary.items() if index >= first):
        for cut in range(1, len(key)):
            if key[:cut] in vocabulary and key[cut:] in vocabulary:
                assert (key[:cut], key[cut:]) in pairs
    state["model"] = new["model"] | {"ignore_merges": False}
    plain = Tokenizer.from_str(json.dumps({**new, "model": state["model"]}))
    fast = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    for text in ("中国人民", "人民银行，国人", "中国人民银行"):
        assert fast.encode(text).ids == plain.encode(text).ids


def test_word_list_admits_by_way_of_intermediates(tmp_path: Path, sentencepiece_base: Path) -> None:
    chinese = words(tmp_path / "w.txt", "饕餮盛宴 3 n", "饕餮之徒", "hello", "是不是", "是不", "不是")
    merge_tokenizer(MergeTokenizerConfig(str(sentencepiece_base), chinese, str(tmp_path / "m")))
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    new = load(tmp_path / "m")
    assert {"饕餮盛宴", "饕餮之徒", "饕餮"} <= set(new.fast.get_vocab())
    assert report["intermediates"] > 0
    assert report["refused"]["not only CJK characters"]["examples"] == ["hello"]
    assert "不是" in report["refused"]["overlaps itself or lets another do so (border rule)"]["examples"]


def test_dropped_candidates_are_counted_and_shown(
    tmp_path: Path, sentencepiece_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chinese = words(tmp_path / "w.txt", "中国", "中国", "", "人\x07民", "hello", "银行")
    merge_tokenizer(MergeTokenizerConfig(str(sentencepiece_base), chinese, str(tmp_path / "m")))
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert report["dropped"] == {"given twice": 1, "empty": 1, "control characters": 1}
    assert report["refused"]["not only CJK characters"] == {"count": 1, "examples": ["hello"]}
    assert "not added: control characters" in capsys.readouterr().out


def test_a_normalised_source_is_warned_of(
    tmp_path: Path, sentencepiece_base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["中国，人民", "人民 中国"] * 9),
        model_prefix=str(tmp_path / "nfkc"),
        vocab_size=12,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc",
        minloglevel=2,
    )
    config = MergeTokenizerConfig(str(sentencepiece_base), str(tmp_path / "nfkc.model"), str(tmp_path / "m"))
    merge_tokenizer(config)
    assert json.loads((tmp_path / "m" / "report.json").read_text())["normaliser"] == "nmt_nfkc"
    assert "trained on normalised text (nmt_nfkc)" in capsys.readouterr().err


def test_union_is_the_published_script(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chinese = shared_data / "llama-tokenizer.model", shared_data / "chinese_sp.model"
    merge_tokenizer(MergeTokenizerConfig(str(base), str(chinese), str(tmp_path / "m"), policy="union"))
    expected, extra = sentencepiece_model_pb2.ModelProto(), sentencepiece_model_pb2.ModelProto()
    expected.ParseFromString(base.read_bytes())
    extra.ParseFromString(chinese.read_bytes())
    known = {piece.piece for piece in expected.pieces}
    for piece in extra.pieces:
        if piece.piece not in known:
            expected.pieces.add(piece=piece.piece, score=0)
    written = load(tmp_path / "m")
    assert written.proto is not None
    assert len(written.proto.pieces) == written.fast.get_vocab_size() == 49953
    assert [(p.piece, p.score) for p in written.proto.pieces] == [(p.piece, p.score) for p in expected.pieces]
    assert "can never be produced" in capsys.readouterr().err
    assert json.loads((tmp_path / "m" / "report.json").read_text())["dropped"] == {}


@pytest.mark.slow
def test_published_pieces_admitted_into_llama(tmp_path: Path, shared_data: Path) -> None:
    base, chinese = shared_data / "llama-tokenizer.model", shared_data / "chinese_sp.model"
    merge_tokenizer(MergeTokenizerConfig(str(base), str(chinese), str(tmp_path / "m")))
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert report["added"] > 17_000
    assert report["checked"]["unreachable"] == report["checked"]["disagree"] == 0


def test_added_tokens_of_the_base_keep_their_ids(tmp_path: Path, sentencepiece_base: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(sentencepiece_base, base / "tokenizer.model")
    count = load(sentencepiece_base).fast.get_vocab_size()
    (base / "added_tokens.json").write_text(json.dumps({"<|tool|>": count + 1}))
    merge_tokenizer(MergeTokenizerConfig(str(base), words(tmp_path / "w.txt", "中国"), str(tmp_path / "m")))
    new = load(tmp_path / "m")
    assert new.fast.token_to_id("<|tool|>") == count + 1
    assert read_record(tmp_path / "m")["result"]["first_new"] == count + 2


def refused(config: MergeTokenizerConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        merge_tokenizer(config)
    assert not Path(config.output).exists()


def test_refuses_unsuitable_settings(tmp_path: Path, sentencepiece_base: Path, bytelevel_base: Path) -> None:
    base, byte_base, out = str(sentencepiece_base), str(bytelevel_base), str(tmp_path / "m")
    chinese = words(tmp_path / "w.txt", "中国")
    refused(MergeTokenizerConfig(byte_base, chinese, out, policy="union"), "only for SentencePiece bases")
    refused(MergeTokenizerConfig(base, chinese, out, policy="union"), "merges two SentencePiece models")
    refused(MergeTokenizerConfig(base, chinese, out, pad="</s>"), "EOS or unknown token")
    refused(MergeTokenizerConfig(base, chinese, out, special=[" "]), "visible character")
    refused(
        MergeTokenizerConfig(base, words(tmp_path / "e.txt", "hello"), out), "no piece to add: 1 not only CJK"
    )
    refused(MergeTokenizerConfig(base, words(tmp_path / "0.txt", ""), out), "the list is empty")
    refused(MergeTokenizerConfig(base, str(bytelevel_base), out), "no chinese_sp.model inside")
    (tmp_path / "gbk.txt").write_bytes("中国".encode("gbk"))
    refused(MergeTokenizerConfig(base, str(tmp_path / "gbk.txt"), out), "not UTF-8 at byte 0; if it is GBK")


def test_refuses_a_base_without_the_roles_a_template_needs(tmp_path: Path, bytelevel_base: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(bytelevel_base / "tokenizer.json", base)
    chinese = words(tmp_path / "w.txt", "中国")
    refused(MergeTokenizerConfig(str(base), chinese, str(tmp_path / "m"), template="llama3"), "BOS token")
    refused(MergeTokenizerConfig(str(base), chinese, str(tmp_path / "m")), "names no EOS token")


def test_gate_catches_a_broken_tokenizer_json(
    tmp_path: Path, sentencepiece_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zhllama.tokenizer import write

    honest = write.write_directory

    def broken(directory: Path, *rest: object) -> None:
        honest(directory, *rest)  # type: ignore[arg-type]
        state = json.loads((directory / "tokenizer.json").read_text())
        state["model"]["merges"] = [m for m in state["model"]["merges"] if "".join(m) != "中国"]
        (directory / "tokenizer.json").write_text(json.dumps(state, ensure_ascii=False))

    monkeypatch.setattr(write, "write_directory", broken)
    chinese = words(tmp_path / "w.txt", "中国", "人民")
    refused(
        MergeTokenizerConfig(str(sentencepiece_base), chinese, str(tmp_path / "m")),
        r"breaks a guarantee: '中国' is encoded as \['中', '国'\]",
    )
