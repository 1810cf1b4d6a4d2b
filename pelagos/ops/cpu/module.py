"""The compiled module, where it was built."""

from functools import cache
from importlib import import_module
from types import ModuleType


@cache
def native() -> ModuleType | None:
    """The compiled kernels, None where Pelagos was installed without a compiler."""
    try:
        return import_module("pelagos.ops.cpu._native")
    except ModuleNotFoundError:
        return None
