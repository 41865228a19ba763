"""`zhllama score-pclue`: pCLUE's own scores of a file of answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from zhllama import artifact
from zhllama.config import UserError
from zhllama.measure.overlap import common_share, rouge_l
from zhllama.page import Page, bar_plot
from zhllama.rows import parse_rows
from zhllama.terminal import print_table, say

# type of a row -> the group it is scored in
GROUPS = {
    "classify": "classify",
    "anaphora_resolution": "classify",
    "nli": "nli",
    "generate": "generate",
    "mrc": "mrc",
}
HEADER = ["group", "measure", "rows", "score"]


class Report(artifact.Opened):
    """What a command has measured or answered."""

    kind = "report"


@dataclass
class ScorePclueConfig:
    """Score answers to pCLUE: accuracy, exact match and F1, character ROUGE-L, and their mean."""

    predictions: str
    """JSONL, a line a row: pCLUE's own `target`, or what `chat --input` wrote (its directory or answers.jsonl)."""
    references: str
    """pCLUE's JSONL with `target` and `type`, the rows in the same order."""
    output: str
    """New report directory to write."""


def score_pclue(config: ScorePclueConfig) -> None:
    """Write `report.json` and `report.html`, and print the table.

    Raises:
        UserError: a file that is missing, no JSONL, or of rows of another shape; not as many answers as rows.
    """
    predictions = Path(config.predictions)
    if predictions.is_dir():
        predictions = Report.open(predictions, "--predictions").path / "answers.jsonl"
    references = Path(config.references)
    types = f"it needs a type ({', '.join(GROUPS)}) and a target"
    wanted = parse_rows(references, "--references", _target, types)
    answers = parse_rows(predictions, "--predictions", _answer, "it needs a target or messages")
    # Rows of pCLUE have no ids: an answer belongs to the row at its place.
    if len(answers) != len(wanted):
        raise UserError(
            f"--predictions {predictions}: {len(answers):,} answers to {len(wanted):,} rows of {references}; "
            "give one answer a row, in the same order"
        )
    inputs = {"predictions": predictions, "references": references}
    with artifact.create(config.output, "report", "score-pclue", config, inputs) as run:
        rows = scores(wanted, answers)
        run.result = {"rows": len(wanted)} | {f"{row[0]} {row[1]}": row[3] for row in rows}
        artifact.write_json(run.path / "report.json", [dict(zip(HEADER, row, strict=True)) for row in rows])
        _page(config, rows).write(run.path / "report.html")
    print_table(f"pCLUE: {config.predictions}", HEADER, rows)
    missing = sorted(set(GROUPS.values()) - {group for _, group in wanted})
    if missing:
        say(f"no row of {', '.join(missing)}: the score is the mean of the other groups")


def scores(wanted: list[tuple[str, str]], answers: list[str]) -> list[list[Any]]:
    """Rows of group, measure, number of rows and score from 0 to 1, as pCLUE's evaluate_pclue.py gives them.

    The last is the mean of the groups that there are; reading comprehension counts with the mean of EM and F1.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for (target, group), answer in zip(wanted, answers, strict=True):
        groups.setdefault(group, []).append((normalize(target), normalize(answer)))
    rows: list[list[Any]] = []
    means: list[float] = []
    for group in sorted(groups):
        pairs = groups[group]
        exact = fmean(target == answer for target, answer in pairs)
        if group == "mrc":
            shared = fmean(common_share(target, answer) for target, answer in pairs)
            rows += [[group, "exact match", len(pairs), exact], [group, "F1", len(pairs), shared]]
            means.append((exact + shared) / 2)
        elif group == "generate":
            means.append(fmean(rouge_l(target, answer) for target, answer in pairs))
            rows.append([group, "ROUGE-L", len(pairs), means[-1]])
        else:
            means.append(exact)
            rows.append([group, "accuracy", len(pairs), exact])
    return [*rows, ["all", "mean", len(wanted), fmean(means)]]


def normalize(text: str) -> str:
    """Lower case, single spaces, and the full-width comma as a comma."""
    # The public script changes the comma in the targets alone, for models whose tokenizer changes it in their
    # answers. A right answer that keeps the comma would count as wrong.
    return " ".join(text.replace("，", ",").lower().split())


def _text(target: Any) -> str:
    """A target as text: a list (of keywords) joined by commas."""
    if isinstance(target, list):
        target = "，".join(target)
    if not isinstance(target, str):
        raise TypeError
    return target


def _target(row: Any) -> tuple[str, str]:
    return _text(row["target"]), GROUPS[row["type"]]


def _answer(row: Any) -> str:
    return _text(row["target"] if "target" in row else row["messages"][-1]["content"])


def _page(config: ScorePclueConfig, rows: list[list[Any]]) -> Page:
    page = Page(f"pCLUE: {config.predictions}")
    page.paragraph(
        "Classification (with anaphora resolution) and inference: accuracy. Reading comprehension: exact match, and F1 "
        "of the longest common subsequence of characters. Generation: ROUGE-L over characters. All: the mean of the "
        "groups, reading comprehension with the mean of its two."
    )
    page.table(HEADER, rows)
    names = [f"{group}\n{measure}" for group, measure, *_ in rows]
    page.figure(bar_plot(names, {"score": [row[3] for row in rows]}, "score", "Higher is better"))
    return page
