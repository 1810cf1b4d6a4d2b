"""What the wrappers of native kernels check before they pass addresses."""

from types import ModuleType

import torch
from torch import Tensor

from pelagos.common.errors import ResourceError, UsageError
from pelagos.ops.cpu.module import native


def kernels() -> ModuleType:
    """The compiled module. Raises ResourceError where there is none."""
    module = native()
    if module is None:
        raise ResourceError("the native kernels are not built: install Pelagos with a C++ compiler to use them")
    return module


def activation(name: str, x: Tensor, *shape: int | None) -> tuple[Tensor, bool]:
    """x as dense float32 on the CPU (x itself where it is), and whether results are rounded to BF16, the dtype of x.

    ``shape``: what its dimensions must be, None for any size. Raises UsageError that names the argument.
    """
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(f"{name} must be float32 or bfloat16, not {x.dtype}")
    if x.device.type != "cpu":
        raise UsageError(f"{name} must be on the CPU, not on {x.device}")
    if shape and (x.dim() != len(shape) or any(want not in (None, n) for want, n in zip(shape, x.shape, strict=True))):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise UsageError(f"{name} must have shape [{expected}], not {list(x.shape)}")
    return x.detach().float().contiguous(), x.dtype == torch.bfloat16


def numbers(name: str, x: Tensor, *shape: int | None) -> Tensor:
    """``activation`` for an argument that says nothing about rounding."""
    return activation(name, x, *shape)[0]


def num_rows(x: Tensor) -> int:
    """Rows along the last dim."""
    return x.numel() // x.shape[-1] if x.shape[-1] else 0
