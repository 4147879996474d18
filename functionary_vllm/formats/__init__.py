"""The registry of formats, and which one a tokenizer speaks.

In: a format's name, or what a checkpoint shows; formats from outside. Out: a Format. A version comment in the chat
template decides; else each format says whether it recognises the checkpoint, by the template's own words, the model's
type, tokens that no other family has. It refuses to guess: one token that every Llama-3.1 model has (128008) is no
evidence, and where two formats see themselves, neither is taken.
"""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

from functionary_vllm.formats.base import Clues, Format
from functionary_vllm.formats.deepseek_dsml import DeepSeekV4, DeepSeekV32, DeepSeekV41
from functionary_vllm.formats.deepseek_v3 import DeepSeekV3, DeepSeekV31
from functionary_vllm.formats.functionary_hermes import FunctionaryCogito, FunctionaryGemma3
from functionary_vllm.formats.functionary_r1 import FunctionaryR1, FunctionaryR1Llama, FunctionaryR1Qwen
from functionary_vllm.formats.functionary_smol import FunctionarySmol
from functionary_vllm.formats.functionary_v0 import FunctionaryV0
from functionary_vllm.formats.functionary_v1 import FunctionaryV1
from functionary_vllm.formats.functionary_v2 import FunctionaryV2
from functionary_vllm.formats.functionary_v4r import FunctionaryV4r
from functionary_vllm.formats.functionary_v25 import FunctionaryV25
from functionary_vllm.formats.functionary_v31 import FunctionaryV31
from functionary_vllm.formats.functionary_v32 import FunctionaryV32
from functionary_vllm.formats.gemma4 import FunctionGemma, Gemma4
from functionary_vllm.formats.glm import Glm, Glm45
from functionary_vllm.formats.gpt_oss import GptOss
from functionary_vllm.formats.granite import Granite3, Granite4, Granite20bFc, Granite31, Granite33, Granite42
from functionary_vllm.formats.hermes import Hermes
from functionary_vllm.formats.kimi_k2 import KimiK2
from functionary_vllm.formats.kimi_k3 import KimiK3
from functionary_vllm.formats.llama3_json import Llama3Json
from functionary_vllm.formats.llama4_pythonic import Llama4Json, Llama4Pythonic
from functionary_vllm.formats.mistral import Mistral, MistralV3
from functionary_vllm.formats.phi4_mini import Phi4Mini, Phi4MiniFunctools
from functionary_vllm.formats.prompt import Prompt, Special
from functionary_vllm.formats.qwen3_xml import Qwen3Xml
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.template import chat_template
from functionary_vllm.formats.vllm_parser import PREFIX, UnknownParser, vllm_format

__all__ = [
    "Decoder",
    "Format",
    "Prompt",
    "Special",
    "UnknownFormat",
    "detect_format",
    "get_format",
    "list_formats",
    "register_format",
]

_log = logging.getLogger(__name__)

FORMATS: dict[str, type[Format]] = {
    fmt.name: fmt
    for fmt in (
        FunctionaryV0,
        FunctionaryV1,
        FunctionaryV2,
        FunctionaryV25,
        FunctionaryV31,
        FunctionaryV32,
        FunctionaryV4r,
        FunctionaryR1,
        FunctionaryR1Llama,
        FunctionaryR1Qwen,
        FunctionaryGemma3,
        FunctionaryCogito,
        FunctionarySmol,
        Hermes,
        Llama3Json,
        Llama4Json,
        Llama4Pythonic,
        Mistral,
        MistralV3,
        DeepSeekV3,
        DeepSeekV31,
        DeepSeekV32,
        DeepSeekV4,
        DeepSeekV41,
        Qwen3Xml,
        Glm,
        Glm45,
        KimiK2,
        KimiK3,
        GptOss,
        FunctionGemma,
        Gemma4,
        Granite3,
        Granite31,
        Granite33,
        Granite20bFc,
        Granite4,
        Granite42,
        Phi4Mini,
        Phi4MiniFunctools,
    )
}
_ALIASES = {alias: fmt for fmt in FORMATS.values() for alias in (fmt.name, *fmt.aliases)}


class UnknownFormat(ValueError):
    """No format has this name, or the tokenizer gives no clear evidence of one. The message lists the formats."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"{reason} Choose one with --format: {', '.join(list_formats())}; or vllm:NAME for a parser of vLLM's."
        )


def list_formats() -> list[str]:
    """Names of all formats, sorted."""
    return sorted(FORMATS)


def get_format(name: str, tokenizer: Any | None = None) -> Format:
    """The format of this name or alias, bound to a tokenizer. Raises UnknownFormat.

    `vllm:NAME[:REASONING]` imports vllm, which then reads its environment.
    """
    if name.startswith(PREFIX):
        try:
            return vllm_format(name)(tokenizer)
        except UnknownParser as error:
            raise UnknownFormat(str(error)) from error
    fmt = _ALIASES.get(name.lower())
    if fmt is None:
        raise UnknownFormat(f"There is no format {name!r}.")
    return fmt(tokenizer)


def register_format(fmt: type[Format]) -> None:
    """Take in a format from outside, under its name and its aliases. Raises ValueError with what is wrong with it."""
    if not (isinstance(fmt, type) and issubclass(fmt, Format)):
        raise ValueError("it is no subclass of functionary_vllm.formats.Format")
    if inspect.isabstract(fmt):
        raise ValueError(f"it does not define {', '.join(sorted(fmt.__abstractmethods__))}")
    if not isinstance(getattr(fmt, "name", None), str):
        raise ValueError("it has no name")
    names = [name.lower() for name in (fmt.name, *fmt.aliases)]
    for name in names:
        if name.startswith(PREFIX) or _ALIASES.get(name, fmt) is not fmt:
            raise ValueError(f"the name {name!r} is taken")
    FORMATS[fmt.name.lower()] = fmt
    _ALIASES.update(dict.fromkeys(names, fmt))


def detect_format(tokenizer: Any, model_type: str = "") -> str:
    """The name of the format this checkpoint was made for. Raises UnknownFormat rather than guess.

    `model_type` is what its config.json says, where there is one.
    """
    tokens = frozenset(token.content for token in tokenizer.added_tokens_decoder.values())
    clues = Clues(chat_template(tokenizer), tokens, model_type)
    version = re.search(r"\{# version=(\S+?) #\}", clues.template)
    if version and version.group(1).lower() in _ALIASES:
        said = _ALIASES[version.group(1).lower()]
        # A descendant that sees itself is closer: v4r's template carries the version of v3.1.
        closer = [fmt for fmt in FORMATS.values() if issubclass(fmt, said) and fmt is not said]
        seen = {fmt: reason for fmt in closer if (reason := fmt.recognises(clues))}
        for fmt, reason in seen.items():
            return _chosen(fmt, reason)
        return _chosen(said, f"its chat template says version={version.group(1)}")
    found = {fmt: reason for fmt in FORMATS.values() if (reason := fmt.recognises(clues))}
    # Of a format and its descendant the descendant is closer.
    found = {fmt: found[fmt] for fmt in found if not any(issubclass(other, fmt) and other != fmt for other in found)}
    if len(found) > 1:
        both = "; or ".join(f"{fmt.name}, because {reason}" for fmt, reason in found.items())
        raise UnknownFormat(f"This model could speak {both}.")
    for fmt, reason in found.items():
        return _chosen(fmt, reason)
    raise UnknownFormat("This model shows no format that is known here.")


def _chosen(fmt: type[Format], reason: str) -> str:
    _log.info("Format %s, because %s.", fmt.name, reason)
    return fmt.name
