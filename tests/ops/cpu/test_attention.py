"""Native core attention against the reference, a softmax in float64, and itself: the same bits however it is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from rowwise_checks import among_nan, check_contract, needs_native, noise, same_bits, same_everywhere, settings
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.formats import rows as packed
from pelagos.ops.cpu.arguments import kernels
from pelagos.ops.cpu.attention import attend
from pelagos.ops.reference.attention import WindowRows
from pelagos.ops.reference.attention import attend as reference

pytestmark = needs_native

_ROPE = 16


@dataclass(frozen=True, kw_only=True)
class _Pages:
    """Rows in pages that lie scattered in an arena: format and layout as in native/types.h."""

    format: int
    row_bytes: int
    arena: Tensor
    pages: Tensor
    page_bytes: int
    page_rows: int


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """New queries of one sequence, and the rows they see; pages hold the same rows again."""

    q: Tensor
    positions: Tensor
    window: WindowRows
    rows: Tensor | None = None
    num_visible: Tensor | None = None
    chosen: Tensor | None = None
    pages: _Pages | None = None

    def alone(self, sink: Tensor) -> Tensor:
        return attend(
            self.q, self.positions, self.window, sink, rows=self.rows, num_visible=self.num_visible, chosen=self.chosen
        )

    def part(self, start: int, stop: int) -> "_Sequence":
        cut = {k: getattr(self, k) for k in ("q", "positions", "num_visible", "chosen")}
        return replace(self, **{k: v if v is None else v[start:stop] for k, v in cut.items()})


def _sequence(
    num_queries: int,
    *,
    position: int,
    heads: int,
    size: int,
    window: int,
    num_rows: int = 0,
    topk: int = 0,
    seed: int = 0,
) -> _Sequence:
    """With topk: as many chosen rows (or all visible ones, where these are fewer). The first query sees fewer rows."""
    first = max(0, position - window + 1)
    made = _Sequence(
        q=2.0 * noise(num_queries, heads, size, seed=seed),
        positions=torch.arange(position, position + num_queries),
        window=WindowRows(rows=noise(position - first + num_queries, size, seed=seed + 1), start=first, size=window),
    )
    if not num_rows:
        return made
    rows = noise(num_rows, size, seed=seed + 2)
    visible = torch.linspace(num_rows // 2, num_rows, num_queries).long()
    if not topk:
        return replace(made, rows=rows, num_visible=visible)
    g = torch.Generator().manual_seed(seed)
    chosen = torch.full((num_queries, topk), -1)
    for line, n in zip(chosen, visible.tolist(), strict=True):
        found = torch.randperm(n, generator=g)[:topk].sort().values
        line[: len(found)] = found
    return replace(made, rows=rows, chosen=chosen)


def _run(sequences: Sequence[_Sequence], sink: Tensor) -> list[Tensor]:
    """All sequences in one call, scratch full of NaN and no larger than asked for."""
    heads, size = sequences[0].q.shape[1:]
    made, keep, outs = [], [], []
    for s in sequences:
        window, out = among_nan(s.window.rows), torch.full(s.q.shape, torch.nan)
        keep += [window, out]
        outs.append(out)
        addresses = (s.q.data_ptr(), s.positions.data_ptr(), out.data_ptr())
        one = kernels().AttendSequence(*addresses, len(s.q), window.data_ptr(), s.window.start, s.window.size)
        made.append(one)
        if s.rows is None:
            continue
        chosen = None if s.chosen is None else s.chosen.int()
        visible = s.num_visible if s.chosen is None else (s.chosen >= 0).sum(1)
        assert visible is not None
        keep += [visible, chosen]
        where = (0, 0) if chosen is None else (chosen.data_ptr(), chosen.shape[1])
        if s.pages is None:
            where = (s.rows.data_ptr(), 0, 0, len(s.rows), visible.data_ptr(), *where)
            one.see_rows(0, size, 0, 4 * size, *where)
        else:
            p = s.pages
            where = (p.arena.data_ptr(), p.pages.data_ptr(), p.page_bytes, p.page_rows, visible.data_ptr(), *where)
            one.see_rows(p.format, size, _ROPE if p.format == 2 else 0, p.row_bytes, *where)
    most = max(0 if s.rows is None else len(s.rows) for s in sequences)
    needed = kernels().attend_scratch(sum(len(s.q) for s in sequences), most, heads, size)
    scratch = torch.full((needed + 64,), torch.nan)
    scratch[needed:] = 1234.0
    kernels().attend(made, heads, size, sink.data_ptr(), scratch.data_ptr())
    assert (scratch[needed:] == 1234.0).all()
    return outs


def _exact(s: _Sequence, sink: Tensor) -> Tensor:
    """One softmax over all logits, in float64."""
    results = []
    for t, position in enumerate(s.positions.tolist()):
        first = max(0, position - s.window.size + 1) - s.window.start
        seen = [s.window.rows[first : position - s.window.start + 1]]
        if s.rows is not None:
            seen.append(s.rows[s.chosen[t][s.chosen[t] >= 0]] if s.chosen is not None else s.rows[: s.num_visible[t]])
        rows = torch.cat(seen).double()
        logits = s.q[t].double() @ rows.T / rows.shape[1] ** 0.5
        weights = torch.cat([logits, sink.double()[:, None]], dim=1).softmax(1)[:, :-1]
        results.append(weights @ rows)
    return torch.stack(results)


def _assert_near(found: Tensor, expected: Tensor, tolerance: float = 5e-6) -> None:
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def test_contract() -> None:
    check_contract("attend", attend)


@pytest.mark.parametrize(
    ("heads", "size", "window", "num_rows", "topk"),
    [
        (8, 64, 64, 3000, 0),
        (8, 64, 64, 3000, 513),
        (16, 128, 128, 700, 256),
        (12, 100, 200, 257, 0),
        (64, 512, 128, 300, 0),
    ],
)
def test_long_contexts(heads: int, size: int, window: int, num_rows: int, topk: int) -> None:
    sink = noise(heads, seed=9)
    s = _sequence(3, position=5000, heads=heads, size=size, window=window, num_rows=num_rows, topk=topk)
    (found,) = same_everywhere(lambda: s.alone(sink))
    _assert_near(found, _exact(s, sink))
    _assert_near(
        found, reference(s.q, s.positions, s.window, sink, rows=s.rows, num_visible=s.num_visible, chosen=s.chosen)
    )


def test_a_query_has_the_same_bits_in_every_batch() -> None:
    """Sequences with and without rows, short and long; together, alone, and in chunks cut anywhere."""
    common: dict[str, Any] = {"heads": 12, "size": 40, "window": 70}
    sequences = [
        _sequence(1, position=400, num_rows=900, seed=1, **common),
        _sequence(37, position=0, seed=2, **common),
        _sequence(50, position=190, num_rows=300, seed=3, **common),
        _sequence(20, position=90, num_rows=600, topk=100, seed=4, **common),
        _sequence(1, position=0, seed=5, **common),
    ]
    sink = noise(12, seed=6)
    together = same_everywhere(lambda: tuple(_run(sequences, sink)))
    for s, whole in zip(sequences, together, strict=True):
        _assert_near(whole, _exact(s, sink))
        assert same_bits(whole, s.alone(sink))
        for start, stop in ((0, 1), (3, 4), (5, 18), (18, 37)):
            if stop <= len(s.q):
                assert same_bits(whole[start:stop], s.part(start, stop).alone(sink))


def test_rows_that_a_query_does_not_see_do_not_matter() -> None:
    s = _sequence(9, position=100, heads=8, size=64, window=32, num_rows=200)
    assert s.rows is not None
    assert s.num_visible is not None
    sink = noise(8)
    before = s.alone(sink)
    s.rows[int(s.num_visible[4]) :] = torch.nan
    after = s.alone(sink)
    assert same_bits(before[:5], after[:5])
    assert after[5:].isnan().all()


_FORMATS = {
    "float32": (0, lambda x: x.contiguous().view(torch.uint8), lambda b, n: b.contiguous().view(torch.float32)),
    "bfloat16": (
        1,
        lambda x: x.bfloat16().view(torch.uint8),
        lambda b, n: b.contiguous().view(torch.bfloat16).float(),
    ),
    "fp8": (
        2,
        lambda x: packed.pack_attention_row(x, _ROPE),
        lambda b, n: packed.unpack_attention_row(b, n, _ROPE),
    ),
    "index_fp8": (3, packed.pack_index_row_fp8, packed.unpack_index_row_fp8),
    "index_fp4": (4, packed.pack_index_row_fp4, packed.unpack_index_row_fp4),
}


@pytest.mark.parametrize("name", _FORMATS)
@pytest.mark.parametrize("topk", [0, 70])
def test_stored_rows_in_scattered_pages(name: str, topk: int) -> None:
    number, pack, unpack = _FORMATS[name]
    s = _sequence(5, position=800, heads=8, size=96, window=20, num_rows=333, topk=topk)
    assert s.rows is not None
    data = pack(s.rows)
    page_rows, num_bytes = 16, data.shape[1]
    num_pages = -(-len(data) // page_rows)
    page_bytes = page_rows * num_bytes + 24
    order = torch.randperm(num_pages + 5, generator=torch.Generator().manual_seed(3))[:num_pages].int()
    memory = torch.full(((num_pages + 5) * page_bytes + 64,), 0xFF, dtype=torch.uint8)
    arena = memory[-memory.data_ptr() % 16 + 1 :]  # no row is aligned
    for i, row in enumerate(data):
        start = int(order[i // page_rows]) * page_bytes + i % page_rows * num_bytes
        arena[start : start + num_bytes] = row
    pages = _Pages(
        format=number, row_bytes=num_bytes, arena=arena, pages=order, page_bytes=page_bytes, page_rows=page_rows
    )
    sink = noise(8)
    (found,) = same_everywhere(lambda: tuple(_run([replace(s, pages=pages)], sink)))
    plain = replace(s, rows=unpack(data, 96))
    assert same_bits(found, plain.alone(sink))
    _assert_near(found, _exact(plain, sink))


def test_bfloat16_rows_are_read_as_they_are() -> None:
    s = _sequence(4, position=64, heads=8, size=32, window=16, num_rows=100)
    assert s.rows is not None
    half = replace(s, rows=s.rows.bfloat16())
    assert same_bits(half.alone(noise(8)), replace(s, rows=s.rows.bfloat16().float()).alone(noise(8)))


def test_extreme_sinks() -> None:
    s = _sequence(3, position=70, heads=4, size=32, window=64, num_rows=300)
    found = s.alone(torch.tensor([1e30, -1e30, 3e38, -torch.inf]))
    assert (found[:, (0, 2)] == 0).all()
    exact = _exact(s, torch.full((4,), -1e30))
    _assert_near(found[:, (1, 3)], exact[:, (1, 3)])


def test_equal_logits_give_the_mean() -> None:
    s = _sequence(2, position=63, heads=8, size=64, window=64, num_rows=191)
    s = replace(s, q=torch.zeros_like(s.q), num_visible=torch.tensor([0, 191]))
    found = s.alone(torch.zeros(8))
    assert s.rows is not None
    _assert_near(found[0], (s.window.rows[:64].sum(0) / 65).expand(8, 64))
    all_rows = torch.cat([s.window.rows[1:65], s.rows])
    _assert_near(found[1], (all_rows.double().sum(0) / 256).expand(8, 64))


def test_logits_of_any_size() -> None:
    """A logit far above the others takes all; logits far below count nothing; no overflow between spans."""
    s = _sequence(2, position=10, heads=8, size=64, window=8, num_rows=700)
    assert s.rows is not None
    for row in (3, 300, 699):
        s.rows[row] *= 1e18
        large = replace(s, q=1e18 * s.rows[row].sign().expand(2, 8, 64).clone(), num_visible=torch.tensor([700, 700]))
        found = large.alone(torch.zeros(8))
        assert torch.equal(found, s.rows[row].expand(2, 8, 64))
        s.rows[row] /= 1e18


def test_denormals() -> None:
    s = _sequence(3, position=70, heads=8, size=32, window=16, num_rows=80)
    assert s.rows is not None
    tiny = replace(s, rows=1e-40 * s.rows, window=replace(s.window, rows=1e-40 * s.window.rows))
    (found,) = same_everywhere(lambda: tiny.alone(torch.zeros(8)))
    _assert_near(found, _exact(tiny, torch.zeros(8)), tolerance=1e-3)
    assert found.abs().max() > 0


def test_nothing_to_do() -> None:
    s = _sequence(4, position=70, heads=8, size=32, window=16, num_rows=80)
    sink = noise(8)
    for _ in settings():
        assert s.part(0, 0).alone(sink).shape == (0, 8, 32)
        window_only = replace(s, rows=None, num_visible=None).alone(sink)
        assert same_bits(replace(s, num_visible=torch.zeros(4, dtype=torch.int64)).alone(sink), window_only)
        none_chosen = replace(s, num_visible=None, chosen=torch.full((4, 3), -1)).alone(sink)
        assert same_bits(none_chosen, window_only)
        assert same_bits(replace(s, rows=s.rows[:0]).alone(sink), window_only)  # type: ignore[index]


def test_messages_name_the_argument() -> None:
    s = _sequence(2, position=70, heads=8, size=32, window=16, num_rows=80)
    bad: list[tuple[str, _Sequence, Tensor]] = [
        ("q must", replace(s, q=s.q.double()), noise(8)),
        ("q must", replace(s, q=s.q[0]), noise(8)),
        ("sink must", s, noise(7)),
        ("positions must", replace(s, positions=s.positions[:1]), noise(8)),
        ("positions must", replace(s, positions=s.positions.int()), noise(8)),
        ("window must", replace(s, window=replace(s.window, rows=noise(17, 31))), noise(8)),
        ("window has rows of the positions", replace(s, window=replace(s.window, rows=noise(16, 32))), noise(8)),
        ("window has rows of the positions", replace(s, window=replace(s.window, start=56)), noise(8)),
        ("window.size must", replace(s, window=replace(s.window, size=0)), noise(8)),
        ("rows must", replace(s, rows=noise(80, 31)), noise(8)),
        ("rows must", replace(s, rows=noise(80, 32).double()), noise(8)),
        ("num_visible must", replace(s, num_visible=torch.tensor([1, 81])), noise(8)),
        ("chosen must", replace(s, chosen=torch.tensor([[1, 2], [3, 80]])), noise(8)),
        ("chosen must", replace(s, chosen=torch.tensor([[1, 2], [-1, 3]])), noise(8)),
        ("chosen must", replace(s, chosen=torch.tensor([1, 2])), noise(8)),
    ]
    for message, sequence, sink in bad:
        with pytest.raises(UsageError, match=message):
            sequence.alone(sink)
