"""Instruction tuning against its peers: samples per second on a real mixture, and the loss packed and unpacked.

python benchmarks/sft.py [PYTHON]     PYTHON: the interpreter of an environment with trl in it

One model (12 layers x 576, random weights, Chinese-LLaMA-2's tokenizer of 55,296 pieces, untied), one mixture
(alpaca_zh, alpaca_en, pCLUE), the same token ids, LoRA and samples a step; each way trains one epoch in a process of
its own, the ways taking turns step by step. Needs ../shared/data.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
SHAPE = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 9,
         "num_key_value_heads": 3, "max_position_embeddings": 2048}  # fmt: skip
SAMPLES = int(os.environ.get("SAMPLES", "240"))
BLOCK = 1024
MICRO, ACCUMULATION = 8, 2  # 16 samples a step, padded
BLOCKS = 3  # of 1,024 tokens: about 17 samples a step, packed
ROUNDS = int(os.environ.get("ROUNDS", "3"))
RANK, ALPHA = 8, 16
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WAYS = {
    "zhllama": "zhllama, packed",
    "padded": "Trainer, padded collator, micro-batch 8 (alpaca-lora, BELLE)",
    "trl": "TRL SFTTrainer, packing",
}


def rows() -> list[dict[str, str]]:
    """The mixture's rows in Alpaca's form, shuffled."""

    def read(name: str) -> list[dict[str, Any]]:
        text = (DATA / name).read_text(encoding="utf-8-sig")
        return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]

    found = read("alpaca_zh_demo.json") + read("alpaca_en_demo.json")
    # pCLUE's input is the whole instruction.
    found += [{"instruction": row["input"], "output": row["target"]} for row in read("pCLUE_train_9.json")]
    random.Random(0).shuffle(found)
    return found


def prepare(folder: Path) -> None:
    """Model, mixture, and the ids and labels that every way is given."""
    import torch
    from sentencepiece import sentencepiece_model_pb2
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from zhllama.conversation.mixture import build_mixture
    from zhllama.conversation.settings import InstructionSource, MixtureSettings
    from zhllama.tokenizer import write

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString((DATA / "chinese-llama2-tokenizer.model").read_bytes())
    model = folder / "model"
    model.mkdir()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    settings = {**roles, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 2048}
    template = (ROOT / "zhllama" / "tokenizer" / "templates" / "alpaca_zh.jinja").read_text(encoding="utf-8")
    write.write_directory(model, write.sentencepiece_tokenizer(proto), proto, settings, template)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(proto.pieces), **SHAPE)).save_pretrained(model)
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(mixture: list[dict[str, str]]) -> Any:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in mixture]
        (folder / "mixture.jsonl").write_text("".join(lines), encoding="utf-8")
        source = InstructionSource(str(folder / "mixture.jsonl"))
        return build_mixture([source], MixtureSettings(similarity=1), tokenizer, BLOCK).samples

    chosen = rows()[:SAMPLES]
    samples = encode(chosen)
    ids = [{"input_ids": ids, "completion_mask": [int(flag) for flag in learnt]} for ids, learnt in samples]
    (folder / "ids.json").write_text(json.dumps(ids), encoding="utf-8")
    (folder / "facts.json").write_text(json.dumps(facts(samples)), encoding="utf-8")


def facts(samples: list[tuple[list[int], list[bool]]]) -> dict[str, float]:
    lengths = [len(ids) for ids, _ in samples]
    padded = sum(
        max(lengths[at : at + MICRO]) * len(lengths[at : at + MICRO]) for at in range(0, len(lengths), MICRO)
    )
    learnt = sum(sum(flags) for _, flags in samples)
    return {
        "samples": len(lengths),
        "mean": statistics.fmean(lengths),
        "waste": padded / sum(lengths),
        "learnt": learnt / sum(lengths),
    }


def arguments() -> dict[str, Any]:
    """Of transformers.TrainingArguments, the same for every way."""
    return {
        "num_train_epochs": 1,
        "learning_rate": 2e-4,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "warmup_steps": 0,
    }


def by_zhllama(folder: Path, output: Path) -> int:
    from zhllama.config import parse
    from zhllama.train.sft import SftConfig, sft

    flags = ["--model", str(folder / "model"), "--output", str(output), "--block-size", str(BLOCK)]
    flags += ["--progress.endings", "0"]
    flags += ["--data", json.dumps([{"file": str(folder / "mixture.jsonl")}])]
    flags += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    for name, value in (arguments() | {"per_device_train_batch_size": BLOCKS}).items():
        flags += [f"--train.{name}", str(value).lower()]
    sft(parse("sft", SftConfig, flags))
    return int(json.loads((output / "run.json").read_text(encoding="utf-8"))["result"]["blocks"])


def lora(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
    return get_peft_model(model, settings)


def by_padded(folder: Path, output: Path, ids: list[dict[str, list[int]]]) -> int:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer
    from transformers import TrainingArguments as Settings

    data = [{"input_ids": row["input_ids"], "labels": labels(row)} for row in ids]
    model = lora(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32))
    settings = Settings(str(output), per_device_train_batch_size=MICRO, gradient_accumulation_steps=ACCUMULATION,
                        **arguments())  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    collator = DataCollatorForSeq2Seq(
        tokenizer, pad_to_multiple_of=8, padding=True
    )  # as alpaca-lora's finetune.py
    Trainer(model, settings, data_collator=collator, train_dataset=data).train()
    return len(ids)


def labels(row: dict[str, list[int]]) -> list[int]:
    return [
        token if learnt else -100
        for token, learnt in zip(row["input_ids"], row["completion_mask"], strict=True)
    ]


def by_trl(folder: Path, output: Path, ids: list[dict[str, list[int]]]) -> int:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = lora(AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32))
    settings = SFTConfig(str(output), packing=True, max_length=BLOCK, per_device_train_batch_size=BLOCKS,
                         gradient_checkpointing=False, **arguments())  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    trainer = SFTTrainer(model, settings, train_dataset=Dataset.from_list(ids), processing_class=tokenizer)
    trainer.train()
    return len(trainer.train_dataset)


def train(way: str, folder: Path) -> None:
    """In a process of its own: a step at each line of input, at last how many blocks or rows there are."""
    from turns import done, take_turns

    take_turns()
    ids = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "run"
        if way == "zhllama":
            items = by_zhllama(folder, output)
        else:
            items = (by_padded if way == "padded" else by_trl)(folder, output, ids)
    done(items)


def measure(ways: dict[str, str], folder: str) -> dict[str, float]:
    """Samples a second of each way after its first step."""
    from turns import Run

    runs = {
        way: Run([python, __file__, "--way", way, folder], Path(folder) / f"{way}.log")
        for way, python in ways.items()
    }
    while any(run.result is None for run in runs.values()):
        for run in runs.values():
            run.step()
        print(*(f"{len(run.steps)}: {run.steps[-1]:.2f}" for run in runs.values()), flush=True)
    samples = json.loads((Path(folder) / "facts.json").read_text(encoding="utf-8"))["samples"]
    speeds = {}
    for way, run in runs.items():
        each = MICRO * ACCUMULATION if way == "padded" else BLOCKS
        speeds[way] = samples * (run.result - each) / run.result / sum(run.steps[1:])
    return speeds


def losses(folder: Path) -> tuple[float, float]:
    """Loss per reply token in float32: packed by us, and by plain transformers and peft, one sample at a time."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from zhllama.config import parse
    from zhllama.model.adapter import load_adapter
    from zhllama.model.directory import ModelDirectory
    from zhllama.model.run_directory import RunDirectory
    from zhllama.model.trainable import load_trainable
    from zhllama.pack.conversations import pack_conversations
    from zhllama.train.sft import SftConfig, sft

    run = folder / "run"
    flags = ["--model", str(folder / "model"), "--output", str(run), "--block-size", str(BLOCK)]
    flags += ["--progress.endings", "0"]
    flags += ["--data", json.dumps([{"file": str(folder / "mixture.jsonl")}])]
    flags += ["--lora.rank", str(RANK), "--lora.alpha", str(ALPHA)]
    for name, value in (arguments() | {"max_steps": 3, "per_device_train_batch_size": BLOCKS}).items():
        flags += [f"--train.{name}", str(value).lower()]
    sft(parse("sft", SftConfig, flags))

    rows = json.loads((folder / "ids.json").read_text(encoding="utf-8"))
    parts = RunDirectory.open(run).parts
    ours = load_trainable(ModelDirectory.open(folder / "model"), parts, torch.float32)
    load_adapter(ours.trainable(), run)
    ours.eval()
    blocks = pack_conversations(
        [(row["input_ids"], [bool(flag) for flag in row["completion_mask"]]) for row in rows], BLOCK, 0
    )
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder / "model"), run).eval()
    tokens, packed, alone = 0, 0.0, 0.0
    with torch.no_grad():
        for block in range(len(blocks)):
            batch = {key: value[None] for key, value in blocks[block].items()}
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            packed += float(ours(**batch, num_items_in_batch=1)["loss"])
        for row in rows:
            loss = plain(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([labels(row)])).loss
            alone += float(loss) * sum(row["completion_mask"][1:])
    assert tokens == sum(sum(row["completion_mask"][1:]) for row in rows)
    return packed / tokens, alone / tokens


def main(trl: str | None) -> None:
    from table import machine, write_table

    ways = dict.fromkeys(WAYS, sys.executable)
    if trl:
        ways["trl"] = trl
    else:
        del ways["trl"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        rounds = [measure(ways, name) for _ in range(ROUNDS)]
        packed, alone = losses(folder)
        about = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    table: list[list[object]] = []
    for way in ways:
        ratio = statistics.median(speeds["zhllama"] / speeds[way] for speeds in rounds)
        table.append(
            [WAYS[way], f"{statistics.median(speeds[way] for speeds in rounds):.2f}", f"{ratio:.2f}"]
        )
    table.append(["loss per reply token: zhllama packed, transformers + peft one sample at a time",
                  f"{packed:.6f}, {alone:.6f}", f"differ by {abs(packed - alone):.1e}"])  # fmt: skip
    note = (
        f"{machine()}. {SHAPE['num_hidden_layers']} layers x {SHAPE['hidden_size']}, 55,296 rows, untied, float32, LoRA "
        f"rank {RANK} on all linears. {about['samples']:.0f} rows of alpaca_zh, alpaca_en and pCLUE, "
        f"{about['mean']:.0f} tokens a sample, {about['learnt']:.0%} of them learnt; padding to the longest of {MICRO} "
        f"costs {about['waste']:.2f} times the tokens. {MICRO * ACCUMULATION} samples a step padded, {BLOCKS} blocks of "
        f"{BLOCK:,} packed; one epoch without its first step, {ROUNDS} times: median speed, median of the ratios. The "
        "pCLUE rows were turned into Alpaca's form here. Targets: 2.5 times the padded collator, 1.3 times TRL, losses "
        "within 1e-4."
    )
    write_table("sft", ["way", "samples/s", "zhllama is faster by"], table, note)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        train(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else None)
