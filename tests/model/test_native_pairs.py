"""A model in official storage with official rounding: its FP8 and FP4 products are those of pairs (native/linear.h)."""

import dataclasses
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from hf_oracle import prompt
from torch import Tensor

from pelagos.formats.matrix import quantize_fp4, quantize_fp8
from pelagos.model.loading import fill, random_values
from pelagos.model.native import NativeForward
from pelagos.model.presets import preset
from pelagos.model.tensors import TensorSpec
from pelagos.model.transformer import Model
from pelagos.ops.cpu.linear import NativeMatrix
from pelagos.ops.cpu.module import native
from pelagos.ops.reference.linear import Matrix

MODULE = native()
pytestmark = pytest.mark.skipif(MODULE is None, reason="Pelagos was installed without its native kernels")


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    assert MODULE is not None
    isa, threads = MODULE.isa(), MODULE.num_threads()
    yield
    MODULE.use_isa(isa)
    MODULE.set_num_threads(threads)


def _model(activation_dtype: str, **changes: int) -> Model:
    config = dataclasses.replace(
        preset("tiny"), hidden_size=192, query_rank=64, output_rank=64, expert_dim=320, storage="official",
        official_rounding=True, activation_dtype=activation_dtype, **changes,
    )  # fmt: skip
    value_of = random_values(config, seed=0)

    def stored(spec: TensorSpec) -> Matrix:
        value = value_of(spec)
        if spec.role not in ("dense", "expert"):
            return value
        return quantize_fp8(value) if spec.role == "dense" else quantize_fp4(value)

    model = Model(config)
    fill(model, stored)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_near_the_reference_and_the_same_bits_in_any_batch(dtype: str) -> None:
    """Rounding turns last bits of sums into whole quanta here and there, so tokens (with activations in BF16, which do
    that themselves, not even those) and typical errors count."""
    assert MODULE is not None
    model, ids = _model(dtype), prompt(200, 512, 3)
    reference = model.logits(ids)
    model.use_native()
    assert model.native is not None
    expected = model.logits(ids)
    is_exact = dtype == "float32"
    assert (expected.argmax(1) == reference.argmax(1)).float().mean() >= (0.97 if is_exact else 0.7)
    off = (expected - reference).abs().amax(1) / reference.abs().max()
    assert off.median() <= (1e-5 if is_exact else 0.1)
    for isa in MODULE.available_isas():
        for threads in (1, 3):
            MODULE.use_isa(isa)
            MODULE.set_num_threads(threads)
            state = model.new_state()
            parts = [model.step(ids[:133], state), model.step(ids[133:138], state)]
            parts += [model.step([token], state) for token in ids[138:150]]
            parts += [model.step(ids[at : at + 9], state) for at in range(150, 200, 9)]
            assert torch.equal(torch.cat(parts), expected), f"{isa}, {threads} threads"


@pytest.mark.parametrize("num_sequences", [3, 8, 16, 17])
def test_a_batch_that_uses_many_experts_has_the_bits_of_single_tokens(num_sequences: int) -> None:
    """Up to 16 tokens experts go to threads whole, if there are eight for each; beyond, products are shared."""
    assert MODULE is not None
    model = _model("float32", num_experts=48, num_experts_per_token=4)
    model.use_native()
    ids = [prompt(20 + i, 512, i) for i in range(num_sequences)]
    states = [model.new_state() for _ in ids]
    for state, own in zip(states, ids, strict=True):
        model.step(own[:-3], state)
    expected = [
        torch.cat([model.step([token], state) for token in own[-3:]]) for state, own in zip(states, ids, strict=True)
    ]
    for isa in MODULE.available_isas():
        for threads in (1, 2, 3):
            MODULE.use_isa(isa)
            MODULE.set_num_threads(threads)
            states = [model.new_state() for _ in ids]
            for state, own in zip(states, ids, strict=True):
                model.step(own[:-3], state)
            steps = [model.step_batch([[own[at]] for own in ids], states) for at in (-3, -2, -1)]
            for own, found in zip(expected, zip(*steps, strict=True), strict=True):
                assert torch.equal(torch.cat(found), own), f"{isa}, {threads} threads"


def test_draft_block_has_the_same_bits_everywhere() -> None:
    assert MODULE is not None
    model, ids = _model("float32"), prompt(100, 512, 4)
    model.use_native()
    streams = model.streams(ids[:-1], model.new_state())
    expected, own = model.draft(streams, ids[1:], model.new_draft_state())
    for isa in MODULE.available_isas():
        MODULE.use_isa(isa)
        logits, streams_after = model.draft(streams, ids[1:], model.new_draft_state())
        assert torch.equal(logits, expected)
        assert torch.equal(streams_after, own)


def test_all_fp8_and_fp4_matrices_take_products_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of BF16 and float32 do not; without official rounding no product does, which the flag leaves open."""
    found: Counter[tuple[str, bool]] = Counter()
    bind = NativeForward._matrix

    def watch(self: NativeForward, weight: Matrix) -> object:
        handle = bind(self, weight)
        found["float" if isinstance(weight, Tensor) else weight.kind, NativeMatrix(weight).pairs] += 1
        return handle

    monkeypatch.setattr(NativeForward, "_matrix", watch)
    _model("float32").use_native()
    assert set(found) == {("float", False), ("fp8", True), ("fp4", True)}
    assert found["fp4", True] == 6 * 3 * 8
