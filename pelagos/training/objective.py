"""The objective of one pass through the model: forward, all losses, and what the step wants to know about them.

Shapes: B packed rows, T tokens a row, E experts, K chosen experts.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pelagos.model.moe import Router, Routing
from pelagos.model.mtp import MtpBlock
from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.loss import balance_loss, cross_entropy, next_tokens
from pelagos.training.packed import Packed, PackedRows

Forced = dict[str, Tensor]  # router name -> expert ids [B·T, K] that it must use


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How much each part counts in this step."""

    mtp: float
    balance: float
    index: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What the means of a step are taken over, all its passes and processes together: weight of predicted next tokens
    and of tokens after those, packed rows, and queries that see compressed rows, by tokens per row."""

    predicted: float
    predicted_second: float
    num_rows: float
    num_queries: dict[int, float]

    @staticmethod
    def of(batch: PackedBatch, ratios: Iterable[int]) -> "Totals":
        arguments = (batch.token_ids, batch.document_ids, batch.loss_weights)
        first, second = (float(next_tokens(*arguments, ahead)[1].double().sum()) for ahead in (1, 2))
        seen = {m: float(((batch.positions >= m - 1) & (batch.document_ids >= 0)).sum()) for m in sorted(set(ratios))}
        return Totals(predicted=first, predicted_second=second, num_rows=len(batch.token_ids), num_queries=seen)

    def vector(self) -> Tensor:
        """As float64 numbers, to be added up."""
        numbers = [self.predicted, self.predicted_second, self.num_rows, *self.num_queries.values()]
        return torch.tensor(numbers, dtype=torch.float64)

    def replaced(self, vector: Tensor) -> "Totals":
        """With the numbers of ``vector``; zeros become 1, for what is divided by them is 0."""
        first, second, rows, *queries = (number or 1.0 for number in vector.tolist())
        seen = dict(zip(self.num_queries, queries, strict=True))
        return Totals(predicted=first, predicted_second=second, num_rows=rows, num_queries=seen)


@dataclass(kw_only=True)
class Outcome:
    """What one pass adds to the losses of its step, with gradient; the passes of a step add up to means.

    main, mtp: cross-entropy in nats per predicted token; balance, index: summed over layers. load: tokens sent to each
    expert, [E] per learned router. recall: share of attention that an indexer's best rows hold, per CSA layer.
    """

    main: Tensor
    mtp: Tensor
    balance: Tensor
    index: Tensor
    load: dict[str, Tensor]
    recall: dict[str, float]

    def total(self, weights: Weights) -> Tensor:
        return self.main + weights.mtp * self.mtp + weights.balance * self.balance + weights.index * self.index


@contextmanager
def routing_of(model: Model, forced: Forced | None = None) -> Iterator[dict[str, Routing]]:
    """What each router decided in the passes made meanwhile (the last of them), by module name. ``forced`` routers use
    the given experts, with weights from their own scores."""
    seen: dict[str, Routing] = {}

    def watch(name: str, router: Router) -> Callable[[object, object, Routing], Routing]:
        def hook(module: object, inputs: object, output: Routing) -> Routing:
            if forced is not None and name in forced:
                weights = router.ops.routing_weights(output.scores, forced[name], router.factor)
                output = Routing(forced[name], weights, output.scores)
            seen[name] = output
            return output

        return hook

    routers = [(name, module) for name, module in model.named_modules() if isinstance(module, Router)]
    handles = [router.register_forward_hook(watch(name, router)) for name, router in routers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def evaluate_objective(
    model: Model,
    batch: PackedBatch,
    *,
    sparse: bool,
    weights: Weights,
    totals: Totals | None = None,
    recompute: bool = False,
    forced: Forced | None = None,
) -> Outcome:
    """One pass over ``batch``. Parts with weight 0 are not computed. ``totals``: of the step; None: the pass is all."""
    totals = totals or Totals.of(batch, index_ratios(model))
    layout = PackedRows(batch)
    contexts = [Packed(layout=layout, sparse=sparse, with_index=weights.index > 0) for _ in model.layers]
    ids, positions = batch.token_ids.flatten(), batch.positions.flatten()
    targets, target_weights = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 1)
    with routing_of(model, forced) as routing:
        streams = model(ids, positions, contexts, _recomputed if recompute else None)
        hidden = model.norm(model.hc_head(streams))
        mtp = streams.new_zeros((), dtype=torch.float32)
        if weights.mtp > 0 and model.mtp:
            mtp = _draft_loss(model, batch, streams, layout) / totals.predicted_second
    head = model.head.weight
    assert isinstance(head, Tensor)
    counted = batch.document_ids >= 0
    index, recall = streams.new_zeros((), dtype=torch.float32), {}
    for number, (layer, context) in enumerate(zip(model.config.layers, contexts, strict=True)):
        if context.index_report is not None and layer.ratio is not None:
            index = index + context.index_report.loss / totals.num_queries[layer.ratio]
            if context.index_report.recall is not None:
                recall[f"layers.{number}"] = float(context.index_report.recall) / totals.num_queries[layer.ratio]
    return Outcome(
        main=cross_entropy(hidden, head, targets, target_weights) / totals.predicted,
        mtp=mtp,
        balance=_balance(model, routing, counted) * (len(batch.token_ids) / totals.num_rows),
        index=index,
        load={name: _load(model, routing[name].chosen, counted) for name in _learned(model, routing)},
        recall=recall,
    )


def index_ratios(model: Model) -> list[int]:
    """Tokens per row of layers with an indexer."""
    return [layer.ratio for layer in model.config.layers if layer.ratio is not None and layer.index == "own"]


def _draft_loss(model: Model, batch: PackedBatch, streams: Tensor, layout: PackedRows) -> Tensor:
    next_ids, _ = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 1)
    targets, target_weights = next_tokens(batch.token_ids, batch.document_ids, batch.loss_weights, 2)
    block = model.mtp[0]
    assert isinstance(block, MtpBlock)
    embedded = model.embed(next_ids, model.dtype)
    context = Packed(layout=layout, sparse=False)
    hidden, _ = block.draft(streams, embedded, next_ids, batch.positions.flatten(), context)
    assert isinstance(model.head.weight, Tensor)
    return cross_entropy(hidden, model.head.weight, targets, target_weights)


def _learned(model: Model, routing: dict[str, Routing]) -> list[str]:
    return [name for name in routing if not model.get_submodule(name).by_hash]


def _balance(model: Model, routing: dict[str, Routing], counted: Tensor) -> Tensor:
    losses = [
        balance_loss(
            routing[name].scores.unflatten(0, counted.shape), routing[name].chosen.unflatten(0, counted.shape), counted
        )
        for name in _learned(model, routing)
    ]
    return torch.stack(losses).sum() if losses else counted.new_zeros((), dtype=torch.float32)


def _load(model: Model, chosen: Tensor, counted: Tensor) -> Tensor:
    return torch.bincount(chosen[counted.flatten()].flatten(), minlength=model.config.num_experts)


def _recomputed(layer: Callable[..., Tensor], *arguments: object) -> Tensor:
    streams: Tensor = checkpoint(layer, *arguments, use_reentrant=False)
    return streams
