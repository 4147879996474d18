"""Where the server stands in its life: what those who watch it are told, and whether new requests are taken.

In: word from whoever runs the server, or from the app's lifespan. Out: liveness, readiness, and a refusal for what
arrives while the server ends. Refuses to know signals, engines and HTTP.

    starting ──► serving ──► draining      told to end: what is under way may finish
                 │   ▲  └──► lost          the engine is gone for good: only a new process helps
                 ▼   │
                mending                    the engine is being started again
"""

from __future__ import annotations

from typing import Literal

from functionary_vllm.errors import EngineUnavailable

Phase = Literal["starting", "serving", "mending", "draining", "lost"]


class Life:
    """One server's. `restarts`: how often the engine may still be started again."""

    def __init__(self, restarts: int = 0) -> None:
        self.phase: Phase = "starting"
        self.restarts = restarts

    @property
    def ending(self) -> bool:
        return self.phase in ("draining", "lost")

    @property
    def mends(self) -> bool:
        """Whether a dead engine is no reason to end this process."""
        return self.phase == "mending" or (self.restarts > 0 and not self.ending)

    def serve(self) -> None:
        if not self.ending:
            self.phase = "serving"

    def mend(self) -> None:
        if not self.ending:
            self.restarts -= 1
            self.phase = "mending"

    def drain(self) -> None:
        if self.phase != "lost":
            self.phase = "draining"

    def lose(self) -> None:
        self.phase = "lost"

    def check_ready(self) -> None:
        """Raise EngineUnavailable unless new requests are taken."""
        if self.phase != "serving":
            raise EngineUnavailable("The server is not ready.")

    def refuse_at_end(self) -> None:
        """Raise EngineUnavailable when the server takes no new requests any more."""
        if self.ending:
            raise EngineUnavailable("The server is stopping.")
