"""The socket, uvicorn around the app, and what is printed once it answers.

In: Settings and an app. Out: nothing until the server is told to stop. The socket is bound before the engine starts,
so that a port in use is told within a second, but it listens only when there is someone to answer. Refuses to know
what the app does.
"""

from __future__ import annotations

import gc
import os
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import uvicorn

from functionary_vllm.serving import logs
from functionary_vllm.serving.protocol import LendingProtocol
from functionary_vllm.serving.welcome import welcome
from functionary_vllm.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_COLLECT_EVERY = 10_000  # objects made and not gone: requests leave cycles, tokens do not
GRACE_S = 5  # for answers that are under way when the server is told to stop


class ListenError(Exception):
    """The address cannot be had."""


def listen(settings: Settings) -> socket.socket | None:
    """A bound socket; None for a Unix socket, which uvicorn makes. Raises ListenError."""
    if settings.uds is not None:
        _check_uds(settings.uds)
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ListenError(f"cannot listen on {settings.host}: {error.strerror}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ListenError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return listener


def _check_uds(path: str) -> None:
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK):
        raise ListenError(f"cannot listen on {path}: {folder} is no folder that can be written to")
    if os.path.exists(path) and not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ListenError(f"cannot listen on {path}: there is a file of that name")


def run(app: FastAPI, listener: socket.socket | None, settings: Settings) -> None:
    """Serve until a signal; SIGINT and SIGTERM are raised once more after the last answer."""
    server = Server(configured(app, settings), lambda: announce(listener, settings))
    server.run(sockets=[listener] if listener is not None else None)


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        uds=settings.uds,
        loop="uvloop",
        http=LendingProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=settings.access_log,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def announce(listener: socket.socket | None, settings: Settings) -> None:
    address = settings.uds and os.path.abspath(settings.uds)
    if settings.uds is None and listener is not None:
        host, port = listener.getsockname()[:2]
        # Whoever listens everywhere is reached here by the loopback address.
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        address = f"[{shown}]:{port}" if ":" in shown else f"{shown}:{port}"
    model = (*settings.served_model_names, settings.model or "default")[0]
    print(welcome(address or "", model, needs_key=bool(settings.api_keys)), flush=True)


class Server(uvicorn.Server):
    """uvicorn's, which calls `answering` as soon as it answers."""

    def __init__(self, config: uvicorn.Config, answering: Callable[[], None]) -> None:
        super().__init__(config)
        self._answering = answering

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        await super().startup(*args, **kwargs)
        if self.started:
            _spare_the_collector()
            self._answering()


def _spare_the_collector() -> None:
    """Take what lives as long as the server (vLLM's modules: a million objects) out of the garbage collections.

    A full one would stop every stream for as long as it looks at them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 10, 10)


def set_up_logging(settings: Settings) -> None:
    logs.set_up(settings)
