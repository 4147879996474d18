"""POST /tokenize and /detokenize: what the model sees of a text or a conversation, and back.

In: {"prompt"} or {"messages", "tools", ...} as for a chat completion; {"tokens"}. Out: ids and their number; text.
A conversation that is too long for the model is still counted.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from functionary_vllm.api.body import check_media_type, parse, read, read_body, validate
from functionary_vllm.api.border import Json
from functionary_vllm.api.chat_request import ChatRequest
from functionary_vllm.api.chat_task import chat_task
from functionary_vllm.api.described import described_body
from functionary_vllm.api.service import Service
from functionary_vllm.errors import InvalidRequest


class TokenizeRequest(BaseModel):
    """Give `prompt`, or `messages` with all that shapes a chat completion's prompt (tools, tool_choice, ...)."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = Field(None, description="For `prompt`: as the tokenizer does; default true.")
    return_token_strs: bool | None = None


class DetokenizeRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    model: str | None = None
    tokens: list[int]


def routes(service: Service) -> APIRouter:
    router = APIRouter(tags=["tokens"])

    @router.post("/tokenize", summary="Text or messages to token ids", openapi_extra=described_body(TokenizeRequest))
    async def tokenize(request: Request) -> Response:
        check_media_type(request)
        body = parse(await read(request, service.settings.max_body_bytes))
        with service.admission.arriving(request.state.key.name):
            return Json(await service.aside(lambda: _tokenize(service, body)))

    @router.post("/detokenize", summary="Token ids to text", openapi_extra=described_body(DetokenizeRequest))
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeRequest, service.settings.max_body_bytes)
        service.models.resolve(body.model)
        for i, token_id in enumerate(body.tokens):
            if not 0 <= token_id < service.engine.vocab_size:
                raise InvalidRequest(f"There is no token {token_id}.", param=f"tokens[{i}]")
        text = service.engine.tokenizer.decode(
            body.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return Json({"prompt": text})

    return router


def _tokenize(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    wanted = validate(body, TokenizeRequest)
    tokenizer = service.engine.tokenizer
    if (wanted.prompt is None) == (wanted.messages is None):
        raise InvalidRequest("Give either 'prompt' or 'messages'.", param="prompt")
    if wanted.prompt is not None:
        service.models.resolve(wanted.model)
        ids = list(tokenizer.encode(wanted.prompt, add_special_tokens=wanted.add_special_tokens is not False))
    else:
        task = chat_task(validate(body, ChatRequest), service)
        ids = service.fmt.render(service.pipeline.shown(task.conversation)).token_ids(tokenizer)
    answer = {"count": len(ids), "max_model_len": service.engine.max_model_len, "tokens": ids}
    if wanted.return_token_strs:
        answer["token_strs"] = [service.token_text(token_id)[0] for token_id in ids]
    return answer
