"""GET /v1/models: the names under which the model is served, and the way from a request's `model` to one of them.

In: the configured names. Out: OpenAI's model objects, ModelNotFound. The first name is the default, for requests
that name none.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter

from functionary_vllm.errors import ModelNotFound


class ServedModels:
    def __init__(self, names: Sequence[str], max_model_len: int) -> None:
        self.names = tuple(names)
        self._max_model_len = max_model_len
        self._created = int(time.time())

    def resolve(self, name: str | None) -> str:
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ModelNotFound(
                f"The model '{name}' does not exist. Served here: {', '.join(self.names)}.", param="model"
            )
        return name

    def describe(self, name: str) -> dict[str, Any]:
        return {
            "id": self.resolve(name),
            "object": "model",
            "created": self._created,
            "owned_by": "functionary-vllm",
            "max_model_len": self._max_model_len,
        }


def routes(models: ServedModels) -> APIRouter:
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="List the served models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [models.describe(name) for name in models.names]}

    @router.get("/v1/models/{model:path}", summary="Describe one served model")
    async def get_model(model: str) -> dict[str, Any]:
        return models.describe(model)

    return router
