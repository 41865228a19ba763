import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from zhllama.config import UserError
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.contamination import EvaluationIndex
from zhllama.corpus.read import read_documents

CLEAN = "新华社北京电，国务院今天公布了新的计划，各地反响热烈。"
QUESTIONS = [
    "下列哪一项不是《红楼梦》中的人物？请选出唯一正确的答案。",
    "一个水池有两根进水管，单独开甲管六小时注满。",
    "李白与杜甫合称什么？这是唐代诗歌史上的常识。",
    "光在真空中的传播速度约为每秒三十万公里。",
    "鲁迅的第一篇白话小说发表于哪一年的杂志。",
]
FILES = {
    "a.json": json.dumps({"data": [{"question": QUESTIONS[0], "answer": 1}]}),
    "b/b.jsonl": json.dumps([QUESTIONS[1]], ensure_ascii=False) + "\n\n",
    "c.csv": f'id,question\n1,"{QUESTIONS[2]}"\n',
    "d.tsv": f"1\t{QUESTIONS[3]}\n",
    "e.txt": QUESTIONS[4] + "\n" + CLEAN[:8],
}


def evaluation(path: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(content, encoding="utf-8")
    return path


def run(tmp_path: Path, texts: list[str], folder: Path) -> tuple[list[str], dict[str, dict[str, int]], str]:
    corpus, output = tmp_path / "in.jsonl", tmp_path / "out"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    clean(CleanConfig(str(corpus), str(output), workers=1, near_duplicates=False, decontaminate=str(folder)))
    result = json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]
    return list(read_documents(output)), result, (output / "report.html").read_text(encoding="utf-8")


def test_documents_that_hold_an_evaluation_text_go_and_are_counted_by_file(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation", FILES)
    texts = [CLEAN, *(CLEAN[:12] + question + CLEAN[12:] for question in QUESTIONS), CLEAN[::-1]]
    documents, result, page = run(tmp_path, texts, folder)
    assert documents == [CLEAN, CLEAN[::-1]]
    assert result["dropped"] == {"in an evaluation file": 5}
    assert result["contaminated"] == dict.fromkeys(("a.json", "b/b.jsonl", "c.csv", "d.tsv", "e.txt"), 1)
    assert "<td>b/b.jsonl</td><td>1</td>" in page
    assert "shares 下列哪一项不是红楼梦中的" in page


def test_thirteen_letters_in_a_row_count_whatever_stands_between_them(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation", FILES)
    shared = "光在真空中，\n的传播——速度约为每"
    assert sum(map(str.isalpha, shared)) == 13
    documents, _, _ = run(tmp_path, [CLEAN + shared, CLEAN + shared[:-1], CLEAN], folder)
    assert documents == [CLEAN + shared[:-1], CLEAN]


def test_packed_files_and_tables_count_and_so_do_lists_by_line(tmp_path: Path) -> None:
    folder = evaluation(tmp_path / "evaluation", {"a.jsonl": json.dumps([QUESTIONS[0]]) + "\n[1]\n"})
    (folder / "b.csv.gz").write_bytes(gzip.compress(f'"{QUESTIONS[1]}\n下一行",2\n'.encode("gb18030")))
    (folder / "c.txt.xz").write_bytes(lzma.compress(f"\n{QUESTIONS[2]}".encode()))
    parquet.write_table(pyarrow.table({"n": [1], "q": [[{"text": QUESTIONS[3]}]]}), folder / "d.parquet")
    (folder / "e.json").write_text(json.dumps({"data": [QUESTIONS[4]]}, indent=1), encoding="utf-8")
    documents, result, _ = run(tmp_path, [CLEAN, *(CLEAN[:12] + question for question in QUESTIONS)], folder)
    assert documents == [CLEAN]
    assert result["contaminated"] == dict.fromkeys(
        ("a.jsonl", "b.csv.gz", "c.txt.xz", "d.parquet", "e.json"), 1
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "evaluation: no such file or directory"),
        ({"a.pdf": QUESTIONS[0]}, r"no text of 13 letters in .txt .json .jsonl .csv .tsv files inside"),
        ({"a.txt": CLEAN[:10]}, "no text of 13 letters"),
        ({"a.json": "{"}, r"--decontaminate: \S*a.json cannot be read"),
        (
            {"a.jsonl": '"\\ud83d"'},
            r"--decontaminate: \S*a.jsonl cannot be read \(line 1: half a character\); mend",
        ),
    ],
)
def test_a_folder_of_no_use_is_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, [CLEAN], evaluation(tmp_path / "evaluation", files))
    assert not (tmp_path / "out").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    evaluation(tmp_path, FILES)
    with pytest.raises(UserError, match=r"e.txt: no such folder"):
        run(tmp_path, [CLEAN], tmp_path / "e.txt")


def test_an_index_finds_what_a_set_of_sequences_finds(tmp_path: Path) -> None:
    source = random.Random(3)
    texts = ["".join(source.choices("天地玄黄", k=30)) for _ in range(20)]
    index = EvaluationIndex.of(4, enumerate(texts))
    index.save(tmp_path)
    for text in ("".join(source.choices("天地玄黄宇", k=50)), "天地", ""):
        sequences = {at: text[at : at + 4] for at in range(len(text) - 3)}
        first = {
            at: next((n for n, one in enumerate(texts) if s in one), None) for at, s in sequences.items()
        }
        expected = {at: number for at, number in first.items() if number is not None}
        for one in (index, EvaluationIndex.open(4, tmp_path)):
            places, numbers = one.find(text)
            assert dict(zip(places.tolist(), numbers.tolist(), strict=True)) == expected
    assert not len(EvaluationIndex.of(4, []).find(texts[0])[0])
