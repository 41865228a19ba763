"""The demo's table and page: what every stage cost and gained, whoever wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zhllama import artifact
from zhllama.page import Page, bar_plot, line_plot
from zhllama.rows import read_written
from zhllama.terminal import print_table, say
from zhllama.train.metrics import METRICS, read_metrics

STAGES = {
    "base": "measured-base",
    "after resize": "measured-resized",
    "after pretraining": "measured-pretrained",
    "after merge": "measured-merged",
    "after SFT": "measured-final",
    "control: pretrained, not extended": "measured-control",
}
TEXTS = ("news", "reviews", "english", "packages")
HEADER = ["bits per byte", "news (zh)", "reviews (zh)", "english", "packages (en)"]


def write_report(home: Path, log: Path, seconds: float) -> None:
    """Print the table and write `report.html` and `report.json` into `home`."""
    measured = {stage: _read(home / folder / "report.json") for stage, folder in STAGES.items()}
    compared = _read(home / "tokenizer-report" / "report.json")["tokenizers"]
    density = {
        name: [compared[folder]["characters_per_token"][text] for text in TEXTS]
        for name, folder in (("base", "base"), ("extended", "tokenizer"))
    }
    rows: list[list[object]] = [
        [stage, *(report[name]["bits per byte"] for name in TEXTS)] for stage, report in measured.items()
    ]
    steps = [line.split("\t") for line in log.read_text(encoding="utf-8").splitlines()]
    total = sum(float(step[1]) for step in steps)
    peak = max(float(step[2]) for step in steps)
    findings = _findings(measured, compared, home)
    page = Page("zhllama demo: SmolLM2-135M learns to read Chinese")
    for sentence in findings:
        page.paragraph(sentence)
    page.heading("Characters per token")
    page.figure(
        bar_plot(TEXTS, density, "characters per token", "More is cheaper: the same text in fewer tokens")
    )
    page.heading("Bits per byte on held-out text")
    page.table(HEADER, rows)
    bits = {stage: [report[text]["bits per byte"] for text in TEXTS] for stage, report in measured.items()}
    page.figure(bar_plot(TEXTS, bits, "bits per byte", "Lower is better; comparable across vocabularies"))
    page.heading("Training")
    arms = {"extended": "pretrain", "control, not extended": "pretrain-base"}
    label = "bits per byte"
    page.figure(line_plot(_curves(home, arms), "minutes", label, "Pretraining: two arms, equal time"))
    page.figure(line_plot(_curves(home, {"SFT": "sft"}), "minutes", label, "Instruction tuning: the replies"))
    page.heading("Answers before and after")
    page.table(["question", "base", "final"], _answers(home), text=True)
    page.heading("Time and memory")
    page.paragraph(
        f"{total / 60:.1f} minutes in all, at most {peak:.1f} GB resident in all processes of a step."
    )
    page.table(
        ["step", "seconds", "peak GB"], [[name, float(time), float(memory)] for name, time, memory in steps]
    )
    page.write(home / "report.html")
    report = {
        "characters_per_token": density,
        "bits_per_byte": measured,
        "findings": findings,
        "seconds": total,
        "peak_gb": peak,
        "steps": steps,
    }
    artifact.write_json(home / "report.json", report)
    print_table("zhllama demo", HEADER, rows)
    for sentence in findings:
        say(sentence)
    say(
        f"steps {total / 60:.1f} min, this call {seconds / 60:.1f} min, peak {peak:.1f} GB; {home / 'report.html'}"
    )


def _findings(measured: dict[str, Any], compared: dict[str, Any], home: Path) -> list[str]:
    base, trained = measured["base"], measured["after pretraining"]
    control = measured["control: pretrained, not extended"]

    def bits(report: dict[str, Any], text: str) -> float:
        return float(report[text]["bits per byte"])

    before, after = (compared[name]["characters_per_token"] for name in ("base", "tokenizer"))
    fewer = [after[text] / before[text] for text in ("news", "reviews")]
    arms = {
        name: read_metrics(home / run / METRICS)
        for name, run in (("extended", "pretrain"), ("control", "pretrain-base"))
    }
    better = [text for text in ("news", "reviews") if bits(trained, text) < bits(control, text)]
    # An arm leads only where it does on both texts.
    winner = {0: "the unextended control arm", 1: "neither arm on both texts", 2: "the extended arm"}[
        len(better)
    ]
    return [
        f"The extended tokenizer needs {fewer[0]:.2f} times fewer tokens for held-out Chinese news, {fewer[1]:.2f} times "
        f"for reviews; {100 * compared['tokenizer']['drift']:.1f}% of the lines without Chinese change their tokens.",
        f"Pretraining took Chinese news from {bits(base, 'news'):.3f} (base) to {bits(trained, 'news'):.3f} bits per "
        f"byte, reviews from {bits(base, 'reviews'):.3f} to {bits(trained, 'reviews'):.3f}.",
        f"English moved from {bits(base, 'english'):.3f} to {bits(trained, 'english'):.3f} on the Python reference "
        f"({_change(base, trained, 'english')}) and from {bits(base, 'packages'):.3f} to {bits(trained, 'packages'):.3f} "
        f"on package descriptions, which nothing trained on ({_change(base, trained, 'packages')}).",
        f"At equal training time the lower Chinese bits per byte belong to {winner}: news {bits(trained, 'news'):.3f} "
        f"extended, {bits(control, 'news'):.3f} not; reviews {bits(trained, 'reviews'):.3f} and "
        f"{bits(control, 'reviews'):.3f}. The extended arm saw {arms['extended'][-1]['tokens']:,} tokens, the control "
        f"{arms['control'][-1]['tokens']:,}.",
    ]


def _change(before: dict[str, Any], after: dict[str, Any], text: str) -> str:
    ratio = after[text]["bits per byte"] / before[text]["bits per byte"] - 1
    return f"{100 * ratio:+.1f}%"


def _curves(home: Path, runs: dict[str, str]) -> dict[str, tuple[list[float], list[float]]]:
    """Training bits per byte over minutes, by name: about forty points, each the mean of the steps since the last."""
    curves = {}
    for name, run in runs.items():
        lines = read_metrics(home / run / METRICS)
        size = -(-len(lines) // 40)
        groups = [lines[at : at + size] for at in range(0, len(lines), size)]
        x = [group[-1]["seconds"] / 60 for group in groups]
        curves[name] = (x, [sum(line["bits_per_byte"] for line in group) / len(group) for group in groups])
    return curves


def _answers(home: Path) -> list[list[object]]:
    pairs = [
        [answer["messages"] for answer in read_written(home / folder / "answers.jsonl")]
        for folder in ("answers-base", "answers-final")
    ]
    return [
        [before[-2]["content"], before[-1]["content"], after[-1]["content"]]
        for before, after in zip(*pairs, strict=True)
    ]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
