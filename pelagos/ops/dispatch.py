"""Implementations of the model's functions, and which one runs.

A model is built on one ``Ops``: ``reference`` defines the results and keeps a row's bits independent of its neighbours;
``autograd`` is for training: the same functions as large batched operations with fast gradients, equal to the reference
within rounding, without that guarantee.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

from torch import Tensor

from pelagos.formats import simulate
from pelagos.ops.contract import OPS
from pelagos.ops.reference import indexer

Implementation = Literal["reference", "autograd"]

_REASONS = {
    "reference": "plain PyTorch, exact, not tuned for speed: the only implementation for inference in this version",
    "autograd": "training: batched operations with gradients",
}


@dataclass(frozen=True, kw_only=True)
class Ops:
    """The functions that modules call. Signatures and meaning: the functions of the same name in ops/reference."""

    name: Implementation
    linear: Callable[..., Tensor]
    grouped_linear: Callable[..., Tensor]
    rms_norm: Callable[..., Tensor]
    head_norm: Callable[..., Tensor]
    rotate: Callable[..., Tensor]
    mhc_weights: Callable[..., tuple[Tensor, Tensor, Tensor]]
    mhc_head_weights: Callable[..., Tensor]
    mhc_collapse: Callable[..., Tensor]
    mhc_expand: Callable[..., Tensor]
    pool_window: Callable[..., Tensor]
    router_scores: Callable[..., Tensor]
    routing_weights: Callable[..., Tensor]
    clamped_swiglu: Callable[..., Tensor]
    round_activation: Callable[[Tensor], Tensor]
    round_row: Callable[[Tensor, int], Tensor]
    round_index: Callable[[Tensor], Tensor]


def _round_index(x: Tensor) -> Tensor:
    """Index rows and queries as the served model holds them: Hadamard-rotated, then FP4 in groups of 32."""
    return simulate.index_fp4(indexer.hadamard(x))


def reference_ops() -> Ops:
    """The definition of every function."""
    names = [field.name for field in fields(Ops)]
    return Ops(
        name="reference",
        round_activation=simulate.activation_fp8,
        round_row=simulate.row_fp8,
        round_index=_round_index,
        **{name: OPS[name].reference for name in names if name in OPS},
    )


def autograd_ops() -> Ops:
    """The functions for training."""
    from pelagos.ops.autograd import compressor, linear, mhc, moe, norm_rope
    from pelagos.ops.autograd.rounding import straight_through

    return replace(
        reference_ops(),
        name="autograd",
        linear=linear.linear,
        grouped_linear=linear.grouped_linear,
        rms_norm=norm_rope.rms_norm,
        head_norm=norm_rope.head_norm,
        rotate=norm_rope.rotate,
        mhc_weights=mhc.mhc_weights,
        mhc_head_weights=mhc.mhc_head_weights,
        mhc_collapse=mhc.mhc_collapse,
        mhc_expand=mhc.mhc_expand,
        pool_window=compressor.pool_window,
        router_scores=moe.router_scores,
        clamped_swiglu=moe.clamped_swiglu,
        round_activation=lambda x: straight_through(x, simulate.activation_fp8),
        round_row=lambda x, num_rope_dims: straight_through(x, lambda row: simulate.row_fp8(row, num_rope_dims)),
        round_index=lambda x: straight_through(x, _round_index),
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation chosen for one op."""

    op: str
    implementation: str
    reason: str


def choices() -> list[Choice]:
    """What inference runs, one entry per op, for ``pelagos doctor``."""
    reason = _REASONS["reference"]
    return [Choice(op=name, implementation=op.reference.__module__, reason=reason) for name, op in OPS.items()]
