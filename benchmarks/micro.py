"""CPU microseconds a token of each stage between the engine and the socket, and how they grow with an argument; CPU
milliseconds of each stage before the engine, by the number of tools.

In: a recorded call of each format, its string argument as long as asked, cut into engine steps of one token. Out: a
table of detokenizer, machine and chat writer, the ratio of the longest argument to the shortest, and beside it what
vLLM's parser of the same family takes for the same steps, where vLLM has one and is installed; `--output` keeps it as
JSON with the machine and the commit. A request is prepared with tools that were never seen before, and again. Process
CPU time, the best of several rounds: read ratios.

    python -m benchmarks.micro --lengths 1024 4096 32768 --vllm-lengths 1024 4096 --tools 0 10 100
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from transformers import AutoTokenizer

from functionary_vllm.api.body import parse, validate
from functionary_vllm.api.chat_request import ChatRequest
from functionary_vllm.api.chat_writer import ChatChunks, Shape
from functionary_vllm.conversation import AUTO, REQUIRED, Call, Conversation, Function, Message
from functionary_vllm.detokenizer import Detokenizer
from functionary_vllm.events import CallStart
from functionary_vllm.formats import get_format, list_formats
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import Offered
from functionary_vllm.history import normalise
from functionary_vllm.models import ensure_base
from functionary_vllm.offer import functions_from_tools
from functionary_vllm.pipeline import Delta

_WORDS = 'It rained in İstanbul all day; 12 °C, wind \\"N\\" <5 km/h>, and {nobody} went out. '
_PLACE = "here"
_TAGS = {"type": "array", "items": {"type": "string"}, "description": "All of these."}
_runs = itertools.count()
PREPARING = ("body", "checks", "render", "tokens", "rule", "decoder")
_SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}}
_OFFERED = Offered.of([Function({"name": "write", "parameters": _SCHEMA})])
_SHAPE = Shape("chatcmpl-0", "model", 0, "fp", 0)
# The parsers that vLLM 0.32 has for the same models.
VLLM_PARSERS = {
    "deepseek-v3": "deepseek_v3",
    "deepseek-v3.1": "deepseek_v31",
    "deepseek-v3.2": "deepseek_v32",
    "deepseek-v4": "deepseek_v4",
    "deepseek-v4.1": "deepseek_v41",
    "functiongemma": "functiongemma",
    "gemma4": "gemma4",
    "glm": "glm47",
    "glm-4.5": "glm45",
    "granite-20b-fc": "granite-20b-fc",
    "granite-3.1": "granite",
    "granite-4": "granite4",
    "hermes": "hermes",
    "kimi-k2": "kimi_k2",
    "kimi-k3": "kimi_k3",
    "llama3-json": "llama3_json",
    "llama4-pythonic": "llama4_pythonic",
    "phi4-mini-functools": "phi4_mini_json",
    "qwen3-xml": "qwen3_xml",
}


def with_markers(tokenizer: Any, name: str) -> Any:
    """A tokenizer in which the markers of a format are tokens, as in that of its models."""
    tokenizer = copy.deepcopy(tokenizer)
    fmt = get_format(name)
    tokenizer.add_tokens([*fmt.markers, *fmt.stop])
    # In place of a checkpoint's own: what is measured is what surrounds it, and how long JSON takes in jinja.
    tokenizer.chat_template = "{{ tools | tojson }}" + "".join(fmt.stop[:1]) + "{{ messages | tojson }}"
    return tokenizer


def recorded(fmt: Format, tokens: int) -> list[int]:
    """The ids of a call whose argument is a string of so many tokens, markers as they stand in the format."""
    call = Call("c0", "write", json.dumps({"text": _PLACE}))
    parts = fmt.answer(Message("assistant", "", calls=(call,)))
    before, _, after = "".join(p if isinstance(p, str) else p.text for p in parts).partition(_PLACE)

    def ids(text: str) -> list[int]:
        return list(fmt.tokenizer.encode(text, add_special_tokens=False))  # type: ignore[union-attr]

    return [*ids(before), *ids(_WORDS * (tokens // 16 + 1))[:tokens], *ids(after)]


def cpu_per_token(run: Callable[[], object], tokens: int, rounds: int) -> float:
    """Microseconds of CPU a token, the best of some rounds."""
    best = float("inf")
    for _ in range(rounds):
        begin = time.process_time()
        run()
        best = min(best, time.process_time() - begin)
    return best / tokens * 1e6


def stages(fmt: Format, ids: list[int], rounds: int) -> dict[str, float]:
    steps = [[token_id] for token_id in ids]
    decoder = Decoder(fmt, _OFFERED)
    events = [decoder.feed(step) for step in steps]
    if not any(isinstance(event, CallStart) for step in events for event in step):
        raise SystemExit(f"{fmt.name}: the recording was not read as a call")
    deltas = [Delta(0, step_events, i) for i, step_events in enumerate(events, 1)]

    def detokenize() -> None:
        detokenizer = Detokenizer(fmt.alphabet)
        for step in steps:
            detokenizer.feed(step)

    def decode() -> None:
        decoder = Decoder(fmt, _OFFERED)
        for step in steps:
            decoder.feed(step)

    def write() -> None:
        chunks = ChatChunks(_SHAPE)
        for delta in deltas:
            chunks.write(delta)

    detokenizer = cpu_per_token(detokenize, len(ids), rounds)
    decoder_us = cpu_per_token(decode, len(ids), rounds)
    writer = cpu_per_token(write, len(ids), rounds)
    return {
        "detokenizer": detokenizer,
        "machine": decoder_us - detokenizer,
        "writer": writer,
        "all": decoder_us + writer,
    }


def body(tools: int, run: int) -> bytes:
    """A request with so many tools of 1.2 kB; those of another `run` are others."""
    about = f"The {run}th kind of entries, what they are for, and when they are better left alone. " * 4
    entry = {"type": "object", "properties": {"city": {"type": "string"}, "tags": _TAGS}, "required": ["city"]}
    properties = {
        "query": {"type": "string", "description": about},
        "status": {"type": "string", "enum": ["open", "closed", "all"], "description": "Which of them."},
        "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 10},
        "filters": {"type": "object", "properties": {"entry": entry, "from": {"type": "string"}}},
    }
    functions = [
        {
            "name": f"find_{run}_{number}",
            "description": about,
            "parameters": {"type": "object", "properties": properties, "required": ["query"]},
        }
        for number in range(tools)
    ]
    offered = {"tools": [{"type": "function", "function": function} for function in functions]} if tools else {}
    return orjson.dumps({"messages": [{"role": "user", "content": "What is open in Istanbul?"}], **offered})


def prepared(fmt: Format, raw: bytes) -> dict[str, float]:
    """Milliseconds of CPU from a body to what the engine is given."""
    times = [time.process_time()]
    chat = validate(parse(raw), ChatRequest)
    times.append(time.process_time())
    functions, _ = functions_from_tools(chat.tools)
    conversation = Conversation(normalise(chat.messages), functions, AUTO)
    times.append(time.process_time())
    prompt = fmt.render(conversation)
    times.append(time.process_time())
    prompt.token_ids(fmt.tokenizer)
    times.append(time.process_time())
    offered = Offered.of(functions)
    if functions:
        forced = Conversation(conversation.messages, functions, REQUIRED)
        fmt.constraint(forced, fmt.opened(forced), frozenset(offered.names))
    times.append(time.process_time())
    fmt.decode(offered, prompt.opened)
    times.append(time.process_time())
    took = [end - begin for begin, end in itertools.pairwise(times)]
    return {stage: taken * 1e3 for stage, taken in zip((*PREPARING, "all"), (*took, sum(took)), strict=True)}


def preparing(fmt: Format, tools: int, rounds: int) -> dict[str, dict[str, float]]:
    """For the first time, and again: the best of each stage."""
    bodies = [body(tools, next(_runs)) for _ in range(rounds)]
    first, again = ([prepared(fmt, raw) for raw in bodies] for _ in range(2))
    return {
        "first": {stage: min(took[stage] for took in first) for stage in first[0]},
        "again": {stage: min(took[stage] for took in again) for stage in again[0]},
    }


def vllm_parser(fmt: Format, ids: list[int], rounds: int) -> float | str:
    """What vLLM's own streaming parser takes a token, fed the text of each step; or why there is no figure."""
    try:
        theirs = get_format(f"vllm:{VLLM_PARSERS[fmt.name]}", fmt.tokenizer)
        detokenizer = Detokenizer(theirs.alphabet)
        steps = [(detokenizer.feed([token_id]), [token_id]) for token_id in ids]

        def parse() -> bool:
            decoder: Any = theirs.decode(_OFFERED)
            parser, request = decoder._parser, decoder._request
            deltas = [parser.parse_delta(text, i, request, prompt_token_ids=[], finished=False) for text, i in steps]
            return any(delta and delta.tool_calls for delta in deltas)

        if not parse():
            return "streams no call"
        return cpu_per_token(parse, len(ids), rounds)
    except Exception as error:  # theirs: whatever it raises is no figure
        return f"{type(error).__name__}: {str(error)[:60]}"


def measure(tokenizer: Any, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for name in list_formats():
        fmt = get_format(name, with_markers(tokenizer, name))
        table[name] = {
            "ours": {n: stages(fmt, recorded(fmt, n), options.rounds) for n in options.lengths},
            "vllm": {n: vllm_parser(fmt, recorded(fmt, n), 1) for n in options.vllm_lengths}
            if name in VLLM_PARSERS
            else {},
            "prepare": {n: preparing(fmt, n, options.rounds) for n in options.tools} if fmt.lacks() is None else {},
        }
    return table


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU time of each stage behind and before the engine.")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer folder (default: the built-in model's)")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 32768], help="argument tokens")
    parser.add_argument(
        "--vllm-lengths", type=int, nargs="*", default=[1024, 4096], help="the same for vLLM's parsers; none: leave out"
    )
    parser.add_argument("--tools", type=int, nargs="*", default=[0, 10, 100], help="tools of a request to prepare")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="keep the figures as JSON")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer or ensure_base())
    table = measure(tokenizer, options)
    print(
        f"{'format':20}{'tokens':>8}{'detok':>8}{'machine':>9}{'writer':>8}{'all':>8}  µs CPU a token   vLLM's parser"
    )
    for name, rows in table.items():
        show(name, rows)
    print(f"\n{'format':20}{'tools':>8}{'':8}" + "".join(f"{stage:>9}" for stage in (*PREPARING, "all")) + "  ms CPU")
    for name, rows in table.items():
        for tools, times in rows["prepare"].items():
            for when, took in times.items():
                print(f"{name:20}{tools:8}{when:>8}" + "".join(f"{took[stage]:9.2f}" for stage in (*PREPARING, "all")))
    if options.output:
        about = {"commit": commit(), "python": platform.python_version(), "machine": platform.machine()}
        options.output.write_text(json.dumps({**about, "formats": table}, indent=1) + "\n")


def show(name: str, rows: dict[str, Any]) -> None:
    ours, theirs = rows["ours"], rows["vllm"]
    for length in sorted({*ours, *theirs}):
        row = ours.get(length)
        stages_ = ("detokenizer", "machine", "writer", "all")
        figures = "".join(f"{row[stage]:9.2f}" for stage in stages_) if row else " " * 36
        their = theirs.get(length, "")
        print(f"{name:20}{length:8}{figures}" + (f"{their:34.1f}" if isinstance(their, float) else f"    {their}"))
    growth = ours[max(ours)]["all"] / ours[min(ours)]["all"]
    print(f"{'':20}growth {growth:.2f} x from {min(ours)} to {max(ours)} tokens")


if __name__ == "__main__":
    main()
