"""Directories that commands read and write: `run.json` says how each was made, and its result comes last.

A directory is *finished* when its `run.json` has a `result`. Readers refuse any other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

from zhllama import tables
from zhllama.config import UserError, as_given
from zhllama.stop import StoppedError, remove, stopped_when_full

RUN_FILE = "run.json"
VERSIONED = ("zhllama", "torch", "transformers", "peft", "deepspeed", "sentencepiece", "tokenizers",
             "datasets")  # fmt: skip
# Reports, plots, checkpoints and what `datasets` computes beside its data are not what a reader takes from a directory.
NOT_CONTENT = re.compile(
    r"(run\.json|report\.json|metrics\.jsonl|progress\.jsonl|.*\.(png|html|md)|checkpoint-\d+|logs|cache-.*\.arrow)$|\."
)


@dataclass(frozen=True)
class Opened:
    """A directory or file that a flag names: looked up once, and handed down instead of its path.

    Each kind of directory is a subclass, which reads what it needs of it at the first question.

    Attributes:
        path: where it lies on this machine.
        flag: what named it, for messages.
        record: the content of its `run.json`; empty for a file or a directory that no command of ours wrote.
    """

    path: Path
    flag: str
    record: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    kind: ClassVar[str] = ""
    """As `run.json` names it: corpus, tokenizer, model, tokens, run or report."""

    @classmethod
    def open(cls, source: str | Path, flag: str = "") -> Self:
        """Look up what a flag names, and check that it is finished and of the right kind.

        Raises:
            UserError: nothing there, an unfinished run, or a directory of another kind.
        """
        path, flag = Path(source), flag or f"--{cls.kind}"
        if not path.exists():
            return cls(cls.elsewhere(str(source), flag), flag)
        record = read_record(path)
        if record and "result" not in record:
            did = f"its {record['command']} run did not finish"
            raise UserError(f"{flag} {source}: {did}; run that command again")
        # A model directory has its tokenizer inside.
        if record and record["kind"] not in (cls.kind, "model" if cls.kind == "tokenizer" else cls.kind):
            raise UserError(
                f"{flag} {source}: this is a {record['kind']} directory (made by {record['command']}), "
                f"and a {cls.kind} directory is needed"
            )
        return cls(path, flag, record)

    @classmethod
    def elsewhere(cls, source: str, flag: str) -> Path:
        """Where to find what is no local path; raises UserError where nothing is."""
        raise UserError(f"{flag} {source}: no such file or directory")

    def __str__(self) -> str:
        return str(self.path)

    @property
    def result(self) -> dict[str, Any]:
        """What its command recorded as its result; empty where there is no record."""
        return dict(self.record.get("result", {}))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of its content, computed once: a 70B model is read for it where no record says it."""
        return str(self.result.get("fingerprint") or fingerprint(self.path))


Input = Opened | str | Path  # what a command reads, as `create` takes it


@dataclass
class Artifact:
    """A directory being written; what goes into `result` is what later commands may rely on.

    Where it is `left_to_others`, another process will finish it, and `create` leaves it unfinished.
    """

    path: Path
    record: dict[str, Any]
    result: dict[str, Any] = field(default_factory=dict)
    left_to_others: bool = False


@contextmanager
def create(
    output: str | Path,
    kind: str,
    command: str,
    config: Any,
    inputs: Mapping[str, Input],
    resume: bool = False,
) -> Iterator[Artifact]:
    """Write one directory: `run.json` without result first, with it last and atomically.

    An unfinished directory of the same command is started again (or, with `resume`, continued). A UserError
    removes what was begun, unless it holds checkpoints; a StoppedError, an interrupt or a full disk leaves it,
    recognisable as unfinished.

    Args:
        kind: corpus, tokenizer, model, tokens, run or report.
        inputs: setting name -> path of what is read, fingerprinted into `run.json`.

    Raises:
        UserError: `output` holds a finished run or files that no zhllama command wrote, lies inside an input, or
            cannot be made; with `resume`, the inputs are not those that the run began with; no space is left.
    """
    path = Path(output)
    with stopped_when_full(path):
        # Before anything is fingerprinted: a refusal needs no look at a 70B model's bytes.
        continued = _is_unfinished(path, command, inputs)
        if continued and not resume:
            remove(path)
            continued = False
        record: dict[str, Any] = {
            "command": command,
            "kind": kind,
            "settings": as_given(config),
            "versions": {name: _version(name) for name in VERSIONED},
            "inputs": described(inputs),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if continued:
            _check_continues(path, record["inputs"])
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise UserError(f"--output {path}: it cannot be made ({problem.strerror})") from problem
        write_json(path / RUN_FILE, record)
        artifact = Artifact(path, record)
        begun = time.monotonic()
        try:
            yield artifact
        except StoppedError:
            raise
        except UserError:
            if not continued and not any(path.glob("checkpoint-*")):  # hours of work are not half-written
                remove(path)
            raise
        if artifact.left_to_others:
            return
        _grant_by_umask(path)
        record["seconds"] = round(time.monotonic() - begun, 1)
        # Last: readers take a directory with a result for finished.
        record["result"] = {**artifact.result, "fingerprint": _content_hash(path)}
        write_json(path / RUN_FILE, record)


def _grant_by_umask(path: Path) -> None:
    """Give files that only their owner can read what the umask grants: safetensors makes its own so, under any umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in path.rglob("*"):
        if file.is_file() and not file.stat().st_mode & 0o077:
            file.chmod(0o666 & ~umask)


def check_resumable(output: str | Path, command: str, inputs: Mapping[str, Input]) -> None:
    """Refuse what `create` with `resume` refuses, and write nothing: for the ranks that only follow."""
    if _is_unfinished(Path(output), command, inputs):
        _check_continues(Path(output), described(inputs))


def read_record(path: str | Path) -> dict[str, Any]:
    """The content of a directory's `run.json`, or an empty dict where there is none (a foreign directory).

    Raises:
        UserError: a `run.json` that is no JSON.
    """
    file = Path(path) / RUN_FILE
    if not file.is_file():
        return {}
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise UserError(f"{file}: damaged ({problem}); delete the directory and make it again") from problem
    return content if isinstance(content, dict) and {"command", "kind"} <= set(content) else {}


def check_same(left: str, left_fingerprint: str, right: str, right_fingerprint: str, remedy: str) -> None:
    """Raise UserError naming both sides and the remedy unless two fingerprints are equal."""
    if left_fingerprint != right_fingerprint:
        raise UserError(
            f"{left} ({left_fingerprint[:12]}) does not match {right} ({right_fingerprint[:12]}): {remedy}"
        )


def fingerprint(path: str | Path) -> str:
    """sha256 of a file, or of a directory's content (without reports and checkpoints); of hf:NAME its commit.

    Raises:
        UserError: a file that cannot be read; inside a directory such a file counts by its name alone.
    """
    path = Path(path)
    if tables.is_named(path):
        return tables.fingerprint(path)
    if path.is_file():
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise UserError(f"{path}: it cannot be read ({problem.strerror})") from problem
    recorded = read_record(path).get("result", {}).get("fingerprint")
    return str(recorded) if recorded else _content_hash(path)


def numbered(name: str, given: Sequence[Input]) -> dict[str, Input]:
    """The inputs that a repeatable flag gives: `name`, `name 2`, `name 3` and so on."""
    return {name if place == 1 else f"{name} {place}": one for place, one in enumerate(given, 1)}


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    content = json.dumps(value, ensure_ascii=False, indent=1) + "\n"  # what is no UTF-8 of a path as `\udcd6`
    temporary.write_text(content, encoding="utf-8", errors="backslashreplace")
    temporary.replace(path)


def described(inputs: Mapping[str, Input]) -> dict[str, dict[str, str]]:
    """Path and fingerprint of each input, as `run.json` keeps them."""
    opened = {name: one if isinstance(one, Opened) else Opened(Path(one), "") for name, one in inputs.items()}
    return {name: {"path": str(one), "fingerprint": one.fingerprint} for name, one in opened.items()}


def _is_unfinished(path: Path, command: str, inputs: Mapping[str, Input]) -> bool:
    """Whether `path` holds an unfinished run of this command; UserError where it is not ours to write."""
    for name, source in inputs.items():
        if Path(str(source)).resolve() in path.resolve().parents:
            raise UserError(f"--output {path}: lies inside --{name} {source}; choose a directory elsewhere")
    if path.is_file():
        raise UserError(f"--output {path}: a file is in the way; choose another directory")
    # Another rank may be writing the first run.json at this moment.
    if not path.is_dir() or all(file.name == f"{RUN_FILE}.tmp" for file in path.iterdir()):
        return False
    record = read_record(path)
    if not record:
        raise UserError(f"--output {path}: not empty, and not written by zhllama; choose another directory")
    if "result" in record or record.get("command") != command:
        state = "already holds a" if "result" in record else "holds an unfinished"
        raise UserError(
            f"--output {path}: {state} run of {record['command']}; choose another directory or delete this one"
        )
    return True


def _check_continues(path: Path, inputs: dict[str, dict[str, str]]) -> None:
    """An unfinished run goes on only with the inputs that it began with."""
    begun = read_record(path)["inputs"]
    nothing = {"path": "nothing", "fingerprint": "nothing"}
    for name in begun | inputs:
        then, now = begun.get(name, nothing), inputs.get(name, nothing)
        begun_with = f"--output {path}, begun with --{name} {then['path']}"
        remedy = "give the same inputs, or choose another directory"
        check_same(begun_with, then["fingerprint"], now["path"], now["fingerprint"], remedy)


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    # By name: the order of a listing is the file system's own.
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(NOT_CONTENT.match(part) for part in relative.parts):
            try:
                content = fingerprint(file)
            except UserError:  # whoever needs it will say so
                content = "unreadable"
            digest.update(f"{relative.as_posix()}\0{content}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
