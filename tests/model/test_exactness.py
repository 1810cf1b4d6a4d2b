"""One pass == any chunking == token by token == beside other sequences: the same logits, bit for bit.

Float32 and bfloat16, with the indexer's selection active: far more rows than index_topk, and equal scores forced. On
the reference and on the native forward pass.
"""

import dataclasses
import random

import pytest
import torch
from torch import Tensor

from pelagos.model.config import ModelConfig, csa_layer, hca_layer, window_layer
from pelagos.model.native_state import NativeState
from pelagos.model.presets import preset
from pelagos.model.state import State
from pelagos.model.transformer import AnyState, Model
from pelagos.ops.cpu.module import native

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=["reference", "native"], autouse=True)
def implementation(request: pytest.FixtureRequest) -> str:
    if request.param == "native" and native() is None:
        pytest.skip("Pelagos was installed without its native kernels")
    global _implementation
    _implementation = request.param
    return _implementation


_implementation = "reference"


def _model(dtype: torch.dtype, *, ties: bool = False, official_rounding: bool = False, preset: str = "tiny") -> Model:
    model = Model.load(preset, dtype=dtype, official_rounding=official_rounding, implementation="reference")
    if ties:
        _force_ties(model)
    if _implementation == "native":
        model.use_native()
    return model


def _force_ties(model: Model) -> None:
    """Index queries with few directions, and heads that cancel: many scores are equal, most of them zero."""
    for name, tensor in model.named_parameters():
        if ".indexer.wq_b" in name:
            tensor.data[: len(tensor) // 2] = 0.0
        if ".indexer.compressor.wkv" in name or ".indexer.compressor.ape" in name:
            tensor.data[:] = 0.0
        if ".indexer.compressor.norm" in name:
            tensor.data[:] = 1.0


def _prompt(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(512) for _ in range(length)]


def _chunks(length: int, seed: int) -> list[int]:
    draw, chunks = random.Random(seed), []
    while sum(chunks) < length:
        chunks.append(min(draw.choice([1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 127, 128, 129, 300]), length - sum(chunks)))
    return chunks


def _in_chunks(model: Model, ids: list[int], chunks: list[int]) -> tuple[Tensor, AnyState]:
    state, parts, at = model.new_state(), [], 0
    for chunk in chunks:
        parts.append(model.step(ids[at : at + chunk], state))
        at += chunk
    return torch.cat(parts), state


def _same_state(a: AnyState, b: AnyState) -> bool:
    if isinstance(a, NativeState) and isinstance(b, NativeState):
        return a.same_as(b)
    assert isinstance(a, State)
    assert isinstance(b, State)
    pairs = zip(a.layers, b.layers, strict=True)
    return a.num_tokens == b.num_tokens and all(
        torch.equal(x, y) for la, lb in pairs for x, y in zip(la.tensors(), lb.tensors(), strict=True)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ties", [False, True])
def test_any_chunking_of_two_thousand_tokens(dtype: torch.dtype, ties: bool) -> None:
    model, ids = _model(dtype, ties=ties), _prompt(2000, 1)
    whole, state = _in_chunks(model, ids, [2000])
    assert torch.isfinite(whole).all()
    for seed in range(3):
        parts, other = _in_chunks(model, ids, _chunks(2000, seed))
        assert torch.equal(parts, whole)
        assert _same_state(state, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_token_by_token(dtype: torch.dtype) -> None:
    model, ids = _model(dtype, ties=True), _prompt(420, 2)
    assert torch.equal(_in_chunks(model, ids, [1] * 420)[0], model.logits(ids))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_two_thousand_single_steps(dtype: torch.dtype) -> None:
    model, ids = _model(dtype, ties=True), _prompt(2000, 2)
    assert torch.equal(_in_chunks(model, ids, [1] * 2000)[0], model.logits(ids))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 511, 513])
def test_lengths_where_counts_change(dtype: torch.dtype, length: int) -> None:
    model, ids = _model(dtype), _prompt(length, length)
    whole = model.logits(ids)
    for chunks in ([length - 1, 1], [1, length - 1], _chunks(length, length)):
        assert torch.equal(_in_chunks(model, ids, [c for c in chunks if c])[0], whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("official_rounding", [False, True])
def test_beside_other_sequences(dtype: torch.dtype, official_rounding: bool) -> None:
    """Sequences of other lengths, at other places, join and leave the batch; each gets what it would get alone."""
    model, draw = _model(dtype, official_rounding=official_rounding), random.Random(3)
    prompts = [_prompt(length, 10 + length) for length in (1, 5, 130, 257, 600)]
    alone = [model.logits(ids) for ids in prompts]
    states, at = [model.new_state() for _ in prompts], [0] * len(prompts)
    got: list[list[Tensor]] = [[] for _ in prompts]
    while waiting := [i for i, ids in enumerate(prompts) if at[i] < len(ids)]:
        batch = draw.sample(waiting, draw.randint(1, len(waiting)))
        pieces = [prompts[i][at[i] : at[i] + draw.choice([1, 7, 64, 129])] for i in batch]
        for i, piece, logits in zip(batch, pieces, model.step_batch(pieces, [states[i] for i in batch]), strict=True):
            got[i].append(logits)
            at[i] += len(piece)
    for parts, whole in zip(got, alone, strict=True):
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_official_rounding_keeps_exactness_and_changes_logits(dtype: torch.dtype) -> None:
    model, ids = _model(dtype, official_rounding=True), _prompt(700, 4)
    whole = model.logits(ids)
    assert torch.equal(_in_chunks(model, ids, _chunks(700, 9))[0], whole)
    plain = _model(dtype).logits(ids)
    difference = (whole - plain).abs().max() / plain.abs().max()
    assert 0.001 < difference < 1.0


def test_copied_states_are_independent() -> None:
    model, ids = _model(torch.float32), _prompt(300, 5)
    state = model.new_state()
    model.step(ids[:130], state)
    fork = state.copy()
    model.step(_prompt(90, 6), fork)
    assert torch.equal(model.step(ids[130:], state), model.logits(ids)[130:])


def test_only_the_last_logits() -> None:
    model, ids = _model(torch.float32), _prompt(150, 7)
    assert torch.equal(model.step(ids, model.new_state(), num_logits=3), model.logits(ids)[-3:])


def _small(layers: tuple[object, ...], **changes: object) -> ModelConfig:
    return dataclasses.replace(preset("tiny"), layers=layers, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "layer",
    [window_layer(window=1), window_layer(window=200), csa_layer(window=7, ratio=2), csa_layer(window=64, ratio=8),
     hca_layer(window=3, ratio=16), hca_layer(window=128, ratio=128)],
)  # fmt: skip
def test_other_windows_and_ratios(layer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from pelagos.model import places

    monkeypatch.setitem(places.PRESETS, "one", lambda: _small((layer,)))
    model, ids = _model(torch.float32, preset="one"), _prompt(400, 8)
    whole = model.logits(ids)
    for seed in range(2):
        assert torch.equal(_in_chunks(model, ids, _chunks(400, seed))[0], whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_draft_block_in_any_chunking(dtype: torch.dtype) -> None:
    model, ids = _model(dtype), _prompt(260, 9)
    streams = model.streams(ids[:-1], model.new_state())
    whole, own = model.draft(streams, ids[1:], model.new_draft_state())
    state, parts, at = model.new_draft_state(), [], 0
    for chunk in _chunks(259, 3):
        parts.append(model.draft(streams[at : at + chunk], ids[1 + at : 1 + at + chunk], state)[0])
        at += chunk
    assert torch.equal(torch.cat(parts), whole)
    further, _ = model.draft(own, [*ids[2:], 0], model.new_draft_state())
    assert not torch.equal(further, whole)
