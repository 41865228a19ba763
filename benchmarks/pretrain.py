"""Continued pretraining against its peers: tokens per second, memory, share of the matmul peak.

python benchmarks/pretrain.py [PYTHON]     PYTHON: the interpreter of an environment with llamafactory in it

One model (12 layers x 576, random weights, LLaMA's tokenizer grown to 55,296 rows, untied), one text (People's
Daily), the same LoRA and batch; each way trains in a process of its own. All of them are loaded, and take turns step by
step, so that a machine that is slow for a while is slow for each. Needs ../shared/data.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMA = ROOT.parent / "shared" / "data" / "llama-tokenizer.model"
SIZE = 23_295  # with the pad token 23,296 rows, as Chinese-LLaMA-2 has
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 2048}  # fmt: skip
BATCH, BLOCK, STEPS, WARM = 2, 512, 15, 3
RANK, ALPHA = 64, 128
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WAYS = {
    "zhllama": "zhllama",
    "modules_to_save": "Trainer, peft modules_to_save (Chinese-LLaMA)",
    "trainable_token_indices": "Trainer, peft trainable_token_indices",
    "llamafactory": "LLaMA-Factory, additional_target",
}


def memory(field: str) -> float:
    """A line of /proc/self/status in MB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


def prepare(folder: Path) -> None:
    """Model and tokens, by the commands that users run."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from zhllama.demo.material import news, write_jsonl
    from zhllama.model.resize import ResizeConfig, resize_embeddings
    from zhllama.pack.documents import PackConfig, pack
    from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
    from zhllama.tokenizer.train import TrainTokenizerConfig, train_tokenizer

    base = folder / "base"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **SHAPE)).save_pretrained(base)
    (base / "tokenizer.model").write_bytes(LLAMA.read_bytes())
    write_jsonl(folder / "news.jsonl", news())
    corpus = str(folder / "news.jsonl")
    train_tokenizer(TrainTokenizerConfig([corpus], str(folder / "chinese"), str(LLAMA), SIZE))
    merge_tokenizer(MergeTokenizerConfig(str(LLAMA), str(folder / "chinese"), str(folder / "tokenizer")))
    resize_embeddings(ResizeConfig(str(base), str(folder / "tokenizer"), str(folder / "model")))
    pack(PackConfig([corpus], str(folder / "model"), str(folder / "tokens"), BLOCK))
    rows = [{"text": text} for text in news()]
    (folder / "data").mkdir()
    (folder / "data" / "news.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    described = {"news": {"file_name": "news.json", "columns": {"prompt": "text"}}}
    (folder / "data" / "dataset_info.json").write_text(json.dumps(described), encoding="utf-8")


def arguments(dtype: str) -> dict[str, Any]:
    """Of transformers.TrainingArguments, the same for every way."""
    return {
        "per_device_train_batch_size": BATCH,
        "max_steps": STEPS,
        "learning_rate": 2e-4,
        "bf16": dtype == "bf16",
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 0,
    }


def by_zhllama(folder: Path, output: Path, dtype: str) -> None:
    from zhllama.config import parse
    from zhllama.train.pretrain import PretrainConfig, pretrain

    flags = ["--model", str(folder / "model"), "--tokens", str(folder / "tokens"), "--output", str(output)]
    for name, value in arguments(dtype).items():
        flags += [f"--train.{name}", str(value).lower()]
    flags += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    started()
    pretrain(parse("pretrain", PretrainConfig, flags))


def by_peft(folder: Path, output: Path, dtype: str, way: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from zhllama.pack.blocks import Blocks

    blocks = Blocks.open(folder / "tokens")
    samples = [torch.from_numpy(blocks.ids[i].astype("int64")) for i in range(BATCH * STEPS)]
    started()
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=kind)
    ends = ["embed_tokens", "lm_head"]
    new = list(range(32_000, model.config.vocab_size))
    more: dict[str, Any] = {"modules_to_save": ends}
    if way == "trainable_token_indices":
        more = {"trainable_token_indices": dict.fromkeys(ends, new)}
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM", **more)
    settings = TrainingArguments(str(output), **arguments(dtype))
    data = [{"input_ids": ids, "labels": ids} for ids in samples]
    Trainer(get_peft_model(model, lora), settings, train_dataset=data).train()


def by_llamafactory(folder: Path, output: Path, dtype: str) -> None:
    from llamafactory.train.tuner import run_exp

    started()
    settings = {"model_name_or_path": str(folder / "model"), "stage": "pt", "do_train": True, "finetuning_type": "lora",
                "lora_rank": RANK, "lora_alpha": ALPHA, "lora_target": ",".join(TARGETS),
                "additional_target": "embed_tokens,lm_head", "dataset": "news", "dataset_dir": str(folder / "data"),
                "cutoff_len": BLOCK, "packing": True, "max_samples": 100, "output_dir": str(output),
                "overwrite_cache": True, "gradient_accumulation_steps": 1}  # fmt: skip
    settings |= arguments(dtype)
    settings["warmup_ratio"] = settings.pop("warmup_steps") * 1.0
    if dtype == "fp32":
        settings["infer_dtype"] = "float32"
    run_exp(settings)


def started() -> None:
    """Everything is imported: note the memory, and forget the peak so far."""
    global BARE
    BARE = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


BARE = 0.0


def train(way: str, dtype: str, folder: Path) -> None:
    """In a process of its own: a step at each line of input, at last the peak megabytes above the imports."""
    from turns import done, take_turns

    take_turns()
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "run"
        if way == "zhllama":
            import zhllama.train.run

            assert zhllama.train.run
            by_zhllama(folder, output, dtype)
        elif way == "llamafactory":
            by_llamafactory(folder, output, dtype)
        else:
            by_peft(folder, output, dtype, way)
    done(memory("VmHWM") - BARE)


def needed(folder: Path) -> float:
    """Operations a token that the run itself needs: what a way does beyond them does not count for it."""
    import torch

    from zhllama.model.adapter import LoraSettings, Parts
    from zhllama.model.directory import ModelDirectory
    from zhllama.model.operations import flops_of
    from zhllama.model.trainable import load_trainable

    lora = LoraSettings(rank=RANK, alpha=ALPHA)
    base = ModelDirectory.open(folder / "model")
    return flops_of(load_trainable(base, Parts("new", lora), torch.float32), BLOCK)


def measure(dtype: str, ways: dict[str, str], folder: str, operations: float) -> list[list[object]]:
    """The rows of one precision: each ratio is the median of the ratios of single rounds."""
    import torch
    from turns import Run

    from zhllama.device import matmul_peak

    runs = {}
    for way, python in ways.items():
        command = [python, __file__, "--way", way, dtype, folder]
        runs[way] = Run(command, Path(folder) / f"{way}-{dtype}.log")
    peaks = []
    for number in range(STEPS):
        for run in runs.values():
            run.step()
        peaks.append(matmul_peak(torch.bfloat16 if dtype == "bf16" else torch.float32, torch.device("cpu")))
        print(dtype, number, *(f"{run.steps[-1]:.2f}" for run in runs.values()), flush=True)

    def median(numbers: Any) -> float:
        return statistics.median(list(numbers)[WARM:])

    def faster(way: str) -> float:
        return median(theirs / our for theirs, our in zip(runs[way].steps, ours.steps, strict=True))

    ours = runs["zhllama"]
    rows: list[list[object]] = []
    for way, run in runs.items():
        share = median(
            operations * BATCH * BLOCK / step / peak for step, peak in zip(run.steps, peaks, strict=True)
        )
        rows.append([dtype, WAYS[way], f"{BATCH * BLOCK / median(run.steps):.0f}", f"{faster(way):.2f}",
                     f"{run.result:.0f}", f"{ours.result / run.result:.2f}", f"{share:.0%}"])  # fmt: skip
    peers = [way for way in runs if way != "zhllama"]
    best, smallest = min(map(faster, peers)), min(runs[way].result for way in peers)
    last = [
        dtype,
        "zhllama against the best of them",
        "",
        f"{best:.2f}",
        "",
        f"{ours.result / smallest:.2f}",
        "",
    ]
    return [*rows, last]


def main(llamafactory: str | None) -> None:
    from table import machine, write_table

    ways = dict.fromkeys(WAYS, sys.executable)
    if llamafactory:
        ways["llamafactory"] = llamafactory
    else:
        del ways["llamafactory"]
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        operations = needed(Path(name))
        rows = [row for dtype in ("bf16", "fp32") for row in measure(dtype, ways, name, operations)]
    header = ["precision", "way", "tokens/s", "zhllama is faster by", "peak MB above imports",
              "zhllama needs, as a share", "of the matmul peak"]  # fmt: skip
    note = (
        f"{machine()}. {SHAPE['num_hidden_layers']} layers x {SHAPE['hidden_size']}, 55,296 rows, untied, LoRA rank "
        f"{RANK} on all linears; {BATCH} x {BLOCK} tokens a step; the ways take turns step by step, medians of "
        f"{STEPS - WARM} rounds, of a ratio the median of the rounds' own. Of the matmul peak: the operations that the "
        "run needs (new rows trained, nothing recomputed), as a share of what torch's best of six products of 768 x 768 "
        "reached in the same precision after each round. "
        "Targets: 1.3 times the best peer's tokens in bf16, 1.15 in fp32, 0.6 times the memory, 60% of the peak."
    )
    write_table("pretrain", header, rows, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        train(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
