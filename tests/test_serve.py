"""serve.py as a process, with the replay engine: what is printed, how it ends, and what it refuses in one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from functionary_vllm.models.builtin import BUILTIN_NAME

ROOT = Path(__file__).resolve().parents[1]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>'


def environment() -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FUNCTIONARY_VLLM_")}
    if cache := os.environ.get("FUNCTIONARY_VLLM_CACHE"):
        clean["FUNCTIONARY_VLLM_CACHE"] = cache
    return {**clean, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "serve.py"), *flags]


@pytest.fixture
def replay(tmp_path: Path, base_model: Path) -> list[str]:
    """Flags that need no model: one recorded call, on a port that the system chooses."""
    recordings = tmp_path / "recordings.jsonl"
    recordings.write_text(json.dumps({"id": "call", "text": CALL}))
    flags = ["--engine", "replay", "--recordings", str(recordings), "--tokenizer", str(base_model)]
    return [*flags, "--format", "hermes", "--port", "0"]


@contextmanager
def serving(*flags: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and all that it printed until it answered."""
    process = subprocess.Popen(
        command(*flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )
    watchdog = threading.Timer(400, process.kill)
    watchdog.start()
    try:
        assert process.stdout
        last = "}'" if "--uds" in flags else "print(answer.choices[0].message.tool_calls)"
        printed = ""
        for line in process.stdout:
            printed += line
            if line.strip() == last:
                break
        yield process, printed
    finally:
        watchdog.cancel()
        process.terminate()
        process.communicate()


def ended(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*flags), capture_output=True, text=True, timeout=60, env={**environment(), **variables}
    )


def pasted(printed: str) -> tuple[str, dict[str, Any]]:
    """The address and the body of the curl command that was printed."""
    found = re.search(r"(http://\S+)/v1/chat/completions .*? -d '(.*?)'", printed, re.DOTALL)
    assert found, printed
    return found[1], json.loads(found[2])


def test_the_printed_request_works(replay: list[str]) -> None:
    with serving(*replay, "--served-model-name", "weather") as (_, printed):
        assert " INFO functionary_vllm.serving.launch: Format hermes, because it is set.\n" in printed
        base, body = pasted(printed)
        answer = httpx.post(f"{base}/v1/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {
            "name": "get_weather",
            "arguments": '{"city": "Paris"}',
        }
        assert answer["model"] == "weather"
        # The Python request, with its print replaced by something that can be compared.
        lines = [line[2:] for line in printed.splitlines() if line.startswith("  ")]
        code = "\n".join(lines[lines.index("from openai import OpenAI") :])
        names: dict[str, Any] = {}
        exec(code.replace("print(", "calls = ("), names)
        assert names["calls"][0].function.name == "get_weather"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_without_a_trace(replay: list[str], number: int) -> None:
    with serving(*replay) as (process, _):
        process.send_signal(number)
        rest, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert "Traceback" not in rest


def test_a_unix_socket(replay: list[str], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(*replay, "--uds", str(path)) as (_, printed):
        assert f"--unix-socket {path} " in printed
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            assert client.get("http://localhost/health").status_code == 200


def test_a_key_is_asked_for_and_not_shown(replay: list[str]) -> None:
    with serving(*replay, "--api-key", "hush-hush") as (_, printed):
        base, body = pasted(printed)
        assert "Bearer YOUR-KEY" in printed
        assert "hush-hush" not in printed
        assert httpx.post(f"{base}/v1/chat/completions", json=body).status_code == 401
        shown = {"Authorization": "Bearer hush-hush"}
        assert httpx.post(f"{base}/v1/chat/completions", json=body, headers=shown).status_code == 200


def test_a_port_in_use_is_told_before_anything_is_loaded(replay: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # No such recordings: had they been looked at first, this would be the complaint.
        result = ended("--engine", "replay", "--recordings", "none", "--tokenizer", "none", "--port", str(port))
    assert result.returncode == 2
    assert result.stderr == f"serve.py: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "x"], "port must be a whole number"),
        (["--config", "none.yaml"], "none.yaml cannot be read"),
        (["--format", "nope"], "There is no format 'nope'"),
        (["--host", "nowhere.invalid"], "cannot listen on nowhere.invalid"),
        (["--uds", "/nowhere/socket"], "cannot listen on /nowhere/socket"),
        (["--engine", "replay", "--recordings", "none", "--tokenizer", "/nowhere", "--port", "0"], "The tokenizer"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(flags: list[str], message: str) -> None:
    result = ended(*flags)
    assert result.returncode == 2
    assert result.stderr.startswith("serve.py: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_bad_recordings_are_told_with_their_line(replay: list[str], tmp_path: Path) -> None:
    (tmp_path / "recordings.jsonl").write_text("{")
    result = ended(*replay)
    assert result.returncode == 2
    assert "recordings.jsonl, line 1: " in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_needs_no_engine() -> None:
    result = ended("--help")
    assert result.returncode == 0
    assert "--recordings" in result.stdout


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`, as Linux lists them: by the thread that started them."""
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return sorted(int(child) for file in lists for child in file.read_text().split())


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_real_engine_answers_and_leaves_no_process_behind(builtin_model: Path, number: int) -> None:
    with serving("--port", "0") as (process, printed):
        assert "importing vLLM" in printed
        base, body = pasted(printed)
        answer = httpx.post(f"{base}/v1/chat/completions", json={**body, "max_tokens": 64}, timeout=120).json()
        assert "choices" in answer, answer
        assert json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
        assert answer["model"] == BUILTIN_NAME
        metrics = httpx.get(f"{base}/metrics").text
        assert f'vllm:generation_tokens_total{{engine="0",model_name="{BUILTIN_NAME}"}}' in metrics
        started = children(process.pid)
        assert started
        process.send_signal(number)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        assert "Traceback" not in rest
        deadline = time.monotonic() + 60
        while any(is_running(pid) for pid in started):  # an orphan takes its time to come apart
            assert time.monotonic() < deadline, started
            time.sleep(0.1)
