"""GET /v1/models: the names under which the model is served, and the way from a request's `model` to one of them.

In: the configured names, and the engine's adapters. Out: OpenAI's model objects, ModelNotFound. The first name is the
default, for requests that name none, and the parent of the adapters.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from functionary_vllm.engine.base import Adapter, Adapters
from functionary_vllm.errors import ModelNotFound


class ServedModels:
    def __init__(self, names: Sequence[str], adapters: Adapters, max_model_len: int) -> None:
        self.names = tuple(names)
        self._adapters = adapters
        self._max_model_len = max_model_len
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        if name is None:
            return self.names[0]
        self.adapter(name)
        return name

    def adapter(self, name: str | None) -> Adapter | None:
        """The one that a request asks for, if it is not the model itself. Raises ModelNotFound."""
        if name is None or name in self.names:
            return None
        if (adapter := self._adapters.find(name)) is None:
            raise ModelNotFound(
                f"The model '{name}' does not exist. Served here: {', '.join(self.all())}.", param="model"
            )
        return adapter

    def all(self) -> list[str]:
        return [*self.names, *(adapter.name for adapter in self._adapters.all())]

    def describe(self, name: str) -> dict[str, Any]:
        described = {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "functionary-vllm",
            "max_model_len": self._max_model_len,
        }
        if (adapter := self.adapter(name)) is not None:
            described |= {"created": adapter.loaded, "parent": self.names[0]}
        return described


def routes(models: ServedModels) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="List the served models and adapters")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [models.describe(name) for name in models.all()]}

    @router.get("/v1/models/{model:path}", summary="Describe one of them")
    async def get_model(model: str) -> dict[str, Any]:
        return models.describe(model)

    return router
