"""Recorded steps out of vLLM's real engine-core process: a scheduler and an executor for its plug-in flags, no model.

    --scheduler-cls benchmarks.rig.replay_core.ReplayScheduler
    --distributed-executor-backend benchmarks.rig.replay_core.ReplayExecutor

In: the recordings file that REPLAY_RECORDINGS names (as of the replay engine, with `token_ids`), and requests whose
`seed` is the number of their recording. Out: what vLLM's scheduler would have sent, events and statistics included,
over vLLM's own sockets; so whatever front end is before it does all of its work. The steps come at the clock's
multiples of the interval, for all requests at once, as a GPU's do; without one as fast as the process goes. Requests
begin when none has come for a moment: else those of a fast interval would be over one after the other, and never make
a batch. Refuses to know KV cache, prompts and sampling.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm.v1.core.sched.interface import PauseState, SchedulerInterface
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreEvent, EngineCoreEventType, EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.executor.abstract import Executor
from vllm.v1.metrics.stats import PrefillStats, SchedulerStats
from vllm.v1.request import Request, RequestStatus

RECORDINGS = "REPLAY_RECORDINGS"
SETTLE = 0.2  # seconds without a new request before the waiting ones begin
_GLANCE = 0.005  # seconds between two looks at what has come, while nothing is played


@dataclass(frozen=True, slots=True)
class Recorded:
    """The steps of one answer; `interval` in seconds."""

    steps: tuple[list[int], ...]
    finish: FinishReason
    interval: float


def read_recordings(path: str) -> list[Recorded]:
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]
    return [_recorded(line) for line in lines]


def _recorded(line: dict[str, Any]) -> Recorded:
    ids, size = line["token_ids"], line.get("step", 1)
    sizes = size if isinstance(size, list) else [size]
    steps: list[list[int]] = []
    start = 0
    while start < len(ids):
        end = start + sizes[len(steps) % len(sizes)]
        steps.append(ids[start:end])
        start = end
    finish = FinishReason.LENGTH if line.get("finish_reason") == "length" else FinishReason.STOP
    return Recorded(tuple(steps), finish, line.get("interval_ms", 0) / 1000)


@dataclass(slots=True)
class Playing:
    """A request under way: the next of its steps, and when it came."""

    request: Request
    recorded: Recorded
    added: float = field(default_factory=time.monotonic)
    step: int = 0


def next_tick(now: float, interval: float) -> float:
    """The clock's next multiple of the interval, not the one that it stands on; now itself without one."""
    return (math.floor(now / interval + 0.01) + 1) * interval if interval else now


class ReplayScheduler(SchedulerInterface):
    """vLLM's scheduler interface over recordings. Sleeps until the next tick where a model would run."""

    def __init__(self, vllm_config: Any, *_: Any, log_stats: bool = False, **__: Any) -> None:
        self.connector = self.ec_connector = None  # the engine core asks for them
        self.log_stats = log_stats
        self._recordings = read_recordings(os.environ[RECORDINGS])
        self._waiting: dict[str, Playing] = {}
        self._playing: dict[str, Playing] = {}
        self._last_added = 0.0
        self._pause_state = PauseState.UNPAUSED
        self._step = SchedulerOutput.make_empty()
        self._step.total_num_scheduled_tokens = 1  # else the engine core takes it for an idle one and sleeps

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        number = params.seed if params is not None and params.seed is not None else 0
        self._waiting[request.request_id] = Playing(request, self._recordings[number % len(self._recordings)])
        self._last_added = time.monotonic()

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        now = time.monotonic()
        if self._waiting and now - self._last_added >= SETTLE:
            self._playing |= self._waiting
            self._waiting.clear()
        if not self._playing:
            time.sleep(_GLANCE)
        elif interval := min(playing.recorded.interval for playing in self._playing.values()):
            time.sleep(next_tick(now, interval) - now)
        return self._step

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, EngineCoreOutputs]:
        outputs: dict[int, list[EngineCoreOutput]] = {}
        ended: list[str] = []
        for request_id, playing in self._playing.items():
            steps = playing.recorded.steps
            output = EngineCoreOutput(request_id, steps[playing.step])
            if not playing.step:
                output.events, output.prefill_stats = _began(playing)
            playing.step += 1
            if playing.step == len(steps):
                output.finish_reason = playing.recorded.finish
                ended.append(request_id)
            outputs.setdefault(playing.request.client_index, []).append(output)
        for request_id in ended:
            del self._playing[request_id]
        stats = self.make_stats()
        sent = {client: EngineCoreOutputs(outputs=of_client) for client, of_client in outputs.items()}
        for message in list(sent.values())[:1]:
            message.scheduler_stats = stats
        return sent

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus) -> list[Request]:
        ids = [*self._waiting, *self._playing] if request_ids is None else request_ids
        ids = [ids] if isinstance(ids, str) else ids
        found = [self._waiting.pop(request_id, None) or self._playing.pop(request_id, None) for request_id in ids]
        return [playing.request for playing in found if playing is not None]

    def make_stats(self) -> SchedulerStats | None:
        running, waiting = self.get_request_counts()
        return SchedulerStats(num_running_reqs=running, num_waiting_reqs=waiting) if self.log_stats else None

    def get_num_unfinished_requests(self) -> int:
        return len(self._waiting) + len(self._playing)

    def get_request_counts(self) -> tuple[int, int]:
        return len(self._playing), len(self._waiting)

    def has_finished_requests(self) -> bool:
        return False  # nobody has to be told of them

    def get_grammar_bitmask(self, scheduler_output: Any) -> None:
        return None

    def update_draft_token_ids(self, draft_token_ids: Any) -> None: ...

    def update_draft_token_ids_in_output(self, draft_token_ids: Any, scheduler_output: Any) -> None: ...

    @property
    def pause_state(self) -> PauseState:
        return self._pause_state

    def set_pause_state(self, pause_state: PauseState) -> None:
        self._pause_state = pause_state

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        return True

    def reset_encoder_cache(self) -> None: ...

    def shutdown(self) -> None: ...


def _began(playing: Playing) -> tuple[list[EngineCoreEvent], PrefillStats]:
    prompt = playing.request.num_prompt_tokens
    events = [
        EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, playing.added),
        EngineCoreEvent.new_event(EngineCoreEventType.SCHEDULED, playing.added),
    ]
    return events, PrefillStats(num_prompt_tokens=prompt, num_computed_tokens=prompt)


class ReplayExecutor(Executor):
    """An executor without workers: each step is done at once, and there is no KV cache."""

    _ANSWERS: dict[str, Any] = {  # noqa: RUF012
        "get_kv_cache_spec": {},  # as of a model without attention
        "get_supported_kv_cache_layouts": ["LBNHC"],
        "get_supported_tasks": ("generate",),
    }

    def _init_executor(self) -> None:
        self._done: Future[Any] = Future()
        self._done.set_result(object())  # not None: there is nothing left to sample

    def collective_rpc(self, method: str | Callable[..., Any], *_: Any, **__: Any) -> Any:
        answer = self._ANSWERS.get(method) if isinstance(method, str) else None
        return [] if answer is None else [answer]

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        return self._done if non_block else self._done.result()

    def check_health(self) -> None: ...

    def shutdown(self) -> None: ...
