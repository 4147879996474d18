"""What a client keeps of a stream, strictly; and a whole response in the same terms, so that the two compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def fold(chunks: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """What a client keeps of a stream, by choice; it trusts that role, ids and names come once."""
    folded: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            into = folded.setdefault(choice["index"], {"content": None, "calls": {}, "logprobs": None, "finish": None})
            delta = dict(choice["delta"])
            for field in ("role", "refusal"):
                if field in delta:
                    assert field not in into, f"{field} twice"
                    into[field] = delta.pop(field)
            for field in ("content", "reasoning_content"):
                if (piece := delta.pop(field, None)) is not None:
                    into[field] = (into.get(field) or "") + piece
            if (call := delta.pop("function_call", None)) is not None:
                delta["tool_calls"] = [{"index": 0, "type": "legacy", "id": "none", "function": call}]
                if "name" not in call:
                    delta["tool_calls"] = [{"index": 0, "function": call}]
            for call in delta.pop("tool_calls", []):
                if "id" in call:
                    assert call["index"] not in into["calls"], "a call opens twice"
                    assert call["function"]["arguments"] == ""
                    into["calls"][call["index"]] = {"id": call["id"], "type": call["type"], **call["function"]}
                else:
                    assert set(call) == {"index", "function"}
                    assert set(call["function"]) == {"arguments"}
                    into["calls"][call["index"]]["arguments"] += call["function"]["arguments"]
            assert not delta, f"unexpected in a delta: {delta}"
            if choice["logprobs"] is not None:
                into["logprobs"] = (into["logprobs"] or []) + choice["logprobs"]["content"]
            assert into["finish"] is None, "something after the finish"
            into["finish"] = choice["finish_reason"]
    return folded


def folded_whole(response: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """The whole response in the fold's terms, its ids left out."""
    folded = {}
    for choice in response["choices"]:
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        calls += [message["function_call"]] if "function_call" in message else []
        folded[choice["index"]] = {
            "content": message["content"],
            "reasoning": message.get("reasoning_content"),
            "calls": [(call["name"], call["arguments"]) for call in calls],
            "logprobs": choice["logprobs"] and choice["logprobs"]["content"],
            "finish": choice["finish_reason"],
        }
    return folded


def folded_stream(chunks: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The fold in the terms of `folded_whole`: without ids."""
    folded = fold(chunks)
    assert all(choice["role"] == "assistant" for choice in folded.values())
    return {
        index: {
            "content": choice["content"],
            "reasoning": choice.get("reasoning_content"),
            "calls": [(call["name"], call["arguments"]) for _, call in sorted(choice["calls"].items())],
            "logprobs": choice["logprobs"],
            "finish": choice["finish"],
        }
        for index, choice in folded.items()
    }
