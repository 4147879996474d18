"""Keys: how they are shown, whose they are, what is for admins only, and the file that holds them."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from functionary_vllm.api import auth, keys
from functionary_vllm.api.auth import Keys
from functionary_vllm.api.keys import KeysError, digest_of, main, read_keys
from functionary_vllm.errors import AuthenticationFailed, PermissionDenied
from tests.test_serve import ended, serving

ENTRY = "keys:\n- name: one\n  sha256: '{}'\n"


def scope(path: str = "/v1/models", **headers: str) -> dict[str, Any]:
    return {"path": path, "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]}


def write(folder: Path, text: str) -> str:
    path = folder / "keys.yaml"
    path.write_text(text)
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + len(text)))  # file systems' clocks may be coarse
    return str(path)


def entry(key: str, **more: Any) -> str:
    return ENTRY.format(digest_of(key.encode()).hex()) + "".join(f"  {k}: {v}\n" for k, v in more.items())


def test_a_key_is_shown_in_either_header() -> None:
    known = Keys(["a", "b"])
    assert known.check(scope(authorization="Bearer b")).name == "key-2"
    assert known.check(scope(authorization="bearer  a ")).name == "key-1"
    assert known.check(scope(x_api_key="a")).name == "key-1"
    assert known.several


@pytest.mark.parametrize(
    "headers",
    [
        *({}, {"authorization": "Bearer c"}, {"authorization": "Basic a"}, {"x_api_key": "c"}, {"x_api_key": ""}),
        *({"authorization": "Bearer c", "x_api_key": "a"}, {"authorization": "Bearer "}, {"authorization": "a"}),
    ],
)
def test_all_else_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(AuthenticationFailed):
        Keys(["a", "b"]).check(scope(**headers))


def test_health_and_readiness_are_open_and_nothing_that_looks_like_them() -> None:
    known = Keys(["a"])
    for path in ("/health", "/ready"):
        known.check(scope(path))
    for path in ("/metrics", "/health/", "/healthz", "/v1/health", "/docs", "/openapi.json", "//health", "/nowhere"):
        with pytest.raises(AuthenticationFailed):
            known.check(scope(path))


@pytest.mark.parametrize("path", ["/admin", "/admin/anything", "/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_what_changes_the_server_is_for_admins(tmp_path: Path, path: str) -> None:
    file = write(tmp_path, entry("root", admin="true"))
    with pytest.raises(PermissionDenied):
        Keys([]).check(scope(path))  # nobody has a key, so nobody is one
    known = Keys(["user"], file)
    with pytest.raises(PermissionDenied):
        known.check(scope(path, authorization="Bearer user"))
    with pytest.raises(AuthenticationFailed):
        known.check(scope(path))
    assert known.check(scope(path, authorization="Bearer root")).admin


def test_an_entry_has_limits_and_a_ceiling(tmp_path: Path) -> None:
    file = write(tmp_path, entry("k", requests_per_minute=8, tokens_per_minute=100, max_concurrent=4, priority=-5))
    key = Keys([], file, workers=2).check(scope(x_api_key="k"))
    assert (key.name, key.priority, key.admin) == ("one", -5, False)
    assert key.usage is not None
    assert key.usage.limits == keys.Limits(4, 50, 2)  # this process's share


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "list of keys"),
        ("keys: []", "list of keys"),
        ("keys: [", "no YAML"),
        ("keys: [1]", r"keys\[0\]: must be a mapping"),
        ("keys: [{name: a}]", "sha256 must be"),
        (entry("k").replace("one", "'a b'"), "name must be"),
        (entry("k", limits=1), "unknown 'limits'"),
        (entry("k", requests_per_minute=0), "requests_per_minute must be"),
        (entry("k", max_concurrent="true"), "max_concurrent must be"),
        (entry("k", admin="maybe"), "admin must be"),
        (entry("k") + entry("l").removeprefix("keys:\n"), "two keys of the same name"),
        (entry("k") + entry("k").removeprefix("keys:\n").replace("one", "two"), "two keys of the same hash"),
    ],
)
def test_a_broken_file_is_refused_with_the_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(KeysError, match=said):
        Keys([], write(tmp_path, text))


async def test_the_file_is_read_again_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auth, "_LOOK_EVERY_S", 0.001)
    known = Keys([], write(tmp_path, entry("old", requests_per_minute=10)))
    usage = known.check(scope(x_api_key="old")).usage
    assert usage is not None
    usage.begin()
    watch = asyncio.create_task(known.watch())

    async def until(text: str) -> None:
        async with asyncio.timeout(10):
            while text not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    with caplog.at_level("INFO", auth.__name__):
        write(tmp_path, "keys: [")
        await until("The keys stay as they are")
        assert known.check(scope(x_api_key="old")).name == "one"
        write(tmp_path, entry("new", requests_per_minute=10))
        await until("read again: 1")
    watch.cancel()
    with pytest.raises(AuthenticationFailed):
        known.check(scope(x_api_key="old"))
    again = known.check(scope(x_api_key="new")).usage
    assert again is usage  # nothing that was counted is forgotten


def test_keys_are_made_and_hashed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["team"]) == 0
    made = capsys.readouterr().out
    key = made.splitlines()[0].split()[-1]
    assert Keys([], write(tmp_path, f"keys:\n{made}")).check(scope(x_api_key=key)).name == "team"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{key}\n"))
    assert main(["team", "-"]) == 0
    assert capsys.readouterr().out == "".join(made.splitlines(keepends=True)[1:])
    monkeypatch.setattr("sys.stdin", io.StringIO("password\n"))
    assert main(["team", "-"]) == 1
    assert main([]) == 2


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(KeysError, match="cannot be read"):
        read_keys("/nowhere/keys.yaml")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_tls_and_the_keys_file_with_one_process_and_with_several(
    tmp_path: Path, base_model: Path, workers: str
) -> None:
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", private]
    subprocess.run(["openssl", "req", "-x509", *made, "-out", certificate, *subject], check=True, capture_output=True)
    recordings = tmp_path / "recordings.jsonl"
    recordings.write_text('{"id": "hello", "text": "Hello.<|im_end|>"}')
    keys_file = write(tmp_path, entry("one") + entry("two").removeprefix("keys:\n").replace("one", "two"))
    flags = ["--engine", "replay", "--recordings", str(recordings), "--tokenizer", str(base_model)]
    secure = ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(private), "--keys-file", keys_file]
    with serving(*flags, *secure, "--format", "hermes", "--port", "0", "--api-workers", workers) as (_, printed):
        address = re.search(r"https://[\d.]+:\d+", printed)
        assert address, printed
        context = ssl.create_default_context(cafile=certificate)
        with httpx.Client(base_url=address[0], verify=context) as client:
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            refused = client.post("/v1/chat/completions", json=body)
            answers = [client.post("/v1/chat/completions", json=body, headers={"x-api-key": k}) for k in ("one", "two")]
    assert refused.status_code == 401
    assert [answer.json()["choices"][0]["message"]["content"] for answer in answers] == ["Hello."] * 2


@pytest.mark.parametrize(
    "flags", [["--keys-file", "/nowhere/keys.yaml"], ["--ssl-certfile", "/nowhere/cert.pem"], ["--ssl-keyfile", "k"]]
)
def test_files_that_cannot_be_used_end_the_start(flags: list[str], tmp_path: Path) -> None:
    run = ended("--engine", "replay", "--recordings", "r", "--tokenizer", "t", *flags)
    assert run.returncode
    assert run.stderr.startswith("serve.py: ")
    assert len(run.stderr.splitlines()) == 1
    assert flags[0].removeprefix("--") in run.stderr
