"""settings.py: three sources, one value; what is not ours is handed on to vLLM in its own syntax."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from functionary_vllm.settings import Settings, SettingsError, engine_help_word, read_settings

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def read(*argv: str, **environ: str) -> Settings:
    return read_settings(argv, {f"FUNCTIONARY_VLLM_{name}": value for name, value in environ.items()})


def write(folder: Path, text: str) -> str:
    path = folder / "server.yaml"
    path.write_text(text)
    return str(path)


def test_defaults() -> None:
    assert read() == Settings()
    assert (Settings().host, Settings().port, Settings().engine) == ("127.0.0.1", 8000, "vllm")
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "port: 1\nmax_tools: 1\nhost: yaml\nunknown-fields: ignore\n")
    settings = read("--config", path, "--port", "3", PORT="2", MAX_TOOLS="2")
    assert (settings.port, settings.max_tools, settings.host) == (3, 2, "yaml")
    assert settings.unknown_fields == "ignore"


def test_the_file_may_be_named_by_the_environment(tmp_path: Path) -> None:
    assert read(CONFIG=write(tmp_path, "port: 7")).port == 7


@pytest.mark.parametrize(
    ("argv", "environ", "name", "value"),
    [
        (["--api-key", "a", "b"], {}, "api_keys", ("a", "b")),
        ([], {"API_KEY": "a, b,"}, "api_keys", ("a", "b")),
        (["--served-model-name", "m"], {}, "served_model_names", ("m",)),
        (["--format-plugin", "a:B", "--format-plugin=c:D"], {}, "format_plugins", ("a:B", "c:D")),
        (["--format-plugin", "a:B", "c:D"], {"FORMAT_PLUGIN": "e:F"}, "format_plugins", ("a:B", "c:D")),
        ([], {"FORMAT_PLUGIN": "a:B,c:D"}, "format_plugins", ("a:B", "c:D")),
        (["--format", "vllm:hermes:qwen3"], {}, "format", "vllm:hermes:qwen3"),
        (["--access-log"], {}, "access_log", True),
        (["--no-access-log"], {"ACCESS_LOG": "true"}, "access_log", False),
        ([], {"ACCESS_LOG": "1"}, "access_log", True),
        ([], {"VERBOSE": "off"}, "verbose", False),
        ([], {"MODEL": "123"}, "model", "123"),
        (["--python-arguments", "raw"], {}, "python_arguments", "raw"),
        (["--named-finish-reason=tool_calls"], {}, "named_finish_reason", "tool_calls"),
        (["--max-body-bytes", "10"], {}, "max_body_bytes", 10),
        (["--uds", "/tmp/s"], {}, "uds", "/tmp/s"),
    ],
)
def test_values_take_their_fields_type(argv: list[str], environ: dict[str, str], name: str, value: Any) -> None:
    assert getattr(read(*argv, **environ), name) == value


def test_yaml_keys_are_flag_names_with_either_dash(tmp_path: Path) -> None:
    path = write(
        tmp_path, "served_model_name: [a, b]\napi-key: k\naccess_log: true\nformat:\nformat_plugin: [a:B, c:D]\n"
    )
    settings = read("--config", path)
    assert settings.served_model_names == ("a", "b")
    assert settings.api_keys == ("k",)
    assert settings.format_plugins == ("a:B", "c:D")
    assert settings.access_log is True
    assert settings.format is None


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "x"], "port must be a whole number"),
        (["--port", "-1"], "port must be a whole number"),
        (["--port", "65536"], "port must be at most 65535"),
        (["--max-tools", "0"], "at least 1"),
        (["--unknown-fields", "shout"], "must be one of warn, reject, ignore, not 'shout'"),
        (["--port"], "--port"),
        (["word"], "unexpected argument: word"),
        (["--engine", "replay"], "needs --recordings"),
        (["--engine", "replay", "--recordings", "f"], "needs --tokenizer"),
        (["--recordings", "f"], "for --engine replay"),
        (["--engine", "replay", "--recordings", "f", "--tokenizer", "t", "--max-model-len", "5"], "--max-model-len 5"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml cannot be read"),
    ],
)
def test_a_bad_flag_is_told_in_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(*argv)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: [", "is no YAML"),
        ("- port", "must be a mapping"),
        ("1: 2", "must be a mapping"),
        ("config: other.yaml", "cannot name another config"),
        ("port: 1.5", "port must be a whole number"),
        ("port: true", "port must be a whole number"),
        ("access_log: maybe", "access-log must be true or false"),
        ("host: [a]", "host must be a string"),
        ("api-key: [1]", "api-key must be a list of strings"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        read("--config", path)
    assert message in str(caught.value)
    assert "server.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--tensor-parallel-size", "2"], ("--tensor-parallel-size", "2")),
        (["--max_model_len=4096", "--port", "1", "-tp", "2"], ("--max_model_len=4096", "-tp", "2")),
        (["--enforce-eager", "--host", "h"], ("--enforce-eager",)),
        (["--cuda-graph-sizes", "1", "2"], ("--cuda-graph-sizes", "1", "2")),
        (["--swap-space", "-1"], ("--swap-space", "-1")),
    ],
)
def test_flags_of_vllm_pass_through(argv: list[str], expected: tuple[str, ...]) -> None:
    assert read(*argv).engine_args == expected


def test_keys_of_vllm_become_its_flags(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "max_model_len: 4096\nenforce-eager: true\nenable_prefix_caching: false\nlora_target_modules: [a=b, 3]\n"
        "hf_overrides: {rope: {factor: 2.0}}\nquantization: null\n",
    )
    assert read("--config", path).engine_args == (
        "--max-model-len=4096",
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--lora-target-modules",
        "a=b",
        "3",
        "--hf-overrides",
        '{"rope": {"factor": 2.0}}',
    )


def test_flags_of_vllm_override_as_ours_do(tmp_path: Path) -> None:
    path = write(tmp_path, "max_model_len: 1\nenforce_eager: true\nseed: 1\n")
    settings = read("--config", path, "--max-model-len", "3", "--no-enforce-eager", MAX_MODEL_LEN="2", SEED="2")
    assert settings.engine_args == ("--seed=2", "--max-model-len", "3", "--no-enforce-eager")


def test_the_environment_reads_as_yaml() -> None:
    assert read(ENFORCE_EAGER="true").engine_args == ("--enforce-eager",)
    assert read(HF_OVERRIDES='{"a": 1}').engine_args == ("--hf-overrides", '{"a": 1}')
    assert read(CACHE="/somewhere").engine_args == ()  # the models' cache folder, no setting of the server


def test_keys_are_never_shown() -> None:
    assert "secret" not in repr(read("--api-key", "secret"))


def test_every_field_is_a_flag_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        read("--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in fields(Settings):
        if field.name != "engine_args":
            assert f"--{field.metadata.get('flag', field.name.replace('_', '-'))}" in shown
            assert field.metadata["help"].split()[0] in shown
    assert "--help-engine" in shown


def test_help_on_vllms_flags_is_asked_for_by_word() -> None:
    assert engine_help_word([]) is None
    assert engine_help_word(["--help-engine"]) == "all"
    assert engine_help_word(["--help-engine=lora"]) == "lora"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_our_configs_can_be_read(path: Path) -> None:
    settings = read("--config", str(path))
    assert settings.format
    assert settings.served_model_names


def test_there_are_configs() -> None:
    assert CONFIGS
