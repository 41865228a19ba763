"""`zhllama probe-init`: a short training of the new rows alone that ranks where they may start."""

from __future__ import annotations

import time
import typing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from zhllama import artifact
from zhllama.config import UserError
from zhllama.corpus.read import Corpus
from zhllama.model import bits
from zhllama.model.bits import Batch
from zhllama.model.directory import ModelDirectory
from zhllama.model.resize import Initialisation, InitSettings, open_merged
from zhllama.model.row_trainer import RowTrainer, Text
from zhllama.page import line_plot, write_image
from zhllama.terminal import console, print_table, progress_bar, say, warn
from zhllama.tokenizer.load import Loaded

ALL: tuple[Initialisation, ...] = typing.get_args(Initialisation)
BYTES_PER_TOKEN = 8  # more than Chinese text needs on average, so that enough of the corpus is read


@dataclass
class ProbeConfig:
    """Train only the new rows for a few steps from each initialisation, and rank them by held-out bits per byte."""

    model: str
    """Base model directory (safetensors) with its own tokenizer inside, or a hub name."""
    tokenizer: str
    """Directory that merge-tokenizer wrote from that model's tokenizer."""
    corpus: str
    """Corpus directory or file; its front is trained on, and what follows that is held out."""
    output: str
    """New report directory to write."""
    init_input: list[Initialisation] = field(default_factory=lambda: list(ALL))
    """Initialisations of input rows to try (repeatable; all unless some are given)."""
    init_output: list[Initialisation] = field(default_factory=lambda: list(ALL))
    """Initialisations of output rows to try, for untied models: the default serves while inputs are tried, then the best
    input stays."""
    noise: float = InitSettings.noise
    """Add this noise to the rows, as init.noise of resize-embeddings does."""
    # In benchmarks/results/probe.md the order at step 25 is that at step 50.
    steps: int = 50
    """Optimiser steps from each initialisation."""
    measure_every: int = 10
    """Steps between two measurements of the held-out text."""
    # pretrain's default: the ranking is meant for it.
    learning_rate: float = 2e-4
    """Learning rate of AdamW on the new rows: a linear warm-up, then a linear fall to 0."""
    block_size: int = 256
    """The longest context in tokens, in training and when held-out text is measured."""
    batch_size: int = 8
    """Blocks of tokens per step; short documents share them."""
    held_out_bytes: int = 20_000
    """Bytes of text to judge on; a fifth of the corpus where that is short."""
    seed: int = 0
    """The seed that decides the noise, the random rows and the order of batches, which is the same for all."""

    def __post_init__(self) -> None:
        """Refuse numbers that cannot work, and lists that are empty or name something twice."""
        least = {"steps": 1, "measure_every": 1, "block_size": 8, "batch_size": 1, "held_out_bytes": 1}
        for name, minimum in least.items():
            if getattr(self, name) < minimum:
                raise UserError(f"{name} {getattr(self, name)}: it must be at least {minimum}")
        if self.learning_rate <= 0:
            raise UserError(f"learning_rate {self.learning_rate}: it must be above 0")
        for name in ("init_input", "init_output"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise UserError(f"{name} {given}: name at least one initialisation, and none twice")


@dataclass
class Run:
    """One initialisation: held-out bits per byte by step, and those of an English passage at the end."""

    input: Initialisation
    output: Initialisation | None
    curve: dict[int, float]
    english: float

    @property
    def name(self) -> str:
        """What tables and the plot call it."""
        return self.input if self.output is None else f"{self.input} / {self.output}"

    @property
    def final(self) -> float:
        """Bits per byte after the last step."""
        return self.curve[max(self.curve)]


def probe_init(config: ProbeConfig) -> None:
    """Write `report.json` and `probe.png`, print the ranking and the flags for resize-embeddings.

    Raises:
        UserError: a tokenizer merged from another base or no merge at all, too little text, text without any new
            piece, a block larger than the model's positions, a loss that is no number.
    """
    source = ModelDirectory.open(config.model)
    new = open_merged(config.tokenizer, source)
    corpus = Corpus.open(config.corpus)
    source.check_block_size(config.block_size)
    inputs: dict[str, artifact.Input] = {"model": source, "tokenizer": new.opened, "corpus": corpus}
    with artifact.create(config.output, "report", "probe-init", config, inputs) as run:
        base = source.tokenizer
        front, tail = split(config, corpus)
        training = _training(config, front, new, int(new.opened.result["first_new"]))
        english = bits.read_front(bits.passages()["english"], 0)
        texts = [Text.of(documents, new, config.block_size) for documents in (tail, english)]
        # The base is measured while the trainer still is the base: make_room grows it.
        trainer = RowTrainer(source, new)
        before = [trainer.bits_per_byte(Text.of(english, base, config.block_size))]
        # The base needs more tokens for the same Chinese context.
        block_size = min(source.positions, config.block_size * _tokens(tail, base) // _tokens(tail, new))
        before.insert(0, trainer.bits_per_byte(Text.of(tail, base, block_size)))
        trainer.make_room()
        runs = _try_all(config, trainer, training, *texts)
        runs.sort(key=lambda one: one.final)
        flags = _flags(config, runs[0])
        _write(run.path, runs, before, flags)
        run.result = {
            "input": runs[0].input,
            "output": runs[0].output,
            "bits per byte": round(runs[0].final, 5),
        }
    rows = [[one.name, one.curve[0], one.final, one.final - runs[0].final, one.english] for one in runs]
    header = ["rows start as", "step 0", f"step {config.steps}", "behind", "english"]
    title = f"Bits per byte of {texts[0].size:,} held-out bytes, and of an English passage at the end"
    print_table(title, header, [*rows, ["base, as it is", before[0], None, None, before[1]]])
    say(f"zhllama resize-embeddings {flags}")


def split(config: ProbeConfig, corpus: Path | Corpus) -> tuple[list[str], list[str]]:
    """What is trained on and what follows it, out of no more of the corpus than the steps can use."""
    # No more is read than trains and judges: a corpus may be of many gigabytes.
    needed = config.steps * config.batch_size * config.block_size * BYTES_PER_TOKEN
    enough = needed + config.held_out_bytes
    documents, _ = cut_at(bits.read_front(corpus, enough), enough)
    size = sum(len(document.encode()) for document in documents)
    return cut_at(documents, size - min(config.held_out_bytes, max(size - needed, size // 5)))


def cut_at(documents: list[str], size: int) -> tuple[list[str], list[str]]:
    """Documents up to `size` bytes and those behind; one may be cut in two, between characters."""
    for place, document in enumerate(documents):
        raw = document.encode()
        if len(raw) > size:
            # A character cut in two loses its bytes here, and is whole at the front of the second part.
            left = raw[:size].decode(errors="ignore")
            return [*documents[:place], left], [document[len(left) :], *documents[place + 1 :]]
        size -= len(raw)
    return documents, []


def _tokens(documents: list[str], tokenizer: Loaded) -> int:
    return sum(len(tokenizer.encode_text(document)) for document in documents)


def _training(config: ProbeConfig, documents: list[str], tokenizer: Loaded, first: int) -> list[Batch]:
    """A batch a step in seeded order, repeated where the text is short.

    Raises:
        UserError: less text than one batch, or none of the new pieces in it.
    """
    windows = bits.windows(documents, tokenizer, config.block_size)
    wanted, tokens = config.batch_size * config.block_size, sum(map(len, windows))
    if tokens < wanted:
        raise UserError(
            f"--corpus {config.corpus}: only {tokens:,} tokens to train on, and a step takes {wanted:,}; "
            "give more text, or lower --batch-size or --block-size"
        )
    if not any(index >= first for window in windows for index in window):
        raise UserError(
            f"--corpus {config.corpus}: none of the new pieces occurs in it; give the Chinese text you will train on"
        )
    batches = bits.batches(windows, wanted)
    rounds = -(-config.steps // len(batches))
    if rounds > 1:
        warn(f"--corpus {config.corpus}: {len(batches)} batches for {config.steps} steps; they are repeated")
    # Each round in an order of its own, and all rounds the same for every initialisation.
    generator = torch.Generator().manual_seed(config.seed)
    order = [
        index for _ in range(rounds) for index in torch.randperm(len(batches), generator=generator).tolist()
    ]
    return [batches[index] for index in order[: config.steps]]


def _try_all(
    config: ProbeConfig, trainer: RowTrainer, training: list[Batch], held_out: Text, english: Text
) -> list[Run]:
    """Every input initialisation and, where the output has rows of its own, every output one with the best input."""
    # Inputs first and outputs with the best of them: 6 + 5 trainings of an untied model, not 36.
    default: Initialisation = InitSettings().output
    output = default if default in config.init_output else config.init_output[0]
    others = [] if trainer.tied else [how for how in config.init_output if how != output]
    if trainer.tied and set(config.init_output) != set(ALL):
        warn("--init-output: the model is tied, its output rows are its input rows; ignored")
    total = (len(config.init_input) + len(others)) * config.steps
    begun = time.monotonic()
    runs: list[Run] = []
    with progress_bar() as bar:
        task = bar.add_task("probing", total=total, note="")

        def attempt(how: Initialisation, out: Initialisation | None) -> None:
            trainer.start(InitSettings(how, out or default, config.noise), config.seed)
            curve = trainer.train(
                training, held_out, config.learning_rate, config.measure_every, lambda: bar.advance(task)
            )
            runs.append(Run(how, out, curve, trainer.bits_per_byte(english)))
            done = len(runs) * config.steps
            left = (time.monotonic() - begun) / done * (total - done) / 60
            note = f"{runs[-1].name}: {curve[0]:.3f} to {runs[-1].final:.3f} bits/byte"
            bar.update(task, note=note)
            if not console.is_terminal:
                say(f"{note}  {left:.1f} min left")

        for how in config.init_input:
            attempt(how, None if trainer.tied else output)
        best = min(runs, key=lambda one: one.final).input
        for how in others:
            attempt(best, how)
    return runs


def _flags(config: ProbeConfig, best: Run) -> str:
    """What to give resize-embeddings for the best initialisation."""
    flags = {"model": config.model, "tokenizer": config.tokenizer, "init.input": best.input}
    if best.output is not None:
        flags["init.output"] = best.output
    flags |= {"init.noise": str(config.noise), "seed": str(config.seed)}
    return " ".join(f"--{name} {value}" for name, value in flags.items())


def _write(path: Path, runs: list[Run], before: list[float], flags: str) -> None:
    """`report.json` and `probe.png` of ranked runs."""
    report = {
        "flags": flags,
        "base": {"bits per byte": before[0], "english": before[1]},
        "runs": [asdict(one) | {"final": one.final} for one in runs],
    }
    artifact.write_json(path / "report.json", report)
    steps = sorted(runs[0].curve)
    curves = {f"{one.name}  {one.final:.3f}": (steps, [one.curve[step] for step in steps]) for one in runs}
    curves[f"base, as it is  {before[0]:.3f}"] = ([0, steps[-1]], [before[0]] * 2)
    figure = line_plot(curves, "steps", "bits per byte, held out", "New rows trained alone")
    write_image(figure, path / "probe.png")
