"""What each switch of training on CPU is worth: our own way with and without it, in tokens per second and memory.

python benchmarks/switches.py       prints the tables and writes benchmarks/results/switches.md

The run of benchmarks/pretrain.py: all ways are loaded and take turns step by step. Then attention as a reply is
generated, a query at a time, by transformers' own rules and with its switch. Needs ../shared/data.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from table import machine, write_table

import pretrain

STEPS, WARM = 9, 2
SWITCH = "TRANSFORMERS_SDPA_FORCE_GQA"
# Assignments with a lower-case name leave a part of ours out, the others are environment variables.
WAYS = {
    "as it is": ["as=is"],
    "keys and values copied": ["share_keys=no"],
    "no trim of the heap": ["trim_before=no"],
    "no trim, MALLOC_TRIM_THRESHOLD_=131072": ["trim_before=no", "MALLOC_TRIM_THRESHOLD_=131072"],
    "no trim, MALLOC_MMAP_THRESHOLD_=33554432": ["trim_before=no", "MALLOC_MMAP_THRESHOLD_=33554432"],
}
# (precision, heads, heads of keys, width, length, requests)
REPLIES = [
    (precision, *shape)
    for precision in ("fp32", "bf16")
    for shape in ((9, 3, 64, 512, 2), (32, 8, 128, 1024, 2))
]


def train(dtype: str, folder: str, switches: list[str]) -> None:
    """In a process of its own, as benchmarks/pretrain.py has it."""
    from zhllama.model.fast import install

    for switch in switches:
        name = switch.partition("=")[0]
        if hasattr(install, name):
            setattr(install, name, lambda *given: None)
    pretrain.STEPS = STEPS
    pretrain.train("zhllama", dtype, Path(folder))


def measure(dtype: str, folder: str) -> list[list[object]]:
    """The rows of one precision: each ratio is the median of the ratios of single rounds."""
    from turns import Run

    runs = {}
    for way, switches in WAYS.items():
        command = ["env", *switches, sys.executable, __file__, "--way", dtype, folder, *switches]
        runs[way] = Run(command, Path(folder) / "log")
    for number in range(STEPS):
        for run in runs.values():
            run.step()
        print(dtype, number, *(f"{run.steps[-1]:.2f}" for run in runs.values()), flush=True)
    ours, rows = runs["as it is"].steps[WARM:], []
    for way, run in runs.items():
        steps = run.steps[WARM:]
        speed = pretrain.BATCH * pretrain.BLOCK / statistics.median(steps)
        faster = statistics.median(our / one for our, one in zip(ours, steps, strict=True))
        rows.append([dtype, way, f"{speed:.0f}", f"{faster:.2f}", f"{run.result:.0f}"])
    return rows


def reply(precision: str, heads: int, groups: int, width: int, length: int, requests: int) -> list[object]:
    """Milliseconds of one query over so many keys beside a mask, without the switch and with it."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    class Layer:
        num_key_value_groups, is_causal = heads // groups, True

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    query = torch.randn(requests, heads, 1, width).to(dtype)
    key, value = (torch.randn(requests, groups, length, width).to(dtype) for _ in range(2))
    seen = torch.ones(requests, 1, 1, length, dtype=torch.bool)
    layer: Any = Layer()
    taken: dict[str, list[float]] = {"0": [], "1": []}
    for _ in range(15):
        for switch, seconds in taken.items():
            os.environ[SWITCH] = switch
            begun = time.perf_counter()
            for _ in range(20):
                sdpa_attention_forward(layer, query, key, value, seen, scaling=width**-0.5)
            seconds.append((time.perf_counter() - begun) / 20)
    own, forced = (statistics.median(seconds) * 1000 for seconds in taken.values())
    shape = f"{requests} x {heads} / {groups} heads x {width}, {length} keys"
    return [precision, shape, f"{own:.2f}", f"{forced:.2f}", f"{forced / own:.1f}"]


def main() -> None:
    import torch

    with tempfile.TemporaryDirectory() as name:
        pretrain.prepare(Path(name))
        rows = [row for dtype in ("bf16", "fp32") for row in measure(dtype, name)]
    processor = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    note = (
        f"{machine()}, {processor}, {torch.get_num_threads()} threads, a machine shared with others. The run of "
        f"benchmarks/pretrain.md; the ways take turns step by step, medians of {STEPS - WARM} rounds, of a ratio the "
        "median of the rounds' own. `python benchmarks/switches.py`."
    )
    header = ["precision", "way", "tokens/s", "times ours", "peak MB above imports"]
    write_table("switches", header, rows, note)
    header = ["precision", "one query", "transformers' rule, ms", f"{SWITCH}=1, ms", "ratio"]
    note = (
        "Attention while a reply is generated, beside a mask as for requests of different lengths. The switch is of the "
        "whole process, so it cannot stand in for our attention in groups, which leaves replies to transformers."
    )
    write_table("switches", header, [reply(*case) for case in REPLIES], note, append=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        train(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
