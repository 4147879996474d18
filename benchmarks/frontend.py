"""The front end alone: CPU microseconds of the API process a streamed token, ours and vLLM's, on the same steps.

In: recorded answers, played by a real engine-core process behind each server (`replay_core`: vLLM's scheduler
interface over recordings, no model), and by floors that have nothing to do but write. Out: a table of medians with
ratios, and with `--output` every figure, the commit and the machine as JSON. One run measures all servers in turn, the
API process on a core of its own, engine core and load on the others; a figure whose answers were not whole is void.
Read ratios: the machine's noise is the same for all.

    python -m benchmarks.frontend --rows paced layer --repeats 3 --output benchmarks/results/frontend.json
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.drain import Load, drain
from benchmarks.recorded import Case, body, check, make_case, write_recordings
from benchmarks.servers import Program, Server, cores
from functionary_vllm.models import ensure_builtin

_CORE = [
    "--scheduler-cls", "benchmarks.replay_core.ReplayScheduler",
    "--distributed-executor-backend", "benchmarks.replay_core.ReplayExecutor",
    "--max-model-len", "40960", "--max-num-seqs", "1024", "--served-model-name", "model",
]  # fmt: skip
# vLLM's command line, without the `vllm` command, which its CPU package does not bring.
_VLLM_SERVE = """
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser, serve = FlexibleArgumentParser(), ServeSubcommand()
serve.subparser_init(parser.add_subparsers())
arguments = parser.parse_args()
serve.validate(arguments)
serve.cmd(arguments)
"""
OURS, VLLM, RUST, LAYER, RAW, ASGI = "ours", "vllm", "vllm-rust", "ours-replay", "floor-raw", "floor-asgi"


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: which case, of which servers, under which load."""

    name: str
    case: str
    servers: tuple[str, ...]
    streams: int = 64
    answers: int = 64
    stream: bool = True


def all_rows() -> dict[str, list[Row]]:
    paced = (OURS, VLLM, RUST, RAW, ASGI)
    return {
        "paced": [Row(f"paced {case}", case, paced) for case in ("text-50", "tool-50", "text-10", "tool-10")],
        "layer": [Row(f"layer {kind}", f"{kind}-0", (LAYER, RAW, ASGI), 64, 512) for kind in ("text", "tool")],
        "saturation": [
            Row(f"saturation {kind}", f"{kind}-0", (OURS, VLLM, RUST), 64, 512) for kind in ("text", "tool")
        ],
        "growth": [
            Row(f"growth {tokens}", f"tool-growth-{tokens}", (OURS, VLLM, RUST), 2, 2 * (16384 // tokens or 1))
            for tokens in (1024, 4096, 32768)
        ],
        "whole": [Row(f"whole {case}", case, (OURS, VLLM, RUST), 64, 64, False) for case in ("tool-50", "tool-0")],
    }


def all_cases(tokenizer: Any) -> dict[str, Case]:
    shapes = [(f"{kind}-{ms}", 256, ms) for kind in ("text", "tool") for ms in (50, 10, 0)]
    shapes += [(f"tool-growth-{tokens}", tokens, 0.5) for tokens in (1024, 4096, 32768)]
    shapes += [("text-lag", 512, 50)]
    return {id: make_case(tokenizer, i, id, tokens, ms) for i, (id, tokens, ms) in enumerate(shapes)}


def programs(options: argparse.Namespace, model: Path, steps: Path, chunks: Path) -> dict[str, Program]:
    env = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "REPLAY_RECORDINGS": str(steps),
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    }
    rust = {**env, "VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(options.rust)}
    port, python, ours = options.port, sys.executable, ["serve.py", "--format", "hermes"]
    parsing = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
    listed = [
        Program(OURS, [python, *ours, "--model", str(model), "--port", str(port), *_CORE], port, env),
        Program(
            VLLM,
            [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port + 1),
             *_CORE, *parsing, "--uvicorn-log-level", "warning"],
            port + 1, env,
        ),
        Program(
            RUST,
            [python, "-c", _VLLM_SERVE, "serve", str(model), "--port", str(port + 2), *_CORE, *parsing],
            port + 2, rust, "vllm-rs",
        ),
        Program(
            LAYER,
            [python, *ours, "--engine", "replay", "--recordings", str(steps), "--tokenizer", str(model),
             "--served-model-name", "model", "--port", str(port + 3)],
            port + 3, env,
        ),
    ]  # fmt: skip
    for offset, name in ((4, RAW), (5, ASGI)):
        command = [python, "-m", "benchmarks.floors", name.removeprefix("floor-"), "--port", str(port + offset)]
        listed.append(Program(name, [*command, "--recordings", str(chunks)], port + offset, env))
    wanted = {name for group in options.rows for row in all_rows()[group] for name in row.servers}
    wanted &= set(options.servers or wanted) - (set() if options.rust else {RUST})
    return {program.name: program for program in listed if program.name in wanted}


@contextmanager
def running(listed: dict[str, Program], folder: Path) -> Iterator[dict[str, Server]]:
    """All servers at once: those not under measure are idle, and the ones compared are measured in turn."""
    started: dict[str, Server] = {}
    try:
        for name, program in listed.items():
            print(f"starting {name}", file=sys.stderr)
            started[name] = Server(program, folder / f"{name}.log")
            started[name].wait()
        yield started
    finally:
        for server in started.values():
            server.stop()


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement. Microseconds of CPU a token: of the whole, requests' beginning included, and of the steady
    part; which share of its core the API process used, and the engine core and the load of theirs."""

    us: float
    steady_us: float | None
    tokens_per_s: float
    deltas_per_token: float
    api_core: float
    engine_core: float
    load_core: float
    void: str


def measure(server: Server, row: Row, case: Case) -> Figure:
    asked = body(case, stream=row.stream, named=server.program.name == LAYER)
    rest, own = server.rest_cpu(), time.process_time()
    drained = drain(Load(server.port, asked, row.streams, row.answers), server.cpu)
    rest, own = server.rest_cpu() - rest, time.process_time() - own
    floor = server.program.name in (RAW, ASGI)
    checked = [check(case, answer, floor=floor) for answer in drained.answers]
    seconds, cpu = drained.end.time - drained.begin.time, drained.end.cpu - drained.begin.cpu
    tokens = case.tokens * row.answers
    steady = None
    if drained.steady and (events := drained.steady[1].events - drained.steady[0].events):
        part = tokens * events / drained.end.events
        steady = (drained.steady[1].cpu - drained.steady[0].cpu) / part * 1e6
    return Figure(
        us=cpu / tokens * 1e6,
        steady_us=steady,
        tokens_per_s=tokens / seconds,
        deltas_per_token=sum(deltas for _, deltas in checked) / tokens,
        api_core=cpu / seconds,
        engine_core=rest / seconds,
        load_core=own / seconds,
        void=next((wrong for wrong, _ in checked if wrong), ""),
    )


def warm_up(started: dict[str, Server], cases: dict[str, Case]) -> None:
    """What a server does once, it has done: imports, caches, compiled templates and grammars."""
    for server in started.values():
        for case in (cases["text-0"], cases["tool-0"]):
            for stream in (True, False):
                asked = body(case, stream=stream, named=server.program.name == LAYER)
                drain(Load(server.port, asked, 16, 32), server.cpu)


@contextmanager
def profiled(server: Server | None, path: Path | None) -> Iterator[None]:
    """py-spy on the API process meanwhile: collapsed stacks, one line each, for a flame graph or `top_of`."""
    if server is None or path is None:
        yield
        return
    command = ["py-spy", "record", "--pid", str(server.pid), "--rate", "500", "--format", "raw", "--output", str(path)]
    spy = subprocess.Popen([*command, "--duration", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait(30)


def top_of(path: Path, count: int = 30) -> str:
    """Where the time went: the share of samples in which a function was on top, and in which it was on the stack."""
    own: Counter[str] = Counter()
    below: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        own[frames[-1]] += int(samples)
        below.update({frame: int(samples) for frame in set(frames)})
    total = own.total() or 1
    lines = [f"{total} samples; on the stack % / on top %"]
    lines += [f"{100 * n / total:6.1f} {100 * own[name] / total:6.1f}  {name}" for name, n in below.most_common(count)]
    lines += ["on top %"] + [f"{100 * n / total:13.1f}  {name}" for name, n in own.most_common(count)]
    return "\n".join(lines)


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    options = arguments()
    model = ensure_builtin()
    cases = all_cases(AutoTokenizer.from_pretrained(model))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps, chunks = write_recordings(list(cases.values()), folder)
        os.sched_setaffinity(0, cores()[1])
        with running(programs(options, model, steps, chunks), folder) as started:
            warm_up(started, cases)
            for group in options.rows:
                for row in all_rows()[group]:
                    if options.only and not re.search(options.only, row.name):
                        continue
                    measure_row(row, started, cases, options)


def measure_row(row: Row, started: dict[str, Server], cases: dict[str, Case], options: argparse.Namespace) -> None:
    servers = [started[name] for name in row.servers if name in started]
    figures: dict[str, list[Figure]] = {server.program.name: [] for server in servers}
    for _ in range(options.repeats):
        for server in servers:
            with profiled(server if options.profile else None, options.profile):
                figures[server.program.name].append(measure(server, row, cases[row.case]))
            if options.profile:
                print(top_of(options.profile))
    show(row, figures)


def show(row: Row, figures: dict[str, list[Figure]]) -> None:
    theirs = {name: statistics.median(f.us for f in of) for name, of in figures.items()}
    for name, of in figures.items():
        us = sorted(f.us for f in of)
        steady = [f.steady_us for f in of if f.steady_us is not None]
        ratio = f"{theirs[name] / theirs[VLLM]:8.2f}" if VLLM in theirs else " " * 8
        print(
            f"{row.name:20}{name:12}{theirs[name]:9.1f} ({us[0]:.1f}-{us[-1]:.1f}){statistics.median(steady or [0]):9.1f}"
            f"{ratio}{statistics.median(f.tokens_per_s for f in of):10.0f}{of[0].deltas_per_token:8.3f}"
            f"  api {of[0].api_core:.2f} engine {of[0].engine_core:.2f} load {of[0].load_core:.2f} {of[0].void}",
            flush=True,
        )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU time of the API process a streamed token, ours and vLLM's.")
    parser.add_argument("--rows", nargs="+", choices=list(all_rows()), default=list(all_rows()))
    parser.add_argument("--only", help="of these rows only those that this expression finds: tool-50")
    parser.add_argument("--servers", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rust", type=Path, help="vLLM's Rust front end (vllm-rs, out of its CUDA wheel)")
    parser.add_argument("--port", type=int, default=8520, help="the first of ten ports")
    parser.add_argument("--profile", type=Path, help="py-spy on the API process: collapsed stacks into this file")
    parser.add_argument("--output", type=Path, help="keep the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
