"""The proof that masks, template and EOS agree: 64 instructions learnt by heart come back word for word."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from zhllama.artifact import read_record
from zhllama.cli import main

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture
def rows(chinese_text: str) -> list[dict[str, str]]:
    """64 questions, each with a reply of its own out of the news; every fourth has an input."""
    replies = list(dict.fromkeys(re.findall("[一-鿿]{4,9}。", chinese_text)))[:64]
    return [
        {"instruction": f"第{number}题", "input": "请回答" if number % 4 == 0 else "", "output": reply}
        for number, reply in enumerate(replies)
    ]


@pytest.mark.slow
def test_64_instructions_learnt_by_heart_are_answered_exactly(
    tmp_path: Path, model_dirs: dict[str, Path], kind: str, rows: list[dict[str, str]], toy: list[str]
) -> None:
    base = tmp_path / "base"
    tokenizer = AutoTokenizer.from_pretrained(model_dirs[kind])
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(model_dirs[kind], **SHAPE)
    LlamaForCausalLM(config).save_pretrained(base)
    data = tmp_path / "rows.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    data.write_text("".join(lines), encoding="utf-8")

    settings = ["--embeddings", "all", "--block-size", "256", "--train.per-device-train-batch-size", "2"]
    settings += ["--train.num-train-epochs", "70", "--train.learning-rate", "3e-3", "--lora.rank", "32"]
    settings += ["--body", "full"] if kind == "bytelevel" else []  # both ways to train
    settings += ["--train.save-strategy", "no", "--train.lr-scheduler-type", "cosine"]
    source = json.dumps([{"file": str(data)}])
    run, merged, answers = tmp_path / "run", tmp_path / "merged", tmp_path / "answers"
    main(["sft", "--model", str(base), "--data", source, "--output", str(run), *toy, *settings])
    assert read_record(run)["result"]["endings"]["ended"] == 8
    main(["merge-adapter", "--adapter", str(run), "--output", str(merged)])

    asked = ["--input", str(data), "--repetition-penalty", "1", "--max-new-tokens", "60"]
    main(["chat", "--model", str(merged), "--output", str(answers), *asked])
    found = [
        json.loads(line) for line in (answers / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [row["messages"][-1]["content"] for row in found] == [row["output"] for row in rows]
    assert {row["ended"] for row in found} == {"eos"}

    copy = tmp_path / "copy"
    model = AutoModelForCausalLM.from_pretrained(merged)
    model.save_pretrained(copy)
    AutoTokenizer.from_pretrained(merged).save_pretrained(copy)
    for directory in (merged, copy):  # plain transformers, and after saving and loading again
        assert by_transformers(directory, rows) == [row["output"] for row in rows]


def by_transformers(directory: Path, rows: list[dict[str, str]]) -> list[str]:
    """The replies that nothing but transformers gives, one prompt at a time, with its own defaults for stopping."""
    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModelForCausalLM.from_pretrained(directory),
    )
    replies = []
    for row in rows:
        request = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        output = model.generate(ids, max_new_tokens=60, do_sample=False, attention_mask=torch.ones_like(ids))
        replies.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return replies
