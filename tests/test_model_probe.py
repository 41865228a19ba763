"""probe-init: the same start as resize-embeddings, the same batches for all, ranks by the last number."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from zhllama.artifact import read_record
from zhllama.cli import main
from zhllama.config import UserError
from zhllama.device import default_device, default_dtype
from zhllama.model import bits
from zhllama.model.adapter import Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.probe import ALL, BYTES_PER_TOKEN, ProbeConfig, cut_at, probe_init, split
from zhllama.model.resize import InitSettings, ResizeConfig, initial_rows, resize_embeddings
from zhllama.model.row_trainer import RowTrainer, Text, share_of_rate
from zhllama.model.trainable import load_trainable
from zhllama.tokenizer.load import load


@pytest.fixture
def corpus(tmp_path: Path, known_text: str) -> Path:
    """Twenty times the text that the tiny LLaMAs know."""
    return write_corpus(tmp_path / "corpus.jsonl", [known_text] * 20)


def write_corpus(file: Path, documents: list[str]) -> Path:
    rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents]
    file.write_text("".join(rows), encoding="utf-8")
    return file


@pytest.fixture
def config(
    tmp_path: Path,
    kind: str,
    taught_models: dict[str, Path],
    merged_tokenizers: dict[str, Path],
    corpus: Path,
) -> ProbeConfig:
    """A few steps on a tiny LLaMA that knows the text, from the best and the worst start."""
    return ProbeConfig(
        str(taught_models[kind]),
        str(merged_tokenizers[kind]),
        str(corpus),
        str(tmp_path / "probe"),
        init_input=["random", "mean"],
        init_output=["length", "random"],
        steps=5,
        measure_every=2,
        block_size=32,
        batch_size=2,
        held_out_bytes=2000,
    )


def report(config: ProbeConfig) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(config.output) / "report.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def probed(config: ProbeConfig) -> Callable[..., dict[str, Any]]:
    """Run with changes and read the report."""

    def run(**changes: Any) -> dict[str, Any]:
        changed = replace(config, **changes)
        probe_init(changed)
        return report(changed)

    return run


def test_ranked_by_the_last_number(
    config: ProbeConfig, kind: str, probed: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    found = probed()
    shown = capsys.readouterr().out
    assert [run["final"] for run in found["runs"]] == sorted(run["final"] for run in found["runs"])
    for run in found["runs"]:
        assert list(run["curve"]) == ["0", "2", "4", "5"]
        assert run["final"] == run["curve"]["5"]
    pairs = {(run["input"], run["output"]) for run in found["runs"]}
    if kind == "bytelevel":  # tied
        assert pairs == {("mean", None), ("random", None)}
    else:
        assert pairs == {("mean", "length"), ("random", "length"), ("mean", "random")}
    best = found["runs"][0]
    assert read_record(config.output)["result"]["input"] == best["input"] == "mean"
    assert read_record(config.output)["result"]["output"] == best["output"]
    names = [
        run["input"] if kind == "bytelevel" else f"{run['input']} / {run['output']}" for run in found["runs"]
    ]
    table = [line for line in shown.splitlines() if line.startswith(tuple(f"{name}  " for name in names))]
    assert [name for line in table for name in names if line.startswith(f"{name}  ")] == names
    assert (Path(config.output) / "probe.png").read_bytes().startswith(b"\x89PNG")


def test_means_of_sub_tokens_start_far_below_random(probed: Callable[..., dict[str, Any]]) -> None:
    starts = {(run["input"], run["output"]): run["curve"]["0"] for run in probed(steps=1)["runs"]}
    best = min(starts, key=lambda pair: starts[pair])
    assert "random" not in best
    assert all(starts[pair] > starts[best] + 0.3 for pair in starts if "random" in pair)


def test_the_start_is_what_resizing_gives(
    tmp_path: Path, config: ProbeConfig, known_text: str, probed: Callable[..., dict[str, Any]]
) -> None:
    short = write_corpus(tmp_path / "short.jsonl", [known_text] * 5)
    tail = write_corpus(tmp_path / "tail.jsonl", [known_text])
    found = probed(corpus=str(short), init_input=["first"], init_output=["last"], steps=15)
    resized = ResizeConfig(
        config.model,
        config.tokenizer,
        str(tmp_path / "m"),
        InitSettings("first", "last"),
        measure=False,
    )
    resize_embeddings(resized)
    model = load_trainable(ModelDirectory.open(tmp_path / "m"), Parts(), default_dtype(), default_device())
    measured = bits.measure(model, load(tmp_path / "m"), tail, config.block_size, 0)
    starts = [run["curve"]["0"] for run in found["runs"]]
    assert starts == [pytest.approx(measured["bits per byte"], rel=1e-5)]


def test_how_much_is_read_and_held_out(
    tmp_path: Path, config: ProbeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    needed = config.steps * config.batch_size * config.block_size * BYTES_PER_TOKEN
    for name, size, held_out in (
        ("long", 50_000, 2000),
        ("enough", needed + 1000, 1000),
        ("short", 1500, 300),
    ):
        text = "今天天气很好，" * (size // 21 + 1)
        write_corpus(tmp_path / "c.jsonl", [text.encode()[:size].decode(errors="ignore")])
        front, tail = split(config, tmp_path / "c.jsonl")
        assert abs(len("".join(tail).encode()) - held_out) <= 3, name
        assert abs(len("".join(front).encode()) - min(size - held_out, needed)) <= 3, name


def test_the_same_seed_gives_the_same_curves(tmp_path: Path, probed: Callable[..., dict[str, Any]]) -> None:
    first, again, other = (
        probed(output=str(tmp_path / name), seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first["runs"] == again["runs"]
    assert first["runs"] != other["runs"]


def test_a_run_does_not_depend_on_those_before_it(
    tmp_path: Path, probed: Callable[..., dict[str, Any]]
) -> None:
    both = {run["input"]: run["curve"] for run in probed(init_output=["length"])["runs"]}
    alone = probed(output=str(tmp_path / "alone"), init_input=["mean"], init_output=["length"])["runs"]
    assert [run["curve"] for run in alone] == [both["mean"]]


def test_only_new_rows_train(config: ProbeConfig, kind: str, known_text: str) -> None:
    tokenizer = load(config.tokenizer)
    trainer = RowTrainer(ModelDirectory.open(config.model), tokenizer)
    trainer.make_room()
    trainer.start(InitSettings(), 0)
    parameters = dict(trainer.model.named_parameters())
    frozen = {name: value.clone() for name, value in parameters.items() if "new_rows" not in name}
    begun = [rows.detach().clone() for rows in trainer.rows]
    assert len(begun) == (1 if kind == "bytelevel" else 2)
    text = Text.of([known_text], tokenizer, 32)
    trainer.train(text.batches, text, 1e-2, 100, lambda: None)
    assert all(torch.equal(value, parameters[name]) for name, value in frozen.items())
    assert all(not torch.equal(old, new) for old, new in zip(begun, trainer.rows, strict=True))


def test_training_helps(probed: Callable[..., dict[str, Any]]) -> None:
    for run in probed(steps=30, measure_every=30, learning_rate=1e-2)["runs"]:
        assert run["final"] < run["curve"]["0"]


def test_without_a_list_every_initialisation_is_tried(config: ProbeConfig, kind: str) -> None:
    everything = replace(config, init_input=list(ALL), init_output=list(ALL), steps=1)
    probe_init(everything)
    tried = [(run["input"], run["output"]) for run in report(everything)["runs"]]
    assert len(set(tried)) == len(tried) == (6 if kind == "bytelevel" else 11)
    assert {how for how, _ in tried} == set(ALL)


def test_output_rows_of_a_tied_model_are_no_choice(
    config: ProbeConfig, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    probe_init(replace(config, init_input=["mean"], steps=1))
    assert ("--init-output: the model is tied" in capsys.readouterr().err) == (kind == "bytelevel")


def test_the_flags_are_those_of_resize_embeddings(
    tmp_path: Path, config: ProbeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    probe_init(config)
    shown = capsys.readouterr().out.splitlines()[-1]
    flags = report(config)["flags"]
    assert shown == f"zhllama resize-embeddings {flags}"
    main(["resize-embeddings", *flags.split(), "--measure", "false", "--output", str(tmp_path / "m")])
    settings = read_record(tmp_path / "m")["settings"]
    assert settings["init"]["input"] == report(config)["runs"][0]["input"]


def test_documents_are_cut_at_a_byte_between_characters() -> None:
    documents = ["ab", "中文字"]
    assert cut_at(documents, 5) == (["ab", "中"], ["文字"])
    assert cut_at(documents, 7) == (["ab", "中"], ["文字"])
    assert cut_at(documents, 11) == (documents, [])
    for size in range(12):
        before, after = cut_at(documents, size)
        assert "".join(before + after) == "ab中文字"


def test_the_rate_rises_and_falls() -> None:
    shares = [share_of_rate(step, 50) for step in range(1, 51)]
    assert shares.index(max(shares)) == 4
    assert max(shares) == 1
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert 0 < shares[-1] < 0.05
    assert share_of_rate(1, 1) == 1


def test_initial_rows_take_the_output_side_from_the_settings() -> None:
    old = torch.eye(3)
    parts = [([0, 1], [1, 3])]
    for output, expected in ((False, [1.0, 0.0, 0.0]), (True, [0.25, 0.75, 0.0])):
        rows = initial_rows(old, parts, InitSettings("first", "length", 0.0), 0, output)
        torch.testing.assert_close(rows, torch.tensor([expected]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": "{short}"}, r"only \d+ tokens to train on, and a step takes 64; give more text"),
        ({"corpus": "{english}"}, "none of the new pieces occurs in it"),
        ({"corpus": "{nothing}"}, "no such file or directory"),
        ({"tokenizer": "{model}"}, "not made by merge-tokenizer; run that first"),
        ({"tokenizer": "{other}"}, "does not match the tokenizer in --model"),
        ({"block_size": 1024}, "has 512 positions"),
    ],
)
def test_refusals_leave_nothing(
    tmp_path: Path,
    config: ProbeConfig,
    kind: str,
    merged_tokenizers: dict[str, Path],
    english_text: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    (tmp_path / "short.txt").write_text("今天天气很好。", encoding="utf-8")
    (tmp_path / "english.txt").write_text(english_text[:5000], encoding="utf-8")
    other = merged_tokenizers["bytelevel" if kind == "sentencepiece" else "sentencepiece"]
    paths = {"short": tmp_path / "short.txt", "english": tmp_path / "english.txt"}
    paths |= {"nothing": tmp_path / "nothing", "model": Path(config.model), "other": other}
    changed = {
        name: value.format(**paths) if isinstance(value, str) else value for name, value in changes.items()
    }
    with pytest.raises(UserError, match=message):
        probe_init(replace(config, **changed))
    assert not Path(config.output).exists()


def test_a_loss_that_is_no_number(config: ProbeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda rows, most: rows[0].grad.fill_(math.nan))
    with pytest.raises(UserError, match=r"learning_rate .*: the loss is no number at step 2; lower it"):
        probe_init(config)
    assert not Path(config.output).exists()


def test_short_text_is_repeated(
    tmp_path: Path, config: ProbeConfig, known_text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = write_corpus(tmp_path / "short.jsonl", [known_text])
    probe_init(replace(config, corpus=str(short), init_input=["mean"], steps=40, measure_every=40))
    assert "for 40 steps; they are repeated" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "steps 0: it must be at least 1"),
        (["--measure-every", "0"], "measure_every 0: it must be at least 1"),
        (["--block-size", "7"], "block_size 7: it must be at least 8"),
        (["--learning-rate", "0"], "learning_rate 0.0: it must be above 0"),
        (["--init-input", "mean", "--init-input", "mean"], "init_input ['mean', 'mean']: name at least one"),
        (
            ["--init-input", "median"],
            "init_input median: it must be a list such as [mean, length, first, last, global, random]",
        ),
    ],
)
def test_settings_that_cannot_work(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = ["--model", "m", "--tokenizer", "t", "--corpus", "c", "--output", str(tmp_path / "p")]
    with pytest.raises(SystemExit) as stop:
        main(["probe-init", *paths, *flags])
    assert stop.value.code == 2
    problem = capsys.readouterr().err
    assert message in problem
    assert problem.count("\n") == 1
