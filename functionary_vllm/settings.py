"""One frozen Settings out of flags, environment and a YAML file: the only reader of the three.

In: the command line, the environment, and the file that `--config` names. A flag wins over `FUNCTIONARY_VLLM_<FLAG>`,
that over the YAML key, that over the default. What is not a name of ours belongs to vLLM and is handed on, in vLLM's
own flag syntax, as `engine_args`; vLLM's parser judges it there. Out: Settings, or SettingsError with one line for a
person. Refuses to know what vLLM's flags are, and to import anything slow: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from functionary_vllm.formats.reading.machine import ReadingPolicy

ENVIRONMENT_PREFIX = "FUNCTIONARY_VLLM_"
# Read by functionary_vllm/models: where built models lie. No setting of the server.
_FOREIGN_VARIABLES = frozenset({"FUNCTIONARY_VLLM_CACHE"})

EngineArgs = dict[str, list[str]]  # one of vLLM's flags, without its dashes -> the words it was given with


class SettingsError(ValueError):
    """A setting that cannot be used; the message is for the person who started the server."""


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of Settings and its flag. Metadata: flag, choices, metavar, secret, least."""
    return field(default=default, repr=not metadata.get("secret", False), metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything the server is told at its start."""

    host: str = _setting("127.0.0.1", "address to listen on; 0.0.0.0 for every interface")
    port: int = _setting(8000, "port to listen on; 0 lets the system choose one", least=0)
    uds: str | None = _setting(None, "listen on this Unix socket instead of host and port", metavar="PATH")
    api_workers: int = _setting(
        1,
        "processes that answer HTTP: they share the address and the engine; for more streams than one core carries",
        least=1,
    )
    engine: Literal["vllm", "replay"] = _setting(
        "vllm", "vllm: generate; replay: play recorded output, without a model", choices=("vllm", "replay")
    )
    recordings: str | None = _setting(None, "JSON Lines file of recordings, for --engine replay", metavar="FILE")
    model: str | None = _setting(
        None, "Hugging Face name or folder of the model; without it the built-in functionary-smol is served"
    )
    tokenizer: str | None = _setting(None, "name or folder of the tokenizer, where it is not the model's")
    format: str | None = _setting(
        None, "prompt format, such as functionary-v3.2, hermes or vllm:PARSER; detected when not given"
    )
    format_plugins: tuple[str, ...] = _setting(
        (),
        "formats from outside: classes in modules that Python can import",
        flag="format-plugin",
        metavar="MODULE:CLASS",
    )
    served_model_names: tuple[str, ...] = _setting(
        (), "names under which clients ask for the model; the first is the one in answers", flag="served-model-name"
    )
    lora_modules: tuple[str, ...] = _setting(
        (), "LoRA adapters: the name that requests ask for, and a folder; needs --enable-lora", metavar="NAME=PATH"
    )
    allow_runtime_lora_updating: bool = _setting(
        False, "admin keys may load and unload LoRA adapters; needs --enable-lora"
    )
    api_keys: tuple[str, ...] = _setting(
        (),
        "keys, one of which a client must show; better in the environment than on a flag",
        flag="api-key",
        secret=True,
    )
    keys_file: str | None = _setting(None, "YAML file of hashed keys and their limits; read again as it changes")
    cors_origins: tuple[str, ...] = _setting((), "web pages' origins that may ask; *: any", flag="cors-origin")
    ssl_certfile: str | None = _setting(None, "certificate chain (PEM): speak TLS", metavar="FILE")
    ssl_keyfile: str | None = _setting(None, "its private key, where it is not in the same file", metavar="FILE")
    max_running: int = _setting(0, "sequences that run at once; 0: as many as the engine can", least=0)
    max_waiting: int = _setting(0, "requests that may wait for that, the next is refused; 0: twice as many", least=0)
    max_waiting_tokens: int = _setting(0, "tokens of their prompts; 0: twice what the engine's KV cache holds", least=0)
    max_queue_seconds: int = _setting(30, "a request that has waited for so long is refused", least=1)
    unknown_fields: Literal["warn", "reject", "ignore"] = _setting(
        "warn",
        "a request field that is not honoured: warn with a response header and a log line, reject with 400, or ignore",
        choices=("warn", "reject", "ignore"),
    )
    python_arguments: Literal["json", "raw"] = _setting(
        "json", 'arguments of a code interpreter call: {"code": ...} as JSON, or the raw code', choices=("json", "raw")
    )
    unknown_function: Literal["pass", "text", "error"] = _setting(
        "pass",
        "a call of a function that was not offered: pass it on, show it as text, or end the answer with an error",
        choices=("pass", "text", "error"),
    )
    none_keeps_tools: bool = _setting(
        False, "with tool_choice none, keep the tools in the prompt (its cached prefix stays) and ban the call marker"
    )
    calls_in_reasoning: bool = _setting(
        True, "a call that begins inside the model's thoughts is a call; else a thought"
    )
    reasoning_field: Literal["reasoning_content", "reasoning"] = _setting(
        "reasoning_content",
        "the field of answers that holds the model's thoughts",
        choices=("reasoning_content", "reasoning"),
    )
    named_finish_reason: Literal["stop", "tool_calls"] = _setting(
        "stop", "finish_reason when tool_choice names a function; OpenAI answers stop", choices=("stop", "tool_calls")
    )
    max_body_bytes: int = _setting(4 * 1024 * 1024, "largest request body, in bytes", least=1)
    max_tools: int = _setting(128, "most tools a request may offer", least=1)
    drain_seconds: int = _setting(30, "when told to stop: how long requests under way may go on", least=0)
    engine_stall_seconds: int = _setting(
        60, "an engine with work that says nothing for so long counts as dead; 0: never", least=0
    )
    engine_restarts: int = _setting(0, "how often a dead engine is started again before the server ends", least=0)
    keep_alive_seconds: int = _setting(15, "a stream without a word for so long gets an SSE comment; 0: none", least=0)
    client_stall_seconds: int = _setting(
        300, "a client that takes or sends nothing for so long, while it is its turn, is closed; 0: never", least=0
    )
    log_level: Literal["debug", "info", "warning", "error"] = _setting(
        "info", "what the server logs", choices=("debug", "info", "warning", "error")
    )
    log_format: Literal["text", "json"] = _setting("text", "how log lines look", choices=("text", "json"))
    access_log: bool = _setting(False, "log a line for each finished request; with --log-format json there always is")
    otlp_endpoint: str | None = _setting(
        None, "OpenTelemetry collector that is sent a span for each request (OTLP)", metavar="URL"
    )
    verbose: bool = _setting(False, "show vLLM's own log as well")
    config: str | None = _setting(None, "YAML file of settings, named as the flags, vLLM's included", metavar="FILE")
    engine_args: tuple[str, ...] = field(default=(), metadata={"foreign": True})

    @property
    def reading(self) -> ReadingPolicy:
        """How answers are read."""
        return ReadingPolicy(self.unknown_function, self.calls_in_reasoning, self.none_keeps_tools)

    @property
    def lora_paths(self) -> list[tuple[str, str]]:
        """The names of adapters, and their folders."""
        return [(name, path) for name, _, path in (module.partition("=") for module in self.lora_modules)]


_FIELDS: dict[str, Field[Any]] = {
    f.metadata.get("flag", f.name.replace("_", "-")): f for f in fields(Settings) if not f.metadata.get("foreign")
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="serve.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        description="Serve a function-calling model behind OpenAI's API.",
        epilog=(
            "All engine flags of vLLM work as well (--tensor-parallel-size, --quantization, --max-model-len, ...): "
            "--help-engine lists them, --help-engine=WORD those that match. Each flag can also be set as "
            f"{ENVIRONMENT_PREFIX}<FLAG> in the environment (lists separated by commas) or as a key of the --config "
            "file. A flag wins over the environment, that over the file."
        ),
    )
    for flag, f in _FIELDS.items():
        text = f.metadata["help"] + (f" (default: {f.default})" if f.default not in (None, (), False) else "")
        options: dict[str, Any] = {"dest": f.name, "help": text.replace("%", "%%")}
        if isinstance(f.default, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            choices = f.metadata.get("choices")
            options["metavar"] = f.metadata.get("metavar") or ("|".join(choices) if choices else flag.upper())
            if isinstance(f.default, tuple):
                options |= {"nargs": "+", "action": "extend"}
        parser.add_argument(f"--{flag}", **options)
    parser.add_argument("--help-engine", nargs="?", const="all", metavar="WORD", help="list vLLM's engine flags")
    return parser


def read_settings(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from the command line, the environment and the YAML file, each checked. Raises SettingsError.

    `--help` prints and exits, as argparse does.
    """
    given, rest = _parser().parse_known_args(argv)
    flags = vars(given)
    flags.pop("help_engine", None)
    variables = _environment(environ)
    config = flags.get("config") or variables.get("config")
    layers = [
        _split(_yaml(config), f"in {config}") if config else ({}, {}),
        _split(variables, "in the environment"),
        ({name: _convert(_field(name), value, "on the command line") for name, value in flags.items()}, _words(rest)),
    ]
    values: dict[str, Any] = {}
    engine_args: EngineArgs = {}
    for ours, foreign in layers:
        values.update(ours)
        for name, words in foreign.items():
            # --no-x undoes --x, so the later of the two replaces the earlier.
            engine_args.pop(name.removeprefix("no-"), None)
            engine_args.pop(f"no-{name}", None)
            engine_args[name] = words
    values["engine_args"] = tuple(word for words in engine_args.values() for word in words)
    return _checked(Settings(**values))


def engine_help_word(argv: Sequence[str]) -> str | None:
    """What `--help-engine` was asked for: a word, "all", or None when it was not given."""
    given, _ = _parser().parse_known_args(argv)
    word: str | None = getattr(given, "help_engine", None)
    return word


def _field(name: str) -> Field[Any]:
    return next(f for f in _FIELDS.values() if f.name == name)


def _environment(environ: Mapping[str, str]) -> dict[str, Any]:
    """Variables as YAML would have them, so that true, 8192 and {"a": 1} mean the same in both places."""
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in _FOREIGN_VARIABLES:
            continue
        key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        f = _FIELDS.get(key.replace("_", "-"))
        if f is not None:
            found[key] = [part.strip() for part in text.split(",") if part.strip()] if f.default == () else text
            continue
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError:
            found[key] = text
    return found


def _yaml(path: str) -> dict[str, Any]:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {path} cannot be read: {error}") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path} must be a mapping of settings to values")
    if "config" in content:
        raise SettingsError(f"{path} cannot name another config")
    return content


def _split(content: Mapping[str, Any], where: str) -> tuple[dict[str, Any], EngineArgs]:
    """What is ours, converted, and what is vLLM's, as words of a command line. None counts as not given."""
    ours: dict[str, Any] = {}
    foreign: EngineArgs = {}
    for key, value in content.items():
        flag = key.replace("_", "-")
        if value is None:
            continue
        if (f := _FIELDS.get(flag)) is not None:
            ours[f.name] = _convert(f, value, where)
        else:
            foreign[flag if value is not False else f"no-{flag}"] = _as_words(flag, value)
    return ours, foreign


def _as_words(flag: str, value: Any) -> list[str]:
    match value:
        case bool():
            return [f"--{flag}" if value else f"--no-{flag}"]
        case list():
            return [f"--{flag}", *(item if isinstance(item, str) else json.dumps(item) for item in value)]
        case dict():
            return [f"--{flag}", json.dumps(value)]
        case _:
            # One word, so that a value with a leading dash stays a value.
            return [f"--{flag}={value}"]


def _words(rest: Iterable[str]) -> EngineArgs:
    """The words of a command line by the flag they belong to. A repeated flag keeps all its words."""
    grouped: EngineArgs = {}
    name = ""
    for word in rest:
        if word.startswith("-") and not _is_number(word):
            name = word.lstrip("-").partition("=")[0].replace("_", "-")
        elif not name:
            raise SettingsError(f"unexpected argument: {word}")
        grouped.setdefault(name, []).append(word)
    return grouped


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


_BOOLEANS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _convert(f: Field[Any], value: Any, where: str) -> Any:
    """The value as its field's type, which its default shows."""
    flag = next(name for name, other in _FIELDS.items() if other is f)
    choices: tuple[str, ...] | None = f.metadata.get("choices")
    least: int | None = f.metadata.get("least")
    if isinstance(f.default, bool):
        known = value if isinstance(value, bool) else _BOOLEANS.get(str(value).lower())
        if known is None:
            raise SettingsError(f"{flag} must be true or false, not {value!r} ({where})")
        return known
    if isinstance(f.default, int):
        return _convert_int(flag, value, least or 0, where)
    if isinstance(f.default, tuple):
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) and item for item in items):
            raise SettingsError(f"{flag} must be a list of strings ({where})")
        return tuple(items)
    if isinstance(value, (dict, list, bool)):
        raise SettingsError(f"{flag} must be a string, not {value!r} ({where})")
    if choices and value not in choices:
        raise SettingsError(f"{flag} must be one of {', '.join(choices)}, not {value!r} ({where})")
    return str(value)


def _convert_int(flag: str, value: Any, least: int, where: str) -> int:
    try:
        number = int(value) if not isinstance(value, (bool, float)) else None
    except (TypeError, ValueError):
        number = None
    if number is None or number < least:
        raise SettingsError(f"{flag} must be a whole number of at least {least}, not {value!r} ({where})")
    return number


def _checked(settings: Settings) -> Settings:
    """The rules that concern more than one setting."""
    if settings.port > 65535:
        raise SettingsError(f"port must be at most 65535, not {settings.port}")
    if settings.ssl_keyfile is not None and settings.ssl_certfile is None:
        raise SettingsError("ssl-keyfile needs ssl-certfile")
    if settings.otlp_endpoint is not None and find_spec("opentelemetry") is None:
        raise SettingsError("otlp-endpoint needs OpenTelemetry: pip install 'functionary-vllm[otel]'")
    if settings.engine == "replay":
        for name in ("recordings", "tokenizer"):
            if getattr(settings, name) is None:
                raise SettingsError(f"--engine replay needs --{name}")
        if settings.engine_args:
            raise SettingsError(f"unknown with --engine replay: {' '.join(settings.engine_args)}")
    elif settings.recordings is not None:
        raise SettingsError("--recordings is for --engine replay")
    if settings.engine_restarts and settings.api_workers > 1:
        raise SettingsError("engine-restarts needs a single API worker: several end with their engine")
    _check_lora(settings)
    return settings


def _check_lora(settings: Settings) -> None:
    for name, path in settings.lora_paths:
        if not name or not path:
            raise SettingsError("lora-modules must be a list of NAME=PATH")
    names = [*set(settings.served_model_names), *(name for name, _ in settings.lora_paths)]
    if taken := [name for name, times in Counter(names).items() if times > 1]:
        raise SettingsError(f"{taken[0]} is the name of two models")
    if settings.allow_runtime_lora_updating and settings.api_workers > 1:
        raise SettingsError(
            "allow-runtime-lora-updating needs a single API worker: of several, one would hear of an adapter. "
            "--lora-modules reaches all of them"
        )
    wanted = settings.lora_modules or settings.allow_runtime_lora_updating
    if wanted and settings.engine == "vllm" and not {"--enable-lora", "--enable_lora"} & {*settings.engine_args}:
        raise SettingsError("LoRA adapters need --enable-lora")
