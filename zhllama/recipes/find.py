"""Files that zhllama ships, found by the names that they have in a checkout, such as `pretrain/tiny.yaml`."""

from __future__ import annotations

from pathlib import Path

from zhllama.terminal import say

SHIPPED = Path(__file__).parent
# Links to the folders of the checkout; setuptools puts copies of what they point to into the wheel.
FOLDERS = ("tokenizer", "pretrain", "sft", "ds_configs")


def find_file(name: str | Path) -> Path:
    """The file of that name here, else the one that zhllama ships; where there is neither, the name as it is."""
    path = Path(name)
    # Two parts, one of the folders: any other name is a path of the user's, wherever it leads.
    ours = path.parent.name in FOLDERS and len(path.parts) == 2 and (SHIPPED / path).is_file()
    return SHIPPED / path if ours and not path.exists() else path


def find_recipes(arguments: list[str]) -> list[str]:
    """The arguments of a command, each `--config NAME` as `--config=PATH`: of the recipe here, or of the shipped one."""
    found = []
    stream = iter(arguments)
    for argument in stream:
        flag, equals, name = argument.partition("=")
        if flag == "--config" and (name := name if equals else next(stream, "")):
            path = find_file(name)
            # Said aloud: who stands in the wrong folder would otherwise change a recipe that nobody reads.
            if path != Path(name):
                say(f"--config {name}: not in this folder, so the one that zhllama ships")
                name = str(path)
            # In one piece, so that what follows need not know which flags take the next word.
            argument = f"--config={name}"
        found.append(argument)
    return found
