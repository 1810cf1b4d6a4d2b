"""How hard a sample is: the settings that all synthetic tasks share, and the kind of field that a range is."""

import dataclasses
import math
import random
import typing
from dataclasses import dataclass
from typing import Any, TypeAlias

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, check_value, setting, show

Span: TypeAlias = tuple[int, int]  # smallest and largest value, both included; drawn uniformly in log scale
MAX_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """Settings of every task; each task adds its own. A field that is a range is ``(smallest, largest)``.

    Raises ConfigError that names the field and its range.
    """

    target_tokens: Span | None = setting(
        None,
        help="length of the whole sample in tokens: reached with filler, never passed; None: as long as the task is",
        low=32,
        high=MAX_TOKENS,
    )
    depth: tuple[float, float] = setting(
        (0.0, 1.0),
        help="where in the filler the fact stands that is asked for: 0 at its start, 1 at its end, behind all of it; "
        "the distance to the end is drawn uniformly in log scale",
        low=0,
        high=1,
    )
    chat_share: float = setting(0.5, help="share of samples that are conversations, not plain text", low=0, high=1)
    thinking_share: float = setting(0.25, help="share of conversations with thinking on", low=0, high=1)
    cue_share: float = setting(
        0.5, help="share of plain texts that ask by the start of the line to repeat, not by a question", low=0, high=1
    )
    filler_weight: float = setting(0.1, help="loss weight of random text and of questions", low=0, high=1)
    haystack_weight: float = setting(1.0, help="loss weight of real text around the facts", low=0, high=1)

    def __post_init__(self) -> None:
        check_fields(self)
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            if element := _range_of(hints[field.name]):
                self._check_range(field, element)

    def _check_range(self, field: "dataclasses.Field[Any]", element: type) -> None:
        value = getattr(self, field.name)
        if value is None and field.default is None:
            return
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise ConfigError(f"{field.name} must be a range (smallest, largest), got {show(value)}")
        for end in value:
            check_value(field.name, end, element, low=field.metadata["low"], high=field.metadata["high"])
        if value[0] > value[1]:
            raise ConfigError(f"{field.name} must be a range (smallest, largest), got {show(value)}")
        object.__setattr__(self, field.name, tuple(value))  # JSON has lists


def draw_size(rng: random.Random, span: Span) -> int:
    """A whole number of the range, its logarithm uniform: as many between 4 and 8 as between 8 and 16."""
    low, high = span
    shift = 1 if low == 0 else 0
    drawn = math.exp(rng.uniform(math.log(low + shift), math.log(high + shift + 1))) - shift
    return min(high, max(low, int(drawn)))


def draw_depth(rng: random.Random, span: tuple[float, float], num_tokens: int) -> float:
    """A depth of the range; its distance to the end, down to 16 of ``num_tokens``, has a uniform logarithm."""
    low, high = span
    if low == high:
        return low
    far = 1 - low
    near = min(far, max(1 - high, 16 / num_tokens))
    return 1 - math.exp(rng.uniform(math.log(near), math.log(far))) if far > near else low


def _range_of(hint: Any) -> type | None:
    """The type of the two numbers if a field is a range."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is tuple:
            element: type = typing.get_args(kind)[0]
            return element
    return None
