"""The body of /v1/chat/completions, in both generations of the API.

In: JSON. Out: a ChatRequest whose types and ranges are right; what it means for the engine is `chat_task.py`'s.
Fields that OpenAI has and we do not honour are not declared: they are gathered with the unknown ones and answered as
configured, except where their value asks for nothing (`store: false`). Refuses to know formats and engines.

Source of names and ranges: OpenAI API reference, "Create chat completion"; top_k, min_p, repetition_penalty,
ignore_eos, priority and chat_template_kwargs are vLLM's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_Stop = Annotated[str, Field(min_length=1, max_length=1000)]
_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Positive = Annotated[int, Field(ge=1)]

# What asks for nothing beyond what we do anyway.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "store": (False,),
    "modalities": (["text"],),
    "include_obfuscation": (False,),
}

_TIERS = {"auto": 0, "default": 0, "priority": -10, "flex": 10}

_MESSAGE_EXAMPLE = {"role": "user", "content": "What is the weather in Istanbul?"}
_FUNCTION_EXAMPLE = {
    "name": "get_weather",
    "description": "Get the current weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    include_usage: bool | None = Field(None, description="End the stream with a chunk that holds the usage.")
    continuous_usage_stats: bool | None = Field(None, description="Put the usage so far on every chunk.")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = Field(None, description="{name, schema, strict}, for type json_schema.")


class ChatRequest(BaseModel):
    """Create a chat completion. `tools` and `functions` are the two generations of one thing: give one of them."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str | None = Field(None, description="A served model; the first one when it is left out.")
    messages: list[dict[str, Any]] = Field(
        max_length=4096,
        description="Roles system, developer, user, assistant (with tool_calls or function_call), tool and function.",
        examples=[[_MESSAGE_EXAMPLE]],
    )

    tools: list[dict[str, Any]] | None = Field(
        None,
        description='{"type": "function", "function": {name, description, parameters, strict}} or '
        '{"type": "code_interpreter"}.',
        examples=[[{"type": "function", "function": _FUNCTION_EXAMPLE}]],
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, a named function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call, then the model is stopped.")
    functions: list[dict[str, Any]] | None = Field(
        None, description="The first generation of tools.", examples=[[_FUNCTION_EXAMPLE]]
    )
    function_call: str | dict[str, Any] | None = Field(None, description='none, auto or {"name": ...}.')
    response_format: ResponseFormat | None = Field(None, description="What the text answer must be.")

    n: int | None = Field(None, ge=1, le=128, description="Choices.")
    stop: _Stop | Annotated[list[_Stop], Field(max_length=16)] | None = Field(
        None, description="Strings before which the answer ends."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="-1 and 0: all tokens.")
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, float] | None = Field(None, max_length=1024, description="Token id -> bias from -100 to 100.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: _Positive | None = Field(None, description="As many as fit when neither this nor the next is given.")
    max_completion_tokens: _Positive | None = Field(None, description="Wins over max_tokens.")
    ignore_eos: bool | None = Field(None, description="Go on to max_tokens, for measurements.")

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, description="Accepted; nothing is done with it.")
    metadata: dict[str, str] | None = None
    priority: int | None = Field(None, description="Smaller is sooner, among the requests of one key.")
    service_tier: str | None = Field(None, description="priority and flex mean priorities of -10 and 10.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="enable_thinking: true or false.")
    reasoning_effort: str | None = Field(None, description='"none" turns thinking off where the model can.')

    @property
    def urgency(self) -> int:
        return self.priority if self.priority is not None else _TIERS.get(self.service_tier or "", 0)

    @property
    def legacy(self) -> bool:
        return self.functions is not None

    def unsupported(self) -> list[str]:
        """Fields that ask for something which will not happen, as dotted paths."""
        found = _asking(self.model_extra, "")
        if self.stream_options is not None:
            found += _asking(self.stream_options.model_extra, "stream_options.")
        if self.response_format is not None:
            found += _asking(self.response_format.model_extra, "response_format.")
        kwargs = {k: v for k, v in (self.chat_template_kwargs or {}).items() if k != "enable_thinking"}
        found += _asking(kwargs, "chat_template_kwargs.")
        if self.service_tier is not None and self.service_tier not in _TIERS:
            found.append("service_tier")
        if self.reasoning_effort not in (None, "none"):
            found.append("reasoning_effort")
        return found


def _asking(extra: dict[str, Any] | None, prefix: str) -> list[str]:
    return [
        prefix + name
        for name, value in (extra or {}).items()
        if value is not None and value not in _NEUTRAL.get(name, ())
    ]
