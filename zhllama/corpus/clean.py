"""`zhllama clean`: raw text -> corpus, normalised, filtered, without duplicates."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zhllama import artifact
from zhllama.config import UserError, as_given
from zhllama.corpus.convert import Chinese, Forms, Width
from zhllama.corpus.lines import Repeats
from zhllama.corpus.passes import Plan, run_passes
from zhllama.corpus.privacy import Privacy
from zhllama.corpus.read import Broken, Layout, Split, list_files
from zhllama.corpus.rules import Limits
from zhllama.corpus.screen import Screen, load_score
from zhllama.corpus.tally import Tally
from zhllama.corpus.words import read_words
from zhllama.terminal import print_table, say, warn

REMEDY = {
    "empty": "--key, --documents",
    "too short": "--min-characters, --documents",
    "garbled": "--encoding",
    "mostly symbols": "--max-symbols",
    "too little Chinese": "--min-chinese",
    "repetitive": "--max-repetition",
    "another language": "--languages",
    "listed words": "--words, --max-words",
    "low score": "--min-score",
    "only repeated lines": "--boilerplate, --paragraphs",
    "personal data": "--privacy",
    "in an evaluation file": "--decontaminate",
}
SAMPLE, SAMPLE_FILES = 2000, 100  # documents and files of a dry run
PRIVACY_DONE = {"replace": "replaced", "drop": "documents dropped"}
GUESSES = {
    "blank-line": "split at blank lines",
    "file": "taken as one document each",
    "line": "split at every line (too large for one document)",
}


@dataclass
class CleanConfig:
    """Clean raw text into a corpus: normalise it, drop what is not worth learning, keep duplicates once."""

    corpus: str
    """Raw text: a .txt, .jsonl, .parquet, .html or .md file (also .txt.gz, .jsonl.zst, .html.xz, ...), or a folder
    of them. Of web pages the main text is taken (trafilatura), of Markdown all but its front matter."""
    output: str
    """The corpus directory to write."""
    encoding: str = "guess"
    """Encoding of .txt and .jsonl, such as utf-8, gb18030 (reads GBK and GB2312 too), big5 or utf-16; guess: of each
    file by its first megabyte."""
    documents: Split = "guess"
    """What is a document in a .txt: the file, each line, or what stands between blank lines; guess: between
    blank lines where the file has any, otherwise the file."""
    key: str = "text"
    """Key (.jsonl) or column (.parquet) that holds the text."""
    broken: Broken = "stop"
    """A file or row that cannot be read: stop with its name, or skip it, count it and go on."""
    min_characters: int = 20
    """Drop documents with fewer characters, white space not counted."""
    max_repetition: float = 0.5
    """Drop documents where more than this share of 10-character sequences repeats an earlier one."""
    max_symbols: float = 0.5
    """Drop documents where more than this share of characters is digits, punctuation or symbols."""
    min_chinese: float = 0.0
    """Drop documents where less than this share of letters is Chinese."""
    chinese: Chinese = "keep"
    """Write traditional Chinese as it is (keep) or as simplified (opencc)."""
    width: Width = "keep"
    """Write full-width letters and digits (ＡＢＣ１２３) as they are (keep) or in half width; punctuation stays."""
    languages: str = "zh zh-Hant en code"
    """Languages to keep (zh is simplified, zh-Hant traditional Chinese, code programs, others as in ISO 639-1: ja, ru);
    any: all."""
    min_language: float = 0.5
    """Drop documents where these languages have less than this share of what pycld2 is sure of."""
    words: str = ""
    """A file with one word a line (# begins a comment): drop documents that hold any; upper case and full width are
    the same as lower case and half width."""
    max_words: int = 0
    """Keep documents with up to so many of these words."""
    score: str = ""
    """A scoring function of your own, text -> number, written FILE.py:FUNCTION; documents under min_score are dropped."""
    min_score: float = 0.5
    """The least score to keep."""
    deduplicate: bool = True
    """Keep only the first of documents with the same text (white space not compared)."""
    near_duplicates: bool = True
    """Of documents that share most of their 5-character sequences (MinHash; half of them at 72%, nearly all from
    85%) keep the one with the most letters, of equals the earliest; only where deduplicate is true."""
    boilerplate: int = 0
    """Remove Chinese lines (6 letters or more, digits not compared) that more than so many documents hold; 0: none; for
    web pages try 20."""
    paragraphs: bool = False
    """Keep a line of 30 letters or more only in the first document that holds it."""
    decontaminate: str = ""
    """A folder of evaluation files (.json, .jsonl, .csv, .tsv, .txt): documents that share 13 letters in a row with one
    of their texts are dropped."""
    privacy: Privacy = "replace"
    """Personal data (mail, IP, phones, resident IDs, credit codes, bank cards, plates, QQ, WeChat): replace each
    item by a placeholder such as [手机号], drop the documents that hold any, or keep."""
    dry_run: bool = False
    """Clean a sample of at most 2,000 documents, the first ones of up to 100 files spread over the corpus, into
    OUTPUT-dry-run, which the next dry run replaces: to look at its report.html before the whole."""
    workers: int = 0
    """Processes; 0: one per core. The output is the same whatever their number."""
    shard_megabytes: float = 16
    """Size of an output file, and of the portion of input that one task takes."""

    def __post_init__(self) -> None:
        for name in ("max_repetition", "max_symbols", "min_chinese", "min_language"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a share is between 0 and 1")
        if (
            min(self.workers, self.min_characters, self.max_words, self.boilerplate) < 0
            or self.shard_megabytes <= 0
        ):
            raise UserError(
                "workers, min_characters, max_words and boilerplate must not be negative, "
                "shard_megabytes must be positive"
            )
        if self.encoding == "guess":
            return
        try:
            "".encode(self.encoding)  # refuses codecs between bytes, such as base64
        except LookupError as problem:
            raise UserError(
                f"encoding {self.encoding}: unknown; try utf-8, gb18030, big5 or utf-16"
            ) from problem


def clean(config: CleanConfig) -> None:
    """Write a corpus directory: `documents-*.jsonl` of {"text", "id", "source"}, `report.html`, `logs/`.

    Each document is normalised (`rules.normalise`), kept or dropped by the rules in `rules.RULES`, and
    dropped where an earlier one has the same text. The order of documents is the order of the input.
    An interrupted run with the same settings goes on after the last portion of input that it finished.
    `run.json` counts documents, characters, bytes, the share of Chinese characters, and dropped documents
    by reason.

    Raises:
        UserError: nothing to read, a file that cannot be read, nothing kept, an output that exists.
    """
    if config.dry_run:
        config = replace(config, output=f"{config.output.rstrip('/')}-dry-run")
        if artifact.read_record(config.output).get("settings", {}).get("dry_run"):
            shutil.rmtree(config.output)
    source = Path(config.corpus)
    output = Path(config.output)
    files = list_files(source)
    if config.dry_run:
        files = files[:: -(-len(files) // SAMPLE_FILES)]
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"--output {output}: lies inside --corpus {source}; choose a directory elsewhere")
    inputs = _inputs(config)
    resume = _can_go_on(config, output, inputs)
    with artifact.create(output, "corpus", "clean", config, inputs, resume) as made:
        run_passes(_plan(config, len(files)), output, files, source)
        tally = Tally.total(output / ".work")
        _refuse_nothing(source, tally)
        characters = tally.counts["characters"]
        made.result.update(
            read=tally.counts["read"],
            documents=tally.counts["documents"],
            characters=characters,
            bytes=tally.counts["bytes"],
            han_share=round(tally.counts["han"] / characters, 4),
            dropped=dict(tally.dropped.most_common()),
            replacement_characters=tally.counts["replacement characters"],
            contaminated=dict(tally.contaminated.most_common()),
            skipped=dict(tally.skipped),
            removed=dict(tally.removed),
            languages=dict(tally.languages.most_common()),
            encodings=dict(tally.encodings.most_common()),
            personal=dict(tally.personal.most_common()),
        )
        from zhllama.corpus.report import write_report

        write_report(output / "report.html", config.corpus, made.result, tally)
        # In one step, or a run killed in between would go on from a part of it.
        (output / ".work").rename(output / ".done")
        shutil.rmtree(output / ".done")
    _summarise(config, made.result, tally)


def _can_go_on(config: CleanConfig, output: Path, inputs: dict[str, str | Path]) -> bool:
    """Whether an unfinished run has left what it did, with these settings and inputs; otherwise it starts over."""
    if not (output / ".work").is_dir():
        return False
    begun = artifact.read_record(output)
    if begun["settings"] | {"workers": 0} != as_given(replace(config, workers=0)):
        return False
    return all(
        begun["inputs"][name]["fingerprint"] == artifact.fingerprint(path) for name, path in inputs.items()
    )


def _inputs(config: CleanConfig) -> dict[str, str | Path]:
    """What is read, by setting; word list and scoring function are tried before hours of work."""
    inputs: dict[str, str | Path] = {"corpus": Path(config.corpus)}
    if config.decontaminate:
        inputs["decontaminate"] = artifact.require(config.decontaminate, "corpus", "--decontaminate")
    if config.words:
        read_words(Path(config.words))
        inputs["words"] = Path(config.words)
    if config.score:
        load_score(config.score)
        inputs["score"] = Path(config.score.rpartition(":")[0])
    return inputs


def _plan(config: CleanConfig, files: int) -> Plan:
    return Plan(
        Layout(config.encoding, config.documents, config.key),
        config.broken,
        Forms(config.chinese, config.width),
        Limits(config.min_characters, config.max_repetition, config.max_symbols, config.min_chinese),
        _screen(config),
        config.privacy,
        config.deduplicate,
        config.near_duplicates and config.deduplicate,
        Repeats(config.boilerplate, config.paragraphs),
        Path(config.decontaminate) if config.decontaminate else None,
        config.workers,
        round(config.shard_megabytes * 1e6),
        -(-SAMPLE // files) if config.dry_run else None,
    )


def _screen(config: CleanConfig) -> Screen:
    return Screen(
        frozenset() if config.languages == "any" else frozenset(config.languages.split()),
        config.min_language,
        Path(config.words) if config.words else None,
        config.max_words,
        config.score,
        config.min_score,
    )


def _refuse_nothing(source: Path, tally: Tally) -> None:
    if not tally.counts["read"]:
        raise UserError(f"{source}: no document inside")
    if not tally.counts["documents"]:
        reason, count = tally.dropped.most_common(1)[0]
        raise UserError(
            f"{source}: nothing kept of {tally.counts['read']} documents, {count} of them dropped as "
            f"{reason!r} (see {REMEDY[reason]})"
        )


def _summarise(config: CleanConfig, result: dict[str, Any], tally: Tally) -> None:
    for split, count in tally.guessed.items():
        say(f"{count} .txt files {GUESSES[split]}; --documents file|line|blank-line decides otherwise")
    for name, lines in tally.glued.most_common(3):
        warn(f"{name}: {lines:,} lines became one document; if each is one of its own, use --documents line")
    if set(result["encodings"]) - {"utf-8"}:
        listed = ", ".join(f"{count:,} files {name}" for name, count in result["encodings"].items())
        say(f"encodings: {listed}; --encoding decides otherwise")
    for what, count in result["skipped"].items():
        warn(
            f"left out {count:,} {what} that could not be read (--broken skip), the first: {tally.problems[0]}"
        )
    rows = [["kept", result["documents"], result["documents"] / result["read"]]]
    rows += [[reason, count, count / result["read"]] for reason, count in result["dropped"].items()]
    print_table("documents", ["", "count", "share"], rows)
    if result["personal"]:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in result["personal"].items())
        say(f"personal data ({PRIVACY_DONE[config.privacy]}): {listed}; --privacy replace|drop|keep decides")
    if result["removed"]:
        say("removed: " + ", ".join(f"{count:,} {what}" for what, count in result["removed"].items()))
    if result["replacement_characters"]:
        say(f"{result['replacement_characters']:,} characters (U+FFFD) were lost before this text came here")
    say(
        f"{config.output}: {result['documents']:,} documents, {result['characters']:,} characters "
        f"({result['han_share']:.0%} Chinese), report.html"
    )
