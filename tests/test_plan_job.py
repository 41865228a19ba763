"""What is planned: recipes as their commands read them, DeepSpeed's files, shapes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from zhllama.config import UserError
from zhllama.plan.job import Sharding, read_recipes, read_sharding, shape_config
from zhllama.train.sft import SftConfig

ROOT = Path(__file__).parents[1]
RECIPES = sorted([*ROOT.glob("pretrain/*.yaml"), *ROOT.glob("sft/*.yaml")])


# scale-data's own recipes name one of these.
@pytest.mark.parametrize("file", [file for file in RECIPES if not file.stem.startswith("scaling")], ids=str)
def test_every_recipe_can_be_planned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    recipe, deepspeed = read_recipes([str(file)])
    assert recipe.lora.rank > 0
    assert isinstance(recipe, SftConfig) == (file.parent.name == "sft")
    written = re.search(r"deepspeed: ds_configs/zero(\d)", file.read_text(encoding="utf-8"))
    assert read_sharding(deepspeed, [], None) == [Sharding(int(written[1]) if written else 0)]  # buckets auto


@pytest.mark.parametrize(
    "setting",
    ["train: {deepspeed: ds_configs/zero3_offload.json}", "train.deepspeed: ds_configs/zero3_offload.json"],
)
def test_later_recipes_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.chdir(ROOT)
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"lora: {{rank: 7}}\n{setting}\n")
    recipe, deepspeed = read_recipes(["pretrain/llama2-7b.yaml", str(mine)])
    assert (recipe.lora.rank, recipe.lora.alpha, recipe.train.gradient_checkpointing) == (7, 128, True)
    assert read_sharding(deepspeed, [], None) == [Sharding(3, True, True)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lora: {rnak: 8}", "unknown setting 'lora.rnak': did you mean 'lora.rank'"),
        ("data: [{fil: a.json}]", "unknown setting 'fil': did you mean 'file'"),
        ("- 1", "not a recipe"),
    ],
)
def test_a_recipe_that_the_command_would_refuse(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_recipes([str(tmp_path / "r.yaml")])


@pytest.mark.parametrize(
    ("settings", "sharding"),
    [
        ({}, Sharding(0, buckets=500_000_000)),  # DeepSpeed's own size
        ({"stage": 1, "reduce_bucket_size": 1e6}, Sharding(1, buckets=10**6)),
        ({"stage": 2, "reduce_bucket_size": 10, "overlap_comm": True}, Sharding(2, buckets=20)),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, Sharding(2, True, buckets=500_000_000)),
        ({"stage": 3, "offload_param": {"device": "none"}}, Sharding(3, buckets=500_000_000)),
        (
            {"stage": 2, "offload_param": {"device": "nvme"}},
            Sharding(2, buckets=500_000_000),
        ),  # ZeRO-3's alone
    ],
)
def test_a_deepspeed_file_is_read(tmp_path: Path, settings: dict[str, Any], sharding: Sharding) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": settings}))
    assert read_sharding(str(tmp_path / "ds.json"), [], None) == [sharding]


def test_other_stages_and_offloading_than_the_files() -> None:
    file = str(ROOT / "ds_configs" / "zero2_offload.json")
    assert read_sharding(file, [0, 1, 3], None) == [Sharding(), Sharding(1, True), Sharding(3, True)]
    assert read_sharding(file, [], "none") == [Sharding(2)]
    assert read_sharding(file, [2, 3], "all") == [Sharding(2, True), Sharding(3, True, True)]
    assert read_sharding(None, [2], "optimizer") == [Sharding(2, True)]
    assert read_sharding(None, [], None) == [Sharding()]


def test_a_deepspeed_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text("{")
    for name in ("ds.json", "nowhere.json"):
        file = str(tmp_path / name)
        with pytest.raises(UserError, match=rf"train.deepspeed .*{name}: no JSON there \(.*see ds_configs/"):
            read_sharding(file, [], None)


def test_an_unknown_model_type() -> None:
    with pytest.raises(UserError, match="transformers knows no model type 'lama'"):
        shape_config({"model_type": "lama"}, 10)
