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
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from benchmarks.rig.drain import Drained, Load, drain
from benchmarks.rig.frontend_report import HEAD, Figure, Results, show, verdict, write
from benchmarks.rig.frontend_rows import FLOORS, LAYER, ROWS, Row, make_cases, programs
from benchmarks.rig.recorded import Case, body, check, write_recordings
from benchmarks.rig.servers import Program, Server, StartFailed, cores, machine_cpu, profiled, top_of
from functionary_vllm.models import ensure_base

_TRIES = 3  # of a figure that turns out void
_BUSY = 0.4  # cores that other programs may use while lateness is measured
_LAG_METRIC = "functionary_event_loop_lag_seconds"


@contextmanager
def running(listed: Mapping[str, Program], folder: Path) -> Iterator[dict[str, Server]]:
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


def ask(server: Server, case: Case, stream: bool = True) -> bytes:
    return body(case, stream=stream, named=server.program.name == LAYER)


def warm_up(started: Mapping[str, Server], cases: Mapping[str, Case]) -> None:
    """What a server does once, it has done: imports, caches, compiled templates and grammars."""
    for server in started.values():
        for case in (cases["text-0"], cases["tool-0"]):
            for stream in (True, False):
                drain(Load(server.port, ask(server, case, stream), 32), server.cpu)


def measure(server: Server, row: Row, case: Case) -> Figure:
    """One figure; `rounds` waves of streams one after the other, their times added."""
    load = Load(server.port, ask(server, case, row.stream), row.streams)
    rest, own, busy = server.rest_cpu(), time.process_time(), machine_cpu()
    waves = [drain(load, server.cpu) for _ in range(row.rounds)]
    rest, own, busy = server.rest_cpu() - rest, time.process_time() - own, machine_cpu() - busy
    floor = server.program.name in FLOORS
    checked = [check(case, answer, floor=floor) for wave in waves for answer in wave.answers]
    wrong = next((wrong for wrong, _ in checked if wrong), "")
    tokens = case.tokens * row.streams * row.rounds
    deltas = sum(deltas for _, deltas in checked) / tokens
    if row.unmerged and deltas < 0.98 * case.words / case.tokens:
        wrong = wrong or "the server was held up, and merged steps"
    cpu = sum(wave.end.cpu - wave.begin.cpu for wave in waves)
    seconds = sum(wave.end.time - wave.begin.time for wave in waves)
    steady = _steady(waves)
    moving = 1 - (1 if floor else case.silent) / case.tokens
    return Figure(
        us=cpu / tokens * 1e6,
        steady_us=steady[0] / tokens * 1e6 if steady else None,
        tokens_per_s=tokens * moving / steady[1] if steady else tokens / seconds,
        deltas_per_token=deltas,
        api_core=steady[0] / steady[1] if steady else cpu / seconds,
        engine_core=rest / seconds,
        load_core=own / seconds,
        others=max(0.0, busy - cpu - rest - own) / seconds,
        void=wrong,
    )


def _steady(waves: Sequence[Drained]) -> tuple[float, float] | None:
    """CPU since all streams had begun, and seconds since they moved; None where one wave never ran as a whole."""
    cpu = [wave.end.cpu - wave.begun.cpu for wave in waves if wave.begun]
    seconds = [wave.end.time - wave.moved for wave in waves if wave.moved]
    return (sum(cpu), sum(seconds)) if len(seconds) == len(waves) else None


def measure_lag(server: Server, row: Row, case: Case, large: Case) -> Figure:
    """The same with a probe meanwhile, which brings the large requests."""
    command = [sys.executable, "-m", "benchmarks.rig.lag", "--port", str(server.port), "--seed", str(large.number)]
    probe = subprocess.Popen([*command, "--after", "3", "--seconds", "10"], stdout=subprocess.PIPE)
    before = scrape(server)
    figure = measure(server, row, case)
    found = json.loads(probe.communicate(timeout=60)[0])
    late = sorted(found["late_ms"])
    figure.lag = {
        "p50": late[len(late) // 2],
        "p99": late[len(late) * 99 // 100],
        "max": late[-1],
        "metric_p99": metric_p99(before, scrape(server)),
    }
    if figure.others > _BUSY:
        figure.void = figure.void or f"other programs used {figure.others:.1f} cores"
    if found["answered"] != found["large"]:
        figure.void = f"{found['large'] - found['answered']} large requests were not answered"
    return figure


def scrape(server: Server) -> dict[float, float]:
    """The cumulative buckets of the server's own event-loop lag, milliseconds -> count; empty where it has none."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(rf'^{_LAG_METRIC}_bucket{{.*?le="([^"]+)".*?}} (\S+)', text, re.MULTILINE)
    return {float(bound) * 1000: float(count) for bound, count in found}


def metric_p99(before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """The upper bound of the bucket with the 99th percentile of what was observed in between."""
    counts = {bound: count - before.get(bound, 0.0) for bound, count in sorted(after.items())}
    total = max(counts.values(), default=0.0)
    return next((bound for bound, count in counts.items() if count >= 0.99 * total), None) if total else None


def run(started: Mapping[str, Server], cases: Mapping[str, Case], options: argparse.Namespace) -> Results:
    results: Results = {}
    warm_up(started, cases)
    print(HEAD)
    for row in (row for group in options.rows for row in ROWS[group]):
        servers = [started[name] for name in row.servers if name in started]
        if not servers or not re.search(options.only, row.name):
            continue
        figures = results[row.name] = {server.program.name: [] for server in servers}
        for server in servers * options.repeats:
            for _ in range(_TRIES):
                with profiled(server.pid, options.profile):
                    if row.name == "lag":
                        figure = measure_lag(server, row, cases[row.case], cases["tool-50"])
                    else:
                        figure = measure(server, row, cases[row.case])
                figures[server.program.name].append(figure)
                if not figure.void:
                    break
            if options.profile:
                print(top_of(options.profile))
        show(row.name, figures)
    return results


def main() -> int:
    options = arguments()
    model = str(ensure_base())
    tokenizer = AutoTokenizer.from_pretrained(model, model_max_length=1 << 20)
    cases = make_cases(tokenizer)
    wanted = {name for group in options.rows for row in ROWS[group] for name in row.servers}
    wanted &= set(options.servers or wanted)
    with tempfile.TemporaryDirectory() as name:
        recordings = write_recordings(list(cases.values()), Path(name))
        listed = programs(model, recordings, options.port, options.rust)
        os.sched_setaffinity(0, cores()[1])
        try:
            with running({n: p for n, p in listed.items() if n in wanted}, Path(name)) as started:
                results = run(started, cases, options)
        except StartFailed as error:
            print(error, file=sys.stderr)
            return 1
    print(verdict(results))
    if options.output:
        write(options.output, results, cases)
    return 0


def arguments() -> Any:
    parser = argparse.ArgumentParser(description="CPU time of the API process a streamed token, ours and vLLM's.")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--only", default="", help="of these rows only those that this expression finds: tool-50")
    parser.add_argument("--servers", nargs="+", help="only these")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rust", type=Path, help="vLLM's Rust front end: vllm-rs, out of its CUDA wheel")
    parser.add_argument("--port", type=int, default=8520, help="the first of six ports")
    parser.add_argument("--profile", type=Path, help="py-spy on the API process: collapsed stacks into this file")
    parser.add_argument("--output", type=Path, help="keep the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
