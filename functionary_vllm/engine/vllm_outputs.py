"""vLLM's AsyncLLM with a shorter way out: an engine step's tokens go straight to whoever waits for them.

In: the engine core's outputs, as vLLM's own client receives them. Out: for each request that was begun here one call of
its `take` an engine step, made from the one loop that reads them; so a step costs one wake-up however many streams it
feeds, and no task, queue or future a token. Steps that arrived while the loop was busy go out as one. Everything else
stays vLLM's: checking and sending requests, its Prometheus metrics, its health; requests that were begun with
`generate` go through its OutputProcessor. Refuses to know Generations, text and formats.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import AsyncMPClient, _process_utility_output
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.stats import IterationStats, RequestStateStats

from functionary_vllm.engine.base import Step, Take
from functionary_vllm.errors import EngineFailure
from functionary_vllm.events import FinishReason

log = logging.getLogger(__name__)

# vLLM's reasons; it has more, and each of them means that the model was done.
_FINISH: dict[str | None, FinishReason | None] = {None: None, "length": "length", "abort": "abort"}
_HANDED_AT_ONCE = 128  # then the loop's other tasks get a turn, and what was written goes out


def finish_reason(reason: str | None) -> FinishReason | None:
    """Ours for vLLM's. Raises EngineFailure for a request that failed in the engine."""
    if reason == "error":
        raise EngineFailure("The engine failed on this request; it may be sent again.")
    return _FINISH.get(reason, "stop")


class Live:
    """A request under way. `ended` is done with its last tokens, or fails with what ended it."""

    __slots__ = (
        *("cached", "choice", "counted", "ended", "finish", "last"),
        *("lora", "prefilling", "request", "stats", "take", "tokens"),
    )

    def __init__(self, request: Any, choice: int, take: Take) -> None:
        self.request = request  # vLLM's EngineCoreRequest
        self.choice = choice
        self.take = take
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.stats = RequestStateStats(arrival_time=request.arrival_time)
        self.lora = request.lora_request.lora_name if request.lora_request is not None else None
        self.prefilling = True
        self.cached = self.counted = 0
        self.last = 0.0  # when its last tokens came, on the engine core's clock
        self.tokens: list[int] | None = None  # arrived, and not yet handed out
        self.finish: Any = None


class DirectLLM(AsyncLLM):
    """AsyncLLM whose output handler serves both kinds of requests."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._prepare()
        super().__init__(*args, **options)

    def _prepare(self) -> None:
        self._live: dict[str, Live] = {}
        self._ready: deque[Live] = deque()  # those with tokens that were not handed out yet
        self._handing = False
        self._sending: set[asyncio.Future[None]] = set()
        self.heard: Any = [0]  # messages, by API process; shared where there are several
        self.rank = 0
        self.beginning = 0  # requests that the engine has yet to be told of

    def __del__(self) -> None:
        pass  # shutdown() was called; if not, the client's own finalizer runs. A second one would meet dead modules.

    @property
    def hands_out(self) -> bool:
        """Whether `begin` can be used: spans and intervals between outputs are the OutputProcessor's work."""
        interval: int = self.vllm_config.scheduler_config.stream_interval
        return interval == 1 and self.observability_config.otlp_traces_endpoint is None

    async def begin(self, choice: int, take: Take, **asked: Any) -> Live:
        """Start a request, whose Steps will be of this choice. Takes and raises what AsyncLLM.generate does."""
        if self.errored:
            raise EngineDeadError()
        self._run_output_handler()
        self.beginning += 1
        try:
            tasks = await self.get_supported_tasks()  # the first time, the engine is asked
        finally:
            self.beginning -= 1
        asked["params"] = asked.pop("sampling_params")
        request = self.input_processor.process_inputs(**asked, supported_tasks=tasks)
        self.input_processor.assign_request_id(request)
        if hasattr(self, "check_admission"):  # later than 0.26: vLLM's own queue limits
            self.check_admission(request_id=request.request_id)
        live = self._live[request.request_id] = Live(request, choice, take)
        self._count_requests()
        try:
            await self.engine_core.add_request_async(request)
        except BaseException:
            self.leave(live)
            raise
        return live

    def leave(self, live: Live) -> None:
        """End a request early. Once it has ended this does nothing."""
        if self._live.pop(live.request.request_id, None) is None:
            return
        self._end(live)
        self._count_requests()
        self.output_processor.lora_states.request_finished(live.request.request_id, live.lora)
        # A task of its own: whoever leaves is often being cancelled, and the engine has to hear of it all the same.
        task = asyncio.ensure_future(self.engine_core.abort_requests_async([live.request.request_id]))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    def lose_engine(self) -> None:
        """The engine is dead, or is to be, and its client may not know: each request is told."""
        resources: Any = self.engine_core.resources
        resources.engine_dead = True
        for process in getattr(resources.engine_manager, "processes", ()):  # not those of Ray, nor another's
            process.kill()
        if self.output_handler is not None:
            self.output_handler.cancel()

    # -- AsyncLLM's own questions ---------------------------------------------------------------------------------

    def get_num_unfinished_requests(self) -> int:
        processor: Any = self.output_processor
        return int(processor.get_num_unfinished_requests()) + len(self._live)

    def get_num_queued_tokens(self) -> int:
        own = sum(len(live.request.prompt_token_ids) for live in self._live.values() if live.prefilling)
        processor: Any = self.output_processor
        return int(processor.get_num_queued_tokens()) + own

    def _count_requests(self) -> None:
        if (shared := getattr(self, "admission_stats", None)) is not None:  # several API processes, one limit
            shared.set_num_requests(self.get_num_unfinished_requests())

    # -- the loop -------------------------------------------------------------------------------------------------

    def _run_output_handler(self) -> None:
        if self.output_handler is not None:
            return
        core: Any = self.engine_core
        self.output_handler = asyncio.create_task(self._hand_out())
        # The client starts a reader of its own with the first question to the engine, unless it has one, which it
        # cancels when the engine is found dead. A client of several engines has more to say, by its own queue.
        if type(core) is AsyncMPClient and core.resources.output_queue_task is None:
            core.resources.output_queue_task = self.output_handler

    async def _hand_out(self) -> None:
        core: Any = self.engine_core
        try:
            if core.resources.output_queue_task is asyncio.current_task():
                await _Socket(core, self._receive, self._hand_ready).read()
            while True:
                self._receive(await core.get_output_async())
                while not core.outputs_queue.empty():
                    self._receive(await core.get_output_async())
                self._hand_ready()
        except (Exception, asyncio.CancelledError) as error:
            ended = error if isinstance(error, Exception) else EngineDeadError()
            if not isinstance(ended, EngineDeadError):
                log.exception("vLLM's outputs cannot be read any more")
            for live in list(self._live.values()):
                self._end(live, ended)
            self._live.clear()
            self.output_processor.propagate_error(ended)
            for answer in list(core.utility_results.values()):
                if not answer.done():
                    answer.set_exception(ended)
            if error is not ended:
                raise

    def _hand_ready(self) -> None:
        if not self._handing:
            self._hand_some()

    def _hand_some(self) -> None:
        ready = self._ready
        for _ in range(min(len(ready), _HANDED_AT_ONCE)):
            self._hand(ready.popleft())
        self._handing = bool(ready)
        if ready:
            asyncio.get_running_loop().call_soon(self._hand_some)

    def _hand(self, live: Live) -> None:
        tokens, live.tokens = live.tokens, None
        if tokens is None or live.ended.done():
            return
        finish = live.finish
        try:
            live.take(
                Step(live.choice, tokens, None if finish is None else finish_reason(str(finish)), None, live.cached)
            )
        except Exception as error:  # raised where the request is awaited; the others go on
            self._end(live, error)
            self.leave(live)
            return
        if finish is not None:
            self._end(live)

    def _end(self, live: Live, error: Exception | None = None) -> None:
        if live.ended.done():
            return
        if error is None:
            live.ended.set_result(None)
        else:
            live.ended.set_exception(error)

    def _receive(self, outputs: Any) -> None:
        """Note what arrived with each request, and who is to be called."""
        self.heard[self.rank] += 1
        measured = _Measured(self, outputs.timestamp)
        gaps, now = measured.gaps, outputs.timestamp
        others = []
        count, find = 0, self._live.get
        for output in outputs.outputs:
            live = find(output.request_id)
            if live is None:
                others.append(output)  # begun with generate(), or left meanwhile
                continue
            tokens = output.new_token_ids
            if live.prefilling or output.events is not None:
                measured.note(live, output)
            else:
                gaps[live.last] = gaps.get(live.last, 0) + 1
            live.counted += len(tokens)
            count += len(tokens)
            live.last = now
            if live.tokens is None:
                live.tokens = tokens
                self._ready.append(live)
            else:
                live.tokens += tokens
            if output.finish_reason is not None:
                live.finish = output.finish_reason
                del self._live[output.request_id]
                self._count_requests()
                measured.finish(live)
        if others:
            self.output_processor.process_outputs(others, now, measured.stats)
        self.output_processor.update_scheduler_stats(outputs.scheduler_stats)
        if self.logger_manager is not None:
            measured.tell(outputs, count)


class _Socket:
    """The outputs' socket of vLLM's client, read when the event loop finds it readable: no task has to be woken."""

    def __init__(self, client: Any, receive: Callable[[Any], None], received: Callable[[], None]) -> None:
        self._client = client
        self._receive = receive
        self._received = received
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._socket: Any = zmq.Socket.shadow(client.resources.output_socket)

    async def read(self) -> None:
        """Runs until it is cancelled, or raises what went wrong."""
        loop = asyncio.get_running_loop()
        descriptor = self._socket.get(zmq.FD)
        loop.add_reader(descriptor, self._readable)
        try:
            self._readable()  # it tells of what comes from now on only
            await self._broken
        finally:
            loop.remove_reader(descriptor)

    def _readable(self) -> None:
        client = self._client
        try:
            while not self._broken.done():
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
                client.resources.validate_alive(frames)
                outputs = client.decoder.decode(frames)
                if outputs.utility_output is None:
                    self._receive(outputs)
                elif outputs.utility_output.call_id in client.utility_results:
                    _process_utility_output(outputs.utility_output, client.utility_results)
        except zmq.Again:
            self._received()
        except Exception as error:
            if not self._broken.done():
                self._broken.set_exception(client._format_exception(error))


class _Measured:
    """vLLM's statistics of one engine step, at a few operations a token; None where there is nothing to count."""

    def __init__(self, llm: DirectLLM, timestamp: float) -> None:
        self.stats: Any = IterationStats() if llm.log_stats else None  # type: ignore[no-untyped-call]
        self.gaps: dict[float, int] = {}  # when the last tokens came -> how many requests
        self._llm = llm
        self._timestamp = timestamp

    def note(self, live: Live, output: Any) -> None:
        """What a request says of itself: its beginning, and where it was preempted."""
        if self.stats is not None:
            live.stats.last_token_ts = live.last
            lora_states = self._llm.output_processor.lora_states
            self.stats.update_from_output(output, self._timestamp, live.prefilling, live.stats, lora_states, live.lora)
            self.stats.num_generation_tokens -= len(output.new_token_ids)  # `tell` adds those of all
        if live.prefilling:
            live.prefilling = False
            if output.prefill_stats is not None:
                live.cached = output.prefill_stats.num_cached_tokens

    def finish(self, live: Live) -> None:
        if self.stats is None:
            return
        live.stats.num_generation_tokens, live.stats.last_token_ts = live.counted, live.last
        request = live.request
        self.stats.update_from_finished_request(
            finish_reason=live.finish,
            request_id=request.external_req_id,
            num_prompt_tokens=len(request.prompt_token_ids),
            max_tokens_param=request.sampling_params.max_tokens,
            req_stats=live.stats,
            num_cached_tokens=live.cached,
        )
        self._llm.output_processor.lora_states.request_finished(request.request_id, live.lora)

    def tell(self, outputs: Any, tokens: int) -> None:
        """Tell vLLM's loggers. Requests that step together have waited equally long, and are counted together."""
        loggers: Any = self._llm.logger_manager
        for last, requests in self.gaps.items():
            for logger in loggers.stat_loggers:
                if (histograms := getattr(logger, "histogram_inter_token_latency", None)) is not None:
                    observe_many(histograms[outputs.engine_index], self._timestamp - last, requests)
        stats = self.stats if outputs.outputs else None
        if stats is not None:
            stats.num_generation_tokens += tokens
        loggers.record(outputs.scheduler_stats, stats, engine_idx=outputs.engine_index)


def observe_many(histogram: Any, value: float, times: int) -> None:
    """`histogram.observe(value)`, so many times at once."""
    histogram._sum.inc(value * times)
    for bound, bucket in zip(histogram._upper_bounds, histogram._buckets, strict=True):
        if value <= bound:
            bucket.inc(times)
            break
