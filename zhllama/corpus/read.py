"""Documents from text files, tables, web pages and books, streamed; one reader for every command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from zhllama import decode, tables
from zhllama.artifact import Opened
from zhllama.config import UserError
from zhllama.corpus.books import book, word_file
from zhllama.corpus.pages import markdown, web_page, whole
from zhllama.decode import PACKED, extension_of, read_lines
from zhllama.extras import require_extra
from zhllama.rows import DELIMITERS, HALF, is_whole, named, read_rows
from zhllama.terminal import warn

Broken = Literal["stop", "skip"]
Split = Literal["guess", "file", "line", "blank-line"]
PAGES = {".html": web_page, ".htm": web_page, ".md": markdown}
BOOKS = {".epub": book, ".docx": word_file}
# What reads them, of the extra [clean]; a bare install reads the others.
READERS = {".parquet": "pyarrow", ".arrow": "datasets", ".zst": "pyarrow", ".epub": "lxml", ".docx": "lxml"}
READERS |= {".html": "trafilatura", ".htm": "trafilatura"}
# What of a folder is text. Other tables and lists often lie beside it; they are read where they are given by name.
KINDS = (
    *sorted((*tables.TABLES, *BOOKS)),
    *(kind + packed for kind in (".txt", ".jsonl", *PAGES) for packed in ("", *PACKED)),
)
GIVEN = (*KINDS, *(kind + packed for kind in (".json", *DELIMITERS) for packed in ("", *PACKED)))
CORPUS_FILES = "documents-*.jsonl"


class Corpus(Opened):
    """A corpus directory that `clean` wrote, a user's own file or folder of files, or the name of a hub's dataset."""

    kind = "corpus"

    @classmethod
    def elsewhere(cls, source: str, flag: str) -> Path:
        """A name, which is streamed while it is read; raises UserError for what is none."""
        return Path(source) if tables.is_named(source) else super().elsewhere(source, flag)


class Passage(NamedTuple):
    """A document and where it begins: the line of its file (the row of a table, the chapter of a book), from 1."""

    line: int
    text: str


@dataclass(frozen=True)
class Layout:
    """How a user's files hold documents; a corpus that `clean` wrote has the defaults."""

    encoding: str = "utf-8"
    documents: Split = "guess"
    key: str = "text"


def check_weights(corpora: Sequence[str], weights: Sequence[float]) -> None:
    """Raise UserError unless there are corpora, each given once, and either no weights or one above 0 for each."""
    if not corpora:
        raise UserError("--corpus: give at least one corpus directory or file")
    if repeated := [path for path in corpora if corpora.count(path) > 1]:
        raise UserError(f"--corpus {repeated[0]}: given twice; give it more weight with --weight")
    if weights and len(weights) != len(corpora):
        raise UserError(f"--weight: {len(weights)} given for {len(corpora)} corpora; give one for each")
    if wrong := [weight for weight in weights if not 0 < weight < float("inf")]:
        raise UserError(f"--weight {wrong[0]}: it must be more than 0")


def read_documents(source: Path | Corpus) -> Iterator[str]:
    """Every document of a corpus (opened, or by its path), a file, a folder or a hub's dataset, in a fixed order.

    Files are taken in sorted order of their paths. A .txt is split at blank lines where it has any between
    its lines, otherwise it is one document (one per line beyond 64 million characters). Newlines inside
    documents survive; documents without any text are left out.

    Raises:
        UserError: no such path, nothing to read in it, or (while iterating) a file that is not UTF-8, not
            JSON, without "text", cut short, or no document in any of the files.
    """
    return _texts(source, list_files(source))


def list_files(source: Path | Corpus) -> list[Path]:
    """The readable files of a corpus directory, a folder (recursive) or a single file, sorted by path.

    Of a directory that `datasets` saved they are what it holds, in its order; of hf:NAME it is that name and its commit.
    Hidden files are left out; files of other kinds in a folder are left out with a warning.

    Raises:
        UserError: no such path, an unfinished corpus or another kind of directory, a folder that cannot be opened,
            no file of a kind we read, one whose reader is not installed, a name that no hub knows.
    """
    opened = source if isinstance(source, Corpus) else None
    source = Path(str(source))
    if tables.is_named(source):
        return [tables.pinned(source)]
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.is_file():
        if not source.name.lower().endswith(GIVEN):
            raise UserError(f"{source}: unsupported extension; use one of {' '.join(GIVEN)}")
        return _readable([source])
    if (opened or Corpus.open(source)).record:
        return sorted(source.glob(CORPUS_FILES))
    files, others = _walk(source)
    if not files:
        raise UserError(f"{source}: no file to read inside; use one of {' '.join(KINDS)}")
    if others:
        warn(f"{source}: left out {len(others)} files of other kinds ({', '.join(others[:3])})")
    return _readable(files)


def _readable(files: list[Path]) -> list[Path]:
    """The files; a UserError where what reads one of them is not installed."""
    needed = {
        READERS[suffix]: file
        for file in reversed(files)
        for suffix in (file.suffix.lower(), extension_of(file))
        if suffix in READERS
    }
    for package, file in needed.items():
        require_extra(str(file), "clean", package)
    return files


def _walk(source: Path) -> tuple[list[Path], list[str]]:
    """The files to read below a folder in sorted order of their paths, and the names of the others."""
    found: dict[Path, list[Path]] = {}  # by the path that they are sorted by
    others: list[Path] = []
    for place, folders, names in os.walk(source, onerror=_refuse):
        folder = Path(place)
        if tables.is_saved(folder):
            found[folder.relative_to(source)] = tables.saved_files(folder)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = [folder / name for name in names if not name.startswith(".")]
        for file in filter(Path.is_file, inside):
            if file.name.lower().endswith(KINDS):
                found[file.relative_to(source)] = [file]
            else:
                others.append(file.relative_to(source))
    return [file for path in sorted(found) for file in found[path]], [path.name for path in sorted(others)]


def _refuse(problem: OSError) -> NoReturn:
    """Path.rglob would pass a folder that it may not open in silence."""
    raise UserError(
        f"{problem.filename}: this folder cannot be opened ({problem.strerror}); change its permissions"
    ) from problem


def read_file(
    path: Path,
    layout: Layout,
    progress: Callable[[int], None] | None = None,
    guessed: Callable[[str], None] | None = None,
    broken: Callable[[str], None] | None = None,
    halves: bool = False,
) -> Iterator[Passage]:
    """Every document of one file, empty ones too.

    Args:
        progress: told now and then how many bytes of the file (as it lies on disk) have been read.
        guessed: told how a .txt is split where the layout leaves that to a guess.
        broken: told what is wrong with a row of JSON or of a table, which is then left out; without it that is an error.
        halves: text with half a character in it, which only JSON can hold, is given as it is.

    Raises:
        UserError: naming the file and the line, byte or row.
    """
    kind = extension_of(path)
    if tables.is_table(path):
        return _of_column(path, layout.key, progress, broken)
    if kind in BOOKS:
        return (Passage(number, text) for number, text in enumerate(BOOKS[kind](path, progress), 1))
    if kind in (".jsonl", ".json", *DELIMITERS):
        return _of_rows(path, kind, layout, progress, broken, halves)
    lines = read_lines(path, layout.encoding, progress)
    if kind in PAGES:
        return _page(path, lines, PAGES[kind])
    split = layout.documents
    if split == "guess":
        split, lines = guess_split(lines)
        if guessed:
            guessed(split)
    return _text_documents(lines, split)


def says_encoding(path: Path) -> bool:
    """Whether a file says itself how its text is encoded."""
    return tables.is_table(path) or extension_of(path) in BOOKS


def guess_split(lines: Iterator[str]) -> tuple[Split, Iterator[str]]:
    """How the lines of a text group into documents, and the same lines again from the first."""
    ahead: list[str] = []
    size = 0
    text_seen = gap_seen = False
    for line in lines:
        ahead.append(line)
        size += len(line)
        if line.strip():
            if gap_seen:
                return "blank-line", chain(ahead, lines)
            text_seen = True
        elif text_seen:
            gap_seen = True
        if size > decode.LONGEST_DOCUMENT:
            return "line", chain(ahead, lines)
    return "file", iter(ahead)


def _texts(source: Path | Corpus, files: list[Path]) -> Iterator[str]:
    found = False
    for file in files:
        for passage in read_file(file, Layout()):
            if passage.text.strip():
                found = True
                yield passage.text
    if not found:
        raise UserError(f"{source}: no document inside")


def _text_documents(lines: Iterator[str], split: Split) -> Iterator[Passage]:
    if split == "line":
        yield from (Passage(number, line) for number, line in enumerate(lines, 1) if line.strip())
        return
    held: list[str] = []
    first = 1
    for number, line in enumerate(lines, 1):
        if line.strip() or (held and split == "file"):
            if not held:
                first = number
            held.append(line)
        elif held:
            yield Passage(first, "\n".join(held))
            held = []
    if held:
        yield Passage(first, "\n".join(held).rstrip("\n"))


def _page(path: Path, lines: Iterator[str], text_of: Callable[[str], str]) -> Iterator[Passage]:
    yield Passage(1, text_of(whole(path, lines)))


def _of_rows(
    path: Path,
    kind: str,
    layout: Layout,
    progress: Callable[[int], None] | None,
    broken: Callable[[str], None] | None,
    halves: bool,
) -> Iterator[Passage]:
    rows = read_rows(path, layout.encoding, progress, lists=kind == ".json", halves=True)
    key = layout.key
    for number, row in named(rows) if kind in DELIMITERS else rows:
        text = row.get(key) if isinstance(row, dict) else None
        if not isinstance(text, str):
            _report(f"{path} line {number}: {_fault(row, key)}", broken)
        elif halves or is_whole(text):
            yield Passage(number, text)
        else:
            _report(f"{path} line {number}: {HALF} in it; run clean, which takes it out", broken)


def _fault(row: Any, key: str) -> str:
    """Why a row gives no text, and what to do."""
    if isinstance(row, tables.Unread):
        reason = f"{row.reason[:-1]}, column {row.column})" if row.column else row.reason
        return f"{reason}; mend or delete it"
    keys = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
    return f"no text under key {key!r}, only {keys}; give clean another --key"


def _of_column(
    path: Path, key: str, progress: Callable[[int], None] | None, broken: Callable[[str], None] | None
) -> Iterator[Passage]:
    for number, text in enumerate(tables.read_records(path, key, progress), 1):
        if isinstance(text, str):
            yield Passage(number, text)
        else:
            held = text.reason if isinstance(text, tables.Unread) else f"{text!r:.40}, not text"
            _report(f"{path} row {number}: column {key!r} holds {held}; mend the file", broken)


def _report(problem: str, broken: Callable[[str], None] | None) -> None:
    if broken is None:
        raise UserError(problem)
    broken(problem)
