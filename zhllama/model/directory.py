"""A model directory, opened once: its config, record, tokenizer, new rows and weights, handed down to whoever asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from zhllama.artifact import read_record
from zhllama.config import UserError
from zhllama.tokenizer.hub import HubDirectory
from zhllama.tokenizer.load import Loaded, load_opened

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# The ends' names in every checkpoint of the LLaMA family.
INPUT_KEY = "model.embed_tokens.weight"
OUTPUT_KEY = "lm_head.weight"


class ModelDirectory(HubDirectory):
    """A Hugging Face model directory as a flag names it; what is asked for is read at the first question."""

    kind = "model"

    @classmethod
    def unfinished(cls, path: Path) -> Self:
        """A directory that this command is still writing, which has no result yet."""
        return cls(path, "--output", read_record(path))

    @cached_property
    def config(self) -> dict[str, Any]:
        """The content of `config.json`; raises UserError where there is none."""
        file = self.path / "config.json"
        if not file.is_file():
            raise UserError(
                f"{self.flag} {self}: no config.json inside; a Hugging Face model directory is needed"
            )
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return content

    @cached_property
    def tokenizer(self) -> Loaded:
        """The tokenizer inside, without transformers; raises UserError where there is none."""
        # Without transformers, so that pack needs no torch, which takes seconds to import.
        return load_opened(self)

    @cached_property
    def chat_tokenizer(self) -> Any:
        """The tokenizer as transformers has it, which renders chat templates."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self))

    @property
    def tied(self) -> bool:
        """Whether the output matrix is the input matrix."""
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def depth(self) -> int:
        """How many layers there are."""
        return int(self.config["num_hidden_layers"])

    @property
    def positions(self) -> int:
        """The longest context in tokens; raises UserError where the config does not say it."""
        positions = self.config.get("max_position_embeddings")
        if positions is None:
            raise UserError(
                f"{self}: no max_position_embeddings in its config.json; a LLaMA-family model is needed"
            )
        return int(positions)

    @property
    def new_rows(self) -> int:
        """How many rows `resize-embeddings` added, by the directory's own record; 0 for a foreign directory."""
        # Padding behind the last token counts: such rows are trained and saved with the others.
        return int(self.result.get("rows", 0)) - int(self.result.get("first_new", 0))

    def check_block_size(self, block_size: int) -> None:
        """Raise UserError where a block is longer than the model's positions."""
        if block_size > self.positions:
            raise UserError(
                f"block_size {block_size}: {self} has {self.positions} positions; use at most that"
            )

    @cached_property
    def shards(self) -> list[Path]:
        """The weight files in order; raises UserError where there are none or one is missing."""
        names = [SINGLE]
        if (self.path / INDEX).is_file():
            index = json.loads((self.path / INDEX).read_text(encoding="utf-8"))
            # The index names a file once for each tensor in it.
            names = sorted(set(index["weight_map"].values()))
        for name in names:
            if not (self.path / name).is_file():
                raise UserError(f"{self.flag} {self}: no {name} inside (only safetensors weights are read)")
        return [self.path / name for name in names]

    @contextmanager
    def tensor(self, key: str) -> Iterator[Any]:
        """A slice object of one tensor (`tensor[a:b]` reads only those rows).

        Raises:
            UserError: no such tensor: another family of models.
        """
        from safetensors import safe_open

        # Headers are a few kilobytes, and a single file has no index to ask instead.
        for shard in self.shards:
            with safe_open(shard, framework="pt") as file:
                if key in file.keys():  # noqa: SIM118 - not a dict
                    yield file.get_slice(key)
                    return
        raise UserError(f"{self}: no tensor {key}; a LLaMA-family checkpoint is needed")
