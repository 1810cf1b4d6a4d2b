"""Checked fields for frozen config dataclasses: help text, type and range stand beside the field, once.

    @dataclass(frozen=True, kw_only=True)
    class SamplerConfig:
        temperature: float = setting(1.0, help="0 is greedy", low=0.0, high=2.0)

        def __post_init__(self) -> None:
            check_fields(self)

``check_fields`` raises ConfigError with the field's name, its range and what was given. None is allowed where the
annotation says ``| None``: it means "off".
"""

import dataclasses
import sys
import typing
from types import UnionType
from typing import Any

from pelagos.common.errors import ConfigError


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002  the field's name in every command-line library
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field with help text and, for numbers, an inclusive range ``low..high``, or a set of ``choices``."""
    metadata = {"help": help, "low": low, "high": high, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(config: Any) -> None:
    """Check every field made with ``setting``: int, float, bool, str, their ``| None``; others check themselves."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        if "help" in field.metadata:
            check_value(field.name, getattr(config, field.name), hints[field.name], **_limits(field))


def read_field(config_class: type, field_name: str, value: object, *, shown_as: str) -> Any:
    """``value`` if that field of a dataclass allows it, as float where the field is one. Messages say ``shown_as``."""
    [field] = [field for field in dataclasses.fields(config_class) if field.name == field_name]
    hint = typing.get_type_hints(config_class)[field_name]
    check_value(shown_as, value, hint, **_limits(field))
    is_float = value is not None and float in (hint, *typing.get_args(hint))
    return float(typing.cast(float, value)) if is_float else value


def check_value(
    name: str,
    value: object,
    hint: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> None:
    """Raise ConfigError unless ``value`` fits the type hint and the range; ``name`` is what the message calls it."""
    kinds = typing.get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return
    kind = next((k for k in kinds if k in (bool, int, float, str)), None)
    if choices is not None:
        if value not in choices:
            raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {show(value)}")
    elif kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ConfigError(f"{name} must be {'true or false' if kind is bool else 'text'}, got {show(value)}")
    elif kind in (int, float):
        _check_number(name, value, kind is int, low, high)


def _check_number(name: str, value: object, whole: bool, low: float | None, high: float | None) -> None:
    ok = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if ok:
        number = typing.cast(float, value)
        ok = abs(number) <= sys.float_info.max  # false for NaN and infinity, and exact for integers of any size
        ok = ok and (low is None or number >= low) and (high is None or number <= high)
    if not ok:
        what = "a whole number" if whole else "a number"
        limits = f" from {_limit(low)} to {_limit(high)}" if low is not None and high is not None else ""
        limits = limits or (f" of at least {_limit(low)}" if low is not None else "")
        raise ConfigError(f"{name} must be {what}{limits}, got {show(value)}")


def _limit(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:.10g}"


def _limits(field: "dataclasses.Field[Any]") -> dict[str, Any]:
    return {key: field.metadata[key] for key in ("low", "high", "choices")}


def show(value: object) -> str:
    """A value in a message: at most 80 characters, whatever it is."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
