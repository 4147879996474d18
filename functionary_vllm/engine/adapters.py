"""LoRA adapters of an engine: which are loaded, who uses them, and whether a folder holds one that fits.

In: names and folders. Out: what the engine is to be handed with a request that names one; InvalidRequest with the
reason for a folder that will not do. A request keeps the adapter it began with: one that is unloaded or replaced is
unknown from then on, and the engine forgets it when the last request that uses it is over. Each load has a number and
a label of its own, since engines tell adapters apart by these (vLLM its batches and its prefix cache): what a name
meant before is never taken for what it means now. Refuses to know how an engine loads one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from functionary_vllm.engine.base import Adapter
from functionary_vllm.errors import ApiError, InvalidRequest, ModelNotFound

log = logging.getLogger(__name__)


class Loader(Protocol):
    """The engine's side. `room`: how many it keeps at once, so that it never has to read one again."""

    @property
    def room(self) -> int: ...

    async def load(self, label: str, number: int, path: str) -> Any:
        """What goes with requests. Raises InvalidRequest, and leaves nothing behind then; EngineUnavailable."""
        ...

    async def unload(self, number: int) -> None: ...


class _Loaded:
    __slots__ = ("adapter", "handle", "label", "number", "retired", "users")

    def __init__(self, adapter: Adapter, label: str, number: int, handle: Any) -> None:
        self.adapter = adapter
        self.label = label
        self.number = number
        self.handle = handle
        self.users = 0
        self.retired = False


class LoadedAdapters:
    """An engine's Adapters. Used from one event loop; asking for names is safe in any thread."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._by_name: dict[str, _Loaded] = {}
        self._retired: set[_Loaded] = set()
        self._leaving: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)
        self._loads: Counter[str] = Counter()
        self._one_at_a_time = asyncio.Lock()

    @property
    def room(self) -> int:
        return self._loader.room

    def find(self, name: str) -> Adapter | None:
        loaded = self._by_name.get(name)
        return None if loaded is None else loaded.adapter

    def all(self) -> list[Adapter]:
        return [loaded.adapter for loaded in list(self._by_name.values())]

    async def load(self, name: str, path: str, *, replace: bool = False) -> None:
        async with self._one_at_a_time:
            if name in self._by_name and not replace:
                raise InvalidRequest(
                    f"The lora adapter '{name}' has already been loaded; 'load_inplace' replaces it.", param="lora_name"
                )
            await asyncio.gather(*self._leaving)
            self._check_room()
            number, self._loads[name] = next(self._numbers), self._loads[name] + 1
            label = name if self._loads[name] == 1 else f"{name}#{self._loads[name]}"
            handle = await self._loader.load(label, number, path)
            if (before := self._by_name.pop(name, None)) is not None:
                self._retire(before)
            self._by_name[name] = _Loaded(Adapter(name, path, int(time.time())), label, number, handle)
            log.info("Adapter %s is loaded from %s", name, path)

    def _check_room(self) -> None:
        if not self.room:
            raise InvalidRequest("This server takes no LoRA adapters: it was started without --enable-lora.")
        if len(self._by_name) + len(self._retired) >= self.room:
            busy = f", {len(self._retired)} of which wait for requests to end" if self._retired else ""
            raise InvalidRequest(f"As many adapters are loaded as there is room for: {self.room}{busy}.")

    async def unload(self, name: str) -> None:
        loaded = self._by_name.pop(name, None)
        if loaded is None:
            raise ModelNotFound(f"The lora adapter '{name}' cannot be found.", param="lora_name")
        self._retire(loaded)
        log.info("Adapter %s is unloaded; requests that use it: %d", name, loaded.users)

    def _retire(self, loaded: _Loaded) -> None:
        loaded.retired = True
        self._retired.add(loaded)
        self._forget_unused(loaded)

    @contextmanager
    def use(self, name: str | None) -> Iterator[Any]:
        """What to hand to the engine with a request, as long as it is under way. Raises ModelNotFound."""
        if name is None:
            yield None
            return
        loaded = self._by_name.get(name)
        if loaded is None:
            raise ModelNotFound(f"The model '{name}' has been unloaded.", param="model")
        loaded.users += 1
        try:
            yield loaded.handle
        finally:
            loaded.users -= 1
            self._forget_unused(loaded)

    def _forget_unused(self, loaded: _Loaded) -> None:
        if loaded.retired and not loaded.users:
            task = asyncio.ensure_future(self._forget(loaded))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _forget(self, loaded: _Loaded) -> None:
        try:
            await self._loader.unload(loaded.number)
        except ApiError as error:  # an engine that is gone has forgotten it
            log.warning("Adapter %s could not be taken out of the engine: %s", loaded.label, error.message)
        finally:
            self._retired.discard(loaded)

    async def again(self) -> None:
        """Load them into an engine that was started again. One that cannot be read any more is gone."""
        self._retired.clear()
        for name, loaded in list(self._by_name.items()):
            try:
                loaded.handle = await self._loader.load(loaded.label, loaded.number, loaded.adapter.path)
            except InvalidRequest as error:
                del self._by_name[name]
                log.error("Adapter %s is gone: %s", name, error.message)
