"""What the front-end benchmark measures: its servers and how they are started, its recorded answers, its rows.

In: the model's folder and the recordings. Out: Programs, Cases and Rows by name. Each server gets the same flags for
the same engine core. Refuses to measure.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rig.recorded import Case, make_case
from benchmarks.rig.servers import Program

OURS, VLLM, RUST, LAYER, RAW, ASGI = "ours", "vllm", "vllm-rust", "ours-replay", "floor-raw", "floor-asgi"
FLOORS = (RAW, ASGI)

_CORE = ["--scheduler-cls", "benchmarks.rig.replay_core.ReplayScheduler"]
_CORE += ["--distributed-executor-backend", "benchmarks.rig.replay_core.ReplayExecutor"]
_CORE += ["--max-model-len", "40960", "--max-num-seqs", "1024", "--served-model-name", "model"]
_PARSING = ["--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
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


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: a case, the servers, so many streams at once, so many times one after the other. `unmerged`:
    it counts only when each token was a delta of its own, which a stall of the machine can prevent."""

    name: str
    case: str
    servers: tuple[str, ...]
    streams: int = 64
    rounds: int = 1
    stream: bool = True
    unmerged: bool = False


GROWTH = (1024, 4096, 32768)
SATURATION_MS = (8, 6, 4, 2, 1, 0.5, 0.25)  # of 64 streams: 8,000 to 256,000 tokens a second


def _rows() -> dict[str, list[Row]]:
    engines = (OURS, VLLM, RUST)
    return {
        "paced": [
            Row(f"paced {case}", case, engines if case.startswith("text") else (*engines, *FLOORS), unmerged=True)
            for case in ("text-50", "tool-50", "text-10", "tool-10")
        ],
        "layer": [Row(f"layer {kind}", f"{kind}-0", (LAYER, *FLOORS), rounds=8) for kind in ("text", "tool")],
        "saturation": [Row(f"saturation {ms} ms", f"tool-fast-{ms}", engines) for ms in SATURATION_MS],
        "growth": [
            Row(f"growth {tokens}", f"tool-long-{tokens}", (OURS, VLLM), 2, max(1, 8192 // tokens)) for tokens in GROWTH
        ],
        "whole": [
            Row("whole tool-50", "tool-50", (OURS, VLLM), stream=False),
            Row("whole tool-0", "tool-0", (OURS, VLLM), rounds=4, stream=False),
        ],
        "lag": [Row("lag", "text-lag", (OURS, VLLM), 256)],
    }


ROWS = _rows()


def make_cases(tokenizer: Any) -> dict[str, Case]:
    shapes: list[tuple[str, int, float]] = [
        (f"{kind}-{ms}", 256, ms) for kind in ("text", "tool") for ms in (50, 10, 0)
    ]
    shapes += [(f"tool-fast-{ms}", 512, ms) for ms in SATURATION_MS]
    shapes += [(f"tool-long-{tokens}", tokens, 0.5) for tokens in GROWTH]
    shapes += [("text-lag", 300, 50)]
    return {id: make_case(tokenizer, i, id, tokens, ms) for i, (id, tokens, ms) in enumerate(shapes)}


def programs(model: str, recordings: tuple[Path, Path], port: int, rust: Path | None) -> dict[str, Program]:
    """All servers, on ports from `port` on; vLLM's Rust front end only where its binary is there."""
    steps, chunks = map(str, recordings)
    python, ours = sys.executable, [sys.executable, "serve.py", "--format", "hermes"]
    env = {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "REPLAY_RECORDINGS": steps,
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
    }
    vllm = [python, "-m", "vllm.entrypoints.openai.api_server", "--uvicorn-log-level", "warning"]
    replay = ["--engine", "replay", "--recordings", steps, "--tokenizer", model, "--served-model-name", "model"]

    def floor(kind: str) -> Sequence[str]:
        return [python, "-m", "benchmarks.rig.floors", kind, "--recordings", chunks]

    listed = [
        Program(OURS, [*ours, "--model", model, *_CORE], port, env),
        Program(VLLM, [*vllm, "--model", model, *_CORE, *_PARSING], port + 1, env),
        Program(LAYER, [*ours, *replay], port + 2, env),
        Program(RAW, floor("raw"), port + 3, env),
        Program(ASGI, floor("asgi"), port + 4, env),
    ]
    if rust:
        use = {"VLLM_USE_RUST_FRONTEND": "1", "VLLM_RUST_FRONTEND_PATH": str(rust.resolve())}
        command = [python, "-c", _VLLM_SERVE, "serve", model, *_CORE, *_PARSING]
        listed.append(Program(RUST, command, port + 5, {**env, **use}, "vllm-rs"))
    return {program.name: program for program in listed}
