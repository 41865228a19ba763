"""README and docs: commands decode, flags and files exist, both languages say the same, and the module map is fresh."""

import dataclasses
import itertools
import re
import runpy
import shlex
import tomllib
import typing
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import TrainingArguments

from zhllama.cli import COMMANDS, HIDDEN
from zhllama.config import parse

ROOT = Path(__file__).parents[1]
README = 150
LIMITS = {
    "README.md": README,
    "README_zh.md": README,
    "CONTRIBUTING.md": 100,
    "CHANGELOG.md": 100,
    **{f"{folder}/README.md": 40 for folder in ("tokenizer", "pretrain", "sft")},
    **{str(page.relative_to(ROOT)): 200 for page in sorted((ROOT / "docs").rglob("*.md"))},
}
MODULES = "docs/modules.md"  # as long as there are modules
PAGES = [page for page in LIMITS if page != MODULES]
# What users read stands in both languages; what developers read in English.
ENGLISH_ONLY = {"design.md", "modules.md"}
TWINS = {"README.md": "README_zh.md"} | {
    f"docs/{page.name}": f"docs/zh/{page.name}"
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.name not in ENGLISH_ONLY
}
DOORS = {"pretrain/run.py": "pretrain", "sft/run.py": "sft"}
# Flags that the text speaks of and no command has: placeholders, and those of launchers, pip, docker and mypy.
OTHER_FLAGS = {"--setting", "--field.sub", "--train.NAME"} | {"--no_ssh", "--kill-on-bad-exit"}
OTHER_FLAGS |= {"--version", "--module", "--no-deps", "--target", "--tag", "--strict"}
FENCE = re.compile(r"^```\w*\n(.*?)^```\n", re.DOTALL | re.MULTILINE)
UNITS = {"万": 1e4, "亿": 1e8, "million": 1e6, "billion": 1e9}
NUMBER = re.compile(rf"(?<![\w./-])(?>(\d[\d,]*(?:\.\d+)?))(?: ?({'|'.join(UNITS)}))?(?![A-Za-z])", re.ASCII)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", read(page))


def fenced(page: str) -> list[str]:
    """The lines of a page's code blocks that are commands of ours, comments and continuations resolved."""
    blocks = FENCE.findall(read(page))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        line for line in lines if re.match(r"(zhllama|deepspeed|torchrun|srun|python (pretrain|sft)/)", line)
    ]


def decode(line: str) -> tuple[str, list[str]]:
    """The command's name and its arguments, whichever way it is started."""
    words = shlex.split(line, comments=True)
    if "zhllama" in words:  # by itself, or as `deepspeed --module zhllama`
        name = words.index("zhllama") + 1
        return words[name], words[name + 1 :]
    door = next(position for position, word in enumerate(words) if word in DOORS)
    return DOORS[words[door]], words[door + 1 :]


def config_of(command: str) -> typing.Any:
    module, function = COMMANDS[command][0].split(":")
    hints = typing.get_type_hints(getattr(import_module(module), function))
    return next(hint for key, hint in hints.items() if key != "return")


def flags_of(config_class: typing.Any, prefix: str = "--") -> set[str]:
    """Every flag of a command, nested ones too, with `-` for `_`."""
    found = {"--config", "--help"}
    for field in dataclasses.fields(config_class):
        name = prefix + field.name.replace("_", "-")
        hint = typing.get_type_hints(config_class)[field.name]
        found |= flags_of(hint, f"{name}.") if dataclasses.is_dataclass(hint) else {name}
    return found


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in fenced(page)}))
def test_command_decodes(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = decode(line)
    monkeypatch.chdir(ROOT)
    (tmp_path / "news.txt").write_text("新闻", encoding="utf-8")
    arguments = [argument.replace("=news.txt", f"={tmp_path}/news.txt") for argument in arguments]
    if name in ("pretrain", "sft"):  # a build without CUDA refuses bf16 on a GPU that is not there
        arguments += ["--train.deepspeed", "null", "--train.use_cpu", "true"]
    config = parse(name, config_of(name), arguments)
    for flag, value in itertools.pairwise(arguments):
        if flag in ("--output", "--model", "--base", "--corpus", "--tokens", "--adapter"):
            given = getattr(config, flag.removeprefix("--"))
            assert value in (given if isinstance(given, list) else [given])


def test_every_command_is_shown() -> None:
    shown = {decode(line)[0] for page in PAGES for line in fenced(page)}
    assert shown == set(COMMANDS) - set(HIDDEN) - {"demo"}  # which stands in the text, as `make demo`


@pytest.mark.parametrize("page", PAGES)
def test_flags_in_the_text_exist(page: str) -> None:
    every = set().union(*(flags_of(config_of(name)) for name in COMMANDS))
    every |= {f"--train.{field.name}" for field in dataclasses.fields(TrainingArguments)} | {
        "--train.ddp-timeout"
    }
    for span in re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page)):
        words = span.split()
        own = flags_of(config_of(words[1])) if words[0] == "zhllama" and words[1] in COMMANDS else every
        for flag in re.findall(r"(?<!\S)--[A-Za-z][\w.-]*", span):
            assert flag in own | OTHER_FLAGS, span


@pytest.mark.parametrize("page", PAGES)
def test_scripts_targets_and_extras_in_the_text_exist(page: str) -> None:
    text = read(page)
    for script in re.findall(r"python (benchmarks/\w+\.py)", text):
        assert (ROOT / script).is_file(), script
    targets = set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE)) <= targets
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert set(re.findall(r"(?:zhllama|`)\[([a-z]+)\]", text)) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("page", ["tokenizer", "pretrain", "sft"])
def test_every_recipe_has_a_line(page: str) -> None:
    files = {path.name for path in (ROOT / page).iterdir() if path.suffix in (".yaml", ".py", ".jsonl")}
    assert set(re.findall(r"^\| `(\S+)` \|", read(f"{page}/README.md"), re.MULTILINE)) == files


def figures(text: str) -> list[float]:
    """The numbers of a text in order of size, `118 万` as 1.18 million; digits of names (7B, GB18030) are none."""
    found = NUMBER.findall(text)
    return sorted(round(float(digits.replace(",", "")) * UNITS.get(unit, 1), 6) for digits, unit in found)


@pytest.mark.parametrize(("english", "chinese"), TWINS.items())
def test_both_languages_show_the_same_commands_and_figures(english: str, chinese: str) -> None:
    assert fenced(english) == fenced(chinese)
    texts = [prose(page) for page in (english, chinese)]
    heads = [re.findall(r"^(#+) ", text, re.MULTILINE) for text in texts]
    assert heads[0] == heads[1]
    rows = [re.findall(r"^\|.*\|$", text, re.MULTILINE) for text in texts]
    for one, other in zip(*rows, strict=True):
        assert figures(one) == figures(other), (one, other)
    assert set(figures(texts[0])) == set(figures(texts[1]))


def test_the_figures_of_a_text() -> None:
    assert figures("1.18 million of 2,890, 87.9%, 5-character") == [5, 87.9, 2890, 1_180_000]
    assert figures("2,890 里的 118 万，87.9%，5 字") == [5, 87.9, 2890, 1_180_000]
    assert figures("llama2-7b.yaml, ZeRO-3, 2e-7, 13B, v1, GB18030") == []


def slugs(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, MODULES])
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.exists(), target
        assert not anchor or anchor in slugs(str(path.relative_to(ROOT))), target


@pytest.mark.parametrize(("page", "lines"), [(page, LIMITS[page]) for page in PAGES])
def test_pages_stay_short(page: str, lines: int) -> None:
    assert len(read(page).splitlines()) <= lines


@pytest.mark.parametrize(("page", "readme"), [("docs", "README.md"), ("docs/zh", "README_zh.md")])
def test_the_readme_leads_to_every_page(page: str, readme: str) -> None:
    linked = set(re.findall(r"\]\(([^)#]+)\)", read(readme)))
    assert {str(file.relative_to(ROOT)) for file in (ROOT / page).glob("*.md")} <= linked


@pytest.mark.parametrize("picture", ["docs/pipeline.svg", "docs/zh/pipeline.svg"])
def test_the_picture_shows_the_pipeline(picture: str) -> None:
    words = set(" ".join(ElementTree.parse(ROOT / picture).getroot().itertext()).split())
    assert {decode(line)[0] for line in fenced("README.md")} - {"recipes"} <= words


def test_the_module_map_is_what_the_docstrings_say() -> None:
    fresh = runpy.run_path(str(ROOT / ".ci/module_map.py"))["module_map"]()
    assert read(MODULES) == fresh, "a module came, went or says otherwise: run `make docs`"
    for line in re.findall(r"^- .*", fresh, re.MULTILINE):
        assert re.fullmatch(r"- `\w+\.py`: \S.*[.?]", line), "the first line of a docstring is a sentence"
