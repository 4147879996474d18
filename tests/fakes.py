"""Fakes for the edges: an engine that plays scripts and remembers what was done to it, and a tokenizer of bytes.

A script is what one `generate` does: Steps are handed out, exceptions raised, HANG waits until the request is left.
`collect` gathers what an engine hands out, `going` keeps a request under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from functionary_vllm.engine.adapters import LoadedAdapters
from functionary_vllm.engine.base import Adapters, Capacity, Engine, Generation, Step, Take, TokenLogprob
from functionary_vllm.errors import EngineUnavailable
from functionary_vllm.events import FinishReason

HANG: Final = object()
Script = Sequence[Step | Exception | object]

END = "<|im_end|>"
_SPECIALS = ("<|endoftext|>", "<|im_start|>", END)
_MARKERS = ("<tool_call>", "</tool_call>", "<think>", "</think>")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 tokens, one a byte, and the markers of Qwen3: built in a moment, and every text can be cut anywhere."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIALS])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in _MARKERS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, clean_up_tokenization_spaces=False)


async def collect(engine: Engine, request: Generation) -> list[Step]:
    steps: list[Step] = []
    await engine.generate(request, steps.append)
    return steps


@asynccontextmanager
async def going(engine: Engine, request: Generation) -> AsyncIterator[list[Step]]:
    """A request that has had its first step, and what it has had; it is left at the end."""
    steps: list[Step] = []
    first = asyncio.Event()

    def take(step: Step) -> None:
        steps.append(step)
        first.set()

    task = asyncio.create_task(engine.generate(request, take))
    try:
        async with asyncio.timeout(60):
            await first.wait()
        yield steps
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class NoAdapters:
    """A Loader of an engine that takes none."""

    room = 0

    async def load(self, label: str, number: int, path: str) -> None:
        raise AssertionError

    async def unload(self, number: int) -> None:
        raise AssertionError


class FakeEngine:
    """Plays `scripts` in turn, the last one again and again.

    `requests` are the Generations it was given, `aborted` the ids left before their end, `stopped` what `stop` was
    asked. `refuse` is called with each schema to check, and may raise ValueError.
    """

    def __init__(self, *scripts: Script, tokenizer: Any = None, max_model_len: int = 4096) -> None:
        self.tokenizer = tokenizer if tokenizer is not None else byte_tokenizer()
        self.max_model_len = max_model_len
        self.vocab_size = len(self.tokenizer)
        self.capacity = Capacity(64, 1 << 20)
        self.adapters: Adapters = LoadedAdapters(NoAdapters())
        self.scripts = list(scripts)
        self.requests: list[Generation] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.stopped: list[tuple[str, int]] = []
        self.healthy = True
        self.closed = False
        self.refuse: Callable[[Any], None] = lambda schema: None

    async def generate(self, request: Generation, take: Take) -> None:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.requests.append(request)
        self.running.add(request.id)
        left = set(range(request.sampling.n))
        try:
            for item in script:
                await asyncio.sleep(0)
                left -= {choice for name, choice in self.stopped if name == request.id}
                if not left:
                    return
                if item is HANG:
                    await asyncio.Event().wait()
                if isinstance(item, Exception):
                    raise item
                assert isinstance(item, Step)
                if item.choice in left:
                    take(item)
                    if item.finish is not None:
                        left.discard(item.choice)
        except asyncio.CancelledError:
            if left:
                self.aborted.append(request.id)
            raise
        finally:
            self.running.discard(request.id)

    def stop(self, request_id: str, choice: int) -> None:
        self.stopped.append((request_id, choice))

    def check_schema(self, schema: Mapping[str, Any] | bool) -> None:
        self.refuse(schema)

    async def check_health(self) -> None:
        if not self.healthy:
            raise EngineUnavailable("The engine is gone.")

    async def close(self) -> None:
        self.closed = True

    def play(
        self, text: str, finish: FinishReason = "stop", *, choice: int = 0, step: int = 1, logprobs: bool = False
    ) -> list[Step]:
        """A script that says `text`, `step` tokens at a time, and ends with the stop token unless it was cut."""
        ids: list[int] = self.tokenizer.encode(text + (END if finish == "stop" else ""), add_special_tokens=False)
        pieces = [ids[i : i + step] for i in range(0, len(ids), step)] or [[]]
        return [
            Step(
                choice,
                piece,
                finish if i == len(pieces) - 1 else None,
                [TokenLogprob(t, -0.25, ((t, -0.25), (0, -2.5))) for t in piece] if logprobs else None,
            )
            for i, piece in enumerate(pieces)
        ]
