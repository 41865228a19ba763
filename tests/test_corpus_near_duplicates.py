import json
from pathlib import Path

import numpy as np
import pytest
from datatrove.pipeline.dedup.minhash import read_sigs
from test_corpus_minhash import altered

from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.compare import letters
from zhllama.corpus.minhash import DOCUMENTS, sign
from zhllama.corpus.near_duplicates import NEAR, _components
from zhllama.corpus.read import read_documents


@pytest.fixture(scope="module")
def articles(chinese_text: str) -> list[str]:
    """Pieces of about 400 characters, each of other lines."""
    lines = [line for line in dict.fromkeys(chinese_text.split("\n")) if len(line) > 60]
    groups = ["\n".join(lines[start : start + 4]) for start in range(0, len(lines) - 4, 4)]
    return [group for group in groups if len(group) > 300][:60]


def run(tmp_path: Path, name: str, texts: list[str], **settings: object) -> tuple[list[str], dict[str, int]]:
    corpus = tmp_path / f"{name}.jsonl"
    corpus.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8"
    )
    output = tmp_path / name
    clean(CleanConfig(str(corpus), str(output), **{"workers": 1, "privacy": "keep", **settings}))  # type: ignore[arg-type]
    result = json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]
    return list(read_documents(output)), result["dropped"]


def test_components_are_named_by_their_least_member() -> None:
    edges = [np.array([[4, 3], [3, 2]]), np.array([[2, 0], [6, 5]])]
    assert _components(8, edges).tolist() == [0, 1, 0, 0, 0, 5, 5, 7]
    assert _components(0, []).tolist() == []


def test_near_copies_go_and_the_longest_stays(tmp_path: Path, articles: list[str]) -> None:
    longer = altered(articles[0], 0.01, 3) + "又及，以上各节。"
    texts = [*articles[:30], longer, *(altered(text, 0.01, 2) for text in articles[1:20])]
    documents, dropped = run(tmp_path, "out", texts)
    # The copies have as many letters or fewer: a changed character may have been a mark.
    assert dropped == {"near duplicate": 20}
    assert longer in documents
    assert articles[0] not in documents
    assert set(articles[20:30]) <= set(documents)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "near duplicate" in page
    assert "<td>2</td><td>20</td>" in page  # clusters by size


def test_of_equals_the_earliest_stays(tmp_path: Path, articles: list[str]) -> None:
    text = articles[3].replace("，", "")
    copy = text.replace(text[100], "乙", 1)
    assert len(letters(copy)) == len(letters(text))
    assert run(tmp_path, "first", [text, copy])[0] == [text]
    assert run(tmp_path, "second", [copy, text])[0] == [copy]


def test_it_can_be_left_out(tmp_path: Path, articles: list[str]) -> None:
    texts = [articles[0], altered(articles[0], 0.01, 3), articles[0]]
    assert run(tmp_path, "exact", texts, near_duplicates=False)[1] == {"duplicate": 1}
    assert run(tmp_path, "all", texts, deduplicate=False)[1] == {}
    documents, dropped = run(tmp_path, "near", texts)
    assert len(documents) == 1
    assert dropped == {"duplicate": 1, "near duplicate": 1}


def test_short_texts_without_a_gram_are_kept(tmp_path: Path) -> None:
    texts = ["，。" * 3 + "甲乙丙", "、；" * 3 + "甲乙丁"]
    documents, _ = run(tmp_path, "out", texts, min_characters=0, max_symbols=1, max_repetition=1)
    assert documents == texts


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing_and_tasks_find_each_others_copies(
    tmp_path: Path, articles: list[str]
) -> None:
    corpus = tmp_path / "in"
    corpus.mkdir()
    for part in range(4):
        texts = [altered(text, 0.004 * part, part) for text in articles[part * 5 : part * 5 + 20]]
        (corpus / f"{part}.txt").write_text("\n\n".join(texts) if part != 2 else "\n", encoding="utf-8")
    outputs = {}
    for workers in (1, 2):
        output = tmp_path / str(workers)
        clean(CleanConfig(str(corpus), str(output), workers=workers, shard_megabytes=0.03))
        outputs[workers] = {
            file.name: file.read_bytes()
            for file in output.iterdir()
            if file.is_file() and file.name != "run.json"
        }
        assert json.loads((output / "run.json").read_text())["result"]["dropped"]["near duplicate"] == 25
    assert outputs[1] == outputs[2]


def test_signatures_are_in_the_format_that_datatrove_reads(tmp_path: Path, articles: list[str]) -> None:
    from datatrove.data import Document
    from datatrove.io import get_datafolder

    from zhllama.corpus.near_duplicates import SignNear

    list_of_documents = (Document(text, str(number)) for number, text in enumerate(articles))
    SignNear(str(tmp_path)).run(list_of_documents, rank=3)
    folder = get_datafolder(str(tmp_path / "near-signatures"))
    read = list(read_sigs(folder.open("bucket_002/00003.minhash.sig", "rb"), 0, NEAR))
    assert sorted(each.doc_id for each in read) == list(range(len(articles)))
    [expected] = sign([letters(articles[7])], DOCUMENTS)
    assert next(each.sig for each in read if each.doc_id == 7) == tuple(expected[16:24].tolist())
