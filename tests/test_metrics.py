"""What a run leaves to read: metrics.jsonl, the curve, progress."""

import json
from pathlib import Path

import pytest

from zhllama.metrics import plot_loss, read_metrics


def test_every_step_has_a_line(run_dirs: dict[str, Path], kind: str) -> None:
    lines = read_metrics(run_dirs[kind] / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    names = ["step", "loss", "bits_per_byte", "tokens", "seconds", "learning_rate", "grad_norm"]
    assert all(list(line) == names for line in lines)
    for name in ("tokens", "seconds"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    assert lines[0]["tokens"] > 400  # 8 blocks of 64, without first tokens


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_the_curve_is_a_picture(tmp_path: Path) -> None:
    lines = [{"tokens": 100 * step, "bits_per_byte": 3 / step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plot_loss(tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_progress_without_a_terminal_is_at_most_ten_lines_or_so(
    tmp_path: Path,
    extended_models: dict[str, Path],
    token_dirs: dict[str, Path],
    toy: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from zhllama.cli import main

    inputs = ["--model", str(extended_models["bytelevel"]), "--tokens", str(token_dirs["bytelevel"])]
    main(["pretrain", *inputs, "--output", str(tmp_path / "r"), "--train.max-steps", "30", *toy])
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in told] == [f"{step}/30" for step in range(3, 31, 3)]
    assert all("bits/byte" in line and line.endswith("min left") for line in told)
    assert told[-1].endswith(" 0.0 min left")
