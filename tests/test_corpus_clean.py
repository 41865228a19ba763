import gzip
import json
import os
from pathlib import Path

import datasets
import pytest

from zhllama import cli
from zhllama.artifact import fingerprint, read_record
from zhllama.config import UserError
from zhllama.corpus import pipeline as blocks
from zhllama.corpus import rules
from zhllama.corpus.clean import CleanConfig, clean
from zhllama.corpus.read import read_documents
from zhllama.corpus.rules import Limits

SUBJECTS = ("国务院", "气象台", "图书馆", "少年队", "列车员", "老教授")
PREDICATES = ("公布了今年的计划", "提醒市民注意降温", "向读者借出了三万册书", "赢得了昨晚的比赛")


def sentence(number: int) -> str:
    subject, predicate = SUBJECTS[number % 6], PREDICATES[number // 6 % 4]
    return f"据本报记者第{number}号报道，{subject}{predicate}，\n各地反响热烈，详情见第{number % 8 + 1}版。"


def folder(path: Path) -> Path:
    path.mkdir()
    for part in range(4):
        documents = [sentence(number) for number in range(part * 20, part * 20 + 30)]
        documents += ["太短", "好" * 40, "１２３" * 20]
        (path / f"{part}.txt").write_text("\n\n".join(documents), encoding="utf-8")
    return path


def run(
    tmp_path: Path, corpus: Path, name: str = "out", **settings: object
) -> tuple[Path, dict[str, object]]:
    output = tmp_path / name
    clean(
        CleanConfig(
            corpus=str(corpus), output=str(output), **{"workers": 1, "near_duplicates": False, **settings}
        )
    )  # type: ignore[arg-type]
    if settings.get("dry_run"):
        output = tmp_path / f"{name}-dry-run"
    return output, json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]


def contents(path: Path) -> dict[str, bytes]:
    return {
        file.name: file.read_bytes() for file in path.iterdir() if file.is_file() and file.name != "run.json"
    }


def test_documents_are_kept_once_in_order_with_their_newlines_and_origin(tmp_path: Path) -> None:
    output, result = run(tmp_path, folder(tmp_path / "in"))
    assert list(read_documents(output)) == [sentence(number) for number in range(90)]
    rows = [
        json.loads(line) for file in sorted(output.glob("*.jsonl")) for line in file.read_text().splitlines()
    ]
    assert rows[0] == {"text": sentence(0), "id": "0.txt:1", "source": "0.txt"}
    assert rows[89]["id"] == "3.txt:88"
    assert result["dropped"] == {"duplicate": 30, "too short": 4, "repetitive": 4, "mostly symbols": 4}
    assert (result["read"], result["documents"]) == (132, 90)
    text = "".join(map(sentence, range(90)))
    assert (result["characters"], result["bytes"]) == (len(text), len(text.encode()))
    assert 0.5 < float(str(result["han_share"])) < 1
    assert not (output / ".work").exists()


def test_the_report_shows_reasons_and_examples(tmp_path: Path) -> None:
    output, _ = run(tmp_path, folder(tmp_path / "in"))
    page = (output / "report.html").read_text(encoding="utf-8")
    for shown in ("repetitive", "mostly symbols", "too short", "duplicate", "1.txt:1<", "好好好", "<svg"):
        assert shown in page


def test_nothing_but_the_summary_reaches_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output, _ = run(tmp_path, folder(tmp_path / "in"))
    said = capfd.readouterr()
    assert said.err == ""
    assert "4 .txt files split at blank lines" in said.out
    assert "90 documents" in said.out
    assert "INFO" not in said.out
    assert "Task 0" in (output / "logs" / "read.log").read_text(encoding="utf-8")


def test_shards_change_the_files_and_not_the_documents(tmp_path: Path) -> None:
    output, result = run(tmp_path, folder(tmp_path / "in"), shard_megabytes=0.002)
    assert list(read_documents(output)) == [sentence(number) for number in range(90)]
    assert result["dropped"]["duplicate"] == 30  # type: ignore[index]
    assert max(file.stat().st_size for file in output.glob("*.jsonl")) < 2500


def test_duplicates_differ_in_white_space_only_and_can_be_kept(tmp_path: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    same = [sentence(1), sentence(1).replace("\n", "  \n\n\u3000"), sentence(2)]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in same), encoding="utf-8")
    output, _ = run(tmp_path, corpus)
    assert list(read_documents(output)) == [same[0], same[2]]
    output, result = run(tmp_path, corpus, "all", deduplicate=False)
    assert (result["documents"], result["dropped"]) == (3, {})


def test_an_empty_first_file_is_passed_over(tmp_path: Path) -> None:
    corpus = folder(tmp_path / "in")
    (corpus / "0.txt").write_bytes(b"")
    output, _ = run(tmp_path, corpus)
    assert list(read_documents(output)) == [sentence(number) for number in range(20, 90)]


def test_damage_costs_a_row_of_json(tmp_path: Path) -> None:
    corpus = tmp_path / "a.jsonl"
    rows = [json.dumps({"text": sentence(number)}, ensure_ascii=False).encode() for number in range(9)]
    rows[3] = rows[3][:30] + b"\xff" + rows[3][31:]
    corpus.write_bytes(b"\n".join(rows))
    output, result = run(tmp_path, corpus, broken="skip")
    assert list(read_documents(output)) == [sentence(number) for number in range(9) if number != 3]
    assert result["skipped"] == {"rows": 1}
    with pytest.raises(UserError, match=r"a.jsonl line 4: bytes that are no text"):
        run(tmp_path, corpus, "stops")


def test_what_datasets_saved_is_cleaned_in_its_files(tmp_path: Path) -> None:
    datasets.disable_progress_bars()
    whole = datasets.Dataset.from_list([{"text": sentence(number)} for number in range(90)])
    whole.save_to_disk(tmp_path / "in", num_shards=3)
    output, _ = run(tmp_path, tmp_path / "in", shard_megabytes=1e-9)  # a task for every file
    assert list(read_documents(output)) == [sentence(number) for number in range(90)]
    *_, last = sorted(output.glob("documents-*.jsonl"))
    assert last.name == "documents-00002.jsonl"
    first = json.loads(last.read_text(encoding="utf-8").splitlines()[0])
    assert first["id"] == "data-00002-of-00003.arrow:1"


def test_a_dataset_of_a_hub_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()  # stands for one
    rows = "".join(json.dumps({"body": sentence(number)}) + "\n" for number in range(90))
    (tmp_path / "name" / "validation.jsonl").write_text(rows, encoding="utf-8")
    name = Path(f"hf:{tmp_path}/name:validation")
    output, _ = run(tmp_path, name, key="body")
    assert list(read_documents(output)) == [sentence(number) for number in range(90)]
    commit = fingerprint(name)
    assert read_record(output)["inputs"] == {"corpus": {"path": str(name), "fingerprint": commit}}
    row = json.loads((output / "documents-00000-00000.jsonl").read_text(encoding="utf-8").splitlines()[3])
    assert (row["source"], row["id"]) == (f"name@{commit}:validation", f"name@{commit}:validation:4")
    sample, _ = run(tmp_path, name, "other", key="body", dry_run=True)
    assert len(list(read_documents(sample))) == 90


def test_gb18030(tmp_path: Path) -> None:
    corpus = tmp_path / "a.txt"
    corpus.write_bytes("\n\n".join(map(sentence, range(5))).encode("gb18030"))
    output, _ = run(tmp_path, corpus, encoding="gb18030")
    assert list(read_documents(output)) == [sentence(number) for number in range(5)]


def test_special_tokens_and_lost_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "a.jsonl"
    text = "".join(map(sentence, range(5)))
    rows = [text + "</s>\ufffd", text + "\ud83d乙"]  # JSON can hold half of a surrogate pair
    corpus.write_text("".join(json.dumps({"body": row}) + "\n" for row in rows), encoding="utf-8")
    output, result = run(tmp_path, corpus, key="body")
    assert list(read_documents(output)) == [text + "</ s>\ufffd", text + "乙"]
    assert result["replacement_characters"] == 1
    assert "1 characters (U+FFFD) were lost" in capsys.readouterr().out


def test_limits_reach_the_rules(tmp_path: Path) -> None:
    corpus = folder(tmp_path / "in")
    _, result = run(tmp_path, corpus, min_characters=2, max_symbols=1, max_repetition=1)
    assert result["dropped"] == {"duplicate": 39}
    (corpus / "english.txt").write_text(
        "English text is dropped where Chinese is asked for.", encoding="utf-8"
    )
    _, result = run(tmp_path, corpus, "chinese", min_chinese=0.5)
    assert result["dropped"]["too little Chinese"] == 1  # type: ignore[index]


def test_many_lines_in_one_guessed_document_are_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "reviews.txt"
    corpus.write_text("\n".join(sentence(n).replace("\n", "") for n in range(1200)), encoding="utf-8")
    run(tmp_path, corpus, max_repetition=1)
    assert "reviews.txt:1: 1,200 lines became one document" in capsys.readouterr().err
    _, result = run(tmp_path, corpus, "lines", documents="line")
    assert result["documents"] == 1200


def test_an_interrupted_run_is_unfinished_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = folder(tmp_path / "in")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(blocks, "judge", interrupt)
        run(tmp_path, corpus)
    assert "result" not in json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    with pytest.raises(UserError, match="did not finish"):
        read_documents(tmp_path / "out")
    output, result = run(tmp_path, corpus)
    assert result["documents"] == 90
    assert not (output / ".work").exists()


def test_a_run_goes_on_with_the_same_settings_and_text_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, judged, stop = folder(tmp_path / "in"), [], False

    def judge(text: str, limits: Limits) -> str | None:
        judged.append(text)
        if len(judged) == 100 and stop:
            raise KeyboardInterrupt
        return rules.judge(text, limits)

    monkeypatch.setattr(blocks, "judge", judge)
    expected = contents(run(tmp_path, corpus, "whole", shard_megabytes=0.002)[0])
    for change, again in ((None, 33), ("setting", 132), ("text", 132)):
        judged, stop = [], True
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, corpus, str(change), shard_megabytes=0.002)
        judged, stop = [], False
        if change == "text":
            (corpus / "0.txt").write_text(
                (corpus / "0.txt").read_text(encoding="utf-8") + "\n", encoding="utf-8"
            )
        settings = {"min_characters": 21} if change == "setting" else {}
        output, _ = run(tmp_path, corpus, str(change), shard_megabytes=0.002, **settings)
        assert len(judged) == again
        assert contents(output) == expected


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_file_that_cannot_be_read_leaves_no_output(tmp_path: Path, workers: int) -> None:
    corpus = folder(tmp_path / "in")
    (corpus / "4.txt").write_bytes(sentence(1).encode("gb18030"))
    with pytest.raises(UserError, match=r"4.txt: not UTF-8 at byte 0.*--encoding gb18030"):
        run(tmp_path, corpus, workers=workers, shard_megabytes=0.001, encoding="utf-8")
    assert not (tmp_path / "out").exists()


def spoiled(path: Path) -> Path:
    """The folder with every kind of file that something is wrong with."""
    corpus = folder(path)
    (corpus / "a.txt.gz").write_bytes(
        gzip.compress("\n\n".join(map(sentence, range(200, 230))).encode())[:-9]
    )
    (corpus / "b.txt").write_bytes(bytes(range(256)) * 9)
    good, more = (json.dumps({"text": sentence(number)}) for number in (300, 301))
    (corpus / "c.jsonl").write_text(f'{good}\n{{"text": \n["a"]\n{more}\n', encoding="utf-8")
    (corpus / "d.txt").write_bytes(b"")
    (corpus / "e.txt").write_bytes("\n\n".join(map(sentence, range(400, 410))).encode("gb18030"))
    (corpus / "f.txt").write_bytes("\n\n".join([sentence(500)] * 99).encode() + b"\xff\xff")
    (corpus / "g.parquet").write_bytes(b"PAR1 no")
    return corpus


def test_what_cannot_be_read_is_skipped_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, result = run(tmp_path, spoiled(tmp_path / "in"), broken="skip")
    assert result["skipped"] == {"files": 4, "rows": 2}
    assert result["encodings"] == {"utf-8": 8, "gb18030": 1}
    said = capsys.readouterr()
    assert "left out 4 files that could not be read (--broken skip), the first: " in said.err
    assert "a.txt.gz: broken or cut short" in said.err
    assert "1 files gb18030" in said.out
    page = (output / "report.html").read_text(encoding="utf-8")
    for name in (
        "a.txt.gz: broken",
        "b.txt: binary",
        "c.jsonl line 2: not JSON",
        "f.txt: not UTF-8",
        "g.parquet: not a",
    ):
        assert name in page
    documents = list(read_documents(output))
    expected = {*map(sentence, (300, 301)), *map(sentence, range(400, 410))}
    assert expected <= set(documents)
    assert all(document.startswith("据本报记者第") and document.endswith("版。") for document in documents)


def test_by_default_the_first_such_file_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.txt.gz: broken or cut short"):
        run(tmp_path, spoiled(tmp_path / "in"))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_cleans_a_sample_beside_the_output_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = folder(tmp_path / "in")
    monkeypatch.setattr("zhllama.corpus.clean.SAMPLE", 9)
    monkeypatch.setattr("zhllama.corpus.clean.SAMPLE_FILES", 2)
    for _ in range(2):
        run(tmp_path, corpus, dry_run=True)
    sample = tmp_path / "out-dry-run"
    assert list(read_documents(sample)) == [sentence(number) for number in (*range(5), *range(40, 45))]
    assert (sample / "report.html").is_file()
    assert not (tmp_path / "out").exists()
    run(tmp_path, corpus)


def test_a_dry_run_does_not_replace_what_is_none(tmp_path: Path) -> None:
    corpus = folder(tmp_path / "in")
    run(tmp_path, corpus, "out-dry-run")
    with pytest.raises(UserError, match="already holds a run of clean"):
        run(tmp_path, corpus, dry_run=True)


REFUSED = {
    "a.txt": (b"\n\n", "a.txt: no document inside"),
    "b.txt": (
        "太短\n\n也短\n\n".encode(),
        r"nothing kept of 2 documents, 2 of them dropped as 'too short' \(see --min-",
    ),
    "c.txt.gz": (gzip.compress(sentence(1).encode() * 50)[:-9], "c.txt.gz: broken or cut short"),
    "d.jsonl": (b'{"text": "a"}\n{"text": \n', "d.jsonl line 2: not JSON"),
    "e.jsonl": (b'{"body": "a"}\n', "e.jsonl line 1: no text under key 'text', only 'body'; .*--key"),
    "f.pdf": (b"", "f.pdf: unsupported extension"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        run(tmp_path, tmp_path / name)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_or_inside_the_corpus_is_refused(tmp_path: Path) -> None:
    corpus = folder(tmp_path / "in")
    run(tmp_path, corpus)
    with pytest.raises(UserError, match="already holds a run of clean"):
        run(tmp_path, corpus)
    with pytest.raises(UserError, match="lies inside --corpus"):
        run(corpus, corpus)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_repetition": 1.5}, "max_repetition 1.5: a share is between 0 and 1"),
        ({"max_symbols": -0.1}, "max_symbols -0.1: a share"),
        ({"min_chinese": 50}, "min_chinese 50: a share"),
        ({"workers": -1}, "workers, min_characters, max_words and boilerplate must not be negative"),
        ({"shard_megabytes": 0}, "shard_megabytes must be positive"),
        ({"encoding": "utf-9"}, "encoding utf-9: unknown; try"),
        ({"encoding": "base64"}, "encoding base64: unknown; try"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CleanConfig(corpus="a", output="b", **settings)  # type: ignore[arg-type]


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, output = folder(tmp_path / "in"), tmp_path / "out"
    cli.main(
        [
            "clean",
            "--corpus",
            str(corpus),
            "--output",
            str(output),
            "--near-duplicates",
            "false",
            "--min-characters",
            "10",
            "--workers",
            "1",
        ]
    )
    assert "90 documents" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["clean", "--corpus", str(tmp_path / "missing"), "--output", str(tmp_path / "x")])
    assert caught.value.code == 2
    assert "zhllama clean: error:" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["clean", "--corpus", str(corpus), "--output", str(tmp_path / "x"), "--encoding", "utf-9"])
    assert "encoding utf-9: unknown" in capsys.readouterr().err


def test_names_that_are_no_utf_8_are_read_and_recorded(tmp_path: Path) -> None:
    """As archives from Windows leave them; the second document is dropped, and the report shows where it lay."""
    (tmp_path / "in").mkdir()
    file = tmp_path / "in" / os.fsdecode("新闻.txt".encode("gbk"))
    file.write_text(f"{sentence(1)}\n\n太短", encoding="utf-8")
    output, result = run(tmp_path, tmp_path / "in")
    assert result["documents"] == 1
    assert "\\udcd0\\udcc2" in (output / "report.html").read_text(encoding="utf-8")
    assert list(read_documents(output)) == [sentence(1)]
