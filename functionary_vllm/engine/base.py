"""The engine protocol: token ids in, token ids out, nothing else crosses.

In: a Generation. Out: Steps, deltas only, each handed to a plain function as it comes: between the engine and the
client's socket there is no task, no queue and no future a token. Refuses to know text, formats and HTTP. A request
whose `generate` is cancelled is aborted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from functionary_vllm.events import FinishReason


@dataclass(frozen=True, slots=True)
class Capacity:
    """What an engine runs at once: sequences, and tokens in its KV cache. More than that waits inside of it."""

    sequences: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None means the engine's own default. Units and ranges are OpenAI's, then vLLM's."""

    max_tokens: int | None = None  # None: as many as fit
    n: int = 1
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    logprobs: int | None = None  # alternatives a token; 0 gives the chosen token alone
    banned: tuple[str, ...] = ()  # texts that may not be generated
    stop: tuple[str, ...] = ()  # applied by the pipeline: engines see token ids only
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class Generation:
    """One engine request. `constraint` is an xgrammar structural tag as JSON; `model` an adapter's name or None."""

    id: str
    prompt_ids: Sequence[int]
    sampling: Sampling
    stop_token_ids: tuple[int, ...] = ()
    constraint: str | None = None
    model: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    trace: Mapping[str, str] | None = None  # W3C trace context, for an engine that makes spans


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of a sampled token, and of the most likely ones in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)  # not frozen, which would double what making one a token costs
class Step:
    """What one engine step added to one choice. `token_ids` may be any number, a stop token included."""

    choice: int
    token_ids: Sequence[int]
    finish: FinishReason | None = None
    logprobs: Sequence[TokenLogprob] | None = None
    cached_tokens: int = 0  # prompt tokens that came out of the prefix cache


Take = Callable[[Step], None]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is loaded: a Generation may name it as its model."""

    name: str
    path: str
    loaded: int  # Unix time


class Adapters(Protocol):
    """Those of an engine. A request keeps the adapter that it began with, whatever becomes of the name."""

    def find(self, name: str) -> Adapter | None: ...

    def all(self) -> list[Adapter]: ...

    async def load(self, name: str, path: str, *, replace: bool = False) -> None:
        """Raises InvalidRequest with the reason when it cannot be loaded; then nothing has changed."""
        ...

    async def unload(self, name: str) -> None:
        """Raises ModelNotFound."""
        ...


class Engine(Protocol):
    """What the pipeline and the API need of an engine."""

    tokenizer: Any  # a transformers fast tokenizer
    max_model_len: int
    vocab_size: int
    model_type: str  # of the model's config.json; empty where there is none
    capacity: Capacity

    @property
    def adapters(self) -> Adapters: ...

    async def generate(self, request: Generation, take: Take) -> None:
        """Hand each Step to `take` as it comes; return when each of the n choices has had one with `finish`.

        `take` must not block; what it raises ends this request, and is raised here. Cancelling aborts the request.
        Raises InvalidRequest before the first step when the engine refuses the request, EngineFailure when this
        request failed, EngineUnavailable when the engine is gone.
        """
        ...

    def stop(self, request_id: str, choice: int) -> None:
        """End one choice of a running request early; no more Steps of it follow. Unknown ids are ignored."""
        ...

    def check_schema(self, schema: Mapping[str, Any] | bool) -> None:
        """Raise ValueError with the engine's reason when it cannot enforce this JSON Schema."""
        ...

    async def check_health(self) -> None:
        """Raise EngineUnavailable when no request can be served."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Mortal(Protocol):
    """An engine in processes of its own, which may die or hang, and be started again."""

    @property
    def heard(self) -> int:
        """How many messages have come from it so far: an engine with work that is alive sends some."""
        ...

    def unfinished(self) -> int:
        """How many requests are waiting or running."""
        ...

    async def check_health(self) -> None: ...

    def lose(self) -> None:
        """Give it up: what is left of its processes is killed, each request ends with EngineUnavailable."""
        ...

    async def restart(self) -> None:
        """Start it again, once it is lost. Raises EngineUnavailable."""
        ...
