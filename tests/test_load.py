"""benchmarks/folding, client, load: each broken stream and failure has its name, and a run leaves its lines."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import parse, run_load
from benchmarks.loadgen.client import Client, Record, endpoint
from benchmarks.loadgen.figures import Run, read_run, summary
from benchmarks.loadgen.folding import Answer, Called, EventStream, StreamFold, call_problems, fold_whole
from functionary_vllm.engine.replay import Recording, ReplayEngine
from tests.apps import call_text, served, tokenizer

USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
ASKED = {"stream_options": {"include_usage": True}, "max_tokens": 9}


def chunk(finish: str | None = None, *, usage: Any = None, id: str = "x", **delta: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": finish}] if usage is None else []
    return {"id": id, "object": "chat.completion.chunk", "choices": choices, "usage": usage}


def call(arguments: str, index: int | None = 0, **head: Any) -> dict[str, Any]:
    """A piece of a call, as a delta's tool_calls; with `id` and `name` it opens one."""
    function = {"arguments": arguments} | ({"name": head.pop("name")} if "name" in head else {})
    return {"tool_calls": [({"index": index} if index is not None else {}) | head | {"function": function}]}


ROLE = chunk(role="assistant", content="")
OPEN = chunk(**call("", id="c0", name="f"))
REST = [chunk(**call('{"a": ')), chunk(**call("1}")), chunk("tool_calls")]
END = [chunk(usage=USAGE), "[DONE]"]
GOOD = [ROLE, OPEN, *REST, *END]


def folded(events: list[Any], asked: dict[str, Any] = ASKED) -> tuple[StreamFold, list[Answer]]:
    fold = StreamFold(asked)
    for at, event in enumerate(events):
        fold.feed(event.encode() if isinstance(event, str) else json.dumps(event).encode(), float(at))
    return fold, fold.finish()


def test_a_good_stream_is_folded_and_timed() -> None:
    fold, answers = folded([ROLE, chunk(content="So: "), OPEN, *REST, *END])
    assert fold.problems == []
    assert answers == [Answer("So: ", "", [Called("f", '{"a": 1}')], "tool_calls")]
    assert (fold.first_token, fold.name, fold.argument, fold.chunks) == (1.0, 2.0, 3.0, 4)
    assert fold.gaps == [1.0, 1.0, 1.0]
    assert fold.usage == USAGE


SECOND = chunk(**call("{}", 1, id="c1", name="g"))


@pytest.mark.parametrize(
    ("problem", "events"),
    [
        ("no role in the first chunk", [OPEN, *REST, *END]),
        ("the role comes twice", [ROLE, ROLE, OPEN, *REST, *END]),
        ("the id changes", [ROLE, OPEN, *REST, chunk(usage=USAGE, id="y"), "[DONE]"]),
        ("call indexes out of order", [ROLE, chunk(**call("{}", 1, id="c0", name="f")), REST[-1], *END]),
        ("call indexes out of order", [ROLE, OPEN, SECOND, *REST, *END]),
        ("a call without an index", [ROLE, OPEN, chunk(**call("{}", None)), REST[-1], *END]),
        ("a call without an id", [ROLE, chunk(**call("{}", name="f")), REST[-1], *END]),
        ("a call without a name", [ROLE, chunk(**call("{}", id="c0")), REST[-1], *END]),
        ("a call's id changes", [ROLE, OPEN, chunk(**call("{}", id="c1")), REST[-1], *END]),
        ("a call's name comes twice", [ROLE, OPEN, chunk(**call("{}", name="f")), REST[-1], *END]),
        ("arguments that are no JSON", [ROLE, OPEN, REST[0], REST[-1], *END]),
        ("arguments that are no JSON", [ROLE, OPEN, SECOND, chunk("length"), *END]),
        ("a finish reason of calls, and no call", [ROLE, chunk("tool_calls", content="x"), *END]),
        ("no finish reason", [ROLE, OPEN, *REST[:-1], *END]),
        ("two finish reasons", [ROLE, OPEN, *REST, chunk("stop"), *END]),
        ("something after the finish reason", [ROLE, chunk("stop"), chunk(content="x"), *END]),
        ("an event after [DONE]", [*GOOD, ROLE]),
        ("an event that is no JSON", [ROLE, "{", OPEN, *REST, *END]),
        ("a chunk of another form", [*GOOD[:-1], {"id": "x"}, "[DONE]"]),
        ("a chunk of another form", [*GOOD[:-1], [], "[DONE]"]),
        ("0 choices instead of 1", END),
        ("no usage", [ROLE, OPEN, *REST, "[DONE]"]),
        ("a usage of another form", [ROLE, OPEN, *REST, chunk(usage={"total_tokens": 8}), "[DONE]"]),
        ("a usage that does not add up", [ROLE, OPEN, *REST, chunk(usage={**USAGE, "total_tokens": 9}), "[DONE]"]),
        (
            "a usage above max_tokens",
            [ROLE, OPEN, *REST, chunk(usage={**USAGE, "completion_tokens": 10, "total_tokens": 13}), "[DONE]"],
        ),
    ],
)
def test_each_way_to_break_a_stream_is_told(problem: str, events: list[Any]) -> None:
    assert folded(events)[0].problems == [problem]


def test_what_is_cut_may_be_no_json() -> None:
    fold, _ = folded([ROLE, OPEN, REST[0], chunk("length"), *END])
    assert fold.problems == []


def test_the_older_functions_are_folded_too() -> None:
    pieces = [chunk(function_call={"name": "f", "arguments": ""}), chunk(function_call={"arguments": "{}"})]
    fold, answers = folded([ROLE, *pieces, chunk("function_call"), *END])
    assert fold.problems == []
    message = {"content": None, "function_call": {"name": "f", "arguments": "{}"}}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "function_call"}]}
    assert answers == fold_whole(whole)
    assert list(call_problems(answers)) == []


def test_ids_do_not_count_when_answers_are_compared() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    message = {"content": None, "tool_calls": [{"id": "another", "type": "function", "function": function}]}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    assert folded(GOOD)[1] == fold_whole(whole)
    function["arguments"] = '{"a":1}'
    assert folded(GOOD)[1] != fold_whole(whole)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "choices", "index", "delta", "tool_calls", "function", "name", "arguments", "usage"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(st.lists(json_values, max_size=4))
def test_nothing_that_is_fed_raises(events: list[Any]) -> None:
    fold, _ = folded([ROLE, *events, "[DONE]"])
    for event in events:
        folded([chunk(content=event), chunk(tool_calls=event), chunk(usage=event), "[DONE]"])
    assert isinstance(fold.problems, list)


@given(st.lists(st.integers(0, 80)), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int], line_end: str) -> None:
    text = ': hello\n\ndata: {"a": "é"}\n\nevent: x\ndata:{\ndata: }\nid: 1\n\ndata: [DONE]\n\ndata: cut'
    raw = text.replace("\n", line_end).encode()
    stream, edges = EventStream(), [0, *sorted(cuts), len(raw)]
    found = [event for i in range(len(edges) - 1) for event in stream.feed(raw[edges[i] : edges[i + 1]])]
    assert found == ['{"a": "é"}'.encode(), b"{\n}", b"[DONE]"]


@pytest.mark.parametrize("url", ["h:1", "http://h:1", "http://h:1/v1/", "http://h:1/v1/chat/completions"])
def test_an_address_may_be_written_in_all_ways(url: str) -> None:
    assert endpoint(url, "/chat/completions") == "http://h:1/v1/chat/completions"


# ---- failures, on a socket


def sse(*events: Any, ended: bool = True) -> bytes:
    body = b"".join(
        b"data: " + (e.encode() if isinstance(e, str) else json.dumps(e).encode()) + b"\n\n" for e in events
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    return head + b"Connection: close\r\n\r\n" + b"%x\r\n%b\r\n" % (len(body), body) + (b"0\r\n\r\n" if ended else b"")


def plain(status: str, body: bytes = b"no") -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (
        status.encode(),
        len(body),
        body,
    )


@asynccontextmanager
async def answering(answer: bytes | None, delay: float = 0.0, asked: Any = None) -> AsyncIterator[str]:
    """A server that says this to each request and closes; None: it never answers. `asked` is set by the first."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
        if asked is not None:
            asked.set()
        if answer is None:
            await reader.read()  # until the client leaves
        else:
            await asyncio.sleep(delay)
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def asked_of(url: str, timeout_s: float = 20.0, **body: Any) -> tuple[Record, list[Answer]]:
    async with aiohttp.ClientSession() as http:
        record = Record(0, 0, 0.0)
        return record, await Client(http, url, timeout_s).ask({"stream": True, **ASKED, **body}, record)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (None, sse(*GOOD)),
        ("429", plain("429 Too Many Requests")),
        ("4xx", plain("404 Not Found")),
        ("5xx", plain("503 Service Unavailable")),
        ("status", plain("204 No Content", b"")),
        ("not a chat answer", plain("200 OK")),
        ("not a chat answer", b"nonsense\r\n\r\n"),
        ("disconnected", b""),
        ("stream error", sse(ROLE, {"error": {"message": "out of memory"}}, "[DONE]")),
        ("stream error", sse(ROLE, {"error": {"message": "out of memory"}})),
        ("cut", sse(*GOOD[:-1])),
        ("cut", sse(*GOOD[:-1], ended=False)),
    ],
)
async def test_each_failure_has_its_kind(error: str | None, answer: bytes) -> None:
    async with answering(answer) as url:
        record, answers = await asked_of(url)
    assert record.error == error
    assert record.problems == []
    if error is None:
        assert answers == folded(GOOD)[1]
        assert (record.tokens_in, record.tokens_out, record.calls) == (3, 5, [["f", '{"a": 1}']])
        assert 0 < record.sent < record.first_byte <= record.first_token <= record.argument <= record.end  # type: ignore[operator]
    if error == "stream error":
        assert record.message == "out of memory"


async def test_no_server_no_answer_and_no_json() -> None:
    async with answering(None) as url:
        assert (await asked_of(url, timeout_s=0.1))[0].error == "timeout"
    assert (await asked_of(url))[0].error == "connect"  # it is closed now
    async with answering(plain("200 OK", b'{"choices": []')) as url:
        assert (await asked_of(url, stream=False))[0].error == "not a chat answer"


async def run_with(tmp_path: Path, url: str, *flags: str) -> Run:
    path = tmp_path / "run.jsonl"
    assert await run_load(parse(["--url", url, "--output", str(path), *flags])) == path
    return read_run(path)


async def test_what_could_not_be_sent_is_missed(tmp_path: Path) -> None:
    flags = ["--profile", "agent", "--turns", "60", "--rate", "1000", "--arrival", "constant", "--requests", "4"]
    async with answering(sse(*GOOD), delay=0.02) as url:
        run = await run_with(
            tmp_path, url, *flags, "--concurrency", "1", "--timeout", "0.8", "--model", "m", "--words", "5"
        )
    first = [record for record in run.records if record.session == 0]
    assert [record.turn for record in first] == list(range(60))
    for before, record in itertools.pairwise(first):
        assert record.planned >= before.end  # a turn is planned when the former was answered
    others = [(record.session, record.planned, record.error, record.sent) for record in run.records if record.session]
    assert sorted(others) == [(i, i / 1000, "missed", None) for i in (1, 2, 3)]
    assert run.end["turns_unreached"] == 3 * 59


async def test_latency_counts_from_the_plan(tmp_path: Path) -> None:
    flags = ["--profile", "chat", "--rate", "1000", "--arrival", "constant", "--requests", "5", "--concurrency", "1"]
    async with answering(sse(ROLE, chunk("stop", content="x"), *END), delay=0.02) as url:
        run = await run_with(tmp_path, url, *flags, "--model", "m")
    assert [record.planned for record in run.records] == [0.0, 0.001, 0.002, 0.003, 0.004]
    # One at a time, 20 ms each: the last waits for four others, whatever its own exchange took.
    assert run.records[-1].end - run.records[-1].planned >= 5 * 0.02 - 0.004
    found = summary(run)
    assert found["late"] == 4
    assert found["latency"]["e2e"]["max"] >= 96


@pytest.mark.parametrize("mode", [["--rate", "200"], ["--concurrency", "5"]])
async def test_ctrl_c_ends_with_what_was_done(tmp_path: Path, mode: list[str]) -> None:
    asked = asyncio.Event()

    async def press() -> None:
        await asked.wait()
        os.kill(os.getpid(), signal.SIGINT)

    async with answering(None, asked=asked) as url:
        pressing = asyncio.create_task(press())
        run = await run_with(tmp_path, url, "--model", "m", "--duration", "60", *mode)
        await pressing
    assert run.end["interrupted"] is True
    assert {record.error for record in run.records} == {"interrupted"}
    assert len(run.records) == run.end["sessions"]


# ---- the whole way, against our own server


def replayed(*texts: str, interval: float = 0.0) -> ReplayEngine:
    ids = [tokenizer().encode(text, add_special_tokens=False) for text in texts]
    recordings = [Recording(str(i), tuple(tokens), interval=interval) for i, tokens in enumerate(ids)]
    return ReplayEngine(recordings, tokenizer())


@pytest.mark.parametrize(
    ("profile", "flags", "requests"),
    [
        ("tools", ["--rate", "100"], 12),
        ("parallel", ["--arrival", "burst", "--rate", "100", "--burst", "4"], 12),
        ("agent", ["--concurrency", "3", "--turns", "3", "--shared-prefix", "50"], 36),
        ("tools", ["--concurrency", "3", "--no-stream"], 12),
        ("tools", ["--concurrency", "3", "--legacy-functions"], 12),
    ],
)
async def test_a_run_against_our_server(tmp_path: Path, profile: str, flags: list[str], requests: int) -> None:
    text = call_text('{"city": "Istanbul"}')
    with served(replayed("Let me see. " + text)) as url:
        run = await run_with(
            tmp_path, url, "--profile", profile, "--requests", "12", "--words", "5:20", "--max-tokens", "500", *flags
        )
    assert run.about["model"] == "fake"
    assert run.end["interrupted"] is False
    assert len(run.records) == requests
    for record in run.records:
        assert (record.error, record.problems, record.status) == (None, [], 200)
        assert record.calls == [["get_weather", '{"city": "Istanbul"}']]
        assert record.tokens_out
        assert len(record.gaps) == max(0, record.chunks - 1)
        assert (record.name is None) == ("--no-stream" in flags)


async def test_streams_are_compared_with_the_whole_answer(tmp_path: Path) -> None:
    flags = ["--profile", "chat", "--concurrency", "1", "--requests", "2", "--verify-whole", "1"]
    with served(replayed("The same.")) as url:
        same = await run_with(tmp_path, url, *flags)
    with served(replayed("This is said.", "That is meant.")) as url:  # in turn
        differs = await run_with(tmp_path, url, *flags)
    assert [line["outcome"] for line in same.verified] == ["same", "same"]
    assert [line["outcome"] for line in differs.verified] == ["differs", "differs"]
    line = differs.verified[0]
    assert (line["session"], line["turn"]) == (0, 0)
    assert (line["streamed"][0]["content"], line["whole"][0]["content"]) == ("This is said.", "That is meant.")


async def test_the_file_is_what_the_documentation_says(tmp_path: Path) -> None:
    with served(replayed("Hello.")) as url:
        await run_with(
            tmp_path, url, "--profile", "chat", "--requests", "2", "--verify-whole", "1", "--api-key", "SECRET"
        )
    text = (tmp_path / "run.jsonl").read_text()
    assert "SECRET" not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["type"] for line in lines] == ["run", *["request", "verify"] * 2, "end"]
    documented = (Path(__file__).parents[1] / "docs" / "load-testing.md").read_text()
    for name in {name for line in lines for name in line if line["type"] in ("request", "end", "verify")}:
        assert f"`{name}`" in documented, name


@pytest.mark.parametrize(
    "flags",
    [
        ["--arrival", "poisson"],
        ["--tool-choice", "required", "--legacy-functions"],
        ["--verify-whole", "0.1", "--no-stream"],
        ["--verify-whole", "0.1", "--temperature", "1"],
        ["--tools", "5:2"],
        ["--slo", "speed=1"],
    ],
)
def test_flags_that_do_not_go_together(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--url", "x", *flags])
    assert "error" in capsys.readouterr().err


def test_defaults() -> None:
    find: Callable[..., Any] = lambda *flags: parse(["--url", "x", *flags])  # noqa: E731
    assert (find().arrival, find().concurrency, find().duration) == ("closed", 1, 60.0)
    assert find("--rate", "2").arrival == "poisson"
    assert find("--requests", "5").duration == float("inf")
    assert find("--verify-whole", "0.5").temperature == 0.0
