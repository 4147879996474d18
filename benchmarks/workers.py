"""API workers: the CPU that a streamed token costs, and tokens a second, with one process and with several.

In: nothing but flags; the answers are tool calls, played by a replay engine in each worker, so that the front end is
all there is. Out: a line for each number of workers: CPU microseconds a token of all workers and of the parent that
deals them connections, paced as a GPU steps (each worker has the same number of streams) and as fast as they can.
What must not grow is the first. Tokens a second say nothing where workers and load share too few cores.

    python -m benchmarks.workers --workers 1 2 --streams 64 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from benchmarks.rig.drain import Load, drain
from benchmarks.rig.recorded import Case, body, check, make_case, write_recordings
from benchmarks.rig.servers import Program, Server, cpu_seconds, descendants, pin
from functionary_vllm.models import ensure_base

_ROUNDS = 4  # of the unpaced case, which is short


@dataclass(frozen=True, slots=True)
class Figure:
    workers_us: float  # CPU microseconds a token
    parent_us: float
    rate: float  # tokens a second


def measure(server: Server, workers: Sequence[int], case: Case, streams: int) -> Figure:
    """Raises ValueError for an answer that is not whole."""
    parent = server.pid if server.pid not in workers else None
    before = cpu_seconds(parent) if parent else 0.0
    load = Load(server.port, body(case, named=True), streams)
    drained = drain(load, lambda: sum(cpu_seconds(pid) for pid in workers))
    spent = cpu_seconds(parent) - before if parent else 0.0
    for answer in drained.answers:
        if wrong := check(case, answer)[0]:
            raise ValueError(wrong)
    tokens = streams * case.tokens
    seconds = drained.end.time - drained.begin.time
    return Figure((drained.end.cpu - drained.begin.cpu) / tokens * 1e6, spent / tokens * 1e6, tokens / seconds)


def median(figures: Sequence[Figure]) -> Figure:
    return Figure(
        statistics.median(figure.workers_us for figure in figures),
        statistics.median(figure.parent_us for figure in figures),
        statistics.median(figure.rate for figure in figures),
    )


def workers_of(server: Server, count: int) -> list[int]:
    """Each pinned to a core of its own, as far as they go."""
    if count == 1:
        found = [server.pid]
    else:
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(server.pid)}
        found = [pid for pid, command in commands.items() if b"spawn_main" in command]
    cores = sorted(os.sched_getaffinity(0))
    for number, pid in enumerate(found):
        pin(pid, {cores[number % len(cores)]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--streams", type=int, default=64, help="a worker")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8620)
    args = parser.parse_args()
    model = str(ensure_base())
    tokenizer = AutoTokenizer.from_pretrained(model)
    cases = [make_case(tokenizer, number, f"tool-{ms}", 256, ms) for number, ms in enumerate((50, 0))]
    with tempfile.TemporaryDirectory() as folder:
        recordings, _ = write_recordings(cases, Path(folder))
        command = [sys.executable, "serve.py", "--engine", "replay", "--recordings", str(recordings)]
        command += ["--tokenizer", model, "--format", "hermes", "--served-model-name", "model"]
        print(f"{'workers':>7} {'':>8} {'us/token':>9} {'parent':>7} {'tokens/s':>9}")
        for place, count in enumerate(args.workers):
            program = Program(f"{count}", [*command, "--api-workers", str(count)], args.port + place)
            server = Server(program, Path(folder) / "log")
            try:
                server.wait()
                workers = workers_of(server, count)
                for case, rounds in zip(cases, (1, _ROUNDS), strict=True):
                    measure(server, workers, case, count)  # warm
                    measured = [
                        measure(server, workers, case, args.streams * count) for _ in range(args.repeats * rounds)
                    ]
                    figure = median(measured)
                    kind = "paced" if case.interval_ms else "unpaced"
                    print(f"{count:7} {kind:>8} {figure.workers_us:9.1f} {figure.parent_us:7.2f} {figure.rate:9.0f}")
            finally:
                server.stop()


if __name__ == "__main__":
    main()
