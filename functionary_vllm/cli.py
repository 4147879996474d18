"""The command `functionary-vllm`: train, merge, evaluate, dataset, serve, hash-key.

In: a subcommand and its own arguments. Out: its exit status. Each subcommand reads its arguments itself, and its
module is imported when it runs: so `serve` needs nothing that only training needs, and `--help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

# What it is called, what it does, where it is, and the extra that it needs.
COMMANDS = {
    "dataset": ("write conversations about functions to train on", "functionary_vllm.training.dataset.cli", "train"),
    "train": ("fine-tune a model on conversations", "functionary_vllm.training.run", "train"),
    "merge": ("put a trained adapter into its base: a folder to serve", "functionary_vllm.training.merge", "train"),
    "serve": ("serve a model behind OpenAI's API", "functionary_vllm.serving.program", "cpu or cuda"),
    "hash-key": ("make a key for the keys file, or hash one", "functionary_vllm.api.keys", "cpu or cuda"),
    "evaluate": ("measure a served model", "functionary_vllm.evaluation.cli", "eval"),
}
USAGE = "usage: functionary-vllm COMMAND [options]\n"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(
            f"{USAGE}functionary-vllm: there is no command {name!r}; there are {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    _, module, extra = COMMANDS[name]
    if name == "serve":  # the engine's processes want a program of their own to come from
        os.execv(sys.executable, [sys.executable, "-m", module, *rest])
    try:
        return int(importlib.import_module(module).main(rest))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("functionary_vllm"):
            raise
        print(f"functionary-vllm {name}: {error}; it needs pip install 'functionary-vllm[{extra}]'", file=sys.stderr)
        return 1


def help_text() -> str:
    commands = "\n".join(f"  {name:10}{what}" for name, (what, _, _) in COMMANDS.items())
    return (
        f"{USAGE}\nA server for models that call functions, and what makes such models.\n\n{commands}\n\n"
        "functionary-vllm COMMAND --help tells what a command takes. From nothing to a served model of your own:\n\n"
        "  functionary-vllm dataset train.jsonl\n"
        "  functionary-vllm train --preset small --data train.jsonl --output run\n"
        "  functionary-vllm merge --base run/base --adapter run/final --output model\n"
        "  functionary-vllm serve --model model\n"
        "  functionary-vllm evaluate"
    )


if __name__ == "__main__":
    sys.exit(main())
