"""The READMEs: every command decodes, every file is named, and both languages say the same."""

import itertools
import re
import shlex
import subprocess
import typing
from importlib import import_module
from pathlib import Path

import pytest

from zhllama.cli import COMMANDS
from zhllama.config import parse

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "README_zh.md", "tokenizer/README.md", "pretrain/README.md", "sft/README.md"]
DOORS = {"pretrain/run.py": "pretrain", "sft/run.py": "sft"}


def fenced(page: str) -> list[str]:
    """The lines of a page's code blocks that are commands of ours, comments and continuations resolved."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        line for line in lines if re.match(r"(zhllama|deepspeed|torchrun|srun|python (pretrain|sft)/)", line)
    ]


def decode(line: str) -> tuple[str, list[str]]:
    """The command's name and its arguments, whichever way it is started."""
    words = shlex.split(line, comments=True)
    if words[0] == "zhllama":
        return words[1], words[2:]
    door = next(position for position, word in enumerate(words) if word in DOORS)
    return DOORS[words[door]], words[door + 1 :]


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in fenced(page)}))
def test_command_decodes(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = decode(line)
    monkeypatch.chdir(ROOT)
    (tmp_path / "news.txt").write_text("新闻", encoding="utf-8")
    arguments = [argument.replace("=news.txt", f"={tmp_path}/news.txt") for argument in arguments]
    if name in ("pretrain", "sft"):  # a build without CUDA refuses bf16 on a GPU that is not there
        arguments += ["--train.deepspeed", "null", "--train.use_cpu", "true"]
    module, function = COMMANDS[name][0].split(":")
    hints = typing.get_type_hints(getattr(import_module(module), function))
    config = parse(name, next(hint for key, hint in hints.items() if key != "return"), arguments)
    for flag, value in itertools.pairwise(arguments):
        if flag in ("--output", "--model", "--base", "--corpus", "--tokens", "--adapter"):
            given = getattr(config, flag.removeprefix("--"))
            assert value in (given if isinstance(given, list) else [given])


def test_every_command_is_shown() -> None:
    shown = {decode(line)[0] for line in fenced("README.md")}
    assert shown == set(COMMANDS) - {"demo"}  # which stands in the text, as `make demo`


@pytest.mark.parametrize("page", ["README.md", "README_zh.md"])
def test_every_file_has_a_line(page: str) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "zhllama/*.py", "benchmarks/*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    files = {name for name in tracked if not name.endswith(("__init__.py", "__main__.py"))}
    text = (ROOT / page).read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ((?:zhllama|benchmarks)/\S+\.py) \|", text, re.MULTILINE)) == files


@pytest.mark.parametrize("page", ["tokenizer", "pretrain", "sft"])
def test_every_recipe_has_a_line(page: str) -> None:
    table = (ROOT / page / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in (ROOT / page).iterdir() if path.suffix in (".yaml", ".py", ".jsonl")}
    assert set(re.findall(r"^\| `(\S+)` \|", table, re.MULTILINE)) == files


def test_both_languages_show_the_same_commands_and_figures() -> None:
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES[:2])
    assert fenced("README.md") == fenced("README_zh.md")
    assert english.count("\n## ") == chinese.count("\n## ")
    for text in (english, chinese):
        assert "RESULTS_HERE" not in text
    cells = [re.findall(r"(?<=\| )\d[\d.,%]*(?= \|)", text) for text in (english, chinese)]
    assert cells[0] == cells[1]
    assert cells[0]


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target
