"""The demo: its material, its plan, resuming, and the page."""

import json
import typing
from importlib import import_module
from pathlib import Path

import pytest

from zhllama import artifact
from zhllama.cli import COMMANDS, main
from zhllama.config import UserError, parse
from zhllama.demo import material
from zhllama.demo.report import STAGES, TEXTS, write_report
from zhllama.demo.steps import FAST, FULL, Step, demo_steps, run_steps
from zhllama.train.metrics import METRICS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("budget", [FULL, FAST])
def test_every_step_is_a_command_that_parses(
    budget: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    material.write_texts(tmp_path / "raw", tmp_path / "held-out")
    for step in demo_steps(tmp_path, budget):  # type: ignore[arg-type]
        name = "pretrain" if step.launched else step.arguments[0]
        arguments = [*step.arguments[1:], "--output", str(step.output)]
        if step.launched:
            assert step.arguments[0] == "pretrain/run.py"
            arguments += ["--train.deepspeed", "null"]
        module, function = COMMANDS[name][0].split(":")
        hints = typing.get_type_hints(getattr(import_module(module), function))
        parse(name, next(hint for key, hint in hints.items() if key != "return"), arguments)


def test_plan_covers_the_ten_steps_and_reads_only_what_came_before(tmp_path: Path) -> None:
    steps = demo_steps(tmp_path, FULL)
    assert sorted({step.number for step in steps}) == list(range(1, 11))
    outputs = [step.output for step in steps]
    assert len(set(outputs)) == len(outputs)
    made = {tmp_path / "base", tmp_path / "raw", tmp_path / "held-out"}
    for step in steps:
        read = [Path(word.split("=")[-1]) for word in step.arguments if str(tmp_path) in word]
        assert all(any(path.is_relative_to(known) for known in made) for path in read), step
        made.add(step.output)


def test_full_run_is_planned_within_its_promise() -> None:
    assert sum(step.seconds for step in demo_steps(Path("x"), FULL)) < 25 * 60
    assert sum(step.seconds for step in demo_steps(Path("x"), FAST)) < 4 * 60


def cleaning(
    tmp_path: Path, name: str, text: str = "今天的天气很好，我们一起去公园里散步，看看春天的花。"
) -> Step:
    (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    return Step(1, name, ("clean", "--corpus", str(tmp_path / f"{name}.txt")), tmp_path / f"out-{name}", 1.0)


def test_finished_steps_are_skipped(tmp_path: Path) -> None:
    first, second = cleaning(tmp_path, "first"), cleaning(tmp_path, "second")
    main([*first.arguments, "--output", str(first.output)])
    before = (first.output / "run.json").read_bytes()
    measured = run_steps([first, second], tmp_path / "log")
    assert list(measured) == ["out-second"]
    assert (first.output / "run.json").read_bytes() == before
    name, seconds, peak = (tmp_path / "log").read_text().strip().split("\t")
    assert name == "out-second"
    assert float(seconds) > 0 and float(peak) > 0


def test_failing_step_stops_and_says_how_to_go_on(tmp_path: Path) -> None:
    steps = [cleaning(tmp_path, "short", "短"), cleaning(tmp_path, "never")]
    with pytest.raises(UserError, match=r"step 1 \(short\) failed with exit code 2; run the demo again"):
        run_steps(steps, tmp_path / "log")
    assert not steps[1].output.exists()


def test_news_are_articles_of_whole_paragraphs() -> None:
    articles = material.news()
    assert len(articles) > 1000
    assert sum(article.count("\n") for article in articles) > len(articles)
    assert not any("/" in article[:200] and "/n" in article for article in articles)


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    material.write_texts(tmp_path / "raw", tmp_path / "held-out")
    news = (tmp_path / "raw" / "chinese" / "news.txt").read_text(encoding="utf-8")
    trained = set(news.split("\n\n"))
    for kind in ("reviews", "python"):
        folder = "english" if kind == "python" else "chinese"
        lines = (tmp_path / "raw" / folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        trained |= {json.loads(line)["text"] for line in lines}
    for name in TEXTS:
        lines = (tmp_path / "held-out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        held_out = [json.loads(line)["text"] for line in lines]
        assert len(held_out) >= 4
        assert not trained & set(held_out)


def test_missing_package_is_named() -> None:
    with pytest.raises(UserError, match="needs the package no-such-package"):
        material.package_folder("no_such_package")


@pytest.mark.slow
def test_base_keeps_digits_apart_and_chats(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    material.write_base(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2023")["input_ids"]) == [
        "in",
        "Ġ",
        "2",
        "0",
        "2",
        "3",
    ]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    model = AutoModelForCausalLM.from_pretrained(str(tmp_path), dtype="float32")
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert (
        json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
        == tokenizer.eos_token_id
    )


def measurements(home: Path, control: float) -> None:
    """Report directories as the evaluate and chat steps leave them, the extended arm at 2.0 bits per byte."""
    for stage, folder in STAGES.items():
        bits = {"control": control, "after": 2.0, "base": 2.5}[stage.split()[0].rstrip(":")]
        (home / folder).mkdir(parents=True)
        (home / folder / "report.json").write_text(
            json.dumps({key: {"bits per byte": bits} for key in TEXTS})
        )
    density = {
        name: {"characters_per_token": dict.fromkeys(TEXTS, value), "drift": 0.0}
        for name, value in (("base", 0.5), ("tokenizer", 1.5))
    }
    (home / "tokenizer-report").mkdir()
    (home / "tokenizer-report" / "report.json").write_text(json.dumps({"tokenizers": density}))
    for run in ("pretrain", "pretrain-base", "sft"):
        (home / run).mkdir()
        line = {"step": 1, "seconds": 60.0, "bits_per_byte": 2.2, "tokens": 1000}
        (home / run / METRICS).write_text(json.dumps(line) + "\n")
    for folder in ("answers-base", "answers-final"):
        (home / folder).mkdir()
        messages = [{"role": "user", "content": "一加一？"}, {"role": "assistant", "content": folder}]
        (home / folder / "answers.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    (home / "steps.tsv").write_text("model\t60.0\t1.50\npretrain\t120.0\t2.50\n")


@pytest.mark.parametrize(
    ("control", "winner"),
    [(2.1, "belong to the extended arm"), (1.9, "belong to the unextended control arm")],
)
def test_report_names_the_arm_that_won(control: float, winner: str, tmp_path: Path) -> None:
    measurements(tmp_path, control)
    write_report(tmp_path, tmp_path / "steps.tsv", 1.0)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert winner in page
    assert "3.00 times fewer tokens" in page
    assert "3.0 minutes in all, at most 2.5 GB" in page
    assert "answers-base" in page and "answers-final" in page
    assert page.count("<svg") == 4
    assert artifact.RUN_FILE not in page
