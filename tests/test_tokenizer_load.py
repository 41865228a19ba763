"""Loading every kind of tokenizer, the bytes of tokens, and what is refused."""

import io
import json
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, models, pre_tokenizers

from zhllama.artifact import Opened
from zhllama.config import UserError
from zhllama.tokenizer.load import load, load_opened, require_bpe
from zhllama.tokenizer.token_sizes import token_bytes


def train(folder: Path, **settings: object) -> Path:
    writer = io.BytesIO()
    defaults = {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "hard_vocab_limit": False}
    text = iter(
        ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 5
    )
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text, model_writer=writer, minloglevel=2, **defaults | settings
    )
    path = folder / "tokenizer.model"
    path.write_bytes(writer.getvalue())
    return path


def test_bare_model_takes_its_roles_from_the_model(sentencepiece_base: Path) -> None:
    loaded = load(sentencepiece_base)
    assert (loaded.kind, loaded.bos, loaded.eos, loaded.pad, loaded.unk) == (
        "sentencepiece",
        "<s>",
        "</s>",
        None,
        "<unk>",
    )
    assert loaded.fast.encode("hi").ids[0] == loaded.fast.token_to_id("<s>")
    assert load(sentencepiece_base.parent).fast.to_str() == loaded.fast.to_str()


def test_bytelevel_directory_and_its_tokenizer_json(bytelevel_base: Path) -> None:
    for path in (bytelevel_base, bytelevel_base / "tokenizer.json"):
        loaded = load(str(path))
        assert (loaded.kind, loaded.proto, loaded.bos, loaded.eos) == (
            "bytelevel",
            None,
            "<|im_start|>",
            "<|im_end|>",
        )


def test_roles_and_templates_in_other_shapes(tmp_path: Path, bytelevel_base: Path) -> None:
    shutil.copy(bytelevel_base / "tokenizer.json", tmp_path)
    templates = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    settings = {"eos_token": {"content": "<|im_end|>"}, "chat_template": templates}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<|im_start|>"}))
    loaded = load(tmp_path)
    assert (loaded.bos, loaded.eos, loaded.chat_template) == ("<|im_start|>", "<|im_end|>", "D")


@pytest.mark.parametrize("text", ["Hello  world\n中国，😀é", "  two", "\t1999"])
def test_token_bytes_add_up(sentencepiece_base: Path, bytelevel_base: Path, text: str) -> None:
    for path, prefix in ((sentencepiece_base, 1), (bytelevel_base, 0)):
        fast = load(path).fast
        sizes = token_bytes(fast)
        assert sizes.dtype == "int32"
        assert sizes[fast.encode(text, add_special_tokens=False).ids].sum() == len(text.encode()) + prefix
    assert len(token_bytes(fast, 704)) == 704
    assert token_bytes(fast, 704)[-1] == 0


def test_specials_and_byte_pieces(sentencepiece_base: Path) -> None:
    fast = load(sentencepiece_base).fast
    sizes = token_bytes(fast)
    assert sizes[[fast.token_to_id(token) for token in ("<unk>", "<s>", "</s>", "<0xE4>", "▁")]].tolist() == [
        0,
        0,
        0,
        1,
        1,
    ]


def test_unigram_loads_but_is_no_base(tmp_path: Path) -> None:
    model = train(tmp_path, model_type="unigram")
    text = "the quick fox"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    loaded = load(model)
    assert loaded.fast.encode(text, add_special_tokens=False).ids == processor.encode(text)
    with pytest.raises(UserError, match="a unigram vocabulary; only BPE"):
        require_bpe(loaded, "--base")


def test_word_model_is_no_base(tmp_path: Path) -> None:
    model = train(tmp_path, model_type="word")
    with pytest.raises(UserError, match="a word vocabulary; only BPE"):
        require_bpe(load(model), "--base")


def test_wordpiece_is_no_base(tmp_path: Path) -> None:
    Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "tokenizer.json")
    )
    with pytest.raises(UserError, match="a WordPiece vocabulary; only BPE"):
        require_bpe(load(tmp_path), "--base")


def test_bytelevel_unigram_is_no_base(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="a WordLevel vocabulary"):
        require_bpe(load(tmp_path), "--base")


def test_normalising_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its normaliser changes text"):
        require_bpe(load(train(tmp_path, normalization_rule_name="nmt_nfkc")), "--base")


def test_base_without_bytes_is_refused(tmp_path: Path) -> None:
    model = train(
        tmp_path,
        byte_fallback=False,
        vocab_size=70,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    with pytest.raises(UserError, match="no byte pieces"):
        require_bpe(load(model), "--base")


def test_tokenizer_json_without_its_model_is_refused(tmp_path: Path, sentencepiece_base: Path) -> None:
    load(sentencepiece_base).fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"no tokenizer\.model lies next to it"):
        require_bpe(load(tmp_path), "--base")


def test_disagreeing_files_are_refused(tmp_path: Path, sentencepiece_base: Path) -> None:
    shutil.copy(sentencepiece_base, tmp_path / "tokenizer.model")
    state = json.loads(load(sentencepiece_base).fast.to_str())
    state["model"]["vocab"]["more"] = len(state["model"]["vocab"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="disagree: 1001 and 1000 tokens"):
        require_bpe(load(tmp_path), "--base")
    vocabulary = state["model"]["vocab"]
    del vocabulary["more"]
    vocabulary["<0x00>"], vocabulary["<0x01>"] = vocabulary["<0x01>"], vocabulary["<0x00>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match="disagree: id 3 is '<0x01>' and '<0x00>'"):
        require_bpe(load(tmp_path), "--base")


def test_broken_files_are_refused(tmp_path: Path, sentencepiece_base: Path) -> None:
    model = tmp_path / "a.model"
    model.write_bytes(sentencepiece_base.read_bytes()[:-7])
    with pytest.raises(UserError, match="cut short"):
        load(model)
    model.write_bytes(b"")
    with pytest.raises(UserError, match="no pieces"):
        load(model)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match=r"not a tokenizer\.json"):
        load(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json or tokenizer\.model inside"):
        load(tmp_path)
    (tmp_path / "chinese_sp.model").write_bytes(b"x")
    with pytest.raises(UserError, match="merge-tokenizer first"):
        load(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match="give a directory"):
        load(tmp_path / "a.txt")
    with pytest.raises(UserError, match="no such file or directory"):
        load(tmp_path / "none")


def test_a_tokenizers_fingerprint_is_that_of_the_file_that_decides(
    tmp_path: Path, sentencepiece_model_dir: Path, sentencepiece_base: Path
) -> None:
    both = load(sentencepiece_model_dir)
    assert both.fingerprint == sha256((sentencepiece_model_dir / "tokenizer.json").read_bytes()).hexdigest()
    shutil.copy(sentencepiece_base, tmp_path / "tokenizer.model")
    assert load(tmp_path).fingerprint == sha256(sentencepiece_base.read_bytes()).hexdigest()


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as problem:
        load_opened(Opened(tmp_path, "--model"))
    assert str(problem.value) == f"--model {tmp_path}: no tokenizer.json or tokenizer.model inside"
