"""Native routing and clamped SwiGLU. Meaning, shapes and dtypes: pelagos/ops/reference/moe.py.

A row's bits depend on the row alone. Raises UsageError.
"""

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels, numbers


def router_scores(logits: Tensor) -> Tensor:
    logits = numbers("logits", logits, None, None)
    scores = torch.empty_like(logits)
    kernels().router_scores(logits.data_ptr(), *logits.shape, scores.data_ptr())
    return scores


def top_experts(scores: Tensor, bias: Tensor, k: int) -> Tensor:
    scores = numbers("scores", scores, None, None)
    rows, num = scores.shape
    if not 0 <= k <= num:
        raise UsageError(f"k must be from 0 to {num}, the number of experts, not {k}")
    bias, chosen = numbers("bias", bias, num), torch.empty(rows, k, dtype=torch.int32)
    kernels().top_experts(scores.data_ptr(), bias.data_ptr(), rows, num, k, chosen.data_ptr())
    return chosen.long()


def routing_weights(scores: Tensor, chosen: Tensor, factor: float) -> Tensor:
    scores = numbers("scores", scores, None, None)
    rows, num = scores.shape
    if chosen.dim() != 2 or len(chosen) != rows or bool(((chosen < 0) | (chosen >= num)).any()):
        raise UsageError(f"chosen must be [{rows}, K] expert ids from 0 to {num - 1}, not {list(chosen.shape)}")
    ids, weights = chosen.int().contiguous(), torch.empty(chosen.shape)
    kernels().routing_weights(scores.data_ptr(), ids.data_ptr(), rows, num, ids.shape[1], factor, weights.data_ptr())
    return weights


def clamped_swiglu(
    gate: Tensor, up: Tensor, limit: float | None, weights: Tensor | None = None, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Times ``weights`` [T] where given, as an expert's share in a token; in ``dtype``, float32 or bfloat16."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise UsageError(f"dtype must be float32 or bfloat16, not {dtype}")
    gate = numbers("gate", gate, None, None)
    rows, size = gate.shape
    up = numbers("up", up, rows, size)
    weights = torch.ones(rows) if weights is None else numbers("weights", weights, rows)
    h, rounds = torch.empty_like(gate), dtype == torch.bfloat16
    inputs = (gate.data_ptr(), up.data_ptr(), weights.data_ptr())
    kernels().clamped_swiglu(*inputs, rows, size, limit is not None, limit or 0.0, h.data_ptr(), rounds)
    return h.to(dtype)
