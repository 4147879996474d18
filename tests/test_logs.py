"""The log: a line a request with its facts, JSON on demand, and nothing that a client or a model wrote."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from functionary_vllm.serving.logs import REQUESTS, JsonFormatter, TextFormatter
from tests.apps import PATH, TOOLS, WEATHER, ask, call_text, client_of, engine_saying

SECRET = "xyzzy"


@pytest.fixture(params=["json", "text"])
def lines(request: pytest.FixtureRequest) -> Iterator[StringIO]:
    """All that is logged at level info, as the server would write it."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if request.param == "json" else TextFormatter())
    ours, root = logging.getLogger("functionary_vllm"), logging.getLogger()
    before = ours.level
    ours.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)


def the_line(lines: StringIO) -> str:
    (line,) = lines.getvalue().splitlines()
    return line


@pytest.mark.parametrize("lines", ["json"], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_finished_request_is_one_line(lines: StringIO, stream: bool) -> None:
    engine = engine_saying(call_text() + call_text("{}"))
    async with client_of(engine) as client:
        body = {"model": "alias", "messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "stream": stream}
        response = await client.post(PATH, json=body, headers={"x-request-id": "mine-1"})
    usage = {} if stream else response.json()["usage"]
    told = json.loads(the_line(lines))
    times = {key: told.pop(key) for key in list(told) if key.endswith("_ms") or key == "time"}
    assert set(times) == {"time", "duration_ms", "first_token_ms"} | (
        {"function_name_ms", "first_argument_ms"} if stream else set()
    )
    assert times["duration_ms"] >= times["first_token_ms"] > 0
    assert told.pop("prompt_tokens") == usage.get("prompt_tokens", len(engine.requests[0].prompt_ids))
    assert told.pop("completion_tokens") > 10
    assert told == {
        "level": "info",
        "logger": REQUESTS,
        "message": "request",
        "request_id": "mine-1",
        "method": "POST",
        "route": PATH,
        "status": 200,
        "model": "alias",
        "stream": stream,
        "cached_tokens": 0,
        "finish_reasons": ["tool_calls"],
        "calls": {"valid": 1, "schema_violation": 1},
    }


@pytest.mark.parametrize("lines", ["text"], indirect=True)
async def test_a_line_for_people(lines: StringIO) -> None:
    response = await ask(engine_saying(call_text()), tools=TOOLS, stream=True)
    line = the_line(lines)
    assert f" INFO {REQUESTS}: request request_id={response.headers['x-request-id']} method=POST route={PATH}" in line
    assert " status=200 " in line
    assert ' finish_reasons=["tool_calls"] calls={"valid":1} ' in line


@pytest.mark.parametrize("lines", ["json"], indirect=True)
async def test_watchers_fill_no_log(lines: StringIO) -> None:
    async with client_of(engine_saying("Hi")) as client:
        for path in ("/health", "/metrics", "/v1/models"):
            await client.get(path)
    assert json.loads(the_line(lines))["route"] == "/v1/models"


@pytest.mark.parametrize("lines", ["json"], indirect=True)
async def test_an_error_is_told_by_its_code(lines: StringIO) -> None:
    engine = engine_saying("Hello")
    engine.scripts = [[*engine.play("Hello")[:2], ZeroDivisionError("a")]]
    await ask(engine, stream=True)
    await ask(engine, temperature=9)
    failed, _, broken, refused = map(json.loads, lines.getvalue().splitlines())
    assert (failed["level"], failed["exception"].splitlines()[-1]) == ("error", "ZeroDivisionError")
    assert 'File "' in failed["exception"]
    assert (broken["status"], broken["error"], broken["request_id"] in failed["message"]) == (
        200,
        "internal_error",
        True,
    )
    assert (refused["status"], refused["error"]) == (400, "invalid_value")


@pytest.mark.parametrize("stream", [False, True])
async def test_no_line_holds_what_a_client_or_a_model_wrote(lines: StringIO, stream: bool) -> None:
    name = f"get_{SECRET}"
    function = {**WEATHER, "description": SECRET, "name": name}
    call = {"id": SECRET, "type": "function", "function": {"name": name, "arguments": f'{{"a": "{SECRET}"}}'}}
    asked: dict[str, Any] = {
        "messages": [
            {"role": "system", "content": SECRET},
            {"role": "user", "name": SECRET, "content": SECRET},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": SECRET, "content": SECRET},
        ],
        "tools": [{"type": "function", "function": function}],
        "user": SECRET,
        "metadata": {SECRET: SECRET},
        "stop": SECRET,
        "stream": stream,
    }
    said = f"{SECRET[:3]} " + call_text(f'{{"city": "{SECRET}x"}}', name)
    answered = await ask(engine_saying(said, step=4), **asked)
    assert answered.status_code == 200
    failing = engine_saying(said)
    failing.scripts = [[*failing.play(said)[:9], ValueError(SECRET)], [KeyError(SECRET)]]
    await ask(failing, **asked)
    await ask(failing, **asked)
    refusals = [
        {"model": SECRET},
        {"messages": [{"role": SECRET, "content": ""}]},
        {"tool_choice": {"type": "function", "function": {"name": SECRET}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": SECRET}}}},
        {"messages": SECRET},
    ]
    for refused in refusals:
        assert 400 <= (await ask(failing, **asked | refused)).status_code < 500
    async with client_of(failing) as client:
        await client.get(f"/{SECRET}?{SECRET}")
        await client.post(PATH, content=f'{{"{SECRET}', headers={"content-type": "application/json"})
    text = lines.getvalue()
    assert len(text.splitlines()) >= 10
    assert SECRET not in text


@pytest.mark.parametrize(("flags", "shown"), [([], False), (["--access-log"], True), (["--log-format", "json"], True)])
def test_what_is_set_up(flags: list[str], shown: bool, tmp_path: Path) -> None:
    program = (
        "import logging, os, sys\n"
        "from functionary_vllm.serving.server import set_up_logging\n"
        "from functionary_vllm.settings import read_settings\n"
        "set_up_logging(read_settings(sys.argv[1:], {}))\n"
        "logging.getLogger('functionary_vllm.requests').info('request', extra={'request': {'status': 200}})\n"
        "logging.getLogger('somebody').warning('careful')\n"
        "if path := os.environ.get('VLLM_LOGGING_CONFIG_PATH'):\n"
        "    import json, logging.config\n"
        "    os.environ['VLLM_LOGGING_LEVEL'] = 'WARNING'\n"
        "    logging.config.dictConfig(json.load(open(path)))\n"
        "    logging.getLogger('vllm.engine').info('not asked for')\n"
        "    logging.getLogger('vllm.engine').warning('from vLLM')\n"
    )
    environ = {"PATH": "", "TMPDIR": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", program, *flags], capture_output=True, text=True, check=True, timeout=60, env=environ
    )
    written = run.stderr.splitlines()
    if "json" in flags:
        written = [f"{told['message']} {told.get('status')}" for told in map(json.loads, written)]
        assert written == ["request 200", "careful None", "from vLLM None"]
        assert not list(tmp_path.iterdir())  # what vLLM was told goes with the server
    else:
        assert [line.split(": ", 1)[1] for line in written] == ["request status=200"] * shown + ["careful"]
