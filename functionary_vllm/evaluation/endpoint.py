"""One question to an OpenAI-compatible endpoint, by OpenAI's own client, streamed or whole: an Answer either way.

Whatever the server does wrong (a status, a broken stream, nothing within the timeout) is an Answer with an error, so
that it counts. Only a server that is not there at all ends the run: then Gone is raised. Strict functions whose schema
the server refuses are asked once more without strict, which the Answer tells.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import openai

from functionary_vllm.evaluation.cases import Answer, Call


class Gone(RuntimeError):
    """Nothing answers at that address."""


class Endpoint:
    def __init__(self, url: str, api_key: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        base = self.url if self.url.endswith("/v1") else f"{self.url}/v1"
        self._client = openai.AsyncOpenAI(base_url=base, api_key=api_key, timeout=timeout, max_retries=0)

    async def models(self) -> list[str]:
        try:
            return [model.id async for model in self._client.models.list()]
        except openai.APIConnectionError as error:
            raise Gone(f"nothing answers at {self.url}: {error}") from None
        except openai.APIStatusError as error:
            raise Gone(f"{self.url} does not tell its models: status {error.status_code}") from None

    async def ask(self, body: dict[str, Any]) -> Answer:
        began = time.monotonic()
        answer = await self._answer(body)
        if answer.error.startswith("status 400") and (relaxed := without_strict(body)) is not None:
            answer = replace(await self._answer(relaxed), relaxed=True)
        return replace(answer, seconds=round(time.monotonic() - began, 3))

    async def _answer(self, body: dict[str, Any]) -> Answer:
        create: Any = self._client.chat.completions.create
        try:
            if body.get("stream"):
                return await _fold(await create(**body, stream_options={"include_usage": True}))
            return _read(await create(**body))
        except openai.APITimeoutError:
            return Answer(error="timeout")
        except openai.APIStatusError as error:
            return Answer(error=f"status {error.status_code}: {_short(error.message)}")
        except openai.APIConnectionError as error:
            await self.models()  # raises Gone where this was not about one request
            return Answer(error=f"connection: {_short(str(error))}")
        except openai.OpenAIError as error:  # among them an error inside of a stream
            return Answer(error=f"error: {_short(str(error))}")
        except (LookupError, AttributeError, TypeError, ValueError):
            return Answer(error="not a chat answer")

    async def close(self) -> None:
        await self._client.close()


def _read(response: Any) -> Answer:
    choice = response.choices[0]
    message = choice.message
    calls = [Call(call.function.name, call.function.arguments, call.id) for call in message.tool_calls or ()]
    if called := message.function_call:
        calls.append(Call(called.name, called.arguments))
    tokens = response.usage.completion_tokens if response.usage else 0
    return Answer(message.content or "", tuple(calls), choice.finish_reason or "", tokens=tokens)


async def _fold(stream: Any) -> Answer:
    text, finish, tokens = "", "", 0
    calls: dict[int, Call] = {}

    def add(index: int, name: str | None, arguments: str | None, identity: str | None = None) -> None:
        call = calls.get(index, Call("", ""))
        calls[index] = Call(call.name + (name or ""), call.arguments + (arguments or ""), call.id or identity or "")

    async for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            delta = choice.delta
            text += delta.content or ""
            for call in delta.tool_calls or ():
                add(call.index, call.function.name, call.function.arguments, call.id)
            if called := delta.function_call:
                add(0, called.name, called.arguments)
            finish = choice.finish_reason or finish
    if not finish:
        return Answer(error="a stream without an end")
    return Answer(text, tuple(call for _, call in sorted(calls.items())), finish, tokens=tokens)


def without_strict(body: dict[str, Any]) -> dict[str, Any] | None:
    """None where nothing in it is strict."""
    text = json.dumps(body)
    relaxed: dict[str, Any] = json.loads(text)
    for function in functions_of(relaxed):
        function.pop("strict", None)
    return relaxed if json.dumps(relaxed) != text else None


def with_strict(offer: dict[str, Any]) -> dict[str, Any]:
    """The same functions, their arguments to be enforced."""
    strict: dict[str, Any] = json.loads(json.dumps(offer))
    for function in functions_of(strict):
        function["strict"] = True
    return strict


def functions_of(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [*body.get("functions", ()), *(tool["function"] for tool in body.get("tools", ()))]


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
