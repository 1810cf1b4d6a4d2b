"""Held-out text: what predicting it costs, how its tokens spread over experts, how well the next block drafts.

Text is read as in training, packed and batched, on the functions for training, with CSA queries seeing their top rows
as in inference. So numbers agree with exact inference within float32 rounding, and are many times quicker to get.

Shapes: B packed rows, T tokens a row, N = B·T, M streams, D width, V vocabulary.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pelagos.chat.tokenizer import Tokenizer
from pelagos.model.mtp import MtpBlock
from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.documents import token_table
from pelagos.training.evaluation import AttentionReport, DraftScore, Share, TextReport, TextScore
from pelagos.training.loss import next_tokens
from pelagos.training.objective import Totals, Weights, evaluate_objective, index_ratios, routing_of
from pelagos.training.packed import Packed, PackedRows
from pelagos.training.packing import Document, cut, pack, to_batch
from pelagos.training.shards import TokenSource

_CHUNK = 512  # places whose logits stand in memory at a time


def text_batch(
    name: str, source: TokenSource, tokenizer: Tokenizer, *, context_length: int, num_tokens: int, seed: int
) -> PackedBatch:
    """Random pieces of a source's documents, of at most ``context_length`` tokens each, about ``num_tokens`` in all.

    A document is cut into pieces of that length, start and end mark included; pieces are drawn without repetition.
    """
    lengths = source.lengths().tolist()
    pieces = [(index, *ends) for index, length in enumerate(lengths) for ends in cut(length + 2, context_length)]
    random.Random(f"{seed} {name}").shuffle(pieces)
    drawn, documents = 0, []
    for index, start, stop in pieces:
        if drawn >= num_tokens:
            break
        ids = np.concatenate([[tokenizer.bos_id], source.document(index), [tokenizer.eos_id]])
        weights = np.ones(stop - start, dtype=np.float32)
        documents.append(Document(token_ids=ids[start:stop], loss_weights=weights))
        drawn += stop - start
    return to_batch(pack(documents, context_length), context_length, token_table(tokenizer))


def mixed_batch(batches: Sequence[PackedBatch], num_rows: int) -> PackedBatch:
    """The first rows of each batch, then the second, up to ``num_rows``. All have rows of one length."""
    most = max(len(batch.token_ids) for batch in batches)
    rows = [batch.rows(i, i + 1) for i in range(most) for batch in batches if i < len(batch.token_ids)][:num_rows]
    return PackedBatch(**{name: torch.cat([getattr(row, name) for row in rows]) for name in vars(rows[0])})


def passes(batch: PackedBatch, num_tokens: int, device: torch.device) -> Iterator[PackedBatch]:
    """The batch in parts of at most ``num_tokens``, or one row, each moved to ``device``."""
    num_rows, length = batch.token_ids.shape
    step = max(1, num_tokens // length)
    for start in range(0, num_rows, step):
        part = batch.rows(start, start + step)
        yield part.to(device)


def measure_text(
    model: Model,
    batches: Mapping[str, PackedBatch],
    *,
    split: str,
    context_length: int,
    pass_tokens: int,
    on_pass: Callable[[int], None],
) -> TextReport:
    """Read one batch per source. ``model`` is on the functions for training. ``on_pass`` gets the tokens read."""
    tally = _Tally()
    sources = {}
    for name, batch in batches.items():
        score = TextScore(num_tokens=0, num_bytes=0, nats=0.0)
        for part in passes(batch, pass_tokens, model.device):
            score += _read(model, part, tally)
            on_pass(part.token_ids.numel())
        sources[name] = score
    load = {layer: float(counts.max() / counts.double().mean()) for layer, counts in tally.load.items()}
    return TextReport(
        split=split, context_length=context_length, sources=sources, expert_load=load, draft=tally.draft()
    )


@dataclass(kw_only=True)
class _Tally:
    """load: tokens sent to each expert, [E] by layer. drafts: how many there were, were accepted, were right."""

    load: dict[int, Tensor] = field(default_factory=dict)
    drafts: Counter[str] = field(default_factory=Counter)

    def draft(self) -> DraftScore | None:
        num_all = self.drafts["all"]
        accepted, right = (Share(num_right=self.drafts[name], num_all=num_all) for name in ("accepted", "right"))
        return DraftScore(accepted=accepted, right=right) if num_all else None


@torch.no_grad()
def _read(model: Model, batch: PackedBatch, tally: _Tally) -> TextScore:
    layout = PackedRows(batch)
    contexts = [Packed(layout=layout, sparse=True, with_index=False) for _ in model.layers]
    with routing_of(model) as routing:
        streams = model(batch.token_ids.flatten(), batch.positions.flatten(), contexts)
    counted = (batch.document_ids >= 0).flatten()
    for name, decided in routing.items():
        counts = torch.bincount(decided.chosen[counted].flatten(), minlength=model.config.num_experts)
        tally.load[_layer(name)] = tally.load.get(_layer(name), torch.zeros_like(counts)) + counts
    targets, weights = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 1)
    places = weights.nonzero().squeeze(1)
    nats, likeliest = _cost(lambda at: model.output(streams[at]), targets, places)
    if model.mtp:
        _count_drafts(model, batch, streams, layout, likeliest, tally)
    num_bytes = F.pad(batch.num_bytes[:, 1:], (0, 1)).flatten()[places].sum()
    return TextScore(num_tokens=len(places), num_bytes=int(num_bytes), nats=nats)


def _cost(logits_at: Callable[[Tensor], Tensor], targets: Tensor, places: Tensor) -> tuple[float, Tensor]:
    """Nats of predicting ``targets`` at ``places``, and the likeliest token there, [N], -1 elsewhere."""
    nats, likeliest = 0.0, torch.full_like(targets, -1)
    for at in torch.split(places, _CHUNK):
        logits = logits_at(at)
        nats += float(F.cross_entropy(logits, targets[at], reduction="none").double().sum())
        likeliest[at] = logits.argmax(1)
    return nats, likeliest


def _count_drafts(
    model: Model, batch: PackedBatch, streams: Tensor, layout: PackedRows, likeliest: Tensor, tally: _Tally
) -> None:
    """At place t the block gets the streams of t and token t+1; what it drafts stands against the model at t+1."""
    next_ids, _ = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 1)
    targets, weights = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 2)
    block = model.mtp[0]
    assert isinstance(block, MtpBlock)
    context = Packed(layout=layout, sparse=True, with_index=False)
    hidden, _ = block.draft(streams, model.embed(next_ids, model.dtype), next_ids, batch.positions.flatten(), context)
    places = weights.nonzero().squeeze(1)
    _, drafted = _cost(lambda at: model.head(hidden[at], out_dtype=torch.float32), targets, places)
    own = likeliest[places + 1]  # a place with a token after next is never a row's last
    tally.drafts["all"] += len(places)
    tally.drafts["accepted"] += int((drafted[places] == own).sum())
    tally.drafts["right"] += int((drafted[places] == targets[places]).sum())


def measure_attention(model: Model, batch: PackedBatch, *, pass_tokens: int) -> AttentionReport:
    """Loss with top rows and with all, and the recall of indexers, on one batch."""
    sparse, _ = objective_loss(model, batch, pass_tokens=pass_tokens)
    if not index_ratios(model):
        return AttentionReport(sparse=sparse, dense=sparse, indexer_recall={})
    dense, recall = objective_loss(model, batch, pass_tokens=pass_tokens, dense=True)
    return AttentionReport(sparse=sparse, dense=dense, indexer_recall=recall)


@torch.no_grad()
def objective_loss(
    model: Model, batch: PackedBatch, *, pass_tokens: int, dense: bool = False
) -> tuple[float, dict[int, float]]:
    """Nats per predicted token of a batch, and with ``dense`` attention the recall of each layer's indexer."""
    totals = Totals.of(batch, index_ratios(model))
    totals = totals.replaced(totals.vector())
    weights = Weights(mtp=0.0, balance=0.0, index=float(dense))
    loss, recall = 0.0, dict.fromkeys(_index_layers(model) if dense else (), 0.0)
    for part in passes(batch, pass_tokens, model.device):
        outcome = evaluate_objective(model, part, sparse=not dense, weights=weights, totals=totals)
        loss += float(outcome.main)
        for name, share in outcome.recall.items():
            recall[_layer(name)] += share
    return loss, recall


def _index_layers(model: Model) -> list[int]:
    return [number for number, layer in enumerate(model.config.layers) if layer.index == "own"]


def _layer(name: str) -> int:
    """The layer of a module."""
    return int(name.split(".")[1])
