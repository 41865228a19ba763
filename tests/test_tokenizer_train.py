"""train-tokenizer: exact size, valid model, nothing skipped, refusals."""

import json
from pathlib import Path

import pytest
import sentencepiece

from zhllama.config import UserError, parse
from zhllama.tokenizer.merge import MergeTokenizerConfig
from zhllama.tokenizer.train import (
    TrainTokenizerConfig,
    chinese_sentences,
    draw_sample,
    train_tokenizer,
)

RECIPES = Path(__file__).resolve().parents[1] / "tokenizer"


def test_recipes_are_complete() -> None:
    merge = ["--config", str(RECIPES / "merge.yaml"), "--config", str(RECIPES / "merge-llama3.yaml")]
    paths = ["--base", "b", "--chinese", "c", "--output", "o"]
    assert parse("merge-tokenizer", MergeTokenizerConfig, merge[:2] + paths) == MergeTokenizerConfig(
        "b", "c", "o"
    )
    assert parse("merge-tokenizer", MergeTokenizerConfig, merge + paths).template == "llama3"
    train = ["--config", str(RECIPES / "train.yaml"), "--corpus", "c", "--output", "o"]
    assert parse("train-tokenizer", TrainTokenizerConfig, train) == TrainTokenizerConfig("c", "o")


@pytest.fixture
def corpus(tmp_path: Path, chinese_text: str) -> Path:
    file = tmp_path / "news.txt"
    file.write_text(chinese_text[:40_000].replace("\n", "\n\n"), encoding="utf-8")
    return file


@pytest.mark.parametrize("size", [1, 2, 60, 777])
def test_size_counts_what_the_merge_adds(
    tmp_path: Path, corpus: Path, bytelevel_base: Path, sentencepiece_base: Path, size: int
) -> None:
    from zhllama.tokenizer.load import load
    from zhllama.tokenizer.merge import extend_base, read_pieces

    for base in (bytelevel_base, sentencepiece_base):
        output = tmp_path / base.name
        train_tokenizer(TrainTokenizerConfig(str(corpus), str(output), base=str(base), size=size, threads=1))
        _, pieces = read_pieces(str(output))
        admitted, _, _ = extend_base(load(base), pieces, [])
        assert len(admitted.keys) == size


def test_without_base_the_model_is_whole(tmp_path: Path, corpus: Path) -> None:
    train_tokenizer(TrainTokenizerConfig(str(corpus), str(tmp_path / "t"), size=1500, threads=1))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t" / "chinese_sp.model"))
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert processor.get_piece_size() == 1500 + 259
    assert report["skipped_bytes"] == 0
    assert report["characters_per_token"] > 1
    assert max(len(processor.id_to_piece(i)) for i in range(259, 1759)) <= 8
    text = "中华人民共和国，abc𠮷"  # no space: pieces are Chinese only
    assert processor.decode(processor.encode(text)) == text


def test_extension_is_measured_on_held_out_text(tmp_path: Path, corpus: Path, bytelevel_base: Path) -> None:
    config = TrainTokenizerConfig(
        str(corpus), str(tmp_path / "t"), base=str(bytelevel_base), size=1500, threads=1
    )
    train_tokenizer(config)
    report = json.loads((tmp_path / "t" / "report.json").read_text())
    assert report["characters_per_token"] > 2 * report["characters_per_token_base"]
    assert report["held_out_characters"] > 1000


def test_long_paragraphs_are_cut_and_not_skipped() -> None:
    line = "中" * 5000 + "。" + "国" * 3000
    sentences = list(chinese_sentences([line, "中a国"], set("中国。")))
    assert "".join(sentences) == line + "中国"
    assert max(map(len, sentences)) <= 1024


def test_sampling_is_bounded_and_repeatable(tmp_path: Path) -> None:
    config = TrainTokenizerConfig("c", "o", sample_megabytes=1, seed=3)
    documents = [f"中国{number:04}" * 100 for number in range(2000)]
    first, second = draw_sample(documents, config), draw_sample(iter(documents), config)
    assert first == second
    assert sum(len(line.encode()) for line in first.lines + first.held_out) <= 1_000_000
    assert 100 < first.kept < first.documents == 2000


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
        TrainTokenizerConfig("c", "o", **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("", {}, "no document"),
        ("plain English only\n", {}, "no Chinese characters"),
        ("中国人民银行\n" * 20, {"size": 500}, "this corpus supports 1[0-9] new pieces"),
        ("中国人民银行\n", {}, "no character occurs 3 times"),
    ],
)
def test_unsuitable_corpora(tmp_path: Path, text: str, changes: dict[str, int], message: str) -> None:
    file = tmp_path / "c.txt"
    file.write_text(text, encoding="utf-8")
    config = TrainTokenizerConfig(str(file), str(tmp_path / "t"), **changes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        train_tokenizer(config)
    assert not (tmp_path / "t").exists()


def test_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--corpus .*: no such file"):
        train_tokenizer(TrainTokenizerConfig(str(tmp_path / "none.txt"), str(tmp_path / "t")))


def test_corpus_of_blank_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text in it"):
        draw_sample([" \n"], TrainTokenizerConfig("c", "o"))
