"""Every environment variable that Pelagos reads. They are read when asked for, never at import.

A variable that is unset or empty has its default. Anything else is checked, and what does not fit is a UsageError
that names the variable and what it accepts.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pelagos.common.errors import UsageError

T = TypeVar("T")

LOG_LEVELS = ("debug", "info", "warning", "error")
IMPLEMENTATIONS = ("auto", "native", "reference")
MAX_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class Variable(Generic[T]):
    """One environment variable. ``parse`` turns its text into a value or raises ValueError; ``accepts`` says in words
    which texts it takes."""

    name: str
    default: T
    help: str
    accepts: str
    parse: Callable[[str], T]

    def get(self) -> T:
        text = os.environ.get(self.name, "").strip()
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise UsageError(f"{self.name} must be {self.accepts}, got {text[:80]!r}") from None


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in names:
            raise ValueError
        return text.lower()

    return parse


def _num_threads(text: str) -> int:
    if not 1 <= int(text) <= MAX_THREADS:
        raise ValueError
    return int(text)


LOG = Variable(
    name="PELAGOS_LOG",
    default="info",
    help="least severe messages that are logged",
    accepts=f"one of {', '.join(LOG_LEVELS)}",
    parse=_one_of(LOG_LEVELS),
)
THREADS = Variable[int | None](
    name="PELAGOS_THREADS",
    default=None,
    help="CPU threads of one operation; unset: one for each core that the process may use",
    accepts=f"a whole number from 1 to {MAX_THREADS}",
    parse=_num_threads,
)
OPS = Variable(
    name="PELAGOS_OPS",
    default="auto",
    help="what computes a model on the CPU: the native kernels, the reference in PyTorch, or (auto) the native kernels "
    "where they are installed",
    accepts=f"one of {', '.join(IMPLEMENTATIONS)}",
    parse=_one_of(IMPLEMENTATIONS),
)

ALL: tuple[Variable[str] | Variable[int | None], ...] = (LOG, THREADS, OPS)
