"""Continued pretraining against its peers: tokens per second, memory, share of the matmul peak.

python benchmarks/pretrain.py [PYTHON]     PYTHON: the interpreter of an environment with llamafactory in it

One model (12 layers x 576, random weights, LLaMA's tokenizer grown to 55,296 rows, untied), one text (People's
Daily), the same LoRA and batch; each way trains in a process of its own, the ways taking turns. Needs ../shared/data.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMA = ROOT.parent / "shared" / "data" / "llama-tokenizer.model"
SIZE = 23_295  # with the pad token 23,296 rows, as Chinese-LLaMA-2 has
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 2048}  # fmt: skip
BATCH, BLOCK, STEPS, WARM = 2, 512, 10, 3
ROUNDS = 3
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


def by_zhllama(folder: Path, output: Path, dtype: str) -> list[float]:
    from zhllama.config import parse
    from zhllama.metrics import read_metrics
    from zhllama.pretrain import PretrainConfig, pretrain

    flags = ["--model", str(folder / "model"), "--tokens", str(folder / "tokens"), "--output", str(output)]
    for name, value in arguments(dtype).items():
        flags += [f"--train.{name}", str(value).lower()]
    flags += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    started()
    pretrain(parse("pretrain", PretrainConfig, flags))
    return [line["seconds"] for line in read_metrics(output / "metrics.jsonl")]


def by_peft(folder: Path, output: Path, dtype: str, way: str) -> list[float]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from zhllama.pack.blocks import Blocks

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

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
    Trainer(get_peft_model(model, lora), settings, train_dataset=data, callbacks=[Clock()]).train()
    return times


def by_llamafactory(folder: Path, output: Path, dtype: str) -> list[float]:
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

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
    run_exp(settings, callbacks=[Clock()])
    return times


def started() -> None:
    """Everything is imported: note the memory, and forget the peak so far."""
    global BARE
    BARE = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


BARE = 0.0


def measure(way: str, dtype: str, folder: Path) -> None:
    """In a process of its own: seconds per step after the warm ones, peak megabytes above the imports."""
    import torch

    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "run"
        if way == "zhllama":
            import zhllama.training

            assert zhllama.training
            times = by_zhllama(folder, output, dtype)
        elif way == "llamafactory":
            times = by_llamafactory(folder, output, dtype)
        else:
            times = by_peft(folder, output, dtype, way)
    steps = [after - before for before, after in zip(times[WARM - 1 :], times[WARM:], strict=False)]
    found = {"step": statistics.median(steps), "peak": memory("VmHWM") - BARE}
    if way == "zhllama":
        from zhllama.device import matmul_peak

        found["flops"] = matmul_peak(
            torch.bfloat16 if dtype == "bf16" else torch.float32, torch.device("cpu")
        )
    print("RESULT " + json.dumps(found))


def needed(folder: Path) -> float:
    """Operations a token that the run itself needs: what a way does beyond them does not count for it."""
    import torch

    from zhllama.model.adapter import LoraSettings
    from zhllama.model.cost import flops_of
    from zhllama.model.trainable import load_trainable

    lora = LoraSettings(rank=RANK, alpha=ALPHA)
    return flops_of(load_trainable(folder / "model", "new", lora, torch.float32), BLOCK)


def main(llamafactory: str | None) -> None:
    from table import machine, write_table

    ways = {way: name for way, name in WAYS.items() if way != "llamafactory" or llamafactory}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        operations = needed(Path(name))
        for dtype in ("bf16", "fp32"):
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, results in found.items():
                    python = str(llamafactory) if way == "llamafactory" else sys.executable
                    command = [python, __file__, "--way", way, dtype, name]
                    done = subprocess.run(
                        command, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "off"}
                    )
                    if done.returncode:
                        raise SystemExit(f"{way} {dtype}: {done.stderr[-3000:]}")
                    results.append(json.loads(done.stdout.partition("RESULT ")[2].splitlines()[0]))
            medians = {
                way: {key: statistics.median(result[key] for result in results) for key in results[0]}
                for way, results in found.items()
            }
            speeds = {way: BATCH * BLOCK / median["step"] for way, median in medians.items()}
            ours = medians["zhllama"]
            for way, label in ways.items():
                ratio = speeds["zhllama"] / speeds[way]
                lean = ours["peak"] / medians[way]["peak"]
                rows.append(
                    [
                        dtype,
                        label,
                        f"{speeds[way]:.0f}",
                        f"{ratio:.2f}",
                        f"{medians[way]['peak']:.0f}",
                        f"{lean:.2f}",
                        f"{operations * speeds[way] / ours['flops']:.0%}",
                    ]
                )
            best = max(speed for way, speed in speeds.items() if way != "zhllama")
            smallest = min(median["peak"] for way, median in medians.items() if way != "zhllama")
            rows.append([dtype, "zhllama against the best of them", "", f"{speeds['zhllama'] / best:.2f}", "",
                         f"{ours['peak'] / smallest:.2f}", ""])  # fmt: skip
    header = [
        "precision",
        "way",
        "tokens/s",
        "zhllama is faster by",
        "peak MB above imports",
        "zhllama needs, as a share",
        "of the matmul peak",
    ]
    note = (
        f"{machine()}. {SHAPE['num_hidden_layers']} layers x {SHAPE['hidden_size']}, 55,296 rows, untied, LoRA rank "
        f"{RANK} on all linears; {BATCH} x {BLOCK} tokens a step, medians of {ROUNDS} runs of {STEPS - WARM} steps that "
        "take turns. Of the matmul peak: the operations that the run needs (new rows trained, nothing recomputed), as a "
        "share of what torch's best of six products of 768 x 768 reaches in the same precision. "
        "Targets: 1.3 times the best peer's tokens in bf16, 1.15 in fp32, 0.6 times the memory, 60% of the peak."
    )
    write_table("pretrain", header, rows, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        measure(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
