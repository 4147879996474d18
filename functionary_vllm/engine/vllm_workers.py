"""One engine for several API processes: vLLM's own way of having many clients.

In: vLLM's flags. Out: in the parent a Core, the engine's processes, of which it is no client itself; in each worker a
VllmEngine that is one of their clients, with sockets that the parent bound before anyone started. The engine core
answers a request to the client that sent it, by that client's index. Needs vLLM 0.32. Refuses to know HTTP, and how
workers are made.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.process import BaseProcess
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.engine.admission_control import SharedAdmissionStats
from vllm.v1.engine.utils import CoreEngineLaunch, EngineZmqListeners, bind_engine_zmq_listeners, launch_core_engines
from vllm.v1.executor import Executor

from functionary_vllm.engine.startup import Client
from functionary_vllm.engine.vllm import VllmEngine
from functionary_vllm.engine.vllm_flags import read_config
from functionary_vllm.engine.vllm_outputs import DirectLLM


class Core:
    """The engine's processes. `sentinels` become readable when one of them ends."""

    def __init__(self, launch: CoreEngineLaunch, listeners: EngineZmqListeners) -> None:
        self._launch = launch
        self._listeners = listeners
        self.sentinels: list[int] = []
        with suppress(AttributeError):  # Ray's actors, or engines elsewhere: they tell their clients themselves
            self.sentinels += launch.engine_manager.sentinels()  # type: ignore[union-attr]
        if launch.coordinator is not None:
            self.sentinels.append(launch.coordinator.proc.sentinel)

    def close(self) -> None:
        timeout = 1.0 if current_platform.is_cpu() else None  # as VllmEngine.close
        if self._launch.engine_manager is not None:
            self._launch.engine_manager.shutdown(timeout=timeout)
        if self._launch.coordinator is not None:
            self._launch.coordinator.shutdown(timeout=timeout)
        self._listeners.cleanup()


Employ = Callable[[Sequence[Client]], Sequence[BaseProcess]]  # starts a worker for each


def start_core(
    argv: Sequence[str], count: int, employ: Employ, say: Callable[[str], None], *, quiet: bool = False
) -> Core:
    """Start vLLM for so many clients, and meanwhile those. Raises as create_engine does; what was begun is ended."""
    config, log_stats = read_config(argv, say, quiet=quiet, workers=count, rank=-1)
    say(f"starting the engine process and {count} API workers: it loads the weights and sets up the KV cache")
    listeners = bind_engine_zmq_listeners(config, count)
    core = None
    try:
        with launch_core_engines(config, Executor.get_class(config), log_stats, listeners.addresses) as launch:
            core = Core(launch, listeners)
            limited = config.scheduler_config.max_num_queued_reqs is not None
            launch.watched_frontend_processes = employ(_clients(launch, listeners, limited=limited))
        return core  # all engines have started
    except BaseException:
        if core is not None:
            core.close()
        listeners.cleanup()
        raise


def _clients(launch: CoreEngineLaunch, listeners: EngineZmqListeners, *, limited: bool) -> list[Client]:
    count = len(listeners.inputs)
    shared: dict[str, Any] = {}
    if limited:  # requests of all workers together
        size = SharedAdmissionStats.num_counters(count)
        shared["mp_admission_counters"] = multiprocessing.get_context("spawn").RawArray("q", size)
    if launch.coordinator is not None:
        shared["stats_update_address"] = launch.coordinator.get_stats_publish_address()
    if launch.tensor_queue is not None:
        shared["tensor_queue"] = launch.tensor_queue
    heard = multiprocessing.get_context("spawn").RawArray("Q", count)
    return [
        Client(
            index,
            count,
            {
                "input_address": input_.address,
                "input_listener": input_.socket,
                "output_address": output.address,
                "output_listener": output.socket,
                **shared,
            },
            heard,
        )
        for index, (input_, output) in enumerate(zip(listeners.inputs, listeners.outputs, strict=True))
    ]


def join_core(argv: Sequence[str], client: Client) -> tuple[VllmEngine, Callable[[], None]]:
    """A worker's engine, once the core answers; and what to call in its event loop when the core has died."""
    config, log_stats = read_config(argv, lambda _: None, quiet=False, workers=client.count, rank=client.index)
    llm: Any = DirectLLM.from_vllm_config(
        config,
        disable_log_stats=not log_stats,
        client_addresses=client.addresses,
        client_count=client.count,
        client_index=client.index,
    )
    llm.heard, llm.rank = client.heard, client.index
    return VllmEngine(llm), llm.lose_engine
