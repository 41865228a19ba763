"""Settings: one dataclass per command, filled from YAML recipes and flags by jsonargparse."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from zhllama.mistake import NO_VALUE, Setting, declared, find_mistake, members
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

    # The docstrings below fields are their help.
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

    # Python keeps such bytes as lone surrogates; YAML, safetensors and tokenizers know no such text.
    if wrong := re.search(r"\S*[\ud800-\udfff].*", "\n".join(arguments)):
        raise UserError(f"{wrong[0]}: not UTF-8; rename the file or folder (convmv -f gbk -t utf-8 does)")
    # Recipes are found and looked at before flags: a wrong one is named, not quoted by the parser.
    arguments = find_recipes(arguments)
    for recipe in (a.removeprefix("--config=") for a in arguments if a.startswith("--config=")):
        read_recipe(recipe)
    parser = jsonargparse.ArgumentParser(
        prog=f"zhllama {command}",
        usage=f"zhllama {command} [--config RECIPE.yaml ...] [--SETTING VALUE ...]",
        # A beginning of a flag would mean another setting as soon as one more is added.
        allow_abbrev=False,
        # Errors come back as exceptions, to be said in one line of ours.
        exit_on_error=False,
        description=(config_class.__doc__ or "").strip(),
    )
    parser.add_argument(
        "--config",
        action=ActionConfigFile,
        help="YAML recipe; repeatable, later files and flags win",
    )
    # No configs within configs: a recipe is one file, and later ones win.
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
    settings = declared(config_class)
    switches = {f"--{name}" for name, setting in settings.items() if bool in members(setting.hint)}
    arguments = _switched([_underscored(argument) for argument in arguments], switches)
    # Only for the help: the parser below knows flags with underscores.
    if {"-h", "--help"} & set(arguments):
        _tidy_help(parser, lists)
    arguments = _repeatable(arguments, lists)
    try:
        values = parser.parse_args(arguments)
    except jsonargparse.ArgumentError as problem:
        line = find_mistake(settings, _given(arguments, settings, lists))
        raise UserError(line or _one_line(str(problem))) from problem
    values.pop("config", None)
    # A recipe's group that is no mapping leaves `train` without a field, and nothing said so.
    if "train" in hints and "train.max_steps" not in values:
        raise UserError(
            find_mistake(settings, _given(arguments, settings, lists)) or "train: not a group of settings"
        )
    check = getattr(config_class, "check", None)
    if check:  # before TrainingArguments starts anything
        check(values)
    try:
        # Only groups are built here, with the checks of each; the whole is built last.
        instance = parser.instantiate(values)
    except UserError:
        raise
    except ValueError as problem:  # TrainingArguments refuses a choice or a combination
        raise UserError(f"train: {_one_line(str(problem))}") from problem
    except TypeError as problem:  # a recipe's group is no mapping, which jsonargparse sees too late
        line = find_mistake(settings, _given(arguments, settings, lists))
        if not line:
            raise
        raise UserError(line) from problem
    fields = {field.name: instance[field.name] for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**fields)


def as_given(config: Any) -> dict[str, Any]:
    """The settings of a dataclass as plain JSON values, for run.json."""

    def plain(value: Any) -> Any:
        # Its own way to plain values, without the tokens that grant access.
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
    # One directory a run: a second setting for it could only contradict.
    parser.link_arguments("output", "train.output_dir")
    for action in parser._actions:
        name = action.dest.removeprefix("train.")
        if action.dest.startswith("train.") and name not in SHOWN:
            action.help = SUPPRESS
    parser.epilog = "Any other field of transformers.TrainingArguments is --train.NAME too."


def read_recipe(recipe: str) -> dict[str, Any]:
    """A recipe's content; what is no YAML mapping is refused by name: jsonargparse would quote the content instead."""
    if not Path(recipe).is_file():
        raise UserError(f"--config {recipe}: no such file")
    try:
        content = _yaml(Path(recipe).read_text(encoding="utf-8"), f"--config {recipe}")
    except UnicodeDecodeError as problem:
        raise UserError(
            f"--config {recipe}: not UTF-8 at byte {problem.start}; convert it with iconv"
        ) from problem
    # Lines such as `Note:` are a mapping to YAML, with nothing in it.
    if not isinstance(content, dict) or all(value is None for value in content.values()):
        raise UserError(f"--config {recipe}: not a recipe; it needs lines of `setting: value`")
    train = content.get("train")
    if "train.output_dir" in content or (isinstance(train, dict) and "output_dir" in train):
        raise UserError(f"--config {recipe}: train.output_dir is --output: set that instead")
    return content


def _underscored(argument: str) -> str:
    """`--block-size 512` and `--block_size 512` are the same flag; only the flag's name changes."""
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    # Not the value: a file's name may have dashes.
    return "--" + flag[2:].replace("-", "_") + equals + value


def _switched(arguments: list[str], switches: set[str]) -> list[str]:
    """A bare `--fast` means `--fast true`."""
    # A flag at the end counts as one before another flag.
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
        # As JSON, so that text such as [MASK] or 007 stays text.
        rewritten.append(f"{flag}={json.dumps(items, ensure_ascii=False)}")
    return rewritten


def _given(
    arguments: list[str], settings: dict[str, Setting], lists: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    """Name and value of all that recipes and flags set, in their order."""
    stream = iter(arguments)
    for argument in stream:
        flag, equals, value = argument.partition("=")
        if not flag.startswith("--"):
            continue
        name = flag.removeprefix("--").removesuffix("+")
        if name == "train.output_dir":
            raise UserError("train.output_dir is --output: set that instead")
        if not equals:
            value = next(stream, "--")
        if name == "config":
            yield from {} if value.startswith("--") else read_recipe(value).items()
        elif value.startswith("--"):
            yield name, NO_VALUE
        elif name in lists:
            yield name, json.loads(value)
        else:  # a group may be given whole, as YAML
            group = name not in settings and value.startswith("{")
            yield name, _yaml(value, f"{flag} {value}") if group else value


def _yaml(text: str, where: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else "?"
        raise UserError(f"{where}: not YAML in line {line}: {problem.problem}") from problem
    except yaml.YAMLError as problem:  # a control character
        raise UserError(f"{where}: not YAML: {_one_line(str(problem))}") from problem


def _one_line(message: str) -> str:
    return " ".join(line.strip(" -") for line in message.splitlines() if line.strip(" -"))
