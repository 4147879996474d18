"""vllm:NAME[:REASONING]: models whose format is not written here, read with the parsers that vLLM has for them.

In: a Conversation, rendered with the checkpoint's chat template; token ids of the answer. Out: the events of any other
format, made of what vLLM's streaming parser says of one token after the other: so no grouping changes a thing, and the
whole answer is the fold of the stream here too. What is understood, and how fast, is vLLM's. A parser that raises is
left for good: what it had not told yet, and all that follows, is text.

A forced call never reaches vLLM's parser. It is a JSON list of calls that the prompt begins and the engine enforces,
and the grammar below reads it; vLLM does much the same. vllm is imported only when such a format is asked for. Made for
vLLM 0.32; the names that are used are there in 0.26 to 0.33.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from types import SimpleNamespace
from typing import Any, ClassVar

from functionary_vllm.conversation import Conversation, python_code
from functionary_vllm.errors import InvalidRequest
from functionary_vllm.events import Event, merge
from functionary_vllm.formats.base import CODE_FUNCTION
from functionary_vllm.formats.prompt import Prompt
from functionary_vllm.formats.reading.decoder import Decoder
from functionary_vllm.formats.reading.envelope import Envelope
from functionary_vllm.formats.reading.machine import Machine, Offered
from functionary_vllm.formats.reading.scanner import Reading
from functionary_vllm.formats.template import TemplateFormat

PREFIX = "vllm:"
_BEGIN = "\ue002"  # stands, while a prompt is made, where the answer's turn begins
_THINK = re.compile(r"[<\[][^<>\[\]]*think[^<>\[\]]*[>\]]\s*\Z", re.IGNORECASE)

_log = logging.getLogger(__name__)


class UnknownParser(LookupError):
    """vLLM has no such parser, or there is no vLLM. The message lists what there is."""


def vllm_format(name: str) -> type[VllmParser]:
    """The format `vllm:NAME[:REASONING]`. Imports vllm. Raises UnknownParser."""
    asked_tool, _, asked_reasoning = name.removeprefix(PREFIX).partition(":")
    try:
        from vllm.reasoning import ReasoningParserManager
        from vllm.tool_parsers import ToolParserManager
    except ModuleNotFoundError as error:
        raise UnknownParser(f"The format {name!r} needs vLLM, which is not installed ({error}).") from error
    for kind, asked, known in (
        ("tool", asked_tool, ToolParserManager.list_registered()),
        ("reasoning", asked_reasoning, ["", *ReasoningParserManager.list_registered()]),
    ):
        if asked not in known:
            raise UnknownParser(f"vLLM has no {kind} parser {asked!r}; it has {', '.join(filter(None, known))}.")

    class Chosen(VllmParser):
        tool = asked_tool
        reasoning = asked_reasoning or None

    Chosen.name = name
    return Chosen


class VllmParser(TemplateFormat):
    """One of vLLM's tool parsers, with one of its reasoning parsers where one is named."""

    parser = "vllm"
    tool: ClassVar[str]
    reasoning: ClassVar[str | None]
    # How a forced call is written.
    calls_open = "["
    call_begin = '{"name": "'
    call_close = "}"
    call_separator = ", "
    calls_close = "]"

    def __init__(self, tokenizer: Any | None = None) -> None:
        super().__init__(tokenizer)
        self.stop = _end_tokens(tokenizer)  # type: ignore[misc]  # the checkpoint's, as no family is known
        self._failed = False

    def call_open(self, name: str) -> str:
        return f'{{"name": {json.dumps(name)}, "parameters": '

    def call_marks(self, names: object) -> tuple[str, ...]:
        return ()  # how this model begins a call, only vLLM's parser knows

    def lacks(self) -> str | None:
        if (reason := super().lacks()) is not None:
            return reason
        if self.tool == "openai":
            return "vLLM reads gpt-oss without that parser; --format gpt-oss does it here."
        try:
            self.parsers[True](self.vllm_tokenizer)
        except Exception as error:  # these parsers raise what they like
            return f"{self.name} cannot be used with this model's tokenizer: {' '.join(str(error).split())}"
        return None

    @cached_property
    def parsers(self) -> dict[bool, Any]:
        """vLLM's parser class by whether calls may be made; None where there is nothing to be parsed."""
        from vllm.parser import ParserManager

        return {
            calls: ParserManager.get_parser(self.tool if calls else None, self.reasoning, enable_auto_tools=True)
            for calls in (True, False)
        }

    @cached_property
    def vllm_tokenizer(self) -> Any:
        """The tokenizer as vLLM wraps it: its parsers ask for the whole vocabulary, once an answer."""
        from vllm.tokenizers.hf import get_cached_tokenizer

        tokenizer: Any = self.tokenizer
        return tokenizer if hasattr(tokenizer, "max_token_id") else get_cached_tokenizer(tokenizer)

    def failed(self, error: Exception) -> None:
        self.on_failure()
        if not self._failed:
            self._failed = True
            _log.error("vLLM's parser failed, so the rest of an answer is text (told once): %r", error, exc_info=error)

    # -- render --------------------------------------------------------------------------------------------------

    def render(self, conversation: Conversation) -> Prompt:
        self._check(conversation)
        parts = self.written(conversation)
        place = max(i for i, part in enumerate(parts) if isinstance(part, str) and _BEGIN in part)
        before, _, after = str(parts[place]).rpartition(_BEGIN)
        begin = after + "".join(part if isinstance(part, str) else part.text for part in parts[place + 1 :])
        parts[place] = before + after
        forced = self.opened(conversation)
        if forced and begun_to_think(begin):
            raise InvalidRequest(
                f"With the format {self.name}, no call can be forced on a model whose prompt begins its thoughts; "
                "turn thinking off, or use tool_choice auto.",
                param="tool_choice",
            )
        return Prompt((*parts, forced), forced, self.stop) if forced else Prompt(tuple(parts), begin, self.stop)

    def opened(self, conversation: Conversation) -> str:
        # Without the closing quote: quote and colon are one token in what models were trained on.
        return super().opened(conversation).removesuffix('": ')

    def _apply(self, turns: list[dict[str, Any]], tools: list[Any] | None, conversation: Conversation) -> str:
        # vLLM's parsers are told how the answer's turn begins: whether the model is thinking already.
        whole = super()._apply(turns, tools, conversation)
        options = {"tokenize": False, "add_generation_prompt": False, **self.switches(conversation)}
        without = str(self.tokenizer.apply_chat_template(turns, tools=tools, **options))  # type: ignore[union-attr]
        begin = len(without if whole.startswith(without) else whole)
        return whole[:begin] + _BEGIN + whole[begin:]

    def _check(self, conversation: Conversation) -> None:
        """Refuse what only a format of our own can enforce."""
        free = conversation.choice.mode == "auto"
        if free and any(function.strict for function in conversation.functions):
            raise InvalidRequest(f"Strict functions are not available with the format {self.name}.", param="tools")
        if conversation.response_schema is not None and (free or self.reasoning):
            beside = "functions" if free else "a reasoning parser"
            raise InvalidRequest(
                f"response_format is not available beside {beside} with the format {self.name}.",
                param="response_format",
            )

    # -- read ----------------------------------------------------------------------------------------------------

    def grammar(self, m: Machine) -> Reading[None]:
        # "[" {"name": N, "parameters": {...}} ("," {...})* "]"
        yield from m.choose(self.calls_open)
        while True:
            envelope = Envelope(m)
            yield from envelope.run()
            if not envelope.opened:
                return m.give_back(m.text, "".join(envelope.read))
            yield from m.read_space()
            if not (yield from m.choose(",")):
                break
        yield from m.choose(self.calls_close)
        return None

    def decode(
        self, offered: Offered, opened: str = "", *, stops: Sequence[str] = (), max_calls: int | None = None
    ) -> Decoder:
        kind = Decoder if opened.startswith(self.calls_open + self.call_begin) else VllmDecoder
        return kind(self, offered, opened, stops=stops, max_calls=max_calls)


def begun_to_think(begin: str) -> bool | None:
    """Whether the beginning of a turn opens the model's thoughts (true), closes them (false), or says nothing."""
    found = _THINK.search(begin)
    return None if found is None else not ("/" in found.group() or "end" in found.group().lower())


def _end_tokens(tokenizer: Any) -> tuple[str, ...]:
    """The tokens that end an answer: the tokenizer's, and those of generation_config.json, as vLLM takes them."""
    if tokenizer is None:
        return ()
    from transformers import GenerationConfig

    ids = [tokenizer.eos_token_id]
    with suppress(OSError, ValueError):
        if tokenizer.name_or_path:
            more = GenerationConfig.from_pretrained(tokenizer.name_or_path).eos_token_id
            ids += more if isinstance(more, list) else [more]
    return tuple(dict.fromkeys(tokenizer.convert_ids_to_tokens([i for i in ids if i is not None])))


class VllmDecoder(Decoder):
    """Reads one choice with vLLM's parser."""

    def __init__(self, fmt: VllmParser, offered: Offered, opened: str = "", **limits: Any) -> None:
        super().__init__(fmt, offered, **limits)
        if fmt.tokenizer is None:
            raise ValueError(f"{fmt.name} reads nothing without a tokenizer")
        self.machine = Machine(fmt.alphabet, offered)  # no grammar: what is told here becomes events
        self._fmt = fmt
        self._prompt_ids = list(fmt.tokenizer.encode(opened, add_special_tokens=False))
        self._parser: Any = None
        self._request: Any = None
        try:
            self._begin(offered, opened)
        except Exception as error:  # foreign code: whatever it raises, the answer goes on
            self._parser = None
            fmt.failed(error)
        self._text = _Text(fmt.vllm_tokenizer, self._prompt_ids, getattr(self._request, "skip_special_tokens", True))
        self._untold: list[str] = []  # what was received since the parser last said something
        self._told = 0  # how far the text that was told reaches
        self._call: _Call | None = None
        self._end_ids: list[int] = []

    def _begin(self, offered: Offered, opened: str) -> None:
        """vLLM's parser and the request that it is given, as vLLM's server makes them."""
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest

        kind = self._fmt.parsers[offered.calls]
        if kind is None:
            return
        functions = [{"name": name, "parameters": dict(offered.schemas.get(name, {}))} for name in offered.names]
        functions += [dict(CODE_FUNCTION.definition)] if offered.python else []
        tools = [{"type": "function", "function": function} for function in functions] if offered.calls else []
        request = ChatCompletionRequest.model_validate(
            {"messages": [], "tools": tools or None, "tool_choice": "auto" if tools else "none"}
        )
        thinking = begun_to_think(opened)
        switches = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        self._parser = kind(self._fmt.vllm_tokenizer, request.tools, chat_template_kwargs=switches)
        self._request = self._parser.adjust_request(request)

    @property
    def pending(self) -> bool:
        return self._text.pending

    def feed(self, token_ids: Sequence[int]) -> list[Event]:
        events: list[Event] = []
        for token_id in token_ids:
            if self.done:
                break
            if token_id in self._fmt.stop_token_ids:
                self._end_ids = [token_id]
                events += self.finish()
            else:
                self._read(self._text.feed(token_id), [token_id])
                events += self._pass(self.machine.feed(""))
        return merge(events) if len(token_ids) > 1 else events

    def feed_text(self, text: str) -> list[Event]:
        raise ValueError(f"{self._fmt.name} reads token ids only")

    def _remainder(self, *, cut: bool) -> list[Event]:
        self._read(self._text.finish(), self._end_ids, finished=True, cut=cut)
        if self._call is not None and not cut and not self._call.told:
            self.machine.call_end()
        return self.machine.finish(cut=cut)

    def _read(self, text: str, token_ids: list[int], *, finished: bool = False, cut: bool = False) -> None:
        self._received += len(text)
        self._untold.append(text)
        delta = None
        if self._parser is not None:
            try:
                delta = self._parser.parse_delta(
                    text, token_ids, self._request, prompt_token_ids=self._prompt_ids, finished=finished
                )
            except Exception as error:  # as above
                self._parser = None
                self._fmt.failed(error)
        if self._parser is None:
            rest = "".join(self._untold)
            self._untold.clear()
            self.machine.text(rest, self._received - len(rest))
        elif delta is not None:
            self._tell(delta, [] if cut else delta.tool_calls or [])
        if self._call is not None and self._call.whole and (finished or not (delta and delta.tool_calls)):
            # Whole, and nothing more was said of it: only now, as arguments may be told in parts.
            self._call = None
            self.machine.call_end()

    def _tell(self, delta: Any, calls: Sequence[Any]) -> None:
        content = delta.content or ""
        if content or delta.reasoning or calls:
            self._untold = ["".join(self._untold).partition(content)[2] if content else ""]
        if delta.reasoning:
            self.machine.reasoning(delta.reasoning, 0)
        if content:
            start = max(self._told, self._received - len(content) - len(self._untold[0]))
            self._told = start + len(content)
            self.machine.text(content, start)
        for call in calls:
            self._tell_call(call.index, getattr(call.function, "name", None), getattr(call.function, "arguments", None))

    def _tell_call(self, index: int, name: str | None, arguments: str | None) -> None:
        if name and (self._call is None or self._call.index != index):
            if self._call is not None and (self._call.whole or not self._call.told):
                self.machine.call_end()
            self.machine.call(name)
            self._call = _Call(index, raw=self.machine.python == "raw" and self.machine.offers_code(name))
        if not arguments:
            return
        if self._call is None or self._call.index != index:  # of no call that is open
            self.machine.text(arguments, self._received)
        elif told := self._call.add(arguments):
            self.machine.arguments(told, self._received)


class _Call:
    """The arguments of a call as they come, and whether they are whole. Code that is wanted raw waits for its end."""

    def __init__(self, index: int, *, raw: bool) -> None:
        self.index = index
        self.told = False
        self.whole = False
        self._raw: list[str] | None = [] if raw else None
        self._depth = 0
        self._quoted = self._escaped = False

    def add(self, text: str) -> str:
        """What of these characters goes out."""
        self.told = True
        for char in text:
            self._count(char)
        if self._raw is None:
            return text
        self._raw.append(text)
        return python_code("".join(self._raw)) if self.whole else ""

    def _count(self, char: str) -> None:
        if self._quoted:
            self._quoted = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char == '"':
            self._quoted = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.whole = self._depth == 0


class _Text:
    """vLLM's own detokenizer, with an end: bytes that are no character are told there."""

    def __init__(self, tokenizer: Any, prompt_ids: list[int], skip_special: bool) -> None:
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        self._tokenizer = tokenizer
        self._skipped = frozenset(tokenizer.all_special_ids) if skip_special else frozenset()
        request: Any = SimpleNamespace(
            request_id="",
            sampling_params=SamplingParams(skip_special_tokens=skip_special),
            prompt_token_ids=prompt_ids,
            prompt_embeds=None,
        )
        self._detokenizer = IncrementalDetokenizer.from_new_request(tokenizer, request)
        self._held: list[int] = []

    @property
    def pending(self) -> bool:
        return bool(self._held)

    def feed(self, token_id: int) -> str:
        if token_id not in self._skipped:
            self._held.append(token_id)
        self._detokenizer.update([token_id], False)
        text = self._detokenizer.get_next_output_text(finished=False, delta=True)
        if text:
            self._held.clear()
        return text

    def finish(self) -> str:
        return str(self._tokenizer.decode(self._held)) if self._held else ""
