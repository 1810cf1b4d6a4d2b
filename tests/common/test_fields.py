import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import pytest

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, setting


@dataclass(frozen=True, kw_only=True)
class Example:
    """One field of each kind."""

    count: int = setting(help="things", low=1, high=9)
    rate: float = setting(0.5, help="things per second", low=0.0)
    name: str = setting("x", help="what it is called")
    on: bool = setting(True, help="on or off")
    limit: int | None = setting(None, help="None: no limit", low=1)
    mode: Literal["a", "b"] = setting("a", help="a or b", choices=("a", "b"))
    other: tuple[int, ...] = setting((), help="checked by its owner")

    def __post_init__(self) -> None:
        check_fields(self)


def test_values_in_range_pass_at_both_ends() -> None:
    Example(count=1)
    Example(count=9, rate=0, name="", on=False, limit=1, mode="b", other=(1,))
    Example(count=1, rate=1e300)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, "count must be a whole number from 1 to 9, got 0"),
        ("count", 10, "count must be a whole number from 1 to 9, got 10"),
        ("count", 1.0, "count must be a whole number from 1 to 9, got 1.0"),
        ("count", True, "count must be a whole number from 1 to 9, got True"),
        ("count", None, "count must be a whole number from 1 to 9, got None"),
        ("rate", -0.1, "rate must be a number of at least 0, got -0.1"),
        ("rate", math.nan, "rate must be a number of at least 0, got nan"),
        ("rate", math.inf, "rate must be a number of at least 0, got inf"),
        ("rate", "1", "rate must be a number of at least 0, got '1'"),
        ("name", 1, "name must be text, got 1"),
        ("on", 1, "on must be true or false, got 1"),
        ("limit", 0, "limit must be a whole number of at least 1, got 0"),
        ("limit", -1, "limit must be a whole number of at least 1, got -1"),
        ("mode", "c", "mode must be one of 'a', 'b', got 'c'"),
    ],
)
def test_a_bad_value_names_the_field_and_the_range(field: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Example(**{"count": 1, field: value})
    assert str(caught.value) == message


def test_a_long_value_is_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        Example(count="9" * 10_000)
    assert len(str(caught.value)) < 150


def test_a_field_without_default_is_required_and_help_is_kept() -> None:
    with pytest.raises(TypeError, match="count"):
        Example()
    assert [field.metadata["help"] for field in dataclasses.fields(Example)][:2] == ["things", "things per second"]
