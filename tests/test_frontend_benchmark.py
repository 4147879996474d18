"""benchmarks/frontend.py: what is played is what was recorded, what comes back is checked, and CPU is counted right."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from benchmarks.frontend import metric_p99
from benchmarks.rig.drain import Load, drain
from benchmarks.rig.floors import read_chunks, wait
from benchmarks.rig.frontend_report import Figure, saturation
from benchmarks.rig.frontend_rows import OURS, ROWS, make_cases, programs
from benchmarks.rig.recorded import Case, body, check, make_case, write_recordings
from benchmarks.rig.servers import Server, cpu_seconds

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def tokenizer(base_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(base_model)


@pytest.fixture(scope="module")
def text(tokenizer: Any) -> Case:
    return make_case(tokenizer, 0, "text-10", 40, 10)


@pytest.fixture(scope="module")
def call(tokenizer: Any) -> Case:
    return make_case(tokenizer, 1, "tool-10", 40, 10)


def answer(events: list[bytes], name: str = "") -> bytes:
    """The bytes of a stream of these events, which a floor writes as they are; `name` is a call's first delta."""
    if name:
        delta = {"tool_calls": [{"index": 0, "function": {"name": name}}]}
        events = [b"data: %b\n\n" % json.dumps({"choices": [{"delta": delta}]}).encode(), *events]
    return HEAD + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events) + b"0\r\n\r\n"


def test_a_case_has_as_many_tokens_as_asked_and_what_is_expected_is_what_they_say(
    text: Case, call: Case, tokenizer: Any
) -> None:
    assert text.tokens == call.tokens == 40
    assert tokenizer.decode(text.token_ids[:-1]) == text.expected
    assert text.words == 39
    assert call.words == len(tokenizer.encode(json.loads(call.expected)["text"]))
    assert tokenizer.decode(call.token_ids[: call.silent]).rstrip(",").endswith('"write"')
    said = tokenizer.decode(call.token_ids[:-1])
    assert said.startswith("<tool_call>")
    assert json.loads(said.removeprefix("<tool_call>").removesuffix("</tool_call>"))["arguments"] == json.loads(
        call.expected
    )


def test_every_row_has_its_case_and_its_servers(tokenizer: Any) -> None:
    cases = make_cases(tokenizer)
    assert [case.number for case in cases.values()] == list(range(len(cases)))
    known = programs("model", (Path("a"), Path("b")), 1, Path("vllm-rs"))
    for row in (row for group in ROWS.values() for row in group):
        assert row.case in cases
        assert set(row.servers) <= set(known)


def test_an_answer_counts_only_when_it_is_whole(text: Case, call: Case, tmp_path: Path) -> None:
    _, chunks = write_recordings([text, call], tmp_path)
    events = read_chunks(chunks)[0].events
    assert check(text, answer(events)) == ("", text.tokens - 1)
    assert check(text, answer(events[:5] + events[6:]))[0] == "not what was recorded"
    assert check(text, answer([*events[:-1], events[-1].replace(b"data: [DONE]\n\n", b"")]))[0] == "no [DONE]"
    assert check(text, answer(events[:3]))[0] == "no [DONE]"
    assert check(text, HEAD.replace(b"200", b"500"))[0].startswith("ValueError")


def test_a_call_counts_only_with_its_name_and_its_arguments(call: Case) -> None:
    def stream(name: str, arguments: str, finish: str = "tool_calls") -> bytes:
        delta = {"tool_calls": [{"index": 0, "function": {"arguments": arguments}}]}
        last = {"choices": [{"delta": delta, "finish_reason": finish}]}
        return answer([b"data: %b\n\ndata: [DONE]\n\n" % json.dumps(last).encode()], name)

    assert check(call, stream("write", call.expected))[0] == ""
    assert check(call, stream("read", call.expected))[0] == "not what was recorded"
    assert check(call, stream("write", call.expected[:-2]))[0] == "not what was recorded"
    assert check(call, stream("write", call.expected, "stop"))[0] == "finish_reason 'stop'"


def test_cpu_is_that_of_all_threads_and_of_no_child() -> None:
    program = """
import subprocess, sys, threading, time
def burn():
    end = time.thread_time() + 0.2
    while time.thread_time() < end: pass
thread = threading.Thread(target=burn); thread.start(); thread.join()
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.4: pass"], check=True)
print(time.process_time(), flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        own = float(process.stdout.readline())
        counted = cpu_seconds(process.pid)
        process.communicate(b"\n")
    assert own >= 0.2
    assert counted == pytest.approx(own, abs=0.1)  # the child alone took 0.4


@given(st.floats(0, 1e6), st.sampled_from([0.0005, 0.01, 0.05]))
def test_a_floor_that_wakes_early_does_not_write_twice_a_tick(now: float, interval: float) -> None:
    assert 0.49 * interval <= wait(now, interval) <= 1.51 * interval
    assert wait(now, 0.0) == 0.0


def test_the_saturation_is_the_last_pace_without_merged_steps_and_void_figures_count_nowhere() -> None:
    def figure(rate: float, deltas: float, void: str = "") -> Figure:
        return Figure(10.0, 8.0, rate, deltas, 1.0, 0.1, 0.1, 0.0, void)

    results = {
        "saturation 8 ms": {OURS: [figure(8_000, 0.95)]},
        "saturation 4 ms": {OURS: [figure(16_000, 0.93)]},
        "saturation 2 ms": {OURS: [figure(30_000, 0.5)]},
        "saturation 1 ms": {OURS: [figure(60_000, 0.95, "no [DONE]")]},
    }
    assert saturation(results, OURS) == (16_000, 125_000, 30_000)
    assert saturation(results, "vllm") == (None, None, None)


def test_the_lag_metric_is_what_was_observed_in_between() -> None:
    before = {1.0: 100.0, 10.0: 100.0, 50.0: 100.0}
    assert metric_p99(before, {1.0: 150.0, 10.0: 199.0, 50.0: 200.0}) == 10.0
    assert metric_p99(before, before) is None
    assert metric_p99({}, {}) is None


# --------------------------------------------------------------------------------------- the engine core's plug-ins


@pytest.fixture(scope="module")
def core() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM and torch warn of their own deprecations while they are imported
        pytest.importorskip("vllm", reason="vLLM is not installed")
        from benchmarks.rig import replay_core

    return replay_core


def scheduler(core: Any, cases: list[Case], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    steps, _ = write_recordings(cases, folder)
    monkeypatch.setenv(core.RECORDINGS, str(steps))
    monkeypatch.setattr(core, "SETTLE", 0.0)
    return core.ReplayScheduler(None, log_stats=True)


def request(name: str, number: int, client: int = 0) -> Any:
    params = SimpleNamespace(seed=number)
    return SimpleNamespace(request_id=name, sampling_params=params, client_index=client, num_prompt_tokens=7)


@pytest.mark.filterwarnings("ignore")
def test_the_core_sends_each_request_its_recorded_tokens_one_a_step(
    core: Any, text: Case, call: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = scheduler(core, [replace(text, interval_ms=0), replace(call, interval_ms=0)], tmp_path, monkeypatch)
    for name, number, client in (("a", 0, 0), ("b", 1, 0), ("c", 1, 1), ("gone", 0, 0)):
        stub.add_request(request(name, number, client))
    assert [gone.request_id for gone in stub.finish_requests("gone", None)] == ["gone"]
    got: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    steps = 0
    while stub.has_requests():
        steps += 1
        sent = stub.update_from_output(stub.schedule(), None)
        assert sent[0].scheduler_stats.num_waiting_reqs == 0
        for client, message in sent.items():
            for output in message.outputs:
                assert client == (output.request_id == "c")
                assert bool(output.events) == bool(output.prefill_stats) == (steps == 1)
                assert output.finished == (steps == text.tokens)
                got[output.request_id] += output.new_token_ids
    assert got == {"a": text.token_ids, "b": call.token_ids, "c": call.token_ids}


@pytest.mark.filterwarnings("ignore")
def test_requests_begin_together_when_none_has_come_for_a_moment(
    core: Any, text: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = scheduler(core, [replace(text, interval_ms=0)], tmp_path, monkeypatch)
    monkeypatch.setattr(core, "SETTLE", 3600.0)
    stub.add_request(request("a", 0))
    assert stub.update_from_output(stub.schedule(), None) == {}
    assert stub.get_request_counts() == (0, 1)
    monkeypatch.setattr(core, "SETTLE", 0.0)
    assert len(stub.update_from_output(stub.schedule(), None)[0].outputs) == 1
    assert stub.get_request_counts() == (1, 0)


@given(st.floats(0, 1e5), st.sampled_from([0.0005, 0.01, 0.05]))
def test_steps_come_at_the_clocks_multiples(core: Any, now: float, interval: float) -> None:
    tick = core.next_tick(now, interval)
    assert now < tick <= now + interval * 1.02
    assert tick / interval == pytest.approx(round(tick / interval), abs=1e-3)


@pytest.mark.engine
def test_a_stream_from_the_real_engine_core_without_a_model(
    text: Case, call: Case, base_model: Path, tmp_path: Path
) -> None:
    recordings = write_recordings([text, call], tmp_path)
    server = Server(programs(str(base_model), recordings, 8540, None)[OURS], tmp_path / "log")
    try:
        server.wait()
        for case in (text, call):
            for stream in (True, False):
                drained = drain(Load(server.port, body(case, stream=stream), 2), server.cpu)
                assert [check(case, one)[0] for one in drained.answers] == ["", ""]
                assert drained.end.cpu > drained.begin.cpu
    finally:
        server.stop()
