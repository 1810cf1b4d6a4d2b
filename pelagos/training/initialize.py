"""Weights of a model before its first step.

Matrices are normal with one standard deviation; norms 1; sinks, position biases, router biases 0, so that a compressed
row starts close to a mean. Streams: write weight 1, mixing near the identity, and each sub-block reads mostly one of
the streams in turn, which breaks the symmetry of equal streams. Hash tables give each token its own random experts.
"""

import torch
from torch import Tensor

from pelagos.model.tensors import TensorSpec
from pelagos.model.transformer import Model
from pelagos.training.initialize_recall import add_recall
from pelagos.training.views import official_weights

_STREAM_SCALE = 0.01  # of the part of stream weights that depends on the input (mHC paper, appendix)
_MIX_DIAGONAL = 3.0  # 0.87 of a stream stays in it after Sinkhorn


@torch.no_grad()
def initialize(model: Model, *, std: float, seed: int, start: str = "plain") -> None:
    """Fill ``model``, whose weights must be float tensors on a real device, in official order from one generator.

    ``start``: plain, or recall: then changed as ``initialize_recall`` says."""
    generator = torch.Generator().manual_seed(seed)
    sub_block = 0
    for spec, weight in official_weights(model):
        if spec.name.endswith(("hc_attn_base", "hc_ffn_base")):
            weight.copy_(_stream_base(model.config.num_streams, sub_block))
            sub_block += 1
        else:
            weight.copy_(_value(spec, std, model.config.num_experts, generator))
    if start == "recall":
        add_recall(model, generator)


def _value(spec: TensorSpec, std: float, num_experts: int, generator: torch.Generator) -> Tensor:
    if spec.role == "norm":
        return torch.ones(spec.shape)
    if spec.role == "ids":
        order = torch.rand(spec.shape[0], num_experts, generator=generator).argsort(1)
        return order[:, : spec.shape[1]]
    if spec.name.endswith("_scale"):
        return torch.full(spec.shape, _STREAM_SCALE)
    if spec.role == "float32" and not spec.name.endswith("_fn"):
        return torch.zeros(spec.shape)
    return std * torch.randn(spec.shape, generator=generator)


def _stream_base(num: int, sub_block: int) -> Tensor:
    """Static logits of read, write and mixing weights of one sub-block, [(2 + M)·M]."""
    read = torch.full((num,), -1.0)
    read[sub_block % num] = 1.0
    return torch.cat([read, torch.zeros(num), _MIX_DIAGONAL * torch.eye(num).flatten()])
