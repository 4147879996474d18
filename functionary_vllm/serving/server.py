"""The socket, uvicorn around the app, what is printed once it answers, and how it ends.

In: Settings and an app. Out: nothing until the server is told to stop, or Lost when its engine is gone for good. The
socket is bound before the engine starts, so that a port in use is told within a second, but it listens only when
there is someone to answer; and it does so to the end, since those who still come are to be told. Told to stop, the
server drains: what is under way goes on for `--drain-seconds` and is cut then, or by a second signal. Refuses to know
what the app does.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from functionary_vllm.api.life import Life
from functionary_vllm.engine.base import Mortal
from functionary_vllm.engine.startup import StartError
from functionary_vllm.errors import ApiError
from functionary_vllm.serving import logs
from functionary_vllm.serving.lifecycle import Lost, Standstill, cut, idle, watch_engine
from functionary_vllm.serving.protocol import LendingProtocol
from functionary_vllm.serving.welcome import welcome
from functionary_vllm.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

_COLLECT_EVERY = 10_000  # objects made and not gone: requests leave cycles, tokens do not
GRACE_S = 1  # after the last answer: for clients to take what was written
_ERRORS_S = 4.0  # for requests to end with the engine


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
    """Serve until SIGINT or SIGTERM, and to the last answer. Raises Lost."""
    server = Server(configured(app, settings), settings, lambda: announce(listener, settings))
    server.run(sockets=[listener] if listener is not None else None)
    if server.lost:
        raise Lost(server.lost)


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
        ssl_certfile=settings.ssl_certfile,
        ssl_keyfile=settings.ssl_keyfile,
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
    needs_key = bool(settings.api_keys or settings.keys_file)
    print(welcome(address or "", model, needs_key=needs_key, secure=settings.ssl_certfile is not None), flush=True)


class Server(uvicorn.Server):
    """uvicorn's, which calls `answering` as soon as it answers, watches the engine, and drains at the end."""

    def __init__(self, config: uvicorn.Config, settings: Settings, answering: Callable[[], None]) -> None:
        super().__init__(config)
        app: Any = config.app
        self._life: Life = app.state.life
        self._engine: object = app.state.engine
        self._settings = settings
        self._answering = answering
        self._standstill = Standstill(settings.client_stall_seconds)
        self._until = 0.0  # when what is under way is cut
        self.lost = ""  # why, if it cannot go on

    async def startup(self, *args: Any, **kwargs: Any) -> None:
        app: Any = self.config.app
        try:
            await app.state.load_adapters()
        except ApiError as error:
            raise StartError(error.message) from error
        await super().startup(*args, **kwargs)
        if self.started:
            _spare_the_collector()
            self._answering()

    async def main_loop(self) -> None:
        watch = None
        if isinstance(self._engine, Mortal):
            watch = asyncio.create_task(watch_engine(self._engine, self._life, self._settings.engine_stall_seconds))
            watch.add_done_callback(self._engine_lost)
        try:
            await super().main_loop()
            await idle(self._busy, lambda: self._until)
            await cut(self.server_state.tasks)
        finally:
            if watch is not None:
                watch.cancel()

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            self._standstill.look(self._connections(), time.monotonic())
        return await super().on_tick(counter)

    def _connections(self) -> list[Any]:
        return list(self.server_state.connections)

    def _busy(self) -> bool:
        """Whether an answer is not done, or not yet taken."""
        return bool(self.server_state.tasks) or any(
            connection.transport.get_write_buffer_size() for connection in self._connections()
        )

    # -- the end --------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """What is under way goes on for a while; what comes is refused."""
        self._end_by(self._settings.drain_seconds)
        self._life.drain()

    def force(self) -> None:
        self._end_by(0.0)
        self._life.drain()

    def _engine_lost(self, watch: asyncio.Task[str]) -> None:
        if not watch.cancelled():
            self.lose(str(watch.exception() or watch.result()))

    def lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        self._end_by(_ERRORS_S)
        self._life.lose()

    def _end_by(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._until = min(self._until, until) if self.should_exit else until
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._life.phase == "draining":
            self.force()
        else:
            self.drain()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, which would raise them once more at the end; but they have been followed."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()


def _spare_the_collector() -> None:
    """Take what lives as long as the server (vLLM's modules: a million objects) out of the garbage collections.

    A full one would stop every stream for as long as it looks at them.
    """
    gc.collect()
    gc.freeze()
    # The middle generation at every other time: left to grow, looking at it would stop all for 20 to 40 ms.
    gc.set_threshold(_COLLECT_EVERY, 1, 50)


def set_up_logging(settings: Settings) -> None:
    logs.set_up(settings)
