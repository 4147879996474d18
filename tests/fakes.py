"""Fakes for the edges: an engine that plays scripts and remembers what was done to it, and a tokenizer of bytes.

A script is what one `generate` does: Steps are yielded, exceptions raised, HANG waits until the request is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from functionary_vllm.engine.base import Generation, Step, TokenLogprob
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


class FakeEngine:
    """Plays `scripts` in turn, the last one again and again.

    `requests` are the Generations it was given, `aborted` the ids left before their end, `stopped` what `stop` was
    asked. `refuse` is called with each schema to check, and may raise ValueError.
    """

    def __init__(self, *scripts: Script, tokenizer: Any = None, max_model_len: int = 4096) -> None:
        self.tokenizer = tokenizer if tokenizer is not None else byte_tokenizer()
        self.max_model_len = max_model_len
        self.vocab_size = len(self.tokenizer)
        self.scripts = list(scripts)
        self.requests: list[Generation] = []
        self.running: set[str] = set()
        self.aborted: list[str] = []
        self.stopped: list[tuple[str, int]] = []
        self.healthy = True
        self.closed = False
        self.refuse: Callable[[Any], None] = lambda schema: None

    async def generate(self, request: Generation) -> AsyncGenerator[Step]:
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        self.requests.append(request)
        self.running.add(request.id)
        ended: set[int] = set()
        try:
            for item in script:
                await asyncio.sleep(0)
                if item is HANG:
                    await asyncio.Event().wait()
                if isinstance(item, Exception):
                    raise item
                assert isinstance(item, Step)
                if (request.id, item.choice) in self.stopped:
                    continue
                if item.finish is not None:
                    ended.add(item.choice)
                yield item
        except (asyncio.CancelledError, GeneratorExit):
            if len(ended) < request.sampling.n:
                self.aborted.append(request.id)
            raise
        finally:
            self.running.discard(request.id)

    async def stop(self, request_id: str, choice: int) -> None:
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
