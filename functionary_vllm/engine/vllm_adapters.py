"""LoRA adapters in vLLM: checked in this process, loaded into the engine's, and never read a second time.

In: folders. Out: vLLM's LoRARequests. vLLM keeps `max_cpu_loras` adapters and would read one that it dropped again
when a request comes, from a folder that may have changed: its engine dies of that. So no more are loaded than it
keeps. Refuses to know who uses them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from functionary_vllm.engine.adapter_folder import check_adapter
from functionary_vllm.engine.vllm_flags import adapter_room
from functionary_vllm.errors import EngineUnavailable, InvalidRequest


class VllmLoader:
    """A Loader. `llm` gives the AsyncLLM of the moment: it may be started again."""

    def __init__(self, llm: Callable[[], AsyncLLM]) -> None:
        self._llm = llm

    @property
    def _limits(self) -> Any:
        return getattr(self._llm().vllm_config, "lora_config", None)

    @property
    def room(self) -> int:
        return adapter_room(self._limits)

    async def load(self, label: str, number: int, path: str) -> LoRARequest:
        path = await asyncio.to_thread(self._checked, path)
        request, llm = LoRARequest(label, number, path), self._llm()
        llm._run_output_handler()  # type: ignore[no-untyped-call]  # else its client reads, the long way
        try:
            await llm.add_lora(request)
        except EngineDeadError as error:
            raise EngineUnavailable("The engine has stopped.") from error
        except Exception as error:  # the bare Exception that vLLM makes of whatever the engine met
            with suppress(Exception):
                await llm.remove_lora(number)  # what was loaded of it would pass for loaded
            reason = str(error).removeprefix("Call to add_lora method failed: ")
            raise InvalidRequest(f"The adapter cannot be loaded: {reason}", param="lora_path") from error
        return request

    def _checked(self, path: str) -> str:
        """Its absolute path: a relative one is another in the engine's process, or a name that vLLM would download."""
        path = os.path.abspath(path)
        config: Any = self._llm().model_config
        check_adapter(path, self._limits.max_lora_rank, _folder(config.model, config.revision))
        try:
            PEFTHelper.from_local_dir(path, None).validate_legal(self._limits)
        except (ValueError, TypeError) as error:
            raise InvalidRequest(f"The adapter cannot be loaded: {error}", param="lora_path") from error
        return path

    async def unload(self, number: int) -> None:
        try:
            await self._llm().remove_lora(number)
        except Exception as error:  # as above
            raise EngineUnavailable(str(error)) from error


def _folder(model: str, revision: str | None) -> Path | None:
    """Where the base's weights lie, if they do."""
    if Path(model).is_dir():
        return Path(model)
    with suppress(OSError, ValueError):
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    return None
