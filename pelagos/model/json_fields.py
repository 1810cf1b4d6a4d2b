"""Reading a JSON object that may hold anything: every value is checked, every problem is noted, none is raised."""

import dataclasses
import json
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_value, read_field, show


class JsonFields:
    """One JSON object. ``problems`` is shared with the objects inside it; messages name fields as ``outer.inner``.

    A method gives None where the field is absent, null or wrong; in the last case there is a new problem.
    """

    def __init__(self, data: Mapping[str, Any], *, ignored: Collection[str] = (), place: str = "") -> None:
        self.problems: list[str] = []
        self._data = data
        self._place = place
        self._unread = {name for name, value in data.items() if value is not None and name not in ignored}
        self._inner: list[Self] = []

    def get(self, name: str) -> Any:
        """The value, unchecked."""
        self._unread.discard(name)
        return self._data.get(name)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self._data.get(name) is not None

    def __contains__(self, name: str) -> bool:
        return name in self._data

    def problem(self, text: str) -> None:
        self.problems.append(f"{self._place}{text}")

    def unread(self) -> Iterator[str]:
        """The fields, inner ones too, that are not null, not among ``ignored``, and that no method was asked for."""
        yield from (f"{self._place}{name}" for name in self._unread)
        for fields in self._inner:
            yield from fields.unread()

    def read(self, name: str, owner: type, field: str) -> Any:
        """The value as ``field`` of the config class ``owner``, whose default counts if the field is absent."""
        value = self.get(name)
        if name not in self._data:
            [value] = [each.default for each in dataclasses.fields(owner) if each.name == field]
            if value is dataclasses.MISSING:
                self.problem(f"{name} is missing")
                return None
        try:
            return read_field(owner, field, value, shown_as=f"{self._place}{name}")
        except ConfigError as error:
            self.problems.append(str(error))
            return None

    def whole(self, name: str, *, low: int, high: int, required: bool = False) -> int | None:
        """A whole number."""
        value = self.get(name)
        if value is None:
            if required:
                self.problem(f"{name} is missing")
            return None
        try:
            check_value(f"{self._place}{name}", value, int, low=low, high=high)
        except ConfigError as error:
            self.problems.append(str(error))
            return None
        return typing.cast(int, value)

    def flag(self, name: str) -> bool | None:
        """true or false."""
        value = self.get(name)
        if value is None or isinstance(value, bool):
            return value
        self.problem(f"{name} must be true or false, got {show(value)}")
        return None

    def choice(self, name: str, choices: tuple[Any, ...], *, required: bool = False) -> Any:
        """One of a few values of one type."""
        value = self.get(name)
        if value is None and not required:
            return None
        return value if self._check_choice(name, value, choices) else None

    def items(self, name: str, choices: tuple[Any, ...]) -> list[Any] | None:
        """A list of values, each one of ``choices``."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            self.problem(f"{name} must be a list, got {show(value)}")
            return None
        for place, item in enumerate(value):
            if not self._check_choice(f"{name}[{place}]", item, choices):
                return None
        return list(value)

    def _check_choice(self, name: str, value: object, choices: tuple[Any, ...]) -> bool:
        fits = type(value) is type(choices[0]) and value in choices  # the type first: True equals 1
        if not fits:
            self.problem(f"{name} must be one of {', '.join(map(repr, choices))}, got {show(value)}")
        return fits

    def inner(self, name: str, *, ignored: Collection[str] = ()) -> Self | None:
        """An object inside this one."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.problem(f"{name} must be an object, got {show(value)}")
            return None
        fields = type(self)(value, ignored=ignored, place=f"{self._place}{name}.")
        fields.problems = self.problems
        self._inner.append(fields)
        return fields

    def fixed(self, name: str, expected: object, *, required: bool = False) -> None:
        """Note a problem unless the field has this very value, or is absent or null and not ``required``."""
        value = self.get(name)
        value = list(value) if isinstance(value, tuple) else value
        if value is None and required:
            self.problem(f"{name} is missing: it must be {json.dumps(expected)}")
        elif value is not None and (value != expected or isinstance(value, bool) != isinstance(expected, bool)):
            self.problem(f"{name} must be {json.dumps(expected)}, got {show(value)}")
