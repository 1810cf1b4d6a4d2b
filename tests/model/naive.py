"""A second, naive implementation of the whole model, written from the architecture's description: dense masks, float64,
one sequence in one shot, official rounding by ml_dtypes. Nothing of it is shared with the project's ops or formats."""

import math
from collections.abc import Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from pelagos.model.config import LayerConfig, ModelConfig

Tensors = Mapping[str, Tensor]


def quantize(x: Tensor, group: int, dtype: type, largest: float, floor: float) -> Tensor:
    """Round groups of the last dim to ``dtype`` with a power-of-two scale, and back."""
    values = x.float().numpy().astype(np.float64)
    out = np.empty_like(values)
    for start in range(0, values.shape[-1], group):
        part = values[..., start : start + group]
        amax = np.maximum(np.abs(part).max(-1, keepdims=True), floor)
        scale = 2.0 ** np.ceil(np.log2(amax / largest))
        scaled = np.clip(part / scale, -largest, largest)
        out[..., start : start + group] = scaled.astype(np.float32).astype(dtype).astype(np.float64) * scale
    return torch.from_numpy(out)


class Naive:
    """Logits of a token sequence, [T, V] float64."""

    def __init__(self, config: ModelConfig, tensors: Tensors) -> None:
        self.config = config
        self.w = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}

    def logits(self, ids: list[int]) -> Tensor:
        return self._head(self.streams(ids), "")

    def streams(self, ids: list[int]) -> Tensor:
        tokens = torch.tensor(ids)
        x = self.w["embed.weight"][tokens].unsqueeze(1).repeat(1, self.config.num_streams, 1)
        for number, layer in enumerate(self.config.layers):
            x = self._block(x, tokens, layer, f"layers.{number}")
        return x

    def draft_logits(self, streams: Tensor, next_ids: list[int]) -> Tensor:
        """Multi-token prediction: streams [T, M, D] of positions 0.., and the token after each."""
        tokens, prefix = torch.tensor(next_ids), "mtp.0"
        e = self._norm(self.w["embed.weight"][tokens], f"{prefix}.enorm.weight")
        g = self._norm(streams, f"{prefix}.hnorm.weight")
        x = self._matmul(e, f"{prefix}.e_proj.weight").unsqueeze(1) + self._matmul(g, f"{prefix}.h_proj.weight")
        x = self._block(x, tokens, self.config.mtp_layers[0], prefix)
        return self._head(x, f"{prefix}.")

    def _head(self, x: Tensor, prefix: str) -> Tensor:
        v = x.flatten(1)
        z = v @ self.w[f"{prefix}hc_head_fn"].T / (v.square().mean(1, keepdim=True) + self.config.norm_eps).sqrt()
        pre = torch.sigmoid(z * self.w[f"{prefix}hc_head_scale"] + self.w[f"{prefix}hc_head_base"]) + self.config.hc_eps
        h = torch.einsum("tm,tmd->td", pre, x)
        return self._norm(h, f"{prefix}norm.weight") @ self.w["head.weight"].T

    def _block(self, x: Tensor, tokens: Tensor, layer: LayerConfig, prefix: str) -> Tensor:
        for part in ("attn", "ffn"):
            pre, post, mix = self._mixer(x, f"{prefix}.hc_{part}")
            u = self._norm(torch.einsum("tm,tmd->td", pre, x), f"{prefix}.{part}_norm.weight")
            y = self._attention(u, layer, f"{prefix}.attn") if part == "attn" else self._moe(u, tokens, layer, prefix)
            x = torch.einsum("tk,td->tkd", post, y) + torch.einsum("tjk,tjd->tkd", mix, x)
        return x

    def _mixer(self, x: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        num, eps = self.config.num_streams, self.config.hc_eps
        v, base, scale = x.flatten(1), self.w[f"{name}_base"], self.w[f"{name}_scale"]
        z = v @ self.w[f"{name}_fn"].T / (v.square().mean(1, keepdim=True) + self.config.norm_eps).sqrt()
        pre = torch.sigmoid(z[:, :num] * scale[0] + base[:num]) + eps
        post = 2 * torch.sigmoid(z[:, num : 2 * num] * scale[1] + base[num : 2 * num])
        a = torch.softmax((z[:, 2 * num :] * scale[2] + base[2 * num :]).view(-1, num, num), 2) + eps
        a = a / (a.sum(1, keepdim=True) + eps)
        for _ in range(self.config.sinkhorn_iterations - 1):
            a = a / (a.sum(2, keepdim=True) + eps)
            a = a / (a.sum(1, keepdim=True) + eps)
        return pre, post, a

    def _norm(self, x: Tensor, name: str | None) -> Tensor:
        y = x / (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()
        return y if name is None else y * self.w[name]

    def _matmul(self, x: Tensor, name: str) -> Tensor:
        """Product with a low-precision matrix, whose input the served model rounds."""
        if self.config.official_rounding:
            x = quantize(x, 128, ml_dtypes.float8_e4m3fn, 448.0, 1e-4)
        return x @ self.w[name].T

    def _rotate(self, x: Tensor, positions: Tensor, layer: LayerConfig, *, back: bool = False) -> Tensor:
        rope, num = self.config.rope_of(layer), self.config.rope_dim
        f = rope.theta ** (-torch.arange(0, num, 2, dtype=torch.float64) / num)
        if rope.yarn is not None:
            yarn = rope.yarn
            d = [num * math.log(yarn.original_positions / (2 * math.pi * n)) / (2 * math.log(rope.theta))
                 for n in (yarn.beta_fast, yarn.beta_slow)]  # fmt: skip
            low, high = max(math.floor(d[0]), 0), min(math.ceil(d[1]), num - 1)
            g = ((torch.arange(num // 2) - low) / ((high - low) or 0.001)).clamp(0, 1)
            f = f / yarn.factor * g + f * (1 - g)
        angle = positions.double()[:, None] * f
        turn = torch.polar(torch.ones_like(angle), -angle if back else angle)
        turn = turn.view(len(x), *([1] * (x.dim() - 2)), num // 2)
        turned = torch.view_as_complex(x[..., -num:].unflatten(-1, (num // 2, 2)).contiguous()) * turn
        return torch.cat([x[..., :-num], torch.view_as_real(turned).flatten(-2)], -1)

    def _compress(self, x: Tensor, layer: LayerConfig, size: int, prefix: str) -> Tensor:
        m = layer.ratio or 1
        num = len(x) // m
        k = (x @ self.w[f"{prefix}.wkv.weight"].T)[: num * m].unflatten(0, (num, m))
        g = (x @ self.w[f"{prefix}.wgate.weight"].T)[: num * m].unflatten(0, (num, m)) + self.w[f"{prefix}.ape"]
        rows = []
        for i in range(num):
            ks, gs = k[i], g[i]
            if layer.overlap:
                ks, gs = k[i, :, size:], g[i, :, size:]
                if i:
                    ks, gs = torch.cat([k[i - 1, :, :size], ks]), torch.cat([g[i - 1, :, :size], gs])
            rows.append((torch.softmax(gs, 0) * ks).sum(0))
        pooled = torch.stack(rows) if rows else x.new_zeros(0, size)
        return self._rotate(self._norm(pooled, f"{prefix}.norm.weight"), torch.arange(num) * m, layer)

    def _round_rows(self, rows: Tensor) -> Tensor:
        if not self.config.official_rounding or not len(rows):
            return rows
        split = self.config.head_dim - self.config.rope_dim
        still = quantize(rows[:, :split], 64, ml_dtypes.float8_e4m3fn, 448.0, 1e-4)
        return torch.cat([still, rows[:, split:].bfloat16().double()], 1)

    def _round_index(self, x: Tensor) -> Tensor:
        if not self.config.official_rounding or not len(x):
            return x
        size = x.shape[-1]
        h = torch.tensor([[(-1.0) ** bin(i & j).count("1") for j in range(size)] for i in range(size)]).double()
        return quantize(x @ h / math.sqrt(size), 32, ml_dtypes.float4_e2m1fn, 6.0, 6 * 2.0**-126)

    def _seen_rows(self, x: Tensor, c: Tensor, layer: LayerConfig, prefix: str) -> Tensor:
        """[T, N] bool: which compressed rows a query sees."""
        m = layer.ratio or 1
        positions, num = torch.arange(len(x)), len(x) // m
        visible = torch.arange(num) < ((positions + 1) // m)[:, None]
        if layer.index == "none":
            return visible
        heads, size = self.config.num_index_heads, self.config.index_head_dim
        q = self._matmul(c, f"{prefix}.indexer.wq_b.weight").view(len(x), heads, size)
        q = self._round_index(self._rotate(q, positions, layer))
        w = x @ self.w[f"{prefix}.indexer.weights_proj.weight"].T / math.sqrt(size * heads)
        rows = self._round_index(self._compress(x, layer, size, f"{prefix}.indexer.compressor"))
        scores = torch.einsum("th,ths->ts", w, torch.relu(torch.einsum("thc,sc->ths", q, rows)))
        order = scores.masked_fill(~visible, -torch.inf).sort(dim=1, descending=True, stable=True).indices
        kept = torch.zeros_like(visible).scatter(1, order[:, : self.config.index_topk], True)
        return kept & visible

    def _attention(self, x: Tensor, layer: LayerConfig, prefix: str) -> Tensor:
        config, w, positions = self.config, self.w, torch.arange(len(x))
        c = self._norm(self._matmul(x, f"{prefix}.wq_a.weight"), f"{prefix}.q_norm.weight")
        q = self._matmul(c, f"{prefix}.wq_b.weight").view(len(x), config.num_heads, config.head_dim)
        q = self._rotate(self._norm(q, None), positions, layer)
        r = self._norm(self._matmul(x, f"{prefix}.wkv.weight"), f"{prefix}.kv_norm.weight")
        keys = self._round_rows(self._rotate(r, positions, layer))
        age = positions[:, None] - positions
        seen = (age >= 0) & (age < layer.window)
        if layer.ratio is not None:
            rows = self._round_rows(self._compress(x, layer, config.head_dim, f"{prefix}.compressor"))
            keys, seen = torch.cat([keys, rows]), torch.cat([seen, self._seen_rows(x, c, layer, prefix)], 1)
        logits = torch.einsum("thc,sc->ths", q, keys) / math.sqrt(config.head_dim)
        logits = logits.masked_fill(~seen[:, None], -torch.inf)
        sink = w[f"{prefix}.attn_sink"].view(1, -1, 1).expand(len(x), -1, 1)
        p = torch.softmax(torch.cat([logits, sink], 2), 2)[..., :-1]
        o = self._rotate(torch.einsum("ths,sc->thc", p, keys), positions, layer, back=True)
        groups = o.reshape(len(x), config.num_output_groups, -1)
        wo_a = w[f"{prefix}.wo_a.weight"].view(config.num_output_groups, config.output_rank, -1)
        return self._matmul(torch.einsum("tgi,goi->tgo", groups, wo_a).flatten(1), f"{prefix}.wo_b.weight")

    def _moe(self, x: Tensor, tokens: Tensor, layer: LayerConfig, block: str) -> Tensor:
        config, prefix = self.config, f"{block}.ffn"
        s = torch.log1p(torch.exp(x @ self.w[f"{prefix}.gate.weight"].T)).sqrt()
        if layer.router == "hash":
            chosen = self.w[f"{prefix}.gate.tid2eid"][tokens]
        else:
            biased = s + self.w[f"{prefix}.gate.bias"]
            chosen = biased.sort(dim=1, descending=True, stable=True).indices[:, : config.num_experts_per_token]
        weights = s.gather(1, chosen)
        weights = weights / weights.sum(1, keepdim=True) * config.routed_scaling_factor
        out = self._expert(x, f"{prefix}.shared_experts", torch.ones(len(x), 1))
        for t in range(len(x)):
            for e, weight in zip(chosen[t].tolist(), weights[t], strict=True):
                out[t] += self._expert(x[t : t + 1], f"{prefix}.experts.{e}", weight.view(1, 1))[0]
        return out

    def _expert(self, x: Tensor, prefix: str, weight: Tensor) -> Tensor:
        limit = self.config.swiglu_limit or math.inf
        gate = self._matmul(x, f"{prefix}.w1.weight").clamp(max=limit)
        up = self._matmul(x, f"{prefix}.w3.weight").clamp(-limit, limit)
        return self._matmul(gate * torch.sigmoid(gate) * up * weight, f"{prefix}.w2.weight")
