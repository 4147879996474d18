"""The server with one route more, /inside: what is alive in its process, for those who look for what is left over.

    python -m benchmarks.rig.inside FLAGS OF serve.py

In: flags. Out: the same server; GET /inside counts its tasks by coroutine, and the objects that belong to a request.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections import Counter

from functionary_vllm.api.app import create_app
from functionary_vllm.serving.launch import choose_format, start_engine, with_model
from functionary_vllm.serving.server import listen, run, set_up_logging
from functionary_vllm.settings import read_settings

OF_A_REQUEST = {
    *("EventStream", "_Channel", "_Rest", "Backlog", "_Reader", "_Choice", "Decoder", "Machine", "ChatChunks"),
    *("ChatAnswer", "Ticket", "_Place", "_Queue", "Observation", "_Exchange", "_Playing", "RequestResponseCycle"),
    *("LendingProtocol", "FlowControl", "Request", "Prepared", "Generation"),
}


def inside() -> dict[str, dict[str, int]]:
    gc.collect()
    tasks = Counter(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    objects = Counter(type(thing).__name__ for thing in gc.get_objects())
    return {"tasks": tasks, "objects": {name: objects[name] for name in sorted(OF_A_REQUEST) if objects[name]}}


def main() -> None:
    settings = with_model(read_settings(sys.argv[1:], os.environ))
    set_up_logging(settings)
    listener = listen(settings)
    engine = start_engine(settings)
    app = create_app(settings, engine, choose_format(settings, engine))

    @app.get("/inside")
    async def look() -> dict[str, dict[str, int]]:
        return inside()

    run(app, listener, settings)


if __name__ == "__main__":
    main()
