"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them; and the adapters of --lora-modules.

In: a name, and a folder on the server. Out: a line of text, or the reason in a 400; 404 for a name that is unknown.
For admin keys only, which `api/auth.py` sees to; the routes are there when --allow-runtime-lora-updating is given.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import PlainTextResponse, Response

from functionary_vllm.api.body import read_body
from functionary_vllm.api.described import described_body
from functionary_vllm.api.service import Service
from functionary_vllm.errors import InvalidRequest


class LoadAdapterRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str = Field(min_length=1, max_length=256, description="By which requests ask for it as their model.")
    lora_path: str = Field(min_length=1, description="A folder on the server that PEFT has saved.")
    load_inplace: bool = Field(False, description="Replaces an adapter of this name.")


class UnloadAdapterRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    lora_name: str


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["models"])
    adapters, limit = service.engine.adapters, service.settings.max_body_bytes

    @router.post(
        "/v1/load_lora_adapter", summary="Load a LoRA adapter", openapi_extra=described_body(LoadAdapterRequest)
    )
    async def load(request: Request) -> Response:
        asked = await read_body(request, LoadAdapterRequest, limit)
        _check_name(asked.lora_name, service)
        await adapters.load(asked.lora_name, asked.lora_path, replace=asked.load_inplace)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter", summary="Unload a LoRA adapter", openapi_extra=described_body(UnloadAdapterRequest)
    )
    async def unload(request: Request) -> Response:
        asked = await read_body(request, UnloadAdapterRequest, limit)
        await adapters.unload(asked.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    return router


async def load_modules(service: Service) -> None:
    """Those that are there from the start. Raises InvalidRequest, EngineUnavailable."""
    for name, path in service.settings.lora_paths:
        _check_name(name, service)
        await service.engine.adapters.load(name, path)


def _check_name(name: str, service: Service) -> None:
    if name in service.models.names:
        raise InvalidRequest(f"The lora adapter '{name}' conflicts with a served base model.", param="lora_name")
    if not name.isprintable():
        raise InvalidRequest("The name of an adapter must have printable characters only.", param="lora_name")
