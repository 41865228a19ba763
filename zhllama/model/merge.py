"""`zhllama merge-adapter`: fold an adapter into its base, shard by shard, and prove the logits equal."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.adapter import ADAPTER_WEIGHTS, PREFIX, ROWS_KEY, adapter_parts
from zhllama.model.weights import (
    INPUT_KEY,
    OUTPUT_KEY,
    copy_tokenizer,
    find_tensor,
    load_model,
    read_config,
    rewrite,
)
from zhllama.terminal import say

PROMPTS = ("今天天气很好，我们去公园。", "The capital of China is", "1 + 1 = 2\n")
# Mean total variation between the two next-token distributions; above it something is wrong, not rounded.
# Merged weights are rounded once more when they are cast back, and bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@dataclass
class MergeAdapterConfig:
    """Fold a finished run's adapter into the model it was trained on."""

    adapter: str
    """Run directory of pretrain or sft; it names its base."""
    output: str
    """New model directory."""
    model: str | None = None
    """The base, where it has moved since the run."""
    verify: bool = True
    """Compare logits of adapter-on-base and merged on fixed prompts before finishing (loads the model twice)."""


def merge_adapter(config: MergeAdapterConfig) -> None:
    """Write the merged model directory, its tokenizer, template and generation settings included.

    Raises:
        UserError: an unfinished run, a base other than the one trained on, or merged logits that differ.
    """
    adapter = artifact.require(config.adapter, "run", "--adapter")
    record = artifact.read_record(adapter)
    if "result" not in record or not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"--adapter {adapter}: no finished adapter inside; give the --output of pretrain or sft"
        )
    base = artifact.require(config.model or record["inputs"]["model"]["path"], "model", "--model")
    check_base(adapter, record, base)
    with artifact.create(
        config.output, "model", "merge-adapter", config, {"adapter": adapter, "model": base}
    ) as run:
        rewrite(base, run.path, fold(adapter, base), "merging")
        for name in ("config.json", "generation_config.json"):
            if (base / name).is_file():
                shutil.copyfile(base / name, run.path / name)
        copy_tokenizer(base, run.path)
        difference = _difference(adapter, base, run.path) if config.verify else None
        kept = {key: value for key, value in _result(base).items() if key in ("first_new", "rows")}
        run.result = {
            **kept,
            "base": record["inputs"]["model"]["fingerprint"],
            "difference": difference,
        }
    checked = "not compared" if difference is None else f"predictions differ by {difference:.1e} of 1"
    say(f"{run.path}: {adapter} merged into {base}; {checked}")


def check_base(adapter: Path, record: dict[str, Any], base: Path) -> None:
    """Raise UserError unless `base` is byte for byte the model the adapter was trained on."""
    artifact.check_same(
        f"the base of --adapter {adapter}",
        record["inputs"]["model"]["fingerprint"],
        f"--model {base}",
        artifact.fingerprint(base),
        f"give the model it was trained on ({record['inputs']['model']['path']})",
    )


def fold(adapter: Path, base: Path) -> Callable[[str, Tensor], Tensor]:
    """A function `(name, tensor) -> merged tensor`: W plus the scaled B @ A in float32, cast back last.

    DoRA then gives each row the norm that it has trained.
    """
    from safetensors.torch import load_file

    state = load_file(adapter / ADAPTER_WEIGHTS)
    _, lora, _ = adapter_parts(adapter)
    tied = bool(read_config(base).get("tie_word_embeddings", False))

    def merged(name: str, tensor: Tensor) -> Tensor:
        module = PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in state:
            down, up = state[f"{module}.lora_A.weight"], state[f"{module}.lora_B.weight"]
            assert lora is not None
            whole = tensor.float() + lora.scale * (up @ down)
            if lora.dora:
                norms = state[f"{module}.lora_magnitude_vector.weight"]
                whole *= (norms / whole.norm(dim=1))[:, None]
            return whole.to(tensor.dtype)
        if name in (INPUT_KEY, OUTPUT_KEY):
            source = PREFIX + (INPUT_KEY if tied else name).removesuffix(".weight")
            if f"{source}.{ROWS_KEY}" in state:
                rows = state[f"{source}.{ROWS_KEY}"]
                return torch.cat([tensor[: -len(rows)], rows.to(tensor.dtype)])
            module = source
        return state[f"{module}.weight"].to(tensor.dtype) if f"{module}.weight" in state else tensor

    return merged


def _result(directory: Path) -> dict[str, Any]:
    result: dict[str, Any] = artifact.read_record(directory).get("result", {})
    return result


def _difference(adapter: Path, base: Path, merged: Path) -> float:
    """Mean total variation of next-token probabilities over fixed prompts, 0 to 1, computed in float32.

    After full training peft has no part in it: the tensors are put into the loaded base.

    Raises:
        UserError: more than rounding to the stored dtype explains.
    """
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    inputs = [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in PROMPTS]
    with find_tensor(merged, INPUT_KEY) as rows:  # config.json may name another dtype
        tolerance = TOLERANCE[rows[:1].dtype]
    with torch.no_grad():
        model = load_model(merged, torch.float32).eval()
        ours = [model(ids).logits.softmax(-1) for ids in inputs]
        model = load_model(base, torch.float32)
        if adapter_parts(adapter)[2]:
            change = fold(adapter, base)
            model.load_state_dict({name: change(name, value) for name, value in model.state_dict().items()})
        else:
            model = PeftModel.from_pretrained(model, str(adapter))
        model.eval()
        theirs = [model(ids).logits.softmax(-1) for ids in inputs]
    apart = [(a - b).abs().sum(-1).mean().item() / 2 for a, b in zip(ours, theirs, strict=True)]
    mean = float(sum(apart) / len(apart))
    if mean > tolerance:
        raise UserError(
            f"--adapter {adapter}: merged and unmerged predictions differ by {mean:.2g} of 1; nothing written"
        )
    return mean
