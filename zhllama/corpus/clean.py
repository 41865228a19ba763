"""`zhllama clean`: raw text -> corpus, normalised, filtered, without duplicates."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from zhllama import artifact
from zhllama.config import UserError, as_given
from zhllama.corpus.cluster import require_slurm
from zhllama.corpus.convert import Forms
from zhllama.corpus.detectors import Detectors, load_score
from zhllama.corpus.lines import Repeats
from zhllama.corpus.passes import Passes, run_passes
from zhllama.corpus.read import Corpus, Layout, list_files
from zhllama.corpus.rules import Limits
from zhllama.corpus.settings import CleanConfig, Where
from zhllama.corpus.tally import DocumentTally
from zhllama.corpus.words import read_words
from zhllama.extras import require_extra
from zhllama.stop import remove
from zhllama.terminal import print_table, say, warn

REMEDY = {
    "empty": "--key, --documents",
    "too short": "--min-characters, --documents",
    "garbled": "--encoding",
    "mostly symbols": "--max-symbols",
    "ornaments": "--max-ornaments",
    "no sentences": "--min-function-words",
    "too little Chinese": "--min-chinese",
    "repetitive": "--max-repetition",
    "another language": "--languages",
    "listed words": "--words, --max-words",
    "low score": "--min-score",
    "only repeated lines": "--boilerplate, --paragraphs",
    "personal data": "--privacy",
    "in an evaluation file": "--decontaminate",
}
NO_MATTER = {"workers", "executor", "slurm"}  # the same output whatever they are
SAMPLE, SAMPLE_FILES = 2000, 100  # documents and files of a dry run
PRIVACY_DONE = {"replace": "replaced", "drop": "documents dropped"}
GUESSES = {
    "blank-line": "split at blank lines",
    "file": "taken as one document each",
    "line": "split at every line (too large for one document)",
}


def clean(config: CleanConfig) -> None:
    """Write a corpus directory: `documents-*.jsonl` of {"text", "id", "source"}, `report.html`, `logs/`.

    Each document is normalised (`rules.normalise`), kept or dropped by the rules in `rules.RULES`, and
    dropped where an earlier one has the same text. The order of documents is the order of the input.
    An interrupted run with the same settings goes on after the last portion of input that it finished.
    `run.json` counts documents, characters, bytes, documents by kind, the share of Chinese characters, and dropped
    documents by reason.

    Raises:
        UserError: nothing to read, a file that cannot be read, nothing kept, an output that exists, no such cluster.
    """
    _clean(config, "local" if config.dry_run else config.executor)


def finish(config: CleanConfig) -> None:
    """Finish here what the passes on a cluster have left; what they have not done is done."""
    _clean(config, "local")


def _clean(config: CleanConfig, where: Where) -> None:
    if config.dry_run:
        # A folder of its own beside the real one, which a sample must not pass for.
        config = replace(config, output=f"{config.output.rstrip('/')}-dry-run")
        # Only what an earlier dry run wrote is taken away.
        if artifact.read_record(config.output).get("settings", {}).get("dry_run"):
            remove(Path(config.output))
    source = Path(config.corpus)
    output = Path(config.output)
    files = list_files(source)
    if config.dry_run:
        # Every so many, not the first: neighbours in a folder are much alike.
        files = files[:: -(-len(files) // SAMPLE_FILES)]
    # It would be read as its own input when the run goes on.
    if source.resolve() in (output.resolve(), *output.resolve().parents):
        raise UserError(f"--output {output}: lies inside --corpus {source}; choose a directory elsewhere")
    if where == "ray":
        require_extra("--executor ray", "ray")
    if where == "slurm":
        require_slurm(config.slurm)
    inputs = _inputs(config)
    # Before `create` writes a run.json of its own over the one that is compared.
    resume = _can_go_on(config, output, inputs)
    with artifact.create(output, "corpus", "clean", config, inputs, resume) as made:
        chain = run_passes(_plan(config, where, len(files)), output, files, source)
        if chain:
            jobs = chain.submit(partial(finish, config))
            # No result yet: until the last job has written it, readers refuse the directory.
            made.left_to_others = True
            say(
                f"{output}: jobs {', '.join(jobs)} submitted; the last one writes report.html and finishes the corpus"
            )
            return
        tally = DocumentTally.total(output / ".work")
        _refuse_nothing(source, tally)
        characters = tally.counts["characters"]
        made.result.update(
            read=tally.counts["read"],
            documents=tally.counts["documents"],
            characters=characters,
            bytes=tally.counts["bytes"],
            kinds=dict(tally.seen["after documents"].most_common()),
            han_share=round(tally.counts["han"] / characters, 4),
            dropped=dict(tally.dropped.most_common()),
            replacement_characters=tally.counts["replacement characters"],
            invisible_characters=tally.counts["invisible characters"],
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


def _can_go_on(config: CleanConfig, output: Path, inputs: dict[str, artifact.Input]) -> bool:
    """Whether an unfinished run has left what it did, with these settings and inputs; otherwise it starts over."""
    if not (output / ".work").is_dir():
        return False
    begun = artifact.read_record(output)
    given = as_given(config)
    # Settings decide what is in a portion: one of others would not fit the rest.
    if any(begun["settings"][name] != given[name] for name in given if name not in NO_MATTER):
        return False
    now = artifact.described(inputs)
    return all(begun["inputs"][name]["fingerprint"] == now[name]["fingerprint"] for name in inputs)


def _inputs(config: CleanConfig) -> dict[str, artifact.Input]:
    """What is read, by setting; word list and scoring function are tried before hours of work."""
    inputs: dict[str, artifact.Input] = {"corpus": Path(config.corpus)}
    if config.decontaminate:
        inputs["decontaminate"] = Corpus.open(config.decontaminate, "--decontaminate")
    if config.words:
        read_words(Path(config.words))
        inputs["words"] = Path(config.words)
    if config.score:
        load_score(config.score)
        # The file, without the function's name: a run goes on only where its content is the same.
        inputs["score"] = Path(config.score.rpartition(":")[0])
    return inputs


def _plan(config: CleanConfig, where: Where, files: int) -> Passes:
    return Passes(
        Layout(config.encoding, config.documents, config.key),
        config.broken,
        Forms(config.chinese, config.width),
        Limits(**{field.name: getattr(config, field.name) for field in fields(Limits)}),
        _detectors(config),
        config.privacy,
        config.deduplicate,
        config.near_duplicates and config.deduplicate,
        Repeats(config.boilerplate, config.paragraphs),
        Path(config.decontaminate) if config.decontaminate else None,
        where,
        config.slurm,
        config.workers,
        round(config.shard_megabytes * 1e6),
        # Rounded up: with few files some of each, with many at least the first of each.
        -(-SAMPLE // files) if config.dry_run else None,
    )


def _detectors(config: CleanConfig) -> Detectors:
    return Detectors(
        frozenset() if config.languages == "any" else frozenset(config.languages.split()),
        config.min_language,
        Path(config.words).resolve() if config.words else None,
        config.max_words,
        # Workers on a cluster start in another folder.
        str(Path(config.score).resolve()) if config.score else "",
        config.min_score,
    )


def _refuse_nothing(source: Path, tally: DocumentTally) -> None:
    if not tally.counts["read"]:
        raise UserError(f"{source}: no document inside")
    if not tally.counts["documents"]:
        reason, count = tally.dropped.most_common(1)[0]
        raise UserError(
            f"{source}: nothing kept of {tally.counts['read']} documents, {count} of them dropped as "
            f"{reason!r} (see {REMEDY[reason]})"
        )


def _summarise(config: CleanConfig, result: dict[str, Any], tally: DocumentTally) -> None:
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
    if result["invisible_characters"]:
        say(f"{result['invisible_characters']:,} invisible characters removed")
    say(
        f"{config.output}: {result['documents']:,} documents, {result['characters']:,} characters "
        f"({result['han_share']:.0%} Chinese), report.html"
    )
