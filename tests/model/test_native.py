"""The native forward pass against the reference: same logits within rounding; on every instruction set and any number
of threads the same bits."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hf_oracle import NEAR_TIE, oracle_model, prompt, random_config, same_model, smallest_gap
from torch import Tensor

from pelagos.model.native_state import NativeState, RowFormats
from pelagos.model.transformer import Model
from pelagos.ops.cpu.module import native

MODULE = native()
pytestmark = pytest.mark.skipif(MODULE is None, reason="Pelagos was installed without its native kernels")
TOLERANCE = 2e-5  # of the largest logit


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    assert MODULE is not None
    isa, threads = MODULE.isa(), MODULE.num_threads()
    yield
    MODULE.use_isa(isa)
    MODULE.set_num_threads(threads)


def _error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("seed", range(16))
def test_random_configurations(seed: int) -> None:
    config = random_config(seed)
    for attempt in range(20):
        model = same_model(oracle_model(config, seed + 1000 * attempt))
        ids = prompt(600, config.vocab_size, seed + attempt)
        with smallest_gap() as gap:
            expected = model.logits(ids)
        if gap() > NEAR_TIE:
            break
    model.use_native()
    assert _error(model.logits(ids), expected) <= TOLERANCE


def _tiny(**options: object) -> Model:
    return Model.load("tiny", implementation="reference", **options)  # type: ignore[arg-type]


def test_official_rounding_picks_the_reference_s_tokens() -> None:
    """Rounding turns last bits of sums into whole quanta here and there, so tokens and typical errors count."""
    model, ids = _tiny(official_rounding=True), prompt(500, 512, 3)
    expected = model.logits(ids)
    model.use_native()
    got = model.logits(ids)
    off = (got - expected).abs().amax(1) / expected.abs().max()
    assert off.median() <= 1e-5
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= 0.97


@pytest.mark.parametrize("official_rounding", [False, True])
def test_bfloat16_is_as_far_from_float32_as_the_reference(official_rounding: bool) -> None:
    model, ids = _tiny(dtype=torch.bfloat16, official_rounding=official_rounding), prompt(500, 512, 3)
    exact = _tiny(official_rounding=official_rounding).logits(ids)
    reference = (model.logits(ids) - exact).abs().amax(1).median()
    model.use_native()
    native = (model.logits(ids) - exact).abs().amax(1).median()
    assert 0.8 * reference <= native <= 1.25 * reference


def test_draft_block() -> None:
    model, ids = _tiny(), prompt(300, 512, 4)
    expected_streams = model.streams(ids[:-1], model.new_state())
    expected, own = model.draft(expected_streams, ids[1:], model.new_draft_state())
    model.use_native()
    streams = model.streams(ids[:-1], model.new_state())
    logits, own_native = model.draft(streams, ids[1:], model.new_draft_state())
    assert _error(streams, expected_streams) <= TOLERANCE
    assert _error(logits, expected) <= TOLERANCE
    assert _error(own_native, own) <= TOLERANCE


@pytest.mark.parametrize("official_rounding", [False, True])
def test_same_bits_on_every_instruction_set_and_any_number_of_threads(official_rounding: bool) -> None:
    assert MODULE is not None
    model, ids = _tiny(official_rounding=official_rounding), prompt(420, 512, 5)
    model.use_native()
    found = []
    for isa in MODULE.available_isas():
        for threads in (1, 2, 3):
            MODULE.use_isa(isa)
            MODULE.set_num_threads(threads)
            state = model.new_state()
            found.append(
                torch.cat([model.step(ids[:400], state), *(model.step([token], state) for token in ids[400:])])
            )
    assert all(torch.equal(logits, found[0]) for logits in found)


def test_threads_of_a_program_may_share_a_model() -> None:
    """Calls of other lengths, so that scratch memory grows under the feet of the others."""
    model = _tiny()
    model.use_native()
    prompts = [prompt(length, 512, length) for length in (3, 700, 40, 300, 9, 500)]
    expected = [model.logits(ids) for ids in prompts]
    with ThreadPoolExecutor(6) as threads:
        for _ in range(12):
            fresh = _tiny()
            fresh.use_native()
            found = list(threads.map(fresh.logits, prompts))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_state_is_at_its_stated_size() -> None:
    model = _tiny(official_rounding=True)
    model.use_native()
    state = model.new_state()
    assert isinstance(state, NativeState)
    empty = state.num_bytes
    model.step(prompt(256, 512, 6), state)
    per_token = (state.num_bytes - empty) / 256
    # csa: a row of 24 + 16 + 1 -> 48 bytes and an index row of 8 + 1 bytes per 4 tokens, twice; hca: a row per 8 tokens
    layers = model.config.layers
    assert per_token == sum(48 / layer.ratio for layer in layers if layer.ratio) + sum(
        9 / layer.ratio for layer in layers if layer.ratio and layer.kind == "csa"
    )


@pytest.mark.parametrize("rows", ["fp8", "bf16"])
@pytest.mark.parametrize("index_rows", ["fp4", "fp8", "bf16"])
def test_rows_have_the_same_bits_in_every_format_that_holds_them(rows: str, index_rows: str) -> None:
    model, ids = _tiny(official_rounding=True), prompt(700, 512, 3)
    model.use_native()
    expected, bytes_expected = model.logits(ids), model.new_state().num_bytes
    model.use_native(RowFormats(rows=rows, index_rows=index_rows))
    state = model.new_state()
    got = torch.cat([model.step(ids[i : i + 90], state) for i in range(0, 700, 90)])
    assert torch.equal(got, expected)
    assert (model.new_state().num_bytes == bytes_expected) == (rows == "fp8")
