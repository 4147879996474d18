"""What a ChatRequest asks for: a Task for the pipeline, and the Shape of its answer.

In: a ChatRequest whose types are right. Out: a Task, or a 400 that names the field: fields that exclude or need each
other, ids outside the vocabulary, schemas, tools and messages that mean nothing. Refuses to know how the answer is
sent.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from functionary_vllm.api.chat_request import ChatRequest, ResponseFormat
from functionary_vllm.api.chat_writer import CallFinish, Shape
from functionary_vllm.api.ids import new_id
from functionary_vllm.api.service import Service
from functionary_vllm.conversation import Conversation, Function
from functionary_vllm.engine.base import Sampling
from functionary_vllm.errors import InvalidRequest, Unprocessable
from functionary_vllm.history import normalise
from functionary_vllm.offer import (
    choice_from_legacy,
    choice_from_tools,
    functions_from_legacy,
    functions_from_tools,
    parameter_paths,
)
from functionary_vllm.pipeline import Task
from functionary_vllm.schema import check_parameters, check_schema, find_refused


def chat_task(chat: ChatRequest, service: Service) -> Task:
    adapter = service.models.adapter(chat.model)
    _check_combinations(chat)
    conversation = _conversation(chat, service)
    return Task(
        id=new_id("chatcmpl-"),
        conversation=conversation,
        sampling=_sampling(chat, service.engine.vocab_size),
        max_calls=None if conversation.parallel else 1,
        python_arguments=service.settings.python_arguments,
        model=None if adapter is None else adapter.name,
        priority=chat.urgency,
        metadata=chat.metadata or {},
    )


def answer_shape(chat: ChatRequest, service: Service, task: Task, prompt_tokens: int) -> Shape:
    finish: CallFinish = "tool_calls"
    if chat.legacy:
        finish = "function_call"
    elif task.conversation.choice.mode == "named":
        finish = service.settings.named_finish_reason
    options = chat.stream_options
    return Shape(
        id=task.id,
        model=task.model or service.models.resolve(chat.model),
        created=int(time.time()),
        fingerprint=service.fingerprint,
        prompt_tokens=prompt_tokens,
        choices=task.sampling.n,
        legacy=chat.legacy,
        call_finish=finish,
        max_calls=task.max_calls or sys.maxsize,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
        reasoning_field=service.settings.reasoning_field,
        token_text=service.token_text if chat.logprobs else None,
    )


def _check_combinations(chat: ChatRequest) -> None:
    if chat.functions is not None and chat.tools is not None:
        raise InvalidRequest("'functions' and 'tools' cannot both be provided: use 'tools'.", param="functions")
    if chat.functions is not None and chat.tool_choice is not None:
        raise InvalidRequest(
            "'tool_choice' belongs to 'tools'; with 'functions', use 'function_call'.", param="tool_choice"
        )
    if chat.function_call is not None and chat.functions is None:
        raise InvalidRequest("'function_call' is only allowed when 'functions' are given.", param="function_call")
    if chat.stream_options is not None and not chat.stream:
        raise InvalidRequest("'stream_options' is only allowed when 'stream' is true.", param="stream_options")
    if chat.top_logprobs is not None and not chat.logprobs:
        raise InvalidRequest("'top_logprobs' is only allowed when 'logprobs' is true.", param="top_logprobs")


def _conversation(chat: ChatRequest, service: Service) -> Conversation:
    limit = service.settings.max_tools
    interpreter = False
    if chat.functions is not None:
        functions = functions_from_legacy(chat.functions, limit)
        choice = choice_from_legacy(chat.function_call, functions)
    else:
        functions, interpreter = functions_from_tools(chat.tools, limit)
        choice, functions, interpreter = choice_from_tools(chat.tool_choice, functions, interpreter)
    _check_strict(functions, parameter_paths(chat.tools, chat.functions), service)
    return Conversation(
        messages=normalise(chat.messages),
        functions=functions,
        choice=choice,
        parallel=not chat.legacy and chat.parallel_tool_calls is not False,
        code_interpreter=interpreter,
        thinking=_thinking(chat),
        response_schema=_response_schema(chat.response_format, service),
    )


def _check_strict(functions: Iterable[Function], paths: Mapping[str, str], service: Service) -> None:
    for function in functions:
        if function.strict and function.parameters:
            path = paths[function.name]
            if not function.once(_sound):
                check_parameters(function.parameters, path)
            _check_enforced(function.parameters, path, service)
            if (reason := service.fmt.unenforceable(function)) is not None:
                reason = f"The format {service.fmt.name} cannot enforce the schema of '{function.name}': {reason}"
                raise InvalidRequest(reason, param=path, code="invalid_json_schema")


def _sound(function: Function) -> bool:
    try:
        check_parameters(function.parameters, "")
    except InvalidRequest:
        return False
    return True


def _check_enforced(schema: Mapping[str, Any] | bool, path: str, service: Service) -> None:
    """Refuse what the engine cannot enforce, with the place inside of the schema."""
    reason = service.pipeline.refusal(schema)
    if reason is None:
        return
    place = path if isinstance(schema, bool) else find_refused(schema, path, service.engine.check_schema)
    raise InvalidRequest(f"Invalid schema at '{place}': {reason}", param=place, code="invalid_json_schema")


def _sampling(chat: ChatRequest, vocab_size: int) -> Sampling:
    stop = (chat.stop,) if isinstance(chat.stop, str) else tuple(chat.stop or ())
    return Sampling(
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        n=chat.n or 1,
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=chat.top_k,
        min_p=chat.min_p,
        presence_penalty=chat.presence_penalty,
        frequency_penalty=chat.frequency_penalty,
        repetition_penalty=chat.repetition_penalty,
        logit_bias=_logit_bias(chat.logit_bias, vocab_size),
        seed=chat.seed,
        logprobs=(chat.top_logprobs or 0) if chat.logprobs else None,
        stop=stop,
        ignore_eos=bool(chat.ignore_eos),
    )


def _logit_bias(given: Mapping[str, float] | None, vocab_size: int) -> dict[int, float] | None:
    if not given:
        return None
    biases = {}
    for key, bias in given.items():
        param = f"logit_bias.{key}"
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 19 else -1
        if not 0 <= token_id < vocab_size:
            raise InvalidRequest(
                f"'{key}' is no token id of this model: they go from 0 to {vocab_size - 1}.", param=param
            )
        if not -100 <= bias <= 100:
            raise InvalidRequest(f"Invalid value for '{param}': must be from -100 to 100.", param=param)
        biases[token_id] = bias
    return biases


def _thinking(chat: ChatRequest) -> bool | None:
    enabled = (chat.chat_template_kwargs or {}).get("enable_thinking")
    if enabled is None:
        return False if chat.reasoning_effort == "none" else None
    if not isinstance(enabled, bool):
        param = "chat_template_kwargs.enable_thinking"
        raise Unprocessable(f"Invalid type for '{param}': expected a boolean.", param=param)
    return enabled


def _response_schema(wanted: ResponseFormat | None, service: Service) -> Mapping[str, Any] | bool | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    param = "response_format.json_schema"
    if wanted.json_schema is None:
        raise Unprocessable(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    schema = wanted.json_schema.get("schema", {"type": "object"})
    if not isinstance(schema, dict | bool):
        raise Unprocessable(f"Invalid type for '{param}.schema': expected an object.", param=f"{param}.schema")
    check_schema(schema, f"{param}.schema")
    _check_enforced(schema, f"{param}.schema", service)
    return schema
