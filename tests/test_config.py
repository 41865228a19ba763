"""Settings: recipes and flags layered, and one line for every mistake."""

import json
import re
import typing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser

from zhllama.cli import COMMANDS
from zhllama.config import UserError, as_given, parse, split_pair

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(
    file for stage in ("tokenizer", "pretrain", "sft") for file in (ROOT / stage).rglob("*.yaml")
)


@dataclass
class Row:
    """A row of a table."""

    file: str
    """Where it is."""
    samples: int = 0
    """How many."""


@dataclass
class Inner:
    """A group of settings."""

    rank: int = 4
    """A whole number."""
    rate: float = 0.5
    """A number."""
    names: list[str] = field(default_factory=lambda: ["a"])
    """A list."""


@dataclass
class Settings:
    """What a command takes."""

    model: str
    """Needed."""
    block_size: int = 1024
    """A whole number."""
    learning_rate: float | None = None
    """A number or nothing."""
    policy: Literal["lossless", "union"] = "lossless"
    """A choice."""
    text: list[str] = field(default_factory=list)
    """Repeatable text."""
    rows: list[Row] = field(default_factory=list)
    """Repeatable rows."""
    fast: bool = False
    """A switch."""
    inner: Inner = field(default_factory=Inner)
    """A group."""
    shares: dict[str, float] = field(default_factory=dict)
    """A number by name."""

    def __post_init__(self) -> None:
        if self.block_size < 8:
            raise UserError(f"block_size {self.block_size}: it must be at least 8")


def settings(*arguments: str) -> Settings:
    return parse("test", Settings, ["--model", "m", *arguments])


def refusal(*arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        settings(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def train_refusal(*arguments: str) -> str:
    """The line that sft gives; its settings hold TrainingArguments."""
    from zhllama.train.sft import SftConfig

    with pytest.raises(UserError) as refused:
        parse("sft", SftConfig, ["--model", "m", "--data", "{file: f}", "--output", "o", *arguments])
    assert "\n" not in str(refused.value)
    return str(refused.value)


def recipe(folder: Path, content: str, name: str = "recipe.yaml") -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def test_defaults_stand_where_nothing_is_given() -> None:
    assert settings() == Settings(model="m")


def test_a_flag_after_a_recipe_wins(tmp_path: Path) -> None:
    file = recipe(tmp_path, "block_size: 64\n")
    assert settings("--config", file, "--block-size", "32").block_size == 32


def test_a_recipe_after_a_flag_wins(tmp_path: Path) -> None:
    file = recipe(tmp_path, "block_size: 64\n")
    assert settings("--block-size", "32", "--config", file).block_size == 64


def test_the_later_recipe_wins_and_the_earlier_one_fills_in(tmp_path: Path) -> None:
    first = recipe(tmp_path, "block_size: 64\ninner:\n  rank: 1\n  rate: 0.25\n", "first.yaml")
    second = recipe(tmp_path, "block_size: 128\ninner:\n  rank: 2\n", "second.yaml")
    assert settings("--config", first, f"--config={second}") == Settings(
        model="m", block_size=128, inner=Inner(rank=2, rate=0.25)
    )


@pytest.mark.parametrize("spelling", [["--block-size", "16"], ["--block_size", "16"], ["--block-size=16"]])
def test_dashes_and_underscores_are_one_flag(spelling: list[str]) -> None:
    assert settings(*spelling).block_size == 16


def test_a_dash_in_a_value_stays() -> None:
    assert settings("--text=a-b=c-d", "--text", "e_f-g").text == ["a-b=c-d", "e_f-g"]


def test_a_list_flag_repeats() -> None:
    assert settings("--text", "a=1", "--block-size", "16", "--text=b=2", "--text", "c=3").text == [
        "a=1",
        "b=2",
        "c=3",
    ]


@pytest.mark.parametrize("text", ["[MASK]", "- b", "k: v", "1", "null", "[INST", "你好：世界", "-x"])
def test_text_of_a_list_flag_is_taken_as_it_stands(text: str) -> None:
    assert settings("--text", "a", "--text", text).text == ["a", text]


def test_help_shows_one_item_for_a_list_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    shown = capsys.readouterr().out
    assert "--text ITEM " in shown
    assert "--inner.names [ITEM,...]" in shown


def test_list_flags_replace_the_list_of_a_recipe(tmp_path: Path) -> None:
    file = recipe(tmp_path, "text: [x, y]\n")
    assert settings("--config", file, "--text", "a", "--text", "b").text == ["a", "b"]


def test_a_recipe_after_list_flags_replaces_them(tmp_path: Path) -> None:
    file = recipe(tmp_path, "text: [x, y]\n")
    assert settings("--text", "a", "--text", "b", "--config", file).text == ["x", "y"]


def test_rows_are_given_one_by_one_or_as_a_list() -> None:
    rows = settings("--rows", "{file: a, samples: 3}", "--rows", "[{file: b}, {file: c}]").rows
    assert rows == [Row("a", 3), Row("b"), Row("c")]


def test_an_entry_of_a_mapping_is_a_flag() -> None:
    assert settings("--shares.news", "0.5", "--shares.web", "1").shares == {"news": 0.5, "web": 1.0}


def test_a_list_inside_a_group_is_yaml() -> None:
    assert settings("--inner.names", "[q, v]").inner.names == ["q", "v"]


@pytest.mark.parametrize(
    ("arguments", "fast"),
    [
        (["--fast"], True),
        (["--fast", "--block-size", "16"], True),
        (["--fast", "false"], False),
        (["--fast=true"], True),
        ([], False),
    ],
)
def test_a_bare_switch_is_true(arguments: list[str], fast: bool) -> None:
    assert settings(*arguments).fast is fast


def test_a_bare_switch_of_the_training_arguments_is_true() -> None:
    from zhllama.train.sft import SftConfig

    base = ["--model", "m", "--data", "{file: f}", "--output", "o"]
    assert (
        parse("sft", SftConfig, [*base, "--train.gradient_checkpointing"]).train.gradient_checkpointing
        is True
    )


@pytest.mark.parametrize(("written", "value"), [("2e-4", 2e-4), ("1e-3", 1e-3), ("1E5", 1e5), ("3", 3.0)])
def test_a_number_with_an_exponent_is_a_number(tmp_path: Path, written: str, value: float) -> None:
    file = recipe(tmp_path, f"learning_rate: {written}\n")
    assert settings("--config", file).learning_rate == value
    assert settings("--learning-rate", written).learning_rate == value


def test_every_setting_missing_is_named() -> None:
    from zhllama.pack.documents import PackConfig

    with pytest.raises(UserError, match=r"^missing --corpus, --model, --output; see --help$"):
        parse("pack", PackConfig, [])


def test_a_command_without_required_settings_needs_no_argument() -> None:
    @dataclass
    class Free:
        """Nothing needed."""

        fast: bool = False
        """A switch."""

    assert parse("test", Free, []) == Free()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--blok-size", "16"], "unknown setting 'blok_size': did you mean 'block_size'?"),
        (["--block-siz", "16"], "unknown setting 'block_siz': did you mean 'block_size'?"),
        (["--block", "16"], "unknown setting 'block': did you mean 'block_size'?"),
        (["--inner.rnak", "1"], "unknown setting 'inner.rnak': did you mean 'inner.rank'?"),
        (
            ["--text", "/\udcd6\udcd0"],
            "/\udcd6\udcd0: not UTF-8; rename the file or folder (convmv -f gbk -t utf-8 does)",
        ),
        (["--zzz", "1"], "unknown setting 'zzz'; see --help"),
        (["--block-size", "abc"], "block_size abc: it must be a whole number"),
        (["--block-size", "1.5"], "block_size 1.5: it must be a whole number"),
        (["--learning-rate", "fast"], "learning_rate fast: it must be a number"),
        (["--fast", "maybe"], "fast maybe: it must be true or false"),
        (["--policy", "unoin"], "policy unoin: it must be one of lossless, union"),
        (["--inner.rank", "x"], "inner.rank x: it must be a whole number"),
        (["--inner.names", "q"], "inner.names q: it must be a list such as [a, b]"),
        (["--inner", "x"], "inner x: a group; set --inner.NAME"),
        (["--rows", "x"], "rows x: it must be a list such as [{file: ..., samples: ...}]"),
        (["--rows", "{fil: x}"], "rows: unknown setting 'fil': did you mean 'file'?"),
        (["--rows", "{file: x, samples: y}"], "rows: samples y: it must be a whole number"),
        (
            ["--rows", "{file: x"],
            "--rows {file: x: not YAML in line 1: expected ',' or '}', but got '<stream end>'",
        ),
        (["--rows", "{samples: 3}"], "rows: missing --file; see --help"),
        (["--inner", "{rank: x}"], "inner.rank x: it must be a whole number"),
        (["--inner", "{rnak: 1}"], "unknown setting 'inner.rnak': did you mean 'inner.rank'?"),
        (
            ["--inner", "{rank"],
            "--inner {rank: not YAML in line 1: expected ',' or '}', but got '<stream end>'",
        ),
        (["--shares", "{news: all}"], "shares {news: all}: it must be a mapping of text to a number"),
        (["--shares.news", "all"], "shares {'news': 'all'}: it must be a mapping of text to a number"),
        (["--zzz"], "unknown setting 'zzz'; see --help"),
        (["--text"], "--text: give it a value"),
        (["--text", "--fast"], "--text: give it a value"),
        (["--block-size"], "argument --block_size: expected one argument"),
        (["--config"], "argument --config: expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
        (["--block-size", "4"], "block_size 4: it must be at least 8"),
    ],
)
def test_a_mistaken_flag_gets_one_line(arguments: list[str], line: str) -> None:
    assert refusal(*arguments) == line


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("blok_size: 16\n", "unknown setting 'blok_size': did you mean 'block_size'?"),
        ("block-size: 16\n", "unknown setting 'block-size': did you mean 'block_size'?"),
        ("inner:\n  rnak: 1\n", "unknown setting 'inner.rnak': did you mean 'inner.rank'?"),
        ("rows:\n- {fil: x}\n", "rows: unknown setting 'fil': did you mean 'file'?"),
        ("block_size: abc\n", "block_size abc: it must be a whole number"),
        ("text: a\n", "text a: it must be a list such as [a, b]"),
        ("text: [a, 1]\n", "text 1: it must be a list such as [a, b]"),
        ("policy: [union]\n", "policy ['union']: it must be one of lossless, union"),
        ("rows: [x]\n", "rows x: it must be a list such as [{file: ..., samples: ...}]"),
        ("rows:\n- {file: x, samples: y}\n", "rows: samples y: it must be a whole number"),
        ("rows:\n- {samples: 1}\n", "rows: missing --file; see --help"),
        ("inner.rank: x\n", "inner.rank x: it must be a whole number"),
        ("inner: 3\n", "inner 3: a group; set --inner.NAME"),
        ("1: 2\n", "unknown setting '1'; see --help"),
    ],
)
def test_a_mistaken_recipe_line_gets_one_line(tmp_path: Path, content: str, line: str) -> None:
    assert refusal("--config", recipe(tmp_path, content)) == line


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--blok-size", "16"], "unknown setting 'blok_size': did you mean 'block_size'?"),
        (["--block-size", "abc"], "block_size abc: it must be a whole number"),
        (["--rows", "{fil: x}"], "rows: unknown setting 'fil': did you mean 'file'?"),
        (["--inner", "x"], "inner x: a group; set --inner.NAME"),
    ],
)
def test_the_line_owes_nothing_to_the_words_of_jsonargparse(
    arguments: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: ArgumentParser, message: str, ex: Exception | None = None) -> None:
        raise ArgumentError(None, "other words")

    monkeypatch.setattr(ArgumentParser, "error", refuse)
    assert refusal(*arguments) == line
    assert refusal("stray") == "other words"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("- 1\n- 2\n", "not a recipe; it needs lines of `setting: value`"),
        ("hello\n", "not a recipe; it needs lines of `setting: value`"),
        ("# block_size: 3\n", "not a recipe; it needs lines of `setting: value`"),
        ("block_size:\n", "not a recipe; it needs lines of `setting: value`"),
        ("block_size: 64\ntext: [1\nfast: }\n", "not YAML in line 3: expected ',' or ']', but got ':'"),
        (
            "block_size: \x00\n",
            "not YAML: unacceptable character #x0000: special characters are not allowed in",
        ),
        ("train:\n  output_dir: x\n", "train.output_dir is --output: set that instead"),
        ("train.output_dir: x\n", "train.output_dir is --output: set that instead"),
    ],
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: str, what: str) -> None:
    file = recipe(tmp_path, content)
    assert refusal("--config", file).startswith(f"--config {file}: {what}")


def test_a_recipe_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes("# 中文\nblock_size: 64\n".encode("gbk"))
    assert refusal("--config", str(file)) == f"--config {file}: not UTF-8 at byte 2; convert it with iconv"


@pytest.mark.parametrize("missing", ["none.yaml", "."])
def test_a_missing_recipe_is_named(missing: str) -> None:
    assert refusal("--config", missing) == f"--config {missing}: no such file"
    assert refusal(f"--config={missing}") == f"--config {missing}: no such file"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("lora.rnak", "lora.rank"),
        ("lora.aplha", "lora.alpha"),
        ("lora.drop_out", "lora.dropout"),
        ("lora.target", "lora.targets"),
        ("train.learning_rte", "train.learning_rate"),
        ("train.max_step", "train.max_steps"),
        ("train.warmup_step", "train.warmup_steps"),
        ("train.gradient_acumulation_steps", "train.gradient_accumulation_steps"),
    ],
)
def test_a_mistyped_nested_key_names_the_nearest(tmp_path: Path, wrong: str, right: str) -> None:
    group, key = wrong.split(".")
    line = f"unknown setting {wrong!r}: did you mean {right!r}?"
    assert train_refusal(f"--{wrong}", "1") == line
    assert train_refusal("--config", recipe(tmp_path, f"{group}:\n  {key}: 1\n")) == line


@pytest.mark.parametrize("flag", ["--train.output_dir", "--train.output-dir"])
def test_the_output_directory_has_one_name(flag: str) -> None:
    assert train_refusal(flag, "x") == "train.output_dir is --output: set that instead"


def test_a_choice_that_training_arguments_refuses_gets_one_line() -> None:
    line = train_refusal("--train.lr_scheduler_type", "cosin")
    assert line.startswith(
        "train: cosin is not a valid SchedulerType, please select one of ['linear', 'cosine'"
    )


def test_a_check_of_a_nested_dataclass_keeps_its_line() -> None:
    assert train_refusal("--lora.rank", "0") == "lora.rank 0: it must be at least 1"


def test_a_resolved_default_does_not_overrule_a_setting() -> None:
    """transformers turns gradient_checkpointing into activation_checkpointing, unless that is False already."""
    from zhllama.train.sft import SftConfig

    arguments = ["--model", "m", "--data", "{file: f}", "--output", "o"]
    train = parse("sft", SftConfig, [*arguments, "--train.gradient_checkpointing", "true"]).train
    assert train.gradient_checkpointing is True


def test_output_becomes_the_output_directory_of_training(tmp_path: Path) -> None:
    from zhllama.train.sft import SftConfig

    arguments = ["--model", "m", "--data", "{file: f}", "--output", str(tmp_path / "run")]
    assert parse("sft", SftConfig, arguments).train.output_dir == str(tmp_path / "run")


def test_settings_as_given_are_plain_json() -> None:
    config = Settings(model="m", learning_rate=2e-4, text=["甲"], rows=[Row("a", 3)], fast=True)
    given = as_given(config)
    assert json.loads(json.dumps(given)) == given
    assert given == {
        "model": "m",
        "block_size": 1024,
        "learning_rate": 2e-4,
        "policy": "lossless",
        "text": ["甲"],
        "rows": [{"file": "a", "samples": 3}],
        "fast": True,
        "inner": {"rank": 4, "rate": 0.5, "names": ["a"]},
        "shares": {},
    }


def test_other_values_are_given_as_text() -> None:
    @dataclass
    class Odd:
        where: Path
        sizes: tuple[int, ...]
        table: dict[int, Any]

    assert as_given(Odd(Path("a/b"), (1, 2), {3: Path("c")})) == {
        "where": "a/b",
        "sizes": [1, 2],
        "table": {"3": "c"},
    }


def test_training_arguments_as_given_hold_their_values() -> None:
    from zhllama.train.sft import SftConfig

    arguments = ["--model", "m", "--data", "{file: f}", "--output", "o", "--train.learning_rate", "2e-4"]
    given = as_given(parse("sft", SftConfig, arguments))
    assert json.loads(json.dumps(given)) == given
    assert given["train"]["learning_rate"] == 2e-4
    assert given["train"]["output_dir"] == "o"


def test_a_pair_is_a_name_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a=b.txt"
    file.write_text("x", encoding="utf-8")
    assert split_pair(f"news={file}", "--text") == ("news", file)


@pytest.mark.parametrize("value", ["news.txt", "=news.txt", "news="])
def test_a_pair_without_name_or_file_is_refused(value: str) -> None:
    with pytest.raises(UserError) as refused:
        split_pair(value, "--text")
    assert str(refused.value) == f"--text {value}: write it as name=FILE, for example --text chinese=news.txt"


def test_a_pair_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        split_pair(f"news={tmp_path}/none", "--text")
    assert str(refused.value) == f"--text news={tmp_path}/none: no such file: {tmp_path}/none"


def command_of(file: Path) -> str:
    """tokenizer/merge-llama3.yaml is for merge-tokenizer, pretrain/*.yaml for pretrain, sft/scaling*.yaml for its own."""
    stage = file.relative_to(ROOT).parts[0]
    if file.stem.startswith("scaling"):
        return "scale-data"
    return f"{file.stem.split('-')[0]}-tokenizer" if stage == "tokenizer" else stage


def config_of(command: str) -> tuple[type[Any], list[str]]:
    """A command's dataclass, and its required flags with dummies behind them."""
    module, name = COMMANDS[command][0].split(":")
    hints = typing.get_type_hints(getattr(import_module(module), name))
    config_class = next(hint for key, hint in hints.items() if key != "return")
    fields = config_class.__dataclass_fields__.values()
    missing = [f.name for f in fields if str(f.default) == str(f.default_factory)]
    needed = [name for name in missing if name != "train"]
    return config_class, [f"--{name}={'{file: f}' if name == 'data' else 'x'}" for name in needed]


def plain(value: Any) -> Any:
    """PyYAML reads 2e-4 as text."""
    return float(value) if isinstance(value, str) and re.fullmatch(r"\d+e-?\d+", value) else value


def test_training_arguments_are_built_once_and_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building them joins the other ranks, with the time-out that they hold."""
    from transformers import TrainingArguments

    built: list[int] = []
    begin = TrainingArguments.__post_init__

    def note(self: TrainingArguments) -> None:
        built.append(self.ddp_timeout)
        begin(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", note)
    config_class, flags = config_of("pretrain")
    parse("pretrain", config_class, [*flags, "--train.ddp-timeout", "77", "--train.use-cpu", "true"])
    assert built == [77]


def test_every_stage_has_recipes() -> None:
    assert {command_of(file) for file in RECIPES} == {
        "train-tokenizer",
        "merge-tokenizer",
        "pretrain",
        "sft",
        "scale-data",
    }


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_shipped_recipe_parses(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    command = command_of(file)
    config_class, needed = config_of(command)
    arguments = [*needed, "--config", str(file)]
    if command in ("pretrain", "sft"):  # with DeepSpeed, TrainingArguments would start a process group
        deepspeed = content["train"].get("deepspeed")
        assert deepspeed is None or (ROOT / deepspeed).is_file()
        arguments += ["--train.deepspeed=null"]
        content["train"].pop("deepspeed", None)
    given = as_given(parse(command, config_class, arguments))
    for key, value in content.items():
        if isinstance(value, dict):
            assert {name: given[key][name] for name in value} == {n: plain(v) for n, v in value.items()}
        elif key == "data":
            assert [
                {name: row[name] for name in told} for row, told in zip(given[key], value, strict=True)
            ] == value
        else:
            assert given[key] == plain(value)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_number_of_a_recipe_has_its_reason(file: Path) -> None:
    for line in file.read_text(encoding="utf-8").splitlines():
        setting, _, reason = line.partition("#")
        if re.search(r":\s*-?\d", setting):
            assert len(reason.split()) >= 2, line
