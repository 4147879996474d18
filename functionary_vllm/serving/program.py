"""The server as a program: flags -> Settings -> engine -> uvicorn, or several; nothing else.

In: the command line of `python serve.py` or `functionary-vllm serve`. Out: its exit status, an error in one line.
Imports stay inside functions where they can: each child process of vLLM imports this file again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import NoReturn

from functionary_vllm.settings import Settings, SettingsError, engine_help_word, read_settings


def main() -> int:
    # An engine that is still starting has child processes: leave by way of the finally clauses.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if word := engine_help_word(sys.argv[1:]):
            from functionary_vllm.engine.vllm_flags import print_engine_help

            print_engine_help(word)
        settings = read_settings(sys.argv[1:], os.environ)
    except SettingsError as error:
        return fail(error)
    from functionary_vllm.engine.startup import StartError
    from functionary_vllm.formats import UnknownFormat
    from functionary_vllm.serving.lifecycle import Lost
    from functionary_vllm.serving.server import ListenError

    try:
        serve(settings)
        leave(0)
    except StartError as error:
        return fail(error, error.status)
    except Lost as error:
        leave(fail(error, 1))
    except (UnknownFormat, ListenError) as error:
        return fail(error)
    except KeyboardInterrupt:
        return 130


def leave(status: int) -> NoReturn:
    """All is closed; Python would take seconds to take vLLM's modules apart."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def serve(settings: Settings) -> None:
    from functionary_vllm.serving.launch import check_files, choose_format, load_formats, start_engine, with_model
    from functionary_vllm.serving.server import listen, run, set_up_logging

    set_up_logging(settings)
    # What can be refused at once is refused before an engine takes its time to start.
    check_files(settings)
    load_formats(settings)
    listener = listen(settings)
    settings = with_model(settings)
    if settings.api_workers > 1:
        from functionary_vllm.serving.workers import serve_with_workers

        serve_with_workers(settings, listener)
        return
    if listener is not None:  # an engine that ends later than the server would keep the port
        os.register_at_fork(after_in_child=listener.close)
    engine = start_engine(settings)
    try:
        from functionary_vllm.api.app import create_app

        run(create_app(settings, engine, choose_format(settings, engine)), listener, settings)
    finally:
        asyncio.run(engine.close())


def fail(error: Exception, status: int = 2) -> int:
    print(f"serve.py: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":  # in an API worker, or a child process of vLLM
    from functionary_vllm.engine.startup import end_with_parent

    end_with_parent()
