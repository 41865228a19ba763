"""The one line for settings that do not decode: a name that no field has, a value of another type, a missing one.

jsonargparse says so in English that no version promises to keep; here each value is tried against its declared type
alone. Only what it has refused comes here.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

NO_VALUE = object()  # of a flag at the end, or before another
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of a dataclass, its own groups' fields included."""

    hint: Any
    """Its declared type."""
    needed: bool
    """Whether it has no default."""


def declared(config_class: type, prefix: str = "") -> dict[str, Setting]:
    """The settings of a dataclass by dotted name; a field that is a dataclass is a group of them."""
    hints = typing.get_type_hints(config_class)
    found: dict[str, Setting] = {}
    for field in dataclasses.fields(config_class):
        hint, name = hints[field.name], prefix + field.name
        # is_dataclass holds for instances as well.
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= declared(hint, f"{name}.")
        # What a dataclass computes for itself is no setting.
        elif field.init:
            bare = field.default is field.default_factory is dataclasses.MISSING
            found[name] = Setting(hint, needed=bare)
    return found


def find_mistake(settings: dict[str, Setting], given: Iterable[tuple[str, Any]]) -> str | None:
    """The first mistake in names and values as flags and recipes give them; None if each is right by itself."""
    seen = set()
    # In the order given, so that the first mistake is the one that is read first.
    for name, value in _leaves(given, settings):
        seen.add(name)
        if name in settings:
            line = None if value is NO_VALUE else _mistyped(name, value, settings[name].hint)
        # A group that got a value of its own.
        elif any(known.startswith(f"{name}.") for known in settings):
            line = f"{name} {value}: a group; set --{name}.NAME"
        else:
            line = _unknown(name, settings)
        if line:
            return line
    # Only once all else is right: a mistyped name is the likelier reason why one is missing.
    missing = [name for name, setting in settings.items() if setting.needed and name not in seen]
    flags = ", ".join("--" + name.replace("_", "-") for name in missing)
    return f"missing {flags}; see --help" if missing else None


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _leaves(given: Iterable[tuple[str, Any]], settings: dict[str, Setting]) -> Iterator[tuple[str, Any]]:
    """Groups taken apart (`inner: {rank: 1}` is inner.rank, 1), entries of a setting that is a mapping put back."""
    for name, value in given:
        parent, _, key = str(name).rpartition(".")
        if isinstance(value, dict) and name not in settings:
            yield from _leaves(((f"{name}.{key}", item) for key, item in value.items()), settings)
        elif parent in settings and _is_mapping(settings[parent].hint):
            yield parent, NO_VALUE if value is NO_VALUE else {key: value}
        else:
            yield str(name), value


def _is_mapping(hint: Any) -> bool:
    return any(dict in (member, typing.get_origin(member)) for member in members(hint))


def _unknown(name: str, settings: dict[str, Setting]) -> str:
    # 0.5 instead of difflib's 0.6: `rank` is to find `inner.rank`.
    near = difflib.get_close_matches(name.replace("-", "_"), settings, n=1, cutoff=0.5)
    return f"unknown setting {name!r}" + (f": did you mean {near[0]!r}?" if near else "; see --help")


def _mistyped(name: str, value: Any, hint: Any) -> str | None:
    # Of a list the wrong item is named, not the whole.
    if typing.get_origin(hint) is not list or not isinstance(value, list):
        return None if _fits(value, hint) else f"{name} {value}: it must be {_kind(hint)}"
    (of_item,) = typing.get_args(hint)
    for item in value:
        if dataclasses.is_dataclass(of_item) and isinstance(item, dict) and isinstance(of_item, type):
            line = find_mistake(declared(of_item), item.items())
            if line:
                return f"{name}: {line}"
        elif not _fits(item, of_item):
            return f"{name} {item}: it must be {_kind(hint)}"
    return None


def _fits(value: Any, hint: Any) -> bool:
    """Whether jsonargparse takes a value for a type."""
    import jsonargparse

    # A parser of one value: what jsonargparse converts (2e-4 to a number) is no mistake here either.
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_object({"value": value})
    except jsonargparse.ArgumentError:
        return False
    return True


def _kind(hint: Any) -> str:
    """What a value of a type looks like, for people."""
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(item):
            example = ", ".join(f"{field.name}: ..." for field in dataclasses.fields(item))
            return f"a list such as [{{{example}}}]"
        return f"a list such as [{', '.join(typing.get_args(item)) or 'a, b'}]"
    if typing.get_origin(hint) is dict:
        return "a mapping of {} to {}".format(*map(_kind, typing.get_args(hint)))
    choices = [
        str(choice.value if isinstance(choice, enum.Enum) else choice)
        for member in members(hint)
        for choice in (member if isinstance(member, enum.EnumType) else typing.get_args(member))
    ]
    names = [NAMES[member] for member in members(hint) if member in NAMES]
    return f"one of {', '.join(choices)}" if choices else " or ".join(names) or str(hint)
