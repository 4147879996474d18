"""serving/ and engine/startup.py where no engine is needed."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from functionary_vllm.engine import startup
from functionary_vllm.engine.startup import Progress, StartError, prepare_environment
from functionary_vllm.formats import UnknownFormat
from functionary_vllm.models.builtin import BUILTIN_FORMAT, BUILTIN_NAME, ModelUnavailable
from functionary_vllm.serving import launch
from functionary_vllm.serving.server import ListenError, listen
from functionary_vllm.serving.welcome import welcome
from functionary_vllm.settings import Settings
from tests.fakes import byte_tokenizer

QUIET = ("VLLM_LOGGING_LEVEL", "PYTHONWARNINGS", "TORCH_CPP_LOG_LEVEL", "TORCH_LOGS")
ALWAYS = ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_WORKER_MULTIPROC_METHOD")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with nothing in it, in place of the real one, on a machine of many cores."""
    monkeypatch.setattr(startup, "few_cores", lambda: False)
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


def test_on_few_cores_no_thread_spins(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(startup, "few_cores", lambda: True)
    prepare_environment("someone/model", verbose=True)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


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
    assert (settings.model, settings.format) == ("/cache/builtin", BUILTIN_FORMAT)
    assert settings.served_model_names == (BUILTIN_NAME, "functionary")
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


# -- the format ------------------------------------------------------------------------------------------------------


def engine_of(template: str | None, model_type: str = "") -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return SimpleNamespace(tokenizer=tokenizer, model_type=model_type)


HERMES = '<tool_call>{"name": …, "arguments": …}</tool_call>'


def test_which_format_and_why_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert launch.choose_format(Settings(), engine_of(HERMES)).name == "hermes"
        assert launch.choose_format(Settings(format="Qwen3"), engine_of(None)).name == "hermes"
    assert [record.getMessage() for record in caplog.records] == [
        "Format hermes, because its chat template writes calls as JSON inside <tool_call>.",
        "Format hermes, because it is set.",
    ]


def test_the_type_of_the_model_reaches_detection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, str]] = []
    monkeypatch.setattr(launch, "detect_format", lambda *clues: asked.append(clues) or "hermes")
    engine = engine_of(HERMES, "qwen3")
    launch.choose_format(Settings(), engine)
    assert asked == [(engine.tokenizer, "qwen3")]


def test_no_format_is_guessed() -> None:
    with pytest.raises(UnknownFormat, match="shows no format"):
        launch.choose_format(Settings(), engine_of("{{ messages }}"))


def test_a_format_that_lacks_something_ends_the_start() -> None:
    with pytest.raises(StartError, match="renders with the model's chat template, and it has none") as caught:
        launch.choose_format(Settings(format="qwen3-xml"), engine_of(None))
    assert caught.value.status == 2


def test_config_json_beside_the_tokenizer(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "recordings.jsonl").write_text('{"id": "1", "text": "Hi"}')

    def model_type(text: str | None) -> str:
        (tmp_path / "config.json").unlink(missing_ok=True)
        if text is not None:
            (tmp_path / "config.json").write_text(text)
        return startup.start_replay(str(tmp_path / "recordings.jsonl"), str(tmp_path)).model_type

    assert model_type(json.dumps({"model_type": "qwen3"})) == "qwen3"
    assert [model_type(text) for text in (None, "{", "[]", "{}")] == [""] * 4


def test_vllms_parsers_are_looked_up_once_vllm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_up: list[str] = []
    monkeypatch.setattr(launch, "get_format", looked_up.append)
    monkeypatch.setattr(launch, "start_vllm", lambda model, argv, verbose, imported: imported())
    settings = Settings(model="m", format="vllm:hermes")
    launch.load_formats(settings)
    assert looked_up == []  # vllm reads its environment while it is imported, and that is not set yet
    launch.start_engine(settings)
    assert looked_up == ["vllm:hermes"]


def test_a_tokenizer_that_is_no_fast_one_ends_the_start() -> None:
    engine = SimpleNamespace(tokenizer=SimpleNamespace(chat_template=HERMES), model_type="kimi_k2")
    for settings in (Settings(), Settings(format="kimi-k2")):
        with pytest.raises(StartError, match="none of transformers' fast ones"):
            launch.choose_format(settings, engine)  # type: ignore[arg-type]
