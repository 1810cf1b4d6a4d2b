"""Chunks of Chat Completions made fewer: what came together goes out together."""

from collections.abc import Iterable
from typing import Any


def joined(chunks: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same deltas in as few chunks as can be: neighbours that add to the same text become one."""
    result: list[dict[str, Any]] = []
    for chunk in chunks:
        key = _text_place(chunk)
        if key is not None and result and _text_place(result[-1]) == key:
            _append(result[-1]["choices"][0], chunk["choices"][0], key)
        else:
            result.append(chunk)
    return result


def _text_place(chunk: dict[str, Any]) -> tuple[str, int] | None:
    """The one text that a chunk adds to: a field, or the arguments of a call; None if it says more than that."""
    if len(chunk["choices"]) != 1 or chunk["choices"][0]["finish_reason"] is not None:
        return None
    delta = chunk["choices"][0]["delta"]
    if "role" in delta:
        return None
    if calls := delta.get("tool_calls"):
        return ("arguments", calls[0]["index"]) if len(calls) == 1 and "id" not in calls[0] else None
    given = [name for name in ("content", "reasoning_content") if delta.get(name) is not None]
    return (given[0], 0) if len(given) == 1 else None


def _append(choice: dict[str, Any], more: dict[str, Any], key: tuple[str, int]) -> None:
    if key[0] == "arguments":
        function = choice["delta"]["tool_calls"][0]["function"]
        function["arguments"] += more["delta"]["tool_calls"][0]["function"]["arguments"]
    else:
        choice["delta"][key[0]] += more["delta"][key[0]]
    for name, entries in (more["logprobs"] or {}).items():
        if entries:
            choice["logprobs"] = choice["logprobs"] or {}
            choice["logprobs"][name] = (choice["logprobs"].get(name) or []) + entries
