"""tokenizer-report: compare any tokenizers on the user's own text, and say whether an extension pays."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhllama.artifact import create, write_json
from zhllama.config import UserError, split_pair
from zhllama.corpus.han import HAN
from zhllama.corpus.read import read_documents
from zhllama.page import Page, bar_plot, line_plot
from zhllama.terminal import print_table, say, track, warn
from zhllama.tokenizer import write
from zhllama.tokenizer.curves import Curve, draw_curves, knee, with_knees
from zhllama.tokenizer.load import Loaded, load
from zhllama.tokenizer.measure import (
    LANGUAGES,
    MODEL_WIDTH,
    MOSTLY_CHINESE,
    Measured,
    Texts,
    chinese_share,
    chinese_words,
    measure,
)

MOST_CHARACTERS = 5_000_000  # per text: more does not move a ratio
# Where a token already carries this many characters of Chinese, an extension cannot shorten text much.
ENOUGH = 1.2
FEW = 0.1  # share of Chinese in all texts below which nobody notices an extension


@dataclass
class TokenizerReportConfig:
    """Compare tokenizers on your own text."""

    tokenizer: list[str]
    """Tokenizer or model directory, .model or tokenizer.json (repeatable); the first is the one to beat."""
    text: list[str]
    """Text to measure as name=FILE of a .txt, .jsonl or .parquet file (repeatable)."""
    output: str
    """Directory for report.json and report.html."""
    hidden: int | None = None
    """Width of the model, for the size of its embedding; without it the config.json beside a tokenizer says it."""
    rare: int = 5
    """Pieces seen fewer times than this on all texts count as rare: their rows would hardly be trained."""

    def __post_init__(self) -> None:
        if not self.tokenizer:
            raise UserError("--tokenizer: give at least one tokenizer directory or file")
        if not self.text:
            raise UserError("--text: give at least one text as name=FILE, for example --text news=news.txt")
        if self.hidden is not None and self.hidden < 1:
            raise UserError(f"--hidden {self.hidden}: must be at least 1")
        if self.rare < 1:
            raise UserError(f"--rare {self.rare}: must be at least 1")


def tokenizer_report(config: TokenizerReportConfig) -> None:
    """Measure, print a table, and write report.json and report.html.

    Raises:
        UserError: no or unreadable tokenizers or texts, or a name used twice.
    """
    loaded = _named_tokenizers(config.tokenizer)
    lines: dict[str, list[str]] = {}
    files: dict[str, str | Path] = {}
    for value in config.text:
        name, file = split_pair(value, "--text")
        if name in lines:
            raise UserError(f"--text {value}: the name {name!r} is used twice")
        files[name], lines[name] = file, read_lines(file)
    inputs = files | {name: tokenizer.file for name, tokenizer in loaded.items()}
    with create(config.output, "report", "tokenizer-report", config, inputs) as artifact:
        # The one to beat: drift, the model's width and the gain are measured from it.
        first = next(iter(loaded.values()))
        everything = [line for own in lines.values() for line in own]
        texts = Texts(lines, chinese_words(everything), config.rare)
        widths = {name: model_width(tokenizer, first, config.hidden) for name, tokenizer in loaded.items()}
        measured = {
            name: measure(tokenizer, first.fast, texts, widths[name])
            for name, tokenizer in track(list(loaded.items()), "measuring")
        }
        curves = draw_curves(loaded, everything)
        verdict = judge(measured, lines)
        artifact.result |= {
            "tokenizers": {name: vars(values) for name, values in measured.items()},
            "chinese_share": {name: round(chinese_share(own), 4) for name, own in lines.items()},
            "knees": {
                title: {name: knee(*curve) for name, curve in own.items()} for title, own in curves.items()
            },
            "verdict": verdict,
        }
        write_json(artifact.path / "report.json", artifact.result)
        table = _table(measured, list(lines), config.rare)
        _write_page(artifact.path / "report.html", loaded, table, curves, lines, verdict)
    print_table("tokenizers", *table)
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


def model_width(loaded: Loaded, first: Loaded, hidden: int | None) -> tuple[int, int]:
    """Numbers in a row of the embedding, and how many embeddings there are: 2 where the output rows are others.

    From --hidden, the config.json beside the tokenizer or beside the first one, or else LLaMA-7B's width.
    """
    settings = _model_settings(loaded) or _model_settings(first)
    width = hidden or settings.get("hidden_size") or MODEL_WIDTH
    # Tied is transformers' default, so a config.json that does not mention it means that.
    return int(width), 1 if settings.get("tie_word_embeddings", True) else 2


def judge(measured: dict[str, Measured], texts: dict[str, list[str]]) -> str:
    """A plain sentence on whether extending the first tokenizer pays on these texts."""
    share = chinese_share([line for lines in texts.values() for line in lines])
    chinese = [name for name, lines in texts.items() if chinese_share(lines) > MOSTLY_CHINESE]
    if not chinese or share < FEW:
        return (
            f"Do not extend: {share:.0%} of these characters are Chinese, too few for new pieces to be used."
        )
    # Chinese texts alone: an extension cannot shorten the others, which would water the gain down.
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


def _model_settings(loaded: Loaded) -> dict[str, Any]:
    return write.read_json(loaded.directory / "config.json")


def _named_tokenizers(paths: list[str]) -> dict[str, Loaded]:
    names = [Path(path).name for path in paths]
    if repeated := [path for path, count in Counter(paths).items() if count > 1]:
        raise UserError(f"--tokenizer {repeated[0]}: given twice")
    return {
        # Two models in folders of one name are told apart by their paths.
        path if names.count(name) > 1 else name: load(path)
        for name, path in zip(names, paths, strict=True)
    }


def _table(
    measured: dict[str, Measured], texts: list[str], rare: int
) -> tuple[list[str], list[list[object]]]:
    header = ["", *measured]
    rows: list[list[object]] = []

    def add(label: str, values: list[object]) -> None:
        # A row in which no tokenizer has a figure says nothing.
        if any(value is not None for value in values):
            rows.append([label, *values])

    every = list(measured.values())
    for text in texts:
        add(f"characters per token: {text}", [m.characters_per_token[text] for m in every])
        add(f"bytes per token: {text}", [m.bytes_per_token[text] for m in every])
    for kind in LANGUAGES:
        add(f"characters per token: {kind} lines", [m.language_characters_per_token[kind] for m in every])
        add(f"bytes per token: {kind} lines", [m.language_bytes_per_token[kind] for m in every])
    for text in texts:
        add(f"share of lines without CJK that change: {text}", [m.drift_by_text[text] for m in every])
    labels = {
        "vocabulary": "vocabulary",
        "embedding_megabytes": "embedding in bf16, MB",
        "unreachable": "Chinese pieces never produced",
        "rare": f"pieces seen < {rare} times",
        "rare_share": f"share of pieces seen < {rare} times",
        "drift": "share of lines without CJK that change",
        "tokens_per_word": "tokens per jieba word",
        "megabytes_per_second": "encoding speed, MB/s",
    }
    for name, label in labels.items():
        add(label, [getattr(m, name) for m in every])
    for runtime in every[0].disagreements:
        add(f"lines where {runtime} differs", [m.disagreements[runtime] for m in every])
    return header, rows


def _write_page(
    path: Path,
    loaded: dict[str, Loaded],
    table: tuple[list[str], list[list[object]]],
    curves: dict[str, dict[str, Curve]],
    texts: dict[str, list[str]],
    verdict: str,
) -> None:
    page = Page("Tokenizers compared")
    page.paragraph(verdict)
    page.heading("Characters per token")
    labels = {f"characters per token: {text}": text for text in texts}
    cells = {labels[str(row[0])]: row[1:] for row in table[1] if row[0] in labels}
    series = {
        name: [cells[text][place] if text in cells else None for text in texts]
        for place, name in enumerate(loaded)
    }
    page.figure(
        bar_plot(list(texts), series, "characters per token", "More is better: fewer tokens per text")  # type: ignore[arg-type]
    )
    page.table(*table)
    _add_curves(page, curves)
    page.heading("The same sentences")
    for sample in sample_sentences(texts):
        for name, tokenizer in loaded.items():
            ids = tokenizer.fast.encode(sample, add_special_tokens=False).ids
            # One token at a time; the bytes of a character that has several tokens show as a dot.
            shown = [tokenizer.fast.decode([index]).replace("\ufffd", "·") or "␣" for index in ids]
            page.segmentation(name, shown)
    page.write(path)


def _add_curves(page: Page, curves: dict[str, dict[str, Curve]]) -> None:
    if curves.get("growth"):
        page.heading("How many pieces are worth adding")
        title = "Lines with Chinese, with so many of the added pieces; the ring marks the knee"
        page.figure(
            with_knees(
                line_plot(curves["growth"], "pieces added", "characters per token", title), curves["growth"]
            )
        )
    if curves.get("coverage"):
        page.heading("How much of the vocabulary Chinese text uses")
        title = "Tokens of the lines with Chinese that the most frequent pieces make; the ring marks the knee"
        page.figure(
            with_knees(
                line_plot(curves["coverage"], "most frequent pieces", "share of tokens", title),
                curves["coverage"],
            )
        )


def sample_sentences(texts: dict[str, list[str]], most: int = 4) -> list[str]:
    """The beginning of a line with Chinese of each text, or of any lines where there is none."""
    chosen = []
    for lines in texts.values():
        chinese = [line for line in lines if HAN.search(line)]
        # A title shows little of how sentences are cut.
        chosen += [line[:60] for line in chinese if len(line) >= 20][:1] or [
            line[:60] for line in chinese[:1]
        ]
    return chosen[:most] or [line[:80] for lines in texts.values() for line in lines][:most]
