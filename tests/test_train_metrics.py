"""What a run leaves to read: metrics.jsonl, the curve, progress."""

import json
import math
from pathlib import Path

import pytest
import torch

from zhllama.tokenizer.load import load
from zhllama.train.metrics import LossTally, plot_loss, read_metrics


def test_every_step_has_a_line(run_dirs: dict[str, Path], kind: str) -> None:
    lines = read_metrics(run_dirs[kind] / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 13))
    names = ["step", "loss", "bits_per_byte", "bits_per_byte_chinese", "bits_per_byte_other", "tokens"]
    names += ["characters", "seconds", "learning_rate", "grad_norm"]
    assert all(list(line)[:10] == names for line in lines)
    for name in ("tokens", "characters", "seconds"):
        values = [line[name] for line in lines]
        assert values == sorted(values)
    assert lines[0]["tokens"] > 400  # 8 blocks of 64, without first tokens


def test_no_file_is_no_lines(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_last_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


def test_chinese_and_other_tokens_are_counted_apart(merged_tokenizers: dict[str, Path], kind: str) -> None:
    tokenizer = load(merged_tokenizers[kind])
    tally = LossTally(tokenizer, 2200, torch.device("cpu"))
    parts = {"人民，的": (True, 0.5), " news": (False, 2.0), "黾": (True, 4.0), "x = 1": (False, 1.0)}
    nats, size, characters = {True: 0.0, False: 0.0}, {True: 0, False: 0}, 0
    for text, (chinese, loss) in parts.items():
        labels = tokenizer.inner_encoder()(text.encode())
        tally.add(torch.tensor(labels), torch.full((len(labels),), loss))
        nats[chinese] += loss * len(labels)
        size[chinese] += len(text.encode())
        characters += len(text)
    found = tally.take(ranks=1)
    assert found.pop("characters") == characters
    assert found == pytest.approx(
        {
            "bits_per_byte": sum(nats.values()) / sum(size.values()) / math.log(2),
            "bits_per_byte_chinese": nats[True] / size[True] / math.log(2),
            "bits_per_byte_other": nats[False] / size[False] / math.log(2),
        }
    )
    assert tally.take(ranks=1) == {"characters": 0.0}


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
