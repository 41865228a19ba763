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
QUANTISED = ("quantization_config", "compression_config")  # of config.json
# Of tensors: GPTQ's and AWQ's packed weights, scales of FP8 and INT8, bitsandbytes' block maxima.
QUANTISED_ENDS = (".qweight", ".weight_scale", ".weight_scale_inv", ".weight_packed", ".absmax", ".SCB")


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
        return self._json(file)

    def _json(self, file: Path) -> dict[str, Any]:
        """A JSON file of this directory; raises UserError where it is none."""
        try:
            content: Any = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as problem:  # a pointer of Git LFS, or a download that was cut short
            raise UserError(f"{self.flag} {self}: {file.name} is no JSON; download it again") from problem
        if not isinstance(content, dict):
            raise UserError(f"{self.flag} {self}: {file.name} is no JSON object; download it again")
        return content

    @cached_property
    def generation(self) -> dict[str, Any]:
        """The content of `generation_config.json`; empty where there is none."""
        file = self.path / "generation_config.json"
        return self._json(file) if file.is_file() else {}

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
            # The index names a file once for each tensor in it.
            names = sorted(set(self._json(self.path / INDEX).get("weight_map", {}).values()))
        for name in names:
            if not (self.path / name).is_file():
                raise UserError(f"{self.flag} {self}: no {name} inside (only safetensors weights are read)")
        return [self.path / name for name in names]

    def check_plain(self) -> None:
        """Refuse quantised weights: what we write of them, as if they were plain, no reader could make sense of.

        Raises:
            UserError: names how they are quantised, or a file that is no safetensors file.
        """
        found = next((self.config[key] for key in QUANTISED if self.config.get(key)), None)
        how = found.get("quant_method", found.get("format")) if isinstance(found, dict) else found
        for shard in self.shards if how is None else ():
            for name, dtype in self._dtypes(shard).items():
                if dtype.startswith("F8") or name.endswith(QUANTISED_ENDS):
                    how = f"{dtype} in {name}"
        if how is not None:
            raise UserError(
                f"{self.flag} {self}: its weights are quantised ({how}), and only plain ones are read; give the model in "
                "bfloat16, float16 or float32"
            )

    def _dtypes(self, shard: Path) -> dict[str, str]:
        """What each tensor of a file is stored in, by the format's names."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(shard, framework="pt") as file:
                return {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        except SafetensorError as problem:
            raise UserError(
                f"{self.flag} {self}: {shard.name} is no whole safetensors file; download it again"
            ) from problem

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
        if key == OUTPUT_KEY:
            raise UserError(
                f"{self}: its config.json says that the output matrix is one of its own (tie_word_embeddings false), and "
                f"there is no {key}; say true if the model is tied, or bring the file that holds it"
            )
        raise UserError(f"{self}: no tensor {key}; a LLaMA-family checkpoint is needed")
