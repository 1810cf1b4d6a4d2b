"""Every op of the model: its definition, how far a faster implementation may be off, and cases to check it with.

A case is a dict of keyword arguments. ``per_row`` names the arguments whose first dimension is that of the result: a
row of the result may depend on the same row of those, on the whole of the others, and on nothing else. That is
checked for the reference by ``tests/ops/test_contract.py``, and is to be checked for every other implementation.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pelagos.formats.matrix import QuantizedMatrix, quantize_fp4, quantize_fp8
from pelagos.ops.reference import attention, compressor, indexer, linear, mhc, moe, norm_rope, sampling

Case = dict[str, Any]
Generator = torch.Generator

_ROW_COUNTS = (0, 1, 3, 16, 17, 70)


@dataclass(frozen=True, kw_only=True)
class Op:
    """One op. ``tolerance``: largest error against the reference, relative to the largest value of the result."""

    reference: Callable[..., Any]
    tolerance: float
    per_row: tuple[str, ...]
    cases: Callable[[Generator], Iterator[Case]]


def _noise(g: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=g)


def _linear_cases(g: Generator) -> Iterator[Case]:
    weights: list[Tensor | QuantizedMatrix] = [_noise(g, n, i) for n, i in ((1, 1), (3, 5), (16, 33), (97, 64))]
    weights += [_noise(g, 40, 48).bfloat16(), quantize_fp8(_noise(g, 130, 200)), quantize_fp4(_noise(g, 24, 96))]
    for weight in weights:
        for rows in _ROW_COUNTS:
            x = _noise(g, rows, weight.shape[1])
            yield {"x": x, "weight": weight}
            yield {"x": x.bfloat16(), "weight": weight, "out_dtype": torch.float32}


def _grouped_linear_cases(g: Generator) -> Iterator[Case]:
    for groups, size_in, size_out in ((1, 5, 3), (3, 64, 12), (8, 33, 16)):
        for rows in _ROW_COUNTS:
            yield {
                "x": _noise(g, rows, groups, size_in),
                "weight": _noise(g, groups * size_out, size_in),
                "num_groups": groups,
            }


def _rms_norm_cases(g: Generator) -> Iterator[Case]:
    for size in (1, 7, 64, 1000):
        for rows in _ROW_COUNTS:
            yield {"x": 1e-3 * _noise(g, rows, size), "weight": _noise(g, size), "eps": 1e-6}
            yield {"x": 1e3 * _noise(g, rows, size).bfloat16(), "weight": _noise(g, size), "eps": 1e-6}


def _head_norm_cases(g: Generator) -> Iterator[Case]:
    for heads, size in ((1, 8), (3, 33), (4, 128)):
        for rows in _ROW_COUNTS:
            yield {"x": _noise(g, rows, heads, size), "eps": 1e-6}


def _rotate_cases(g: Generator) -> Iterator[Case]:
    for heads, size, num_rotated in ((1, 2, 2), (3, 33, 8), (4, 64, 64)):
        for rows in _ROW_COUNTS:
            positions = torch.randint(0, 1 << 20, (rows,), generator=g)
            cos, sin = norm_rope.rotation(positions, torch.rand(num_rotated // 2, generator=g))
            yield {"x": _noise(g, rows, heads, size), "cos": cos, "sin": sin, "inverse": bool(rows % 2)}


def _rotation_cases(g: Generator) -> Iterator[Case]:
    for rows in _ROW_COUNTS:
        yield {
            "positions": torch.randint(0, 1 << 20, (rows,), generator=g),
            "frequencies": torch.rand(16, generator=g),
        }


def _mhc_cases(g: Generator) -> Iterator[Case]:
    for num, size in ((1, 8), (2, 5), (4, 64)):
        for rows in _ROW_COUNTS:
            wide = (2 + num) * num
            yield {
                "streams": 3.0 * _noise(g, rows, num, size),
                "fn": _noise(g, wide, num * size),
                "base": _noise(g, wide),
                "scale": _noise(g, 3),
                "norm_eps": 1e-6,
                "hc_eps": 1e-6,
                "iterations": 20,
            }


def _mhc_head_cases(g: Generator) -> Iterator[Case]:
    for case in _mhc_cases(g):
        num = case["streams"].shape[1]
        changes = {"fn": case["fn"][:num], "base": case["base"][:num], "scale": case["scale"][:1]}
        yield {**{k: v for k, v in case.items() if k != "iterations"}, **changes}


def _collapse_cases(g: Generator) -> Iterator[Case]:
    for case in _mhc_cases(g):
        streams = case["streams"]
        yield {"streams": streams, "pre": torch.rand(streams.shape[:2], generator=g)}


def _expand_cases(g: Generator) -> Iterator[Case]:
    for case in _mhc_cases(g):
        _, post, mix = mhc.mhc_weights(**case)
        streams = case["streams"]
        yield {"streams": streams, "y": _noise(g, len(streams), streams.shape[2]), "post": post, "mix": mix}


def _pool_cases(g: Generator) -> Iterator[Case]:
    for slots, size in ((2, 3), (8, 64), (128, 40)):
        for rows in _ROW_COUNTS:
            gates = 4.0 * _noise(g, rows, slots, size)
            gates[::2, : slots // 2] = -torch.inf
            yield {"values": _noise(g, rows, slots, size), "gates": gates}


def _index_score_cases(g: Generator) -> Iterator[Case]:
    for heads, size, num_rows in ((1, 4, 1), (3, 16, 65), (24, 33, 300)):
        for rows in _ROW_COUNTS:
            yield {
                "q": _noise(g, rows, heads, size),
                "head_weights": _noise(g, rows, heads),
                "rows": _noise(g, num_rows, size),
            }


def _top_row_cases(g: Generator) -> Iterator[Case]:
    for num_rows, k in ((1, 1), (40, 5), (300, 64), (7, 20)):
        for rows in _ROW_COUNTS:
            scores = torch.randint(-2, 3, (rows, num_rows), generator=g).float()  # many ties
            yield {"scores": scores, "num_visible": torch.randint(0, num_rows + 1, (rows,), generator=g), "k": k}


def _choose_row_cases(g: Generator) -> Iterator[Case]:
    for case in _index_score_cases(g):
        num_rows = case["rows"].shape[0]
        yield {**case, "num_visible": torch.randint(0, num_rows + 1, (len(case["q"]),), generator=g), "k": 9}


def _hadamard_cases(g: Generator) -> Iterator[Case]:
    for size in (1, 2, 16, 128):
        for rows in _ROW_COUNTS:
            yield {"x": _noise(g, rows, 3, size)}


def _attend_cases(g: Generator) -> Iterator[Case]:
    for heads, size, window, num_rows in ((1, 8, 1, 0), (4, 32, 16, 70), (3, 40, 128, 200)):
        for queries in _ROW_COUNTS:
            start = 300
            first = start - window + 1
            case: Case = {
                "q": 3.0 * _noise(g, queries, heads, size),
                "positions": torch.arange(start, start + queries),
                "window": attention.WindowRows(rows=_noise(g, window - 1 + queries, size), start=first, size=window),
                "sink": _noise(g, heads),
            }
            yield case
            rows = _noise(g, num_rows, size)
            visible = torch.randint(0, num_rows + 1, (queries,), generator=g)
            yield {**case, "rows": rows, "num_visible": visible}
            chosen = indexer.top_rows(_noise(g, queries, num_rows), visible, 9)
            yield {**case, "rows": rows, "chosen": chosen}


def _router_cases(g: Generator) -> Iterator[Case]:
    for rows in _ROW_COUNTS:
        yield {"logits": 20.0 * _noise(g, rows, 33)}


def _top_expert_cases(g: Generator) -> Iterator[Case]:
    for rows in _ROW_COUNTS:
        scores = torch.randint(0, 4, (rows, 33), generator=g).float()
        yield {"scores": scores, "bias": torch.randint(-1, 2, (33,), generator=g).float(), "k": 6}


def _routing_cases(g: Generator) -> Iterator[Case]:
    for case in _top_expert_cases(g):
        yield {"scores": case["scores"], "chosen": moe.top_experts(**case), "factor": 1.5}


def _swiglu_cases(g: Generator) -> Iterator[Case]:
    for limit in (None, 0.05, 10.0):
        for rows in _ROW_COUNTS:
            yield {"gate": 9.0 * _noise(g, rows, 20), "up": 9.0 * _noise(g, rows, 20), "limit": limit}


def _logit_cases(g: Generator, **arguments: Any) -> Iterator[Case]:
    for size in (1, 3, 500):
        for rows in _ROW_COUNTS:
            yield {"logits": torch.randint(-20, 20, (rows, size), generator=g) / 4, **arguments}  # with ties


def _penalty_cases(g: Generator) -> Iterator[Case]:
    for case in _logit_cases(g):
        yield {**case, "seen": case["logits"] > _noise(g, *case["logits"].shape), "penalty": 1.3}


def _count_cases(g: Generator) -> Iterator[Case]:
    for case in _logit_cases(g):
        counts = torch.randint(0, 3, case["logits"].shape, generator=g)
        yield {**case, "counts": counts, "presence": 0.5, "frequency": -0.25}


def _choice_cases(g: Generator) -> Iterator[Case]:
    for case in _logit_cases(g):
        uniform = torch.rand(len(case["logits"]), generator=g, dtype=torch.float64)
        yield {"probabilities": sampling.probabilities(case["logits"]), "uniform": uniform}


def _sampling_op(reference: Callable[..., Any], tolerance: float, **arguments: Any) -> Op:
    return Op(
        reference=reference,
        tolerance=tolerance,
        per_row=("logits",),
        cases=lambda g: _logit_cases(g, **arguments),
    )


OPS: dict[str, Op] = {
    "linear": Op(reference=linear.linear, tolerance=1e-5, per_row=("x",), cases=_linear_cases),
    "grouped_linear": Op(reference=linear.grouped_linear, tolerance=1e-5, per_row=("x",), cases=_grouped_linear_cases),
    "rms_norm": Op(reference=norm_rope.rms_norm, tolerance=1e-5, per_row=("x",), cases=_rms_norm_cases),
    "head_norm": Op(reference=norm_rope.head_norm, tolerance=1e-5, per_row=("x",), cases=_head_norm_cases),
    "rotation": Op(reference=norm_rope.rotation, tolerance=1e-6, per_row=("positions",), cases=_rotation_cases),
    "rotate": Op(reference=norm_rope.rotate, tolerance=1e-6, per_row=("x", "cos", "sin"), cases=_rotate_cases),
    "mhc_weights": Op(reference=mhc.mhc_weights, tolerance=1e-5, per_row=("streams",), cases=_mhc_cases),
    "mhc_head_weights": Op(reference=mhc.mhc_head_weights, tolerance=1e-5, per_row=("streams",), cases=_mhc_head_cases),
    "mhc_collapse": Op(reference=mhc.mhc_collapse, tolerance=1e-5, per_row=("streams", "pre"), cases=_collapse_cases),
    "mhc_expand": Op(
        reference=mhc.mhc_expand, tolerance=1e-5, per_row=("streams", "y", "post", "mix"), cases=_expand_cases
    ),
    "pool_window": Op(reference=compressor.pool_window, tolerance=1e-5, per_row=("values", "gates"), cases=_pool_cases),
    "index_scores": Op(
        reference=indexer.index_scores, tolerance=1e-5, per_row=("q", "head_weights"), cases=_index_score_cases
    ),
    "top_rows": Op(reference=indexer.top_rows, tolerance=0.0, per_row=("scores", "num_visible"), cases=_top_row_cases),
    "choose_rows": Op(
        reference=indexer.choose_rows,
        tolerance=0.0,
        per_row=("q", "head_weights", "num_visible"),
        cases=_choose_row_cases,
    ),
    "hadamard": Op(reference=indexer.hadamard, tolerance=1e-6, per_row=("x",), cases=_hadamard_cases),
    "attend": Op(
        reference=attention.attend,
        tolerance=1e-5,
        per_row=("q", "positions", "num_visible", "chosen"),
        cases=_attend_cases,
    ),
    "router_scores": Op(reference=moe.router_scores, tolerance=1e-5, per_row=("logits",), cases=_router_cases),
    "top_experts": Op(reference=moe.top_experts, tolerance=0.0, per_row=("scores",), cases=_top_expert_cases),
    "routing_weights": Op(
        reference=moe.routing_weights, tolerance=1e-5, per_row=("scores", "chosen"), cases=_routing_cases
    ),
    "clamped_swiglu": Op(reference=moe.clamped_swiglu, tolerance=1e-5, per_row=("gate", "up"), cases=_swiglu_cases),
    "penalize_repetition": Op(
        reference=sampling.penalize_repetition, tolerance=1e-6, per_row=("logits", "seen"), cases=_penalty_cases
    ),
    "penalize_counts": Op(
        reference=sampling.penalize_counts, tolerance=1e-6, per_row=("logits", "counts"), cases=_count_cases
    ),
    "apply_temperature": _sampling_op(sampling.apply_temperature, 1e-6, temperature=0.7),
    "keep_top_k": _sampling_op(sampling.keep_top_k, 0.0, k=7),
    "keep_top_p": _sampling_op(sampling.keep_top_p, 0.0, p=0.8),
    "keep_min_p": _sampling_op(sampling.keep_min_p, 0.0, min_p=0.1),
    "top_ids": _sampling_op(sampling.top_ids, 0.0, k=7),
    "log_probabilities": _sampling_op(sampling.log_probabilities, 1e-6),
    "probabilities": _sampling_op(sampling.probabilities, 1e-6),
    "greedy": _sampling_op(sampling.greedy, 0.0),
    "choose": Op(reference=sampling.choose, tolerance=0.0, per_row=("probabilities", "uniform"), cases=_choice_cases),
}
