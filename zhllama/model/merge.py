"""`zhllama merge-adapter`: fold adapters into their base, shard by shard, and prove the logits equal."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zhllama import artifact
from zhllama.config import UserError
from zhllama.model.adapter import PREFIX, ROWS_KEY, LoraSettings
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.run_directory import RunDirectory
from zhllama.model.weights import (
    copy_tokenizer,
    load_model,
    read_tensor,
    rewrite,
    stored_dtype,
    write_config,
)
from zhllama.terminal import say, warn

# Tokens of the base and new ones, digits, and a newline.
PROMPTS = ("今天天气很好，我们去公园。", "The capital of China is", "1 + 1 = 2\n")
# Mean total variation between the two next-token distributions; above it something is wrong, not rounded.
# Merged weights are rounded once more when they are cast back, and bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
Change = Callable[[str, Tensor], Tensor]


@dataclass
class MergeAdapterConfig:
    """Fold the adapters of finished runs, in order, into the model that the first was trained on."""

    adapter: list[str]
    """Run directory of pretrain or sft, the first of which names the base; repeatable, in the order of training."""
    output: str
    """New model directory to write."""
    model: str | None = None
    """Model directory of the base, where it has moved since the first run."""
    verify: bool = True
    """Compare logits of adapters-on-base and merged on fixed prompts before finishing (loads the model twice)."""


def merge_adapter(config: MergeAdapterConfig) -> None:
    """Write the merged model directory, its tokenizer, template and generation settings included.

    Several adapters give, bit for bit, what merging one after another gives: each is cast back before the next.

    Raises:
        UserError: an unfinished run, one that trained a prompt, a base other than the one trained on, adapters out of
            order, or merged logits that differ.
    """
    if not config.adapter:
        raise UserError("--adapter: give at least one run directory of pretrain or sft")
    runs = [_mergeable(given) for given in config.adapter]
    base = runs[0].base(config.model)
    base.check_plain()
    adding = [late for place, late in enumerate(runs) if place and _adds(late, runs[:place], base)]
    for late in adding:
        warn(
            f"{late} was trained without the adapters before it: LoRA adds up, of new rows the last ones are kept"
        )
    names = ["adapter", *(f"adapter{place}" for place in range(2, len(runs) + 1))]
    inputs = {**dict(zip(names, runs, strict=True)), "model": base}
    with artifact.create(config.output, "model", "merge-adapter", config, inputs) as run:
        rewrite(base, run.path, fold_all(runs, base), "merging")
        write_config(base, run.path, stored_dtype(base))
        if base.generation:
            shutil.copyfile(base.path / "generation_config.json", run.path / "generation_config.json")
        copy_tokenizer(base.path, run.path)
        # While the directory is unfinished: where the predictions differ, `create` removes it.
        merged = ModelDirectory.unfinished(run.path)
        difference = _difference(runs, base, merged) if config.verify else None
        # Where the new rows begin: the merged model may be trained on, and merged into, again.
        kept = {key: value for key, value in base.result.items() if key in ("first_new", "rows")}
        run.result = {**kept, "base": base.fingerprint, "difference": difference}
    checked = "not compared" if difference is None else f"predictions differ by {difference:.1e} of 1"
    say(f"{run.path}: {_listed(runs)} merged into {base}; {checked}")


def open_adapter(run: RunDirectory, model: Any) -> Any:
    """The loaded base with the adapter of a finished run on it, as peft opens it.

    Raises:
        UserError: a run that trained the layers in full.
    """
    from peft import PeftModel

    if run.parts.full:
        raise UserError(
            f"--adapter {run}: it trained the layers in full, which is a model of its own; run zhllama merge-adapter"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft unties a matrix that was trained in full
        return PeftModel.from_pretrained(model, str(run))


def _mergeable(given: str) -> RunDirectory:
    """The run directory behind --adapter, of which a merged model can be made."""
    run = RunDirectory.open(given)
    method = run.parts.method
    if method is not None and not isinstance(method, LoraSettings):
        raise UserError(
            f"--adapter {run}: a trained prompt ({type(method).__name__.removesuffix('Settings').lower()}) changes no "
            "weights and cannot be merged; use it as it is: zhllama chat --adapter, zhllama evaluate --adapter, or "
            "peft.PeftModel.from_pretrained"
        )
    return run


def _adds(run: RunDirectory, before: Sequence[RunDirectory], base: ModelDirectory) -> bool:
    """Whether a run was trained on `base` itself; a UserError unless on it or on it with all of `before` merged."""
    merged_before = [earlier.fingerprint for earlier in before]
    if run.fingerprint in merged_before:
        raise UserError(f"--adapter {run}: given twice; give each run once")
    if "adapter" in run.inputs:
        raise UserError(
            f"--adapter {run}: it continues {run.inputs['adapter']['path']} and holds what that has trained; give it "
            "alone"
        )
    origin = run.inputs["model"]
    merged = _merged_into(origin, base.fingerprint)
    if merged not in ([], merged_before):
        raise UserError(
            f"--adapter {run}: it was trained on {origin['path']}, which is neither {base} nor, by its run.json, "
            f"{_listed(before)} merged into that; give the runs in the order of training, or merge one at a time"
        )
    return merged == []


def _merged_into(model: dict[str, str], base: str) -> list[str] | None:
    """Fingerprints of the runs that merge-adapter folded into `base`, in order, to make a model; None if it did not.

    Only `run.json` files are read, so the model's weights may be gone.

    Args:
        model: path and fingerprint, as a run's record names its input.
    """
    if model["fingerprint"] == base:
        return []
    # By records, not by merging again and comparing: another machine rounds matrix products otherwise.
    record = artifact.read_record(model["path"])
    # The directory may have been written anew since: its record vouches only for what it holds now.
    made = record.get("result", {}).get("fingerprint") == model["fingerprint"]
    if not made or record["command"] != "merge-adapter":
        return None
    inputs = dict(record["inputs"])
    before = _merged_into(inputs.pop("model"), base)
    return None if before is None else before + [run["fingerprint"] for run in inputs.values()]


def fold_all(runs: Sequence[RunDirectory], base: ModelDirectory) -> Change:
    """A function `(name, tensor) -> tensor` that folds runs one after another, each result in the stored dtype."""
    changes = [fold(run, base) for run in runs]

    def folded(name: str, tensor: Tensor) -> Tensor:
        for change in changes:
            tensor = change(name, tensor)
        return tensor

    return folded


def fold(run: RunDirectory, base: ModelDirectory) -> Change:
    """What a run makes of each tensor of its base: W plus the scaled B @ A in float32, cast back last; trained rows.

    DoRA then gives each row of W the norm that it has trained. The adapter is read tensor by tensor, as it is asked for.
    """
    from safetensors import safe_open

    file, lora, tied = run.weights, run.parts.method, base.tied
    with safe_open(file, framework="pt") as state:
        keys = set(state.keys())

    def folded(name: str, tensor: Tensor) -> Tensor:
        module = PREFIX + name.removesuffix(".weight")
        if f"{module}.lora_A.weight" in keys:
            assert isinstance(lora, LoraSettings)
            down, up = (read_tensor(file, f"{module}.lora_{part}.weight") for part in "AB")
            # Summed in float32 and rounded once: an update is often smaller than a step of bfloat16.
            whole = tensor.float() + lora.scale * (up @ down)
            if lora.dora:
                # DoRA: m (W + s B A) x / |W + s B A|, norms taken row by row, m trained.
                norms = read_tensor(file, f"{module}.lora_magnitude_vector.weight")
                whole *= (norms / whole.norm(dim=1))[:, None]
            return whole.to(tensor.dtype)
        if name in (INPUT_KEY, OUTPUT_KEY):
            # A tied checkpoint may store its matrix twice; both copies get what the input has learnt.
            source = PREFIX + (INPUT_KEY if tied else name).removesuffix(".weight")
            if f"{source}.{ROWS_KEY}" in keys:
                # The last rows are the new ones; those before them are copied bit for bit.
                rows = read_tensor(file, f"{source}.{ROWS_KEY}")
                return torch.cat([tensor[: -len(rows)], rows.to(tensor.dtype)])
            module = source
        return (
            read_tensor(file, f"{module}.weight").to(tensor.dtype) if f"{module}.weight" in keys else tensor
        )

    return folded


def _listed(runs: Sequence[RunDirectory]) -> str:
    return " and ".join(map(str, runs))


def _difference(runs: Sequence[RunDirectory], base: ModelDirectory, merged: ModelDirectory) -> float:
    """Mean total variation of next-token probabilities over fixed prompts, 0 to 1, computed in float32.

    Raises:
        UserError: more than rounding to the stored dtype explains.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(base))
    inputs = [torch.tensor([tokenizer(prompt)["input_ids"]]) for prompt in PROMPTS]
    with merged.tensor(INPUT_KEY) as rows:  # config.json may name another dtype
        tolerance = TOLERANCE[rows[:1].dtype]
    ours = _predictions(load_model(merged, torch.float32), inputs)
    theirs = _predictions(_opened(runs, base), inputs)
    # Total variation: half of the sum of absolute differences of two distributions, from 0 to 1.
    apart = [(a - b).abs().sum(-1).mean().item() / 2 for a, b in zip(ours, theirs, strict=True)]
    mean = float(sum(apart) / len(apart))
    if mean > tolerance:
        raise UserError(
            f"--adapter {_listed(runs)}: merged and unmerged predictions differ by {mean:.2g} of 1; nothing written"
        )
    return mean


def _opened(runs: Sequence[RunDirectory], base: ModelDirectory) -> Any:
    """The base in float32 with the adapters as peft opens them, the last one unmerged."""
    from peft import PeftModel

    model = load_model(base, torch.float32)
    tied = model.config.tie_word_embeddings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # peft unties a matrix that was trained in full
        for run in runs:
            # peft knows no layers that trained in full: they are put into the loaded base.
            if run.parts.full:
                change = fold(run, base)
                model.load_state_dict(
                    {name: change(name, value) for name, value in model.state_dict().items()}
                )
                continue
            model = PeftModel.from_pretrained(model, str(run))
            # Only the last one stays open; those before it are merged by peft, which is to vouch for them.
            if run != runs[-1]:
                model = model.merge_and_unload()
                # peft unties the config, as the ends have a matrix each; the next adapter trained on one.
                model.config.tie_word_embeddings = tied
                model.tie_weights()
        return model


@torch.no_grad()
def _predictions(model: Any, inputs: list[Tensor]) -> list[Tensor]:
    """Next-token probabilities; the model is let go before the next one is loaded."""
    model.eval()
    return [model(ids).logits.softmax(-1) for ids in inputs]
