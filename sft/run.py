"""`zhllama sft` behind a path that launchers start: `deepspeed sft/run.py --config RECIPE.yaml`."""

import sys

from zhllama.cli import main

if __name__ == "__main__":
    main(["sft", *sys.argv[1:]])
