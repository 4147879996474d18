"""benchmarks/endtoend.py without an engine: what is made of results, and which lines of a stream carry a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import endtoend
from benchmarks.endtoend import arguments, as_messages, conversations, figures, make_model, ratios, start_ratios
from benchmarks.rig.contenders import Result, carries_token


def result(seconds: float, first: float = 1.0) -> Result:
    return Result(tokens=100, seconds=seconds, first=[first, first * 3], cpu=seconds / 1000, all_cpu=seconds)


def test_figures_are_medians_over_rounds_and_percentiles_over_streams() -> None:
    found = figures([result(1.0), result(2.0), result(10.0, first=2.0)])
    assert found["tokens/s"] == 50
    assert found["cpu µs/token"] == pytest.approx(20)
    assert found["all cpu ms/token"] == pytest.approx(20)
    assert found["ttft p50"] == 2.5  # of 1, 1, 2, 3, 3, 6
    assert found["ttft p99"] == pytest.approx(5.85)


def test_ratios_are_made_within_a_round() -> None:
    # The machine was three times as slow in the second round: for both.
    rounds = [{"ours": result(1.0), "offline": result(0.9)}, {"ours": result(3.0), "offline": result(2.7)}]
    found = ratios(rounds)
    assert found["tokens/s, ours : offline"]["rounds"] == pytest.approx([0.9, 0.9])
    assert found["ttft p50, ours : offline"]["median"] == 1
    assert not any("vllm" in name for name in found)


def test_a_contender_that_was_started_less_often_is_compared_where_it_was() -> None:
    found = start_ratios([{"ours": 8.0, "vllm": 16.0, "vllm-worker": 32.0}, {"ours": 9.0, "vllm": 12.0}])
    assert found["start, ours : vllm"]["rounds"] == [0.5, 0.75]
    assert found["start, ours : vllm-worker"] == {"median": 0.25, "rounds": [0.25]}


@pytest.mark.parametrize(
    ("delta", "carries"),
    [
        ({"role": "assistant", "content": ""}, False),
        ({"content": " a"}, True),
        ({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}, True),
        ({}, False),
    ],
)
def test_the_first_token_is_not_the_role(delta: dict[str, object], carries: bool) -> None:
    line = b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n"
    assert carries_token(line) is carries


def test_lines_without_a_chunk_carry_nothing() -> None:
    assert not any(map(carries_token, (b"\n", b": keep-alive\n", b"data: [DONE]\n", b'data: {"choices":[]}\n')))


def test_the_prompts_of_two_rounds_share_no_more_than_the_system_message() -> None:
    one, other = conversations("Round 1", 9), conversations("Round 2", 9)
    assert len({json.dumps(messages) for messages in (*one, *other)}) == 18
    assert one[0][0] == other[0][0]


def test_messages_are_read_back_from_a_prompt_that_has_begun_the_answer() -> None:
    prompt = (
        "<|im_start|>system\nTools:\n[]<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool_call>"
    )
    assert as_messages(prompt) == [{"role": "system", "content": "Tools:\n[]"}, {"role": "user", "content": "Hi"}]


def test_the_made_model_has_the_tokenizers_vocabulary(
    tmp_path: Path, base_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endtoend, "ensure_base", lambda: base_model)
    config = json.loads((make_model(tmp_path) / "config.json").read_text())
    assert config["vocab_size"] == json.loads((base_model / "config.json").read_text())["vocab_size"]
    assert config["hidden_size"] == 4096
    assert (tmp_path / "tokenizer.json").exists()


def test_defaults_follow_the_device() -> None:
    assert arguments(["--device", "cpu"]).streams == [1, 8, 32]
    cuda = arguments(["--device", "cuda", "--streams", "4"])
    assert (cuda.streams, cuda.tokens) == ([4], 256)
    assert "--load-format dummy" in cuda.engine_flags
