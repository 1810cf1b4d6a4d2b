"""What the optimizer does with each parameter, and into which matrices Muon cuts it: one table, keyed by name.

Names are those of ``Model.named_parameters()``: official ones, except that stream mixers are modules (``hc_attn.fn``)
and the experts of a layer are stacked (``ffn.experts.w1``, [E, F, D]). A name that the table does not know is an error,
never a default: whoever adds a parameter to the model decides here how it is trained.

The rule of the paper: AdamW for the embedding, the head, norm weights, and the static biases and factors of the stream
mixers; Muon for all else. Two kinds that it does not mention are biases by nature and go to AdamW without decay.

Shapes: D width, M streams, H heads, C head or row size, E experts, F inner width, G output groups.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.model.config import ModelConfig

Kind = Literal["matrix", "table", "vector", "bias", "fixed"]
Group = Literal["muon", "adamw_decay", "adamw_no_decay", "none"]


class _Rule(NamedTuple):
    pattern: re.Pattern[str]
    kind: Kind
    why: str


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How one parameter is trained: its group, its weight decay, and the reason."""

    group: Group
    decay: float
    why: str


def _rule(kind: Kind, names: str, why: str) -> _Rule:
    """``names``: alternatives between blanks, where a dot is a dot and "@" a layer or a draft block."""
    pattern = "|".join(names.replace(".", r"\.").replace("@", r"(layers|mtp)\.\d+").split())
    return _Rule(re.compile(pattern), kind, why)


_RULES = (
    _rule("table", "embed.weight head.weight", "one row per token"),
    _rule("vector", "norm.weight @.norm.weight @.(attn_norm|ffn_norm|enorm|hnorm).weight", "weight of a norm"),
    _rule("vector", "@.attn.(q_norm|kv_norm|compressor.norm|indexer.compressor.norm).weight", "weight of a norm"),
    _rule("vector", "(hc_head|@.hc_head|@.hc_attn|@.hc_ffn).(base|scale)", "static bias or factor of a stream mixer"),
    _rule("bias", "@.attn.attn_sink", "one logit per head"),
    _rule("bias", "@.attn.(compressor|indexer.compressor).ape", "bias of a compressor's gates by position"),
    _rule("fixed", "@.ffn.gate.bias", "balances the load of experts, moved by its own rule"),
    _rule("matrix", "(hc_head|@.hc_head|@.hc_attn|@.hc_ffn).fn", "maps streams to their mixing weights"),
    _rule("matrix", "@.attn.(wq_a|wq_b|wkv|wo_a|wo_b).weight", "projection of attention"),
    _rule("matrix", "@.attn.(compressor|indexer.compressor).(wkv|wgate).weight", "projection of a compressor"),
    _rule("matrix", "@.attn.indexer.(wq_b|weights_proj).weight", "projection of the indexer"),
    _rule("matrix", "@.ffn.gate.weight", "router"),
    _rule("matrix", "@.ffn.(experts.w[123]|shared_experts.w[123].weight)", "projection of experts"),
    _rule("matrix", "@.(e_proj|h_proj).weight", "projection of a draft block"),
)
_LAYER = re.compile(r"(layers|mtp)\.(\d+)\.(.+)")


def kind_of(name: str) -> tuple[Kind, str]:
    """What kind of parameter this is, and in words. Raises UsageError for a name that no rule covers."""
    for rule in _RULES:
        if rule.pattern.fullmatch(name):
            return rule.kind, rule.why
    raise UsageError(f"no rule says how to train the parameter {name}: add one to pelagos/training/parameter_rules.py")


def assign(names: Iterable[str], *, muon: bool, decay: float, decay_1d: float) -> dict[str, Treatment]:
    """The treatment of each parameter. ``decay``: of matrices, embedding and head; ``decay_1d``: of norm weights and
    stream statics. Without ``muon`` matrices get AdamW. Raises UsageError for a name that no rule covers."""
    decay_of: dict[Kind, float] = {"matrix": decay, "table": decay, "vector": decay_1d, "bias": 0.0, "fixed": 0.0}
    treatments = {}
    for name in names:
        kind, why = kind_of(name)
        group: Group = "adamw_decay" if decay_of[kind] else "adamw_no_decay"
        if kind == "fixed":
            group = "none"
        elif kind == "matrix" and muon:
            group = "muon"
        treatments[name] = Treatment(group=group, decay=decay_of[kind], why=why)
    return treatments


def pieces(name: str, tensor: Tensor, config: ModelConfig, *, split_query_heads: bool = False) -> list[Tensor]:
    """The logically independent matrices of a Muon parameter, as views [n, rows, columns] that share its memory.

    Every element is in exactly one view. Each expert, each output group, each of the two series of an overlapping
    compressor and (with ``split_query_heads``) each query head is a matrix; a stream mixer is three: M rows that read,
    M that write, M² that mix. ``tensor``: the parameter, or anything of its shape.
    """
    assert kind_of(name)[0] == "matrix", f"{name} is not a parameter of Muon"
    if tensor.dim() == 3:  # experts
        return [tensor]
    num = config.num_streams
    if name.endswith((".hc_attn.fn", ".hc_ffn.fn")):
        return [rows.unsqueeze(0) for rows in torch.split(tensor, [num, num, num * num])]
    return [tensor.view(_num_parts(name, config, split_query_heads), -1, tensor.shape[1])]


def _num_parts(name: str, config: ModelConfig, split_query_heads: bool) -> int:
    """How many matrices stand below one another in a parameter."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return 1
    layers, part = config.layers if match[1] == "layers" else config.mtp_layers, match[3]
    if "compressor." in part:
        return 2 if layers[int(match[2])].overlap else 1
    if part == "attn.wo_a.weight":
        return config.num_output_groups
    if part == "attn.wq_b.weight" and split_query_heads:
        return config.num_heads
    return 1
