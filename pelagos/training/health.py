"""How the inside of a model is doing on some text: the residual streams, and the SwiGLU limits.

The pass is made on observing ops: the functions of the model with a look at what goes through them.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.metrics import stream_gain
from pelagos.training.packed import Packed, PackedRows
from pelagos.training.views import with_config

_NEAR_LIMIT = 1.9  # write weights lie below 2


@dataclass(frozen=True, kw_only=True)
class Health:
    """stream_gain: see metrics.stream_gain, the largest of a token. post_share: write weights above 1.9. clamped: share
    of SwiGLU inputs at a limit, "gate_high", "up_high", "up_low"; empty without limits."""

    stream_gain: float
    post_share: float
    clamped: dict[str, float]


@torch.no_grad()
def examine(model: Model, batch: PackedBatch, *, sparse: bool) -> Health:
    """One pass over ``batch``."""
    mixes: list[Tensor] = []
    posts: list[Tensor] = []
    counts, total = torch.zeros(3, dtype=torch.float64), 0

    def mhc_weights(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        pre, post, mix = model.ops.mhc_weights(*arguments, **options)
        posts.append((post > _NEAR_LIMIT).float().mean())
        mixes.append(mix)
        return pre, post, mix

    def clamped_swiglu(gate: Tensor, up: Tensor, limit: float | None) -> Tensor:
        nonlocal total
        if limit is not None:
            total += gate.numel()
            counts.add_(torch.stack([(gate > limit).sum(), (up > limit).sum(), (up < -limit).sum()]))
        return model.ops.clamped_swiglu(gate, up, limit)

    observing = replace(model.ops, mhc_weights=mhc_weights, clamped_swiglu=clamped_swiglu)
    view = with_config(model, model.config, observing)
    layout = PackedRows(batch)
    contexts = [Packed(layout=layout, sparse=sparse, with_index=False) for _ in view.layers]
    view(batch.token_ids.flatten(), batch.positions.flatten(), contexts)
    shares = (counts / total).tolist() if total else []
    return Health(
        stream_gain=stream_gain(torch.stack(mixes)),
        post_share=float(torch.stack(posts).mean()),
        clamped=dict(zip(("gate_high", "up_high", "up_low"), shares, strict=False)),
    )
