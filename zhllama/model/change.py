"""How far training has moved each part of a model from where it started."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zhllama.model.adapter import PREFIX, ROWS_KEY, gathered
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.trainable import TrainableModel

# 128 MB of a matrix 4,096 wide, in float32.
ROWS_AT_ONCE = 8192


def norms_of_change(model: TrainableModel, base: ModelDirectory, lora_scale: float) -> dict[str, float]:
    """Frobenius norms of the change since `base`: of new rows, old rows, LoRA, prompts, layers.

    LoRA's is that of its scaled B @ A, prompts' that since their start. Under ZeRO-3 every rank must call this.
    """
    squares: dict[str, float] = {}
    trained = {key.removeprefix(PREFIX): parameter for key, parameter in model.trainable().items()}
    ends = {INPUT_KEY: model.base.get_input_embeddings().weight, OUTPUT_KEY: model.base.lm_head.weight}
    # Tied: one matrix, counted once.
    if ends[INPUT_KEY] is ends[OUTPUT_KEY]:
        del ends[OUTPUT_KEY]
    new = base.new_rows
    for name, parameter in (ends | trained).items():
        part = "layers"
        if "lora_" in name:
            # A pair is counted where its A stands.
            if "lora_A" not in name:
                continue
            part, square = "LoRA", _product(parameter, trained[name.replace("lora_A", "lora_B")], lora_scale)
        # Prompts have no base to differ from. A prefix alone is saved under a key without peft's beginning.
        elif PREFIX + name in model.start or name in model.start:
            start = model.start.get(PREFIX + name, model.start.get(name))
            assert start is not None
            with gathered([parameter]):
                part, square = "prompts", float((parameter.detach() - start).float().square().sum())
        elif ROWS_KEY in name:
            part, square = (
                "new rows",
                _difference(parameter, base, name.replace(ROWS_KEY, "weight"), new=True),
            )
        elif name in ends:
            # Frozen rows too: that they did not move is measured, not assumed.
            part, square = "old rows", _difference(parameter, base, name, last=-new if new else None)
            # Trained whole: its last rows are the new ones.
            if new and parameter.requires_grad:
                moved = _difference(parameter, base, name, first=-new)
                squares["new rows"] = squares.get("new rows", 0.0) + moved
        else:
            square = _difference(parameter, base, name)
        squares[part] = squares.get(part, 0.0) + square
    return {part: math.sqrt(square) for part, square in squares.items()}


def _product(down: nn.Parameter, up: nn.Parameter, scale: float) -> float:
    """The squared norm of scale * up @ down, by way of two rank x rank matrices."""
    with gathered([down, up]):
        # With A of (rank, columns) and B of (rows, rank), |B A|^2 is the trace of A^T B^T B A, and that is
        # the sum of B^T B times A A^T element by element: B A itself, as large as the layer, is never formed.
        a, b = down.detach().float(), up.detach().float()
        return float(scale**2 * ((b.T @ b) * (a @ a.T)).sum())


def _difference(
    parameter: nn.Parameter,
    base: ModelDirectory,
    key: str,
    first: int | None = None,
    last: int | None = None,
    new: bool = False,
) -> float:
    """The squared norm of a parameter minus the base's tensor, over rows `first` to `last` of that tensor.

    A parameter of new rows stands for the tensor's last ones, any other for its first.
    """
    # A float32 sum of a billion squares would swallow the small ones.
    total = torch.zeros((), dtype=torch.float64, device=parameter.device)
    with gathered([parameter]), base.tensor(key) as stored:
        rows = stored.get_shape()[0]
        begin, end, _ = slice(first, last).indices(rows)
        offset = rows - len(parameter) if new else 0
        for at in range(max(begin, offset), end, ROWS_AT_ONCE):
            until = min(at + ROWS_AT_ONCE, end)
            # Rounded as the model was when it was loaded: that is no change.
            before: Tensor = torch.as_tensor(stored[at:until]).to(parameter.device, parameter.dtype)
            now = parameter.detach()[at - offset : until - offset]
            total += (now.float() - before.float()).square().sum()
    return float(total)
