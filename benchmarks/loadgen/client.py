"""One exchange with an OpenAI-compatible endpoint: a body in, a Record and the Answers out.

Times are taken with time.perf_counter as bytes arrive, in seconds since the begin of the run, and say nothing of what
is late: a Record carries the planned time beside the others. What goes wrong is in `error`, one of ERRORS, not raised.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from benchmarks.loadgen.folding import Answer, EventStream, StreamFold, call_problems, fold_whole, usage_problems

ERRORS = {
    "connect": "no connection: refused, unreachable, unknown name",
    "disconnected": "the connection was lost before an answer began",
    "429": "status 429, too many requests",
    "4xx": "another status of 400 to 499",
    "5xx": "status 500 or above",
    "status": "any other status that is not 200",
    "stream error": "an error event inside the stream",
    "cut": "the stream or the body ended early: no [DONE], or a lost connection",
    "not a chat answer": "status 200 with something else",
    "timeout": "not whole in --timeout seconds from the planned time",
    "missed": "never sent: all of --concurrency was taken for --timeout seconds",
    "interrupted": "under way at Ctrl-C; in no rate of errors",
    "generator": "a fault of this program",
}


@dataclass(slots=True)
class Record:
    """One request. Times in seconds since the begin of the run, gaps in milliseconds."""

    session: int
    turn: int
    planned: float
    sent: float | None = None
    first_byte: float | None = None
    first_token: float | None = None
    name: float | None = None
    argument: float | None = None
    end: float = 0.0
    status: int | None = None
    error: str | None = None
    message: str | None = None
    finish: str | None = None
    tokens_in: int | None = None
    tokens_cached: int | None = None
    tokens_out: int | None = None
    chunks: int = 0
    characters: int = 0
    calls: list[list[str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)

    def fail(self, error: str, message: object = "") -> None:
        self.error, self.message = error, str(message)[:500] or None


def endpoint(url: str, path: str) -> str:
    """`http://host:8000`, `…/v1` and `…/v1/chat/completions` all name the same server."""
    parts = urlsplit(url if "://" in url else f"http://{url}")
    base = parts.path.rstrip("/").removesuffix("/chat/completions")
    return parts._replace(path=(base or "/v1") + path).geturl()


class Client:
    """Sends requests over kept connections, as many as it takes; `begin` is the run's time 0."""

    def __init__(self, http: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
        self.begin = time.perf_counter()
        self.tokens = 0  # chunks that carried some, so far: for the progress display
        self._http = http
        self._url = endpoint(url, "/chat/completions")
        self._timeout = timeout_s

    def now(self) -> float:
        return round(time.perf_counter() - self.begin, 6)

    async def ask(self, body: dict[str, Any], record: Record) -> list[Answer]:
        """The answers, as far as they came: with `record.error` set they are not whole."""
        answers: list[Answer] = []
        data = orjson.dumps(body)
        deadline = asyncio.get_running_loop().time() + record.planned + self._timeout - self.now()
        record.sent = self.now()
        try:
            async with asyncio.timeout_at(deadline), self._http.post(self._url, data=data) as response:
                record.first_byte = self.now()
                record.status = response.status
                if response.status != 200:
                    record.fail(status_error(response.status), (await response.read())[:500].decode(errors="replace"))
                elif body.get("stream"):
                    await self._stream(response, body, record, answers)
                else:
                    answers += whole(await response.read(), body, record)
        except aiohttp.ConnectionTimeoutError as error:
            record.fail("connect", error)
        except TimeoutError:
            record.fail("timeout")
        except aiohttp.ClientConnectorError as error:
            record.fail("connect", error)
        except aiohttp.ClientPayloadError as error:
            record.fail("cut", error)
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            record.fail("disconnected" if record.first_byte is None else "cut", repr(error))
        except aiohttp.ClientError as error:
            record.fail("not a chat answer", repr(error))
        except asyncio.CancelledError:
            record.fail("interrupted")
            raise
        finally:
            record.end = self.now()
            keep(answers, record)
        return answers

    async def _stream(
        self, response: aiohttp.ClientResponse, body: dict[str, Any], record: Record, answers: list[Answer]
    ) -> None:
        if response.content_type != "text/event-stream":
            record.fail("not a chat answer", (await response.read())[:500].decode(errors="replace"))
            return
        fold, events = StreamFold(body), EventStream()
        try:
            while piece := await response.content.readany():
                now, before = self.now(), fold.chunks
                for event in events.feed(piece):
                    fold.feed(event, now)
                self.tokens += fold.chunks - before
        finally:  # what came counts, whatever ends it
            answers += fold.finish()
            record.first_token, record.name, record.argument = fold.first_token, fold.name, fold.argument
            record.gaps = [round(gap * 1000, 3) for gap in fold.gaps]
            record.chunks, record.problems = fold.chunks, fold.problems
            note_usage(fold.usage, record)
        if fold.error is not None:
            record.fail("stream error", fold.error)
        elif not fold.done:
            record.fail("cut", "the stream ended without [DONE]")


def status_error(status: int) -> str:
    if status == 429:
        return "429"
    return "4xx" if 400 <= status < 500 else "5xx" if status >= 500 else "status"


def whole(content: bytes, body: dict[str, Any], record: Record) -> list[Answer]:
    """The answers of a body that came at once."""
    try:
        response = orjson.loads(content)
        answers = fold_whole(response)
        usage = response.get("usage") or {}
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        record.fail("not a chat answer", f"{error!r}: {content[:300].decode(errors='replace')}")
        return []
    record.problems = [*call_problems(answers), *usage_problems(usage, 0, body)]
    note_usage(usage, record)
    return answers


def note_usage(usage: dict[str, Any], record: Record) -> None:
    record.tokens_in, record.tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    record.tokens_cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")


def keep(answers: list[Answer], record: Record) -> None:
    record.characters = sum(answer.characters for answer in answers)
    record.calls = [[call.name, call.arguments] for answer in answers for call in answer.calls]
    record.finish = answers[0].finish if answers else None
