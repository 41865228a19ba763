"""Directories that commands read and write: `run.json` says how each was made, and its result comes last.

A directory is *finished* when its `run.json` has a `result`. Readers refuse any other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zhllama import tables
from zhllama.config import UserError, as_given
from zhllama.stop import StoppedError, stopped_when_full

RUN_FILE = "run.json"
VERSIONED = ("zhllama", "torch", "transformers", "peft", "deepspeed", "sentencepiece", "tokenizers",
             "datasets")  # fmt: skip
# Reports, plots, checkpoints and what `datasets` computes beside its data are not what a reader takes from a directory.
NOT_CONTENT = re.compile(
    r"(run\.json|report\.json|metrics\.jsonl|progress\.jsonl|.*\.(png|html|md)|checkpoint-\d+|logs|cache-.*\.arrow)$|\."
)


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
    inputs: Mapping[str, str | Path],
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
        continued = _is_unfinished(path, command, inputs)
        if continued and not resume:
            remove(path)
            continued = False
        record: dict[str, Any] = {
            "command": command,
            "kind": kind,
            "settings": as_given(config),
            "versions": {name: _version(name) for name in VERSIONED},
            "inputs": _described(inputs),
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
        record["result"] = {**artifact.result, "fingerprint": _content_hash(path)}
        write_json(path / RUN_FILE, record)


def remove(path: Path) -> None:
    """Delete a directory in one step: a kill in between leaves another name, and no part that nobody knows."""
    gone = path.with_name(f".{path.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone)


def _grant_by_umask(path: Path) -> None:
    """Give files that only their owner can read what the umask grants: safetensors makes its own so, under any umask."""
    umask = os.umask(0o077)
    os.umask(umask)
    for file in path.rglob("*"):
        if file.is_file() and not file.stat().st_mode & 0o077:
            file.chmod(0o666 & ~umask)


def check_resumable(output: str | Path, command: str, inputs: Mapping[str, str | Path]) -> None:
    """Refuse what `create` with `resume` refuses, and write nothing: for the ranks that only follow."""
    if _is_unfinished(Path(output), command, inputs):
        _check_continues(Path(output), _described(inputs))


def require(source: str | Path, kind: str, flag: str) -> Path:
    """The directory or file behind a flag, checked to be finished and of the right kind.

    A name like `org/model` that is no local path is fetched from the hub; hf:NAME, a corpus, is streamed when it is read.

    Raises:
        UserError: nothing there, an unfinished run, or a directory of another kind.
    """
    path = Path(source)
    if not path.exists():
        return path if kind == "corpus" and tables.is_named(path) else _from_hub(str(source), flag)
    record = read_record(path)
    if not record:
        return path
    if "result" not in record:
        raise UserError(
            f"{flag} {source}: its {record.get('command', 'zhllama')} run did not finish; run that command again"
        )
    if record["kind"] != kind and not (kind == "tokenizer" and record["kind"] == "model"):
        raise UserError(
            f"{flag} {source}: this is a {record['kind']} directory (made by {record['command']}), "
            f"and a {kind} directory is needed"
        )
    return path


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


def tokenizer_fingerprint(directory: Path) -> str:
    """sha256 of the file that decides a directory's token ids; a model and the tokenizer it holds agree in it."""
    for name in ("tokenizer.json", "tokenizer.model"):
        if (directory / name).is_file():
            return fingerprint(directory / name)
    raise UserError(f"{directory}: no tokenizer.json or tokenizer.model inside")


def numbered(name: str, paths: Sequence[str | Path]) -> dict[str, str | Path]:
    """The inputs that a repeatable flag gives: `name`, `name 2`, `name 3` and so on."""
    return {name if place == 1 else f"{name} {place}": path for place, path in enumerate(paths, 1)}


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: a reader sees the old file or the whole new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _described(inputs: Mapping[str, str | Path]) -> dict[str, dict[str, str]]:
    return {
        name: {"path": str(source), "fingerprint": fingerprint(source)} for name, source in inputs.items()
    }


def _is_unfinished(path: Path, command: str, inputs: Mapping[str, str | Path]) -> bool:
    """Whether `path` holds an unfinished run of this command; a UserError where it is not ours to write."""
    for name, source in inputs.items():
        if Path(source).resolve() in path.resolve().parents:
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
        check_same(
            f"--output {path}, begun with --{name} {then['path']}",
            then["fingerprint"],
            now["path"],
            now["fingerprint"],
            "give the same inputs, or choose another directory",
        )


def _from_hub(name: str, flag: str) -> Path:
    """A hub snapshot, where the name looks like one and the hub answers."""
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):  # ./name and ../name are paths
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            return Path(
                snapshot_download(
                    name, allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
                )
            )
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as problem:
            raise UserError(
                f"{flag} {name}: no such directory here, and the hub gave none ({type(problem).__name__})"
            ) from problem
    raise UserError(f"{flag} {name}: no such file or directory")


def _content_hash(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not any(NOT_CONTENT.match(part) for part in relative.parts):
            try:
                content = fingerprint(file)
            except UserError:  # whoever needs it will say so
                content = "unreadable"
            digest.update(f"{relative.as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
