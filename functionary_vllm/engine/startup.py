"""Starting an engine so that a person can watch it: an environment that is quiet, progress lines, one-line errors.

In: vLLM's flags, or a recordings file. Out: a running Engine, or StartError with what to tell. vLLM reads much of its
environment while it is imported, so this module sets it first and imports vllm's file last. A variable that is
already set is left alone. An engine process on a CPU may be forked off this one, which saves it the seconds of
importing vLLM again: only where torch is imported here for the first time, since its threads, once used, do not
survive a fork. Refuses to know Settings and HTTP.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from functionary_vllm.engine.base import Engine

Made = TypeVar("Made")

_REPORT_EVERY_S = 5.0

# No usage statistics leave this machine.
_PRIVATE = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
# As the `vllm serve` command does; a forked child would share this process's threads and locks.
_SPAWNED = {"VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
# What is told at every start, and to nobody's use, is kept from a person who did not ask for it.
_QUIET = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "PYTHONWARNINGS": "ignore",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "TORCH_LOGS": "-torch._library.triton",  # that there is no triton
}
# Threads that spin for work they wait for would make server and engine crawl. Read when torch is imported.
_FEW_CORES = 16
_PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class StartError(Exception):
    """The engine cannot start. `status` is the exit status: 2 for what the person asked for, 1 for the rest."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Client:
    """What an API worker needs to be one of an engine's clients. Goes to its process, which has not imported vLLM."""

    index: int
    count: int
    addresses: dict[str, Any]
    heard: Any  # an array in shared memory: how many messages each of the clients has had


class Progress:
    """A line when something new begins, and one every few seconds while it lasts."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._doing = ""
        self._changed = threading.Event()
        self._over = False

    def say(self, doing: str) -> None:
        self._doing = doing
        self._tell(doing)
        self._changed.set()

    @contextmanager
    def running(self) -> Iterator[Progress]:
        thread = threading.Thread(target=self._repeat, name="progress", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over = True
            self._changed.set()
            thread.join()

    def _repeat(self) -> None:
        while not self._over:
            if self._changed.wait(_REPORT_EVERY_S):
                self._changed.clear()
            else:
                self._tell(f"... still {self._doing}")

    def _tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self._began:5.1f} s] {line}", file=sys.stderr, flush=True)


def prepare_environment(model: str, *, verbose: bool) -> None:
    """Set what vLLM and the Hugging Face hub read while they are imported."""
    wanted = _PRIVATE | _SPAWNED
    if few_cores():
        wanted |= _PATIENT
    if not verbose:
        wanted |= _QUIET
    if Path(model).is_dir():
        wanted["HF_HUB_OFFLINE"] = "1"  # a local folder is asked for nothing that is not in it
    for name, value in wanted.items():
        os.environ.setdefault(name, value)


def few_cores() -> bool:
    """Whether this process may use so few that vLLM's own binding of threads to them does not pay on a CPU."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores <= _FEW_CORES and not os.environ.get("VLLM_CPU_OMP_THREADS_BIND")


@contextmanager
def collecting_nothing() -> Iterator[None]:
    """While modules are imported: they stay, and looking through them as they come takes a quarter of the time."""
    gc.disable()
    try:
        yield
        gc.freeze()
        atexit.register(gc.unfreeze)  # at the end, extension modules complain of what was not collected
    finally:
        gc.enable()


def end_with_parent() -> None:
    """For a child process: be told to end when the parent does, however it ended; by the parent only.

    The system tells of the parent's death on Linux alone. Ctrl-C goes to all processes of a group, and vLLM's engine
    would drop at once what the server still wants to finish: so the child leaves its parent's group.
    """
    os.setpgid(0, 0)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # prctl(2)
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


async def in_lasting_thread(work: Callable[[], Made]) -> Made:
    """Do what blocks in a thread that stays: to a child process (see above) its end would be the parent's."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Made] = loop.create_future()

    def tell(tell_it: Callable[[Any], None], what: object) -> None:
        if not done.done():
            tell_it(what)

    def run() -> None:
        try:
            made = work()
        except BaseException as error:
            outcome = partial(tell, done.set_exception, error)
        else:
            outcome = partial(tell, done.set_result, made)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(outcome)
        threading.Event().wait()

    threading.Thread(target=run, name="engine start", daemon=True).start()
    return await done


def start_vllm(
    model: str, argv: Sequence[str], *, verbose: bool = False, imported: Callable[[], object] = lambda: None
) -> Engine:
    """A running VllmEngine. Blocks; needs no event loop.

    `imported` is called as soon as vllm is there: what it raises ends the start before the engine takes its time.
    """
    fork = sys.platform == "linux" and "torch" not in sys.modules
    if fork:
        os.register_at_fork(after_in_child=end_with_parent)
    with starting(model, verbose=verbose, imported=imported) as (say, quiet):
        from functionary_vllm.engine.vllm import create_engine

        return create_engine(["--model", model, *argv], say, quiet=quiet, fork=fork)


@contextmanager
def starting(
    model: str, *, verbose: bool, imported: Callable[[], object]
) -> Iterator[tuple[Callable[[str], None], bool]]:
    """vLLM imported; somewhere to tell progress, and whether vLLM is to be quiet. Errors become StartErrors."""
    quiet = not verbose and "VLLM_LOGGING_LEVEL" not in os.environ
    prepare_environment(model, verbose=verbose)
    if quiet:
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")  # of what it calls, for its authors
    with Progress().running() as progress:
        progress.say("importing vLLM")
        import_vllm()
        imported()
        try:
            yield progress.say, quiet
        except (ValueError, OSError) as error:
            raise StartError(f"vLLM refuses this: {_first_lines(error)}") from error
        except RuntimeError as error:
            raise StartError(f"The engine did not start: {_first_lines(error)}", 1) from error


def import_vllm() -> None:
    try:
        with collecting_nothing():
            from functionary_vllm.engine import vllm  # noqa: F401 - modules stay
    except ModuleNotFoundError as error:
        raise StartError(f"vLLM is not installed ({error}); make install installs it.") from error


def start_replay(recordings: str, tokenizer: str) -> Engine:
    """A ReplayEngine. `tokenizer` is a name or a folder, in which a config.json may say whose tokenizer it is."""
    from transformers import PreTrainedTokenizerFast  # AutoTokenizer would import torch, for seconds

    from functionary_vllm.engine.replay import RecordingError, ReplayEngine, load_recordings

    try:
        loaded = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    except (ValueError, OSError) as error:
        raise StartError(f"The tokenizer {tokenizer} cannot be used: {_first_lines(error)}") from error
    try:
        return ReplayEngine(load_recordings(recordings, loaded), loaded, model_type=_model_type(Path(tokenizer)))
    except RecordingError as error:
        raise StartError(str(error)) from error


def _model_type(folder: Path) -> str:
    with suppress(OSError, ValueError):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return str(config.get("model_type") or "")
    return ""


def _first_lines(error: Exception) -> str:
    """The message on one line; pydantic and the hub write whole paragraphs."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:500]
