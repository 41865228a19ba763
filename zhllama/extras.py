"""Packages that not every user needs: one line that names the extra to install where they are missing."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires, version

from zhllama.config import UserError

NAMED = 3  # missing packages that the line names


def require_extra(what: str, extra: str, *packages: str) -> None:
    """Refuse, before any work, what needs an extra of this project that is not installed.

    Args:
        what: who needs it: a command, a setting or a file.
        packages: those of the extra that are needed; all of them where none is named.

    Raises:
        UserError: with the command that installs it.
    """
    if missing := [name for name in packages or packages_of(extra) if not is_installed(name)]:
        named = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise UserError(
            f"{what} needs the extra [{extra}]: pip install 'zhllama[{extra}]' (not installed: {named})"
        )


def packages_of(extra: str) -> list[str]:
    """What an extra brings by the project's own metadata, that of extras inside it too; nothing where it is unknown.

    The metadata is written from pyproject.toml, which stays the only list (core metadata, `Requires-Dist`).
    """
    try:
        requirements = requires("zhllama") or []
    except PackageNotFoundError:  # run from its folder, never installed
        return []
    names: list[str] = []
    for requirement in requirements:
        # Builders of wheels write either kind of quotation mark.
        if re.search(rf"""extra == ['"]{extra}['"]""", requirement):
            # Name, then extras in brackets; versions and conditions stand behind.
            name, _, inner = re.findall(r"^([\w.-]+)(\[([\w,-]+)\])?", requirement)[0]
            # [all] names the other extras of the project itself.
            parts = inner.split(",") if name == "zhllama" else []
            names += [one for part in parts for one in packages_of(part)] or [name]
    return list(dict.fromkeys(names))


def is_installed(package: str) -> bool:
    """Whether a package, by its name in the registry, is installed."""
    try:
        # By metadata, not by import: importing torch or ray to see whether they are there takes seconds.
        version(package)
    except PackageNotFoundError:
        return False
    return True
