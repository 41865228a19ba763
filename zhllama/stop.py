"""Runs that had to stop and can go on: a full disk, a worker that the system killed."""

from __future__ import annotations

import errno
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
