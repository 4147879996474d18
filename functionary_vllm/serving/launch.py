"""Settings -> the model they mean, and its running engine.

In: Settings. Out: Settings with a model, its format and its names filled in, and an Engine. Refuses to know HTTP.
"""

from __future__ import annotations

from dataclasses import replace

from functionary_vllm.engine.base import Engine
from functionary_vllm.engine.startup import StartError, start_replay, start_vllm
from functionary_vllm.settings import Settings

_BUILTIN_NAMES = ("smollm2-135m-instruct", "functionary")


def with_model(settings: Settings) -> Settings:
    """Without --model the built-in one, made first where it is missing; names where none were given."""
    if settings.engine == "replay":
        return replace(settings, served_model_names=settings.served_model_names or (settings.model or "replay",))
    if settings.model is not None:
        return replace(settings, served_model_names=settings.served_model_names or (settings.model,))
    from functionary_vllm.models import ensure_builtin
    from functionary_vllm.models.builtin import ModelUnavailable

    try:
        folder = ensure_builtin()
    except ModelUnavailable as error:
        raise StartError(str(error)) from error
    return replace(
        settings,
        model=str(folder),
        format=settings.format or "hermes",
        served_model_names=settings.served_model_names or _BUILTIN_NAMES,
    )


def start_engine(settings: Settings) -> Engine:
    """Settings of `with_model` -> an Engine, which the caller closes. Raises StartError."""
    if settings.engine == "replay":
        return start_replay(settings.recordings or "", settings.tokenizer or "")
    argv = ["--served-model-name", *settings.served_model_names[:1]]  # labels vLLM's metrics
    if settings.tokenizer is not None:
        argv += ["--tokenizer", settings.tokenizer]
    return start_vllm(settings.model or "", [*argv, *settings.engine_args], verbose=settings.verbose)
