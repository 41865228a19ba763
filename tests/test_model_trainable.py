"""What trains and what does not, and adapters that plain peft opens."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from zhllama.config import UserError
from zhllama.model.adapter import Embeddings, LoraSettings, Parts
from zhllama.model.directory import ModelDirectory
from zhllama.model.trainable import TrainableModel, check_parts, load_trainable
from zhllama.pack.blocks import Blocks

LORA = LoraSettings(rank=4, alpha=8)
LINEARS = 2 * 7  # layers x targets


def blocks_of(model: TrainableModel, lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    """One block of random documents of these lengths, old and new rows in them, as a batch."""
    total = sum(lengths)
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, (1, total)).astype(np.uint16)
    ids[0, :2] = model.config.vocab_size - 1, 5
    block = Blocks(ids, np.asarray(lengths, dtype=np.int32), np.asarray([0, len(lengths)]))[0]
    return {name: tensor[None] for name, tensor in block.items()}


def taught(
    directory: Path, embeddings: Embeddings, lora: LoraSettings | None = LORA, full: bool = False
) -> TrainableModel:
    """A model after three optimiser steps, so that every adapter tensor has moved."""
    torch.manual_seed(0)
    model = load_trainable(ModelDirectory.open(directory), Parts(embeddings, lora, full=full), torch.float32)
    optimiser = torch.optim.AdamW(model.trainable().values(), lr=0.01)
    for step in range(3):
        model(**blocks_of(model, [20, 30], step))["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
    return model.eval()


def logits(model: TrainableModel, ids: Tensor) -> Tensor:
    """(1, length, rows), which training itself never forms."""
    hidden = model.base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    head = model.base.lm_head
    rows = head.weight
    if head.new_rows is not None:
        rows = torch.cat([rows, head.new_rows])
    return F.linear(hidden, rows)


def kinds_of(model: TrainableModel) -> dict[str, int]:
    """How many trainable tensors are LoRA's, and the names of the others."""
    names = list(model.trainable())
    counts = {name: 1 for name in names if "lora_" not in name}
    return {"lora": sum("lora_" in name for name in names), **counts}


ROWS = ("base_model.model.model.embed_tokens.", "base_model.model.lm_head.")


@pytest.mark.parametrize(
    ("embeddings", "suffix"), [("new", "token_adapter.trainable_tokens_delta"), ("all", "weight")]
)
def test_rows_and_lora_train(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings, suffix: str
) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts(embeddings, LORA), torch.float32)
    ends = ROWS if kind == "sentencepiece" else ROWS[:1]
    assert kinds_of(model) == {"lora": 2 * LINEARS} | {end + suffix: 1 for end in ends}
    new = ModelDirectory.open(extended_models[kind]).new_rows
    rows = new if embeddings == "new" else model.config.vocab_size
    assert new == {"sentencepiece": 2048 - 1001, "bytelevel": 2112 - 601}[kind]
    for name, parameter in model.trainable().items():
        assert "lora_" in name or parameter.shape == (rows, 32)


def test_only_lora_trains_without_embeddings(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("none", LORA), torch.float32)
    assert kinds_of(model) == {"lora": 2 * LINEARS}


def test_nothing_trains_without_lora_and_embeddings(extended_models: dict[str, Path], kind: str) -> None:
    assert (
        load_trainable(ModelDirectory.open(extended_models[kind]), Parts(), torch.float32).trainable() == {}
    )


@pytest.mark.parametrize("embeddings", ["new", "all"])
def test_what_trains_is_float32_and_the_rest_as_asked(
    extended_models: dict[str, Path], kind: str, embeddings: Embeddings
) -> None:
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts(embeddings, LORA), torch.bfloat16
    )
    for parameter in model.parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)


def test_old_rows_and_body_stay_bit_identical_while_the_rest_moves(
    extended_models: dict[str, Path], kind: str
) -> None:
    stored = load_file(extended_models[kind] / "model.safetensors")
    fresh = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32
    ).trainable()
    model = taught(extended_models[kind], "new")
    for name, parameter in model.base.named_parameters():
        if not parameter.requires_grad and "lm_head" not in name:
            assert torch.equal(parameter, stored[name.replace(".base_layer", "")][: len(parameter)])
    head = stored["lm_head.weight" if kind == "sentencepiece" else "model.embed_tokens.weight"]
    assert torch.equal(model.base.lm_head.weight, head[: -model.new_row_count])
    for name, parameter in model.trainable().items():
        assert not torch.equal(parameter, fresh[name])


def test_new_rows_start_as_stored(extended_models: dict[str, Path], kind: str) -> None:
    stored = load_file(extended_models[kind] / "model.safetensors")
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    for name, parameter in model.trainable().items():
        if "trainable_tokens" in name:
            end = name.removeprefix("base_model.model.").split(".token_adapter")[0]
            assert torch.equal(parameter, stored[f"{end}.weight"][-len(parameter) :])


def test_loss_is_that_of_transformers(extended_models: dict[str, Path], kind: str) -> None:
    from transformers import AutoModelForCausalLM

    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    batch = blocks_of(model, [40])
    plain = AutoModelForCausalLM.from_pretrained(str(extended_models[kind]))
    expected = plain(batch["input_ids"], labels=batch["labels"]).loss
    torch.testing.assert_close(model(**batch)["loss"], expected)


@pytest.mark.parametrize("training", [False, True])
def test_documents_of_a_block_do_not_see_each_other(
    extended_models: dict[str, Path], kind: str, training: bool
) -> None:
    model = taught(extended_models[kind], "new").train(training)
    lengths = [7, 1, 22, 34]
    packed = blocks_of(model, lengths)
    apart = []
    for part in packed["input_ids"].split(lengths, dim=1):
        alone = {"input_ids": part, "position_ids": torch.arange(part.shape[1])[None]}
        labels = torch.where(alone["position_ids"] > 0, part, -100)
        apart.append(model(**alone, labels=labels, num_items_in_batch=1)["loss"])
    torch.testing.assert_close(model(**packed, num_items_in_batch=1)["loss"], torch.stack(apart).sum())


def test_loss_is_divided_by_the_count_given(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    batch = blocks_of(model, [10, 15])
    mean, total = model(**batch)["loss"], model(**batch, num_items_in_batch=1)["loss"]
    torch.testing.assert_close(total, mean * (25 - 2))  # a document's first token is not predicted
    torch.testing.assert_close(model(**batch, num_items_in_batch=torch.tensor(46))["loss"], mean / 2)


def test_checkpointing_activations_changes_no_gradient(extended_models: dict[str, Path], kind: str) -> None:
    def gradients(checkpointing: bool) -> dict[str, Tensor | None]:
        torch.manual_seed(0)
        model = load_trainable(
            ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32
        ).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.base.model.gradient_checkpointing
        model(**blocks_of(model, [40]))["loss"].backward()
        return {name: parameter.grad for name, parameter in model.trainable().items()}

    torch.testing.assert_close(gradients(True), gradients(False))


def test_new_rows_where_there_are_none(model_dirs: dict[str, Path], kind: str) -> None:
    message = r"embeddings new: .* has no rows added by resize-embeddings; use --embeddings none or all"
    with pytest.raises(UserError, match=message):
        check_parts(ModelDirectory.open(model_dirs[kind]), Parts("new", LORA), allow_frozen=False)


def test_new_rows_that_would_stay_frozen(extended_models: dict[str, Path], kind: str) -> None:
    message = r"embeddings none: the 1,\d+ new rows of .* would stay frozen; use --embeddings new"
    with pytest.raises(UserError, match=message):
        check_parts(ModelDirectory.open(extended_models[kind]), Parts("none", LORA), allow_frozen=False)
    check_parts(ModelDirectory.open(extended_models[kind]), Parts("none", LORA), allow_frozen=True)
    check_parts(ModelDirectory.open(extended_models[kind]), Parts("all", LORA), allow_frozen=False)


def test_nothing_chosen_to_train(extended_models: dict[str, Path], kind: str) -> None:
    with pytest.raises(UserError, match="body none and embeddings none: nothing would train"):
        check_parts(ModelDirectory.open(extended_models[kind]), Parts("none"), allow_frozen=True)


def test_layers_train_in_full(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(
        ModelDirectory.open(extended_models[kind]), Parts("new", full=True), torch.bfloat16
    )
    ends = model.base.get_input_embeddings().weight, model.base.lm_head.weight
    for name, parameter in model.base.named_parameters():
        frozen = any(parameter is end for end in ends)
        assert parameter.requires_grad is not frozen, name
        assert parameter.dtype == (torch.bfloat16 if frozen else torch.float32)


def test_each_token_s_loss_is_told(extended_models: dict[str, Path], kind: str) -> None:
    model = load_trainable(ModelDirectory.open(extended_models[kind]), Parts("new", LORA), torch.float32)
    told: list[tuple[Tensor, Tensor]] = []
    model.on_loss = lambda labels, nats: told.append((labels, nats))
    batch = blocks_of(model, [20, 30])
    loss = model(**batch)["loss"]
    [(labels, nats)] = told
    wanted = batch["labels"][:, 1:]
    assert labels.tolist() == wanted[wanted != -100].tolist()
    torch.testing.assert_close(nats.mean(), loss.detach())


@pytest.mark.parametrize("targets", [["q_proj", "vproj"], ["lm_head"]])
def test_lora_target_that_the_model_lacks(
    extended_models: dict[str, Path], kind: str, targets: list[str]
) -> None:
    message = rf"lora.targets {targets[-1]}: no such linear layer; there are down_proj, gate_proj, k_proj"
    with pytest.raises(UserError, match=message):
        load_trainable(
            ModelDirectory.open(extended_models[kind]),
            Parts("new", LoraSettings(targets=targets)),
            torch.float32,
        )


def test_a_model_without_record_has_no_new_rows(
    tmp_path: Path, extended_models: dict[str, Path], kind: str
) -> None:
    foreign = shutil.copytree(extended_models[kind], tmp_path / "foreign")
    (foreign / "run.json").unlink()
    assert ModelDirectory.open(foreign).new_rows == 0
