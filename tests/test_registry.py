"""Names, aliases, and which format a tokenizer shows; never a guess."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from functionary_vllm.formats import UnknownFormat, detect_format, get_format, list_formats

V1 = ("<|START_OF_FUNCTION_CALL|>", "<|END_OF_FUNCTION_CALL|>")
V2 = ("<|from|>", "<|recipient|>", "<|content|>", "<|stop|>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_249|>")
LLAMA31 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
HERMES = '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'


def tokenizer(tokens: tuple[str, ...], template: str | None = None) -> Any:
    added = {128000 + i: SimpleNamespace(content=token) for i, token in enumerate(tokens)}
    return SimpleNamespace(chat_template=template, added_tokens_decoder=added)


@pytest.mark.parametrize(
    ("tokens", "template", "name"),
    [
        (V1, None, "functionary-v1"),
        (V2, None, "functionary-v2"),
        (V2, "{{ '<|from|>' }}", "functionary-v2"),
        (LLAMA3, "{# version=v2.llama3 #}", "functionary-v2.5"),
        (LLAMA3, "… '<|reserved_special_token_249|>' + name …", "functionary-v2.5"),
        (LLAMA3, "Respond in this format:\n>>>${recipient}\n${content}", "functionary-v3.2"),
        (LLAMA31, "{# version=v3.llama3 #} other {# comment #}", "functionary-v3.2"),
        (LLAMA31, "{# version=v3-llama3.1 #}", "functionary-v3.1"),
        (LLAMA31, "start with <function= and end with </function>", "functionary-v3.1"),
        (("<|im_start|>", "<|im_end|>", "<tool_call>"), HERMES, "hermes"),
        (("<|im_start|>", "<|im_end|>"), HERMES, "hermes"),
        (("<|im_start|>", "<|im_end|>", "<|function_call|>"), None, "functionary-smol"),
    ],
)
def test_detection(tokens: tuple[str, ...], template: str | None, name: str) -> None:
    assert detect_format(tokenizer(tokens, template)) == name


@pytest.mark.parametrize(
    ("tokens", "template"),
    [
        (LLAMA31, None),  # token 128008 alone is every Llama-3.1 model
        (LLAMA31, "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}{% endfor %}"),
        (LLAMA3, None),
        ((), "{# version=v9 #}"),
        ((), ">>>${recipient}"),  # the template's words without the tokens they need
        (("<tool_call>",), '<tool_call>\n<function=NAME>\n{"name", "arguments"}'),  # Qwen3-Coder's XML
        ((), None),
    ],
)
def test_no_guess(tokens: tuple[str, ...], template: str | None) -> None:
    with pytest.raises(UnknownFormat) as error:
        detect_format(tokenizer(tokens, template))
    assert all(name in str(error.value) for name in list_formats())


def test_real_tokenizers(spm_v1_tokenizer: Any, spm_v2_tokenizer: Any, llama31_tokenizer: Any) -> None:
    assert detect_format(spm_v1_tokenizer) == "functionary-v1"
    assert detect_format(spm_v2_tokenizer) == "functionary-v2"
    with pytest.raises(UnknownFormat):
        detect_format(llama31_tokenizer)


def test_names_and_aliases() -> None:
    assert list_formats() == sorted(list_formats())
    assert {"functionary-v0", "functionary-v1", "functionary-v2", "functionary-v2.5"} <= set(list_formats())
    assert {"functionary-v3.1", "functionary-v3.2", "hermes"} <= set(list_formats())
    assert get_format("v3.llama3").name == "functionary-v3.2"
    assert get_format("Qwen3").name == "hermes"
    with pytest.raises(UnknownFormat, match="no format 'nope'"):
        get_format("nope")
