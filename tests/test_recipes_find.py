"""Shipped files by name: one here wins, and what is nowhere keeps its name."""

import json
from pathlib import Path

import pytest
import yaml

from zhllama.config import UserError
from zhllama.plan.job import read_recipes, read_sharding
from zhllama.recipes.find import FOLDERS, SHIPPED, find_file, find_recipes
from zhllama.train.settings import check_arguments

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is no checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_every_folder_of_the_root_is_shipped() -> None:
    shipped = {file.relative_to(SHIPPED) for folder in FOLDERS for file in (SHIPPED / folder).iterdir()}
    assert shipped == {file.relative_to(ROOT) for folder in FOLDERS for file in (ROOT / folder).iterdir()}
    assert set(FOLDERS) >= {file.parent.name for file in ROOT.glob("*/*.yaml")}


@pytest.mark.parametrize("name", ["pretrain/llama2-7b.yaml", "./sft/run.py", "ds_configs/zero2.json"])
def test_a_shipped_file_is_found_by_its_name(name: str) -> None:
    assert find_file(name) == SHIPPED / name
    assert find_file(name).read_bytes() == (ROOT / name).read_bytes()


def test_a_file_here_wins(elsewhere: Path) -> None:
    put(elsewhere / "pretrain" / "tiny.yaml", "block_size: 8")
    assert find_file("pretrain/tiny.yaml") == Path("pretrain/tiny.yaml")
    assert find_file(elsewhere / "pretrain" / "tiny.yaml") == elsewhere / "pretrain" / "tiny.yaml"


@pytest.mark.parametrize(
    "name",
    ["tiny.yaml", "pretrain/none.yaml", "../pretrain/tiny.yaml", "pretrain", "find.py", "a/sft/run.py"],
)
def test_other_names_stay(name: str) -> None:
    assert find_file(name) == Path(name)


def test_recipes_of_a_command_are_found_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    put(Path("mine.yaml"), "a: 1")
    given = [
        "--config",
        "pretrain/tiny.yaml",
        "--x",
        "1",
        "--config=sft/tiny.yaml",
        "--config",
        "./mine.yaml",
    ]
    assert find_recipes(given) == [
        f"--config={SHIPPED / 'pretrain/tiny.yaml'}",
        "--x",
        "1",
        f"--config={SHIPPED / 'sft/tiny.yaml'}",
        "--config=./mine.yaml",
    ]
    assert capsys.readouterr().out.splitlines() == [
        f"--config {name}: not in this folder, so the one that zhllama ships"
        for name in ("pretrain/tiny.yaml", "sft/tiny.yaml")
    ]
    assert find_recipes(["--config=", "--x", "--config"]) == ["--config=", "--x", "--config"]


WITH_DEEPSPEED = [
    file for file in sorted((ROOT / "pretrain").glob("*.yaml")) if "deepspeed:" in file.read_text("utf-8")
]


@pytest.mark.parametrize("recipe", WITH_DEEPSPEED, ids=lambda path: path.name)
def test_a_shipped_recipe_finds_its_deepspeed_file_and_run_json_says_which(recipe: Path) -> None:
    train = yaml.safe_load(recipe.read_text(encoding="utf-8"))["train"]
    arguments = Arguments(train["deepspeed"])
    check_arguments(arguments)
    assert arguments.deepspeed == str(SHIPPED / train["deepspeed"])
    (sharding,) = read_sharding(read_recipes([f"pretrain/{recipe.name}"])[1], [], None)
    stage = json.loads((ROOT / train["deepspeed"]).read_text(encoding="utf-8"))["zero_optimization"]["stage"]
    assert sharding.stage == stage


class Arguments:
    """What `check_arguments` looks at."""

    report_to = "none"
    max_steps = 1
    num_train_epochs = learning_rate = 1.0
    neftune_noise_alpha = None
    eval_strategy = "no"

    def __init__(self, deepspeed: str) -> None:
        self.deepspeed = deepspeed


def test_a_deepspeed_file_that_is_nowhere_keeps_its_name() -> None:
    with pytest.raises(UserError, match=r"^train\.deepspeed ds_configs/zero9\.json: no such file$"):
        check_arguments(Arguments("ds_configs/zero9.json"))
