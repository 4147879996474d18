"""serving/ and engine/startup.py where no engine is needed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from functionary_vllm.engine import startup
from functionary_vllm.engine.startup import Progress, StartError, prepare_environment
from functionary_vllm.models.builtin import ModelUnavailable
from functionary_vllm.serving import launch
from functionary_vllm.serving.server import ListenError, listen
from functionary_vllm.serving.welcome import welcome
from functionary_vllm.settings import Settings

QUIET = ("VLLM_LOGGING_LEVEL", "PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL", "TORCH_LOGS")
ALWAYS = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_WORKER_MULTIPROC_METHOD")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with nothing in it, in place of the real one."""
    empty: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", empty)
    return empty


def names(environment: dict[str, str]) -> set[str]:
    return {name for name in environment if not name.startswith("PYTEST_")}  # pytest writes one of its own


def test_nothing_leaves_the_machine_and_little_is_logged(environment: dict[str, str]) -> None:
    prepare_environment("someone/model", verbose=False)
    assert names(environment) == {*QUIET, *ALWAYS}


def test_verbose_keeps_the_log(environment: dict[str, str]) -> None:
    prepare_environment("someone/model", verbose=True)
    assert names(environment) == set(ALWAYS)


def test_a_local_folder_needs_no_hub(environment: dict[str, str], tmp_path: Path) -> None:
    prepare_environment(str(tmp_path), verbose=True)
    assert environment["HF_HUB_OFFLINE"] == "1"


def test_what_is_set_already_stays(environment: dict[str, str]) -> None:
    environment["VLLM_LOGGING_LEVEL"] = "DEBUG"
    prepare_environment("someone/model", verbose=False)
    assert environment["VLLM_LOGGING_LEVEL"] == "DEBUG"


def test_progress_repeats_itself_while_something_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "_REPORT_EVERY_S", 0.001)
    with Progress().running() as progress:
        progress.say("waiting")
        shown = ""
        while "... still waiting" not in shown:
            shown += capsys.readouterr().err
    assert shown.splitlines()[0].endswith(" s] waiting")


def test_the_builtin_model_stands_in_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functionary_vllm.models.ensure_builtin", lambda: Path("/cache/builtin"))
    settings = launch.with_model(Settings())
    assert (settings.model, settings.format) == ("/cache/builtin", "hermes")
    assert settings.served_model_names == ("smollm2-135m-instruct", "functionary")
    named = launch.with_model(Settings(format="functionary-v2", served_model_names=("x",)))
    assert (named.format, named.served_model_names) == ("functionary-v2", ("x",))


def test_a_model_is_served_under_its_own_name() -> None:
    assert launch.with_model(Settings(model="a/b")) == Settings(model="a/b", served_model_names=("a/b",))
    replay = Settings(engine="replay", recordings="r", tokenizer="t")
    assert launch.with_model(replay).served_model_names == ("replay",)


def test_a_builtin_model_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Path:
        raise ModelUnavailable("the package is not installed")

    monkeypatch.setattr("functionary_vllm.models.ensure_builtin", missing)
    with pytest.raises(StartError, match="not installed"):
        launch.with_model(Settings())


def test_flags_that_reach_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str], bool]] = []
    monkeypatch.setattr(launch, "start_vllm", lambda model, argv, verbose: seen.append((model, argv, verbose)))
    launch.start_engine(
        Settings(model="m", tokenizer="t", served_model_names=("a", "b"), engine_args=("--seed=1",), verbose=True)
    )
    assert seen == [("m", ["--served-model-name", "a", "--tokenizer", "t", "--seed=1"], True)]


def test_a_tokenizer_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot be used") as caught:
        startup.start_replay("recordings.jsonl", str(tmp_path))
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)


def test_the_socket_is_bound_but_does_not_listen_yet() -> None:
    listener = listen(Settings(port=0))
    assert listener is not None
    with listener:
        assert listener.getsockname()[1] > 0
        assert not listener.getsockopt(1, 30)  # SOL_SOCKET, SO_ACCEPTCONN


def test_a_unix_socket_does_not_replace_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert listen(Settings(uds=str(path))) is None
    path.write_text("mine")
    with pytest.raises(ListenError, match="there is a file"):
        listen(Settings(uds=str(path)))


def test_welcome_shows_how_to_reach_the_server() -> None:
    assert "http://127.0.0.1:8000/v1/chat/completions" in welcome("127.0.0.1:8000", "m")
    assert "YOUR-KEY" not in welcome("127.0.0.1:8000", "m")
    assert welcome("127.0.0.1:8000", "m", needs_key=True).count("YOUR-KEY") == 2
    assert "--unix-socket /tmp/s http://localhost/v1" in welcome("/tmp/s", "m")
