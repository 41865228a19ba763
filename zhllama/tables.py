"""Tables: Parquet, Arrow, what `save_to_disk` of `datasets` wrote, and datasets of a hub, streamed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from zhllama.config import UserError
from zhllama.extras import require_extra

PREFIX = "hf:"
BATCH = 1024
Answer = TypeVar("Answer")
Progress = Callable[[int], None] | None
TABLES = (".parquet", ".arrow")
DAMAGED = "bytes that are no text"


class Unread(NamedTuple):
    """A row that cannot be read: its text as far as it is known, why, and where in its line."""

    text: str
    reason: str
    column: int = 0


class _Name(NamedTuple):
    """hf:REPOSITORY[@REVISION][:SPLIT], taken apart; what is not given is empty."""

    repository: str
    revision: str
    split: str

    @classmethod
    def of(cls, path: str | Path) -> _Name:
        name, _, split = str(path).removeprefix(PREFIX).partition(":")
        repository, _, revision = name.partition("@")
        return cls(repository, revision, split)


def is_named(path: str | Path) -> bool:
    """Whether what stands for a path is the name of a dataset on the hub: hf:NAME or hf:NAME:SPLIT."""
    return str(path).startswith(PREFIX)


def is_saved(path: Path) -> bool:
    """Whether `save_to_disk` wrote a directory."""
    return (path / "dataset_dict.json").is_file() or (
        (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
    )


def is_table(path: Path) -> bool:
    """Whether rows are records of named columns, which say themselves how their text is encoded."""
    return is_named(path) or is_saved(path) or path.name.lower().endswith(TABLES)


def read_records(path: Path, column: str | None = None, progress: Progress = None) -> Iterator[Any]:
    """The records of a table as dicts, or the values of one column; `Unread` where one cannot be read, None for NaN.

    Args:
        progress: told now and then how many bytes of the file have been read.

    Raises:
        UserError: no whole table, no such column in it, or nothing that can be streamed.
    """
    for table in _tables(path, column, progress):
        if column is not None:
            names = table.schema.names
            if column not in names:
                listed = ", ".join(map(repr, names))
                raise UserError(f"{path}: no column {column!r}, only {listed}; give clean another --key")
            table = table.select([column])
        try:
            yield from _values(table, column)
        except (ValueError, OverflowError):  # one of them: every row on its own
            for place in range(len(table)):
                try:
                    yield from list(_values(table.slice(place, 1), column))
                except (ValueError, OverflowError) as problem:
                    text = isinstance(problem, UnicodeDecodeError)
                    yield Unread("", DAMAGED if text else str(problem)[:80])


def _values(table: Any, column: str | None) -> list[Any]:
    columns = columns_of(table)
    if column is not None:
        return columns[column]
    rows = zip(*columns.values(), strict=True)
    return [
        dict(zip(columns, (None if value != value else value for value in row), strict=True)) for row in rows
    ]


def _tables(path: Path, column: str | None, progress: Progress) -> Iterator[Any]:
    if is_named(path):
        yield from stream(path)
    elif is_saved(path):
        for file in saved_files(path):
            yield from arrow_tables(file)
    elif path.name.lower().endswith(".arrow"):
        yield from arrow_tables(path)
        if progress:
            progress(path.stat().st_size)
    else:
        yield from _parquet(path, column, progress)


def _parquet(path: Path, column: str | None, progress: Progress) -> Iterator[Any]:
    require_extra(str(path), "clean", "pyarrow")
    import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            row = 0
            columns = [column] if column in file.schema_arrow.names else None
            for batch in file.iter_batches(columns=columns, batch_size=BATCH):
                yield batch
                row += len(batch)
                if progress:
                    progress(path.stat().st_size * row // file.metadata.num_rows)
    except (ArrowException, OSError) as problem:
        raise UserError(
            f"{path}: not a whole Parquet file ({str(problem)[:80]}); copy or download it again"
        ) from problem


def saved_files(path: Path) -> list[Path]:
    """The Arrow files of a directory that `save_to_disk` wrote, in order.

    Others lie beside them: `datasets` keeps what it computes from a dataset in the directory that it came from.

    Raises:
        UserError: not whole, or of several splits.
    """
    require_extra(str(path), "clean", "datasets")
    from datasets import DatasetDict, load_from_disk
    from pyarrow import ArrowException

    try:
        saved = load_from_disk(str(path.absolute()))
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(
            f"{path}: not a whole dataset as save_to_disk writes it ({_in_a_line(problem)}); save it again"
        ) from problem
    splits = saved if isinstance(saved, DatasetDict) else {"": saved}
    if len(splits) != 1:
        listed = ", ".join(splits) or "none"
        raise UserError(f"{path}: a dataset of several splits ({listed}); give the folder of one of them")
    files = [Path(file["filename"]) for split in splits.values() for file in split.cache_files]
    return [path / file.relative_to(path.absolute()) for file in files]


def arrow_tables(path: Path) -> Iterator[Any]:
    """The rows of an Arrow file as tables of some hundreds: a stream, as `datasets` writes them, or a file with an index.

    Raises:
        UserError: not a whole file of either kind.
    """
    require_extra(str(path), "clean", "datasets")
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from pyarrow import ArrowException, ArrowInvalid, feather

    try:
        try:
            dataset = Dataset.from_file(str(path))
        except ArrowInvalid:
            dataset = Dataset(InMemoryTable(feather.read_table(path)))
    except (ArrowException, OSError) as problem:
        raise UserError(
            f"{path}: not a whole Arrow file ({_in_a_line(problem)}); copy or download it again"
        ) from problem
    yield from dataset.with_format("arrow").iter(BATCH)


def columns_of(table: Any) -> dict[str, list[Any]]:
    """An Arrow table's columns as Python values; what `datasets` keeps as JSON, values of many types, is read.

    Raises:
        ValueError, OverflowError: bytes that are no text, or values beyond what Python can hold.
    """
    values: dict[str, list[Any]] = table.to_pydict()
    if "extension<arrow.json>" not in str(table.schema):
        return values
    from datasets import Features

    read: dict[str, list[Any]] = Features.from_arrow_schema(table.schema).decode_batch(values)
    return read


def pinned(path: Path) -> Path:
    """A name with the revision and the split that it means now, for processes that ask the hub again.

    Raises:
        UserError: what cannot be streamed.
    """
    name = _Name.of(path)
    return Path(f"{PREFIX}{name.repository}@{fingerprint(path)}:{_split(path, name)}")


def fingerprint(path: str | Path) -> str:
    """What identifies the data behind a name: the commit on the hub, which hf:NAME@COMMIT reads again.

    Of a local folder in place of a name, which `datasets` reads too, it is the library's hash of files and their times.

    Raises:
        UserError: what cannot be streamed.
    """
    return str(_opened(path, _Name.of(path)).hash)


def stream(path: Path) -> Iterator[Any]:
    """The rows behind a name as Arrow tables of some hundreds; only what is read is downloaded.

    Raises:
        UserError: what cannot be streamed, or a stream that breaks off.
    """
    name = _Name.of(path)
    builder, split = _opened(path, name), _split(path, name)
    tables = _asked(
        path, lambda: iter(builder.as_streaming_dataset(split=split).with_format("arrow").iter(BATCH))
    )
    while (table := _asked(path, lambda: next(tables, None))) is not None:
        yield table


def _opened(path: str | Path, name: _Name) -> Any:
    if not name.repository:
        raise UserError(f"{path}: write it as hf:NAME or hf:NAME:SPLIT, for example hf:org/dataset:train")
    require_extra(str(path), "clean", "datasets")
    return _asked(path, lambda: _builder(name.repository, name.revision or None))


@cache  # so that all of a process reads the commit that its record names
def _builder(repository: str, revision: str | None) -> Any:
    import datasets
    from huggingface_hub.utils import logging

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    # It would tell of every attempt at a hub that does not answer.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return datasets.load_dataset_builder(repository, revision=revision)


def _split(path: str | Path, name: _Name) -> str:
    """The split that a name gives; else the only one, or train."""
    builder = _opened(path, name)
    splits = [str(split) for split in builder.config.data_files or builder.info.splits or ("train",)]
    if name.split in splits:
        return name.split
    listed = ", ".join(splits)
    if name.split:
        raise UserError(f"{path}: no split {name.split!r} in it, only {listed}")
    if len(splits) > 1 and "train" not in splits:
        raise UserError(f"{path}: several splits ({listed}); give one, for example {path}:{splits[0]}")
    return "train" if "train" in splits else splits[0]


def _asked(path: str | Path, ask: Callable[[], Answer]) -> Answer:
    """What the library answers; whatever it says against a name or its data becomes one line."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]
    from pyarrow import ArrowException

    try:
        return ask()
    except (ConnectionError, httpx.TransportError) as problem:
        raise UserError(
            f"{path}: the hub cannot be reached ({_in_a_line(problem)}); try again with a network, or give files"
        ) from problem
    # The hub's own errors are OSErrors; RuntimeError: a repository with a script; TypeError: columns that cannot be cast.
    except (DatasetsError, ArrowException, OSError, ValueError, RuntimeError, TypeError) as problem:
        raise UserError(f"{path}: it cannot be streamed ({_in_a_line(problem)})") from problem


def _in_a_line(problem: BaseException) -> str:
    return f"{type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
