"""What the looks of a run found: `progress.jsonl`, and a page with the answers side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zhllama.page import Page, line_plot
from zhllama.rows import read_written

PROGRESS = "progress.jsonl"
COLUMNS = 5  # of answers side by side on the page


class Journal:
    """`progress.jsonl` and `progress.html` of a run directory."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.lines: list[dict[str, Any]] = []

    def go_on(self, step: int, write: bool) -> None:
        """Keep the looks up to the step that training resumes at."""
        file = self.output / PROGRESS
        self.lines = [line for line in read_written(file) if line["step"] <= step]
        if write and file.is_file():
            self._write()

    def has(self, step: int) -> bool:
        """Whether there was a look at a step."""
        return any(line["step"] == step for line in self.lines)

    def add(self, step: int, found: dict[str, Any], write: bool) -> None:
        """Note a look."""
        self.lines.append({"step": step, **found})
        if write:
            self._write()

    def _write(self) -> None:
        # The whole file each time: a look takes far longer than its lines.
        part = self.output / f"{PROGRESS}.part"
        part.write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines), encoding="utf-8"
        )
        part.replace(self.output / PROGRESS)

    def last_losses(self) -> dict[str, Any]:
        """`held_out` of the last look, where anything is held out."""
        return {key: value for line in self.lines[-1:] for key, value in line.items() if key == "held_out"}

    def page(self, result: dict[str, Any]) -> None:
        """Write `progress.html`: answers side by side, held-out losses, and whether answers end."""
        page = Page(f"Progress: {self.output.name}")
        if "endings" in result:
            ends = result["endings"]
            page.paragraph(
                f"After training {ends['ended']} of {ends['asked']} answers to {ends['rows']} prompts ended by "
                f"themselves within {ends['limit']} tokens."
            )
        self._losses(page)
        self._answers(page)
        page.write(self.output / "progress.html")

    def _losses(self, page: Page) -> None:
        # Of the looks at the same sources as the last one: a resumed run may have changed them.
        names = list(self.lines[-1].get("held_out", {})) if self.lines else []
        looks = [line for line in self.lines if names and list(line.get("held_out", {})) == names]
        if not looks:
            return
        page.heading("Held-out loss per reply token, by source")
        page.table(["step", *names], [[line["step"], *line["held_out"].values()] for line in looks])
        steps = [line["step"] for line in looks]
        curves = {name: (steps, [line["held_out"][name] for line in looks]) for name in names}
        page.figure(line_plot(curves, "step", "nats per reply token", "Lower is better"))

    def _answers(self, page: Page) -> None:
        # Of the looks at the same prompts as the last one, for the same reason.
        prompts = _prompts(self.lines[-1]) if self.lines else []
        looks = _spread([line for line in self.lines if prompts and _prompts(line) == prompts])
        if not looks:
            return
        page.heading("Answers to the same prompts")
        answers = [[_shown(answer) for answer in line["answers"]] for line in looks]
        header = ["prompt", *(f"step {line['step']:,}" for line in looks)]
        page.table(header, list(zip(prompts, *answers, strict=True)), text=True)
        page.paragraph(f"Every look is in {PROGRESS}.", note=True)


def _prompts(line: dict[str, Any]) -> list[str]:
    return [answer["prompt"] for answer in line.get("answers", [])]


def _spread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first, the last, and some evenly between."""
    if len(lines) <= COLUMNS:
        return lines
    return [lines[round(place * (len(lines) - 1) / (COLUMNS - 1))] for place in range(COLUMNS)]


def _shown(answer: dict[str, Any]) -> str:
    return str(answer["answer"]) + ("" if answer["ended"] == "eos" else " … [cut]")
