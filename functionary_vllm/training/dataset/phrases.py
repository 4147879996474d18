"""What is said around a request: greetings, questions back, refusals, words after a result; and nonsense names.

In: labels and names. Out: sentences. The last of each list is kept for the held-out split. Refuses to know the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from functionary_vllm.training.dataset.text import join_words, lower_first, upper_first

# {x} is the request, {l} a request with a small first letter.
_WRAPPED = (
    *("Please {l}", "Hi! {x}", "Hey, {l}", "{x} Thanks!", "{x} Thank you.", "Hello. {x}", "I have a question. {x}"),
    *(
        "Quick one: {l}",
        "{x} That's all I need.",
        "{x} It's urgent.",
        "Good morning, {l}",
        "My boss wants to know. {x}",
    ),
    *("{x} I'd appreciate it.", "Sorry to bother you again. {x}", "OK, next: {l}", "For a friend: {l}", "{x} No rush."),
    *("I'm working on something and need help. {x}", "Alright, {l}", "Let me ask you this. {x}"),
)
_ASK_ONE = (
    *(
        "What is the {a}?",
        "Could you tell me the {a}?",
        "I need the {a} for that. What is it?",
        "Which {a} should I use?",
    ),
    *("Sure. What is the {a}?", "Please tell me the {a}.", "To do that I need to know the {a}.", "May I have the {a}?"),
)
_ASK_MORE = (
    *("Could you tell me the {a}?", "I need the {a} for that.", "Please tell me the {a}.", "What are the {a}?"),
    "Sure. I just need the {a}.",
)
_GIVEN = ("{v}", "{v}", "It's {v}.", "{v}, please", "The {a} is {v}.", "{v}.", "{A}: {v}", "Use {v}")
_REFUSED = (
    "I'm sorry, but I can't do that: none of the functions that I have fits.",
    "I can't help with that, since I have no function for it.",
    "None of my functions can do that.",
    "That is not something I can do with the functions at hand.",
    "Sorry, I have no tool for that. Is there something else that I can do for you?",
    "I don't have a function that does this.",
    "I'm afraid I can't do this with the tools that I have.",
    "This is beyond what my functions can do. I only have {names}.",
    "I can't do that. My functions are {names}.",
    "Sorry, that is not possible with {names}.",
)
_CLOSED = ("Thanks!", "Thank you, that's all.", "Great, thanks.", "Perfect.", "Good to know, thank you!")
_WELCOME = (
    *(
        "You're welcome!",
        "Glad to help!",
        "My pleasure. Is there anything else?",
        "You're welcome. Let me know if you need anything else.",
    ),
    "Anytime!",
)
_TOGETHER = (
    "{a} {b}",
    "{a} Also, {l}",
    "{a} And {l}",
    "First {la} Then {l}",
    "{a} After that, {l}",
    "Two things: {la} And {l}",
)
_ADDED = ("{a} And {l}", "{a} Then {l}", "{a} {b}", "{a} And last: {l}")
_SYSTEM = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Use the functions when they help.",
    "You are a function calling assistant. Only call a function when all required information is known.",
    "Answer briefly.",
    "You are an assistant of {company}. Be polite.",
    "Today is {date}.",
    "Don't make assumptions about what values to use with functions. Ask for clarification if a request is ambiguous.",
    "You help {person} with everyday matters.",
    "Use the tools that you are given, or answer yourself when none is needed.",
    "You are a careful assistant who never invents facts.",
)
_SYLLABLES = (
    *("ba", "bri", "cor", "dax", "el", "fen", "gli", "hup", "jor", "kex", "lum", "mip", "nar"),
    *("opt", "plu", "quo", "rin", "sto", "tav", "umb", "vex", "wob", "yil", "zan"),
)


def choose(sentences: Sequence[str], rng: Random, held_out: bool) -> str:
    """One of them; the last only for the held-out split, which has no other."""
    return sentences[-1] if held_out else rng.choice(sentences[:-1])


def wrap(text: str, rng: Random, held_out: bool) -> str:
    """The request as somebody may write it: mostly as it is, sometimes with words around it, or without a full stop."""
    if rng.random() < 0.12:
        text = _ended(text)
        text = choose(_WRAPPED, rng, held_out).format(x=text, l=lower_first(text))
    elif rng.random() < 0.25 and text[-1].isalnum():
        text += "."
    elif rng.random() < 0.08:
        text = lower_first(text)
    return text


def _ended(text: str) -> str:
    return text if text[-1] in ".?!" else f"{text}."


def ask_for(labels: Sequence[str], rng: Random, held_out: bool) -> str:
    """An assistant asks for what was not said."""
    if len(labels) == 1:
        return choose(_ASK_ONE, rng, held_out).format(a=labels[0])
    return choose(_ASK_MORE, rng, held_out).format(a=join_words([labels[0], *(f"the {name}" for name in labels[1:])]))


def give(label: str, said: str, rng: Random, held_out: bool) -> str:
    """The user's answer to that."""
    return choose(_GIVEN, rng, held_out).format(a=label, A=upper_first(label), v=said)


def refuse(names: Sequence[str], rng: Random, held_out: bool) -> str:
    """No function fits."""
    return choose(_REFUSED, rng, held_out).format(names=join_words(names[:4]))


def close(rng: Random, held_out: bool) -> tuple[str, str]:
    """A user's thanks and what an assistant says to them."""
    return choose(_CLOSED, rng, held_out), choose(_WELCOME, rng, held_out)


def together(first: str, second: str, rng: Random, held_out: bool) -> str:
    """Two requests in one message."""
    first = _ended(first)
    form = choose(_TOGETHER, rng, held_out)
    return form.format(a=first, b=second, la=lower_first(first), l=lower_first(second))


def added(text: str, more: str, rng: Random, held_out: bool) -> str:
    """One request more after others."""
    return choose(_ADDED, rng, held_out).format(a=_ended(text), b=more, l=lower_first(more))


def system(rng: Random, held_out: bool) -> str:
    """A system message with slots for values."""
    return choose(_SYSTEM, rng, held_out)


def nonsense(rng: Random) -> str:
    """A word that means nothing."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3))))
