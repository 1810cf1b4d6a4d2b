"""Each op against an independent, slow definition in float64 and against published figures."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.formats.matrix import quantize_fp4, quantize_fp8
from pelagos.ops.reference import attention, compressor, elementwise, indexer, linear, mhc, moe, norm_rope, row_products


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _close(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> None:
    assert a.shape == b.shape
    assert (a.double() - b.double()).abs().max() <= tolerance * b.double().abs().max().clamp(min=1e-30)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 8, 31, 1000])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_ordered_sum(size: int, dim: int) -> None:
    x = (
        _noise(4, 5, 6).narrow(dim, 0, 1).repeat_interleave(size, dim) * 1.5
        if size
        else _noise(4, 5, 6).narrow(dim, 0, 0)
    )
    _close(elementwise.ordered_sum(x, dim), x.double().sum(dim), 1e-6)


def test_activations_do_not_depend_on_place() -> None:
    x = 6.0 * _noise(40_003)
    for f in (
        elementwise.sigmoid,
        elementwise.silu,
        elementwise.softplus,
        torch.exp,
        torch.cos,
        torch.sin,
        torch.rsqrt,
    ):
        y = x.abs() if f is torch.rsqrt else x
        whole = f(y)
        for start, stop in ((0, 1), (1, 2), (3, 12), (17, 34_000), (40_002, 40_003)):
            assert torch.equal(f(y[start:stop]), whole[start:stop])
        assert torch.equal(f(y[:40_000].view(200, 200).t()), whole[:40_000].view(200, 200).t())
        assert torch.equal(f(y[:40_000].view(4000, 10)[:, 3:10]), whole[:40_000].view(4000, 10)[:, 3:10])


@pytest.mark.parametrize("x", [-1000.0, -90.0, -1.0, 0.0, 1.0, 90.0, 1000.0])
def test_activations_at_extremes(x: float) -> None:
    at = torch.tensor([x])
    _close(elementwise.sigmoid(at), torch.sigmoid(at.double()), 1e-6) if x > -80 else None
    _close(elementwise.softplus(at), F.softplus(at.double()), 1e-6) if x > -80 else None
    for f in (elementwise.sigmoid, elementwise.silu, elementwise.softplus):
        assert torch.isfinite(f(at)).all()


@pytest.mark.parametrize("rows", [1, 5, 16, 40])
def test_linear_values(rows: int) -> None:
    x, w = _noise(rows, 200), _noise(130, 200, seed=1)
    _close(linear.linear(x, w), x.double() @ w.double().T)
    for stored in (quantize_fp8(w), w.bfloat16()):
        exact = stored.decode() if not isinstance(stored, Tensor) else stored
        _close(linear.linear(x, stored), x.double() @ exact.double().T)
    fp4 = quantize_fp4(w[:, :192])
    _close(linear.linear(x[:, :192], fp4), x[:, :192].double() @ fp4.decode().double().T)


def test_linear_decodes_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = _noise(7, 64), quantize_fp8(_noise(700, 64, seed=1))
    whole = linear.linear(x, w)
    monkeypatch.setattr(linear, "_DECODED_BYTES", 4 * 64 * 256)
    _close(linear.linear(x, w), whole, 1e-6)


def test_linear_falls_back_to_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = _noise(21, 33), _noise(5, 33, seed=1)
    single = row_products.Probe(tile_rows=1, reason="forced")
    monkeypatch.setattr(row_products, "probe_row_tile", lambda: single)
    whole = linear.linear(x, w)
    _close(whole, x.double() @ w.double().T)
    assert torch.equal(linear.linear(x[4:9], w), whole[4:9])


def test_probe_sees_a_machine_whose_rows_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def uneven(x: Tensor, w: Tensor, tile: int) -> Tensor:
        return x @ w.T + torch.arange(len(x)).unsqueeze(1) * 1e-3

    monkeypatch.setattr(row_products, "_tiled", uneven)
    assert row_products.probe_row_tile.__wrapped__().tile_rows == 1


def test_grouped_linear_values() -> None:
    x, w = _noise(9, 4, 24), _noise(4 * 10, 24, seed=1)
    expected = torch.einsum("tgi,gni->tgn", x.double(), w.double().view(4, 10, 24)).flatten(1)
    _close(linear.grouped_linear(x, w, num_groups=4), expected)
    stored = quantize_fp8(w)
    expected = torch.einsum("tgi,gni->tgn", x.double(), stored.decode().double().view(4, 10, 24)).flatten(1)
    _close(linear.grouped_linear(x, stored, num_groups=4), expected)


def test_norms() -> None:
    x, w = _noise(5, 3, 100), _noise(100, seed=1)
    factor = 1.0 / ((x.double() ** 2).mean(-1, keepdim=True) + 1e-3).sqrt()
    _close(norm_rope.rms_norm(x, w, 1e-3), x.double() * factor * w.double())
    _close(norm_rope.head_norm(x, 1e-3), x.double() * factor)


def test_rotation_turns_neighbour_pairs_at_the_end() -> None:
    x, positions, frequencies = _noise(3, 2, 10), torch.tensor([0, 7, 900]), torch.tensor([1.0, 0.25, 1e-3])
    y = norm_rope.rotate(x, *norm_rope.rotation(positions, frequencies))
    assert torch.equal(y[..., :4], x[..., :4])
    pairs = torch.view_as_complex(x[..., 4:].double().reshape(3, 2, 3, 2))
    turned = pairs * torch.polar(torch.ones(3, 1, 3).double(), (positions[:, None] * frequencies.double()).unsqueeze(1))
    _close(y[..., 4:], torch.view_as_real(turned).flatten(-2), 1e-4)
    back = norm_rope.rotate(y, *norm_rope.rotation(positions, frequencies), inverse=True)
    _close(back, x, 1e-6)


def test_mhc_published_example() -> None:
    base = torch.tensor([0, 1, -1, 2, 0, 1, -1, 2, *(((7 * i) % 5) - 2 for i in range(16))]).float()
    streams = torch.arange(8.0).view(1, 4, 2)
    pre, post, mix = mhc.mhc_weights(
        streams, torch.zeros(24, 8), base, torch.ones(3), norm_eps=1e-6, hc_eps=1e-6, iterations=20
    )
    assert post[0].tolist() == pytest.approx([1.0, 1.4621, 0.5379, 1.7616], abs=5e-5)
    expected = [
        [0.0169, 0.2058, 0.7183, 0.0590],
        [0.2058, 0.0169, 0.0590, 0.7183],
        [0.0590, 0.7183, 0.0169, 0.2058],
        [0.7183, 0.0590, 0.2058, 0.0169],
    ]
    for row, wanted in zip(mix[0].tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=5e-5)
    assert mhc.mhc_collapse(streams, pre)[0].tolist() == pytest.approx([7.8227, 10.2035], abs=1e-4)


def test_neutral_mhc_is_a_residual_block() -> None:
    x, y = _noise(3, 1, 8).expand(3, 4, 8).contiguous(), _noise(3, 8, seed=1)
    pre, post, mix = mhc.mhc_weights(
        x, torch.zeros(24, 32), torch.zeros(24), torch.ones(3), norm_eps=1e-6, hc_eps=1e-6, iterations=20
    )
    _close(mhc.mhc_collapse(x, pre), 2 * x[:, 0], 1e-5)
    _close(mhc.mhc_expand(x, y, post, mix), x + y.unsqueeze(1), 1e-5)


def test_mhc_mixes_over_the_first_index() -> None:
    streams, y = _noise(2, 4, 8), _noise(2, 8, seed=1)
    post, mix = torch.rand(2, 4), torch.rand(2, 4, 4)
    expected = post.double().unsqueeze(-1) * y.double().unsqueeze(1)
    expected = expected + torch.einsum("tjk,tjd->tkd", mix.double(), streams.double())
    _close(mhc.mhc_expand(streams, y, post, mix), expected)


def test_mhc_weights_are_doubly_stochastic() -> None:
    streams = _noise(20, 4, 16)
    _, _, mix = mhc.mhc_weights(
        streams, _noise(24, 64), _noise(24), torch.ones(3), norm_eps=1e-6, hc_eps=1e-6, iterations=400
    )
    _close(mix.sum(1), torch.ones(20, 4), 1e-4)
    _close(mix.sum(2), torch.ones(20, 4), 1e-2)


def test_mhc_head_weights() -> None:
    streams, fn, base, scale = _noise(3, 4, 8), _noise(4, 32, seed=1), _noise(4, seed=2), torch.tensor([0.5])
    flat = streams.double().flatten(1)
    z = flat @ fn.double().T / ((flat**2).mean(1, keepdim=True) + 1e-6).sqrt()
    expected = torch.sigmoid(z * 0.5 + base.double()) + 1e-3
    _close(mhc.mhc_head_weights(streams, fn, base, scale, norm_eps=1e-6, hc_eps=1e-3), expected)


def test_pool_window_ignores_missing_slots() -> None:
    values, gates = _noise(3, 8, 5), _noise(3, 8, 5, seed=1)
    gates[0, :4] = -torch.inf
    expected = (torch.softmax(gates.double(), 1) * values.double()).sum(1)
    _close(compressor.pool_window(values, gates), expected)


def _dense_attention(q: Tensor, keys: Tensor, seen: Tensor, sink: Tensor) -> Tensor:
    logits = torch.einsum("thc,sc->ths", q.double(), keys.double()) / math.sqrt(q.shape[-1])
    logits = logits.masked_fill(~seen.unsqueeze(1), -torch.inf)
    logits = torch.cat([logits, sink.double().view(1, -1, 1).expand(len(q), -1, 1)], -1)
    return torch.einsum("ths,sc->thc", torch.softmax(logits, -1)[..., :-1], keys.double())


@pytest.mark.parametrize("window", [1, 5, 64, 128])
@pytest.mark.parametrize(("start", "queries"), [(0, 1), (0, 150), (63, 2), (200, 90)])
def test_attention_equals_one_dense_softmax(window: int, start: int, queries: int) -> None:
    q, sink = 3.0 * _noise(queries, 3, 24), _noise(3, seed=1)
    positions = torch.arange(start, start + queries)
    first = max(start - window + 1, 0)
    keys, rows = _noise(start + queries - first, 24, seed=2), _noise(100, 24, seed=3)
    at = torch.arange(first, start + queries)
    in_window = (at <= positions[:, None]) & (at > positions[:, None] - window)
    span = attention.WindowRows(rows=keys, start=first, size=window)
    _close(attention.attend(q, positions, span, sink), _dense_attention(q, keys, in_window, sink))

    visible = (positions * 100) // int(positions[-1] + 1)
    in_rows = torch.arange(100) < visible[:, None]
    both, seen = torch.cat([keys, rows]), torch.cat([in_window, in_rows], 1)
    got = attention.attend(q, positions, span, sink, rows=rows, num_visible=visible)
    _close(got, _dense_attention(q, both, seen, sink))

    chosen = indexer.top_rows(_noise(queries, 100, seed=4), visible, 70)
    picked = torch.zeros(queries, 101, dtype=torch.bool).scatter(1, chosen.masked_fill(chosen < 0, 100), True)[:, :100]
    got = attention.attend(q, positions, span, sink, rows=rows, chosen=chosen)
    _close(got, _dense_attention(q, both, torch.cat([in_window, picked], 1), sink))


def test_choosing_all_rows_equals_seeing_all_to_the_bit() -> None:
    q, sink, rows = _noise(5, 3, 32), _noise(3, seed=1), _noise(90, 32, seed=2)
    positions = torch.arange(5)
    window = attention.WindowRows(rows=_noise(5, 32, seed=3), start=0, size=4)
    visible = torch.tensor([0, 1, 64, 65, 90])
    chosen = indexer.top_rows(torch.zeros(5, 90), visible, 90)
    seen = attention.attend(q, positions, window, sink, rows=rows, num_visible=visible)
    assert torch.equal(seen, attention.attend(q, positions, window, sink, rows=rows, chosen=chosen))


def test_hidden_rows_change_nothing_to_the_bit() -> None:
    q, sink, rows = _noise(3, 2, 16), _noise(2, seed=1), _noise(200, 16, seed=2)
    window = attention.WindowRows(rows=_noise(3, 16, seed=3), start=0, size=2)
    visible = torch.tensor([5, 60, 61])
    few = attention.attend(q, torch.arange(3), window, sink, rows=rows[:61], num_visible=visible)
    assert torch.equal(few, attention.attend(q, torch.arange(3), window, sink, rows=rows, num_visible=visible))


def test_index_scores_values() -> None:
    q, weights, rows = _noise(9, 3, 16), _noise(9, 3, seed=1), _noise(130, 16, seed=2)
    dots = torch.einsum("thc,sc->ths", q.double(), rows.double()).clamp(min=0)
    _close(indexer.index_scores(q, weights, rows), (dots * weights.double().unsqueeze(-1)).sum(1))
    assert torch.equal(indexer.index_scores(q, weights, rows[:70]), indexer.index_scores(q, weights, rows)[:, :70])


def test_ties_go_to_the_smaller_row() -> None:
    scores = torch.tensor([[1.0, 0.0, 2.0, -0.0, 2.0, 0.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 9.0]])
    visible = torch.tensor([6, 6])
    assert indexer.top_rows(scores, visible, 4).tolist() == [[0, 1, 2, 4], [0, 1, 2, 3]]
    assert indexer.top_rows(scores, torch.tensor([2, 0]), 4).tolist() == [[0, 1, -1, -1], [-1, -1, -1, -1]]
    assert indexer.top_rows(-scores.abs(), torch.tensor([7, 7]), 3).tolist() == [[1, 3, 5], [0, 1, 2]]


@pytest.mark.parametrize("size", [2, 16, 128])
def test_hadamard_is_sylvester_and_its_own_inverse(size: int) -> None:
    x = _noise(3, size)
    matrix = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)])
    _close(indexer.hadamard(x), x.double() @ matrix.double() / math.sqrt(size))
    _close(indexer.hadamard(indexer.hadamard(x)), x)


def test_routing() -> None:
    assert moe.router_scores(torch.tensor([-2.0, 0.0, 2.0])).tolist() == pytest.approx(
        [0.3563, 0.8326, 1.4584], abs=5e-5
    )
    scores = torch.tensor([[0.5, 0.9, 0.9, 0.1]])
    assert moe.top_experts(scores, torch.tensor([0.4, 0.0, 0.0, 9.0]), 3).tolist() == [[3, 0, 1]]
    weights = moe.routing_weights(scores, torch.tensor([[3, 0, 1]]), 1.5)
    assert weights[0].tolist() == pytest.approx([0.1, 0.5, 0.9])


def test_swiglu_clamps_gate_from_above_only() -> None:
    gate, up = torch.tensor([-9.0, 3.0, 9.0]), torch.tensor([9.0, -9.0, 1.0])
    expected = F.silu(torch.tensor([-9.0, 2.0, 2.0]).double()) * torch.tensor([2.0, -2.0, 1.0]).double()
    _close(moe.clamped_swiglu(gate, up, 2.0), expected)
    _close(moe.clamped_swiglu(gate, up, None), F.silu(gate.double()) * up.double())
