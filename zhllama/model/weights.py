"""Safetensors checkpoints, one file or sharded, read and written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhllama.config import UserError

if TYPE_CHECKING:  # torch takes seconds to import, and pack needs only a config.json
    import torch
    from torch import Tensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
INPUT_KEY = "model.embed_tokens.weight"
OUTPUT_KEY = "lm_head.weight"
CODES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}  # what `change` may cast to
ENTRY = 256  # bytes that a tensor's line in a safetensors header may take besides its name


def shards(directory: Path, flag: str = "--model") -> list[Path]:
    """The weight files of a model directory in order; raises UserError where there are none or one is missing."""
    if (directory / INDEX).is_file():
        index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
        files = [directory / name for name in sorted(set(index["weight_map"].values()))]
    else:
        files = [directory / SINGLE]
    for file in files:
        if not file.is_file():
            raise UserError(f"{flag} {directory}: no {file.name} inside (only safetensors weights are read)")
    return files


def read_config(directory: Path, flag: str = "--model") -> dict[str, Any]:
    """A model directory's `config.json`; raises UserError where it is missing."""
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"{flag} {directory}: no config.json inside; a Hugging Face model directory is needed"
        )
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def check_block_size(block_size: int, model: Path) -> None:
    """Raise UserError when a block is longer than the model's positions."""
    positions = read_config(model).get("max_position_embeddings")
    if positions is None:
        raise UserError(
            f"{model}: no max_position_embeddings in its config.json; a LLaMA-family model is needed"
        )
    if block_size > positions:
        raise UserError(f"block_size {block_size}: {model} has {positions} positions; use at most that")


@contextmanager
def find_tensor(directory: Path, key: str) -> Iterator[Any]:
    """A slice object of one tensor (`tensor[a:b]` reads only those rows)."""
    from safetensors import safe_open

    for shard in shards(directory):
        with safe_open(shard, framework="pt") as file:
            if key in file.keys():  # noqa: SIM118 - not a dict
                yield file.get_slice(key)
                return
    raise UserError(f"{directory}: no tensor {key}; a LLaMA-family checkpoint is needed")


def load_model(directory: Path, dtype: torch.dtype, quantise: bool = False) -> Any:
    """A causal language model as transformers loads it: from safetensors only, and without its remarks.

    With `quantise`, bitsandbytes holds the linear layers in 4 bits and multiplies in `dtype`; the ends stay as they are.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    settings: dict[str, Any] = {"dtype": dtype, "use_safetensors": True}
    if quantise:
        from transformers import BitsAndBytesConfig

        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(str(directory), **settings)


def read_tensor(file: Path, key: str) -> Tensor:
    """One tensor of a safetensors file, mapped; what was read of the file leaves memory with the tensor."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return torch.as_tensor(opened.get_tensor(key))


def rewrite(source: Path, target: Path, change: Callable[[str, Tensor], Tensor], what: str) -> None:
    """Copy a checkpoint tensor by tensor, each passed through `change(name, tensor)`; the files keep their names.

    Peak memory is one tensor (plus what `change` holds).
    """
    from zhllama.terminal import track

    size = 0
    for shard in track(shards(source), what):
        size += _rewrite_shard(shard, target / shard.name, change)
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy every tokenizer file of a directory, the chat template included."""
    names = (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    )
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _rewrite_shard(source: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> int:
    """Write one file of the safetensors format, header last into space left for it; returns the bytes of its tensors.

    The library's writer wants every tensor at once.
    """
    import torch
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        # In the file's order, which is that of alignment; what stays as it is may be of any dtype.
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.offset_keys()}
    space = sum(len(name.encode()) + ENTRY for name in dtypes) + ENTRY
    space += -space % 8
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants it
    end = 0
    with target.open("wb") as stream:
        stream.seek(8 + space)
        for name, dtype in dtypes.items():
            tensor = change(name, read_tensor(source, name))
            begin, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": CODES.get(str(tensor.dtype), dtype),
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            del tensor
        written = json.dumps(header, ensure_ascii=False).encode()
        assert len(written) <= space
        stream.seek(0)
        stream.write(space.to_bytes(8, "little") + written.ljust(space))
    return end
