"""Settings: one dataclass per command, filled from YAML recipes and flags by jsonargparse."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import re
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")
# The fields of TrainingArguments that a command's help lists; the others are settings all the same.
SHOWN = {
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "bf16",
    "gradient_checkpointing",
    "deepspeed",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "seed",
    "report_to",
}


class UserError(ValueError):
    """What is wrong, where, and what to do, in one line for the user; the command exits with code 2."""


def split_pair(value: str, flag: str) -> tuple[str, Path]:
    """`name=FILE` as given to a repeatable flag; raises UserError when there is no `=` or no such file."""
    name, equals, file = value.partition("=")
    if not (name and equals and file):
        raise UserError(f"{flag} {value}: write it as name=FILE, for example {flag} chinese=news.txt")
    if not Path(file).is_file():
        raise UserError(f"{flag} {value}: no such file: {file}")
    return name, Path(file)


def parse(command: str, config_class: type[Config], arguments: list[str]) -> Config:
    """Fill `config_class` from `--config FILE` (repeatable) and `--field.sub value`; later ones win.

    Raises:
        UserError: an unknown or mistyped setting (with "did you mean"), a missing one, a missing recipe.
    """
    import jsonargparse
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(_explain(message, [action.dest for action in self._actions]))

    for recipe in _recipes(arguments):
        if not Path(recipe).is_file():
            raise UserError(f"--config {recipe}: no such file")
    parser = Parser(
        prog=f"zhllama {command}",
        usage=f"zhllama {command} [--config RECIPE.yaml ...] [--SETTING VALUE ...]",
        allow_abbrev=False,
        description=(config_class.__doc__ or "").strip(),
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML recipe; repeatable, later files and flags win",
    )
    parser.add_class_arguments(config_class, sub_configs=False)
    hints = typing.get_type_hints(config_class)
    if "train" in hints:
        _prepare_training_arguments(parser)
    defaults = getattr(config_class, "defaults", None)
    if defaults:  # what only the machine can tell, such as bf16
        parser.set_defaults(defaults())
    lists = {name for name, hint in hints.items() if typing.get_origin(hint) is list}
    switches = {f"--{name}" for name, hint in hints.items() if hint is bool}
    arguments = _switched([_underscored(argument) for argument in arguments], switches)
    if {"-h", "--help"} & set(arguments):
        _tidy_help(parser)
    values = parser.parse_args(_repeatable(arguments, lists))
    values.pop("config", None)
    check = getattr(config_class, "check", None)
    if check:  # before TrainingArguments starts anything
        check(values.train)
    instance = parser.instantiate(values)
    fields = {field.name: instance[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**fields)


def as_given(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain JSON values, for run.json."""

    def plain(value: Any) -> Any:
        if hasattr(value, "to_sanitized_dict"):  # TrainingArguments
            return value.to_sanitized_dict()
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if value is None or isinstance(value, str | int | float | bool) else str(value)

    return typing.cast("dict[str, Any]", plain(config))


def _prepare_training_arguments(parser: Any) -> None:
    """Link --output to TrainingArguments.output_dir and keep the help to what people set."""
    from argparse import SUPPRESS

    parser.link_arguments("output", "train.output_dir")
    for action in parser._actions:
        name = action.dest.removeprefix("train.")
        if action.dest.startswith("train.") and name not in SHOWN:
            action.help = SUPPRESS
    parser.epilog = "Any other field of transformers.TrainingArguments is --train.NAME too."


def _underscored(argument: str) -> str:
    """`--block-size 512` and `--block_size 512` are the same flag; only the flag's name changes."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _switched(arguments: list[str], switches: set[str]) -> list[str]:
    """A bare `--fast` means `--fast true`."""
    following = [*arguments[1:], "--"]
    return [
        f"{argument}=true" if argument in switches and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _tidy_help(parser: Any) -> None:
    """Flags with dashes, one group, no mention of options that nobody needs."""
    from argparse import SUPPRESS

    for action in parser._actions:
        action.option_strings = [
            flag if flag.startswith("--train.") else flag.replace("_", "-")
            for flag in action.option_strings
            if not flag.endswith("+")
        ]
        if action.dest == "print_config" or str(action.help).startswith("Path to a configuration file"):
            action.help = SUPPRESS
    for group in parser._action_groups:
        if str(group.title).startswith("Configuration class for controlling"):
            group.title = "train (transformers.TrainingArguments)"


def _recipes(arguments: list[str]) -> list[str]:
    following = [after for before, after in itertools.pairwise(arguments) if before == "--config"]
    return following + [a.removeprefix("--config=") for a in arguments if a.startswith("--config=")]


def _repeatable(arguments: list[str], lists: set[str]) -> list[str]:
    """`--text a=1 --text b=2` as jsonargparse spells it: the first replaces the recipe's list, the rest append."""
    rewritten: list[str] = []
    seen: set[str] = set()
    position = 0
    while position < len(arguments):
        flag, equals, value = arguments[position].partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or name not in lists:
            rewritten.append(arguments[position])
            position += 1
            continue
        if not equals:
            position += 1
            value = arguments[position] if position < len(arguments) else ""
        position += 1
        rewritten.append(f"--{name}+={value}" if name in seen else f"--{name}={_as_list(value)}")
        seen.add(name)
    return rewritten


def _as_list(value: str) -> str:
    import json

    return value if value.startswith("[") else json.dumps([value], ensure_ascii=False)


def _explain(message: str, known: list[str]) -> str:
    """One line from jsonargparse's message, with the nearest known setting."""
    if "train.output_dir" in message:
        return "train.output_dir is --output: set that instead"
    unknown = re.search(
        r"(?:Option '|[Uu]nrecognized arguments: --|[Kk]ey '|Group '|Key \"|does not accept option ')([\w.\-]+)",
        message,
    )
    if unknown and ("not accepted" in message or "nrecognized" in message or "not expected" in message):
        key = unknown.group(1).replace("-", "_")
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        return f"unknown setting {key!r}" + (f": did you mean {near[0]!r}?" if near else "; see --help")
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(lines[:4])
