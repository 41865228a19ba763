"""What a corpus consists of, before and after."""

import random
from collections import Counter
from pathlib import Path

import pytest
from datatrove.data import Document

from zhllama.corpus import measure
from zhllama.corpus.measure import Measure, TextSample, frequent
from zhllama.corpus.tally import DocumentTally


def test_sequences_are_counted_within_punctuation() -> None:
    assert frequent(["中国人，中国人。abc", "国人"], 2) == {"国人": 3, "中国": 2}
    assert frequent(["中国人"], 5) == {}


def test_only_the_most_frequent_sequences_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MOST", 2)
    assert frequent(["甲乙甲乙丙甲乙丙丁"], 2) == {"甲乙": 3, "乙丙": 2}


def test_a_sample_is_bounded_and_the_same_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1000)
    documents = [(f"a.txt:{number}", f"{number:010d}") for number in range(1000)]
    drawn = []
    for seed in range(2):
        random.Random(seed).shuffle(documents)
        sample = TextSample()
        for identifier, text in documents:
            sample.add(identifier, text)
        assert 200 < sample.characters <= 1000
        drawn.append(sorted(sample.texts()))
    assert drawn[0] == drawn[1]


def test_the_sample_after_is_what_is_left_of_that_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "SAMPLE", 1000)
    before = TextSample()
    for number in range(1000):
        before.add(f"a.txt:{number}", f"{number:010d}")
    after = TextSample(before.halvings)
    for number in range(0, 1000, 3):
        after.add(f"a.txt:{number}", f"{number:010d}")
    assert after.texts() == [text for text in before.texts() if int(text) % 3 == 0]


def test_qualities_sources_and_kinds_are_counted(tmp_path: Path) -> None:
    texts = {"books/a.txt": "中文 letters", "b.txt": "中文，。", "books/c.txt": " "}
    documents = [Document(text, f"{name}:1", metadata={"source": name}) for name, text in texts.items()]
    assert list(Measure(str(tmp_path), "before").run(iter(documents))) == documents
    seen = DocumentTally.total(tmp_path).seen
    assert seen["before documents"] == {"books": 2, "other": 1}
    assert seen["before characters"] == {"books": 11, "other": 4}
    assert seen["before source characters"]["books/a.txt"] == 10
    assert seen["before Chinese"] == {"2": 1, "9": 1}
    assert seen["before symbols"] == {"0": 1, "5": 1}
    assert seen["before lengths"] == {"4": 1, "3": 1, "1": 1}


def test_of_many_names_the_most_frequent_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhllama.corpus.tally.MOST", 4)
    for rank in range(3):
        tally = DocumentTally()
        tally.seen["names"] = Counter({"common": 5, f"rare {rank}": 1, f"other {rank}": 2})
        tally.save(str(tmp_path), "step", rank)
    total = DocumentTally.total(tmp_path).seen["names"]
    assert total["common"] == 15
    assert len(total) <= 4
