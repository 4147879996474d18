"""functionary_vllm: a vLLM-backed serving engine for function-calling language models.

In: OpenAI requests with tools or functions. Out: answers whose calls stream as they are written. These names are the
library's public door: a format for a tokenizer, to render prompts and to decode token ids into events.
"""

from functionary_vllm.events import CallArguments, CallEnd, CallStart, Event, Finish, Reasoning, Text
from functionary_vllm.formats import detect_format, get_format, list_formats

__all__ = [
    "CallArguments",
    "CallEnd",
    "CallStart",
    "Event",
    "Finish",
    "Reasoning",
    "Text",
    "detect_format",
    "get_format",
    "list_formats",
]
