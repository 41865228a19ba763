"""What is released: what it asks for, the wheel in an environment of its own, the images' description."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
import venv
import zipfile
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from zhllama.cli import COMMANDS, EXTRAS
from zhllama.config import parse
from zhllama.recipes.find import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
MODULES = {
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in (ROOT / "zhllama").rglob("*.py")
}
DISTRIBUTIONS = packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.findall(r"^[\w.-]+", name)[0]).lower()


def packages(requirements: list[str]) -> set[str]:
    """The packages that requirements name, those of our own extras among them."""
    found: set[str] = set()
    for requirement in requirements:
        if inner := re.fullmatch(r"zhllama\[([\w,]+)\]", requirement):
            found |= packages([one for extra in inner[1].split(",") for one in OPTIONAL[extra]])
        else:
            found.add(normal(requirement))
    return found


def imports(nodes: typing.Iterable[ast.AST], lazy: bool) -> Iterator[str]:
    """Dotted names that are imported when a module is, and with `lazy` those in functions and for types alone too."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif lazy or not (
            isinstance(node, ast.FunctionDef)
            or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        ):
            yield from imports(ast.iter_child_nodes(node), lazy)


def imported(module: str, lazy: bool) -> set[str]:
    return set(imports(ast.parse(MODULES[module].read_text(encoding="utf-8")).body, lazy))


def foreign(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"zhllama"}


def reached(module: str) -> set[str]:
    """Packages of others that importing a module of ours imports."""
    seen, left, found = set[str](), [module], set[str]()
    while left:
        if (name := left.pop()) in seen:
            continue
        seen.add(name)
        names = imported(name, lazy=False)
        found |= foreign(names)
        left += [
            one if one in MODULES else one.rpartition(".")[0] for one in names if one.startswith("zhllama.")
        ]
    return found


def provided(package: str, requirements: set[str]) -> bool:
    """Whether the requirements name a distribution that has this package."""
    return bool({normal(name) for name in DISTRIBUTIONS.get(package, [package])} & requirements)


def test_the_bare_install_is_small() -> None:
    assert len(PROJECT["dependencies"]) < 15


def test_every_package_that_is_imported_is_declared() -> None:
    declared = packages([*PROJECT["dependencies"], *(one for extra in OPTIONAL.values() for one in extra)])
    names = set().union(*(foreign(imported(module, lazy=True)) for module in MODULES))
    assert "torch" in names and "datatrove" in names
    assert {name for name in names if not provided(name, declared)} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_imports_what_its_install_has(command: str) -> None:
    extra = OPTIONAL[EXTRAS[command]] if command in EXTRAS else []
    allowed = packages([*PROJECT["dependencies"], *extra])
    names = reached(COMMANDS[command][0].split(":")[0])
    assert {name for name in names if not provided(name, allowed)} == set()


def test_extras_are_of_commands_and_declared() -> None:
    assert set(EXTRAS) <= set(COMMANDS)
    assert set(EXTRAS.values()) <= set(OPTIONAL)
    assert {"clean", "train", "report", "demo", "test"} <= set(OPTIONAL)
    everything = packages([one for name, extra in OPTIONAL.items() if name != "test" for one in extra])
    assert packages(OPTIONAL["all"]) == everything


def test_every_requirement_is_pinned_for_the_tests() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    declared = packages([*PROJECT["dependencies"], *(one for extra in OPTIONAL.values() for one in extra)])
    assert declared <= {normal(line) for line in lines}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: an older build's rest in the checkout would go into it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("zhllama", *FOLDERS):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(source)], check=True, cwd=folder)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_every_file_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = next(name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert b"Apache License" in archive.read(licence)
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "zhllama", *FOLDERS]
    tracked = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    expected = {name for name in tracked if name.startswith("zhllama/") and not (ROOT / name).is_symlink()}
    shipped = {f"zhllama/recipes/{name}" for name in tracked if not name.startswith("zhllama/")}
    assert names == expected | shipped
    assert wheel.name == f"zhllama-{PROJECT['version']}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scripts of a fresh environment with the wheel in it, which sees the packages here but not the project here."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=False, symlinks=True)
    packages_here = [path for path in sys.path if Path(path).name == "site-packages"]
    site = next(environment.glob("lib/python*/site-packages"))
    # Folders that a .pth names are searched, and the .pth of an editable install in them is not read.
    (site / "here.pth").write_text("\n".join(packages_here), encoding="utf-8")
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--ignore-installed", str(wheel)], check=True)
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_runs_in_an_empty_folder(
    installed: Path, tmp_path: Path, sentencepiece_base: Path, chinese_text: str
) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        words = [str(installed / command[0]), *command[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("zhllama", "--version") == f"zhllama {PROJECT['version']}\n"
    where = run("python", "-c", "import zhllama; print(zhllama.__file__)")
    assert Path(where).is_relative_to(installed.parent)
    run("zhllama", "recipes", "--output", "r")
    assert (tmp_path / "r" / "ds_configs" / "zero2.json").read_bytes() == (
        ROOT / "ds_configs" / "zero2.json"
    ).read_bytes()
    (tmp_path / "news.txt").write_text(chinese_text[:40_000], encoding="utf-8")
    base = ("--base", str(sentencepiece_base))
    train = ("--config", "tokenizer/train.yaml", "--corpus", "news.txt", *base, "--size", "200")
    said = run("zhllama", "train-tokenizer", *train, "--output", "chinese")
    assert "--config tokenizer/train.yaml: not in this folder, so the one that zhllama ships" in said
    mine = ("--config", "r/tokenizer/merge.yaml", *base, "--chinese", "chinese")
    run("zhllama", "merge-tokenizer", *mine, "--output", "merged")
    record = json.loads((tmp_path / "merged" / "run.json").read_text(encoding="utf-8"))
    assert record["versions"]["zhllama"] == PROJECT["version"]
    assert record["result"]["added"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chinese", "merged", "news.txt", "r"]


def instructions() -> list[tuple[str, list[str]]]:
    """(instruction, its words) of the Dockerfile, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split()[0], shlex.split(line)[1:]) for line in lines if line]


def test_the_images_are_described_in_instructions_that_exist() -> None:
    known = {"FROM", "COPY", "ENV", "RUN", "WORKDIR", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in instructions()} == known
    targets = [words[2] for name, words in instructions() if name == "FROM"]
    assert targets == ["source", "cpu", "cuda"]
    for name, words in instructions():
        if name == "FROM":
            assert words[1] == "AS"
        if name == "ENV":
            assert all("=" in word for word in words)
        if name in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(f'["{" ".join(words)[1:-1]}"]'), list)


def test_images_are_built_from_files_that_are_there_and_sent() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert "*" in rules
    copied = {
        word
        for name, words in instructions()
        if name == "COPY" and "--from" not in words[0]
        for word in words[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in sent)
    needed = {"pyproject.toml", "README.md", "LICENSE", "zhllama", *FOLDERS}
    assert sent == needed | {"constraints.txt"}


def test_images_install_extras_that_exist() -> None:
    installs = [
        word for name, words in instructions() if name == "RUN" for word in words if word.startswith(".[")
    ]
    assert len(installs) == 2
    for install in installs:
        assert set(install[2:-1].split(",")) <= set(OPTIONAL)


def test_the_commands_of_the_images_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r" \\\n#\s+", " ", text)
    lines = re.findall(r"^#\s+docker run .* zhllama:(?:cpu|cuda) (.+)$", text, re.MULTILINE)
    commands = [shlex.split(line.removeprefix("--module zhllama ")) for line in lines]
    assert [words[0] for words in commands] == ["recipes", "train-tokenizer", "pretrain"]
    for name, *arguments in commands:
        if name == "pretrain":  # a build without CUDA refuses bf16 on a GPU that is not there
            arguments += ["--train.deepspeed", "null", "--train.use_cpu", "true"]
        module, function = COMMANDS[name][0].split(":")
        hints = typing.get_type_hints(getattr(import_module(module), function))
        config = parse(name, next(hint for key, hint in hints.items() if key != "return"), arguments)
        assert config.output == arguments[arguments.index("--output") + 1]
    entries = [words for name, words in instructions() if name == "ENTRYPOINT"]
    assert entries == [["[zhllama]"]] * 2
