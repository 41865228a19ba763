"""Instruction files as one mixture: read, freed of duplicates and evaluation texts, encoded, drawn."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zhllama.config import UserError
from zhllama.conversation.duplicates import mark_near_copies, mark_repeated
from zhllama.conversation.encode import EncodedConversation, Encoder, Shortened
from zhllama.conversation.evaluation import mark_contaminated, read_questions
from zhllama.conversation.read import Dropped, FileRows, in_words, read_conversations
from zhllama.conversation.sampling import draw_rows, rows_per_source
from zhllama.conversation.settings import InstructionSource, MixtureSettings
from zhllama.corpus.compare import compact
from zhllama.terminal import print_table, say, track


class EncodedConversations(Sequence[EncodedConversation]):
    """Samples by number, in flat memory: six bytes a token, and repeats cost nothing.

    Attributes:
        ids: (tokens,) uint32, of all samples one after the other.
        learnt: (tokens,) bool.
        offsets: (samples + 1,) int64.
        order: (rows,) int64, which sample each row of the mixture is.
    """

    def __init__(
        self, ids: NDArray[Any], learnt: NDArray[Any], offsets: NDArray[Any], order: NDArray[Any]
    ) -> None:
        self.ids, self.learnt, self.offsets, self.order = ids, learnt, offsets, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, row: Any) -> Any:
        # Repeated rows point to the same sample.
        begin, end = self.offsets[self.order[row] : self.order[row] + 2]
        return EncodedConversation(self.ids[begin:end].tolist(), self.learnt[begin:end].tolist())

    def select(self, rows: Sequence[int]) -> EncodedConversations:
        """Some of the rows, in the same memory."""
        return EncodedConversations(
            self.ids, self.learnt, self.offsets, self.order[np.asarray(rows, dtype=np.int64)]
        )

    def lengths(self) -> NDArray[Any]:
        """(rows,) int64, tokens of each row."""
        lengths: NDArray[Any] = np.diff(self.offsets)[self.order]
        return lengths


@dataclass
class Mixture:
    """What a run learns from.

    Attributes:
        samples: every row.
        origin: (rows,) int64, which source each row comes from.
        table: per source file, format, tasks, read, rows, repeats, tokens, share of tokens, mean tokens, dropped
            and shortened rows by reason with the first line numbers.
    """

    samples: EncodedConversations
    origin: NDArray[Any]
    table: list[dict[str, Any]]


@dataclass
class _Encoded:
    """The good samples of a source in drawn order: lines and tasks beside ids."""

    ids: array[int]
    learnt: bytearray
    lengths: list[int]
    tasks: list[str]
    shortened: Dropped


def build_mixture(
    sources: Sequence[InstructionSource], settings: MixtureSettings, tokenizer: Any, limit: int
) -> Mixture:
    """The mixture of these sources in samples of at most `limit` tokens; the same for the same settings and files.

    Raises:
        UserError: no file, one without a good row, no EOS token, or not one conversation left to learn from.
    """
    if not sources:
        raise UserError("data: name at least one instruction file")
    encoder = Encoder(tokenizer, limit, settings.learn, settings.too_long)
    paths = [source.checked() for source in sources]
    files = [
        read_conversations(path, source.format, settings.turns)
        for path, source in track(list(zip(paths, sources, strict=True)), "reading")
    ]
    # Before anything is left out for being known already.
    read = [len(file.rows) + file.dropped.total() for file in files]
    # Before duplicates: or a row could go as a copy of one that then goes too.
    remove_evaluation(files, settings)
    remove_duplicates(files, settings.similarity)
    encoded = [
        # A stream for each source: one more at the end changes nothing of those before.
        _encode_source(file, source, encoder, np.random.default_rng([settings.seed, number]))
        for number, (file, source) in enumerate(zip(files, sources, strict=True))
    ]
    if not any(one.lengths for one in encoded):
        reasons = "; ".join(
            f"{path}: {in_words(file.dropped.found())}" for path, file in zip(paths, files, strict=True)
        )
        raise UserError(f"data: nothing left to learn from: {reasons}")
    drawn = _draw(sources, encoded, settings)
    return _assemble(sources, files, read, encoded, drawn)


def remove_evaluation(files: Sequence[FileRows], settings: MixtureSettings) -> None:
    """Leave out, and count, rows in which an evaluation file's questions occur."""
    questions = [text for name in settings.evaluation for text in read_questions(Path(name))]
    if questions:
        for file in track(files, "looking for evaluation texts"):
            found = mark_contaminated(questions, [row.messages for row in file.rows], settings.similarity)
            _leave_out(file, {"occurs in an evaluation file": found})


def remove_duplicates(files: Sequence[FileRows], similarity: float) -> None:
    """Leave out, and count, rows that say the same or nearly the same as an earlier one of any file."""
    texts = [
        # Without roles and system marks, so that the same talk in two formats is the same.
        compact("\n".join(message["content"] for message in row.messages))
        for file in files
        for row in file.rows
    ]
    same = mark_repeated(texts)
    near = np.zeros_like(same)
    if similarity < 1:
        kept = np.flatnonzero(~same)
        # Among the rest: exact copies have been found cheaply.
        near[kept] = mark_near_copies([texts[place] for place in kept.tolist()], similarity)
    # All files were compared as one list; each takes its part back.
    ends = np.cumsum([len(file.rows) for file in files])[:-1]
    for file, mine, mine_too in zip(files, np.split(same, ends), np.split(near, ends), strict=True):
        _leave_out(file, {"the same as an earlier row": mine, "nearly an earlier row": mine_too})


def _leave_out(file: FileRows, reasons: dict[str, NDArray[Any]]) -> None:
    out = np.zeros(len(file.rows), dtype=bool)
    for reason, which in reasons.items():
        out |= which
        for place in np.flatnonzero(which).tolist():
            file.dropped.add(reason, file.rows[place].line)
    file.rows = [row for row, left_out in zip(file.rows, out.tolist(), strict=True) if not left_out]


def _encode_source(
    file: FileRows, source: InstructionSource, encoder: Encoder, drawn: np.random.Generator
) -> _Encoded:
    """Encode in drawn order until there are as many samples or tokens as the source may give."""
    result = _Encoded(array("I"), bytearray(), [], [], Dropped())
    # Drawn before encoding, so that a few samples of a large file do not cost the encoding of all.
    order = drawn.permutation(len(file.rows)).tolist()
    rows = [file.rows[place] for place in order]
    wanted = source.samples or len(rows)
    outcomes = encoder.encode_all([row.messages for row in rows])
    name = Path(source.file).name
    for row, outcome in track(zip(rows, outcomes, strict=True), f"encoding {name}", total=len(rows)):
        if isinstance(outcome, str):
            file.dropped.add(outcome, row.line)
            continue
        if isinstance(outcome, Shortened):
            result.shortened.add(outcome.how, row.line)
            outcome = outcome.sample
        for what in row.mended:
            result.shortened.add(what, row.line)
        result.ids.extend(outcome.ids)
        result.learnt += bytes(outcome.learnt)
        result.lengths.append(len(outcome.ids))
        result.tasks.append(source.task or row.task)
        # Dropped rows count for nothing: the next ones take their place.
        if len(result.lengths) >= wanted or 0 < source.max_tokens <= len(result.ids):
            break
    # Ends the processes now, not when the generator happens to be collected.
    outcomes.close()
    return result


def _draw(
    sources: Sequence[InstructionSource], encoded: Sequence[_Encoded], settings: MixtureSettings
) -> list[NDArray[Any]]:
    """Which samples of each source, in order."""
    bounds = [source.max_repeats for source in sources]
    counts = rows_per_source(
        [len(one.lengths) for one in encoded],
        [source.samples for source in sources],
        [source.weight for source in sources],
        bounds,
    )
    for source, count in zip(sources, counts, strict=True):
        if count < source.samples:
            say(
                f"{source.file}: {count:,} of {source.samples:,} samples, as max_repeats {source.max_repeats:g} allows"
            )
    drawn = draw_rows([one.tasks for one in encoded], counts, bounds, settings.temperature)
    for place, (source, one) in enumerate(zip(sources, encoded, strict=True)):
        if source.max_tokens:
            # Whole conversations up to the limit; the one that crosses it goes.
            used = np.cumsum(np.asarray(one.lengths, dtype=np.int64)[drawn[place]])
            drawn[place] = drawn[place][used <= source.max_tokens]
    if not any(map(len, drawn)):
        raise UserError("data: nothing left to learn from: max_tokens is below every conversation")
    return drawn


def _assemble(
    sources: Sequence[InstructionSource],
    files: Sequence[FileRows],
    read: Sequence[int],
    encoded: Sequence[_Encoded],
    drawn: Sequence[NDArray[Any]],
) -> Mixture:
    # array's "I" is 4 bytes here, as uint32 is: no number is converted.
    ids = np.concatenate([np.frombuffer(one.ids, dtype=np.uint32) for one in encoded])
    learnt = np.concatenate([np.frombuffer(bytes(one.learnt), dtype=bool) for one in encoded])
    lengths = np.concatenate([np.asarray(one.lengths, dtype=np.int64) for one in encoded])
    before = np.cumsum([0, *(len(one.lengths) for one in encoded)])
    # Rows are numbered within their source until here.
    order = np.concatenate([rows + first for rows, first in zip(drawn, before, strict=False)])
    samples = EncodedConversations(ids, learnt, np.concatenate([[0], np.cumsum(lengths)]), order)
    origin = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
    # Sums by source: a row's length is its weight.
    tokens = np.bincount(origin, samples.lengths(), len(drawn)).astype(np.int64)
    table = []
    for number, (source, file, one, rows) in enumerate(zip(sources, files, encoded, drawn, strict=True)):
        tasks: dict[str, int] = {}
        for row in rows.tolist():
            tasks[one.tasks[row]] = tasks.get(one.tasks[row], 0) + 1
        distinct = len(np.unique(rows))
        table.append(
            {
                "file": source.file,
                "format": file.format,
                "tasks": tasks,
                "read": read[number],
                "rows": len(rows),
                "repeats": round(len(rows) / max(distinct, 1), 2),
                "tokens": int(tokens[number]),
                "share": round(float(tokens[number] / tokens.sum()), 4),
                "mean_tokens": round(float(tokens[number] / max(len(rows), 1)), 1),
                "dropped": file.dropped.found(),
                "shortened": one.shortened.found(),
            }
        )
    return Mixture(samples, origin, table)


def print_mixture(mixture: Mixture) -> None:
    """The table on the terminal, and below it each reason for which rows were left out, with its first lines."""
    print_table(
        "Mixture",
        ["file", "format", "read", "dropped", "rows", "repeats", "tokens", "mean tokens", "share"],
        [
            [
                one["file"],
                one["format"],
                one["read"],
                sum(reason["rows"] for reason in one["dropped"].values()),
                one["rows"],
                f"{one['repeats']:g}",
                one["tokens"],
                f"{one['mean_tokens']:.1f}",
                f"{one['share']:.1%}",
            ]
            for one in mixture.table
        ],
    )
    for one in mixture.table:
        for what, found in (("left out", one["dropped"]), ("kept", one["shortened"])):
            if found:
                say(f"{one['file']}: {what} {in_words(found)}")
