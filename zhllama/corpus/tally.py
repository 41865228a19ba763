"""What the steps of `clean` tell their parent process: counts, examples, and how far they are."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from zhllama.corpus.privacy import AROUND, redact

if TYPE_CHECKING:
    from datatrove.data import Document

EXAMPLES = 3
EXAMPLE_CHARACTERS = 120
LOOKED_AT = 1000
PROBLEMS = 20
MOST = 100_000  # names counted in one `seen`


@dataclass
class DocumentTally:
    """What a step saw: counts by name, dropped documents and their characters by reason, and examples of them.

    `glued` holds the lines of a guessed document that are too many to be one, by its id; `personal` counts
    personal data by kind, `clusters` near-duplicates by the size of their cluster, `contaminated` documents by
    evaluation file, `languages` documents by main language, `removed` lines by kind, `skipped` files and rows
    that could not be read, `seen` what `Measure` counts, by moment and name, of many names the most frequent.
    """

    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    dropped_characters: Counter[str] = field(default_factory=Counter)
    guessed: Counter[str] = field(default_factory=Counter)
    personal: Counter[str] = field(default_factory=Counter)
    clusters: Counter[str] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    encodings: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    glued: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)
    seen: dict[str, Counter[str]] = field(default_factory=dict)

    def drop(self, reason: str, document: Document, note: str = "") -> None:
        """Count a dropped document; the first few of each reason are shown in the report."""
        self.dropped[reason] += 1
        self.dropped_characters[reason] += len(document.text)
        # The first of each task, then the first of all: the same for any number of workers.
        shown = self.examples.setdefault(reason, [])
        if len(shown) < EXAMPLES:
            # Personal data never reaches the report. An item that the first cut goes through is cut off whole.
            text, _ = redact(note + document.text[:LOOKED_AT])
            if len(document.text) > LOOKED_AT:
                text = text[:-AROUND]
            cut = len(document.text) > LOOKED_AT or len(text) > EXAMPLE_CHARACTERS
            shown.append([document.id, text[:EXAMPLE_CHARACTERS] + ("…" if cut else "")])

    def skip(self, what: str, problem: str) -> None:
        """Count a file or row that could not be read; the first few problems are shown."""
        self.skipped[what] += 1
        self.problems += [problem] if len(self.problems) < PROBLEMS else []

    def save(self, work: str, step: str, rank: int) -> None:
        """Write this task's part; examples may hold lone surrogates, which JSON escapes."""
        path = Path(work) / "tally" / f"{step}-{rank:05d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.__dict__), encoding="utf-8")

    @staticmethod
    def read(work: str, step: str, rank: int) -> dict[str, Any]:
        """What a task has saved."""
        path = Path(work) / "tally" / f"{step}-{rank:05d}.json"
        return dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def total(cls, work: Path) -> DocumentTally:
        """The sum over all tasks in rank order."""
        total = cls()
        # Names end in five digits, so their order is that of steps and ranks, whoever wrote them first.
        for path in sorted((work / "tally").glob("*.json")):
            part = json.loads(path.read_text(encoding="utf-8"))
            for name, value in part.items():
                if name == "problems":
                    total.problems += value[: PROBLEMS - len(total.problems)]
                elif name == "seen":
                    for what, counter in value.items():
                        held_so_far = total.seen.setdefault(what, Counter())
                        held_so_far.update(counter)
                        # The rare half goes: a corpus of millions of sources or sequences must fit, and only
                        # the top is shown.
                        if len(held_so_far) > MOST:
                            total.seen[what] = Counter(dict(held_so_far.most_common(MOST // 2)))
                elif name != "examples":
                    getattr(total, name).update(value)
            for reason, shown in part["examples"].items():
                held = total.examples.setdefault(reason, [])
                held.extend(shown[: EXAMPLES - len(held)])
        return total


class Meter:
    """Tells the process that shows progress how many bytes a task has read, through a file."""

    def __init__(self, work: str, stage: str, rank: int) -> None:
        self.path = Path(work) / f"progress-{stage}" / f"{rank:05d}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.before = self.here = 0
        self.told = 0.0

    def __call__(self, here: int) -> None:
        """Note how far into the current file the task is."""
        self.here = here
        # No more often than the bar looks at it.
        if monotonic() - self.told > 0.3:
            self.told = monotonic()
            self.path.write_text(str(self.before + here))

    def next_file(self) -> None:
        """Note that the current file is done."""
        self.before += self.here
        self.here = 0
