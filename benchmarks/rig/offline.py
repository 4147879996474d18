"""AsyncLLM by itself, in a process without a server: the ceiling of benchmarks/endtoend.py.

In: vLLM's engine flags as arguments, then jobs as JSON lines on stdin. Out: one JSON line when the first token has
come, and one for each job: tokens, seconds, when each stream had its first token, CPU seconds of this process. All else
that is printed goes to stderr. Refuses to know HTTP and the other contenders.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from typing import Any, TextIO


async def one(llm: Any, name: str, ids: list[int], job: dict[str, Any]) -> tuple[float, int]:
    """When the first token came, and how many there were."""
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    params = SamplingParams(
        max_tokens=job["tokens"],
        temperature=0.0,
        ignore_eos=True,
        detokenize=job["detokenize"],
        output_kind=RequestOutputKind.DELTA,
        structured_outputs=StructuredOutputsParams(json=job["schema"]) if job.get("schema") else None,
    )
    first, tokens = 0.0, 0
    async for output in llm.generate(TokensPrompt(prompt_token_ids=ids), params, name):
        first = first or time.perf_counter()
        tokens += len(output.outputs[0].token_ids)
    return first, tokens


async def do(llm: Any, number: int, job: dict[str, Any]) -> dict[str, Any]:
    cpu, begin = time.process_time(), time.perf_counter()
    done = await asyncio.gather(*(one(llm, f"{number}-{i}", ids, job) for i, ids in enumerate(job["prompts"])))
    end = time.perf_counter()
    return {
        "tokens": [tokens for _, tokens in done],
        "first": [first - begin for first, _ in done],
        "seconds": end - begin,
        "cpu": time.process_time() - cpu,
    }


async def main(out: TextIO) -> None:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser())  # type: ignore[no-untyped-call]
    llm = AsyncLLM.from_engine_args(AsyncEngineArgs.from_cli_args(parser.parse_args()))
    try:
        await do(llm, 0, {"prompts": [[1, 2, 3, 4]], "tokens": 1, "detokenize": False})
        print(json.dumps({"ready": True}), file=out, flush=True)
        number = 0
        while line := await asyncio.to_thread(sys.stdin.readline):
            number += 1
            print(json.dumps(await do(llm, number, json.loads(line))), file=out, flush=True)
    finally:
        llm.shutdown(timeout=1.0)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM's log lines go to stdout, in the engine's process too
    asyncio.run(main(answers))
