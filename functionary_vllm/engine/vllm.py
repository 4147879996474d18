"""vLLM behind the Engine protocol: the one file that needs vllm, and knows its versions (vLLM's parsers apart).

In: vLLM's own engine flags, then Generations. Out: Steps of token ids; vLLM detokenizes nothing (`detokenize=False`)
and its errors become ours here. Each choice is an engine request of its own, so that one can be stopped without the
others. Tokens take the short way of `vllm_outputs.py`, but for requests that want logprobs. Runs with 0.32; the
unit tests pass on the sources of 0.26, the types on those of 0.33. What differs between them stands in the first
section. Refuses to know text, formats and HTTP.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vllm import exceptions as vllm_exceptions
from vllm.inputs import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.structured_output.backend_xgrammar import has_xgrammar_unsupported_json_features

from functionary_vllm.engine.adapters import LoadedAdapters
from functionary_vllm.engine.base import Capacity, Generation, Step, Take, TokenLogprob
from functionary_vllm.engine.schema_check import check_schema
from functionary_vllm.engine.startup import in_lasting_thread
from functionary_vllm.engine.vllm_adapters import VllmLoader
from functionary_vllm.engine.vllm_flags import read_config, wants_one_process
from functionary_vllm.engine.vllm_outputs import DirectLLM, finish_reason
from functionary_vllm.errors import ApiError, EngineFailure, EngineUnavailable, InvalidRequest, RateLimited

# ---------------------------------------------------------------------------------------------- versions


def _known(*names: str) -> tuple[type[Exception], ...]:
    return tuple(getattr(vllm_exceptions, name) for name in names if hasattr(vllm_exceptions, name))


# A refused request is a ValueError up to 0.26 and later a VLLMClientError, which is none.
_REFUSED: tuple[type[Exception], ...] = (
    ValueError,
    *_known("VLLMClientError", "VLLMValidationError", "VLLMUnprocessableEntityError"),
)
_BUSY = _known("GracefulHTTPError")  # later than 0.26: vLLM's own queue limits
_VLLM_ERRORS: tuple[type[Exception], ...] = (EngineDeadError, EngineGenerateError, *_BUSY, *_REFUSED)


def _check_nesting(schema: Any) -> None:
    """vLLM's limit on nesting, where it has one: grammar conversion grows steeply with depth."""
    try:
        from vllm.sampling_params import check_json_nesting
    except ImportError:
        return
    check_json_nesting(schema)


def _capacity(config: Any) -> Capacity:
    """Of all engines together. What is known of the KV cache in tokens is one engine's, in blocks that of all."""
    cache, engines = config.cache_config, config.parallel_config.data_parallel_size
    tokens = engines * (getattr(cache, "kv_cache_size_tokens", None) or 0)
    return Capacity(
        config.scheduler_config.max_num_seqs * engines, tokens or (cache.num_gpu_blocks or 0) * cache.block_size
    )


# ------------------------------------------------------------------------------------------------ engine


class _Choice:
    """An engine request under way. `leave` tells the engine to end it early."""

    __slots__ = ("index", "leave", "stopped")

    def __init__(self, index: int) -> None:
        self.index = index
        self.stopped = False
        self.leave: Callable[[], object] = lambda: None

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            self.leave()


class VllmEngine:
    """An Engine over AsyncLLM. `again` starts another one in the place of one that is lost; it blocks."""

    def __init__(self, llm: AsyncLLM, again: Callable[[], AsyncLLM] | None = None) -> None:
        self.tokenizer: Any = llm.get_tokenizer()
        self.max_model_len: int = llm.model_config.max_model_len
        self.vocab_size: int = llm.model_config.get_vocab_size()
        self.model_type: str = getattr(llm.model_config.hf_config, "model_type", "")
        self.capacity = _capacity(llm.vllm_config)
        self._llm = llm
        self.adapters = LoadedAdapters(VllmLoader(lambda: self._llm))
        self._seeds_are_safe = not (
            current_platform.is_cpu() and llm.vllm_config.scheduler_config.enable_chunked_prefill
        )
        # What the model's generation_config.json says of temperature and the like; a request's own value wins.
        self._defaults: dict[str, Any] = llm.model_config.get_diff_sampling_param()
        self._runs: dict[str, list[_Choice]] = {}
        self._aborts: set[asyncio.Future[None]] = set()
        self._closed = False
        self._again = again
        self._restarting = False

    async def generate(self, request: Generation, take: Take) -> None:
        with self.adapters.use(request.model) as lora:
            await self._generate(request, lora, take)

    async def _generate(self, request: Generation, lora: Any, take: Take) -> None:
        choices = self._runs[request.id] = [_Choice(index) for index in range(request.sampling.n)]
        try:
            if len(choices) == 1:
                await self._generate_choice(request, choices[0], lora, take)
                return
            tasks = [asyncio.create_task(self._generate_choice(request, choice, lora, take)) for choice in choices]
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self._runs.pop(request.id, None)

    async def _generate_choice(self, request: Generation, choice: _Choice, lora: Any, take: Take) -> None:
        asked: dict[str, Any] = {
            "prompt": tokens_input(list(request.prompt_ids)),
            "request_id": request.id if request.sampling.n == 1 else f"{request.id}-{choice.index}",
            "lora_request": lora,
            "priority": request.priority,
        }
        llm = self._llm
        if request.trace and llm.observability_config.otlp_traces_endpoint is not None:
            asked["trace_headers"] = request.trace
        try:
            asked["sampling_params"] = self._sampling_params(request, choice.index)
            if isinstance(llm, DirectLLM) and llm.hands_out and request.sampling.logprobs is None:
                await _hand_out(llm, asked, choice, take)
            else:
                await self._iterate(asked, choice, take)
        except _VLLM_ERRORS as error:
            raise _translate(error) from error

    async def _iterate(self, asked: dict[str, Any], choice: _Choice, take: Take) -> None:
        """By way of AsyncLLM's own outputs, which know logprobs."""
        logprobs = asked["sampling_params"].logprobs
        outputs = self._llm.generate(**asked)
        choice.leave = partial(self._abort, asked["request_id"])
        finished = False
        try:
            async for output in outputs:
                finished = output.finished
                if choice.stopped:
                    return
                completion = output.outputs[0]
                entries = None if logprobs is None else _logprobs(completion, logprobs)
                reason = finish_reason(completion.finish_reason)
                take(Step(choice.index, completion.token_ids, reason, entries, output.num_cached_tokens or 0))
        finally:
            if not finished:
                await asyncio.shield(self._abort(asked["request_id"]))
            await outputs.aclose()

    def _sampling_params(self, request: Generation, choice: int) -> SamplingParams:
        asked = request.sampling
        values = dict(self._defaults)
        for name in _COPIED:
            if (value := getattr(asked, name)) is not None:
                values[name] = value
        if asked.seed is not None and not self._seeds_are_safe:
            raise InvalidRequest("seed is not available with chunked prefill on a CPU.", param="seed")
        if asked.seed is not None:
            # torch takes 64 bits; a larger one would fail inside the engine.
            if not -(2**63) <= asked.seed < 2**63 - asked.n:
                raise InvalidRequest("seed must fit into 64 bits.", param="seed")
            values["seed"] = asked.seed + choice
        if asked.banned:
            values["bad_words"] = list(asked.banned)
        if asked.logit_bias:
            values["logit_bias"] = dict(asked.logit_bias)
        if request.constraint is not None:
            values["structured_outputs"] = StructuredOutputsParams(structural_tag=request.constraint)
        return SamplingParams(
            **{"max_tokens": None, **values},
            stop_token_ids=list(request.stop_token_ids),
            ignore_eos=asked.ignore_eos,
            detokenize=False,
            skip_special_tokens=False,
            output_kind=RequestOutputKind.DELTA,
            skip_clone=True,  # made for this one request
        )

    def stop(self, request_id: str, choice: int) -> None:
        if choices := self._runs.get(request_id):
            choices[choice].stop()

    def _abort(self, engine_id: str) -> asyncio.Future[None]:
        # A task of its own: whoever leaves is often being cancelled, and the engine has to hear of it all the same.
        task = asyncio.ensure_future(self._llm.abort(engine_id))
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)
        return task

    def unfinished(self) -> int:
        """How many engine requests are waiting or running."""
        return int(self._llm.get_num_unfinished_requests()) + getattr(self._llm, "beginning", 0)

    @property
    def heard(self) -> int:
        return sum(self._llm.heard) if isinstance(self._llm, DirectLLM) else 0

    def lose(self) -> None:
        if isinstance(self._llm, DirectLLM):
            self._llm.lose_engine()

    async def restart(self) -> None:
        if self._again is None:
            raise EngineUnavailable("The engine cannot be started again.")
        self._restarting = True
        try:
            self._llm.shutdown(timeout=0.0)
            self._llm = await in_lasting_thread(self._again)
            await self.adapters.again()
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineUnavailable(f"The engine did not start again: {error}") from error
        finally:
            self._restarting = False

    def check_schema(self, schema: Mapping[str, Any] | bool) -> None:
        try:
            check_schema(schema, has_xgrammar_unsupported_json_features, _check_nesting)
        except _REFUSED as error:
            raise ValueError(str(error)) from None

    async def check_health(self) -> None:
        if self._closed:
            raise EngineUnavailable("The engine has been closed.")
        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise _translate(error) from error

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._restarting:
                for child in multiprocessing.active_children():
                    child.kill()
            # A CPU engine has no device to give back, only seconds to spend on taking Python apart.
            self._llm.shutdown(timeout=1.0 if current_platform.is_cpu() else None)


_COPIED = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
)


async def _hand_out(llm: DirectLLM, asked: dict[str, Any], choice: _Choice, take: Take) -> None:
    """By the short way."""
    live = await llm.begin(choice.index, take, **asked)
    choice.leave = partial(llm.leave, live)
    try:
        await live.ended
    finally:
        llm.leave(live)


def _logprobs(completion: Any, count: int) -> list[TokenLogprob]:
    """vLLM gives a dict a position: the sampled token, and the `count` most likely, which may include it."""
    entries = []
    for token_id, position in zip(completion.token_ids, completion.logprobs or (), strict=True):
        best = sorted(((other, _finite(entry.logprob)) for other, entry in position.items()), key=lambda pair: -pair[1])
        entries.append(TokenLogprob(token_id, _finite(position[token_id].logprob), tuple(best[:count])))
    return entries


def _finite(logprob: float) -> float:
    # JSON has no infinity; -9999.0 is what OpenAI's API reference gives for a token out of reach.
    return max(logprob, -9999.0)


def _translate(error: Exception) -> ApiError:
    if isinstance(error, EngineDeadError):
        return EngineUnavailable("The engine has stopped.")
    if isinstance(error, _BUSY):
        return RateLimited(str(error))
    cause = error.__cause__ if isinstance(error, EngineGenerateError) else error
    if cause is not None and isinstance(cause, _REFUSED):
        # The first argument is the bare message; str() of newer versions appends parameter and value to it.
        message = str(cause.args[0]) if cause.args else str(cause)
        return InvalidRequest(message, param=getattr(cause, "parameter", None))
    return EngineFailure(f"The engine failed on this request: {type(cause or error).__name__}.")


def create_engine(
    argv: Sequence[str], say: Callable[[str], None] = print, *, quiet: bool = False, fork: bool = False
) -> VllmEngine:
    """Start vLLM with these of its flags. Blocks for seconds to minutes, and needs no event loop.

    `fork` lets the engine's process on a CPU be forked off this one, which spares it the import of vLLM.

    Raises ValueError or OSError for flags or a model that cannot be used, RuntimeError when the engine does not start.
    """
    config, log_stats = read_config(argv, say, quiet=quiet)
    if fork and current_platform.is_cpu() and wants_one_process(config.parallel_config):
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"  # vLLM has just set it to spawn
    say("starting the engine process: it loads the weights and sets up the KV cache")

    def again() -> AsyncLLM:
        os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"  # this process has threads by now
        config, log_stats = read_config(argv, lambda _: None, quiet=quiet)
        return DirectLLM.from_vllm_config(config, disable_log_stats=not log_stats)

    return VllmEngine(DirectLLM.from_vllm_config(config, disable_log_stats=not log_stats), again=again)
