"""The app in front of a FakeEngine, over ASGI and on a real socket; and scripts for the first openai client."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

from functionary_vllm.api.app import create_app
from functionary_vllm.formats import get_format
from functionary_vllm.settings import Settings
from tests.fakes import FakeEngine, byte_tokenizer

MODEL = "fake"
PATH = "/v1/chat/completions"
WEATHER = {
    "name": "get_weather",
    "description": "Get the current weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOLS = [{"type": "function", "function": WEATHER}]
ARGUMENTS = '{"city": "Istanbul"}'
USER = [{"role": "user", "content": "What is the weather in Istanbul?"}]


def call_text(arguments: str = ARGUMENTS, name: str = "get_weather") -> str:
    """A call as the hermes format writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@cache
def tokenizer() -> Any:
    return byte_tokenizer()


def engine_saying(*texts: str, **options: Any) -> FakeEngine:
    """An engine that answers its requests with these texts, in turn."""
    engine = FakeEngine(tokenizer=tokenizer())
    engine.scripts = [engine.play(text, **options) for text in texts]
    return engine


def app_of(engine: FakeEngine, **settings: Any) -> FastAPI:
    values = {"served_model_names": (MODEL, "alias"), **settings}
    return create_app(Settings(**values), engine, get_format("hermes", engine.tokenizer))


@asynccontextmanager
async def client_of(engine: FakeEngine, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app_of(engine, **settings), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def ask(engine: FakeEngine, settings: dict[str, Any] | None = None, **body: Any) -> httpx.Response:
    async with client_of(engine, **(settings or {})) as client:
        return await client.post(PATH, json={"model": MODEL, "messages": USER, **body})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a finished stream, whose last one must be [DONE]."""
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a refusal, which must be a whole envelope."""
    assert response.headers["content-type"] == "application/json"
    envelope = response.json()
    assert set(envelope) == {"error"}
    error: dict[str, Any] = envelope["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["code"], str)
    return error


@contextmanager
def served(engine: FakeEngine, **settings: Any) -> Iterator[str]:
    """A real server in a thread; gives its base address."""
    config = uvicorn.Config(app_of(engine, **settings), port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def serve() -> None:
        watch = asyncio.create_task(server.serve())
        while not server.started:
            assert not watch.done(), "the server did not start"
            await asyncio.sleep(0.005)
        ready.set()
        await watch

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def with_old_client(folder: Path, script: str, *arguments: str) -> str:
    """What a script prints that imports openai 0.28.1 from `folder`; it must end well."""
    run = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout
