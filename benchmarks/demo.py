"""Keep what the last `make demo` measured: its tables, wall time and peak memory.

python benchmarks/demo.py [FOLDER]        FOLDER is build/demo; writes benchmarks/results/demo.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from table import machine, write_table

TEXTS = {"news": "news (zh)", "reviews": "reviews (zh)", "english": "english", "packages": "packages (en)"}


def main(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    write_table(
        "demo",
        ["characters per token", *TEXTS.values()],
        [
            [name, *(f"{value:.3f}" for value in values)]
            for name, values in report["characters_per_token"].items()
        ],
        "Whole held-out documents.",
    )
    write_table(
        "demo",
        ["bits per byte", *TEXTS.values()],
        [
            [stage, *(f"{measured[text]['bits per byte']:.3f}" for text in TEXTS)]
            for stage, measured in report["bits_per_byte"].items()
        ],
        " ".join(report["findings"]),
        append=True,
    )
    write_table(
        "demo",
        ["step", "seconds", "peak GB"],
        [*report["steps"], ["all", f"{report['seconds']:.0f}", f"{report['peak_gb']:.2f}"]],
        f"{machine()}. Wall time of `make demo` after set-up: {report['seconds'] / 60:.1f} minutes. Peak GB is resident "
        "memory summed over the processes of a step, shared pages counted in each.",
        append=True,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/demo"))
