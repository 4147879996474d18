"""Recorded token streams played back as an engine: no model, no vLLM; for tests, front-end benchmarks, format demos.

In: recordings, one JSON object a line, and a tokenizer. Out: the Steps a real engine would have sent. A request names
its recording in `metadata["recording"]`; one that does not gets the next in turn. max_tokens, stop tokens, n, stop()
and leaving behave as in the real engine; a constraint is not enforced, since what is played was already said, and
logprobs are made up (they depend on the position only, so that a test can know them). Requests of one interval are
a batch, as on a GPU: they step together, at the same ticks of the clock.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from functionary_vllm.engine.adapter_folder import check_adapter
from functionary_vllm.engine.adapters import LoadedAdapters
from functionary_vllm.engine.base import Capacity, Generation, Sampling, Step, Take, TokenLogprob
from functionary_vllm.errors import EngineUnavailable, InvalidRequest
from functionary_vllm.events import FinishReason


class RecordingError(ValueError):
    """A recordings file that cannot be used; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What one answer consists of. `steps` are tokens an engine step, cycled; `interval` is in seconds."""

    id: str
    token_ids: tuple[int, ...]
    finish: FinishReason = "stop"
    steps: tuple[int, ...] = (1,)
    interval: float = 0.0


_CAPACITY = Capacity(1024, 1 << 24)  # said, not enforced: any number of recordings can be played
_KEYS = {"id", "text", "token_ids", "finish_reason", "step", "interval_ms"}


def load_recordings(path: str | Path, tokenizer: Any) -> list[Recording]:
    """The recordings of a JSON Lines file; blank lines are skipped. Raises RecordingError."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # strings may hold other line ends
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path} cannot be read: {error}") from None
    recordings: list[Recording] = []
    known: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            recording = _recording(json.loads(line), tokenizer)
            if recording.id in known:
                raise ValueError(f"the id {recording.id!r} is there twice")
        except ValueError as error:  # JSONDecodeError is one
            raise RecordingError(f"{path}, line {number}: {error}") from None
        known.add(recording.id)
        recordings.append(recording)
    if not recordings:
        raise RecordingError(f"{path} has no recordings")
    return recordings


def _recording(content: Any, tokenizer: Any) -> Recording:
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if unknown := sorted(content.keys() - _KEYS):
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(sorted(_KEYS))}")
    name = content.get("id")
    if not isinstance(name, str) or not name:
        raise ValueError("id must be a string")
    finish = content.get("finish_reason", "stop")
    if finish not in ("stop", "length"):
        raise ValueError(f"finish_reason must be stop or length, not {finish!r}")
    interval = content.get("interval_ms", 0)
    if not _is_number(interval) or not 0 <= interval < math.inf:
        raise ValueError(f"interval_ms must be a number of milliseconds, not {interval!r}")
    step = content.get("step", 1)
    steps = tuple(step) if isinstance(step, list) else (step,)
    if not steps or not all(_is_int(size) and size >= 1 for size in steps):
        raise ValueError(f"step must be a positive number or a list of them, not {step!r}")
    return Recording(name, _token_ids(content, tokenizer), finish, steps, interval / 1000)


def _token_ids(content: Mapping[str, Any], tokenizer: Any) -> tuple[int, ...]:
    if ("text" in content) == ("token_ids" in content):
        raise ValueError("either text or token_ids must be there, not both")
    if "text" in content:
        if not isinstance(content["text"], str):
            raise ValueError("text must be a string")
        # Special tokens written in the text become special tokens; none is added.
        return tuple(tokenizer.encode(content["text"], add_special_tokens=False))
    ids = content["token_ids"]
    if not isinstance(ids, list) or not all(_is_int(token_id) and 0 <= token_id < len(tokenizer) for token_id in ids):
        raise ValueError(f"token_ids must be a list of numbers from 0 to {len(tokenizer) - 1}")
    return tuple(ids)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_int(value) or isinstance(value, float)


class ReplayEngine:
    """An Engine that plays recordings. `running` and `aborted` count requests, for tests."""

    def __init__(
        self, recordings: Sequence[Recording], tokenizer: Any, max_model_len: int = 131072, model_type: str = ""
    ) -> None:
        if not recordings:
            raise RecordingError("there are no recordings to play")
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self.model_type = model_type
        self.vocab_size = len(tokenizer)
        self.capacity = _CAPACITY
        self.adapters = LoadedAdapters(_Names())
        self.running = 0
        self.aborted = 0
        self._recordings = list(recordings)
        self._by_id = {recording.id: recording for recording in recordings}
        self._turn = 0
        self._playing: dict[str, _Playing] = {}
        self._batches: dict[float, list[_Playing]] = {}  # by their interval
        self._drivers: set[asyncio.Task[None]] = set()
        self._closed = False

    async def generate(self, request: Generation, take: Take) -> None:
        with self.adapters.use(request.model):
            await self._play(request, take)

    async def _play(self, request: Generation, take: Take) -> None:
        await self.check_health()
        playing = _Playing(_cut(self._choose(request), request), request.sampling, take, self.vocab_size)
        self._playing[request.id] = playing
        self._join_batch(playing)
        self.running += 1
        try:
            await playing.ended
        finally:
            self.running -= 1
            self.aborted += bool(playing.choices)
            playing.choices.clear()
            self._playing.pop(request.id, None)

    def _join_batch(self, playing: _Playing) -> None:
        interval = playing.recording.interval
        if interval not in self._batches:
            self._batches[interval] = []
            driver = asyncio.create_task(self._drive(interval))
            self._drivers.add(driver)
            driver.add_done_callback(self._drivers.discard)
        self._batches[interval].append(playing)

    async def _drive(self, interval: float) -> None:
        """Step a batch as long as it has members."""
        loop = asyncio.get_running_loop()
        ticks = _ticks(loop.time(), interval)
        while batch := self._batches[interval]:
            # Without an interval still a turn for the others.
            await asyncio.sleep(max(0.0, next(ticks) - loop.time()))
            for playing in batch:
                playing.step()
            self._batches[interval] = [playing for playing in self._batches[interval] if playing.choices]
        del self._batches[interval]

    def _choose(self, request: Generation) -> Recording:
        name = request.metadata.get("recording")
        if name is None:
            self._turn += 1
            return self._recordings[(self._turn - 1) % len(self._recordings)]
        if name not in self._by_id:
            raise InvalidRequest(f"There is no recording {name!r}.", param="metadata.recording")
        return self._by_id[name]

    def stop(self, request_id: str, choice: int) -> None:
        if playing := self._playing.get(request_id):
            playing.leave(choice)

    def check_schema(self, schema: Mapping[str, Any] | bool) -> None:
        """Nothing is enforced here, so nothing is refused."""

    async def check_health(self) -> None:
        if self._closed:
            raise EngineUnavailable("The engine has been closed.")

    async def close(self) -> None:
        self._closed = True
        for driver in self._drivers:
            driver.cancel()


class _Names:
    """A Loader: an adapter is checked, and changes nothing in what is played."""

    room = 64

    async def load(self, label: str, number: int, path: str) -> None:
        await asyncio.to_thread(check_adapter, path)

    async def unload(self, number: int) -> None:
        """Nothing was loaded."""


class _Playing:
    """One request being played. `choices` are those still under way; `ended` is done when none is left."""

    def __init__(self, recording: Recording, sampling: Sampling, take: Take, vocab_size: int) -> None:
        self.recording = recording
        self.choices = list(range(sampling.n))
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._logprobs = sampling.logprobs
        self._take = take
        self._vocab_size = vocab_size
        self._start = self._turn = 0

    def step(self) -> None:
        recording, start = self.recording, self._start
        end = self._start = start + recording.steps[self._turn % len(recording.steps)]
        self._turn += 1
        ids = recording.token_ids[start:end]
        finish = recording.finish if end >= len(recording.token_ids) else None
        count = self._logprobs
        logprobs = None if count is None else _logprobs(ids, start, count, self._vocab_size)
        for choice in tuple(self.choices):
            if choice in self.choices:  # stop() may have been called since
                self._hand(Step(choice, ids, finish, logprobs))

    def _hand(self, step: Step) -> None:
        try:
            self._take(step)
        except Exception as error:  # raised where the request is awaited
            if not self.ended.done():
                self.ended.set_exception(error)
            self.choices.clear()
        if step.finish is not None:
            self.leave(step.choice)

    def leave(self, choice: int) -> None:
        if choice in self.choices:
            self.choices.remove(choice)
            if not self.choices and not self.ended.done():
                self.ended.set_result(None)


def _cut(recording: Recording, request: Generation) -> Recording:
    """What is played of it: a stop token or max_tokens may come before its end."""
    token_ids, finish = recording.token_ids, recording.finish
    stops = [index for index, token_id in enumerate(token_ids) if token_id in request.stop_token_ids]
    if stops:
        token_ids, finish = token_ids[: stops[0] + 1], "stop"
    room = request.sampling.max_tokens
    if room is not None and room < len(token_ids):
        token_ids, finish = token_ids[:room], "length"
    return replace(recording, token_ids=token_ids, finish=finish)


def _ticks(now: float, interval: float) -> Iterator[float]:
    """The times of the steps: the clock's multiples of the interval. Counted, as a timer may wake a little early."""
    first = int(now // interval) + 1 if interval else 0
    return (tick * interval for tick in itertools.count(first))


def _logprobs(token_ids: Sequence[int], start: int, count: int, vocab_size: int) -> tuple[TokenLogprob, ...]:
    """Made-up values: -0.1 to -0.5 by position for the token itself, and neighbours by id, each less likely."""
    return tuple(
        TokenLogprob(
            token_id,
            (chosen := -0.1 * (1 + (start + offset) % 5)),
            tuple(((token_id + rank) % vocab_size, chosen - 0.5 * rank) for rank in range(count)),
        )
        for offset, token_id in enumerate(token_ids)
    )
