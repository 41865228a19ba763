"""`zhllama pretrain` behind a path that launchers start: `deepspeed pretrain/run.py --config RECIPE.yaml`."""

import sys

from zhllama.cli import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
