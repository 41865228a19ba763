"""Vocabulary extension on real tokenizers: guarantees, characters per token, what was tried, a gigabyte of text.

python benchmarks/tokenizer.py [guarantees] [density] [tries] [speed] [marks]     all five without a word

Needs ../shared/data (LLaMA's and Chinese-LLaMA's tokenizers, real texts), the packages of `make demo`, and
xllamacpp for llama.cpp. Tables are printed and written to benchmarks/results/tokenizer.md.
"""

from __future__ import annotations

import csv
import json
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import tokenizer_marks
import tokenizer_speed
import tokenizer_tries
from table import machine, write_table
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from zhllama.demo.material import news_paragraphs, write_base
from zhllama.tokenizer import check, llamacpp, write
from zhllama.tokenizer.alphabet import CJK_RUN
from zhllama.tokenizer.fuzz import mixed_texts, plain_texts
from zhllama.tokenizer.load import Loaded, load
from zhllama.tokenizer.measure import unreachable
from zhllama.tokenizer.merge import MergeTokenizerConfig, merge_tokenizer
from zhllama.tokenizer.train import TrainTokenizerConfig, train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
LLAMA, CHINESE = DATA / "llama-tokenizer.model", DATA / "chinese_sp.model"
SMOLLM2 = ROOT / "build" / "smollm2"
FUZZ = 20_000
SIZES = (17_953, 23_296)


def news() -> tuple[list[str], list[str]]:
    """People's Daily, January 1998, without repeated lines: the first half and the second."""
    lines = list(dict.fromkeys(news_paragraphs()))
    total, seen, at = sum(map(len, lines)), 0, 0
    while seen < total / 2:
        seen += len(lines[at])
        at += 1
    return lines[:at], lines[at:]


def alpaca(name: str = "zh") -> list[str]:
    rows = json.loads((DATA / f"alpaca_{name}_demo.json").read_text(encoding="utf-8"))
    return ["\n".join(filter(None, (row["instruction"], row["input"], row["output"]))) for row in rows]


def strings(value: object) -> list[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inside for text in strings(item)]


def data_texts() -> list[str]:
    """Every text of every file in shared/data: JSON values, cells of tables, lines."""
    texts: list[str] = []
    for file in sorted(DATA.iterdir()):
        if file.suffix == ".model":
            continue
        content = file.read_text(encoding="utf-8")
        try:
            texts += strings(json.loads(content))
        except json.JSONDecodeError:
            for line in content.splitlines():
                if file.suffix == ".csv":
                    texts += next(csv.reader([line]), [])
                else:
                    texts += strings(json.loads(line)) if line.startswith("{") else [line]
    return list(dict.fromkeys(filter(str.strip, texts)))


def code_texts() -> list[str]:
    """Python's standard library, a file a text."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [file.read_text(encoding="utf-8", errors="replace") for file in files]


@dataclass(frozen=True)
class Case:
    name: str
    base: Path
    directory: Path
    strict: bool = True


def prepare(folder: Path) -> list[Case]:
    """The merges to look at, made by the commands that users run."""
    train, _ = news()
    (folder / "news.txt").write_text("\n".join(train), encoding="utf-8")
    if not (SMOLLM2 / "tokenizer.json").is_file():
        SMOLLM2.mkdir(parents=True, exist_ok=True)
        write_base(SMOLLM2)
    own = {}
    for name, base in (("llama", LLAMA), ("smollm2", SMOLLM2)):
        own[name] = folder / f"{name}-own"
        train_tokenizer(TrainTokenizerConfig([str(folder / "news.txt")], str(own[name]), str(base), SIZES[0]))
    cases = [
        Case("LLaMA + chinese_sp.model", LLAMA, folder / "published"),
        Case("LLaMA + own training", LLAMA, folder / "llama"),
        Case("SmolLM2 + own training", SMOLLM2, folder / "smollm2"),
        Case("LLaMA + chinese_sp.model, policy union", LLAMA, folder / "union", strict=False),
    ]
    chinese = [CHINESE, own["llama"], own["smollm2"], CHINESE]
    for case, source in zip(cases, chinese, strict=True):
        policy = "lossless" if case.strict else "union"
        merge_tokenizer(MergeTokenizerConfig(str(case.base), str(source), str(case.directory), policy))  # type: ignore[arg-type]
    return cases


def guarantees(cases: Sequence[Case]) -> None:
    """What each merge does to pieces and texts; every number but the first two should be 0."""
    texts = data_texts()
    plain = [text for text in texts if not CJK_RUN.search(text)] + code_texts() + plain_texts(FUZZ)
    plain = [text for text in plain if not CJK_RUN.search(text)]
    rows = []
    for case in cases:
        base, new = load(case.base), load(case.directory)
        result = json.loads((case.directory / "run.json").read_text(encoding="utf-8"))["result"]
        first, count = result["first_new"], result["added"]
        pieces = [text for index in range(first, first + count) if (text := whole(new, index))]
        mixed = [text for text in texts if CJK_RUN.search(text)] + mixed_texts(pieces, FUZZ)
        every = plain + mixed
        original = base.fast if base.proto is None else write.sentencepiece_tokenizer(base.proto)
        rows.append(
            [
                case.name,
                f"{count:,}",
                f"{len(plain):,} / {len(mixed):,}",
                unreachable_in_each(new, range(first, first + count)),
                sum(1 for _ in check.changed_plain(original, new.fast, plain)),
                sum(1 for _ in check.changed_mixed(original, new.fast, mixed)),
                sum(1 for _ in check.undecodable(new.fast, every)),
                disagreements(new, case.directory, every),
            ]
        )
    header = ["merge", "pieces added", "texts without / with CJK", "unreachable: tokenizers / SentencePiece / llama.cpp",
              "texts without CJK that change", "mixed texts whose other tokens change", "not decoded to themselves",
              "other ids in SentencePiece / llama.cpp / transformers"]  # fmt: skip
    note = (
        f"{machine()}. Texts: every text in shared/data, Python's standard library, {FUZZ:,} fuzz texts without CJK and "
        f"{FUZZ:,} with. `-`: that runtime cannot read this kind of tokenizer."
    )
    write_table("tokenizer", header, rows, note)


def whole(loaded: Loaded, index: int) -> str:
    """The text of a piece, empty for the beginning of a character's bytes."""
    try:
        return loaded.piece_bytes(index).decode()
    except UnicodeDecodeError:
        return ""


def unreachable_in_each(new: Loaded, ids: range) -> str:
    texts = {index: text for index in ids if (text := whole(new, index))}
    counts: list[str] = [str(len(set(unreachable(new)) & set(texts.values())))]
    if new.proto is None:
        counts.append("-")
    else:
        processor = check.unprefixed(new.directory / "tokenizer.model")
        found = processor.encode(list(texts.values()))
        counts.append(str(sum(ids != [index] for index, ids in zip(texts, found, strict=True))))
    with llamacpp.opened(new, prefix=False) as runtime:
        found = runtime.encode(list(texts.values()))
    counts.append(str(sum(ids != [index] for index, ids in zip(texts, found, strict=True))))
    return " / ".join(counts)


def disagreements(new: Loaded, directory: Path, texts: list[str]) -> str:
    ours = [encoding.ids for encoding in new.fast.encode_batch_fast(texts, add_special_tokens=False)]

    def differ(theirs: list[list[int]]) -> str:
        return str(sum(left != right for left, right in zip(ours, theirs, strict=True)))

    counts = ["-"]
    if new.proto is not None:
        model = str(directory / "tokenizer.model")
        counts = [differ(sentencepiece.SentencePieceProcessor(model_file=model).encode(texts))]
    with llamacpp.opened(new) as runtime:
        counts.append(differ(runtime.encode(texts, special=True)))
    transformers = AutoTokenizer.from_pretrained(directory)
    counts.append(differ(transformers(texts, add_special_tokens=False)["input_ids"]))
    return " / ".join(counts)


def density(cases: Sequence[Case], folder: Path) -> None:
    """Characters per token of held-out news and alpaca_zh, trained on the first half of the news."""
    rows = []
    targets = {17_953: "1.545 / 1.545", 23_296: "1.588 / 1.575"}
    tests = (news()[1], alpaca())
    for name, base in (("LLaMA", LLAMA), ("SmolLM2", SMOLLM2)):
        rows.append([f"{name}, base", "", *ratios(load(base).fast, tests), ""])
        for size in SIZES:
            for lean in (True, False):
                output = folder / f"{name}-{size}-{lean}"
                config = TrainTokenizerConfig(
                    [str(folder / "news.txt")], str(output), str(base), size, lean_marks=lean
                )
                train_tokenizer(config)
                merged = folder / f"{name}-{size}-{lean}-merged"
                merge_tokenizer(MergeTokenizerConfig(str(base), str(output), str(merged)))
                label = "own training" if lean else "own training, lean_marks: false"
                target = targets[size] if name == "LLaMA" else ""
                rows.append([f"{name}, {label}", f"{size:,}", *ratios(load(merged).fast, tests), target])
    for case in (cases[0], cases[3]):
        pieces = json.loads((case.directory / "run.json").read_text(encoding="utf-8"))["result"]["added"]
        rows.append([case.name, f"{pieces:,}", *ratios(load(case.directory).fast, tests), ""])
    published = load(DATA / "chinese-llama2-tokenizer.model").fast
    rows.append(["Chinese-LLaMA-2 as published", "23,296", *ratios(published, tests), ""])
    header = ["characters per token", "pieces added", "held-out news", "alpaca_zh", "target"]
    note = (
        "Trained with the command's defaults on the first half of People's Daily (repeated lines removed), of which it "
        "holds out 2% itself. Published vocabularies were trained on a large web corpus. SmolLM2's pre-tokenizer cuts "
        "between marks and words, so marks cannot lean there."
    )
    write_table("tokenizer", header, rows, note, append=True)


def ratios(fast: Tokenizer, tests: Sequence[list[str]]) -> list[str]:
    found = []
    for texts in tests:
        encodings = fast.encode_batch_fast(texts, add_special_tokens=False)
        found.append(f"{sum(map(len, texts)) / sum(len(encoding.ids) for encoding in encodings):.3f}")
    return found


def main(parts: list[str]) -> None:
    parts = parts or ["guarantees", "density", "tries", "speed", "marks"]
    with tempfile.TemporaryDirectory() as name:
        cases = prepare(Path(name))
        if "guarantees" in parts:
            guarantees(cases)
        if "density" in parts:
            density(cases, Path(name))
        if "tries" in parts:
            tokenizer_tries.run(load(LLAMA), *news(), alpaca())
        if "speed" in parts:
            tokenizer_speed.run(LLAMA)
        if "marks" in parts:
            apart = Path(name) / "apart"
            train = TrainTokenizerConfig(
                [str(Path(name) / "news.txt")], f"{apart}-own", str(LLAMA), SIZES[0], lean_marks=False
            )
            train_tokenizer(train)
            merge_tokenizer(MergeTokenizerConfig(str(LLAMA), f"{apart}-own", str(apart)))
            merged = {"own training": cases[1].directory, "own training, lean_marks: false": apart}
            tokenizer_marks.run(merged, *news())


if __name__ == "__main__":
    main(sys.argv[1:])
