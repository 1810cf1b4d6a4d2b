"""Implementations of the model's functions, and which one runs.

A model is built on one ``Ops``: ``reference`` defines the results and keeps a row's bits independent of its neighbours;
``autograd`` is for training: the same functions as large batched operations with fast gradients, equal to the reference
within rounding, without that guarantee.

On the CPU the native kernels can run a whole forward pass in their stead: ``choose_implementation`` says whether they
do.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from pelagos.common import env
from pelagos.common.errors import ResourceError, UsageError
from pelagos.formats import simulate
from pelagos.ops.contract import OPS, Op
from pelagos.ops.cpu.module import native, native_reason
from pelagos.ops.reference import indexer

Implementation = Literal["reference", "autograd"]
Wanted = Literal["auto", "native", "reference"]

log = logging.getLogger(__name__)


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
class Chosen:
    """What computes a model's forward passes. ``isa``: the instruction set of the native kernels, None without them.
    ``is_fallback``: the reference stands in for kernels that are missing."""

    implementation: Literal["native", "reference"]
    isa: str | None = None
    reason: str
    is_fallback: bool = False


def choose_implementation(device: torch.device, wanted: Wanted | None = None) -> Chosen:
    """What runs inference on ``device``: the native kernels on the CPU where they are installed, else the reference.

    ``wanted``: "native" or "reference" forces one, "auto" does not, None is what the environment says. A fallback is
    logged as a warning, once. Raises ResourceError where "native" is wanted and the kernels are missing, UsageError
    where it is wanted on another device.
    """
    chosen = _choose(device, wanted)
    if chosen.is_fallback:
        _warn(chosen.reason)
    return chosen


def _choose(device: torch.device, wanted: Wanted | None) -> Chosen:
    name = wanted or env.OPS.get()
    source = f"{env.OPS.name}={name}" if wanted is None else f"{name} was asked for"
    if name == "reference":
        return Chosen(implementation="reference", reason=source)
    if device.type != "cpu":
        if name == "native":
            raise UsageError(f"{source}, but the native kernels need the device cpu, got {device}")
        return Chosen(implementation="reference", reason=f"the native kernels are for the CPU, not for {device}")
    module, missing = native(), native_reason()
    if module is None or missing is not None:
        if name == "native":
            raise ResourceError(f"{source}, but {missing}")
        return Chosen(implementation="reference", reason=str(missing), is_fallback=True)
    isa, available = module.isa(), module.available_isas()
    why = f"the best that this build has and this processor runs, of {', '.join(available)}"
    return Chosen(implementation="native", isa=isa, reason=why if isa == available[0] else "forced by use_isa")


@cache
def _warn(reason: str) -> None:
    log.warning("Pelagos runs on PyTorch, exact but slow: %s", reason)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation chosen for one op."""

    op: str
    implementation: str
    reason: str


def choices() -> list[Choice]:
    """What inference on the CPU runs, one entry per op, for ``pelagos doctor``."""
    chosen = _choose(torch.device("cpu"), None)
    return [_choice(name, op, chosen) for name, op in OPS.items()]


def _choice(name: str, op: Op, chosen: Chosen) -> Choice:
    reference = op.reference.__module__
    if chosen.implementation == "reference":
        return Choice(op=name, implementation=reference, reason=chosen.reason)
    family = f"pelagos.ops.cpu.{reference.rpartition('.')[2]}"
    if find_spec(family) is None or not hasattr(import_module(family), name):
        return Choice(op=name, implementation=reference, reason="plain PyTorch: there is no native version of this op")
    return Choice(op=name, implementation=f"native {chosen.isa}", reason=chosen.reason)
