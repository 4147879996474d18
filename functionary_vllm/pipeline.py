"""Conversation x Format x Engine -> Deltas: the whole way of an answer, without HTTP.

In: a Conversation, a Sampling. `prepare` (plain CPU work, safe in a thread) renders, tokenises, checks the length
and picks the constraint; `run` reads the engine's steps with one decoder a choice. Out: Deltas, the last of each
choice ending in Finish, handed to a plain function in the very call in which the engine hands over the step. Refuses
to know OpenAI's shapes, and which engine it drives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from functionary_vllm.backlog import Backlog, Lag
from functionary_vllm.conversation import Conversation, Function
from functionary_vllm.engine.base import Engine, Generation, Sampling, Step, TokenLogprob
from functionary_vllm.errors import ContextLengthExceeded, UnknownFunctionCalled
from functionary_vllm.events import Event, Finish, FinishReason, Text
from functionary_vllm.formats.base import Format
from functionary_vllm.formats.prompt import Prompt
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.machine import PERMISSIVE, Offered, PythonArguments, ReadingPolicy
from functionary_vllm.recent import Recent


@dataclass(slots=True)  # as Step: one a token
class Delta:
    """What one engine step said about one choice.

    `logprobs` belong to the tokens whose characters the events show as Text, in order; None unless asked for.
    `completion_tokens` counts all tokens of the choice so far, `cached_tokens` the prompt tokens from the cache,
    `unknown_calls` the calls of the choice so far whose function was not on offer.
    """

    choice: int
    events: Sequence[Event]
    completion_tokens: int
    logprobs: Sequence[TokenLogprob] | None = None
    cached_tokens: int = 0
    unknown_calls: int = 0


TakeDelta = Callable[[Delta], Lag]
Seat = AbstractAsyncContextManager[None, None]
_NO_SEAT: Seat = nullcontext()


@dataclass(frozen=True, slots=True)
class Task:
    """One request as the API hands it over: what was asked, how to sample, how to answer."""

    id: str
    conversation: Conversation
    sampling: Sampling
    max_calls: int | None = None  # stop the engine after so many complete calls
    python_arguments: PythonArguments = "json"
    model: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine, and what reads its answer: a decoder a choice, good for one run."""

    prompt: Prompt
    generation: Generation
    decoders: Sequence[Decoder]
    max_calls: int | None


class Pipeline:
    """One format on one engine."""

    def __init__(self, fmt: Format, engine: Engine, reading: ReadingPolicy = PERMISSIVE) -> None:
        self._fmt = fmt
        self._reading = reading
        self._engine = engine
        self._refusals: Recent[bytes, str] = Recent(4 << 20)

    def refusal(self, schema: Mapping[str, Any] | bool) -> str | None:
        """Why the engine cannot enforce this JSON Schema; None when it can."""
        key = orjson.dumps(schema)
        refusal = self._refusals.get(key)
        if refusal is None:
            refusal = self._check(schema) or ""
            self._refusals.put(key, refusal, len(key) + len(refusal))
        return refusal or None

    def unenforceable(self, function: Function) -> str | None:
        """Why arguments to this function's schema cannot be enforced, by the engine or in the format's syntax."""
        return self.refusal(function.parameters) or self._fmt.unenforceable(function)

    def shown(self, conversation: Conversation) -> Conversation:
        """What the model is to see of a conversation."""
        return conversation.narrowed(keep_tools=self._reading.none_keeps_tools)

    def prepare(self, task: Task) -> Prepared:
        """Render, tokenise, and make ready to read. Raises ContextLengthExceeded."""
        conversation = self.shown(task.conversation)
        prompt = self._fmt.render(conversation)
        prompt_ids = prompt.token_ids(self._engine.tokenizer)
        generation = Generation(
            id=task.id,
            prompt_ids=prompt_ids,
            sampling=replace(self._fitted(task.sampling, len(prompt_ids)), banned=self._banned(conversation)),
            stop_token_ids=() if task.sampling.ignore_eos else self._fmt.stop_token_ids,
            constraint=self._fmt.constraint(conversation, prompt.opened, self._exact(conversation)),
            model=task.model,
            priority=task.priority,
            metadata=task.metadata,
        )
        offered = Offered.of(
            conversation.functions,
            calls=conversation.choice.mode != "none",
            python=task.python_arguments if conversation.code_interpreter else None,
            reading=self._reading,
        )
        decoders = [
            self._fmt.decode(offered, prompt.opened, stops=task.sampling.stop, max_calls=task.max_calls)
            for _ in range(task.sampling.n)
        ]
        if task.sampling.ignore_eos:
            for decoder in decoders:
                decoder.ignore_ends()
        return Prepared(prompt, generation, decoders, task.max_calls)

    async def run(self, prepared: Prepared, take: TakeDelta, *, whole: bool = False, seat: Seat = _NO_SEAT) -> None:
        """Hand each Delta to `take`; return after the last. Cancelling aborts the engine request.

        `seat` is held as long as the engine has the request, and no longer: a reader that lags does not need one.

        When `take` returns an awaitable, the reader lags: what the engine says until that is done is kept as tokens,
        and comes as one Delta a choice. `whole` says that nobody reads before the end: then the first step comes at
        once, and the others as one Delta at the end, unless what they say may have to stop the engine.
        """
        generation = prepared.generation
        strict = self._reading.unknown_function == "error"
        reader = _Reader(prepared, take, self._engine, strict=strict)
        stoppable = generation.sampling.stop or prepared.max_calls or strict
        backlog = Backlog(reader.read, whole=whole and not stoppable)
        try:
            async with seat:
                await self._engine.generate(generation, backlog.step)
            await backlog.finish()
        finally:
            backlog.close()

    def _fitted(self, sampling: Sampling, prompt_tokens: int) -> Sampling:
        limit = self._engine.max_model_len
        if prompt_tokens >= limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens. However, your messages resulted in "
                f"{prompt_tokens} tokens. Please reduce the length of the messages.",
                param="messages",
            )
        if sampling.max_tokens is None:
            return replace(sampling, max_tokens=limit - prompt_tokens)
        if prompt_tokens + sampling.max_tokens > limit:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {limit} tokens. However, you requested "
                f"{prompt_tokens + sampling.max_tokens} tokens ({prompt_tokens} in the messages, "
                f"{sampling.max_tokens} in the completion). Please reduce the length of the messages or completion.",
                param="messages",
            )
        return sampling

    def _banned(self, conversation: Conversation) -> tuple[str, ...]:
        """What the engine may not begin: calls, where the model sees functions and may call none."""
        if conversation.choice.mode != "none" or not conversation.functions:
            return ()
        return self._fmt.call_marks(function.name for function in conversation.functions)

    def _exact(self, conversation: Conversation) -> frozenset[str]:
        """Functions whose arguments will follow their schema: strict ones, and of forced ones those that can."""
        forced = conversation.choice.mode in ("required", "named")
        return frozenset(
            function.name
            for function in conversation.functions
            if function.strict or (forced and self.unenforceable(function) is None)
        )

    def _check(self, schema: Mapping[str, Any] | bool) -> str | None:
        try:
            self._engine.check_schema(schema)
        except ValueError as error:
            return str(error)
        return None


class _Reader:
    """Makes Deltas of one request's Steps. `strict`: a call of a function that was not offered is an error."""

    __slots__ = ("_choices", "_engine", "_id", "_strict", "_take")

    def __init__(self, prepared: Prepared, take: TakeDelta, engine: Engine, *, strict: bool) -> None:
        shown = prepared.generation.sampling.logprobs is not None
        self._choices = [_Choice(decoder, _Shown() if shown else None) for decoder in prepared.decoders]
        self._engine = engine
        self._id = prepared.generation.id
        self._strict = strict
        self._take = take

    def read(self, step: Step) -> Lag:
        choice = self._choices[step.choice]
        if choice.finished:
            return None
        decoder, shown = choice.decoder, choice.shown
        choice.tokens += len(step.token_ids)
        events = decoder.feed(step.token_ids) if shown is None else choice.feed_one_by_one(step)
        if step.finish is not None or decoder.done:
            events += choice.finish(step.finish)
            if step.finish is None:
                self._engine.stop(self._id, step.choice)
        unknown = decoder.machine.unknown_calls
        if unknown and self._strict:
            raise UnknownFunctionCalled("The model called a function that was not offered to it.")
        logprobs = None if shown is None else shown.take(events)
        return self._take(Delta(step.choice, events, choice.tokens, logprobs, step.cached_tokens, unknown))


class _Choice:
    """One answer being read."""

    __slots__ = ("decoder", "finished", "shown", "tokens")

    def __init__(self, decoder: Decoder, shown: _Shown | None) -> None:
        self.decoder = decoder
        self.shown = shown
        self.tokens = 0
        self.finished = False

    def feed_one_by_one(self, step: Step) -> list[Event]:
        """The same events, and a note of which token gave which characters."""
        decoder, shown = self.decoder, self.shown
        events: list[Event] = []
        for token_id, logprob in zip(step.token_ids, step.logprobs or (), strict=True):
            start = decoder.received
            events += decoder.feed([token_id])
            if shown is not None and (decoder.received > start or decoder.pending):
                shown.add(logprob, start, decoder.received)
        return events

    def finish(self, reason: FinishReason | None) -> list[Event]:
        self.finished = True
        if self.decoder.done or reason is None:  # a stop string, the last call: nothing was cut
            reason = "stop"
        return [*self.decoder.finish(cut=reason != "stop"), Finish(reason)]


class _Shown:
    """Which tokens are shown: those that gave at least one character of a Text."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[TokenLogprob, int, int]] = deque()

    def add(self, logprob: TokenLogprob, start: int, end: int) -> None:
        # A token that only began a character stands where that character will.
        self._waiting.append((logprob, start, max(end, start + 1)))

    def take(self, events: Iterable[Event]) -> list[TokenLogprob]:
        taken = []
        for event in events:
            if not isinstance(event, Text):
                continue
            text_end = event.start + len(event.text)
            while self._waiting and self._waiting[0][1] < text_end:
                logprob, _, end = self._waiting.popleft()
                if end > event.start:
                    taken.append(logprob)
        return taken
