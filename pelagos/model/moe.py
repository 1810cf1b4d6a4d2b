"""Mixture of experts: a router (learned, or a table over token ids), routed experts and one shared expert.

Shapes: T tokens, D width, E experts, K chosen experts, F inner width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.layers import Linear, StoredWeights
from pelagos.ops.dispatch import Ops
from pelagos.ops.reference.elementwise import ordered_sum
from pelagos.ops.reference.linear import Matrix
from pelagos.ops.reference.moe import top_experts


class Routing(NamedTuple):
    """What a router decides. chosen: [T, K] int64 expert ids; weights: [T, K] float32; scores: [T, E] float32."""

    chosen: Tensor
    weights: Tensor
    scores: Tensor


class Router(nn.Module):
    """``bias`` only selects; it is not in the weights. Hash routers have ``tid2eid`` instead: [V, K] expert ids."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.num_chosen, self.factor = config.num_experts_per_token, config.routed_scaling_factor
        self.by_hash = layer.router == "hash"
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if self.by_hash:
            self.tid2eid: Tensor
            self.register_buffer("tid2eid", torch.empty(config.vocab_size, self.num_chosen, dtype=torch.int64))
        else:
            self.bias = nn.Parameter(torch.empty(config.num_experts), requires_grad=False)

    def forward(self, x: Tensor, token_ids: Tensor) -> Routing:
        """x: [T, D]; token_ids: [T]."""
        scores = self.ops.router_scores(self.ops.linear(x, self.weight, out_dtype=torch.float32))
        if self.by_hash:
            chosen = self.tid2eid[token_ids].long()
        else:
            chosen = top_experts(scores.detach(), self.bias, self.num_chosen)
        return Routing(chosen, self.ops.routing_weights(scores, chosen, self.factor), scores)


class Experts(StoredWeights):
    """The routed experts. w1 (gate) and w3 (up): [E, F, D], w2 (down): [E, D, F]; from a checkpoint that stores each
    expert apart, tuples of E matrices in their stored format. Both are indexed by expert."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        num, inner, width = config.num_experts, config.expert_dim, config.hidden_size
        self.ops, self.limit, self.rounds_input = ops, config.swiglu_limit, config.official_rounding
        self.w1: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, inner, width))
        self.w2: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, width, inner))
        self.w3: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, inner, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weight_k · expert_k(x), [T, D] float32. chosen, weights: [T, K]. One pass per expert that has tokens."""
        num_tokens, num_chosen = chosen.shape
        order = torch.sort(chosen.flatten(), stable=True)
        experts, counts = torch.unique_consecutive(order.values, return_counts=True)
        x = self.ops.round_activation(x) if self.rounds_input else x
        inputs = torch.split(x[order.indices // num_chosen], counts.tolist())
        shares = torch.split(weights.flatten()[order.indices], counts.tolist())
        parts = [self._expert(e, *part) for e, *part in zip(experts.tolist(), inputs, shares, strict=True)]
        back = torch.empty_like(order.indices).scatter_(0, order.indices, torch.arange(len(order.indices)).to(x.device))
        out = torch.cat(parts)[back] if parts else x.new_zeros(0, x.shape[1], dtype=torch.float32)
        return ordered_sum(out.view(num_tokens, num_chosen, x.shape[1]), 1)

    def _expert(self, expert: int, x: Tensor, weight: Tensor) -> Tensor:
        gate, up = (self.ops.linear(x, w[expert], out_dtype=torch.float32) for w in (self.w1, self.w3))
        h = (self.ops.clamped_swiglu(gate, up, self.limit) * weight.unsqueeze(-1)).to(x.dtype)
        h = self.ops.round_activation(h) if self.rounds_input else h
        return self.ops.linear(h, self.w2[expert], out_dtype=torch.float32)


class SharedExpert(nn.Module):
    """The expert that every token uses, with weight 1."""

    def __init__(self, config: ModelConfig, ops: Ops) -> None:
        super().__init__()
        rounds = config.official_rounding
        self.ops, self.limit = ops, config.swiglu_limit
        self.w1 = Linear(config.hidden_size, config.expert_dim, ops, rounds_input=rounds)
        self.w2 = Linear(config.expert_dim, config.hidden_size, ops, rounds_input=rounds)
        self.w3 = Linear(config.hidden_size, config.expert_dim, ops, rounds_input=rounds)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D] float32."""
        gate, up = (w(x, out_dtype=torch.float32) for w in (self.w1, self.w3))
        y: Tensor = self.w2(self.ops.clamped_swiglu(gate, up, self.limit).to(x.dtype), out_dtype=torch.float32)
        return y


class MoE(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig, ops: Ops) -> None:
        super().__init__()
        self.gate = Router(config, layer, ops)
        self.experts = Experts(config, ops)
        self.shared_experts = SharedExpert(config, ops)

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]. token_ids: [T], used by hash routers."""
        routing: Routing = self.gate(x, token_ids)
        y: Tensor = self.experts(x, routing.chosen, routing.weights) + self.shared_experts(x)
        return y.to(x.dtype)
