"""linear_cross_entropy: the plain loss and its gradients, without the full logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zhllama.model.fast import loss
from zhllama.model.fast.loss import linear_cross_entropy

HIDDEN, ROWS, NEW = 16, 50, 7


def draw(tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, new rows and labels; labels hit old and new rows."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, HIDDEN, generator=generator)
    weight = torch.randn(ROWS, HIDDEN, generator=generator)
    rows = torch.randn(NEW, HIDDEN, generator=generator)
    labels = torch.randint(ROWS, (tokens,), generator=generator)
    labels[: min(tokens, 3)] = torch.tensor([0, ROWS - 1, ROWS - NEW])[:tokens]
    return hidden, weight, rows, labels


def gradients(total: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, inputs))


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 24, 30])
@pytest.mark.parametrize("parts", ["weight", "new rows"])
def test_equal_to_cross_entropy_on_both_sides_of_a_chunk(
    monkeypatch: pytest.MonkeyPatch, tokens: int, parts: str
) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", 8 * 4 * ROWS)
    hidden, weight, rows, labels = draw(tokens)
    hidden.requires_grad_()
    trained = (weight if parts == "weight" else rows).requires_grad_()
    whole = weight if parts == "weight" else torch.cat([weight[:-NEW], rows])
    naive = F.cross_entropy(hidden @ whole.T, labels, reduction="sum")
    ours = linear_cross_entropy(
        hidden, *((weight, None) if parts == "weight" else (weight[:-NEW], rows)), labels
    )
    torch.testing.assert_close(ours, naive)
    expected = gradients(naive * 0.3, hidden, trained)
    for mine, theirs in zip(gradients(ours * 0.3, hidden, trained), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, _, labels = draw(12)
    hidden.requires_grad_()
    linear_cross_entropy(hidden, weight, None, labels).backward()
    assert weight.grad is None
    naive = F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(hidden.grad, gradients(naive, hidden)[0])


def test_old_rows_beside_new_ones_get_no_gradient() -> None:
    hidden, weight, rows, labels = draw(12)
    weight.requires_grad_()
    linear_cross_entropy(hidden, weight[:-NEW], rows.requires_grad_(), labels).backward()
    assert weight.grad is None
    assert rows.grad is not None


def test_rows_shared_by_both_ends_add_up() -> None:
    _, weight, rows, labels = draw(12)
    rows.requires_grad_()
    ids = torch.randint(ROWS, (12,), generator=torch.Generator().manual_seed(5))
    whole = torch.cat([weight[:-NEW], rows])
    naive = F.cross_entropy(F.embedding(ids, whole) @ whole.T, labels, reduction="sum")
    ours = linear_cross_entropy(F.embedding(ids, whole), weight[:-NEW], rows, labels)
    torch.testing.assert_close(gradients(ours, rows), gradients(naive, rows))


def test_no_tokens_is_zero_loss_and_zero_gradient() -> None:
    hidden, weight, rows, labels = draw(4)
    rows.requires_grad_()
    total = linear_cross_entropy(hidden[:0], weight[:-NEW], rows, labels[:0])
    assert total.item() == 0
    assert not gradients(total, rows)[0].any()


@pytest.mark.parametrize("trained", [torch.float32, torch.bfloat16])
def test_bfloat16_by_autocast_is_close(trained: torch.dtype) -> None:
    hidden, weight, rows, labels = draw(40)
    hidden.requires_grad_()
    rows.requires_grad_()
    whole = torch.cat([weight[:-NEW], rows])
    naive = F.cross_entropy(hidden @ whole.T, labels, reduction="sum")
    expected = gradients(naive, hidden, rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_cross_entropy(hidden, weight[:-NEW].to(trained), rows, labels)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, naive, rtol=0.01, atol=0.0)
    for mine, theirs in zip(gradients(ours, hidden, rows), expected, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() < 0.02 * theirs.norm()


class Largest(TorchDispatchMode):
    """Remembers the most elements that any operation's result had."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max([self.elements, *sizes])
        return result


def test_never_holds_the_full_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", 8 * 4 * ROWS)
    hidden, weight, rows, labels = draw(640)
    hidden.requires_grad_()
    rows.requires_grad_()
    with Largest() as ours:
        linear_cross_entropy(hidden, weight[:-NEW], rows, labels).backward()
    with Largest() as naive:
        F.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    assert naive.elements == 640 * ROWS
    assert ours.elements == 640 * HIDDEN  # the gradient of the hidden states; logits stay below it
