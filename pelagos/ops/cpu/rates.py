"""How near the native kernels come to the machine's limits: products on weights as they are stored, one row and many.

One row is bound by reading the weights, so its limit is the read bandwidth; many rows by multiplying, so theirs is the
rate of a float32 product. Weights are drawn anew and larger than caches: each pass goes over all of them. A product and
its limit are measured in turns, because machines that others share change speed from one second to the next.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.formats.blocks import BLOCK_128X128, ROW_32
from pelagos.formats.matrix import QuantizedMatrix
from pelagos.ops.cpu.arguments import kernels
from pelagos.ops.cpu.linear import NativeMatrix
from pelagos.ops.reference.linear import Matrix

FORMATS = ("fp4", "fp8", "bf16", "fp32")
REST_SECONDS = 0.02  # before what is timed: torch's threads keep their cores busy for a while after their work
_LARGEST_FP8 = 0x7E  # code of 448; the next one is NaN


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What the machine can do: ``work`` reads ``amount`` bytes, or does so many operations."""

    work: Callable[[], object]
    amount: float

    @staticmethod
    def reading(num_bytes: int) -> "Limit":
        """A sum over a float32 tensor of so many bytes."""
        return Limit(work=torch.ones(num_bytes // 4).sum, amount=num_bytes)

    @staticmethod
    def multiplying(size: int) -> "Limit":
        """A product of square float32 matrices."""
        matrix = torch.ones(size, size)
        return Limit(work=lambda: matrix @ matrix, amount=2 * size**3)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """``op``: what was measured; ``value``: bytes of weights or operations a second, the median of its passes;
    ``share``: of what the machine did in the same moments, the median too."""

    op: str
    unit: str
    value: float
    share: float


def random_matrix(kind: str, rows: int, columns: int, generator: torch.Generator) -> Matrix:
    """Weights in one of ``FORMATS``, in the official layouts."""
    if kind == "fp4":
        codes = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8, generator=generator)
        return QuantizedMatrix(codes=codes, scales=_scales(ROW_32.scale_shape(rows, columns)), layout=ROW_32)
    if kind == "fp8":
        signs = torch.randint(0, 2, (rows, columns), dtype=torch.uint8, generator=generator) << 7
        codes = torch.randint(0, _LARGEST_FP8 + 1, (rows, columns), dtype=torch.uint8, generator=generator) | signs
        scales = _scales(BLOCK_128X128.scale_shape(rows, columns))
        return QuantizedMatrix(codes=codes.view(torch.float8_e4m3fn), scales=scales, layout=BLOCK_128X128)
    values = torch.randn(rows, columns, generator=generator)
    return values.bfloat16() if kind == "bf16" else values


def _scales(shape: tuple[int, int]) -> Tensor:
    return torch.full(shape, 2.0**-7).to(torch.float8_e8m0fnu)


def measure_products(
    kind: str,
    shape: tuple[int, int],
    num_rows: Sequence[int],
    *,
    num_bytes: int,
    seconds: float,
    reading: Limit,
    multiplying: Limit,
    rounded: bool = False,
) -> Iterator[Rate]:
    """Products of so many rows with weights [out, in] of that shape, about ``num_bytes`` of them, for ``seconds`` each.

    ``rounded``: as a model with official rounding computes them, in products of pairs of BF16 numbers.
    """
    generator = torch.Generator().manual_seed(0)
    matrices = [NativeMatrix(random_matrix(kind, *shape, generator))]
    size = _num_bytes(kind, shape)
    while len(matrices) * size < num_bytes:
        matrices.append(NativeMatrix(random_matrix(kind, *shape, generator)))
    for rows in num_rows:
        x = torch.randn(rows, shape[1], generator=generator).bfloat16().float()
        y, packed = torch.empty(rows, shape[0]), torch.empty(rows, shape[1])
        one_pass = _pass(matrices, x, y, packed, rounded)
        limit, amount = (reading, size) if rows == 1 else (multiplying, 2 * rows * shape[0] * shape[1])
        turns = seconds_in_turns(one_pass, limit.work, seconds)
        rates = [len(matrices) * amount / taken for taken, _ in turns]
        shares = [rate / (limit.amount / taken) for rate, (_, taken) in zip(rates, turns, strict=True)]
        yield Rate(
            op=f"{kind}{' rounded' if rounded else ''}, {rows} x {shape[1]} -> {shape[0]}",
            unit="B/s" if rows == 1 else "FLOP/s",
            value=statistics.median(rates),
            share=statistics.median(shares),
        )


def _pass(matrices: Sequence[NativeMatrix], x: Tensor, y: Tensor, packed: Tensor, rounded: bool) -> Callable[[], None]:
    native = kernels()

    def work() -> None:
        for matrix in matrices:
            if rounded and matrix.pairs:
                native.linear_pairs(matrix.handle, x.data_ptr(), len(x), packed.data_ptr(), y.data_ptr())
            else:
                native.linear(matrix.handle, 1, x.data_ptr(), len(x), y.data_ptr(), False)

    return work


def _num_bytes(kind: str, shape: tuple[int, int]) -> int:
    weights = shape[0] * shape[1]
    return {"fp4": weights // 2 + weights // 32, "fp8": weights, "bf16": 2 * weights, "fp32": 4 * weights}[kind]


def seconds_in_turns(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> list[tuple[float, float]]:
    """Of calls of both, one behind the other, for about so long, after one of each for nothing."""
    first()
    second()
    turns: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while not turns or time.perf_counter() < end:
        turns.append((_seconds(first), _seconds(second)))
    return turns


def _seconds(work: Callable[[], object]) -> float:
    time.sleep(REST_SECONDS)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def best_seconds(work: Callable[[], object], seconds: float) -> float:
    """Of a call, after one for nothing; the best counts, because others can only slow it down."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        started = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - started)
        if now > end:
            return best
