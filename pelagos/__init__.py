"""Pelagos: an open, complete DeepSeek-V4.

``Model`` holds the weights. It needs torch alone, and nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelagos.model.transformer import Model

    __version__: str

__all__ = ["Model", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Model":
        return import_module("pelagos.model.transformer").Model
    if name == "__version__":
        return import_module("importlib.metadata").version("pelagos")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
