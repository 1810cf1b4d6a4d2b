"""The functions of native/simd.h on every instruction set: against torch, NumPy and ml_dtypes, and bit for bit against
each other."""

from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NaNs and infinities, which are meant

Array = np.ndarray[Any, Any]

UNARY = ("exp", "sigmoid", "sqrt", "nearest", "abs", "round_bf16", "exp1")
BINARY = ("add", "subtract", "multiply", "divide", "fma", "min", "max", "select")
ALL_HALVES = np.arange(1 << 16, dtype=np.uint16)


def apply(
    module: ModuleType, name: str, a: Array, b: Array | None = None, out: Any = np.float32, shrink: int = 1
) -> Array:
    """``a`` and ``b`` have a multiple of 16 elements, the result has one for each ``shrink`` of them."""
    b = a if b is None else b
    assert a.size % 16 == 0
    assert a.size == b.size
    result = np.zeros(a.size // shrink, out)
    module.simd(name, a.ctypes.data, b.ctypes.data, result.ctypes.data, a.size // 16)
    return result


def bits(x: Array) -> Array:
    """The bits of float32 numbers, those of all NaNs made equal."""
    return np.where(np.isnan(x), np.float32(np.nan), x).view(np.uint32)


def float_samples(num: int = 1 << 17, seed: int = 0) -> Array:
    """Every sign and exponent with random mantissas, and the numbers at the ends."""
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4028235e38, 1.1754944e-38, 1.0, 0.5], "f4")
    random = np.random.default_rng(seed).integers(0, 1 << 32, num - special.size, dtype=np.uint32)
    return np.concatenate([special, random.view(np.float32)])


def on_every_isa(module: ModuleType, *args: Any, **named: Any) -> Array:
    """The result on one instruction set, after comparing the others with it."""
    results = []
    for isa in module.available_isas():
        module.use_isa(isa)
        results.append(apply(module, *args, **named))
    for isa, result in zip(module.available_isas(), results, strict=True):
        same = bits(result) == bits(results[0]) if result.dtype == np.float32 else result == results[0]
        assert same.all(), f"{args[0]}: {isa} differs from {module.available_isas()[0]}"
    return results[0]


@pytest.mark.parametrize("name", UNARY)
def test_unary(module: ModuleType, name: str) -> None:
    x = float_samples()
    y, wide = on_every_isa(module, name, x), x.astype(np.float64)
    if name in ("exp", "exp1"):
        assert units_off(y, np.exp(wide)) <= 2
        assert (bits(y) == bits(on_every_isa(module, "exp", x))).all()
    elif name == "sigmoid":
        assert units_off(y, 1 / (1 + np.exp(-wide))) <= 4
    else:
        expected = {
            "sqrt": np.sqrt,
            "nearest": np.rint,
            "abs": np.abs,
            "round_bf16": lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32),
        }[name](x)
        assert (bits(y) == bits(expected)).all()


def units_off(y: Array, exact: Array) -> float:
    """The largest error in units of the last place. Those below normal numbers may be 0, and any above are infinity."""
    assert (np.isnan(y) == np.isnan(exact)).all()
    normal = np.isfinite(exact) & (np.abs(exact) > 2.0**-125) & (np.abs(exact) < 3.402823e38)
    assert (np.abs(y[exact < 2.0**-127]) <= 2.0**-126).all()
    assert np.isinf(y[exact > 3.4028236e38]).all()
    units = np.spacing(exact[normal].astype(np.float32)).astype(np.float64)
    return float((np.abs(y[normal].astype(np.float64) - exact[normal]) / np.abs(units)).max())


def test_exp_over_its_whole_range(module: ModuleType) -> None:
    x = np.linspace(-104, 90, 1 << 20, dtype=np.float32)
    assert units_off(on_every_isa(module, "exp", x), np.exp(x.astype(np.float64))) <= 2


@pytest.mark.parametrize("name", BINARY)
def test_binary(module: ModuleType, name: str) -> None:
    a, b = float_samples(seed=1), float_samples(seed=2)
    np.random.default_rng(3).shuffle(b)
    b[::5] = a[::5]
    y = on_every_isa(module, name, a, b)
    if name == "fma":  # the float32 product is exact in float64, and the sum is rounded once more than it should be
        exact = a.astype(np.float64) * b + a
        assert (bits(y) == bits(exact.astype(np.float32))).mean() > 0.9999
        return
    expected = {
        "add": np.add,
        "subtract": np.subtract,
        "multiply": np.multiply,
        "divide": np.divide,
        "min": lambda a, b: np.where(a < b, a, b),
        "max": lambda a, b: np.where(a > b, a, b),
        "select": lambda a, b: np.where(a < b, a, b),
    }[name](a, b)
    assert (bits(y) == bits(expected)).all()


def test_sums_add_lanes_as_one_tree(module: ModuleType) -> None:
    x = np.random.default_rng(4).standard_normal((4800, 16)).astype(np.float32)
    y = on_every_isa(module, "sum", x, shrink=16)
    tree = x
    for half in (8, 4, 2, 1):
        tree = tree[:, :half] + tree[:, half:]
    assert (y == tree[:, 0]).all()
    for num in (2, 3, 4, 6, 8, 10, 12, 15, 16):
        assert (on_every_isa(module, f"sums_{num}", x, shrink=16) == y).all(), num
    assert (on_every_isa(module, "largest", x, shrink=16) == x.max(1)).all()


def test_partial_loads_and_stores(module: ModuleType) -> None:
    num_blocks = 17 * 17
    x = np.arange(1, 16 * num_blocks + 1, dtype=np.float32)
    y = on_every_isa(module, "partial", x).reshape(num_blocks, 16)
    for i, (block, row) in enumerate(zip(x.reshape(num_blocks, 16), y, strict=True)):
        num_kept = min(i % 17, i // 17 % 17)
        assert (row == np.concatenate([block[:num_kept], np.zeros(16 - num_kept)])).all()


def test_whole_numbers_pass_through_int32(module: ModuleType) -> None:
    x = np.random.default_rng(5).integers(-(1 << 24), 1 << 24, 1 << 14).astype(np.float32)
    assert (on_every_isa(module, "whole", x) == x).all()


def test_every_bfloat16_is_decoded(module: ModuleType) -> None:
    y = on_every_isa(module, "decode_bf16", ALL_HALVES)
    assert (bits(y) == bits(ALL_HALVES.view(ml_dtypes.bfloat16).astype(np.float32))).all()


def test_bfloat16_is_rounded_to_the_nearest_even(module: ModuleType) -> None:
    upper = ALL_HALVES.astype(np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):  # around every value and every tie
        x = (upper | lower).view(np.float32)
        codes = on_every_isa(module, "encode_bf16", x, out=np.uint16)
        expected = x.astype(ml_dtypes.bfloat16).astype(np.float32)
        assert (bits(codes.view(ml_dtypes.bfloat16).astype(np.float32)) == bits(expected)).all()


def test_every_e4m3_code_is_decoded_and_encoded(module: ModuleType) -> None:
    codes = np.arange(256, dtype=np.uint8)
    values = on_every_isa(module, "decode_e4m3", codes)
    assert (bits(values) == bits(codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))).all()
    again = on_every_isa(module, "encode_e4m3", values, out=np.uint8)
    is_nan = (codes & 0x7F) == 0x7F
    assert (again[~is_nan] == codes[~is_nan]).all()
    assert (again[is_nan] & 0x7F == 0x7F).all()


def test_e4m3_is_rounded_to_the_nearest_even(module: ModuleType) -> None:
    values = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    middles = (values[1:] + values[:-1]) / 2
    near = [np.nextafter(middles, np.float32(0)), middles, np.nextafter(middles, np.float32(1e9))]
    x = np.concatenate([values, *near, np.abs(float_samples())])
    x = x[np.isfinite(x) & (x <= 448)]
    x = np.concatenate([x, -x])[: x.size * 2 // 16 * 16]
    codes = on_every_isa(module, "encode_e4m3", x, out=np.uint8)
    assert (codes == x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)).all()


def test_an_unknown_function_is_refused(module: ModuleType) -> None:
    x = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="no such function"):
        apply(module, "cosh", x)
