"""Which fields a request may have: each acts, or may only have the values that it would have anyway, or is refused.

    TABLE = FieldTable(acts=("model", "messages"), only={"store": (False,)}, hints=("prompt_cache_key",))

A hint is a text, or an object of texts, that says who asks or what belongs together; no answer depends on it. null is
as good as leaving a field out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pelagos.common.fields import show
from pelagos.serving.errors import ApiError

MAX_HINT_CHARS = 4096


@dataclass(frozen=True, kw_only=True)
class FieldTable:
    """``only`` maps a field to the values that it may have; ``refused`` maps a field to what to do instead."""

    acts: Sequence[str]
    only: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    hints: Sequence[str] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def checked(self, body: Mapping[str, Any], place: str = "") -> dict[str, Any]:
        """The fields that act. Raises ApiError 400 that names the first field that cannot be taken."""
        taken = {}
        for name, value in body.items():
            where = f"{place}.{name}" if place else name
            if value is None:
                continue
            if name in self.acts:
                taken[name] = value
            elif name in self.only:
                if not any(type(value) is type(one) and value == one for one in self.only[name]):
                    values = " or ".join(json.dumps(one, ensure_ascii=False) for one in self.only[name])
                    raise ApiError(400, f"{where} must be {values}, got {show(value)}", param=where)
            elif name in self.hints:
                texts = list(value.values()) if isinstance(value, dict) else [value]
                if not all(isinstance(part, str) for part in texts) or sum(map(len, texts)) > MAX_HINT_CHARS:
                    raise ApiError(400, f"{where} must be a text of at most {MAX_HINT_CHARS} characters", param=where)
            elif name in self.refused:
                raise ApiError(400, f"{where} cannot be used here: {self.refused[name]}", param=where)
            else:
                known = ", ".join((*self.acts, *self.only, *self.hints))
                raise ApiError(400, f"{where[:200]} is not a field of this request; it may have: {known}", param=where)
        return taken


def boolean(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be true or false, got {show(value)}", param=name)
    return value


def whole(body: Mapping[str, Any], name: str, low: int, high: int, default: int | None = None) -> int | None:
    value = body.get(name, default)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ApiError(400, f"{name} must be a whole number from {low} to {high}, got {show(value)}", param=name)
    return value


def text(body: Mapping[str, Any], name: str, max_chars: int = MAX_HINT_CHARS) -> str | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > max_chars):
        raise ApiError(400, f"{name} must be a text of at most {max_chars} characters, got {show(value)}", param=name)
    return value


def obj(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The object in a field, empty if the field is not given."""
    value = body.get(name, {})
    if not isinstance(value, dict):
        raise ApiError(400, f"{name} must be an object, got {show(value)}", param=name)
    return value


def check_types(body: Mapping[str, Any]) -> None:
    """Raise ApiError for simple fields of the wrong type, whose ranges are checked later."""
    for name in ("stream", "logprobs"):
        boolean(body, name)
    for name, high in (("seed", (1 << 63) - 1), ("max_tokens", 1 << 40), ("max_completion_tokens", 1 << 40)):
        whole(body, name, 0, high)
    for name in ("temperature", "top_p"):
        value = body.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ApiError(400, f"{name} must be a number, got {show(value)}", param=name)
