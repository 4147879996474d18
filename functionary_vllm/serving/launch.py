"""Settings -> the model they mean, its running engine, and its format.

In: Settings. Out: Settings with a model, its format and its names filled in, an Engine, and a Format, from outside if
need be. What can be refused before an engine takes its time to start is refused then. Refuses to know HTTP.
"""

from __future__ import annotations

import importlib
import logging
import ssl
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from functionary_vllm.api.keys import KeysError, read_keys
from functionary_vllm.engine.adapter_folder import check_adapter
from functionary_vllm.engine.base import Engine
from functionary_vllm.engine.startup import (
    Client,
    StartError,
    import_vllm,
    prepare_environment,
    start_replay,
    start_vllm,
    starting,
)
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.formats import Format, detect_format, get_format, register_format
from functionary_vllm.formats.vllm_parser import PREFIX
from functionary_vllm.settings import Settings

if TYPE_CHECKING:
    from functionary_vllm.engine.vllm_workers import Core, Employ

log = logging.getLogger(__name__)


def check_files(settings: Settings) -> None:
    """The keys, the certificate and the adapters can be used, as far as a look at them tells. Raises StartError."""
    try:
        if settings.keys_file is not None:
            read_keys(settings.keys_file)
        if settings.ssl_certfile is not None:
            ssl.create_default_context().load_cert_chain(settings.ssl_certfile, settings.ssl_keyfile)
        for _, path in settings.lora_paths:
            check_adapter(path)
    except InvalidRequest as error:
        raise StartError(f"--lora-modules: {error.message}") from error
    except KeysError as error:
        raise StartError(f"--keys-file {error}") from error
    except OSError as error:  # SSLError is one
        raise StartError(f"--ssl-certfile {settings.ssl_certfile} cannot be used: {error}") from error


def load_formats(settings: Settings) -> None:
    """Take in formats from outside, and look up the one that is asked for. Raises StartError, UnknownFormat."""
    for plugin in settings.format_plugins:
        _load_plugin(plugin)
    if settings.format is not None and not settings.format.startswith(PREFIX):
        get_format(settings.format)


def _load_plugin(plugin: str) -> None:
    module, _, name = plugin.partition(":")
    if not module or not name:
        raise StartError(f"--format-plugin takes MODULE:CLASS, not {plugin!r}.")
    try:
        loaded = importlib.import_module(module)
    except ImportError as error:
        raise StartError(f"--format-plugin {plugin}: {error}; is its folder in PYTHONPATH?") from error
    if not hasattr(loaded, name):
        raise StartError(f"--format-plugin {plugin}: there is no {name} in {loaded.__file__}.")
    try:
        register_format(getattr(loaded, name))
    except ValueError as error:
        raise StartError(f"--format-plugin {plugin}: {error}.") from error


def with_model(settings: Settings) -> Settings:
    """Without --model the built-in one, made first where it is missing; names where none were given."""
    if settings.engine == "replay":
        return replace(settings, served_model_names=settings.served_model_names or (settings.model or "replay",))
    if settings.model is not None:
        return replace(settings, served_model_names=settings.served_model_names or (settings.model,))
    from functionary_vllm.models import ensure_builtin
    from functionary_vllm.models.builtin import BUILTIN_FORMAT, BUILTIN_NAME, ModelUnavailable

    try:
        folder = ensure_builtin()
    except ModelUnavailable as error:
        raise StartError(str(error)) from error
    return replace(
        settings,
        model=str(folder),
        format=settings.format or BUILTIN_FORMAT,
        served_model_names=settings.served_model_names or (BUILTIN_NAME, "functionary"),
    )


def start_engine(settings: Settings) -> Engine:
    """Settings of `with_model` -> an Engine, which the caller closes. Raises StartError."""
    if settings.engine == "replay":
        if _vllm_format(settings):
            prepare_environment(settings.tokenizer or "", verbose=settings.verbose)
        return start_replay(settings.recordings or "", settings.tokenizer or "")
    options = {"imported": partial(get_format, name)} if (name := _vllm_format(settings)) else {}
    return start_vllm(settings.model or "", _engine_argv(settings), verbose=settings.verbose, **options)


def start_core(settings: Settings, employ: Employ) -> Core:
    """An engine for `api_workers`, which `employ` starts meanwhile; the caller closes it. Raises StartError."""
    model = settings.model or ""
    name = _vllm_format(settings)
    imported = partial(get_format, name) if name else (lambda: None)
    with starting(model, verbose=settings.verbose, imported=imported) as (say, quiet):
        try:
            from functionary_vllm.engine import vllm_workers
        except ImportError as error:
            raise StartError(f"--api-workers needs vLLM 0.32 or later ({error}).") from error
        argv = ["--model", model, *_engine_argv(settings)]
        return vllm_workers.start_core(argv, settings.api_workers, employ, say, quiet=quiet)


def join_core(settings: Settings, client: Client) -> tuple[Engine, Callable[[], None]]:
    """For a worker: its Engine, and what to call in its event loop when the core has died."""
    import_vllm()
    from functionary_vllm.engine import vllm_workers

    return vllm_workers.join_core(["--model", settings.model or "", *_engine_argv(settings)], client)


def _engine_argv(settings: Settings) -> list[str]:
    argv = ["--served-model-name", *settings.served_model_names[:1]]  # labels vLLM's metrics
    if settings.tokenizer is not None:
        argv += ["--tokenizer", settings.tokenizer]
    return [*argv, *settings.engine_args]


def _vllm_format(settings: Settings) -> str | None:
    return settings.format if settings.format and settings.format.startswith(PREFIX) else None


def choose_format(settings: Settings, engine: Engine) -> Format:
    """The format that is asked for, or that the checkpoint shows. Raises UnknownFormat, StartError."""
    if getattr(engine.tokenizer, "backend_tokenizer", None) is None:
        raise StartError(
            "The model's tokenizer is none of transformers' fast ones, which are needed here: try --tokenizer-mode hf, "
            "or --tokenizer with a folder that has a tokenizer.json."
        )
    name = settings.format or detect_format(engine.tokenizer, engine.model_type)
    fmt = get_format(name, engine.tokenizer)
    if settings.format:
        log.info("Format %s, because it is set.", fmt.name)
    if (reason := fmt.lacks()) is not None:
        raise StartError(reason)
    return fmt
