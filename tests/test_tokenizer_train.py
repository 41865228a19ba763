"""train-tokenizer: exact size, valid model, nothing skipped, refusals."""

import json
from pathlib import Path

import pytest
import sentencepiece

from zhllama.config import UserError, parse
from zhllama.corpus.han import HAN
from zhllama.tokenizer.load import load
from zhllama.tokenizer.merge import MergeTokenizerConfig, extend_base
from zhllama.tokenizer.pieces import read_pieces
from zhllama.tokenizer.train import TrainTokenizerConfig, train_tokenizer

RECIPES = Path(__file__).resolve().parents[1] / "tokenizer"


def test_recipes_are_complete() -> None:
    merge = ["--config", str(RECIPES / "merge.yaml"), "--config", str(RECIPES / "merge-llama3.yaml")]
    paths = ["--base", "b", "--chinese", "c", "--output", "o"]
    assert parse("merge-tokenizer", MergeTokenizerConfig, merge[:2] + paths) == MergeTokenizerConfig(
        "b", "c", "o"
    )
    assert parse("merge-tokenizer", MergeTokenizerConfig, merge + paths).template == "llama3"
    train = ["--config", str(RECIPES / "train.yaml"), "--corpus", "c", "--output", "o"]
    assert parse("train-tokenizer", TrainTokenizerConfig, train) == TrainTokenizerConfig(["c"], "o")


@pytest.fixture
def corpus(tmp_path: Path, chinese_text: str) -> Path:
    file = tmp_path / "news.txt"
    file.write_text(chinese_text[:40_000].replace("\n", "\n\n"), encoding="utf-8")
    return file


@pytest.mark.parametrize("size", [1, 2, 60, 777])
def test_size_counts_what_the_merge_adds(
    tmp_path: Path, corpus: Path, bytelevel_base: Path, sentencepiece_base: Path, size: int
) -> None:
    for base in (bytelevel_base, sentencepiece_base):
        output = tmp_path / base.name
        train_tokenizer(
            TrainTokenizerConfig([str(corpus)], str(output), base=str(base), size=size, threads=1)
        )
        admitted, _, _ = extend_base(load(base), read_pieces(output).pieces, [])
        assert len(admitted.keys) == size


def test_characters_leave_half_of_the_pieces_to_words(
    tmp_path: Path, corpus: Path, sentencepiece_base: Path
) -> None:
    base, output = str(sentencepiece_base), str(tmp_path / "t")
    train_tokenizer(TrainTokenizerConfig([str(corpus)], output, base=base, size=600, threads=1))
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert (report["characters"], report["merges"]) == (300, 300)


def test_without_base_the_model_is_whole(tmp_path: Path, corpus: Path) -> None:
    train_tokenizer(TrainTokenizerConfig([str(corpus)], str(tmp_path / "t"), size=2500, threads=1))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t" / "chinese_sp.model"))
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert processor.get_piece_size() == 2500 + 259
    assert report["skipped_bytes"] == 0
    assert report["characters_per_token"] > 1
    assert max(len(processor.id_to_piece(i)) for i in range(259, 2759)) <= 8
    text = "中华人民共和国，abc𠮷"  # no space: pieces are Chinese only
    assert processor.decode(processor.encode(text)) == text


def test_extension_is_measured_on_held_out_text(tmp_path: Path, corpus: Path, bytelevel_base: Path) -> None:
    config = TrainTokenizerConfig(
        [str(corpus)], str(tmp_path / "t"), base=str(bytelevel_base), size=1500, threads=1
    )
    train_tokenizer(config)
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert report["characters_per_token"] > 2 * report["characters_per_token_base"]
    assert report["held_out_characters"] > 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 0),
        ("character_min_count", 0),
        ("max_piece_length", 1),
        ("sample_megabytes", 0),
        ("threads", -1),
    ],
)
def test_settings_out_of_range(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} {value}: must be at least"):
        TrainTokenizerConfig(["c"], "o", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "no document"),
        ("plain English only\n", {}, "no Chinese characters"),
        ("中国人民银行\n" * 20, {"size": 500}, "this corpus supports 1[0-9] new pieces"),
        ("中国人民银行", {}, "no character occurs 2 times"),
    ],
)
def test_unsuitable_corpora(tmp_path: Path, text: str, changes: dict[str, int], message: str) -> None:
    file = tmp_path / "c.txt"
    file.write_text(text, encoding="utf-8")
    config = TrainTokenizerConfig([str(file)], str(tmp_path / "t"), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        train_tokenizer(config)
    assert not (tmp_path / "t").exists()


def test_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--corpus .*: no such file"):
        train_tokenizer(TrainTokenizerConfig([str(tmp_path / "none.txt")], str(tmp_path / "t")))


@pytest.fixture
def lists(tmp_path: Path) -> list[str]:
    (tmp_path / "a.txt").write_text("饕餮盛宴\n国家主席\n饕餮盛宴\n\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("魑魅魍魉 5 n\nhello\n", encoding="utf-8")
    return [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]


@pytest.mark.parametrize("kind", ["none", "sentencepiece", "bytelevel", "llama3"])
def test_must_have_words_are_in_and_size_stays_exact(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    corpus: Path,
    lists: list[str],
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = None if kind == "none" else str(request.getfixturevalue(f"{kind}_base"))
    train_tokenizer(
        TrainTokenizerConfig([str(corpus)], str(tmp_path / "t"), base=base, size=2400, words=lists, threads=1)
    )
    pieces = read_pieces(tmp_path / "t").pieces
    assert {"饕餮盛宴", "国家主席", "魑魅魍魉"} <= set(pieces)
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert report["size"] == 2400
    assert report["words"] == {"asked": 4, "missing": ["hello"], "dropped": {"given twice": 1, "empty": 1}}
    assert "--words: 1 cannot be pieces beside the others (hello)" in capsys.readouterr().err
    if base is not None:
        admitted, _, _ = extend_base(load(base), pieces, [])
        assert len(admitted.keys) == 2400


def test_more_words_than_size(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "w.txt").write_text("魑魅\n魍魉\n饕餮\n", encoding="utf-8")
    config = TrainTokenizerConfig([str(corpus)], str(tmp_path / "t"), size=2, words=[str(tmp_path / "w.txt")])
    with pytest.raises(UserError, match="--size 2: the --words alone need"):
        train_tokenizer(config)


def test_segmented_pieces_cross_no_word(tmp_path: Path, corpus: Path) -> None:
    import jieba

    train_tokenizer(
        TrainTokenizerConfig([str(corpus)], str(tmp_path / "t"), size=2500, segment=True, threads=1)
    )
    pieces = [piece for piece in read_pieces(tmp_path / "t").pieces if len(piece) > 2]
    crossing = [piece for piece in pieces if len(jieba.lcut(piece)) > 1]
    assert len(crossing) < 0.1 * len(pieces), crossing[:20]


def test_marks_lean_on_words_unless_told_otherwise(
    tmp_path: Path, corpus: Path, sentencepiece_base: Path
) -> None:
    for lean in (True, False):
        base, output = str(sentencepiece_base), str(tmp_path / str(lean))
        train_tokenizer(
            TrainTokenizerConfig([str(corpus)], output, base=base, size=4000, lean_marks=lean, threads=1)
        )
    leaning = [
        piece for piece in read_pieces(tmp_path / "True").pieces if piece[0] == "，" and len(piece) > 1
    ]
    assert len(leaning) > 50
    apart = [piece for piece in read_pieces(tmp_path / "False").pieces if piece[0] == "，"]
    assert not any(HAN.search(piece) for piece in apart)


def test_same_seed_and_threads_give_the_same_model(tmp_path: Path, corpus: Path) -> None:
    for name in ("a", "b"):
        train_tokenizer(
            TrainTokenizerConfig(
                [str(corpus)], str(tmp_path / name), size=2500, sample_megabytes=1, threads=2
            )
        )
    models = [(tmp_path / name / "chinese_sp.model").read_bytes() for name in ("a", "b")]
    assert models[0] == models[1]


def test_weights_are_reported_with_their_corpora(tmp_path: Path, corpus: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("这家酒店的服务很好，房间干净。\n" * 200, encoding="utf-8")
    base = tmp_path / "t"
    train_tokenizer(
        TrainTokenizerConfig([str(corpus), str(other)], str(base), size=2500, weight=[3, 1], threads=1)
    )
    news, reviews = json.loads((base / "report.json").read_text())["corpora"]
    assert (news["name"], reviews["name"]) == (str(corpus), str(other))
    assert news["weight"] != reviews["weight"]
    assert set(json.loads((base / "run.json").read_text())["inputs"]) == {"corpus", "corpus 2"}


@pytest.mark.parametrize(
    ("corpora", "weight", "message"),
    [
        ([], [], "--corpus: give at least one"),
        (["c", "c"], [], "--corpus c: given twice"),
        (["c"], [1, 2], "--weight: 2 given for 1 corpora"),
        (["c"], [0], "--weight 0: it must be more than 0"),
        (["c"], [float("inf")], "--weight inf: it must be more than 0"),
    ],
)
def test_corpora_and_weights_must_fit(corpora: list[str], weight: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainTokenizerConfig(corpora, "o", weight=weight)
