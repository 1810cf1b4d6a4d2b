"""Core attention over packed rows of whole documents, for training: no state, every part batched.

Each document stands alone: its window, its compression windows, its index and its positions begin with it (see
batch.py). A document's last, open compression window makes no row.

Shapes: B packed rows, T tokens a row, H heads, C head size, S compressed rows of a packed row (padded), m tokens per
compressed row, W window.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.model.attention import Attention, NewTokens
from pelagos.model.compressor import Compressor
from pelagos.training.batch import PADDING, PackedBatch

_DENSE_TOKENS = 4096  # up to this row length all compressed rows are scored at once and masked; beyond, kept rows only
_SMALL_MASS = 1e-6  # attention mass on compressed rows below which a query teaches its indexer nothing


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Where the compression windows of one ratio are.

    tokens: [B, S, m] int64 into the flat tokens; numbers: [B, S] int64, of the row within its document; documents:
    [B, S], PADDING on unused places; visible: [B, T, S] bool, the rows a token may see.
    """

    tokens: Tensor
    numbers: Tensor
    documents: Tensor
    visible: Tensor


class PackedRows:
    """The layout of a batch, worked out once and shared by its layers."""

    def __init__(self, batch: PackedBatch) -> None:
        self.documents, self.positions = batch.document_ids, batch.positions
        self.num_rows, self.num_tokens = batch.document_ids.shape
        self._windows: dict[int, Windows] = {}
        self._near: dict[int, Tensor] = {}

    def windows(self, ratio: int) -> Windows:
        if ratio not in self._windows:
            self._windows[ratio] = self._find_windows(ratio)
        return self._windows[ratio]

    def near(self, window: int) -> Tensor:
        """Which of the 2·W tokens of its own and the previous block a token sees: [B, blocks, W, 2W] bool."""
        if window not in self._near:
            ids = F.pad(self.documents, (0, -self.num_tokens % window), value=PADDING).view(self.num_rows, -1, window)
            keys = _with_previous_block(ids, PADDING)
            place = torch.arange(window, device=ids.device)
            age = place.unsqueeze(1) + window - torch.arange(2 * window, device=ids.device)
            same = ids.unsqueeze(3) == keys.unsqueeze(2)
            self._near[window] = same & (ids >= 0).unsqueeze(3) & (age >= 0) & (age < window)
        return self._near[window]

    def _find_windows(self, ratio: int) -> Windows:
        """A window ends at each token whose position closes one; it is whole, as its document has no gaps."""
        ends = ((self.positions + 1) % ratio == 0) & (self.documents >= 0)
        row, end = ends.nonzero(as_tuple=True)
        place = (ends.cumsum(1) - 1)[row, end]
        shape = (self.num_rows, max(int(ends.sum(1).max()), 1))
        documents = self.documents.new_full(shape, PADDING)
        numbers = self.positions.new_zeros(shape)
        first = self.positions.new_zeros(shape)
        documents[row, place] = self.documents[row, end]
        numbers[row, place] = self.positions[row, end] // ratio
        first[row, place] = row * self.num_tokens + end - (ratio - 1)
        closed = (self.positions + 1) // ratio
        same = self.documents.unsqueeze(2) == documents.unsqueeze(1)
        visible = same & (documents >= 0).unsqueeze(1) & (numbers.unsqueeze(1) < closed.unsqueeze(2))
        tokens = first.unsqueeze(2) + torch.arange(ratio, device=first.device)
        return Windows(tokens=tokens, numbers=numbers, documents=documents, visible=visible)


@dataclass(kw_only=True)
class IndexReport:
    """What one indexer's loss and health come to, as sums over the queries that see a row; ``loss`` has a gradient.

    recall: share of the attention that the indexer's best rows hold; None where attention saw no others.
    """

    loss: Tensor
    recall: Tensor | None


@dataclass(kw_only=True)
class Packed:
    """One layer of a packed batch. ``sparse``: CSA queries see their index_topk rows only; otherwise all.

    ``index_report`` is filled by layers with an indexer when ``with_index`` is set.
    """

    layout: PackedRows
    sparse: bool
    with_index: bool = True
    index_report: IndexReport | None = field(default=None)

    def attend(self, attention: Attention, new: NewTokens) -> Tensor:
        """See ``Context.attend``."""
        num_rows, num_tokens = self.layout.num_rows, self.layout.num_tokens
        q = new.q.unflatten(0, (num_rows, num_tokens)).float()
        rows = new.rows.unflatten(0, (num_rows, num_tokens)).float()
        near = _NearRows(q, rows, self.layout.near(attention.layer.window), attention.layer.window)
        if attention.layer.ratio is None or new.pairs is None:
            return _joined(near, None, attention).flatten(0, 1)
        windows = self.layout.windows(attention.layer.ratio)
        far_rows = attention.rounded(_compress(attention.compressor, new.pairs, windows, new)).float()
        index = _Index(attention, new, windows) if new.index_queries is not None else None
        if index is None or (not self.sparse and not self.with_index):
            return _joined(near, _FarRows(q, far_rows, windows.visible), attention).flatten(0, 1)
        return self._with_indexer(attention, near, _FarQuery(q, far_rows), index).flatten(0, 1)

    def _with_indexer(self, attention: Attention, near: "_NearRows", far: "_FarQuery", index: "_Index") -> Tensor:
        chosen = index.top(attention.index_topk) if self.sparse else None
        if chosen is not None and index.too_long:
            kept = _FarKept(far.q, far.rows, chosen)
            o, weights = _joined_with_weights(near, kept, attention)
            scores, seen = index.scores_of(chosen), chosen >= 0
        else:
            seen = index.windows.visible
            if chosen is not None:
                seen = _mask_of(chosen, seen.shape[2])
            o, weights = _joined_with_weights(near, _FarRows(far.q, far.rows, seen), attention)
            scores = index.scores
        if self.with_index:
            k = None if self.sparse else attention.index_topk
            self.index_report = _index_report(scores, seen, weights.detach(), k)
        return o


def _compress(compressor: Compressor, pairs: tuple[Tensor, Tensor], windows: Windows, new: NewTokens) -> Tensor:
    """Compressed rows of all windows, [B, S, C]; places without a window hold finite nonsense, which nobody sees."""
    values, gates = (pair[windows.tokens] for pair in pairs)  # [B, S, m, P]
    if compressor.shape.overlap:
        size = compressor.shape.size
        has_previous = (windows.numbers > 0).unsqueeze(2).unsqueeze(3)
        before_values, before_gates = (F.pad(x[:, :-1, :, :size], (0, 0, 0, 0, 1, 0)) for x in (values, gates))
        before_values = before_values * has_previous
        before_gates = before_gates.masked_fill(~has_previous, -torch.inf)
        values = torch.cat([before_values, values[..., size:]], 2)
        gates = torch.cat([before_gates, gates[..., size:]], 2)
    dtype = new.rows.dtype
    rows = compressor.pool(values.flatten(0, 1), gates.flatten(0, 1), windows.numbers.flatten(), new.frequencies, dtype)
    return rows.view(*windows.numbers.shape, -1)


class _NearRows:
    """Window attention in blocks of W queries, each against its own and the previous block of keys."""

    def __init__(self, q: Tensor, rows: Tensor, seen: Tensor, window: int) -> None:
        num_rows, num_tokens, num_heads, size = q.shape
        pad = -num_tokens % window
        self.shape = (num_rows, num_tokens, num_heads, size)
        blocks = F.pad(q, (0, 0, 0, 0, 0, pad)).view(num_rows, -1, window * num_heads, size)
        self.keys = _with_previous_block(F.pad(rows, (0, 0, 0, pad)).view(num_rows, -1, window, size), 0)
        logits = torch.matmul(blocks, self.keys.transpose(2, 3)) * size**-0.5  # [B, blocks, W·H, 2W]
        logits = logits.unflatten(2, (window, num_heads)).masked_fill(~seen.unsqueeze(3), -torch.inf)
        self.logits = logits.flatten(1, 2)[:, :num_tokens]  # [B, T, H, 2W]

    def weighted(self, weights: Tensor) -> Tensor:
        """weights: [B, T, H, 2W] -> [B, T, H, C]."""
        num_rows, num_tokens, num_heads, size = self.shape
        pad = self.keys.shape[1] * self.keys.shape[2] // 2 - num_tokens
        blocks = F.pad(weights, (0, 0, 0, 0, 0, pad)).view(num_rows, self.keys.shape[1], -1, self.keys.shape[2])
        o = torch.matmul(blocks, self.keys).view(num_rows, -1, num_heads, size)
        return o[:, :num_tokens]


@dataclass(frozen=True, kw_only=False)
class _FarQuery:
    q: Tensor  # [B, T, H, C]
    rows: Tensor  # [B, S, C]


class _FarRows:
    """All compressed rows of a packed row, masked."""

    def __init__(self, q: Tensor, rows: Tensor, seen: Tensor) -> None:
        self.shape, self.rows = q.shape, rows
        logits = torch.matmul(q.flatten(1, 2), rows.transpose(1, 2)) * q.shape[-1] ** -0.5
        self.logits = logits.view(*q.shape[:3], -1).masked_fill(~seen.unsqueeze(2), -torch.inf)

    def weighted(self, weights: Tensor) -> Tensor:
        """weights: [B, T, H, S] -> [B, T, H, C]."""
        return torch.matmul(weights.flatten(1, 2), self.rows).view(self.shape)


class _FarKept:
    """The chosen compressed rows of each query, gathered."""

    def __init__(self, q: Tensor, rows: Tensor, chosen: Tensor) -> None:
        self.shape = q.shape
        self.rows = _gathered(rows, chosen)  # [B, T, K, C]
        logits = torch.matmul(q, self.rows.transpose(2, 3)) * q.shape[-1] ** -0.5
        self.logits = logits.masked_fill((chosen < 0).unsqueeze(2), -torch.inf)

    def weighted(self, weights: Tensor) -> Tensor:
        """weights: [B, T, H, K] -> [B, T, H, C]."""
        return torch.matmul(weights, self.rows)


def _joined(near: _NearRows, far: _FarRows | _FarKept | None, attention: Attention) -> Tensor:
    return _joined_with_weights(near, far, attention)[0]


def _joined_with_weights(
    near: _NearRows, far: _FarRows | _FarKept | None, attention: Attention
) -> tuple[Tensor, Tensor]:
    """One softmax over window rows, compressed rows and the sink. Returns [B, T, H, C] and the weights of ``far``
    (without it: of the sink)."""
    sink = attention.attn_sink.float().view(1, 1, -1, 1).expand(*near.logits.shape[:3], 1)
    parts = [near.logits, far.logits, sink] if far is not None else [near.logits, sink]
    weights = torch.softmax(torch.cat(parts, -1), -1)
    sizes = [part.shape[-1] for part in parts]
    near_weights, *others = torch.split(weights, sizes, -1)  # the gradient of slices would be padded with zeros
    o = near.weighted(near_weights)
    return (o, others[0]) if far is None else (o + far.weighted(others[0]), others[0])


class _Index:
    """Scores of one indexer over a packed batch, with gradient."""

    def __init__(self, attention: Attention, new: NewTokens, windows: Windows) -> None:
        assert new.index_pairs is not None
        assert new.index_queries is not None
        shape = windows.visible.shape[:2]
        indexer = attention.indexer
        self.windows = windows
        self.q, self.head_weights = (part.unflatten(0, shape).float() for part in new.index_queries)
        self.rows = indexer.rounded(_compress(indexer.compressor, new.index_pairs, windows, new)).float()
        self.too_long = shape[1] > _DENSE_TOKENS
        self._scores: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """[B, T, S], of every row, seen or not."""
        if self._scores is None:
            self._scores = self._score(self.q, self.head_weights)
        return self._scores

    def _score(self, q: Tensor, head_weights: Tensor) -> Tensor:
        dots = torch.matmul(q.flatten(1, 2), self.rows.transpose(1, 2)).unflatten(1, q.shape[1:3])
        return torch.einsum("bth,bths->bts", head_weights, torch.relu(dots))

    @torch.no_grad()
    def top(self, k: int) -> Tensor:
        """The k best visible rows of each query, [B, T, k] int64, −1 where there are fewer. Ties: see _best."""
        if not self.too_long:
            return _best(self.scores, self.windows.visible, k)
        step = _DENSE_TOKENS // 8
        tiles = [slice(i, i + step) for i in range(0, self.q.shape[1], step)]
        parts = [
            _best(self._score(self.q[:, t], self.head_weights[:, t]), self.windows.visible[:, t], k) for t in tiles
        ]
        return torch.cat(parts, 1)

    def scores_of(self, chosen: Tensor) -> Tensor:
        """Scores of chosen rows, [B, T, K]."""
        rows = _gathered(self.rows, chosen)
        dots = torch.relu(torch.matmul(self.q, rows.transpose(2, 3)))
        return torch.einsum("bth,bthk->btk", self.head_weights, dots)


def _best(scores: Tensor, visible: Tensor, k: int) -> Tensor:
    """Indices of the k largest visible scores, −1 padded. Among equals the smaller row wins, as in inference."""
    masked = scores.masked_fill(~visible, -torch.inf)
    k = min(k, scores.shape[2])
    order = masked.sort(dim=2, descending=True, stable=True).indices[..., :k]
    return order.masked_fill(~visible.gather(2, order), -1)


def _mask_of(chosen: Tensor, num_rows: int) -> Tensor:
    mask = torch.zeros(*chosen.shape[:2], num_rows + 1, dtype=torch.bool, device=chosen.device)
    return mask.scatter_(2, chosen.masked_fill(chosen < 0, num_rows), True)[..., :num_rows]


def _gathered(rows: Tensor, chosen: Tensor) -> Tensor:
    """rows: [B, S, C]; chosen: [B, T, K] -> [B, T, K, C]; −1 gives row 0."""
    num_rows, _, size = rows.shape
    base = torch.arange(num_rows, device=rows.device).view(-1, 1, 1) * rows.shape[1]
    return F.embedding(chosen.clamp(min=0) + base, rows.reshape(-1, size))


def _with_previous_block(blocks: Tensor, value: int) -> Tensor:
    """[B, blocks, W, ...] -> [B, blocks, 2W, ...]: each block behind the one before it."""
    padding = [0, 0] * (blocks.dim() - 2) + [1, 0]
    return torch.cat([F.pad(blocks, padding, value=value)[:, :-1], blocks], 2)


def _index_report(scores: Tensor, seen: Tensor, weights: Tensor, k: int | None) -> IndexReport:
    """KL from the attention's own distribution over compressed rows to the indexer's, and the share of attention that
    the indexer's k best rows hold (k None: not measured).

    scores: [B, T, S] with gradient; seen: [B, T, S]; weights: [B, T, H, S] attention weights. Queries whose attention
    is all on window and sink are left out.
    """
    mass = weights.sum(2)  # [B, T, S]
    total = mass.sum(2)
    counted = (total > _SMALL_MASS) & seen.any(2)
    p = mass / total.clamp(min=_SMALL_MASS).unsqueeze(2)
    log_q = torch.log_softmax(scores.masked_fill(~seen, -torch.inf), 2).masked_fill(~seen, 0.0)
    entropy = torch.special.entr(p).sum(2)
    divergence = -(p * log_q).sum(2) - entropy
    loss = divergence.masked_fill(~counted, 0.0).sum()
    if k is None:
        return IndexReport(loss=loss, recall=None)
    with torch.no_grad():
        best = scores.masked_fill(~seen, -torch.inf).topk(min(k, scores.shape[2]), 2).indices
        held = (p.gather(2, best) * seen.gather(2, best)).sum(2)
        recall = held.masked_fill(~counted, 0.0).sum()
    return IndexReport(loss=loss, recall=recall)
