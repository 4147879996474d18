"""The registry of formats, and which one a tokenizer speaks.

In: a format's name or a tokenizer. Out: a Format. Detection goes by evidence in this order: a version comment in the
chat template, the template's own words, then tokens that no other family has. It refuses to guess: one token that
every Llama-3.1 model has (128008) is no evidence.
"""

from __future__ import annotations

import re
from typing import Any

from functionary_vllm.formats.base import Format
from functionary_vllm.formats.decoder import Decoder
from functionary_vllm.formats.functionary_v0 import FunctionaryV0
from functionary_vllm.formats.functionary_v1 import FunctionaryV1
from functionary_vllm.formats.functionary_v2 import FunctionaryV2
from functionary_vllm.formats.functionary_v25 import FunctionaryV25
from functionary_vllm.formats.functionary_v31 import FunctionaryV31
from functionary_vllm.formats.functionary_v32 import FunctionaryV32
from functionary_vllm.formats.hermes import Hermes
from functionary_vllm.formats.prompt import Prompt, Special

__all__ = [
    "Decoder",
    "Format",
    "Prompt",
    "Special",
    "UnknownFormat",
    "detect_format",
    "get_format",
    "list_formats",
]

FORMATS: dict[str, type[Format]] = {
    fmt.name: fmt
    for fmt in (
        FunctionaryV0,
        FunctionaryV1,
        FunctionaryV2,
        FunctionaryV25,
        FunctionaryV31,
        FunctionaryV32,
        Hermes,
    )
}
_ALIASES = {alias: fmt for fmt in FORMATS.values() for alias in (fmt.name, *fmt.aliases)}


class UnknownFormat(ValueError):
    """No format has this name, or the tokenizer gives no clear evidence of one. The message lists the formats."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} Choose one with --format: {', '.join(list_formats())}.")


def list_formats() -> list[str]:
    """Names of all formats, sorted."""
    return sorted(FORMATS)


def get_format(name: str, tokenizer: Any | None = None) -> Format:
    """The format of this name or alias, bound to a tokenizer. Raises UnknownFormat."""
    fmt = _ALIASES.get(name.lower())
    if fmt is None:
        raise UnknownFormat(f"There is no format {name!r}.")
    return fmt(tokenizer)


# What a template says, and the token that has to exist for it to be meant.
_EVIDENCE: tuple[tuple[str, str | None, type[Format]], ...] = (
    (">>>${recipient}", "<|start_header_id|>", FunctionaryV32),
    (">>>all", "<|start_header_id|>", FunctionaryV32),
    ("<function=", "<|start_header_id|>", FunctionaryV31),
    ("<|reserved_special_token_249|>", "<|reserved_special_token_249|>", FunctionaryV25),
    ("<|from|>", "<|from|>", FunctionaryV2),
    ("<|START_OF_FUNCTION_CALL|>", "<|START_OF_FUNCTION_CALL|>", FunctionaryV1),
)
# Tokens of one family only, evidence even without a template.
_OWN_TOKENS: tuple[tuple[tuple[str, ...], type[Format]], ...] = (
    (("<|from|>", "<|recipient|>", "<|content|>"), FunctionaryV2),
    (("<|START_OF_FUNCTION_CALL|>", "<|END_OF_FUNCTION_CALL|>"), FunctionaryV1),
)


def detect_format(tokenizer: Any) -> str:
    """The name of the format this tokenizer was made for. Raises UnknownFormat rather than guess."""
    template = getattr(tokenizer, "chat_template", None)
    text = template if isinstance(template, str) else ""
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values()}
    version = re.search(r"\{# version=(\S+?) #\}", text)
    if version and version.group(1).lower() in _ALIASES:
        return _ALIASES[version.group(1).lower()].name
    for words, token, fmt in _EVIDENCE:
        if words in text and (token is None or token in tokens):
            return fmt.name
    if "<tool_call>" in text and '"name"' in text and '"arguments"' in text and "<function=" not in text:
        return Hermes.name
    for own, fmt in _OWN_TOKENS:
        if tokens.issuperset(own):
            return fmt.name
    raise UnknownFormat("This tokenizer shows no format that is known here.")
