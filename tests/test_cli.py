"""The command table, its exit codes, and the shape of the package that the design fixes."""

import ast
import dataclasses
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from docstring_parser import parse_from_object

from zhllama import cli, extras
from zhllama.cli import COMMANDS, EXTRAS, HIDDEN, STAGES, main
from zhllama.config import SHOWN, UserError

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "zhllama").rglob("*.py"))
# A module imports from its own floor and from those before it; a new noun gets its place here.
# (`workers` is on the ground floor since corpora and conversations are worked on in processes, and it knows neither;
# `decode` and `tables` since `rows`, the one reader, is.)
GROUND = {
    *("mistake", "config", "stop", "workers", "artifact", "terminal", "page", "device", "extras", "recipes"),
    *("decode", "tables", "rows"),
}
FLOORS = (
    GROUND,
    {"corpus"},
    {"tokenizer"},
    {"conversation"},
    {"model"},
    {"pack"},
    {"talk"},
    {"train"},
    {"plan", "measure"},
    {"demo"},
    {"cli"},
    {"__main__"},
)


@dataclass
class FakeConfig:
    """A command of the tests."""

    what: str = "nothing"
    """What to raise."""


def fake(config: FakeConfig) -> None:
    if config.what == "mistake":
        raise UserError("--what mistake:\n  give another")
    if config.what == "interrupt":
        raise KeyboardInterrupt
    if config.what.startswith("["):
        raise RuntimeError(config.what)
    print(f"ran with {config.what}")


@pytest.fixture
def fake_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "fake", (f"{__name__}:fake", "for tests"))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--what", "care"]])
def test_a_command_without_its_extra_ends_before_anything_of_it_is_imported(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(COMMANDS, "fake", ("zhllama.no_such_module:fake", "for tests"))
    monkeypatch.setitem(EXTRAS, "fake", "clean")
    monkeypatch.setattr(extras, "packages_of", lambda extra: ["no-such-package"])
    assert exit_code("fake", *arguments) == 2
    line = "fake needs the extra [clean]: pip install 'zhllama[clean]' (not installed: no-such-package)"
    assert capsys.readouterr() == ("", f"zhllama fake: error: {line}\n")


def exit_code(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return stopped.value.code


def function_of(command: str) -> Any:
    module, name = COMMANDS[command][0].split(":")
    return getattr(import_module(module), name)


def config_of(command: str) -> Any:
    return next(hint for key, hint in typing.get_type_hints(function_of(command)).items() if key != "return")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_under_its_stage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    listed = [[name, what] for stage in STAGES.values() for name, (_, what) in stage.items()]
    assert [line for line in lines if line and line[0] in COMMANDS] == listed
    assert {name for name, _ in listed} == set(COMMANDS) - set(HIDDEN)
    for stage, commands in STAGES.items():
        after = lines.index(f"{stage}:".split(maxsplit=1)) + 1
        assert [line[0] for line in lines[after : after + len(commands)]] == list(commands)
        assert lines[after + len(commands)] == []


def test_the_version_is_that_of_the_installed_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"zhllama {version('zhllama')}\n"


def test_help_imports_nothing_heavy() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "zhllama", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "zhllama.cli" in imported
    assert not imported & {"torch", "transformers", "jsonargparse", "rich", "numpy", "yaml", "zhllama.config"}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_names_every_setting(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(command, "--help") == 0
    shown = capsys.readouterr().out
    config_class = config_of(command)
    flags = set()
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name == "train" and dataclasses.is_dataclass(hints["train"]):
            flags |= {f"--train.{name}" for name in SHOWN}
        elif dataclasses.is_dataclass(hints[field.name]):
            inner = dataclasses.fields(hints[field.name])
            flags |= {f"--{field.name}.{one.name.replace('_', '-')}" for one in inner}
        else:
            flags.add("--" + field.name.replace("_", "-"))
    words = set(shown.replace(",", " ").split())
    assert flags <= words
    assert " ".join(config_class.__doc__.split()) in " ".join(shown.split())


def help_lines(config_class: Any) -> Iterator[str]:
    """The lines of help of a command's own settings, those of nested ones too, and the titles of their groups."""
    for setting in parse_from_object(config_class).params:
        yield f"--{setting.arg_name}: {' '.join(str(setting.description).split())}"
    for name, hint in typing.get_type_hints(config_class).items():
        if name != "train" and dataclasses.is_dataclass(hint):  # those of TrainingArguments are transformers'
            yield f"{name}: {' '.join(str(hint.__doc__).split())}"
            yield from help_lines(hint)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_line_of_help_can_be_read_without_its_setting(command: str) -> None:
    """`--seed: Of the sampling.` cannot."""
    lines = list(help_lines(config_of(command)))
    assert lines
    for line in lines:
        assert re.fullmatch(r"\S+: (?!Of |From |By )\S+ \S.*\.", line), line


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("merge-tokeniser", "did you mean 'merge-tokenizer'?"),
        ("pretrian", "did you mean 'pretrain'?"),
        ("xyz", "see zhllama --help"),
    ],
)
def test_an_unknown_command_gets_one_line(
    command: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(command, "--model", "m") == 2
    assert capsys.readouterr() == ("", f"zhllama: error: unknown command {command!r}: {hint}\n")


def test_a_command_is_run_with_its_settings(fake_command: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fake", "--what", "care"])
    assert capsys.readouterr() == ("ran with care\n", "")


def test_the_launchers_local_rank_is_no_setting(
    fake_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fake", "--local_rank=1", "--what", "care"])
    main(["--local_rank=0", "fake", "--what", "care"])  # deepspeed --module zhllama fake
    assert capsys.readouterr().out == "ran with care\n" * 2


def test_a_users_mistake_exits_2_with_one_line(
    fake_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("fake", "--what", "mistake") == 2
    assert capsys.readouterr() == ("", "zhllama fake: error: --what mistake: give another\n")


@pytest.mark.parametrize(("rank", "waits"), [("0", []), ("1", [cli.PATIENCE])])
def test_the_first_rank_speaks_first(
    rank: str, waits: list[float], fake_command: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(cli.time, "sleep", slept.append)
    monkeypatch.setenv("RANK", rank)
    assert exit_code("fake", "--what", "mistake") == 2
    assert slept == waits


def test_a_mistyped_setting_exits_2_with_one_line(
    fake_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("fake", "--waht", "x") == 2
    assert capsys.readouterr() == (
        "",
        "zhllama fake: error: unknown setting 'waht': did you mean 'what'?\n",
    )


def test_a_rank_that_lost_another_says_so_in_one_line(
    fake_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("fake", "--what", "[gloo/pair.cc:553] Connection closed by peer [10.0.0.1]") == 1
    line = "another rank ended, and this one with it; that rank's own message says why"
    assert capsys.readouterr() == ("", f"zhllama fake: error: {line}\n")


@pytest.mark.parametrize("message", ["[gloo] op.preamble.length <= op.nbytes", "[x] reset by peer"])
def test_other_errors_keep_their_traceback(message: str, fake_command: None) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message)):
        main(["fake", "--what", message])


def test_an_interrupt_exits_130_and_says_what_is_left(
    fake_command: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("fake", "--what", "interrupt") == 130
    line = "zhllama fake: interrupted; inputs are untouched, the output is marked unfinished"
    assert capsys.readouterr() == ("", f"\n{line}\n")


def test_the_process_exits_2_with_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zhllama", "merge-tokenizer", "--base", "none", "--chinese", "c"]
    done = subprocess.run([*command, f"--output={tmp_path}/o"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "zhllama merge-tokenizer: error: --base none: no such file or directory\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("ranks", "threads"), [("2", "4"), ("3", "2"), ("16", "1"), ("1", None)])
def test_ranks_share_the_cores(
    ranks: str, threads: str | None, fake_command: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    main(["fake"])
    assert [os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")] == [threads] * 2


def test_a_users_own_thread_count_stays(fake_command: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    main(["fake"])
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "7"


def noun(file: Path) -> str:
    """zhllama/model/loss.py is of the noun model."""
    return file.relative_to(ROOT / "zhllama").parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a file imports, those for type checkers too."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def module_of(file: Path) -> str:
    """A file of this package as imports name it."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NAMES = {module_of(file) for file in MODULES}


def ours(file: Path) -> set[str]:
    """Modules of this package that a file imports anywhere, for types alone too."""
    names = imports(ast.parse(file.read_text(encoding="utf-8")))
    return {
        name if name in NAMES else name.rpartition(".")[0] for name in names if name.startswith("zhllama.")
    }


def test_every_noun_has_one_place() -> None:
    places = [name for floor in FLOORS for name in floor]
    assert sorted(places) == sorted({noun(file) for file in MODULES} - {"__init__"})


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    if file.name == "__init__.py":
        assert ours(file) == set()
        return
    depth = next(index for index, floor in enumerate(FLOORS) if noun(file) in floor)
    below = set().union(*FLOORS[:depth])
    for name in ours(file):
        assert name.split(".")[1] in below | {noun(file)} | (GROUND if depth == 0 else set()), name


def test_no_module_imports_itself_by_way_of_others() -> None:
    """`prepare` raises CycleError with the modules of a circle."""
    graph = {module_of(file): ours(file) for file in MODULES}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("door", ["pretrain", "sft"])
def test_a_door_only_opens_its_command(door: str) -> None:
    tree = ast.parse((ROOT / door / "run.py").read_text(encoding="utf-8"))
    assert sorted(imports(tree)) == ["sys", "zhllama.cli.main"]
    assert ast.unparse(tree.body[-1]) == (f"if __name__ == '__main__':\n    main(['{door}', *sys.argv[1:]])")


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_house_rules_hold(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert file.stem not in ("utils", "util", "helpers", "common", "misc")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            assert node.value not in (32000, 49953, 49954, 55296), "a vocabulary size is no literal"
        if isinstance(node, ast.ExceptHandler):
            caught = re.findall(r"\w+", ast.unparse(node.type)) if node.type else ["everything"]
            assert not {"everything", "Exception", "BaseException"} & set(caught), f"line {node.lineno}"
