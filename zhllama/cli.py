"""The command table: `zhllama NAME ...` imports one module and calls one function with one dataclass."""

from __future__ import annotations

import io
import os
import sys
import time
import typing
import warnings
from importlib import import_module

PATIENCE = 10  # seconds that other ranks leave the first one to report a mistake

# stage -> name -> (module:function, what it does), in the order in which they are used. Help prints this
# table, so it must not import what the commands import.
STAGES = {
    "start here": {
        "demo": ("zhllama.demo.run:demo", "the whole pipeline on weights and text out of Python packages"),
        "recipes": ("zhllama.recipes.copy:recipes", "copy the shipped recipes, to be changed"),
    },
    "prepare text": {
        "clean": ("zhllama.corpus.clean:clean", "raw text -> corpus: filtered, without duplicates"),
    },
    "extend the vocabulary": {
        "train-tokenizer": ("zhllama.tokenizer.train:train_tokenizer", "corpus -> Chinese pieces"),
        "merge-tokenizer": ("zhllama.tokenizer.merge:merge_tokenizer", "base + Chinese pieces -> tokenizer"),
        "tokenizer-report": ("zhllama.tokenizer.report:tokenizer_report", "compare tokenizers on your text"),
    },
    "grow the model": {
        "probe-init": ("zhllama.model.probe:probe_init", "try where the new embedding rows should start"),
        "resize-embeddings": ("zhllama.model.resize:resize_embeddings", "base model + tokenizer -> model"),
    },
    "train": {
        "plan": ("zhllama.plan.plan:plan", "memory, hours and money of a recipe, before anything loads"),
        "pack": ("zhllama.pack.documents:pack", "corpus + model -> blocks of tokens"),
        "pretrain": ("zhllama.train.pretrain:pretrain", "continue pretraining (deepspeed pretrain/run.py)"),
        "sft": ("zhllama.train.sft:sft", "instruction tuning (python sft/run.py)"),
        "merge-adapter": ("zhllama.model.merge:merge_adapter", "run -> plain model directory"),
    },
    "measure": {
        "evaluate": ("zhllama.measure.evaluate:evaluate", "bits per byte on your own text"),
        "scale-data": ("zhllama.measure.scaling:scale_data", "sft on ever more rows -> score by category"),
        "score-pclue": ("zhllama.measure.pclue:score_pclue", "answers to pCLUE -> its own scores"),
    },
    "use": {
        "chat": ("zhllama.talk.chat:chat", "talk to a model, or answer a file of prompts"),
        "export": ("zhllama.model.export:export", "model -> Hugging Face directory in a chosen dtype"),
    },
}
# Former names: they run and have their own --help, but the list of commands leaves them out.
HIDDEN = {
    "mix": ("zhllama.train.sft:mix", "preview the mixture of an sft recipe, nothing trained"),
}
COMMANDS = {name: entry for stage in STAGES.values() for name, entry in stage.items()} | HIDDEN
# What a command needs beyond the bare install, of the extras in pyproject.toml.
EXTRAS = {
    "clean": "clean",
    "pretrain": "train",
    "mix": "train",
    "sft": "train",
    "scale-data": "train",
    "demo": "demo",
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exits 2 with one line on a user's mistake, 130 on Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # As stderr does: a path that is no UTF-8, or an emoji on a GBK terminal, must not end a run.
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else arguments
    # Launchers put it behind a script, and before the command of `deepspeed --module zhllama COMMAND`.
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank")]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"zhllama {version('zhllama')}")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "see zhllama --help"
        sys.exit(_refuse("", f"unknown command {name!r}: {hint}"))
    try:
        run(name, rest)
    except KeyboardInterrupt:
        print(
            f"\nzhllama {name}: interrupted; inputs are untouched, the output is marked unfinished",
            file=sys.stderr,
        )
        # 128 + SIGINT, as shells report an interrupt.
        sys.exit(130)


def run(name: str, arguments: list[str]) -> None:
    """Parse the settings of a command and call it; a UserError exits with code 2."""
    from zhllama.config import UserError, parse
    from zhllama.extras import require_extra

    # Before the command's module, which may import torch.
    _share_cores()
    module, function_name = COMMANDS[name][0].split(":")
    warnings.filterwarnings(
        "ignore", category=FutureWarning
    )  # libraries' notices are not the user's business
    try:
        if name in EXTRAS:
            require_extra(name, EXTRAS[name])
        function = getattr(import_module(module), function_name)
        # The one argument's type is the schema of the command's settings.
        config_class = next(hint for key, hint in typing.get_type_hints(function).items() if key != "return")
        function(parse(name, config_class, arguments))
    except UserError as problem:
        sys.exit(_refuse(f" {name}", str(problem)))
    except RuntimeError as problem:
        if not _lost_a_rank(str(problem)):
            raise
        _refuse(f" {name}", "another rank ended, and this one with it; that rank's own message says why")
        sys.exit(1)


def _share_cores() -> None:
    """Divide the cores among the ranks of this machine: launchers leave each rank all of them."""
    # Two ranks on two cores take twice as long per step otherwise. torch reads it when it is imported.
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
    if ranks > 1:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, str(max(1, len(os.sched_getaffinity(0)) // ranks)))


def _lost_a_rank(message: str) -> bool:
    """Whether gloo broke off because another process is gone."""
    # What it raises would bury the error of that process.
    # gloo's messages carry no type or code of their own.
    return "gloo" in message and any(sign in message for sign in ("by peer", "Broken pipe"))


def _refuse(where: str, message: str) -> int:
    """Print the one line."""
    # Ranks make the same mistake together: the first speaks, the launcher ends the others as they wait.
    if os.environ.get("RANK", "0") != "0":
        time.sleep(PATIENCE)
    print(f"zhllama{where}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(len(name) for stage in STAGES.values() for name in stage)
    lines = []
    for stage, commands in STAGES.items():
        lines += [f"{stage}:", *(f"  {name:<{width}}  {what}" for name, (_, what) in commands.items()), ""]
    return "\n".join(
        [
            "usage: zhllama COMMAND [--config RECIPE.yaml ...] [--SETTING VALUE ...]",
            "",
            "Chinese vocabulary extension, continued pretraining and instruction tuning for LLaMA-family models.",
            "",
            *lines,
            "zhllama COMMAND --help lists a command's settings, zhllama --version says which zhllama this is.",
        ]
    )
