"""engine/replay.py: what is recorded is what comes out, cut and paced as a real engine would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from functionary_vllm.engine.base import Engine, Generation, Sampling, Step
from functionary_vllm.engine.replay import Recording, RecordingError, ReplayEngine, load_recordings
from functionary_vllm.errors import EngineUnavailable, InvalidRequest
from tests.fakes import collect, going

TOKENS = Recording("a", (1, 2, 3, 4, 5))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<end>", "one", "two", "three", "four", "five", "six"]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<end>")


def request(name: str = "r", recording: str | None = None, **fields: Any) -> Generation:
    stop_token_ids = fields.pop("stop_token_ids", ())
    metadata = {"recording": recording} if recording else {}
    return Generation(name, [1], Sampling(**fields), stop_token_ids=stop_token_ids, metadata=metadata)


async def played(engine: ReplayEngine, generation: Generation) -> tuple[list[list[int]], str | None]:
    steps = await collect(engine, generation)
    return [list(step.token_ids) for step in steps], steps[-1].finish


def write(folder: Path, *lines: str) -> Path:
    path = folder / "recordings.jsonl"
    path.write_text("\n".join(lines))
    return path


async def test_is_an_engine_and_plays_the_recording(tokenizer: PreTrainedTokenizerFast) -> None:
    engine: Engine = ReplayEngine([TOKENS], tokenizer)
    steps = await collect(engine, request())
    assert [list(step.token_ids) for step in steps] == [[1], [2], [3], [4], [5]]
    assert [step.finish for step in steps] == [None] * 4 + ["stop"]
    assert all(step.logprobs is None for step in steps)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((1,), [[1], [2], [3], [4], [5]]),
        ((2,), [[1, 2], [3, 4], [5]]),
        ((1, 3), [[1], [2, 3, 4], [5]]),
        ((9,), [[1, 2, 3, 4, 5]]),
    ],
)
async def test_step_pattern_is_cycled(
    tokenizer: PreTrainedTokenizerFast, steps: tuple[int, ...], expected: list[list[int]]
) -> None:
    engine = ReplayEngine([Recording("a", (1, 2, 3, 4, 5), "length", steps)], tokenizer)
    assert await played(engine, request()) == (expected, "length")


async def test_an_empty_recording_still_finishes(tokenizer: PreTrainedTokenizerFast) -> None:
    assert await played(ReplayEngine([Recording("a", ())], tokenizer), request()) == ([[]], "stop")


async def test_max_tokens_cuts_with_length(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([Recording("a", (1, 2, 3, 4, 5), steps=(2,))], tokenizer)
    assert await played(engine, request(max_tokens=3)) == ([[1, 2], [3]], "length")
    assert await played(engine, request(max_tokens=5)) == ([[1, 2], [3, 4], [5]], "stop")


async def test_a_stop_token_ends_and_is_included(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([Recording("a", (1, 2, 3, 4, 3), "length")], tokenizer)
    assert await played(engine, request(stop_token_ids=(3, 7))) == ([[1], [2], [3]], "stop")
    assert await played(engine, request(stop_token_ids=(3,), max_tokens=2)) == ([[1], [2]], "length")


async def test_recordings_are_named_or_served_in_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([Recording("a", (1,)), Recording("b", (2,))], tokenizer)
    in_turn = [(await played(engine, request()))[0] for _ in range(3)]
    assert in_turn == [[[1]], [[2]], [[1]]]
    assert (await played(engine, request(recording="a")))[0] == [[1]]
    # A named request does not use up a turn.
    assert (await played(engine, request()))[0] == [[2]]


async def test_an_unknown_recording_is_the_clients_error(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)
    with pytest.raises(InvalidRequest, match="'nope'") as caught:
        await collect(engine, request(recording="nope"))
    assert caught.value.param == "metadata.recording"
    assert engine.running == 0


async def test_every_choice_plays_the_recording(tokenizer: PreTrainedTokenizerFast) -> None:
    steps = await collect(ReplayEngine([TOKENS], tokenizer), request(n=3))
    for choice in range(3):
        own = [step for step in steps if step.choice == choice]
        assert [token_id for step in own for token_id in step.token_ids] == [1, 2, 3, 4, 5]
        assert own[-1].finish == "stop"


async def test_stop_ends_one_choice_and_leaves_the_others(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)
    seen: list[tuple[int, int]] = []

    def take(step: Step) -> None:
        seen.append((step.choice, step.token_ids[0]))
        if seen[-1] == (0, 2):
            engine.stop("r", 1)

    await engine.generate(request(n=2), take)
    assert seen == [(0, 1), (1, 1), (0, 2), (0, 3), (0, 4), (0, 5)]
    assert engine.aborted == 0


async def test_stop_of_the_only_choice_ends_without_error(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)
    seen = []

    def take(step: Step) -> None:
        seen.append(step.token_ids[0])
        engine.stop("r", 0)

    await engine.generate(request(), take)
    assert seen == [1]
    engine.stop("unknown", 0)


async def test_what_the_taker_raises_ends_its_request_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)

    def refuse(step: Step) -> None:
        raise RuntimeError("no more")

    other = asyncio.create_task(collect(engine, request("other")))
    with pytest.raises(RuntimeError, match="no more"):
        await engine.generate(request("r"), refuse)
    assert len(await other) == 5
    assert engine.running == 0


async def test_leaving_is_counted_as_an_abort(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)
    async with going(engine, request()):
        assert engine.running == 1
    assert (engine.running, engine.aborted) == (0, 1)


async def test_cancelling_the_reader_is_an_abort(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([Recording("a", (1, 2), interval=60.0)], tokenizer)
    reader = asyncio.create_task(collect(engine, request()))
    await asyncio.sleep(0)
    assert engine.running == 1
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert (engine.running, engine.aborted) == (0, 1)


async def test_requests_of_one_interval_step_together(
    tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of the test's own, whose timers wake a little early: how busy the machine is does not matter."""
    engine = ReplayEngine([Recording("a", (1, 2, 3), interval=0.02)], tokenizer)
    order: list[tuple[str, int]] = []
    now, turn = 7.013, asyncio.sleep
    waiting: list[float] = []

    async def sleep(delay: float) -> None:
        due = now + delay - 1e-9
        waiting.append(due)
        while now < due:
            await turn(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)

    def read(name: str) -> Awaitable[None]:
        return engine.generate(request(name), lambda step: order.append((name, step.token_ids[0])))

    both = asyncio.gather(read("x"), read("y"))
    while not both.done():
        await turn(0)
        now = min((due for due in waiting if due > now), default=now)
    # Whichever comes first on a tick, no request is ever two tokens ahead of the other.
    assert [token_id for _, token_id in order] == [1, 1, 2, 2, 3, 3]


async def test_logprobs_are_synthetic_but_well_formed(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([Recording("a", (1, 2, 3), steps=(2,))], tokenizer)
    steps = await collect(engine, request(logprobs=2))
    entries = [entry for step in steps for entry in step.logprobs or ()]
    assert [entry.token_id for entry in entries] == [1, 2, 3]
    for entry in entries:
        assert len(entry.top) == 2
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert entry.top[1][1] < entry.logprob < 0
    assert steps == await collect(engine, request(logprobs=2))
    alone = await collect(engine, request(logprobs=0))
    assert [entry.top for entry in alone[0].logprobs or ()] == [(), ()]


async def test_a_closed_engine_is_unavailable(tokenizer: PreTrainedTokenizerFast) -> None:
    engine = ReplayEngine([TOKENS], tokenizer)
    await engine.check_health()
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.check_health()
    with pytest.raises(EngineUnavailable):
        await collect(engine, request())


def test_text_is_encoded_with_its_special_tokens(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    path = write(
        tmp_path,
        '{"id": "t", "text": "one two<end>", "step": [1, 2], "interval_ms": 20, "finish_reason": "length"}',
        "",
        '{"id": "u", "token_ids": [3, 1]}',
    )
    text, ids = load_recordings(path, tokenizer)
    assert text == Recording("t", (2, 3, 1), "length", (1, 2), 0.02)
    assert ids == Recording("u", (3, 1), "stop", (1,), 0.0)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ('{"text": "one"}', "id must be"),
        ('{"id": 3, "text": "one"}', "id must be"),
        ('{"id": "a"}', "either text or token_ids"),
        ('{"id": "a", "text": "one", "token_ids": [1]}', "either text or token_ids"),
        ('{"id": "a", "text": 1}', "text must be"),
        ('{"id": "a", "token_ids": [99]}', "from 0 to 7"),
        ('{"id": "a", "token_ids": [true]}', "from 0 to 7"),
        ('{"id": "a", "text": "one", "finish_reason": "abort"}', "finish_reason"),
        ('{"id": "a", "text": "one", "step": 0}', "step must be"),
        ('{"id": "a", "text": "one", "step": []}', "step must be"),
        ('{"id": "a", "text": "one", "step": [1, 1.5]}', "step must be"),
        ('{"id": "a", "text": "one", "interval_ms": -1}', "interval_ms"),
        ('{"id": "a", "text": "one", "interval_ms": Infinity}', "interval_ms"),
        ('{"id": "a", "text": "one", "intervall": 1}', "unknown key 'intervall'"),
        ('{"id": "ok", "text": "one"}', "'ok' is there twice"),
    ],
)
def test_a_malformed_line_is_named(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, line: str, problem: str) -> None:
    path = write(tmp_path, json.dumps({"id": "ok", "text": "one"}), line)
    with pytest.raises(RecordingError, match=rf"recordings\.jsonl, line 2: .*{problem}"):
        load_recordings(path, tokenizer)


def test_a_file_without_recordings_is_refused(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no recordings"):
        load_recordings(write(tmp_path, " "), tokenizer)
    with pytest.raises(RecordingError, match="cannot be read"):
        load_recordings(tmp_path / "absent.jsonl", tokenizer)
    with pytest.raises(RecordingError, match="no recordings to play"):
        ReplayEngine([], tokenizer)
