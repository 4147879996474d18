"""Functions on offer -> conversations about them: the pipeline from definitions to merged, finished dialogues.

In: a set of Definitions. Out: conversations as OpenAI messages, each of a kind: calls, parallel calls,
results and what is said about them, questions for what is missing, refusals, plain talk. Each step is a function:
what the human says, the call, its result, its interpretation. Refuses to know how functions are chosen and split.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from functionary_vllm.training.dataset import phrases
from functionary_vllm.training.dataset.concepts import PLACEHOLDER, Choices, Items, Parameter, Phrase, leaves
from functionary_vllm.training.dataset.definitions import (
    Definition,
    Made,
    Request,
    arguments,
    can_lack,
    label,
    phrases_of,
    request,
)
from functionary_vllm.training.dataset.interpretation import interpret
from functionary_vllm.training.dataset.kind import Value
from functionary_vllm.training.dataset.text import join_words, tidy, words_of
from functionary_vllm.training.dataset.values import Clock, Day, ListOf, parse_kind

Message = dict[str, Any]
Told = tuple[str, list[Message]]  # a conversation and its kind


@dataclass
class Scene:
    """The functions on offer, others that are not, talk that needs none, and the random generator."""

    offered: Sequence[Definition]
    foreign: Sequence[Definition]  # not on offer, and none on offer could do what they do
    talk: Sequence[tuple[str, str]]
    rng: Random
    held_out: bool = False

    def say(self, definition: Definition, **options: Any) -> Request:
        ways = phrases_of(definition, self.held_out)
        return request(definition, self.rng, phrases=ways, held_out=self.held_out, **options)

    def wrapped(self, text: str) -> str:
        return phrases.wrap(text, self.rng, self.held_out)

    def pick(self) -> Definition:
        return self.rng.choice(self.offered)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def calls(made: Sequence[Made], start: int = 0) -> Message:
    """An assistant turn of calls; ids count up in a conversation."""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{start + i}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for i, call in enumerate(made)
        ],
    }


def result(turn: Message, i: int, content: Any) -> Message:
    """What the i-th call of a turn gave back."""
    return {
        "role": "tool",
        "tool_call_id": turn["tool_calls"][i]["id"],
        "content": json.dumps(content, ensure_ascii=False),
    }


# --- kinds of conversations ----------------------------------------------------------------------------------------


def simple(scene: Scene) -> list[Message] | None:
    """One request, one call."""
    asked = scene.say(scene.pick())
    return None if asked.lacking else [user(scene.wrapped(asked.text)), calls([asked.call])]


def answered(scene: Scene) -> list[Message] | None:
    """A request, its call, what came back, and what the assistant says of it."""
    definition = scene.pick()
    asked = scene.say(definition)
    if asked.lacking or not definition.concept.tell:
        return None
    turn = calls([asked.call])
    content, told = interpret(definition, asked, scene.rng, scene.held_out)
    return [user(scene.wrapped(asked.text)), turn, result(turn, 0, content), assistant(told)]


def followed(scene: Scene) -> list[Message] | None:
    """A request with its answer, then another."""
    first = answered(scene)
    asked = scene.say(scene.pick())
    if first is None or asked.lacking:
        return None
    return [*first, user(scene.wrapped(asked.text)), calls([asked.call], start=1)]


def thanked(scene: Scene) -> list[Message] | None:
    first = answered(scene)
    thanks, welcome = phrases.close(scene.rng, scene.held_out)
    return first and [*first, user(thanks), assistant(welcome)]


def asked_back(scene: Scene, *, go_on: bool = False) -> list[Message] | None:
    """A request that lacks something; with `go_on` it is then given, and the call is made."""
    definition = scene.pick()
    rng = scene.rng
    ways = _that_can_lack(scene, definition)
    needed = [path for path, leaf, optional in leaves(definition.parameters) if not (optional or leaf.choices)]
    if ways and rng.random() < 0.85:
        asked = request(definition, rng, phrases=ways, held_out=scene.held_out, lacking=True)
        text = asked.text
    elif needed and rng.random() < 0.4:
        full = scene.say(definition)
        missing = tuple(path for path in needed if path in full.said)
        asked = Request("", Made(definition.name, {}), {}, missing)
        text = rng.choice(("I'd like to {n}", "I want to {n}.", "Can you {n} for me?", "Please {n}", "{N}")).format(
            n=_with_article(words_of(definition.concept.name)), N=words_of(definition.concept.name).capitalize()
        )
    else:
        return None
    if not asked.lacking or len(asked.lacking) > 3:
        return None
    labels = [label(path) for path in asked.lacking]
    messages = [user(scene.wrapped(text)), assistant(phrases.ask_for(labels, rng, scene.held_out))]
    if not go_on:
        return messages
    given = _drawn(scene, definition, asked.lacking)
    if len(given) == 1:
        (value,) = given.values()
        reply = phrases.give(labels[0], value.said, rng, scene.held_out)
    else:
        reply = ", ".join(
            f"{label(path)} {value.said}" if rng.random() < 0.5 else value.said for path, value in given.items()
        )
    whole = completed(definition, {**asked.said, **given})
    return [*messages, user(tidy(reply)), calls([whole])]


def twins(scene: Scene) -> list[Told] | None:
    """The same request twice: with something left out, for which the assistant asks, and whole, which is a call."""
    definition = scene.pick()
    ways = _that_can_lack(scene, definition)
    if not ways:
        return None
    asked = request(definition, scene.rng, phrases=ways, held_out=scene.held_out, lacking=True)
    if not asked.lacking or len(asked.lacking) > 3 or asked.phrase is None:
        return None
    said = {**asked.said, **_drawn(scene, definition, asked.lacking)}
    whole = asked.phrase.sentence({path: value.said for path, value in said.items()})
    question = phrases.ask_for([label(path) for path in asked.lacking], scene.rng, scene.held_out)
    return [
        ("ask", [user(scene.wrapped(asked.text)), assistant(question)]),
        ("call", [user(scene.wrapped(whole)), calls([completed(definition, said)])]),
    ]


def _that_can_lack(scene: Scene, definition: Definition) -> list[Phrase]:
    return [phrase for phrase in phrases_of(definition, scene.held_out) if can_lack(definition, phrase)]


def _drawn(scene: Scene, definition: Definition, paths: Sequence[str]) -> dict[str, Value]:
    """Values for parameters that were not said."""
    offered = {path: leaf for path, leaf, _ in leaves(definition.parameters)}
    return {path: offered[path].kind.draw(scene.rng, scene.held_out) for path in paths}


def _with_article(words: str) -> str:
    verb, _, rest = words.partition(" ")
    if not rest or rest.split()[0] in ("a", "the", "to", "by") or rest.endswith("s") or len(rest.split()) > 3:
        return words
    return f"{verb} {'an' if rest[0] in 'aeio' else 'a'} {rest}"


def completed(definition: Definition, said: Mapping[str, Value]) -> Made:
    """The call for all that was said so far."""
    return Made(definition.name, arguments(definition.parameters, definition.style, said))


def declined(scene: Scene) -> list[Message] | None:
    """Something that no function can do: a neighbour's near miss, or what another function would be for."""
    rng, names = scene.rng, [definition.name for definition in scene.offered]
    definition = scene.pick()
    if definition.concept.near and rng.random() < 0.45:
        near = rng.choice(definition.concept.near)
        known = {path: leaf.kind for path, leaf, _ in leaves(definition.concept.parameters)}
        said = {name: (known.get(name) or parse_kind(name)).draw(rng, scene.held_out).said for name in near.slots()}
        text = near.sentence(said)
    elif scene.foreign:
        asked = scene.say(rng.choice(scene.foreign))
        if asked.lacking:
            return None
        text = asked.text
    else:
        return None
    if any(_speaks_of(text, other.concept.names) for other in scene.offered if other is not definition):
        return None
    return [user(scene.wrapped(text)), assistant(phrases.refuse(names, rng, scene.held_out))]


def _speaks_of(text: str, names: Sequence[str]) -> bool:
    """Whether all words of one of the names stand in the text: then it may be meant, and cannot be refused."""
    said = {word.rstrip("s") for word in re.findall(r"\w+", text.lower())}
    return any({word.rstrip("s") for word in name.lower().split()[1:]} <= said for name in names if " " in name)


def declined_then(scene: Scene) -> list[Message] | None:
    """A refusal, then a request that can be served."""
    first, then = declined(scene), simple(scene)
    return first + then if first and then else None


def talked(scene: Scene) -> list[Message] | None:
    """Talk, with functions on offer that nobody needs."""
    if not scene.talk:
        return None
    said, answer = scene.rng.choice(scene.talk)
    return [user(said), assistant(answer)]


def several(scene: Scene) -> list[Message] | None:
    """One message that asks for two or more calls, at times with their results."""
    rng = scene.rng
    made = _shared(scene) if rng.random() < 0.55 else _joined(scene)
    if made is None:
        return None
    text, requests = made
    turn = calls([asked.call for _, asked in requests])
    messages = [user(scene.wrapped(text)), turn]
    if rng.random() < 0.2 and all(definition.concept.tell for definition, _ in requests):
        told = []
        for i, (definition, asked) in enumerate(requests):
            content, words = interpret(definition, asked, scene.rng, scene.held_out)
            messages.append(result(turn, i, content))
            told.append(words)
        messages.append(assistant(" ".join(told)))
    return messages


_Several = tuple[str, list[tuple[Definition, Request]]]


def _joined(scene: Scene) -> _Several | None:
    """Two or three requests, of one function or of several, one after the other."""
    rng = scene.rng
    first = scene.pick()
    second = first if rng.random() < 0.4 else scene.pick()
    chosen = [first, second, *([scene.pick()] if rng.random() < 0.2 else [])]
    requests = [(definition, scene.say(definition)) for definition in chosen]
    made = [json.dumps([asked.call.name, asked.call.arguments]) for _, asked in requests]
    if any(asked.lacking for _, asked in requests) or len(set(made)) < len(made):
        return None
    text = phrases.together(requests[0][1].text, requests[1][1].text, rng, scene.held_out)
    if len(requests) == 3:
        text = phrases.added(text, requests[2][1].text, rng, scene.held_out)
    return text, requests


def _shared(scene: Scene) -> _Several | None:
    """One request with two or three values where one is expected: a call for each of them.

    With two such places the values belong together one by one ("respectively").
    """
    rng, definition = scene.rng, scene.pick()
    base = scene.say(definition)
    offered = {path: leaf for path, leaf, _ in leaves(definition.parameters)}
    able = [path for path in base.said if _single(offered[path])]
    if base.lacking or not able or base.phrase is None:
        return None
    pair = len(able) > 1 and rng.random() < 0.3
    paths = rng.sample(able, 2 if pair else 1)
    count = rng.choice((2, 2, 2, 3, 3, 4))
    columns: dict[str, list[Value]] = {}
    for path in paths:
        values = [offered[path].kind.draw(rng, scene.held_out) for _ in range(count)]
        if len({repr(value.value) for value in values}) < count:
            return None
        columns[path] = values
    spoken = {name: value.said for name, value in base.said.items()}
    spoken.update(
        {path: join_words([v.said for v in values], oxford=rng.random() < 0.3) for path, values in columns.items()}
    )
    text = base.phrase.sentence(spoken)
    if pair:
        mark = text[-1] if text[-1] in ".?!" else ""
        text = f"{text.rstrip('.?!')}, respectively{mark}"
    requests = []
    for i in range(count):
        said = {**base.said, **{path: values[i] for path, values in columns.items()}}
        requests.append((definition, Request(text, completed(definition, said), said)))
    return text, requests


def _single(parameter: Parameter) -> bool:
    """Whether two values joined by "and" are understood as two, one for each call."""
    kind = parameter.kind
    return not isinstance(kind, (ListOf, Items, Choices, Day, Clock)) and kind.schema()["type"] in (
        "string",
        "integer",
        "number",
    )


# --- the mix -------------------------------------------------------------------------------------------------------


def _alone(kind: str, make: Callable[[Scene], list[Message] | None]) -> Callable[[Scene], list[Told] | None]:
    def one(scene: Scene) -> list[Told] | None:
        messages = make(scene)
        return [(kind, messages)] if messages else None

    return one


_MIX: tuple[tuple[int, Callable[[Scene], list[Told] | None]], ...] = (
    (38, _alone("call", simple)),
    (13, _alone("parallel", several)),
    (8, _alone("result", answered)),
    (4, _alone("call", followed)),
    (1, _alone("chat", thanked)),
    (10, _alone("ask", asked_back)),
    (14, twins),
    (7, _alone("call", lambda scene: asked_back(scene, go_on=True))),
    (18, _alone("decline", declined)),
    (2, _alone("call", declined_then)),
    (6, _alone("chat", talked)),
)


def converse(scene: Scene, count: int) -> Iterator[Told]:
    """`count` conversations or one more about the functions of the scene, each with its kind."""
    weights = [weight for weight, _ in _MIX]
    first: set[str] = set()
    for _ in range(20 * count):
        if len(first) >= count:
            return
        _, make = scene.rng.choices(_MIX, weights)[0]
        for kind, messages in make(scene) or ():
            if messages[0]["content"] in first:
                continue
            first.add(messages[0]["content"])
            yield (
                ("result" if kind == "parallel" and messages[-1].get("content") else kind),
                _told_first(scene, messages),
            )


def _told_first(scene: Scene, messages: list[Message]) -> list[Message]:
    """Now and then with a system message before."""
    if scene.rng.random() >= 0.12:
        return messages
    said = phrases.system(scene.rng, scene.held_out)
    told = PLACEHOLDER.sub(lambda found: parse_kind(found[1]).draw(scene.rng, scene.held_out).said, said)
    return [{"role": "system", "content": told}, *messages]
