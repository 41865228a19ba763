"""Documents from .txt, .jsonl, .parquet, .html, .md, .epub and .docx files, streamed; one reader for every command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from zhllama.artifact import Opened
from zhllama.config import UserError
from zhllama.corpus import decode
from zhllama.corpus.books import book, word_file
from zhllama.corpus.decode import read_lines
from zhllama.corpus.pages import markdown, web_page, whole
from zhllama.extras import require_extra
from zhllama.terminal import warn

Broken = Literal["stop", "skip"]
Split = Literal["guess", "file", "line", "blank-line"]
PAGES = {".html": web_page, ".htm": web_page, ".md": markdown}
PACKED = ("", ".gz", ".zst", ".xz")
# These say themselves how their text is encoded.
SELF_ENCODED = {".parquet", ".epub", ".docx"}
# What reads them, of the extra [clean]; a bare install reads the others.
READERS = {".parquet": "pyarrow", ".zst": "pyarrow", ".epub": "lxml", ".docx": "lxml"}
READERS |= {".html": "trafilatura", ".htm": "trafilatura"}
KINDS = (*sorted(SELF_ENCODED), *(kind + packed for kind in (".txt", ".jsonl", *PAGES) for packed in PACKED))
CORPUS_FILES = "documents-*.jsonl"


class Corpus(Opened):
    """A corpus directory that `clean` wrote, or a user's own file or folder of files."""

    kind = "corpus"


class Passage(NamedTuple):
    """A document and where it begins: the line of its file (the row of a Parquet file, the chapter of a book), from 1."""

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


def read_documents(source: Path) -> Iterator[str]:
    """Every document of a corpus directory, a file, or a folder of files, in a fixed order.

    Files are taken in sorted order of their paths. A .txt is split at blank lines where it has any between
    its lines, otherwise it is one document (one per line beyond 64 million characters). Newlines inside
    documents survive; documents without any text are left out.

    Raises:
        UserError: no such path, nothing to read in it, or (while iterating) a file that is not UTF-8, not
            JSON, without "text", cut short, or no document in any of the files.
    """
    return _texts(source, list_files(source))


def list_files(source: Path) -> list[Path]:
    """The readable files of a corpus directory, a folder (recursive) or a single file, sorted by path.

    Hidden files are left out; files of other kinds in a folder are left out with a warning.

    Raises:
        UserError: no such path, an unfinished corpus or another kind of directory, a folder that cannot be opened,
            no file of a kind we read, one whose reader is not installed.
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.is_file():
        if not source.name.lower().endswith(KINDS):
            raise UserError(f"{source}: unsupported extension; use one of {' '.join(KINDS)}")
        return _readable([source])
    if Corpus.open(source).record:
        return sorted(source.glob(CORPUS_FILES))
    every = [Path(folder, name) for folder, _, names in os.walk(source, onerror=_refuse) for name in names]
    inside = [file.relative_to(source) for file in every if file.is_file()]
    seen = sorted(file for file in inside if not any(part.startswith(".") for part in file.parts))
    files = [source / file for file in seen if file.name.lower().endswith(KINDS)]
    if not files:
        raise UserError(f"{source}: no file to read inside; use one of {' '.join(KINDS)}")
    if other := [file.name for file in seen if not file.name.lower().endswith(KINDS)]:
        warn(f"{source}: left out {len(other)} files of other kinds ({', '.join(other[:3])})")
    return _readable(files)


def _readable(files: list[Path]) -> list[Path]:
    """The files; a UserError where what reads one of them is not installed."""
    needed = {
        READERS[suffix]: file
        for file in reversed(files)
        for suffix in (file.suffix.lower(), Path(file.stem).suffix.lower() if file.suffix in PACKED else "")
        if suffix in READERS
    }
    for package, file in needed.items():
        require_extra(str(file), "clean", package)
    return files


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
) -> Iterator[Passage]:
    """Every document of one file, empty ones too.

    Args:
        progress: told now and then how many bytes of the file (as it lies on disk) have been read.
        guessed: told how a .txt is split where the layout leaves that to a guess.
        broken: told what is wrong with a row of .jsonl, which is then left out; without it that is an error.

    Raises:
        UserError: naming the file and the line, byte or row.
    """
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _parquet_documents(path, layout.key, progress)
    if name.endswith((".epub", ".docx")):
        texts = book if name.endswith(".epub") else word_file
        return (Passage(number, text) for number, text in enumerate(texts(path, progress), 1))
    lines = read_lines(path, layout.encoding, progress)
    kind = Path(name.removesuffix(".gz").removesuffix(".zst").removesuffix(".xz")).suffix
    if kind in PAGES:
        return _page(path, lines, PAGES[kind])
    if kind == ".jsonl":
        return _json_documents(path, lines, layout.key, broken)
    split = layout.documents
    if split == "guess":
        split, lines = guess_split(lines)
        if guessed:
            guessed(split)
    return _text_documents(lines, split)


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


def _texts(source: Path, files: list[Path]) -> Iterator[str]:
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


def _json_documents(
    path: Path, lines: Iterator[str], key: str, broken: Callable[[str], None] | None
) -> Iterator[Passage]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield Passage(number, _text_of(line, f"{path} line {number}", key))
        except UserError as problem:
            if broken is None:
                raise
            broken(str(problem))


def _text_of(line: str, where: str, key: str) -> str:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as problem:
        at = (
            f"{problem.msg}, column {problem.pos + 1}"
            if isinstance(problem, ValueError)
            else "nested too deep"
        )
        raise UserError(f"{where}: not JSON ({at}); mend or delete it") from problem
    if isinstance(row, dict) and isinstance(row.get(key), str):
        return str(row[key])
    keys = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
    raise UserError(f"{where}: no text under key {key!r}, only {keys}; give clean another --key")


def _parquet_documents(path: Path, key: str, progress: Callable[[int], None] | None) -> Iterator[Passage]:
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    from pyarrow import ArrowInvalid

    try:
        with parquet.ParquetFile(path) as table:
            if key not in table.schema_arrow.names:
                columns = ", ".join(map(repr, table.schema_arrow.names))
                raise UserError(f"{path}: no column {key!r}, only {columns}; give clean another --key")
            row = 0
            for batch in table.iter_batches(columns=[key], batch_size=1024):
                for text in batch.column(0).to_pylist():
                    row += 1
                    if not isinstance(text, str):
                        raise UserError(
                            f"{path} row {row}: column {key!r} holds {text!r:.40}, not text; mend the file"
                        )
                    yield Passage(row, text)
                if progress:
                    progress(path.stat().st_size * row // table.metadata.num_rows)
    except (ArrowInvalid, OSError) as problem:
        raise UserError(
            f"{path}: not a whole Parquet file ({str(problem)[:80]}); copy or download it again"
        ) from problem
