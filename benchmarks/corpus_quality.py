"""What `zhllama clean` keeps of prose, and finds of spam and boilerplate put into it."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from corpus_boilerplate import SITES, boilerplate
from corpus_spam import WORDS, spam
from table import write_table

from zhllama.demo.material import news

SEED = 7  # the rules were written while looking at 1 and 6
EACH, COPIES = 200, 20
LINES, PAGES = 1000, 20
ALONE = ("--deduplicate", "false", "--shard-megabytes", "1")


def cleaned(texts: list[str], folder: Path, *flags: str) -> tuple[dict[int, str], dict[str, Any]]:
    """What `zhllama clean` keeps, by the texts' numbers, and the result in its run.json."""
    file = folder / "in.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    command = ["clean", "--corpus", str(file), "--output", str(folder / "out"), "--privacy", "keep", *flags]
    subprocess.run([sys.executable, "-m", "zhllama", *command], check=True, capture_output=True)
    rows = [
        json.loads(line) for part in (folder / "out").glob("*.jsonl") for line in part.open(encoding="utf-8")
    ]
    result = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))["result"]
    shutil.rmtree(folder / "out")
    return {int(row["id"].rpartition(":")[2]) - 1: row["text"] for row in rows}, result


def is_prose(text: str) -> bool:
    """20 characters or more and an end of a sentence in every 200: not a title, a table, a list, a poem."""
    return len(text) >= 20 and 200 * len(re.findall("[。！？]", text)) >= len(text)


def prose(folder: Path) -> None:
    """Which articles are lost to the rules, prose and others apart; duplicates are not removed."""
    articles = news()
    rows = []
    for name, wanted in (("prose", True), ("titles, lists, tables, verse", False)):
        texts = [text for text in articles if is_prose(text) == wanted]
        kept, result = cleaned(texts, folder, *ALONE)
        characters, stay = sum(map(len, texts)), sum(len(texts[number]) for number in kept)
        lost = ", ".join(f"{count} {reason}" for reason, count in result["dropped"].items())
        shares = [f"{len(kept) / len(texts):.2%}", f"{stay / characters:.2%}"]
        rows.append([name, f"{len(texts):,}", f"{characters:,}", *shares, lost])
    write_table(
        "corpus",
        ["People's Daily", "articles", "characters", "articles kept", "characters kept", "dropped"],
        rows,
        "`zhllama clean` with its defaults, but duplicates stay: a second copy is no lost prose. Prose here: 20 "
        "characters or more with 。！ or ？ in every 200; the others are not meant to be kept or dropped.",
        append=True,
    )


def caught(folder: Path) -> None:
    """How many documents of each kind of spam are dropped among articles, without and with a list of words."""
    articles = news()
    made = spam(SEED, EACH, COPIES)
    texts = [("", article) for article in articles] + made
    random.Random(SEED).shuffle(texts)
    listed = folder / "words.txt"
    listed.write_text("\n".join(WORDS.split()) + "\n", encoding="utf-8")
    words = ("--words", str(listed), "--max-words", "1")
    found, reasons = [], []
    for flags in ((), words):
        left, _ = cleaned([text for _, text in texts], folder, *flags)
        found.append(Counter(kind for number, (kind, _) in enumerate(texts) if number not in left))
    for flags in ((), words):
        reasons.append(len(cleaned(articles, folder, *ALONE, *flags)[0]))
    injected = Counter(kind for kind, _ in made)
    rows = [
        [kind, count, *(f"{hits[kind]} ({hits[kind] / count:.1%})" for hits in found)]
        for kind, count in injected.items()
    ]
    total = [sum(hits[kind] for kind in injected) for hits in found]
    rows.append(["all", len(made), *(f"{hits} ({hits / len(made):.1%})" for hits in total)])
    write_table(
        "corpus",
        ["spam", "injected", "dropped by default", "dropped with --words"],
        rows,
        f"Among {len(articles):,} articles of People's Daily, at random places; made from real words, titles and "
        f"texts, with another seed than the rules were written with. The list has {len(WORDS.split())} words, such as "
        f"a user writes down after reading some of the adverts; --max-words 1; it costs {reasons[0] - reasons[1]} "
        f"articles. Of {COPIES} copies of one advert with other names and numbers one may stay.",
        append=True,
    )


def removed(folder: Path) -> None:
    """How many injected lines `--boilerplate` removes of each kind, and which lines of articles with them."""
    articles = [article for article in news() if len(article) >= 100]
    source = random.Random(SEED)
    lines = boilerplate(SEED, LINES)
    source.shuffle(lines)
    pages: list[tuple[list[tuple[str, str]], list[str]]] = [([], text.split("\n")) for text in articles]
    texts = []
    for kind, line in lines:
        source.choice(pages)[0].append((kind, line))
    for own, body in pages:
        edge = source.randint(0, len(own))
        texts.append("\n".join([line for _, line in own[:edge]] + body + [line for _, line in own[edge:]]))
    flags = (*ALONE, "--boilerplate", str(PAGES))
    plain, _ = cleaned(articles, folder, *flags)
    left, _ = cleaned(texts, folder, *flags)
    found, injected = Counter[str](), Counter(kind for kind, _ in lines)
    lost = 0
    for number, (own, _) in enumerate(pages):
        after = Counter(left.get(number, "").split("\n"))
        found.update(kind for kind, line in own if not after[line])
        lost += (Counter(plain.get(number, "").split("\n")) - after).total()
    itself = sum(
        text.count("\n") - plain[number].count("\n")
        for number, text in enumerate(articles)
        if number in plain
    )
    rows = [[kind, count, found[kind], f"{found[kind] / count:.1%}"] for kind, count in injected.items()]
    rows = sorted(rows, key=lambda row: row[0])
    rows.append(["all", len(lines), found.total(), f"{found.total() / len(lines):.1%}"])
    whole = sum(article.count("\n") + 1 for article in articles)
    write_table(
        "corpus",
        ["boilerplate", "lines injected", "removed", "share"],
        rows,
        f"`--boilerplate {PAGES}`: lines at the top and the bottom of {len(articles):,} articles, {LINES} of each kind, "
        f"from {SITES} sites with a wording of their own, each time with another date, number, name or title. Of the "
        f"articles' own {whole:,} lines {lost} are lost by it, most in short articles that such "
        f"lines outweigh and that fall as lists; without what was injected the setting removes {itself}. "
        f"What stays of editors' names stands behind labels that `clean` does not know (值班主任, 摄影).",
        append=True,
    )


def quality() -> None:
    """Append the three tables."""
    with tempfile.TemporaryDirectory() as name:
        prose(Path(name))
        caught(Path(name))
        removed(Path(name))
