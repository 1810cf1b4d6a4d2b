"""A start from which looking things up is learned within a million tokens: circuits of induction as weights.

From a plain start a model spends a long plateau before it repeats what stood behind an earlier occurrence of its last
words (Olsson et al. 2022), longer than small models are trained at all. Matrices that start in the form which training
would give them shorten it (mimetic initialisation, Trockman & Kolter 2023). Here, in random projections:

- coordinate 0 of the streams is the same for all tokens; other parts hold the token, the tokens 1 to 4 places before
  it, and what is to be predicted;
- four heads of the first layer look 1 to 4 places back, by the rotation of that constant, and write what they find;
- above, window rows (HCA and window layers) or compressed rows and their index (CSA layers) hold the tokens before
  theirs as what is compared, and their token as what is found; queries hold the last tokens; what is found is written
  where the output head reads. Window rows compare place by place, compressed rows in any order.

All of it is trained on like any other weights.

Shapes: D width, C head size, N of its dims that are not rotated, F dims compared.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from pelagos.model.attention import Attention
from pelagos.model.compressor import Compressor
from pelagos.model.config import ModelConfig
from pelagos.model.transformer import Model

NUM_PLACES = 4  # how far back the first layer looks, and how many heads of a layer start with a task
_EMBEDDING_NORM, _CONSTANT, _HEAD_NORM = 4.0, 2.0, 0.6  # lengths of rows; the constant coordinate
_PAIR_SHARES = (0.45, 0.25, 0.3)  # of the fastest rotations in looking back: one peak within 64 places, one token wide
_LEFT = 0.2  # of the plain start that stays in what gets a task
_OWN = 1.45  # a token itself, so that it is as large as what the first layer writes about the one before
_SHARP = 2.0  # norm weight of compared dims: about 5 nats between a match and noise
_SINK = 8.0  # of heads that look in the window: without a match they find nothing
_CLOSED = -4.0  # gate of a slot that a compressed row leaves out
_NEAR_LOOKS = (
    (0, 1, 2, 3),
    (0, 1, 2),
    (0, 1),
    (1, 2),
)  # per head: the places, counted back from the query, that must match
_FAR_LOOKS = ((0, 1, 2, 3), (0, 1), (1, 2), (1,))


class _Parts:
    """Which coordinates of the streams hold what."""

    def __init__(self, config: ModelConfig) -> None:
        width = config.hidden_size
        self.place, self.token = 3 * width // 32, 5 * width // 16 - 1
        ends = [1, 1 + self.token]
        for _ in range(NUM_PLACES):
            ends.append(ends[-1] + self.place)
        self.own = slice(ends[0], ends[1])
        self.before = [slice(*pair) for pair in pairwise(ends[1:])]
        self.out = slice(ends[-1], ends[-1] + self.token)
        self.content = config.head_dim - config.rope_dim
        self.compared = self.content // 2


def recall_problems(config: ModelConfig) -> Iterator[str]:
    """Why a model of this shape cannot start so."""
    parts, num_heads = _Parts(config), config.num_heads // config.num_output_groups
    if num_heads < NUM_PLACES:
        yield f"num_heads must be at least {NUM_PLACES} per output group for init recall, got {num_heads}"
    for name, least in {
        "query_rank": NUM_PLACES * parts.compared,
        "output_rank": max(NUM_PLACES * parts.place, parts.content - parts.compared),
        "head_dim": config.rope_dim + parts.place,
        "rope_dim": 2 * len(_PAIR_SHARES),
    }.items():
        if getattr(config, name) < least:
            yield f"{name} must be at least {least} for init recall, got {getattr(config, name)}"


@torch.no_grad()
def add_recall(model: Model, generator: torch.Generator) -> None:
    """Change the weights of a plainly initialised model that has no ``recall_problems``."""
    parts = _Parts(model.config)
    tokens = torch.randn(model.config.vocab_size, parts.token, generator=generator) / math.sqrt(parts.token)
    model.embed.weight.mul_(_LEFT)
    model.embed.weight[:, 0] = _CONSTANT
    model.embed.weight[:, parts.own] = tokens * _EMBEDDING_NORM
    assert isinstance(model.head.weight, Tensor)
    model.head.weight[:, parts.out] = tokens * _HEAD_NORM
    seen = _projection(parts.content, parts.token, generator)  # of a token, in rows of the first layer
    kept = _projection(parts.place, parts.content, generator)  # of that, in the streams
    first, *others = (module for module in model.layers.modules() if isinstance(module, Attention))
    _look_back(first, parts, seen, kept)
    num_far = 0
    for attention in others:
        is_far = attention.layer.index == "own"
        _look_up(attention, parts, kept @ seen, generator, num_far if is_far else None)
        num_far += is_far


def _look_back(attention: Attention, parts: _Parts, seen: Tensor, kept: Tensor) -> None:
    """The first layer: head i finds the token i + 1 places back. Rows are the token, and the constant to be rotated."""
    a, content = _Matrices(attention), parts.content
    frequencies = attention.rope_config.theta ** (-torch.arange(0, attention.rope_dim, 2) / attention.rope_dim)
    a.query_latent[-1] = 0.0
    a.query_latent[-1, 0] = 0.1
    a.rows[:content] = 0.0
    a.rows[:content, parts.own] = seen
    a.rows[content:] *= _LEFT
    equal = _EMBEDDING_NORM / _CONSTANT * math.sqrt(content / parts.token)  # the constant is then as long as the token
    attention.kv_norm.weight[content:] = 2.0
    for pair, share in enumerate(_PAIR_SHARES):
        a.rows[content + 2 * pair, 0] = equal * math.sqrt(share)
    for place in range(NUM_PLACES):
        a.queries[place] *= _LEFT
        for pair, share in enumerate(_PAIR_SHARES):
            angle = -(place + 1) * float(frequencies[pair])
            even = content + 2 * pair
            a.queries[place, even, -1] = math.cos(angle) * math.sqrt(share)
            a.queries[place, even + 1, -1] = math.sin(angle) * math.sqrt(share)
        latent = slice(place * parts.place, (place + 1) * parts.place)
        a.out_latent[latent] = 0.0
        a.out_latent[latent, place, :content] = kept
        a.out[:, latent] *= _LEFT
        a.out[parts.before[place], latent] = torch.eye(parts.place)


def _look_up(attention: Attention, parts: _Parts, feature: Tensor, generator: torch.Generator, far: int | None) -> None:
    """A layer above. ``feature``: what the first layer writes of a token, [.., tokens' part]; ``far``: which of the
    layers that look up in compressed rows this is; None: it looks up in its window."""
    a = _Matrices(attention)
    num, content, width = parts.compared, parts.content, a.rows.shape[1]
    places = [torch.zeros(parts.place, width) for _ in range(1 + NUM_PLACES)]
    places[0][:, parts.own] = feature * _OWN
    for place, part in zip(places[1:], parts.before, strict=True):
        place[:, part] = torch.eye(parts.place)
    codes = [_projection(num, parts.place, generator) for _ in range(NUM_PLACES)]
    if far is not None:
        codes = codes[:1] * NUM_PLACES
    for i, code in enumerate(codes):
        a.query_latent[i * num : (i + 1) * num] = code @ places[i]
    looks = _NEAR_LOOKS if far is None else _FAR_LOOKS
    for head, look in enumerate(looks):
        _take(a.queries[head], look, num, num)
    compared = torch.stack([code @ place for code, place in zip(codes, places[1:], strict=True)]).sum(0)
    found = torch.zeros(content - num, width)
    found[:, parts.own] = 2 * _projection(content - num, parts.token, generator)
    for rows in [a.rows, *(_halves(attention.compressor) if attention.layer.ratio else [])]:
        rows[:num] *= _LEFT
        rows[num:content] = found
    if far is None:
        a.rows[:num] = compared
        attention.kv_norm.weight[:num] = _SHARP
        attention.attn_sink[: len(looks)] = _SINK
    else:
        for half in _halves(attention.compressor):
            half[:num] = compared
        attention.compressor.norm.weight[:num] = _SHARP
        _leave_out(attention.compressor, far)
        _look_up_index(attention, compared, num, far)
    latent = slice(content - num)
    a.out_latent[latent] = 0.0
    for head in range(NUM_PLACES):
        a.out_latent[latent, head, num:content] = 0.5 * torch.eye(content - num)
    a.out[:, latent] *= _LEFT
    a.out[parts.out, latent] = 0.5 * found[:, parts.own].t()


def _look_up_index(attention: Attention, compared: Tensor, num: int, far: int) -> None:
    """The indexer compares the first of the dims that its attention compares."""
    indexer = attention.indexer
    few = min(num, indexer.head_dim - attention.rope_dim)
    for half in _halves(indexer.compressor):
        half[:few] = compared[:few]
    _leave_out(indexer.compressor, far)
    assert isinstance(indexer.wq_b.weight, Tensor)
    assert isinstance(indexer.weights_proj.weight, Tensor)
    queries = indexer.wq_b.weight.view(indexer.num_heads, indexer.head_dim, -1)
    for query, look in zip(queries, _FAR_LOOKS, strict=False):
        _take(query, look, num, few)
    indexer.weights_proj.weight[:, 0] = 0.3


def _take(query: Tensor, look: tuple[int, ...], num: int, few: int) -> None:
    """Make a head's query the sum of the codes of some places."""
    query *= _LEFT
    for place in look:
        query[:few, place * num : place * num + few] += 0.3 * torch.eye(few)


def _leave_out(compressor: Compressor, far: int) -> None:
    """Rows hold few tokens, so that these can be told apart: of their own window the first half, in the next layer the
    second, in the third all; of the window before none."""
    ratio = compressor.shape.ratio
    gates = compressor.ape.view(ratio, -1, compressor.shape.size)  # [m, series, C]; the own window is the last series
    gates.fill_(_CLOSED)
    kept = (slice(0, ratio // 2), slice(ratio // 2, ratio), slice(0, ratio))[far % 3]
    gates[kept, -1] = 0.0


def _halves(compressor: Compressor) -> list[Tensor]:
    """Value projection of each series of a compressor, [C, D]."""
    assert isinstance(compressor.wkv.weight, Tensor)
    return list(compressor.wkv.weight.view(-1, compressor.shape.size, compressor.wkv.weight.shape[1]))


class _Matrices:
    """Views of an attention's projections by head.

    query_latent: [rank, D]; queries: [H, C, rank]; rows: [C, D]; of the first output group out_latent: [rank, heads, C]
    and out: [D, rank].
    """

    def __init__(self, a: Attention) -> None:
        weights = [linear.weight for linear in (a.wq_a, a.wq_b, a.wkv, a.wo_a, a.wo_b)]
        wq_a, wq_b, wkv, wo_a, wo_b = (weight for weight in weights if isinstance(weight, Tensor))
        self.query_latent, self.rows = wq_a, wkv
        self.queries = wq_b.view(a.num_heads, a.head_dim, -1)
        self.out_latent = wo_a.view(a.num_groups, -1, a.num_heads // a.num_groups, a.head_dim)[0]
        self.out = wo_b[:, : self.out_latent.shape[0]]


def _projection(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Random, with orthonormal rows, or columns if these are fewer."""
    q: Tensor = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=generator))[0]
    return q if rows >= columns else q.t()
