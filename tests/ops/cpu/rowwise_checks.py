"""What every native op that works on rows must keep: the reference's values, and the same bits however it is run."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from pelagos.ops.contract import OPS, Case
from pelagos.ops.cpu.module import native

THREADS = (1, 2, 3)

needs_native = pytest.mark.skipif(native() is None, reason="Pelagos was installed without its native kernels")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def settings() -> Iterator[tuple[str, int]]:
    """Runs the body of a loop under each instruction set of this machine and each number of threads."""
    module = native()
    assert module is not None
    isa, threads = module.isa(), module.num_threads()
    try:
        for num in THREADS:
            module.set_num_threads(num)
            for name in module.available_isas():
                module.use_isa(name)
                yield name, num
    finally:
        module.use_isa(isa)
        module.set_num_threads(threads)


def among_nan(x: Any) -> Any:
    """A float tensor at an address of 4 modulo 64, NaN before and behind it; anything else as it is."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    memory = torch.full((x.numel() + 64,), torch.nan, dtype=x.dtype)
    start = -memory.data_ptr() // 4 % 16 + 1 if x.dtype == torch.float32 else 17
    inner = memory[start : start + x.numel()].view(x.shape)
    inner.copy_(x)
    return inner


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal, zeros with their sign, NaN like NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    whole = {4: torch.int32, 2: torch.int16}[a.element_size()]
    nan = a.isnan() & b.isnan()
    return bool(((a.view(whole) == b.view(whole)) | nan).all())


def results(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def same_everywhere(run: Callable[[], Tensor | tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The results of a run, which must have the same bits under every setting."""
    first: tuple[Tensor, ...] | None = None
    for isa, threads in settings():
        found = results(run())
        first = first or found
        for a, b in zip(first, found, strict=True):
            assert same_bits(a, b), f"{isa}, {threads} threads"
    assert first is not None
    return first


def check_contract(name: str, op: Callable[..., Any], *, exact: bool = False) -> None:
    """All cases of the contract: values against the reference (bits, if ``exact``), the same bits under every setting,
    and the bits of a row that is run alone or among others."""
    case: Case
    contract = OPS[name]
    cases = list(contract.cases(torch.Generator().manual_seed(7)))
    found = same_everywhere(lambda: tuple(y for case in cases for y in results(op(**_placed(case)))))
    expected = [y for case in cases for y in results(contract.reference(**case))]
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        if exact or contract.tolerance == 0.0:
            assert same_bits(a, b)
        elif a.numel():
            assert (a.double() - b.double()).abs().max() <= contract.tolerance * b.double().abs().max().clamp(min=1e-30)
    for case in cases:
        whole, num = results(op(**case)), len(case[contract.per_row[0]])
        for start, stop in ((0, 1), (num - 1, num), (1, 4), (5, 70)):
            if 0 <= start < stop <= num:
                part = {k: v[start:stop] if k in contract.per_row else v for k, v in case.items()}
                for a, b in zip(whole, results(op(**part)), strict=True):
                    assert same_bits(a[start:stop].contiguous(), b)


def _placed(case: Case) -> Case:
    return {key: among_nan(value) for key, value in case.items()}
