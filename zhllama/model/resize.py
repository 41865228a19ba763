"""`zhllama resize-embeddings`: grow a checkpoint's embeddings to a merged tokenizer, offline, shard by shard."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from zhllama import artifact
from zhllama.config import UserError
from zhllama.device import default_device, default_dtype
from zhllama.model.adapter import Parts
from zhllama.model.bits import measure, passages, text_files
from zhllama.model.directory import INPUT_KEY, OUTPUT_KEY, ModelDirectory
from zhllama.model.trainable import load_trainable
from zhllama.model.weights import copy_tokenizer, rewrite, stored_dtype, write_config
from zhllama.terminal import print_table, say, warn
from zhllama.tokenizer.load import Loaded, TokenizerDirectory, load_opened

Initialisation = Literal["mean", "length", "first", "last", "global", "random"]
BLOCK_SIZE = 512  # longest context of the measurement, as evaluate's default
HEADER = ["bits per byte", "base", "resized"]


@dataclass
class InitSettings:
    """Where new rows start; see FVT (arXiv 2402.14714's baseline) for the sub-token mean."""

    # Defaults by benchmarks/results/probe.md, after 50 steps on an untied model: means in the input end 0.161
    # bits per byte below lengths, lengths in the output 0.029 below means.
    input: Initialisation = "mean"
    """Start input rows as the mean, length-weighted mean, first or last of sub-tokens' rows, global mean or random."""
    output: Initialisation = "length"
    """The same choice for the output rows of an untied model; a tied model has only input rows."""
    noise: float = 0.01
    """Add seeded noise, a share of the matrix's standard deviation: plain means leave exact duplicates."""


@dataclass
class ResizeConfig:
    """Grow a base model's embeddings to a merged tokenizer and write a complete model directory."""

    model: str
    """Base model directory (safetensors) with its own tokenizer inside, or a hub name."""
    tokenizer: str
    """Directory that merge-tokenizer wrote from that model's tokenizer."""
    output: str
    """New model directory to write."""
    init: InitSettings = field(default_factory=InitSettings)
    seed: int = 0
    """The seed that decides the noise and the random rows."""
    measure: bool = True
    """Measure bits per byte before and after: holds the whole model, twice in turn; else one shard and the embedding."""
    text: list[str] = field(default_factory=list)
    """Text to measure as name=FILE, repeatable; without any, a short passage each of Chinese and English."""
    max_bytes: int = 20_000
    """Measure whole documents from the front of each text until this many bytes; 0 measures all."""


def resize_embeddings(config: ResizeConfig) -> None:
    """Write a model directory whose embeddings fit the tokenizer; rows by id, padding rows initialised.

    Old rows are copied bit for bit. New rows are computed in float32 and cast last.

    Raises:
        UserError: no safetensors, a tokenizer merged from another base, one that is no merge at all, a text that is
            not there.
    """
    source = ModelDirectory.open(config.model)
    source.check_plain()
    new = open_merged(config.tokenizer, source)
    texts, tied = text_files(config.text), source.tied
    inputs: dict[str, artifact.Input] = {"model": source, "tokenizer": new.opened}
    inputs |= {f"text {name}": file for name, file in texts.items()}
    with artifact.create(config.output, "model", "resize-embeddings", config, inputs) as run:
        rows, first = int(new.opened.result["rows"]), first_new_row(source, new)
        parts = sub_tokens(source.tokenizer, new, first, rows)

        def grow(name: str, tensor: Tensor) -> Tensor:
            # Nothing else has a row for each token.
            if name not in (INPUT_KEY, OUTPUT_KEY):
                return tensor
            output = name == OUTPUT_KEY and not tied  # a tied model's file may hold the matrix twice
            # A base may have more rows than tokens; new tokens take these before any row is added.
            fresh = initial_rows(tensor[:first], parts, config.init, config.seed, output)
            return torch.cat([tensor[:first], fresh])

        rewrite(source, run.path, grow, "resizing")
        copy_tokenizer(new.directory, run.path)
        _write_configs(source, run.path, new, rows)
        run.result = {"first_new": first, "rows": rows, "base": source.fingerprint}
        if config.measure:
            resized = ModelDirectory.unfinished(run.path)
            run.result["measured"] = _compare(config, texts or passages(), source, resized)
    how = config.init.input if tied else f"input {config.init.input}, output {config.init.output}"
    say(f"{run.path}: {rows:,} rows, {rows - first:,} of them new ({how})")


def open_merged(given: str, base: ModelDirectory) -> Loaded:
    """The tokenizer behind --tokenizer; raises UserError unless merge-tokenizer merged it from this base's."""
    opened = TokenizerDirectory.open(given)
    if "first_new" not in opened.result:
        raise UserError(f"--tokenizer {opened}: not made by merge-tokenizer; run that first")
    _check_base(base, opened)
    return load_opened(opened)


def first_new_row(source: ModelDirectory, new: Loaded) -> int:
    """The first row to initialise; raises UserError for a checkpoint without embedding or output matrix."""
    first = int(new.opened.result["first_new"])
    for key in (INPUT_KEY,) if source.tied else (INPUT_KEY, OUTPUT_KEY):
        with source.tensor(key) as tensor:
            # A base may have fewer rows than tokens: a pad token that was added without resizing.
            first = min(first, tensor.get_shape()[0])
    return first


def sub_tokens(base: Loaded, new: Loaded, first: int, rows: int) -> list[tuple[list[int], list[int]]]:
    """For each new row: the base's ids of its text, and their lengths in bytes; empty where it has no text.

    The text is tokenised without BOS and without the dummy prefix, as it stands inside a sentence.
    """
    encode = base.inner_encoder()
    special = {token.content for token in new.fast.get_added_tokens_decoder().values() if token.special}
    parts: list[tuple[list[int], list[int]]] = []
    for row in range(first, rows):
        piece = new.fast.id_to_token(row)
        ids = [] if piece is None or piece in special else encode(new.piece_bytes(row))
        ids = [] if max(ids, default=0) >= first else ids  # the base's own token without a row
        # At least 1, as a token may stand for no byte and lengths are divided by their sum.
        parts.append((ids, [max(len(base.piece_bytes(i)), 1) for i in ids]))
    return parts


def initial_rows(
    old: Tensor, parts: list[tuple[list[int], list[int]]], init: InitSettings, seed: int, output: bool
) -> Tensor:
    """What `new_rows` gives for the input or the output matrix `old` under the settings, in its dtype."""
    how = init.output if output else init.input
    # Input and output rows have noise of their own each.
    generator = torch.Generator().manual_seed(seed + output)
    return new_rows(old, parts, how, init.noise, generator).to(old.dtype)


def new_rows(
    old: Tensor,
    parts: list[tuple[list[int], list[int]]],
    how: Initialisation,
    noise: float,
    generator: torch.Generator,
) -> Tensor:
    """Rows for new ids from the old matrix, (len(parts), hidden) float32; rows without sub-tokens get the mean."""
    matrix = old.float()
    mean, deviation = matrix.mean(0), matrix.std()
    # A row without text starts as the average token, at its length: 0 would be an outlier.
    fresh = mean.repeat(len(parts), 1)
    with_text = [row for row, (ids, _) in enumerate(parts) if ids and how not in ("global", "random")]
    if with_text:
        # One weighted sum per row, all rows at once.
        ids = torch.tensor([i for row in with_text for i in parts[row][0]])
        weights = torch.tensor([weight for row in with_text for weight in _weights(parts[row][1], how)])
        # Where each row's sub-tokens begin among those of all rows.
        starts = torch.tensor([0, *(len(parts[row][0]) for row in with_text[:-1])]).cumsum(0)
        fresh[with_text] = F.embedding_bag(ids, matrix, starts, mode="sum", per_sample_weights=weights)
    spread = deviation if how == "random" else noise * deviation
    return fresh + spread * torch.randn(fresh.shape, generator=generator)


def _weights(lengths: list[int], how: Initialisation) -> list[float]:
    """How much of each sub-token's row goes into a new row; they sum to 1."""
    if how in ("first", "last"):
        chosen = 0 if how == "first" else len(lengths) - 1
        return [float(place == chosen) for place in range(len(lengths))]
    shares = lengths if how == "length" else [1] * len(lengths)
    return [share / sum(shares) for share in shares]


def _compare(
    config: ResizeConfig, texts: dict[str, Path], base: ModelDirectory, resized: ModelDirectory
) -> dict[str, dict[str, float]]:
    """Print bits per byte of each text under base and resized model, and warn where chance would do better."""
    # One after the other, so that only one of them is held.
    before, after = (_measure(model, texts, config.max_bytes) for model in (base, resized))
    bits = {name: [model[name]["bits per byte"] for model in (before, after)] for name in texts}
    print_table(f"{config.model} -> {config.output}", HEADER, [[name, *pair] for name, pair in bits.items()])
    uniform = math.log(resized.config["vocab_size"])
    for name in texts:
        if after[name]["loss per token"] > uniform:
            warn(
                f"{name}: {after[name]['loss per token']:.2f} nats per token after resizing, more than a uniform "
                f"guess ({uniform:.2f}); try another --init.input or --init.output, or zhllama probe-init"
            )
    return {name: {"before": round(pair[0], 5), "after": round(pair[1], 5)} for name, pair in bits.items()}


def _measure(model: ModelDirectory, texts: dict[str, Path], max_bytes: int) -> dict[str, dict[str, float]]:
    loaded = load_trainable(model, Parts(), default_dtype(), default_device())
    block_size = min(BLOCK_SIZE, model.positions)
    return {
        name: measure(loaded, model.tokenizer, file, block_size, max_bytes) for name, file in texts.items()
    }


def _check_base(source: ModelDirectory, merged: TokenizerDirectory) -> None:
    """A merge reads one of two files: either may be the one that the tokenizer was merged from."""
    names = ("tokenizer.json", "tokenizer.model")
    found = [artifact.fingerprint(file) for name in names if (file := source.path / name).is_file()]
    if not found:
        raise UserError(f"--model {source}: no tokenizer inside; put the base's tokenizer files there")
    if (wanted := merged.result["base_tokenizer_fingerprint"]) not in found:
        artifact.check_same(
            f"the base of --tokenizer {merged}",
            wanted,
            f"the tokenizer in --model {source}",
            found[0],
            f"run zhllama merge-tokenizer --base {source} again",
        )


def _write_configs(source: ModelDirectory, target: Path, tokenizer: Loaded, rows: int) -> None:
    """`config.json` and `generation_config.json` with the new size and the tokenizer's special ids."""
    # generate() goes by these, not by the tokenizer.
    ids = {
        f"{name}_token_id": tokenizer.fast.token_to_id(token)
        for name, token in (("bos", tokenizer.bos), ("eos", tokenizer.eos), ("pad", tokenizer.pad))
        if token
    }
    changes = _with_ends(source.config, ids, rows)
    write_config(source, target, stored_dtype(source), vocab_size=rows, **changes)
    generation = {**source.generation, **_with_ends(source.generation, ids, rows)}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")


def _with_ends(known: dict[str, Any], ids: dict[str, int | None], rows: int) -> dict[str, Any]:
    """The tokenizer's ids, and every other end that the base knew: Llama-3 ends texts by one token, turns by another."""
    before = known.get("eos_token_id")
    ends = [ids.get("eos_token_id"), *(before if isinstance(before, list) else [before])]
    all_ends = list(dict.fromkeys(end for end in ends if end is not None and end < rows))
    if not all_ends:
        return dict(ids)
    return {**ids, "eos_token_id": all_ends if len(all_ends) > 1 else all_ends[0]}
