"""Peak memory of resizing and merging a sharded checkpoint of 7B's shape.

python benchmarks/memory.py [DATA]    prints the table and writes benchmarks/results/memory.md

DATA holds LLaMA's tokenizer (llama-tokenizer.model) and Chinese pieces (chinese_sp.model); ../shared/data by default.
Weights are random; 10 GB of disk are needed for some minutes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import save_file
from table import machine, write_table
from torch import Tensor

from zhllama import artifact
from zhllama.model.adapter import PREFIX, ROWS_KEY, LoraSettings, save_adapter
from zhllama.model.directory import INDEX, ModelDirectory

ROOT = Path(__file__).resolve().parents[1]
HIDDEN, INNER, ROWS, LAYERS = 4096, 11_008, 32_000, 10
MODULES = {
    **{f"self_attn.{name}_proj": (HIDDEN, HIDDEN) for name in "qkvo"},
    **{f"mlp.{name}_proj": (INNER, HIDDEN) for name in ("gate", "up")},
    "mlp.down_proj": (HIDDEN, INNER),
}
EVERY = 0.01  # seconds between looks at a process


def make_base(directory: Path, data: Path) -> None:
    """Llama-2-7B's shape in two shards, with as many layers as fit: matrices of bfloat16 noise."""
    directory.mkdir()
    noise = {name: (torch.randn(shape) * 0.02).bfloat16() for name, shape in MODULES.items()}
    norm = torch.ones(HIDDEN, dtype=torch.bfloat16)
    where: dict[str, str] = {}
    for part in (1, 2):
        tensors: dict[str, Tensor] = {}
        end = "model.embed_tokens.weight" if part == 1 else "lm_head.weight"
        tensors[end] = (torch.randn(ROWS, HIDDEN) * 0.02).bfloat16()
        for layer in range(LAYERS // 2 * (part - 1), LAYERS // 2 * part):
            for name, matrix in noise.items():
                tensors[f"model.layers.{layer}.{name}.weight"] = matrix.clone()
            for name in ("input_layernorm", "post_attention_layernorm"):
                tensors[f"model.layers.{layer}.{name}.weight"] = norm.clone()
        if part == 2:
            tensors["model.norm.weight"] = norm
        file = f"model-{part:05}-of-00002.safetensors"
        save_file(tensors, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_attention_heads": 32,
        "num_hidden_layers": LAYERS,
        "vocab_size": ROWS,
        "dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(settings))
    shutil.copyfile(data / "llama-tokenizer.model", directory / "tokenizer.model")


def make_run(directory: Path, model: Path) -> None:
    """What pretrain leaves behind: LoRA of rank 64 on every linear layer, and all new rows."""
    lora = LoraSettings()
    made = artifact.read_record(model)["result"]
    new = made["rows"] - made["first_new"]
    state: dict[str, Tensor] = {}
    for layer in range(LAYERS):
        for name, (outer, inner) in MODULES.items():
            module = f"{PREFIX}model.layers.{layer}.{name}"
            state[f"{module}.lora_A.weight"] = torch.randn(lora.rank, inner) * 0.01
            state[f"{module}.lora_B.weight"] = torch.randn(outer, lora.rank) * 0.01
    for module in ("model.embed_tokens", "lm_head"):
        state[f"{PREFIX}{module}.{ROWS_KEY}"] = torch.randn(new, HIDDEN) * 0.02
    config = SimpleNamespace(vocab_size=made["rows"], tie_word_embeddings=False)
    with artifact.create(directory, "run", "pretrain", {}, {"model": model}) as run:
        save_adapter(run.path, state, lora, ModelDirectory.open(model), config, new)


def zhllama(*arguments: object) -> dict[str, float]:
    """Run a command; its peak memory in GB: all resident, and of that what no file backs."""
    process = subprocess.Popen([sys.executable, "-m", "zhllama", *map(str, arguments)], cwd=ROOT)
    status = Path(f"/proc/{process.pid}/status")
    peak = {"VmRSS": 0, "RssAnon": 0}
    while process.poll() is None:
        for line in status.read_text().splitlines():
            name, _, value = line.partition(":")
            if name in peak:
                peak[name] = max(peak[name], int(value.split()[0]))
        time.sleep(EVERY)
    if process.returncode:
        sys.exit(f"zhllama {arguments[0]} failed")
    return {name: size * 1024 / 1e9 for name, size in peak.items()}


def weight(directory: Path, rows: int) -> tuple[float, float]:
    """GB of the largest shard and of the embedding."""
    return max(
        file.stat().st_size for file in ModelDirectory.open(directory).shards
    ) / 1e9, rows * HIDDEN * 2 / 1e9


def main() -> None:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT.parent / "shared" / "data"
    table = []
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        make_base(at / "base", data)
        pieces = ["--chinese", data / "chinese_sp.model", "--output", at / "tokenizer"]
        zhllama("merge-tokenizer", "--base", at / "base" / "tokenizer.model", *pieces)
        rows = artifact.read_record(at / "tokenizer")["result"]["rows"]
        steps = {
            "resize-embeddings": ["--model", at / "base", "--tokenizer", at / "tokenizer"],
            "merge-adapter": ["--adapter", at / "run", "--verify", "false"],
        }
        for command, flags in steps.items():
            if command == "merge-adapter":
                make_run(at / "run", at / "resize-embeddings")
                shutil.rmtree(at / "base")
            peak = zhllama(command, *flags, "--output", at / command)
            shard, embedding = weight(at / command, rows)
            bound = 1.5 * shard + embedding
            measured = [peak["RssAnon"], peak["VmRSS"], bound]
            table.append([command, f"{shard:.2f}", f"{embedding:.2f}", *(f"{size:.2f}" for size in measured)])
            table[-1].append(f"{peak['VmRSS'] / bound:.2f}")
    header = ["command", "largest shard", "embedding", "peak anonymous", "peak resident", "bound"]
    note = (
        f"{machine()}. GB. Llama-2-7B's matrices in bfloat16, {LAYERS} layers, two shards, {rows:,} rows after resizing; "
        f"LoRA of rank {LoraSettings().rank} and all new rows merged, logits not compared; a look each {EVERY:.2f} s. "
        "The bound is 1.5 times the largest shard and the embedding. Resident memory is judged, the stricter: it "
        "counts the pages of mapped files too, which the kernel can take back; anonymous memory it cannot."
    )
    write_table("memory", [*header, "resident / bound"], table, note)


if __name__ == "__main__":
    main()
