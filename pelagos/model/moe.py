"""Mixture of experts: a router (learned, or a table over token ids), routed experts and one shared expert.

Shapes: T tokens, D width, E experts, K chosen experts, F inner width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pelagos.model.config import LayerConfig, ModelConfig
from pelagos.model.layers import Linear, StoredWeights, rounded_input
from pelagos.ops.reference.elementwise import ordered_sum
from pelagos.ops.reference.linear import Matrix, linear
from pelagos.ops.reference.moe import clamped_swiglu, router_scores, routing_weights, top_experts


class Router(nn.Module):
    """``bias`` only selects; it is not in the weights. Hash routers have ``tid2eid`` instead: [V, K] expert ids."""

    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.num_chosen, self.factor = config.num_experts_per_token, config.routed_scaling_factor
        self.by_hash = layer.router == "hash"
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        if self.by_hash:
            self.tid2eid: Tensor
            self.register_buffer("tid2eid", torch.empty(config.vocab_size, self.num_chosen, dtype=torch.int64))
        else:
            self.bias = nn.Parameter(torch.empty(config.num_experts), requires_grad=False)

    def forward(self, x: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, D] -> chosen experts [T, K] int64 and their weights [T, K] float32."""
        scores = router_scores(linear(x, self.weight, out_dtype=torch.float32))
        chosen = self.tid2eid[token_ids].long() if self.by_hash else top_experts(scores, self.bias, self.num_chosen)
        return chosen, routing_weights(scores, chosen, self.factor)


class Experts(StoredWeights):
    """The routed experts. w1 (gate) and w3 (up): [E, F, D], w2 (down): [E, D, F]; from a checkpoint that stores each
    expert apart, tuples of E matrices in their stored format. Both are indexed by expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        num, inner, width = config.num_experts, config.expert_dim, config.hidden_size
        self.limit, self.rounds_input = config.swiglu_limit, config.official_rounding
        self.w1: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, inner, width))
        self.w2: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, width, inner))
        self.w3: Sequence[Matrix] | Tensor = nn.Parameter(torch.empty(num, inner, width))

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weight_k · expert_k(x), [T, D] float32. chosen, weights: [T, K]."""
        num_tokens, num_chosen = chosen.shape
        out = x.new_zeros(num_tokens * num_chosen, x.shape[1], dtype=torch.float32)
        order = torch.sort(chosen.flatten(), stable=True)
        experts, counts = torch.unique_consecutive(order.values, return_counts=True)
        for expert, places in zip(experts.tolist(), torch.split(order.indices, counts.tolist()), strict=True):
            out[places] = self._expert(expert, x[places // num_chosen], weights.flatten()[places])
        return ordered_sum(out.view(num_tokens, num_chosen, -1), 1)

    def _expert(self, expert: int, x: Tensor, weight: Tensor) -> Tensor:
        h = self._inner(x, self.w1[expert], self.w3[expert]) * weight.unsqueeze(-1)
        h = h.to(x.dtype)
        return linear(rounded_input(h) if self.rounds_input else h, self.w2[expert], out_dtype=torch.float32)

    def _inner(self, x: Tensor, w1: Matrix, w3: Matrix) -> Tensor:
        x = rounded_input(x) if self.rounds_input else x
        gate, up = (linear(x, w, out_dtype=torch.float32) for w in (w1, w3))
        return clamped_swiglu(gate, up, self.limit)


class SharedExpert(nn.Module):
    """The expert that every token uses, with weight 1."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        rounds = config.official_rounding
        self.limit = config.swiglu_limit
        self.w1 = Linear(config.hidden_size, config.expert_dim, rounds_input=rounds)
        self.w2 = Linear(config.expert_dim, config.hidden_size, rounds_input=rounds)
        self.w3 = Linear(config.hidden_size, config.expert_dim, rounds_input=rounds)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D] float32."""
        gate, up = (w(x, out_dtype=torch.float32) for w in (self.w1, self.w3))
        y: Tensor = self.w2(clamped_swiglu(gate, up, self.limit).to(x.dtype), out_dtype=torch.float32)
        return y


class MoE(nn.Module):
    def __init__(self, config: ModelConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.gate = Router(config, layer)
        self.experts = Experts(config)
        self.shared_experts = SharedExpert(config)

    def forward(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """x: [T, D] -> [T, D]. token_ids: [T], used by hash routers."""
        chosen, weights = self.gate(x, token_ids)
        y: Tensor = self.experts(x, chosen, weights) + self.shared_experts(x)
        return y.to(x.dtype)
