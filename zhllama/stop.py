"""Runs that had to stop and can go on: a full disk, a worker that the system killed, a kill in between."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zhllama.config import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no more of a user's share, no larger file


class StoppedError(UserError):
    """Nothing in the settings is wrong: what was done stays, and the same command goes on from it."""


@contextmanager
def stopped_when_full(output: Path) -> Iterator[None]:
    """Raise StoppedError where `output` has no more room."""
    try:
        yield
    except OSError as problem:
        if problem.errno not in FULL:
            raise
        raise StoppedError(
            f"--output {output}: it cannot be written ({problem.strerror}); make room and run the same command again"
        ) from problem


def remove(path: Path) -> None:
    """Delete a directory in one step."""
    # Hidden, and in the same folder: a name elsewhere may be on another disk, which is no single step.
    gone = path.with_name(f".{path.name}.removed")
    # What a kill left of an earlier removal.
    shutil.rmtree(gone, ignore_errors=True)
    # A kill from here on leaves another name, and no part of a directory that would pass for the whole.
    path.rename(gone)
    shutil.rmtree(gone)
