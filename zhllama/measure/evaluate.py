"""`zhllama evaluate`: bits per byte on the user's own text, comparable across vocabularies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from zhllama import artifact
from zhllama.config import UserError
from zhllama.device import default_device, default_dtype
from zhllama.model.adapter import Parts, load_adapter
from zhllama.model.bits import measure, text_files
from zhllama.model.directory import ModelDirectory
from zhllama.model.run_directory import RunDirectory
from zhllama.model.trainable import TrainableModel, load_trainable
from zhllama.page import Page, bar_plot
from zhllama.terminal import print_table

HEADER = ["text", "bits per byte", "bits per character", "loss per token", "characters per token", "bytes"]


@dataclass
class EvaluateConfig:
    """Measure bits per byte of a model, or of an adapter on its base, on any text files."""

    output: str
    """New report directory to write."""
    text: list[str] = field(default_factory=list)
    """Text to measure as name=FILE, repeatable; .txt, .jsonl or .parquet."""
    model: str | None = None
    """Model directory to measure; with --adapter its base, where that has moved."""
    adapter: str | None = None
    """Run directory of pretrain or sft, measured on its base without merging."""
    block_size: int = 512
    """The longest context in tokens; longer documents are read in windows of this size."""
    max_bytes: int = 0
    """Use whole documents from the front of each file until this many bytes; 0 uses all."""

    def __post_init__(self) -> None:
        """Refuse windows that predict nothing."""
        if self.block_size < 8:
            raise UserError(f"block_size {self.block_size}: it must be at least 8")


def evaluate(config: EvaluateConfig) -> None:
    """Write `report.json` and `report.html`, and print the table.

    Every byte of every document counts: the first token is predicted from BOS (or EOS where there is no BOS).

    Raises:
        UserError: neither model nor adapter, no text, an adapter of another base.
    """
    if config.model is None and config.adapter is None:
        raise UserError("--model or --adapter: give one of them")
    if not config.text:
        raise UserError("--text: give at least one name=FILE")
    texts = text_files(config.text)
    adapter = None if config.adapter is None else RunDirectory.open(config.adapter)
    source = ModelDirectory.open(str(config.model)) if adapter is None else adapter.base(config.model)
    source.check_block_size(config.block_size)
    inputs: dict[str, artifact.Input] = {f"text {name}": file for name, file in texts.items()}
    inputs |= {"model": source} if adapter is None else {"adapter": adapter, "model": source}
    with artifact.create(config.output, "report", "evaluate", config, inputs) as run:
        model = load_measured(source, adapter)
        rows = [
            [name, *measure(model, source.tokenizer, file, config.block_size, config.max_bytes).values()]
            for name, file in texts.items()
        ]
        report = {str(row[0]): dict(zip(HEADER[1:], row[1:], strict=True)) for row in rows}
        # Every digit; run.json rounds to five.
        artifact.write_json(run.path / "report.json", report)
        _page(config, rows).write(run.path / "report.html")
        run.result = {name: round(float(str(values["bits per byte"])), 5) for name, values in report.items()}
    print_table(f"{config.adapter or config.model}", HEADER, rows)


def load_measured(source: ModelDirectory, adapter: RunDirectory | None) -> TrainableModel:
    """The model as training sees it, so that the loss is the same code; without adapter nothing is added to it."""
    # Parts() trains nothing and adds nothing: the model as it is, in the loss of training.
    parts = Parts() if adapter is None else adapter.parts
    model = load_trainable(source, parts, default_dtype(), default_device())
    if adapter is not None:
        load_adapter(model.trainable(), adapter.path)
    return model


def _page(config: EvaluateConfig, rows: list[list[Any]]) -> Page:
    page = Page(f"Bits per byte: {config.adapter or config.model}")
    page.table(HEADER, rows)
    names = [str(row[0]) for row in rows]
    page.figure(
        bar_plot(names, {"bits per byte": [row[1] for row in rows]}, "bits per byte", "Lower is better")
    )
    return page
