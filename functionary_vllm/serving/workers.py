"""Several processes behind one address: a parent that accepts connections and deals them out, and watches.

In: Settings and the socket. Out: nothing until the server is told to stop. Each connection goes to the worker that has
the fewest open ones. Left to the kernel it would not: with SO_REUSEPORT it draws lots by the client's address, from one
shared socket a burst goes to whoever wakes first, and streams last long enough for a bad draw to be felt. The parent
is on no stream's way: it passes the connection on, and hears when that is over. One pair of sockets joins it to each
worker: down come connections, word that the engine has died, and word to drain; up come `+` once the worker answers
(before that, why it cannot), `-` for each connection that is over, and `!` when it has lost the engine. Whoever ends
closes its side: a worker whose parent has done so ends at once. A worker that dies ends the whole: the engine knows
its clients by number, and a new one in an old one's place would get the old one's tokens. Refuses to know what the
app does.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.process import BaseProcess
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import uvicorn

from functionary_vllm.engine.startup import Client, StartError
from functionary_vllm.formats import UnknownFormat
from functionary_vllm.metrics import MULTIPROCESS
from functionary_vllm.serving.launch import choose_format, join_core, load_formats, start_core, start_engine
from functionary_vllm.serving.lifecycle import Lost
from functionary_vllm.serving.protocol import LendingProtocol
from functionary_vllm.serving.server import GRACE_S, Server, announce, configured, set_up_logging
from functionary_vllm.settings import Settings

if TYPE_CHECKING:
    from functionary_vllm.engine.vllm_workers import Core

log = logging.getLogger(__name__)

_CONNECTION, _CORE_DIED, _DRAIN = b"c", b"x", b"d"  # down
_ANSWERS, _OVER, _LOST = b"+", b"-", b"!"  # up
_BACKLOG = 2048
_KILLED_AFTER_S = GRACE_S + 2.5  # beyond what is under way
_NO_ROOM_S = 0.05


def serve_with_workers(settings: Settings, listener: socket.socket | None) -> None:
    """Serve until SIGINT or SIGTERM, and to the last answer. Raises StartError; Lost when a process is gone."""
    with _shared_folder(), _unix_socket(settings.uds) if listener is None else listener as bound:
        parent = _Parent(settings, bound)
        try:
            parent.start()
            parent.serve()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # it is ending
            bound.close()
            parent.stop()


@contextmanager
def _shared_folder() -> Iterator[None]:
    # A short name: the sockets that vLLM makes in it may have paths of about 100 characters.
    with TemporaryDirectory(prefix="api-", ignore_cleanup_errors=True) as folder:
        os.environ[MULTIPROCESS] = folder
        os.environ.setdefault("VLLM_RPC_BASE_PATH", folder)
        yield


@contextmanager
def _unix_socket(path: str | None) -> Iterator[socket.socket]:
    assert path is not None
    permissions = 0o666
    if os.path.exists(path):
        permissions = os.stat(path).st_mode
        os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        bound.bind(path)
        os.chmod(path, permissions)
        try:
            yield bound
        finally:
            with suppress(FileNotFoundError):
                os.unlink(path)


# ---------------------------------------------------------------------------------------------- the parent


class _Worker:
    """A worker as the parent sees it."""

    def __init__(self, process: BaseProcess, channel: socket.socket) -> None:
        self.process = process
        self.channel = channel
        self.answers = False
        self.load = (0, 0)  # connections that are open, and all there were
        self.reason = b""  # why it does not

    def hear(self) -> bytes:
        """What it said; nothing when it is gone."""
        try:
            said = self.channel.recv(4096)
        except ConnectionResetError:
            said = b""
        if not self.answers:
            self.reason += said
            self.answers = self.reason.startswith(_ANSWERS)
        if self.answers:
            self._count(-said.count(_OVER))
        return said

    def tell(self, what: bytes) -> None:
        with suppress(OSError):
            self.channel.send(what)

    def take(self, connection: socket.socket) -> None:
        with suppress(OSError):  # a worker that is gone is mourned in its turn
            socket.send_fds(self.channel, [_CONNECTION], [connection.fileno()])
            self._count(1)

    def _count(self, connections: int) -> None:
        now, ever = self.load
        self.load = now + connections, ever + max(0, connections)

    def mourn(self) -> None:
        """Raises StartError, Lost."""
        self.process.join(_KILLED_AFTER_S)
        if self.reason and not self.answers:
            raise StartError(self.reason.decode(errors="replace"))
        status = self.process.exitcode
        how = f"was killed by signal {-status}" if status and status < 0 else f"ended with status {status}"
        raise Lost(f"{self.process.name} (process {self.process.pid}) {how}; the server ends with it.")


class _Parent:
    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._workers: list[_Worker] = []
        self._core: Core | None = None
        self._selector = selectors.DefaultSelector()
        self._until: float | None = None  # when it ends, once it was told to

    def start(self) -> None:
        """Returns when all workers answer."""
        if self._settings.engine == "replay":
            self._employ([None] * self._settings.api_workers)
        else:
            self._core = start_core(self._settings, self._employ)
            for sentinel in self._core.sentinels:
                self._selector.register(sentinel, selectors.EVENT_READ, self._lose_core)
        while not all(worker.answers for worker in self._workers):
            self._turn()

    def _employ(self, clients: Sequence[Client | None]) -> list[BaseProcess]:
        context = multiprocessing.get_context("spawn")
        for index, client in enumerate(clients):
            ours, theirs = socket.socketpair()
            with theirs:
                arguments = (self._settings, index, theirs, client)
                process = context.Process(target=_work, args=arguments, name=f"API worker {index}")
                process.start()
            worker = _Worker(process, ours)
            self._workers.append(worker)
            self._selector.register(ours, selectors.EVENT_READ, partial(self._hear, worker))
        return [worker.process for worker in self._workers]

    def serve(self) -> None:
        """Returns when it was told to end, and all workers have; or when that takes too long."""
        with _signals() as told:
            self._selector.register(told, selectors.EVENT_READ, partial(self._signalled, told))
            self._listener.listen(_BACKLOG)
            self._listener.setblocking(False)
            self._selector.register(self._listener, selectors.EVENT_READ, self._deal)
            announce(self._listener, self._settings)
            while self._workers and (self._until is None or time.monotonic() < self._until):
                self._turn()

    def _turn(self) -> None:
        left = None if self._until is None else max(0.0, self._until - time.monotonic())
        for key, _ in self._selector.select(left):
            key.data()

    def _signalled(self, told: socket.socket) -> None:
        told.recv(64)
        if self._until is not None:  # a second one
            self._until = 0.0
            return
        self._until = time.monotonic() + self._settings.drain_seconds + _KILLED_AFTER_S
        for worker in self._workers:
            worker.tell(_DRAIN)

    def _hear(self, worker: _Worker) -> None:
        said = worker.hear()
        if worker.answers and _LOST in said:
            self._lose_core()
        if said:
            return
        if self._until is None:
            worker.mourn()
        self._selector.unregister(worker.channel)  # it has drained
        self._end(worker, self._until or 0.0)
        self._workers.remove(worker)

    def _deal(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # the client has left, or there is no room for one more
            time.sleep(_NO_ROOM_S)
            return
        with connection:
            if self._workers:  # else all have drained
                min(self._workers, key=lambda worker: worker.load).take(connection)

    def _lose_core(self) -> None:
        for worker in self._workers:
            worker.tell(_CORE_DIED)
        raise Lost("The engine has died, or hangs; the server ends with it.")

    def stop(self) -> None:
        """Each worker ends its streams, then the engine ends."""
        for worker in self._workers:
            if not worker.answers:
                worker.process.terminate()
            with suppress(OSError):
                worker.channel.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + _KILLED_AFTER_S
        for worker in self._workers:
            self._end(worker, deadline)
        self._selector.close()
        if self._core is not None:
            self._core.close()

    def _end(self, worker: _Worker, deadline: float) -> None:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        worker.channel.close()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket that can be read when SIGINT or SIGTERM came, which do nothing else then."""
    told, tells = socket.socketpair()
    tells.setblocking(False)
    before = signal.set_wakeup_fd(tells.fileno())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        with told, tells:
            yield told
    finally:
        signal.set_wakeup_fd(before)


# ----------------------------------------------------------------------------------------------- a worker


def _work(settings: Settings, index: int, channel: socket.socket, client: Client | None) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    set_up_logging(settings)
    try:
        _serve(settings, index, channel, client)
    except (StartError, UnknownFormat) as error:
        channel.sendall(str(error).encode())
    finally:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            shutil.rmtree(os.environ[MULTIPROCESS], ignore_errors=True)
    # All is closed; the engine waits for this process, and Python would take seconds to take vLLM's modules apart.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _serve(settings: Settings, index: int, channel: socket.socket, client: Client | None) -> None:
    load_formats(settings)
    logging.disable(
        logging.WARNING if client else logging.NOTSET
    )  # the parent has imported vLLM, and told its warnings
    engine, lose_core = (start_engine(settings), _nothing) if client is None else join_core(settings, client)
    try:
        from functionary_vllm.api.app import create_app

        logging.disable(logging.INFO if index else logging.NOTSET)  # one that tells which format it is will do
        app = create_app(settings, engine, choose_format(settings, engine))
        logging.disable(logging.NOTSET)
        _Dealt(configured(app, settings), settings, channel, lose_core).run(sockets=[])
    finally:
        asyncio.run(engine.close())


def _nothing() -> None:
    """A replay engine has no core."""


class _Protocol(LendingProtocol):
    def __init__(self, *args: Any, over: Callable[[], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self._over = over

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._over()


class _Dealt(Server):
    """A Server whose connections come through the channel; it stops when that is closed."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, channel: socket.socket, lose_core: Callable[[], None]
    ) -> None:
        super().__init__(config, settings, self._listen)
        self._channel = channel
        self._lose_core = lose_core
        self._joining: set[asyncio.Task[None]] = set()

    def _listen(self) -> None:
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._receive)
        self._tell(_ANSWERS)

    def _tell(self, what: bytes) -> None:
        with suppress(OSError):  # a parent that is gone, or has not listened for 100,000 connections
            self._channel.send(what)

    def _receive(self) -> None:
        with suppress(BlockingIOError):
            while True:  # the system never joins two messages of which one has a descriptor
                said, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
                if not said:
                    self._deaf()
                    self.force()
                    return
                if said == _CORE_DIED:
                    self._lose_core()
                elif said == _DRAIN:
                    self.drain()
                elif descriptors:
                    task = asyncio.create_task(self._join(socket.socket(fileno=descriptors[0])))
                    self._joining.add(task)
                    task.add_done_callback(self._joining.discard)
                else:
                    self._tell(_OVER)  # this process may open no more files

    async def _join(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        made = partial(_Protocol, over=partial(self._tell, _OVER), config=self.config, _loop=loop)
        try:
            await loop.connect_accepted_socket(
                lambda: made(server_state=self.server_state, app_state=self.lifespan.state),
                connection,
                ssl=self.config.ssl,
            )
        except OSError:
            connection.close()
            self._tell(_OVER)

    def _deaf(self) -> None:
        asyncio.get_running_loop().remove_reader(self._channel)

    def lose(self, reason: str) -> None:
        super().lose(reason)
        self._tell(_LOST)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._deaf()
        await super().shutdown(sockets)
