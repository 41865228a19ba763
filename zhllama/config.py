"""Settings: one dataclass per command, filled from YAML recipes and flags by jsonargparse."""

from __future__ import annotations

import dataclasses
import difflib
import enum
import json
import re
import types
import typing
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from zhllama.recipes.find import find_recipes

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
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}


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
    """Fill `config_class` from `--config FILE` (repeatable; here, or shipped) and `--field.sub value`; later ones win.

    Raises:
        UserError: an unknown or mistyped setting (with "did you mean"), a missing one, a value of the wrong type,
            a recipe that is missing, not UTF-8, not YAML or not a mapping.
    """
    import jsonargparse
    from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

    class Parser(jsonargparse.ArgumentParser):
        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            raise UserError(_explain(message, {a.dest: getattr(a, "_typehint", None) for a in self._actions}))

    arguments = find_recipes(arguments)
    for recipe in (a.removeprefix("--config=") for a in arguments if a.startswith("--config=")):
        _check_recipe(recipe)
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
    if dataclasses.is_dataclass(hints.get("train")):
        _prepare_training_arguments(parser, hints["train"])
    defaults = getattr(config_class, "defaults", None)
    if defaults:  # what only the machine can tell, such as bf16
        parser.set_defaults(defaults())
    lists = {
        name: typing.get_args(hint)[0] for name, hint in hints.items() if typing.get_origin(hint) is list
    }
    switches = {
        f"--{action.dest}"
        for action in parser._actions
        if bool in _members(getattr(action, "_typehint", None))
    }
    arguments = _switched([_underscored(argument) for argument in arguments], switches)
    if {"-h", "--help"} & set(arguments):
        _tidy_help(parser, lists)
    values = parser.parse_args(_repeatable(arguments, lists))
    values.pop("config", None)
    check = getattr(config_class, "check", None)
    if check:  # before TrainingArguments starts anything
        check(values)
    try:
        instance = parser.instantiate(values)
    except UserError:
        raise
    except ValueError as problem:  # TrainingArguments refuses a choice or a combination
        raise UserError(f"train: {_one_line(str(problem))}") from problem
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


def _prepare_training_arguments(parser: Any, train_class: Any) -> None:
    """Link --output to TrainingArguments.output_dir and keep the help to what people set.

    The defaults become those of the class again: an instance has resolved its own, and a resolved
    activation_checkpointing=False would overrule the gradient_checkpointing=True of a recipe.
    """
    from argparse import SUPPRESS

    parser.set_defaults(
        {
            f"train.{field.name}": field.default
            for field in dataclasses.fields(train_class)
            if field.default is not dataclasses.MISSING and field.name != "output_dir"
        }
    )
    parser.link_arguments("output", "train.output_dir")
    for action in parser._actions:
        name = action.dest.removeprefix("train.")
        if action.dest.startswith("train.") and name not in SHOWN:
            action.help = SUPPRESS
    parser.epilog = "Any other field of transformers.TrainingArguments is --train.NAME too."


def _check_recipe(recipe: str) -> None:
    """Refuse what is no YAML mapping, by name: jsonargparse would quote the content instead."""
    if not Path(recipe).is_file():
        raise UserError(f"--config {recipe}: no such file")
    try:
        content = _yaml(Path(recipe).read_text(encoding="utf-8"), f"--config {recipe}")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"--config {recipe}: not UTF-8 at byte {problem.start}; convert it with iconv"
        ) from problem
    if not isinstance(content, dict) or all(value is None for value in content.values()):
        raise UserError(f"--config {recipe}: not a recipe; it needs lines of `setting: value`")
    train = content.get("train")
    if "train.output_dir" in content or (isinstance(train, dict) and "output_dir" in train):
        raise UserError(f"--config {recipe}: train.output_dir is --output: set that instead")


def _underscored(argument: str) -> str:
    """`--block-size 512` and `--block_size 512` are the same flag; only the flag's name changes."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return "--" + flag[2:].replace("-", "_") + equals + value


def _switched(arguments: list[str], switches: set[str]) -> list[str]:
    """A bare `--fast` means `--fast true`."""
    following = [*arguments, "--"][1:]
    return [
        f"{argument}=true" if argument in switches and after.startswith("-") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _tidy_help(parser: Any, lists: dict[str, Any]) -> None:
    """Flags with dashes, one group, no mention of options that nobody needs."""
    from argparse import SUPPRESS

    for action in parser._actions:
        action.option_strings = [
            flag if flag.startswith("--train.") else flag.replace("_", "-")
            for flag in action.option_strings
            if not flag.endswith("+")
        ]
        if action.dest in lists:  # given once for each item
            action.metavar = "ITEM"
        if action.dest == "print_config" or str(action.help).startswith("Path to a configuration file"):
            action.help = SUPPRESS
    for group in parser._action_groups:
        if str(parser.description).startswith(str(group.title)):
            group.title = "settings"


def _repeatable(arguments: list[str], lists: dict[str, Any]) -> list[str]:
    """`--text a=1 --text b=2` as lists that grow, `--text=["a=1"] --text=["a=1", "b=2"]`: the last one wins.

    Text is taken as it stands (`--special [MASK]` is no list); other items are YAML.
    """
    rewritten: list[str] = []
    gathered: dict[str, list[Any]] = {}
    stream = iter(arguments)
    for argument in stream:
        flag, equals, value = argument.partition("=")
        name = flag.removeprefix("--")
        if not flag.startswith("--") or name not in lists:
            rewritten.append(argument)
            continue
        if not equals:
            value = next(stream, "--")
            if value.startswith("--"):
                raise UserError(f"{flag}: give it a value")
        item = value if lists[name] is str else _yaml(value, f"{flag} {value}")
        items = gathered.setdefault(name, [])
        items.extend(item if isinstance(item, list) else [item])
        rewritten.append(f"{flag}={json.dumps(items, ensure_ascii=False)}")
    return rewritten


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else "?"
        raise UserError(f"{where}: not YAML in line {line}: {problem.problem}") from problem
    except yaml.YAMLError as problem:  # a control character
        raise UserError(f"{where}: not YAML: {_one_line(str(problem))}") from problem


def _explain(message: str, settings: dict[str, Any]) -> str:
    """One line from jsonargparse's message, with the nearest of the settings (name -> type) or the type wanted."""
    if "train.output_dir" in message:
        return "train.output_dir is --output: set that instead"
    unknown = re.search(r"unrecognized arguments: --([\w.-]+)|Option '([\w.-]+)' is not accepted", message)
    grouped = re.search(r"Group '([\w.]+)' does not accept option '([\w.-]+)'", message)
    if match := unknown or grouped:
        key = ".".join(filter(None, match.groups()))
        near = difflib.get_close_matches(key.replace("-", "_"), settings, n=1, cutoff=0.5)
        return f"unknown setting {key!r}" + (f": did you mean {near[0]!r}?" if near else "; see --help")
    missing = re.search(r"arguments are required: (.+)", message)
    if missing:
        flags = ", ".join("--" + name.replace("_", "-") for name in missing.group(1).split(", "))
        return f"missing {flags}; see --help"
    typed = re.match(r'Parser key "([^"]+)":\s*(.+)', message, re.DOTALL)
    if not typed:
        return _one_line(message)
    key, what = typed.groups()
    value = re.search(r"(?:Got value|Given value|import path string): (.*)|load config '(.*)'", what)
    if not value:  # an item's own message
        return f"{key}: {_one_line(what)}"
    given = next(filter(None, value.groups()), "")
    hint = settings.get(key)
    return f"{key} {given}: " + (f"it must be {_kind(hint)}" if hint else f"a group; set --{key}.NAME")


def _kind(hint: Any) -> str:
    """What a value of a type looks like, for people."""
    if typing.get_origin(hint) is list:
        item = typing.get_args(hint)[0]
        if dataclasses.is_dataclass(item):
            example = ", ".join(f"{field.name}: ..." for field in dataclasses.fields(item))
            return f"a list such as [{{{example}}}]"
        return f"a list such as [{', '.join(typing.get_args(item)) or 'a, b'}]"
    choices = [
        str(choice.value if isinstance(choice, enum.Enum) else choice)
        for member in _members(hint)
        for choice in (member if isinstance(member, enum.EnumType) else typing.get_args(member))
    ]
    names = [NAMES[member] for member in _members(hint) if member in NAMES]
    return f"one of {', '.join(choices)}" if choices else " or ".join(names) or str(hint)


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _one_line(message: str) -> str:
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
