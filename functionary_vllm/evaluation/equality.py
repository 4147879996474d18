"""Does a model say the same in vLLM as in transformers? Greedy, token by token, from the same prompt ids, offline.

In: a model's folder, a format, conversations as of the held-out set. Out: how many answers are equal, and for each that
is not: where the first other token is, and how far the two tokens' logits are apart there, as transformers has them. A
gap of a rounding error is a tie that two orders of summing break differently; a larger one is a fault.

    python -m functionary_vllm.evaluation.equality MODEL heldout.jsonl --dtype float32 --output equal-float32.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path
from random import Random
from typing import Any

from tqdm import tqdm

from functionary_vllm.conversation import AUTO, NONE, Conversation
from functionary_vllm.engine.base import Engine, Generation, Sampling, Step
from functionary_vllm.engine.startup import start_vllm
from functionary_vllm.formats import detect_format, get_format
from functionary_vllm.formats.base import Format
from functionary_vllm.history import normalise
from functionary_vllm.offer import functions_from_tools

LENGTH = 2048


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one of an answer; `gap` is transformers' logit of its own token less that of vLLM's."""

    prompt: int
    at: int
    vllm: str
    transformers: str
    gap: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m functionary_vllm.evaluation.equality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", metavar="MODEL", help="a folder")
    parser.add_argument("conversations", type=Path, metavar="FILE.jsonl")
    parser.add_argument("--format", help="default: as the tokenizer shows")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--n", type=int, default=50, help="conversations, drawn always the same way; default: 50")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    options = parser.parse_args(argv)

    engine = start_vllm(options.model, ["--dtype", options.dtype, "--max-model-len", str(LENGTH)])
    fmt = get_format(options.format or detect_format(engine.tokenizer, engine.model_type), engine.tokenizer)
    prompts = read_prompts(options.conversations, fmt, options.n, LENGTH - options.max_tokens)
    answers = asyncio.run(ask(engine, fmt, prompts, options.max_tokens))
    found = compare(options, fmt, prompts, answers)
    told = {
        "model": Path(options.model).name,
        "dtype": options.dtype,
        "n": len(prompts),
        "equal": len(prompts) - len(found),
        "largest gap": max((difference.gap for difference in found), default=0.0),
        "tokens": sum(map(len, answers)),
        "differences": [asdict(difference) for difference in found],
    }
    text = json.dumps(told, indent=1, ensure_ascii=False)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    return 0


def read_prompts(path: Path, fmt: Format, n: int, longest: int) -> list[list[int]]:
    """What the server would ask the model for the last answer of each conversation."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    Random(0).shuffle(lines)
    prompts: list[list[int]] = []
    for line in lines:
        messages = line["messages"]
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        functions, _ = functions_from_tools(line.get("tools") or None, 128)
        asked = Conversation(normalise(messages[:last]), functions, AUTO if functions else NONE)
        ids = fmt.render(asked).token_ids(fmt.tokenizer)
        if len(ids) <= longest:
            prompts.append(ids)
        if len(prompts) == n:
            break
    return prompts


async def ask(engine: Engine, fmt: Format, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]:
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0, repetition_penalty=1.0)
    answers: list[list[int]] = []
    try:
        for number, ids in enumerate(tqdm(prompts, desc="vLLM", unit="answer")):
            answer: list[int] = []

            def take(step: Step, answer: list[int] = answer) -> None:
                answer.extend(step.token_ids)

            await engine.generate(Generation(f"equality-{number}", ids, sampling, fmt.stop_token_ids), take)
            answers.append(until(answer, fmt.stop_token_ids))
    finally:
        await engine.close()
    return answers


def compare(
    options: argparse.Namespace, fmt: Format, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> list[Difference]:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    model: Any = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    model.eval()
    greedy: Any = GenerationConfig  # untyped
    stops = list(fmt.stop_token_ids)
    model.generation_config = greedy(
        do_sample=False, max_new_tokens=options.max_tokens, eos_token_id=stops, pad_token_id=0
    )
    tokenizer: Any = fmt.tokenizer
    found = []
    with torch.inference_mode():
        for number, (ids, answer) in enumerate(zip(tqdm(prompts, desc="transformers"), answers, strict=True)):
            written = model.generate(torch.tensor([ids]))[0, len(ids) :].tolist()
            own = until(written, fmt.stop_token_ids)
            at = first_difference(answer, own)
            if at is None:
                continue
            logits = model(torch.tensor([ids + own[:at]])).logits[0, -1].float()
            pair = [(answer_ids[at : at + 1] or stops)[0] for answer_ids in (answer, own)]
            texts = [tokenizer.decode([token]) for token in pair]
            gap = round(float(logits[pair[1]] - logits[pair[0]]), 5)
            found.append(Difference(number, at, texts[0], texts[1], gap))
    return found


def until(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Up to the first stop token, without it: the engine may hand it out or not."""
    return list(takewhile(lambda token: token not in stops, ids))


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    for i, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return i
    return None if len(one) == len(other) else min(len(one), len(other))


if __name__ == "__main__":
    sys.exit(main())
