"""What the routes share."""

from __future__ import annotations

import asyncio
import threading

from functionary_vllm.api.service import Service
from functionary_vllm.formats import get_format
from functionary_vllm.pipeline import Pipeline
from functionary_vllm.settings import Settings
from tests.fakes import FakeEngine


async def test_work_aside_is_done_one_at_a_time_while_the_loop_goes_on() -> None:
    engine = FakeEngine()
    fmt = get_format("hermes", engine.tokenizer)
    service = Service(Settings(), engine, fmt, Pipeline(fmt, engine))
    free = threading.Event()
    done: list[str] = []

    def wait() -> str:
        assert free.wait(5)
        done.append("first")
        return threading.current_thread().name

    first = asyncio.create_task(service.aside(wait))
    second = asyncio.create_task(service.aside(lambda: done.append("second")))
    await asyncio.sleep(0.01)
    assert not done
    free.set()  # which nobody could if the loop waited
    assert await first != threading.current_thread().name
    await second
    assert done == ["first", "second"]
