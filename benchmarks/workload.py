"""What is asked, and when: planned from a seed before the first request goes out.

In: a profile, ranges of lengths, a seed; or a file of requests. Out: times of arrival, and sessions by number: the same
seed gives the same bytes, whatever order they are asked for in. A session is one request, or for the agent profile a
conversation whose next body is made from the former answer. Nothing here knows HTTP or the clock. Sessions share no
prefix unless it is asked for, as repeated prompts would measure a server's prefix cache.

profiles   chat      a task over a text                tools   one function fits the task, others stand beside it
           parallel  several calls are asked for       agent   several turns, tool results in between
           bfcl      the Berkeley Function Calling Leaderboard's questions, from its package or a file
"""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.loadgen.folding import Answer

Body = dict[str, Any]
Range = tuple[int, int]  # both ends belong to it

MATERIAL = json.loads(Path(__file__).with_name("material.json").read_text(encoding="utf-8"))
ARRIVALS = ("poisson", "constant", "burst", "closed")
MAX_TOKENS = 256  # of the profiles' answers, unless Form has another
# Of one turn, and with functions in JSON Schema's own types but for BFCL_TYPES.
BFCL_CATEGORIES = (
    *("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance"),
    *("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple"),
)
BFCL_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


class WorkloadError(ValueError):
    """A workload that cannot be made; the message is for the person who asked for it."""


def arrivals(kind: str, rate: float, seed: int, burst: int = 16) -> Iterator[float]:
    """Seconds from the begin, without end. `burst`: so many at once, as seldom as keeps the rate."""
    rng = Random(f"arrivals {seed}")
    if kind == "constant":
        count = 0
        while True:
            yield round(count / rate, 6)
            count += 1
    now = 0.0
    while True:
        now += rng.expovariate(rate / (burst if kind == "burst" else 1))
        for _ in range(burst if kind == "burst" else 1):
            yield round(now, 6)


@dataclass(frozen=True, slots=True)
class Form:
    """How a request is put, whatever it asks."""

    model: str = ""
    stream: bool = True
    usage: bool = True
    tool_choice: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    legacy: bool = False
    extra: Body = field(default_factory=dict)

    def body(self, asked: Body) -> Body:
        """The request as it is sent: what is given here wins over what was asked."""
        body = {**asked, "model": self.model}
        if self.max_tokens is not None:
            body.pop("max_completion_tokens", None)
            body["max_tokens"] = self.max_tokens
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.tool_choice is not None and body.get("tools"):
            body["tool_choice"] = self.tool_choice
        body["stream"] = self.stream
        body.pop("stream_options", None)
        if self.stream and self.usage:
            body["stream_options"] = {"include_usage": True}
        return {**(legacy(body) if self.legacy else body), **self.extra}


def legacy(body: Body) -> Body:
    """The same request in the API's first form, functions: an answer has one call at most."""
    body = {key: value for key, value in body.items() if key not in ("tools", "tool_choice", "parallel_tool_calls")} | (
        {"functions": [tool["function"] for tool in body["tools"]]} if body.get("tools") else {}
    )
    names: dict[str, str] = {}
    messages = []
    for message in body["messages"]:
        message = dict(message)
        if calls := message.pop("tool_calls", None):
            names |= {call["id"]: call["function"]["name"] for call in calls}
            message["function_call"] = calls[0]["function"]
        if message["role"] == "tool":
            message = {
                "role": "function",
                "name": names.get(message["tool_call_id"], "unknown"),
                "content": message["content"],
            }
        messages.append(message)
    return {**body, "messages": messages}


class Session:
    """A conversation: `body` is the request to be sent now; `proceed` makes the next of an answer, if there is one."""

    def __init__(self, body: Body, results: Sequence[str] = ()) -> None:
        self.body = body
        self.turns = 1 + len(results)
        self._results = list(reversed(results))

    def proceed(self, answer: Answer) -> bool:
        if not self._results:
            return False
        result = self._results.pop()
        calls = [
            {"id": call.id or f"call_{i}", "type": "function", "function": {"name": call.name, "arguments": text}}
            for i, call in enumerate(answer.calls)
            # A cut call would be refused by most servers.
            if (text := call.arguments) and is_json(text)
        ]
        said: Body = {"role": "assistant", "content": answer.content or ("" if not calls else None)}
        if calls:
            said["tool_calls"] = calls
        heard: list[Body] = [{"role": "tool", "tool_call_id": call["id"], "content": result} for call in calls]
        heard = heard or [{"role": "user", "content": f"This is what I found: {result} Go on with the next step."}]
        self.body = {**self.body, "messages": [*self.body["messages"], said, *heard]}
        return True


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Mix:
    """What the sessions of a profile vary over."""

    profile: str = "tools"
    seed: int = 0
    words: Range = (20, 400)
    tools: Range = (1, 20)
    turns: Range = (2, 6)
    shared_prefix: int = 0
    dataset: Path | None = None


class Workload:
    """Sessions by number, from 0; a dataset begins again where it ends."""

    def __init__(self, mix: Mix, form: Form) -> None:
        self.mix = mix
        self.form = form
        if mix.profile == "bfcl":
            self._asked: list[Body] = [bfcl_request(line) for line in bfcl_lines(mix.dataset)]
            Random(f"bfcl {mix.seed}").shuffle(self._asked)
        else:
            self._asked = chat_requests(mix.dataset) if mix.dataset else []

    def session(self, number: int) -> Session:
        if self._asked:
            return Session(self._asked[number % len(self._asked)])
        return PROFILES[self.mix.profile](Random(f"{self.mix.profile} {self.mix.seed} {number}"), self.mix)


def prose(rng: Random, words: int) -> str:
    """About so many words of sentences."""
    said: list[str] = []
    while sum(sentence.count(" ") + 1 for sentence in said) < words:
        said.append(" ".join(rng.choice(MATERIAL["prose"][part]) for part in ("who", "does", "what", "when")) + ".")
    return " ".join(said)


def length(rng: Random, between: Range) -> int:
    """Short ones more often, as people write: even on a logarithmic scale."""
    low, high = between
    return min(high, round(low * math.pow(high / max(low, 1), rng.random())))


def system(mix: Mix) -> list[Body]:
    if not mix.shared_prefix:
        return []
    text = prose(Random(f"prefix {mix.seed}"), mix.shared_prefix)
    return [{"role": "system", "content": f"You are a careful assistant. What you should know: {text}"}]


def ask(rng: Random, function: Body) -> str:
    return str(rng.choice(function["asks"])).format(**{k: rng.choice(v) for k, v in MATERIAL["values"].items()})


def offer(rng: Random, mix: Mix) -> list[Body]:
    """The functions of a session: with a shared prefix those of all."""
    rng = Random(f"tools {mix.seed}") if mix.shared_prefix else rng
    return rng.sample(MATERIAL["functions"], length(rng, mix.tools))


def with_tools(messages: list[Body], functions: Sequence[Body]) -> Body:
    tools = [
        {"type": "function", "function": {key: value for key, value in function.items() if key != "asks"}}
        for function in functions
    ]
    return {"messages": messages, "tools": tools, "max_tokens": MAX_TOKENS}


def told(rng: Random, mix: Mix, task: str) -> list[Body]:
    """The system prompt, if shared, and a user message: some text of the range's length, and the task."""
    return [*system(mix), {"role": "user", "content": f"{prose(rng, length(rng, mix.words))}\n\n{task}"}]


def chat_session(rng: Random, mix: Mix) -> Session:
    return Session({"messages": told(rng, mix, rng.choice(MATERIAL["tasks"])), "max_tokens": MAX_TOKENS})


def tools_session(rng: Random, mix: Mix) -> Session:
    offered = offer(rng, mix)
    return Session(with_tools(told(rng, mix, ask(rng, rng.choice(offered))), offered))


def parallel_session(rng: Random, mix: Mix) -> Session:
    offered = offer(rng, mix)
    wishes = [f"{i}. {ask(rng, rng.choice(offered))}" for i in range(1, rng.randint(2, 5) + 1)]
    task = "Do all of this at once, each with a call of its own:\n" + "\n".join(wishes)
    return Session({**with_tools(told(rng, mix, task), offered), "parallel_tool_calls": True})


def agent_session(rng: Random, mix: Mix) -> Session:
    offered = offer(rng, mix)
    turns = rng.randint(*mix.turns)
    steps = [f"{i}. {ask(rng, rng.choice(offered))}" for i in range(1, turns)]
    task = "Work on this step by step, one call at a time, and tell me at the end:\n" + "\n".join(steps)
    results = [
        json.dumps({"ok": True, "step": i, "result": prose(rng, length(rng, mix.words))}) for i in range(1, turns)
    ]
    return Session(with_tools(told(rng, mix, task), offered), results)


PROFILES: dict[str, Callable[[Random, Mix], Session]] = {
    "chat": chat_session,
    "tools": tools_session,
    "parallel": parallel_session,
    "agent": agent_session,
}


def json_lines(path: Path) -> list[Any]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path} cannot be read: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise WorkloadError(f"{path}, line {number}: {error}") from None
    if not found:
        raise WorkloadError(f"{path} has no requests")
    return found


def chat_requests(path: Path) -> list[Body]:
    """Chat requests, one a line: bodies, or lines of OpenAI's batch format that hold one."""
    requests = [line.get("body", line) if isinstance(line, dict) else None for line in json_lines(path)]
    for number, request in enumerate(requests, start=1):
        if not isinstance(request, dict) or not isinstance(request.get("messages"), list):
            raise WorkloadError(f"{path}, request {number}: there are no messages")
    return requests  # type: ignore[return-value]  # each was looked at


def bfcl_lines(dataset: Path | None) -> list[Any]:
    if dataset:
        return json_lines(dataset)
    package = importlib.util.find_spec("bfcl_eval")  # never imported: it wants clients of a dozen vendors
    if package is None or not package.submodule_search_locations:
        raise WorkloadError(
            "the bfcl profile needs the questions: `pip install --no-deps bfcl-eval`, or name a file of them"
            " with --dataset"
        )
    data = Path(package.submodule_search_locations[0]) / "data"
    files = [path for name in BFCL_CATEGORIES for path in data.glob(f"BFCL_v*_{name}.json")]
    if not files:
        raise WorkloadError(f"{data} has none of the files BFCL_v*_{{{','.join(BFCL_CATEGORIES)}}}.json")
    return [line for path in files for line in json_lines(path)]


def bfcl_request(line: Any) -> Body:
    """A question of one turn with its functions, whose types and names are put as OpenAI's API has them."""
    try:
        functions = [
            {**function, "name": function["name"].replace(".", "_"), "parameters": bfcl_schema(function["parameters"])}
            for function in line["function"]
        ]
        return {
            "messages": line["question"][0],
            "tools": [{"type": "function", "function": function} for function in functions],
            "max_tokens": MAX_TOKENS,
        }
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise WorkloadError(f"not a question of BFCL ({error!r}): {str(line)[:80]}") from None


def bfcl_schema(schema: Any) -> Any:
    """Its types are Python's: `dict`, `float`, `tuple`, and `any`, which is said by no type at all."""
    if isinstance(schema, list):
        return [bfcl_schema(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: bfcl_schema(value) for key, value in schema.items() if (key, value) != ("type", "any")}
    if isinstance(kind := kept.get("type"), str):  # a parameter may be called so too
        kept["type"] = BFCL_TYPES.get(kind, kind)
    return kept
