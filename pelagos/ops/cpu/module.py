"""The compiled module, where it was built."""

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType

from pelagos.common.cores import default_num_threads
from pelagos.common.memory_nodes import spread_pages

_NAME = "pelagos.ops.cpu._native"
_NOT_BUILT = (
    "the native kernels are not installed: there was no C++17 compiler with Python's headers when Pelagos was "
    "installed, or it failed; install one, then install Pelagos again"
)


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    module: ModuleType | None
    reason: str | None
    nodes: tuple[int, ...] = ()


@cache
def _load() -> _Loaded:
    try:
        module = import_module(_NAME)
    except ModuleNotFoundError as error:
        if error.name != _NAME:
            raise
        return _Loaded(module=None, reason=_NOT_BUILT)
    except ImportError as error:  # built, but for another system or C++ library
        return _Loaded(module=None, reason=f"the native kernels do not load ({error}); install Pelagos again")
    module.set_num_threads(default_num_threads())
    # Before a weight is read and a thread of the pool started, which both take what this thread has.
    return _Loaded(module=module, reason=None, nodes=tuple(spread_pages()))


def native() -> ModuleType | None:
    """The compiled kernels with their pool of threads, None where they were not built or do not load."""
    return _load().module


def native_reason() -> str | None:
    """Why ``native`` is None and what to do about it; None where it is not."""
    return _load().reason


def memory_nodes() -> tuple[int, ...]:
    """The memory nodes that pages are taken from in turns since the kernels were loaded; none where there is one, or
    where the system or the user decides."""
    return _load().nodes
