"""tokenizer-report: compare any tokenizers on the user's own text, and say whether an extension pays."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from tokenizers import Tokenizer

from zhllama.artifact import create, write_json
from zhllama.config import UserError, split_pair
from zhllama.corpus.read import read_documents
from zhllama.page import Page, bar_plot, line_plot
from zhllama.terminal import print_table, say, track, warn
from zhllama.tokenizer.alphabet import CJK_RUN, HAN
from zhllama.tokenizer.check import outside_cjk
from zhllama.tokenizer.load import Loaded, load, token_bytes

MOST_CHARACTERS = 5_000_000  # per text: more does not move a ratio
JIEBA_CHARACTERS = 200_000  # jieba cuts about 0.3 million characters a second
RARE = 5
SAME_BASE = 0.9  # share of equal ids from which drift means something
# Where a token already carries this many characters of Chinese, an extension cannot shorten text much.
ENOUGH = 1.2
MOSTLY_CHINESE = 0.5


@dataclass
class TokenizerReportConfig:
    """Compare tokenizers on your own text."""

    tokenizer: list[str]
    """Tokenizer or model directory, .model or tokenizer.json (repeatable); the first is the one to beat."""
    text: list[str]
    """name=FILE of a .txt, .jsonl or .parquet file (repeatable)."""
    output: str
    """Directory for report.json and report.html."""
    hidden: int = 4096
    """Width of the model, for the size of its embedding."""

    def __post_init__(self) -> None:
        if not self.tokenizer:
            raise UserError("--tokenizer: give at least one tokenizer directory or file")
        if not self.text:
            raise UserError("--text: give at least one text as name=FILE, for example --text news=news.txt")
        if self.hidden < 1:
            raise UserError(f"--hidden {self.hidden}: must be at least 1")


@dataclass
class Measured:
    """One tokenizer on all texts; dictionaries are keyed by the texts' names."""

    characters_per_token: dict[str, float | None] = field(default_factory=dict)
    bytes_per_token: dict[str, float | None] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    vocabulary: int = 0
    embedding_megabytes: float = 0.0
    rare_share: float = 0.0
    """Share of the pieces that occur fewer than 5 times on all texts."""
    drift: float | None = None
    """Share of the lines without CJK that the first tokenizer cuts differently."""
    megabytes_per_second: float = 0.0
    tokens_per_word: float | None = None
    """Tokens per jieba word of Chinese."""


def tokenizer_report(config: TokenizerReportConfig) -> None:
    """Measure, print a table, and write report.json and report.html.

    Raises:
        UserError: no or unreadable tokenizers or texts, or a name used twice.
    """
    loaded = _named_tokenizers(config.tokenizer)
    texts: dict[str, list[str]] = {}
    files: dict[str, str | Path] = {}
    for value in config.text:
        name, file = split_pair(value, "--text")
        if name in texts:
            raise UserError(f"--text {value}: the name {name!r} is used twice")
        files[name], texts[name] = file, read_lines(file)
    inputs = files | {name: tokenizer.file for name, tokenizer in loaded.items()}
    with create(config.output, "report", "tokenizer-report", config, inputs) as artifact:
        first = next(iter(loaded.values())).fast
        words = chinese_words(texts)
        measured = {
            name: measure(tokenizer.fast, first, texts, words, config.hidden)
            for name, tokenizer in track(list(loaded.items()), "measuring")
        }
        verdict = judge(measured, texts)
        artifact.result |= {
            "tokenizers": {name: vars(values) for name, values in measured.items()},
            "chinese_share": {name: round(chinese_share(lines), 4) for name, lines in texts.items()},
            "verdict": verdict,
        }
        write_json(artifact.path / "report.json", artifact.result)
        _write_page(artifact.path / "report.html", loaded, measured, texts, verdict)
    print_table("tokenizers", *_table(measured, list(texts)))
    say(verdict)
    say(f"plots: {Path(config.output) / 'report.html'}")


def read_lines(file: Path) -> list[str]:
    """The lines of a text file's documents, up to a size beyond which nothing changes."""
    lines: list[str] = []
    characters = 0
    for document in read_documents(file):
        lines += [line for line in document.splitlines() if line.strip()]
        characters += len(document)
        if characters > MOST_CHARACTERS:
            warn(f"{file}: measured on its first {characters:,} characters")
            break
    return lines


def chinese_share(lines: list[str]) -> float:
    """Share of the characters, spaces left out, that are CJK."""
    text = "".join("".join(line.split()) for line in lines)
    return sum(map(len, CJK_RUN.findall(text))) / max(len(text), 1)


def chinese_words(texts: dict[str, list[str]]) -> tuple[list[str], int]:
    """Lines with Chinese, up to what jieba cuts quickly, and how many jieba words their CJK runs are."""
    import jieba

    jieba.setLogLevel("WARNING")
    lines: list[str] = []
    words, left = 0, JIEBA_CHARACTERS
    for line in (line for lines in texts.values() for line in lines if HAN.search(line)):
        if left <= 0:
            break
        lines.append(line)
        words += sum(len(jieba.lcut(run)) for run in CJK_RUN.findall(line))
        left -= len(line)
    return lines, words


def measure(
    fast: Tokenizer, first: Tokenizer, texts: dict[str, list[str]], words: tuple[list[str], int], hidden: int
) -> Measured:
    """One tokenizer's numbers; `first` is the one that drift is measured against."""
    result = Measured()
    counts: Counter[int] = Counter()
    seconds, size = 0.0, 0
    for name, lines in texts.items():
        begun = time.perf_counter()
        encodings = fast.encode_batch_fast(lines, add_special_tokens=False)
        seconds += time.perf_counter() - begun
        for encoding in encodings:
            counts.update(encoding.ids)
        tokens = sum(len(encoding.ids) for encoding in encodings)
        bytes_here = sum(len(line.encode()) for line in lines)
        result.tokens[name] = tokens
        result.characters_per_token[name] = sum(map(len, lines)) / tokens if tokens else None
        result.bytes_per_token[name] = bytes_here / tokens if tokens else None
        size += bytes_here
    result.vocabulary = fast.get_vocab_size(with_added_tokens=True)
    result.embedding_megabytes = result.vocabulary * hidden * 2 / 1e6
    pieces = token_bytes(fast).nonzero()[0].tolist()
    result.rare_share = sum(counts[index] < RARE for index in pieces) / max(len(pieces), 1)
    result.drift = drift(fast, first, [line for lines in texts.values() for line in lines])
    result.megabytes_per_second = size / 1e6 / max(seconds, 1e-9)
    lines, cut = words
    if cut:
        encoded = zip(lines, fast.encode_batch(lines, add_special_tokens=False), strict=True)
        inside = sum(len(encoding.ids) - len(outside_cjk(line, encoding)) for line, encoding in encoded)
        result.tokens_per_word = inside / cut
    return result


def drift(fast: Tokenizer, first: Tokenizer, lines: list[str]) -> float | None:
    """Share of the lines without CJK whose tokens differ; None without such lines, or with other base ids."""
    ids = range(first.get_vocab_size())
    if sum(first.id_to_token(index) == fast.id_to_token(index) for index in ids) < SAME_BASE * len(ids):
        return None
    plain = [line for line in lines if not CJK_RUN.search(line)]
    before = first.encode_batch_fast(plain, add_special_tokens=False)
    after = fast.encode_batch_fast(plain, add_special_tokens=False)
    changed = sum(left.ids != right.ids for left, right in zip(before, after, strict=True))
    return changed / len(plain) if plain else None


def judge(measured: dict[str, Measured], texts: dict[str, list[str]]) -> str:
    """A plain sentence on whether extending the first tokenizer pays on these texts."""
    share = chinese_share([line for lines in texts.values() for line in lines])
    chinese = [name for name, lines in texts.items() if chinese_share(lines) > MOSTLY_CHINESE]
    if share < MOSTLY_CHINESE or not chinese:
        return (
            f"Do not extend: {share:.0%} of these characters are Chinese, too few for new pieces to be used."
        )
    totals = {name: sum(values.tokens[text] for text in chinese) for name, values in measured.items()}
    characters = sum(len(line) for text in chinese for line in texts[text])
    first, *others = totals
    density = characters / max(totals[first], 1)
    if density >= ENOUGH:
        return (
            f"Do not extend: {first} already carries {density:.2f} characters per token of Chinese, and "
            "new rows have to be learned."
        )
    verdict = f"Extending pays: {first} carries only {density:.2f} characters per token of Chinese"
    if others:
        best = min(others, key=lambda name: totals[name])
        verdict += f"; {best} needs {1 - totals[best] / max(totals[first], 1):.0%} fewer tokens"
    return verdict + ". With little text to pretrain on, keep an unextended model to compare."


def coverage(fast: Tokenizer, lines: list[str], points: int = 100) -> tuple[list[float], list[float]]:
    """How many of the most frequent tokens make which share of a text."""
    counts: Counter[int] = Counter()
    for encoding in fast.encode_batch_fast(lines, add_special_tokens=False):
        counts.update(encoding.ids)
    total = max(counts.total(), 1)
    reached = list(accumulate(count for _, count in counts.most_common()))
    step = max(len(reached) // points, 1)
    places = sorted({*range(0, len(reached), step), len(reached) - 1})
    return [place + 1.0 for place in places if reached], [
        reached[place] / total for place in places if reached
    ]


def _named_tokenizers(paths: list[str]) -> dict[str, Loaded]:
    names = [Path(path).name for path in paths]
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        raise UserError(f"--tokenizer {repeated[0]}: given twice")
    return {
        path if names.count(name) > 1 else name: load(path) for name, path in zip(names, paths, strict=True)
    }


def _table(measured: dict[str, Measured], texts: list[str]) -> tuple[list[str], list[list[object]]]:
    header = ["", *measured]
    rows: list[list[object]] = []
    for text in texts:
        rows.append(
            [f"characters per token: {text}", *(m.characters_per_token[text] for m in measured.values())]
        )
        rows.append([f"bytes per token: {text}", *(m.bytes_per_token[text] for m in measured.values())])
    labels = {
        "vocabulary": "vocabulary",
        "embedding_megabytes": "embedding in bf16, MB",
        "rare_share": f"share of pieces seen < {RARE} times",
        "drift": "share of lines without CJK that change",
        "tokens_per_word": "tokens per jieba word",
        "megabytes_per_second": "encoding speed, MB/s",
    }
    rows += [[label, *(getattr(m, name) for m in measured.values())] for name, label in labels.items()]
    return header, rows


def _write_page(
    path: Path,
    loaded: dict[str, Loaded],
    measured: dict[str, Measured],
    texts: dict[str, list[str]],
    verdict: str,
) -> None:
    page = Page("Tokenizers compared")
    page.paragraph(verdict)
    page.table(*_table(measured, list(texts)))
    page.heading("Characters per token")
    series = {name: [m.characters_per_token[text] for text in texts] for name, m in measured.items()}
    page.figure(
        bar_plot(list(texts), series, "characters per token", "More is better: fewer tokens per text")
    )
    chinese = [line for lines in texts.values() for line in lines if HAN.search(line)]
    if chinese:
        page.heading("How much of the vocabulary Chinese text uses")
        curves = {name: coverage(tokenizer.fast, chinese) for name, tokenizer in loaded.items()}
        title = "Tokens of the lines with Chinese that the most frequent pieces make"
        page.figure(line_plot(curves, "most frequent pieces", "share of tokens", title))
    page.heading("The same sentences")
    samples = [line[:60] for line in chinese if len(line) >= 20][:3] or [line[:60] for line in chinese[:3]]
    for sample in samples or [line[:80] for lines in texts.values() for line in lines][:3]:
        for name, tokenizer in loaded.items():
            ids = tokenizer.fast.encode(sample, add_special_tokens=False).ids
            # One token at a time; the bytes of a character that has several tokens show as a dot.
            shown = [tokenizer.fast.decode([index]).replace("\ufffd", "·") or "␣" for index in ids]
            page.segmentation(name, shown)
    page.write(path)
