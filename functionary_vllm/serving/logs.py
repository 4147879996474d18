"""The log: one line a record, for people or as JSON; and none of what users or models said.

In: records of every logger, ours, uvicorn's and vLLM's. Out: lines on stderr. A finished request is a record with its
facts in `request` (made in `api/border.py`): numbers, names and codes. An exception is told by its type and the lines
of code it went through; its message, which may quote what a client sent, only with `--log-level debug`. Refuses to
know what the facts are.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson

from functionary_vllm.settings import Settings

REQUESTS = "functionary_vllm.requests"


class TextFormatter(logging.Formatter):
    def __init__(self, *, whole: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._whole = whole

    def format(self, record: logging.LogRecord) -> str:
        kept, record.exc_text = record.exc_text, None  # which another handler may have written, with all its words
        try:
            text = super().format(record)
        finally:
            record.exc_text = kept
        facts: dict[str, Any] = getattr(record, "request", {})
        return " ".join([text, *(f"{key}={_word(value)}" for key, value in facts.items())])

    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if self._whole else _told(ei)


class JsonFormatter(logging.Formatter):
    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self._whole = whole

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "request", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()

    def formatException(self, ei: Any) -> str:
        return super().formatException(ei) if self._whole else _told(ei)


def _word(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else orjson.dumps(value).decode()


def _told(exc_info: Any) -> str:
    """The exception and what led to it, without their words."""
    error: BaseException | None = exc_info[1]
    told = []
    while error is not None:
        told.append("".join([*traceback.format_tb(error.__traceback__), type(error).__qualname__]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(reversed(told))


def set_up(settings: Settings) -> None:
    """For this process, and with JSON for those that vLLM starts."""
    as_json = settings.log_format == "json"
    whole = settings.log_level == "debug"
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(JsonFormatter(whole=whole) if as_json else TextFormatter(whole=whole))
    logging.basicConfig(handlers=[stream], level=logging.WARNING)
    logging.getLogger("functionary_vllm").setLevel(settings.log_level.upper())
    if not (settings.access_log or as_json):
        logging.getLogger(REQUESTS).setLevel(logging.WARNING)
    if as_json and "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        os.environ["VLLM_LOGGING_CONFIG_PATH"] = _written_for_vllm()


def vllm_handler() -> logging.Handler:
    """In each of vLLM's processes, when it is imported: its level is in the environment by then."""
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    return handler


def _written_for_vllm() -> str:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"json": {"()": f"{__name__}.{vllm_handler.__name__}"}},
        "loggers": {"vllm": {"handlers": ["json"], "propagate": False}},
    }
    with tempfile.NamedTemporaryFile("w", prefix="vllm-log-", suffix=".json", delete=False) as file:
        json.dump(config, file)
    atexit.register(_remove, file.name, os.getpid())
    return file.name


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # and not a process that was forked off
        with suppress(OSError):
            os.unlink(path)
