"""`zhllama recipes`: the shipped files as a folder of one's own, to be changed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from zhllama.config import UserError
from zhllama.recipes.find import FOLDERS, SHIPPED
from zhllama.terminal import say


@dataclass
class RecipesConfig:
    """Copy the recipes, launch scripts and DeepSpeed files, to be read and changed."""

    output: str
    """Folder to copy the files into, new or empty; a dot is the one you stand in."""


def recipes(config: RecipesConfig) -> None:
    """Copy the folders tokenizer, pretrain, sft and ds_configs; no run.json, since what is in them will change.

    Raises:
        UserError: `output` is a file, is not empty, or cannot be made.
    """
    output = Path(config.output)
    if output.is_file():
        raise UserError(f"--output {output}: a file is in the way; choose another directory")
    # A recipe of the same name may have been changed there.
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"--output {output}: not empty; choose another directory")
    try:
        for folder in FOLDERS:
            # Links are followed: in a checkout these folders are links.
            shutil.copytree(SHIPPED / folder, output / folder, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as problem:
        raise UserError(f"--output {output}: it cannot be made ({problem.strerror})") from problem
    say(f"{output}: {', '.join(FOLDERS)}; in that folder, recipes are found before the shipped ones")
