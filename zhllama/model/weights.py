"""Checkpoints as transformers loads them, and safetensors files read and written tensor by tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhllama.model.directory import INDEX, INPUT_KEY, ModelDirectory

if TYPE_CHECKING:  # torch takes seconds to import, and pack needs only a config.json
    import torch
    from torch import Tensor

CODES = {
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}  # what `change` may cast to
ENTRY = 256  # bytes that a tensor's line in a safetensors header may take besides its name


def load_model(source: ModelDirectory, dtype: torch.dtype, quantise: bool = False) -> Any:
    """A causal language model as transformers loads it: from safetensors only, and without its remarks.

    With `quantise`, bitsandbytes holds the linear layers in 4 bits and multiplies in `dtype`; the ends stay as they are.
    """
    source.check_plain()
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
            # The scales of the blocks are quantised too: 0.37 bits a weight less (QLoRA).
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(str(source), **settings)


def read_tensor(file: Path, key: str) -> Tensor:
    """One tensor of a safetensors file, mapped; what was read of the file leaves memory with the tensor."""
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return torch.as_tensor(opened.get_tensor(key))


def rewrite(source: ModelDirectory, target: Path, change: Callable[[str, Tensor], Tensor], what: str) -> None:
    """Copy a checkpoint tensor by tensor, each passed through `change(name, tensor)`; the files keep their names.

    Peak memory is one tensor (plus what `change` holds).
    """
    from zhllama.terminal import track

    size = parameters = 0
    for shard in track(source.shards, what):
        of_shard = _rewrite_shard(shard, target / shard.name, change)
        size, parameters = size + of_shard[0], parameters + of_shard[1]
    if (source.path / INDEX).is_file():
        # Which file holds which tensor stays as it was.
        index = json.loads((source.path / INDEX).read_text(encoding="utf-8"))
        counted = {"total_size": size, "total_parameters": parameters}
        index["metadata"] = {**index.get("metadata", {}), **counted}
        (target / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def write_config(source: ModelDirectory, target: Path, dtype: str, **changes: Any) -> None:
    """Write `config.json` for weights of a dtype: the source's, but for what has changed.

    Both names of the dtype are written: transformers reads `dtype`; before version 5, as others, it read `torch_dtype`.
    """
    content = {**source.config, **changes, "dtype": dtype, "torch_dtype": dtype}
    (target / "config.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def stored_dtype(source: ModelDirectory) -> str:
    """What the weights lie in, as config.json names it: by the input rows, since a config may say another."""
    with source.tensor(INPUT_KEY) as rows:
        return str(rows[:1].dtype).removeprefix("torch.")


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


def _rewrite_shard(source: Path, target: Path, change: Callable[[str, Tensor], Tensor]) -> tuple[int, int]:
    """Write one file of the safetensors format, header last into space left for it; bytes and numbers of its tensors."""
    # Not by the library, whose writer wants every tensor at once.
    import torch
    from safetensors import safe_open

    with safe_open(source, framework="pt") as file:
        # In the file's order, which is that of alignment; what stays as it is may be of any dtype.
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.offset_keys()}
    # The format: 8 bytes of the header's length, little-endian; the header, JSON padded with spaces; the
    # tensors' bytes, end to end, at offsets from the header's end. JSON is as long as its numbers, which are
    # known last, so room is left for it: to a multiple of 8, where the library aligns the first tensor.
    space = sum(len(name.encode()) + ENTRY for name in dtypes) + ENTRY
    space += -space % 8
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants it
    end = count = 0
    with target.open("wb") as stream:
        stream.seek(8 + space)
        for name, dtype in dtypes.items():
            tensor = change(name, read_tensor(source, name))
            begin, end = end, end + tensor.numel() * tensor.element_size()
            count += tensor.numel()
            header[name] = {
                "dtype": CODES.get(str(tensor.dtype), dtype),
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
            stream.write(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            # Before the next is read: one at a time is in memory.
            del tensor
        written = json.dumps(header, ensure_ascii=False).encode()
        assert len(written) <= space
        stream.seek(0)
        stream.write(space.to_bytes(8, "little") + written.ljust(space))
    return end, count
