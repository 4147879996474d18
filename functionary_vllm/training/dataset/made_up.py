"""Strings that nobody needs a pool for: ids, addresses, file names, sentences. In: a random generator. Out: text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from functionary_vllm.training.dataset.pools import pick

Maker = Callable[[Random, bool], str]  # the second: from the held-out part of pools


def _slug(text: str) -> str:
    return "".join(char for char in text.lower() if char.isalnum() or char == " ").replace(" ", "-")


def _code(rng: Random, held_out: bool) -> str:
    letters = "".join(rng.choice("ABCDEFGHJKLMNPRSTUVWXYZ") for _ in range(rng.randint(1, 3)))
    digits = "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 6)))
    return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"{letters.lower()}_{digits}", digits))


def _address(rng: Random, held_out: bool) -> str:
    street = f"{rng.randint(1, 990)} {pick('street', rng, held_out)}"
    return street if rng.random() < 0.4 else f"{street}, {pick('city', rng, held_out)}"


def _email(rng: Random, held_out: bool) -> str:
    first, company = pick("first_name", rng, held_out), pick("company", rng, held_out)
    surname = rng.choice(("", f".{_slug(pick('surname', rng, held_out))}"))
    return f"{_slug(first)}{surname}@{_slug(company)}.{rng.choice(('com', 'org', 'io'))}"


def _phone(rng: Random, held_out: bool) -> str:
    digits = "".join(rng.choice("0123456789") for _ in range(7))
    return rng.choice(
        (f"+1-{rng.randint(200, 990)}-{digits[:3]}-{digits[3:]}", f"+44 20 {digits}", f"555-{digits[:4]}")
    )


def _path(rng: Random, held_out: bool) -> str:
    parts = [pick("folder_word", rng, held_out) for _ in range(rng.randint(1, 3))]
    return "/" + "/".join(parts)


def _filename(rng: Random, held_out: bool) -> str:
    ending = rng.choice(("pdf", "csv", "txt", "png", "json", "docx", "xlsx", "md", "py", "zip"))
    return f"{pick('folder_word', rng, held_out)}{rng.choice(('', '_' + str(rng.randint(1, 2026))))}.{ending}"


def _username(rng: Random, held_out: bool) -> str:
    return f"{_slug(pick('first_name', rng, held_out))}{rng.choice(('_', '', '.'))}{rng.randint(1, 999)}"


def _person(rng: Random, held_out: bool) -> str:
    return f"{pick('first_name', rng, held_out)} {pick('surname', rng, held_out)}"


def _domain(rng: Random, held_out: bool) -> str:
    return f"{_slug(pick('company', rng, held_out))}.{rng.choice(('com', 'org', 'net', 'io', 'dev'))}"


def _ip(rng: Random, held_out: bool) -> str:
    return ".".join(str(rng.randint(1, 250)) for _ in range(4))


def _sentence(rng: Random, held_out: bool) -> str:
    return pick("sentence_text", rng, held_out)


MAKERS: Mapping[str, Maker] = {
    "person": _person,
    "address": _address,
    "email": _email,
    "phone": _phone,
    "username": _username,
    "filename": _filename,
    "path": lambda rng, held_out: f"{_path(rng, held_out)}/{_filename(rng, held_out)}",
    "folder": _path,
    "url": lambda rng, held_out: f"https://{_domain(rng, held_out)}{_path(rng, held_out)}",
    "domain": _domain,
    "hostname": lambda rng, held_out: f"{pick('folder_word', rng, held_out)}-{rng.randint(1, 40)}",
    "ip": _ip,
    "id": _code,
    "order_id": _code,
    "order_code": _code,
    "code": _code,
    "message": _sentence,
    "sentence": _sentence,
    "paragraph": lambda rng, held_out: f"{_sentence(rng, held_out)} {_sentence(rng, held_out)}",
    "title": lambda rng, held_out: pick("title_text", rng, held_out),
}
QUOTED = frozenset({"message", "sentence", "paragraph", "title"})
