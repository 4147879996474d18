"""vLLM's own flags -> its configuration, with defaults that suit a CPU.

In: words of a command line. Out: a VllmConfig, or ValueError with vLLM's reason. Refuses to know what is served.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from transformers import PretrainedConfig
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.argparse_utils import FlexibleArgumentParser

from functionary_vllm.engine.startup import few_cores

_CPU_MAX_MODEL_LEN = 8192
_CPU_KV_CACHE_BYTES = 2 * 1024**3
_ADAPTERS, _ADAPTERS_ON_CPU = 64, 8


class _Parser(FlexibleArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message.replace("unrecognized arguments", "neither a flag of ours nor of vLLM"))


def _parser() -> FlexibleArgumentParser:
    parser = AsyncEngineArgs.add_cli_args(_Parser(prog="serve.py", allow_abbrev=False))  # type: ignore[no-untyped-call]
    if current_platform.is_cpu():
        # Compiling takes a minute, and the default KV cache is most of the machine's memory.
        parser.set_defaults(enforce_eager=True, use_tqdm_on_load=False)
        # A seeded request whose prompt is prefilled in parts kills the engine: vLLM then sets the random generator
        # back, which torch's CPU generator cannot ("CPU Generator does not use offset", 0.26 to 0.32).
        parser.set_defaults(enable_chunked_prefill=False)
        if not os.environ.get("VLLM_CPU_KVCACHE_SPACE"):
            parser.set_defaults(kv_cache_memory_bytes=_CPU_KV_CACHE_BYTES)
    return parser


def print_engine_help(word: str) -> None:
    """vLLM's help on the flags that match `word`; "all" for every one. Ends the program, as --help does."""
    _parser().parse_args([f"--help={word}"])


def read_config(
    argv: Sequence[str], say: Callable[[str], None], *, quiet: bool, workers: int = 1, rank: int = 0
) -> tuple[VllmConfig, bool]:
    """vLLM's configuration, and whether it keeps statistics. `rank` is that of an API worker, -1 for their engine.

    `quiet` keeps back what vLLM warns of at every start on a CPU: that it is not compiled, not preloaded, not a GPU.
    """
    namespace = _parser().parse_args(list(argv))
    on_cpu = current_platform.is_cpu()
    if on_cpu and quiet:
        logging.getLogger("vllm").setLevel(logging.ERROR)
        os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # for the child processes
    if on_cpu and namespace.max_model_len is None and _declared_length(namespace.model) > _CPU_MAX_MODEL_LEN:
        namespace.max_model_len = _CPU_MAX_MODEL_LEN
    if namespace.enable_lora:
        _make_room_for_adapters(namespace, on_cpu=on_cpu)
    say("reading the model's configuration")
    args = AsyncEngineArgs.from_cli_args(namespace)
    if workers > 1:
        args._api_process_count, args._api_process_rank = workers, rank
    config = args.create_engine_config()
    parallel = config.parallel_config
    if on_cpu and namespace.distributed_executor_backend is None and wants_one_process(parallel):
        # The worker then lives in the engine's process: 7 s and more off the start, and both of two cores compute.
        parallel.distributed_executor_backend = "uni"
    return config, not namespace.disable_log_stats


def _make_room_for_adapters(namespace: Any, *, on_cpu: bool) -> None:
    """vLLM's own default is max_loras, 1. Off a CPU, an adapter takes memory once it is loaded, not before."""
    if namespace.max_cpu_loras is None:
        namespace.max_cpu_loras = max(_ADAPTERS_ON_CPU if on_cpu else _ADAPTERS, namespace.max_loras)
    if on_cpu:
        # A slot for each, and one more that stays empty. vLLM's operators for CPUs take the index of a token without
        # an adapter, -1, as Python does: in a batch with others it would get the adapter of the last slot (to 0.32).
        namespace.max_cpu_loras += 1
        namespace.max_loras = namespace.max_cpu_loras


def adapter_room(config: Any) -> int:
    """How many adapters an engine with this LoRAConfig keeps."""
    if config is None:
        return 0
    return int(config.max_cpu_loras) - current_platform.is_cpu()


def wants_one_process(parallel: Any) -> bool:
    """Else vLLM's own thread binding is the better choice, and it needs a worker process."""
    return parallel.world_size == parallel.data_parallel_size == 1 and few_cores()


def _declared_length(model: str) -> int:
    """The context length in the model's config.json, 0 when there is none to be read."""
    with suppress(OSError, ValueError):
        content, _ = PretrainedConfig.get_config_dict(model)
        lengths = [part.get("max_position_embeddings") for part in (content, content.get("text_config") or {})]
        return max((length for length in lengths if isinstance(length, int)), default=0)
    return 0
