"""Request bodies: bytes to a checked model, and what is wrong with them in words.

In: a request, a pydantic model. Out: an instance of it, or the one error that tells best: 413 while reading, 415,
400 for what is no JSON or has a value out of range, 422 for JSON of the wrong shape; `param` is a dotted path into
the body (`messages[0].content`). Refuses to know what the fields mean.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from functionary_vllm.errors import ApiError, BodyTooLarge, InvalidRequest, Unprocessable, UnsupportedMediaType

Model = TypeVar("Model", bound=BaseModel)

_KINDS = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "a boolean",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
}

_RANGES = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_long": "must have at most {max_length} items",
    "too_short": "must have at least {min_length} items",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "literal_error": "must be {expected}",
}


async def read_body(request: Request, model: type[Model], limit: int) -> Model:
    check_media_type(request)
    return validate(parse(await read(request, limit)), model)


def check_media_type(request: Request) -> None:
    given = request.headers.get("content-type", "application/json")  # a missing one is forgiven
    kind = given.partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise UnsupportedMediaType(f"Unsupported content type {given!r}: send application/json.")


async def read(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be too large: by its header, or while it comes in chunks."""
    declared = request.headers.get("content-length", "")
    too_large = BodyTooLarge(f"The request body is larger than {limit} bytes.")
    if re.fullmatch("[0-9]{1,18}", declared) and int(declared) > limit:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise too_large
        pieces.append(piece)
    return b"".join(pieces)


def parse(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None
    if not isinstance(value, dict):
        raise Unprocessable("The request body must be a JSON object.")
    return value


def validate(body: dict[str, Any], model: type[Model]) -> Model:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _explain(body, error) from None


def _explain(body: dict[str, Any], error: ValidationError) -> ApiError:
    """One problem in words: the deepest, because that is in the branch of a union which was meant."""
    problems = error.errors(include_url=False)
    paths = [_path(body, p["loc"], missing=p["type"] == "missing") for p in problems]
    # The first field that is wrong decides, even where a later one is wrong more deeply.
    field = problems[0]["loc"][:1]
    mine = [(p, path) for p, path in zip(problems, paths, strict=True) if p["loc"][:1] == field]
    _, param = max(mine, key=lambda pair: len(pair[1]))
    same = [p for p, path in mine if path == param]
    if same[0]["type"] == "missing":
        return Unprocessable(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if all(p["type"] in _KINDS for p in same):
        wanted = " or ".join(dict.fromkeys(_KINDS[p["type"]] for p in same))
        return Unprocessable(f"Invalid type for '{param}': expected {wanted}.", param=param)
    told = next(p for p in same if p["type"] not in _KINDS)
    words = _RANGES.get(told["type"])
    message = words.format(**told["ctx"]) if words else told["msg"].removeprefix("Value error, ")
    return InvalidRequest(f"Invalid value for '{param}': {message}.", param=param)


def _path(body: Any, location: tuple[int | str, ...], *, missing: bool) -> str:
    """pydantic's location without the names it gives to the branches of unions, which are no part of the body."""
    path = ""
    node = body
    for depth, step in enumerate(location):
        if isinstance(node, dict) and step in node:
            path += f".{step}" if path else str(step)
            node = node[step]
        elif isinstance(node, list) and isinstance(step, int):
            path += f"[{step}]"
            node = node[step]
        elif missing and depth == len(location) - 1:
            path += f".{step}" if path else str(step)
    return path
