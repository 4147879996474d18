"""Rules of the families on the real engine: what vLLM enforces of each syntax is what our reader makes calls of.

One engine on the small base, many formats: its tokenizer has none of their markers, so these are text here. The
engine runs in a process of its own, this file as a program.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from functionary_vllm.conversation import REQUIRED, Choice, Conversation, Function, Message
from functionary_vllm.engine.base import Sampling
from functionary_vllm.events import Finish, merge
from functionary_vllm.formats import get_format
from functionary_vllm.pipeline import Delta, Pipeline, Task
from functionary_vllm.serving.launch import start_engine, with_model
from functionary_vllm.settings import Settings
from tests import strategies as make

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome"]},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "sure", "tags"],
    "additionalProperties": False,
}
FUNCTIONS = tuple(
    Function({"name": name, "description": "", "parameters": SCHEMA}, strict=True) for name in ("get_weather", "get")
)
FAMILIES = [
    *("deepseek-v3", "deepseek-v3.1", "deepseek-v3.2", "functiongemma", "functionary-r1", "functionary-v4r", "gemma4"),
    *("glm", "glm-4.5", "granite-3.1", "granite-4", "hermes", "kimi-k2", "llama3-json", "llama4-json"),
    *("llama4-pythonic", "phi4-mini", "phi4-mini-functools", "qwen3-xml"),
]

pytestmark = pytest.mark.engine


def test_forced_calls_follow_their_schema_in_every_syntax(base_model: Path) -> None:
    command = [sys.executable, "-m", "tests.test_families_engine", str(base_model)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == FAMILIES


async def run(model: str) -> None:
    engine = start_engine(with_model(Settings(model=model, engine_args=("--max-model-len=2048",))))
    try:
        for name in FAMILIES:
            pipeline = Pipeline(get_format(name, engine.tokenizer), engine)
            asked = itertools.product((REQUIRED, Choice("named", "get_weather")), (0.0, 1.5))
            await asyncio.gather(*(forced(pipeline, name, choice, temperature) for choice, temperature in asked))
            print(name, flush=True)
    finally:
        await engine.close()


async def forced(pipeline: Pipeline, name: str, choice: Choice, temperature: float) -> None:
    question = (Message("user", "Weather in Oslo?"),)
    conversation = Conversation(question, FUNCTIONS, choice, parallel=False, thinking=False)
    sampling = Sampling(max_tokens=400, temperature=temperature, seed=7)
    prepared = pipeline.prepare(Task(f"{name} {choice} {temperature}", conversation, sampling, max_calls=1))
    assert prepared.generation.constraint is not None
    deltas: list[Delta] = []
    await pipeline.run(prepared, deltas.append)
    events = merge(event for delta in deltas for event in delta.events)
    assert events[-1] == Finish("stop"), (name, choice, events)
    ((called, arguments),) = make.told(events).calls
    assert called in ("get_weather", "get")
    jsonschema.validate(json.loads(arguments), SCHEMA)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
