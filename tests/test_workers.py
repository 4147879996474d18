"""serve.py with several API workers, over real sockets: who gets what, what is counted, and how it all ends."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from functionary_vllm.settings import Settings, SettingsError, read_settings
from tests.test_serve import children, ended, is_running, pasted, serving

WORKERS = 2
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")


def call(city: str) -> str:
    return f'<tool_call>\n{{"name": "get_weather", "arguments": {{"city": "{city}"}}}}\n</tool_call><|im_end|>'


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the server keeps its temporary files; a short path, as Unix sockets want it."""
    with TemporaryDirectory(prefix="fv-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def replay(temporary: Path, tmp_path: Path, base_model: Path) -> list[str]:
    """Each worker answers with Paris first and with Rome then; `slow` takes seconds."""
    recordings = [
        {"id": "paris", "text": call("Paris")},
        {"id": "rome", "text": call("Rome")},
        {"id": "slow", "text": "word " * 20 + "end.<|im_end|>", "interval_ms": 100},
    ]
    file = tmp_path / "recordings.jsonl"
    file.write_text("".join(json.dumps(recording) + "\n" for recording in recordings))
    flags = ["--engine", "replay", "--recordings", str(file), "--tokenizer", str(base_model), "--format", "hermes"]
    return [*flags, "--port", "0", "--api-workers", str(WORKERS)]


def all_gone(processes: list[int]) -> bool:
    deadline = time.monotonic() + 60
    while any(is_running(pid) for pid in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def counted(metrics: str, name: str) -> float:
    """The sum over all labels."""
    return sum(float(line.split()[-1]) for line in metrics.splitlines() if line.startswith((f"{name} ", f"{name}{{")))


def test_settings() -> None:
    assert Settings().api_workers == 1
    assert read_settings(["--api-workers", "4"], {}).api_workers == 4
    assert read_settings([], {"FUNCTIONARY_VLLM_API_WORKERS": "2"}).api_workers == 2
    with pytest.raises(SettingsError, match="api-workers must be a whole number of at least 1"):
        read_settings(["--api-workers", "0"], {})


def test_one_worker_is_no_worker(replay: list[str], temporary: Path) -> None:
    with serving(*replay[:-1], "1") as (process, printed):
        assert children(process.pid) == []
        assert list(temporary.iterdir()) == []
        assert "process_cpu_seconds_total" in httpx.get(f"{pasted(printed)[0]}/metrics").text


def test_connections_are_dealt_evenly_and_counted_together(replay: list[str]) -> None:
    with serving(*replay) as (_, printed), ExitStack() as stack:
        assert printed.count("is served at") == printed.count("Format hermes") == 1
        base, body = pasted(printed)
        clients = [stack.enter_context(httpx.Client(base_url=base)) for _ in range(2 * WORKERS)]
        answers = [client.post("/v1/chat/completions", json=body).json() for client in clients]
        calls = [answer["choices"][0]["message"]["tool_calls"][0] for answer in answers]
        cities = [json.loads(call["function"]["arguments"])["city"] for call in calls]
        assert cities == ["Paris"] * WORKERS + ["Rome"] * WORKERS  # each worker plays its recordings in turn
        for client in clients:
            metrics = client.get("/metrics").text
            assert counted(metrics, "functionary_calls_total") == len(clients)
            assert counted(metrics, "functionary_requests_running") == 0
            assert counted(metrics, "functionary_format_info") == 1
            assert "pid=" not in metrics


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_end_and_leaves_nothing(replay: list[str], temporary: Path, number: int) -> None:
    with serving(*replay) as (process, printed):
        base, body = pasted(printed)
        del body["tools"], body["tool_choice"], body["parallel_tool_calls"]
        started = children(process.pid)
        asked = {**body, "stream": True, "metadata": {"recording": "slow"}}
        with ExitStack() as stack:
            streams = [
                stack.enter_context(httpx.stream("POST", f"{base}/v1/chat/completions", json=asked, timeout=30))
                for _ in range(WORKERS)
            ]
            lines = [stream.iter_lines() for stream in streams]
            assert [next(line) for line in lines]
            assert counted(httpx.get(f"{base}/metrics").text, "functionary_requests_running") == WORKERS
            process.send_signal(number)
            assert [[text for text in line if text][-1] for line in lines] == ["data: [DONE]"] * WORKERS
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "Traceback" not in rest
        assert all_gone(started)
        assert list(temporary.iterdir()) == []


def test_a_worker_that_dies_ends_the_whole_with_a_reason(replay: list[str], temporary: Path) -> None:
    with serving(*replay) as (process, _):
        started = children(process.pid)
        worker = started[-1]
        os.kill(worker, signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        last = rest.strip().splitlines()[-1]
        assert last == (f"serve.py: API worker 1 (process {worker}) was killed by signal 9; the server ends with it.")
        assert all_gone(started)
        assert list(temporary.iterdir()) == []


def test_workers_end_with_a_parent_that_is_killed(replay: list[str], temporary: Path) -> None:
    with serving(*replay) as (process, _):
        started = children(process.pid)
        process.kill()
        assert all_gone(started)
        assert list(temporary.iterdir()) == []


def test_a_unix_socket(replay: list[str], temporary: Path) -> None:
    path = temporary / "socket"
    with serving(*replay, "--uds", str(path)) as (_, printed):
        assert f"--unix-socket {path} " in printed
        for _ in range(WORKERS):
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
                assert client.get("http://localhost/ready").status_code == 200


def test_why_workers_do_not_start_is_told_once(replay: list[str], tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "recordings.jsonl").write_text("{")
    result = ended(*replay)
    assert result.returncode == 2
    assert "recordings.jsonl, line 1: " in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(temporary.iterdir()) == []


@pytest.mark.engine
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_workers_share_one_engine_and_end_with_it(temporary: Path) -> None:
    flags = ["--port", "0", "--api-workers", str(WORKERS), "--kv-cache-memory-bytes", str(1024**3)]
    with serving(*flags) as (process, printed), ExitStack() as stack:
        base, body = pasted(printed)
        clients = [stack.enter_context(httpx.Client(base_url=base, timeout=120)) for _ in range(WORKERS)]
        for client in clients:
            answer = client.post("/v1/chat/completions", json={**body, "max_tokens": 64}).json()
            assert json.loads(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"])
        metrics = clients[0].get("/metrics").text
        assert counted(metrics, "vllm:prompt_tokens_total") == WORKERS * answer["usage"]["prompt_tokens"]
        assert counted(metrics, "functionary_calls_total") == WORKERS
        started = children(process.pid)
        names = {Path(f"/proc/{pid}/comm").read_text().strip(): pid for pid in started}
        os.kill(names["VLLM::EngineCor"], signal.SIGKILL)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Traceback" not in rest
        assert all_gone(started)
        assert not list(temporary.glob("api-*"))
