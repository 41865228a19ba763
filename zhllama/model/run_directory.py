"""A run directory, opened once: what it trained, and on which model."""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path
from typing import Self

from zhllama.artifact import Opened, check_same, fingerprint, read_record
from zhllama.config import UserError
from zhllama.model.adapter import ADAPTER_WEIGHTS, Parts, saved_parts
from zhllama.model.directory import ModelDirectory

# An empty file in a checkpoint's folder, written last: without it a kill has cut the checkpoint short.
SEAL = "complete"


class RunDirectory(Opened):
    """What a run of pretrain or sft trained, or had trained by a checkpoint, and on which model."""

    kind = "run"

    @classmethod
    def open(cls, source: str | Path, flag: str = "--adapter") -> Self:
        """Look up a run directory, or one checkpoint in it, whose run need not have finished.

        Raises:
            UserError: no finished adapter inside, a checkpoint that was cut short, a directory of another kind.
        """
        path = Path(source)
        record = read_record(path.parent) if re.fullmatch(r"checkpoint-\d+", path.name) else {}
        if path.is_dir() and record.get("kind") == cls.kind:
            if not (path / SEAL).is_file():
                raise UserError(
                    f"{flag} {path}: it was cut short while it was written; give another checkpoint of {path.parent}"
                )
            # What the run has read is known from its beginning; its result is not the checkpoint's.
            return cls(path, flag, {**record, "result": {"checkpoint": path.name}})
        run = super().open(source, flag)
        if not run.result or not run.weights.is_file():
            raise UserError(f"{flag} {run}: no finished adapter inside; give the --output of pretrain or sft")
        return run

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what was trained; of a checkpoint without its optimiser's state, several times as large."""
        return fingerprint(self.weights) if "checkpoint" in self.result else super().fingerprint

    @property
    def weights(self) -> Path:
        """The file of all that was trained."""
        return self.path / ADAPTER_WEIGHTS

    @property
    def inputs(self) -> dict[str, dict[str, str]]:
        """Path and fingerprint of what the run read, by setting."""
        return dict(self.record["inputs"])

    @cached_property
    def parts(self) -> Parts:
        """What the run has trained, by the saved files."""
        return saved_parts(self.path)

    def base(self, given: str | None = None) -> ModelDirectory:
        """The model that the run was trained on: where it was, or `given` where it has moved since.

        Raises:
            UserError: there is none, or it is not that model byte for byte.
        """
        model = ModelDirectory.open(given or self.inputs["model"]["path"])
        self.check_base(model)
        return model

    def check_base(self, model: ModelDirectory) -> None:
        """Raise UserError unless `model` is byte for byte the one that the run was trained on."""
        check_same(
            f"the base of --adapter {self}",
            self.inputs["model"]["fingerprint"],
            f"--model {model}",
            model.fingerprint,
            f"give the model it was trained on ({self.inputs['model']['path']})",
        )
