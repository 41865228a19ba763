"""`sft --dry-run`: what sft would learn, from nothing but data and tokenizer; and `mix`, its former name."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from zhllama.artifact import read_record
from zhllama.cli import main

ROOT = Path(__file__).resolve().parents[1]
ROWS = [
    {"instruction": f"{thing}是什么颜色？", "output": f"{thing}是{thing}色。"} for thing in "天海湖河水山云"
]


@pytest.fixture
def words(tmp_path: Path, extended_models: dict[str, Path]) -> list[str]:
    """The data and the model, without an output."""
    rows = [*ROWS, {"instruction": "问", "output": ""}]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = json.dumps([{"file": str(tmp_path / "rows.jsonl"), "samples": 5}])
    return ["--model", str(extended_models["bytelevel"]), "--data", data, "--block-size", "128"]


@pytest.mark.parametrize(("command", "folder"), [(["sft", "--dry-run"], "m-dry-run"), (["mix"], "m")])
def test_a_preview_keeps_the_table_and_says_it(
    tmp_path: Path,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    folder: str,
) -> None:
    main([*command, *words, "--output", str(tmp_path / "m")])
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder, "rows.jsonl"]
    record = read_record(tmp_path / folder)
    (one,) = record["result"]["mixture"]
    assert (record["kind"], one["rows"], record["result"]["rows"]) == ("report", 5, 5)
    assert one["dropped"] == {"empty reply": {"rows": 1, "lines": [8]}}
    assert "left out 1 (empty reply: line 8)" in capsys.readouterr().out


def test_a_preview_is_what_sft_learns(tmp_path: Path, words: list[str], toy: list[str]) -> None:
    run = ["sft", *words, *toy, "--train.max-steps", "1", "--output", str(tmp_path / "r")]
    main([*run, "--dry-run"])
    main(run)
    first, second = (read_record(tmp_path / name)["result"]["mixture"] for name in ("r-dry-run", "r"))
    assert first == second


def test_a_dry_run_replaces_the_one_before_and_nothing_else(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["sft", "--dry-run", *words, "--output", str(tmp_path / "r")]
    main(run)
    main([*run, "--mixture.seed", "1"])
    assert read_record(tmp_path / "r-dry-run")["settings"]["mixture"]["seed"] == 1
    main(["mix", *words, "--output", str(tmp_path / "m-dry-run")])
    (tmp_path / "m-dry-run" / "run.json").write_text(
        (tmp_path / "m-dry-run" / "run.json").read_text().replace('"dry_run": true', '"dry_run": false')
    )
    with pytest.raises(SystemExit) as stop:
        main(["sft", "--dry-run", *words, "--output", str(tmp_path / "m")])
    assert stop.value.code == 2
    assert "m-dry-run: already holds a run of mix" in capsys.readouterr().err


def test_examples_show_what_is_learnt(
    tmp_path: Path, words: list[str], extended_models: dict[str, Path]
) -> None:
    main(["mix", *words, "--output", str(tmp_path / "m")])
    examples = [json.loads(line) for line in (tmp_path / "m" / "examples.jsonl").open(encoding="utf-8")]
    eos = AutoTokenizer.from_pretrained(extended_models["bytelevel"]).eos_token
    known = {(row["instruction"], row["output"] + eos) for row in ROWS}
    assert len(examples) == 3
    for example in examples:
        assert any(asked in example["prompt"] and example["reply"] == reply for asked, reply in known)
    page = (tmp_path / "m" / "report.html").read_text(encoding="utf-8")
    assert all(example["prompt"].split("\n")[1][:4] in page for example in examples)
    assert page.count("<svg") == 2


@pytest.mark.parametrize(
    "recipe",
    sorted(path for path in (ROOT / "sft").rglob("*.yaml") if not path.name.startswith("scaling")),
    ids=lambda path: path.name,
)
def test_every_sft_recipe_can_be_previewed_without_its_hardware(
    tmp_path: Path, words: list[str], recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name in ("translation", "pclue", "alpaca_zh", "alpaca_en"):
        (tmp_path / "data" / f"{name}.jsonl").write_bytes((tmp_path / "rows.jsonl").read_bytes())
    main(["sft", "--dry-run", "--config", str(recipe), *words, "--output", str(tmp_path / "m")])
    assert read_record(tmp_path / "m-dry-run")["result"]["rows"] == 5


def test_what_sft_refuses_is_refused(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["mix", *words, "--mixture.evaluation", '["none.jsonl"]', "--output", str(tmp_path / "m")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == ("zhllama mix: error: mixture.evaluation: no such file: none.jsonl\n")
    assert not (tmp_path / "m").exists()
