"""Conversation x Format x Engine -> an async iterator of Deltas: the whole way of an answer, without HTTP.

In: a Conversation, a Sampling. `prepare` (plain CPU work, safe in a thread) renders, tokenises, checks the length
and picks the constraint; `run` feeds the engine's steps through one decoder a choice. Out: Deltas, the last of each
choice ending in Finish. Refuses to know OpenAI's shapes, and which engine it drives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from functionary_vllm.conversation import Conversation
from functionary_vllm.engine.base import Engine, Generation, Sampling, TokenLogprob
from functionary_vllm.events import Event
from functionary_vllm.formats.base import Format, Prompt


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step said about one choice.

    `logprobs` belong to the tokens whose characters the events show as Text, in order; None unless asked for.
    `completion_tokens` counts all tokens of the choice so far, `cached_tokens` the prompt tokens from the cache.
    """

    choice: int
    events: Sequence[Event]
    completion_tokens: int
    logprobs: Sequence[TokenLogprob] | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request ready for the engine, and how to read its answer."""

    prompt: Prompt
    generation: Generation
    conversation: Conversation
    max_calls: int | None
    python_arguments: Literal["json", "raw"]


@dataclass(frozen=True, slots=True)
class Task:
    """One request as the API hands it over: what was asked, how to sample, how to answer."""

    id: str
    conversation: Conversation
    sampling: Sampling
    max_calls: int | None = None  # stop the engine after so many complete calls
    python_arguments: Literal["json", "raw"] = "json"
    model: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)


class Pipeline:
    """One format on one engine."""

    def __init__(self, fmt: Format, engine: Engine) -> None: ...

    def prepare(self, task: Task) -> Prepared:
        """Render and tokenise. Raises ContextLengthExceeded, InvalidRequest (a schema the engine refuses)."""
        ...

    def run(self, prepared: Prepared) -> AsyncIterator[Delta]:
        """Yield Deltas until every choice has finished; leaving the iterator aborts the engine request."""
        ...
