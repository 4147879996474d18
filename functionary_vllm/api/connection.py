"""Whether the client is still there, watched by one task a request.

In: an ASGI `receive`. Out: the body of `while_connected` is cancelled as soon as the client leaves, wherever it
waits, and ClientLeft is raised in its place; so iterators are closed and engine requests aborted at once, and
nothing is checked per token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive


class ClientLeft(Exception):
    """Nobody is listening any more: there is no answer to send."""


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    owner = asyncio.current_task()
    assert owner is not None
    cancelled_before = owner.cancelling()
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        owner.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # As asyncio.timeout does: our own cancellation is taken back, a foreign one goes on.
        if left and owner.uncancel() <= cancelled_before:
            raise ClientLeft from None
        raise
    finally:
        watcher.cancel()
