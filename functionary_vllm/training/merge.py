"""`functionary-vllm merge`: adapter + base -> a folder that any engine serves, and what it was made of.

In: the folders of a base and of an adapter in peft's files. Out: the merged folder, and in it `merged.json` with the
SHA-256 of each file that went in and came out. The arithmetic is that of the built-in model, `models.adapter`: it needs
no peft.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from functionary_vllm.models.adapter import AdapterRefused, merge_adapter
from functionary_vllm.models.cache import sha256

MANIFEST = "merged.json"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="functionary-vllm merge",
        description="Put a LoRA adapter into the weights it was trained on. The result is an ordinary model folder.",
    )
    made.add_argument("--base", type=Path, required=True, help="folder of the model that was trained")
    made.add_argument("--adapter", type=Path, required=True, help="folder of the adapter, e.g. run/final")
    made.add_argument("--output", type=Path, required=True, help="folder to write; it must not be there yet")
    return made


def main(argv: Sequence[str]) -> int:
    """Returns the exit status."""
    arguments = parser().parse_args(argv)
    if arguments.output.exists():
        print(f"functionary-vllm merge: {arguments.output} is there already", file=sys.stderr)
        return 1
    try:
        merge(arguments.base, arguments.adapter, arguments.output)
    except (AdapterRefused, FileNotFoundError) as error:
        print(f"functionary-vllm merge: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.output}: serve it with functionary-vllm serve --model {arguments.output}")
    return 0


def merge(base: Path, adapter: Path, output: Path) -> Path:
    """Write the merged model into `output`, which it returns. Raises AdapterRefused, FileNotFoundError."""
    merge_adapter(base, adapter, output)
    (output / MANIFEST).unlink(missing_ok=True)  # the base's own, where that was merged too
    digests = {
        "base": _digests(base),
        "adapter": {name: digest for name, digest in _digests(adapter).items() if name.startswith("adapter_")},
        "merged": _digests(output),
    }
    (output / MANIFEST).write_text(json.dumps(digests, indent=1) + "\n")
    return output


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}
