"""Bits per byte: which texts, cut how, side by side in which batches. Its sums are held in test_evaluate.py."""

import json
from pathlib import Path

import pytest
import torch

from zhllama.config import UserError
from zhllama.model import bits
from zhllama.model.adapter import Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.tokenizer.load import load


def test_texts_by_name(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).touch()
    assert bits.text_files([f"x={tmp_path}/a", f"y={tmp_path}/b"]) == {
        "x": tmp_path / "a",
        "y": tmp_path / "b",
    }
    with pytest.raises(UserError, match=r"--text x=...: given twice"):
        bits.text_files([f"x={tmp_path}/a", f"x={tmp_path}/b"])


def test_the_packages_own_passages_are_short_and_of_two_languages() -> None:
    chinese, english = (bits.read_front(file, 0) for file in bits.passages().values())
    assert len(chinese) == len(english) == 1
    assert 200 < len(chinese[0]) < 1000 < 1.1 * len(english[0]) < 2000
    assert sum("一" <= letter <= "鿿" for letter in chinese[0]) > 0.8 * len(chinese[0])
    assert english[0].isascii()


def test_whole_documents_from_the_front(tmp_path: Path) -> None:
    documents = ["第一篇", "第二篇", "第三篇"]
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": one}) + "\n" for one in documents), encoding="utf-8")
    assert bits.read_front(file, 0) == documents
    assert bits.read_front(file, 9) == documents[:1]
    assert bits.read_front(file, 10) == documents[:2]


def test_every_token_is_predicted_once(extended_models: dict[str, Path], kind: str) -> None:
    tokenizer = load(extended_models[kind])
    documents = ["今天天气很好，我们去公园散步。", "好", "The capital of China is Beijing."]
    cut = bits.windows(documents, tokenizer, 8)
    assert all(2 <= len(window) <= 8 for window in cut)
    assert [window[0] for window in cut].count(tokenizer.start_id()) == len(documents)
    predicted = [index for window in cut for index in window[1:]]
    assert predicted == [index for document in documents for index in tokenizer.encode_text(document)]


def test_batches_hold_every_window_within_the_limit() -> None:
    cut = [list(range(1, length + 1)) for length in (5, 2, 9, 3, 3, 20, 4)]
    made = bits.batches(cut, 12)
    assert max(one["input_ids"].numel() for one in made if len(one["input_ids"]) > 1) <= 12
    rows = [row[row != bits.IGNORED].tolist() for one in made for row in one["labels"]]
    assert sorted(rows) == sorted(cut)
    for one in made:
        assert torch.equal(one["position_ids"][0], torch.arange(one["input_ids"].shape[1]))


def test_neighbours_in_a_batch_change_nothing(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts(), torch.float32, "cpu")
    cut = bits.windows(["今天天气很好。", "去公园散步，好。", "好"], load(extended_models[kind]), 64)
    alone = [bits.total_nats(model, bits.batch([window])) for window in cut]
    assert bits.total_nats(model, bits.batch(cut)) == pytest.approx(sum(alone), rel=1e-5)
