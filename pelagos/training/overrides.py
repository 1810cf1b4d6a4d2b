"""Changing single fields of a run by their path, ``optimizer.peak_lr=0.01``, and listing all of them."""

import ast
import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from pelagos.common.errors import ConfigError, UsageError
from pelagos.common.fields import show

Config = TypeVar("Config")


def with_settings(config: Config, settings: Sequence[str]) -> Config:
    """``config`` with each ``path=value`` applied, in order. Raises UsageError for a path that does not exist, listing
    what does, and ConfigError, naming the path, for a value that the field does not take."""
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set must be path=value, got {show(setting)}")
        config = _replaced(config, path.split("."), text, path)
    return config


def _replaced(config: Any, path: Sequence[str], text: str, whole: str) -> Any:
    name, *rest = path
    if isinstance(config, tuple):
        if not (name.isdigit() and int(name) < len(config)):
            raise UsageError(f"--set {whole}: {name!r} must be a number from 0 to {len(config) - 1}")
        items = list(config)
        items[int(name)] = _replaced(items[int(name)], rest, text, whole) if rest else _value(text)
        return tuple(items)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise UsageError(f"--set {whole}: there is nothing below {name!r}")
    fields = {field.name: field for field in dataclasses.fields(config)}
    if name not in fields:
        raise UsageError(f"--set {whole}: {name!r} must be one of {', '.join(fields)}")
    value = text if text in (fields[name].metadata.get("choices") or ()) else _value(text)
    if rest:
        value = _replaced(getattr(config, name), rest, text, whole)
    elif dataclasses.is_dataclass(getattr(config, name)):
        raise UsageError(f"--set {whole}: name one of its fields, such as {whole}.{_first_field(config, name)}")
    try:
        return dataclasses.replace(config, **{name: _fitting(config, name, value)})
    except ConfigError as error:
        raise ConfigError(f"--set {whole}: {error}") from None


def _first_field(config: Any, name: str) -> str:
    return dataclasses.fields(getattr(config, name))[0].name


def _fitting(config: Any, name: str, value: Any) -> Any:
    """Whole numbers are taken for fractional fields: 1 for 1.0."""
    hint = typing.get_type_hints(type(config))[name]
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in (hint, *typing.get_args(hint)) else value


def _value(text: str) -> Any:
    """A Python literal, null, true or false, or else the text itself."""
    words = {"null": None, "none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return _tuples(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def settings_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """Path, value and help text, with the accepted range, of every field, in order."""
    for field in dataclasses.fields(config):
        value, path = getattr(config, field.name), f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{path}.")
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, item in enumerate(value):
                yield from settings_of(item, f"{path}.{number}.")
        else:
            yield path, value, _help(field)


def _help(field: "dataclasses.Field[Any]") -> str:
    low, high, choices = (field.metadata.get(name) for name in ("low", "high", "choices"))
    text: str = field.metadata.get("help", "")
    if choices:
        return f"{text} ({', '.join(map(str, choices))})"
    ends = [f"{word} {end}" for word, end in (("from", low), ("to", high)) if end is not None]
    return f"{text} ({' '.join(ends)})" if ends else text
