"""Which parameter is trained how, and the matrices that Muon sees, against lists written by hand."""

import dataclasses

import pytest
import torch

from pelagos.common.errors import UsageError
from pelagos.model.config import ModelConfig
from pelagos.model.presets import preset
from pelagos.model.transformer import Model
from pelagos.training.parameter_rules import Group, assign, pieces

TINY = preset("tiny")  # layers: window, csa, hca, csa, hca; D 64, M 4, H 4 of 32, rank 32, 2 groups of 16, E 8 of 32
# What is not a matrix of Muon, by the end of its name.
BY_ADAMW_WITH_DECAY = ["embed.weight", "head.weight"]
BY_ADAMW_WITHOUT_DECAY = ["norm.weight", ".base", ".scale", "attn_sink", ".ape"]
BY_NONE = ["gate.bias"]


def empty_model(config: ModelConfig) -> Model:
    with torch.device("meta"):
        return Model(config)


def names_of(config: ModelConfig) -> list[str]:
    return [name for name, _ in empty_model(config).named_parameters()]


def group_by_ending(name: str) -> Group:
    if name in BY_ADAMW_WITH_DECAY:
        return "adamw_decay"
    if name.endswith(tuple(BY_NONE)):
        return "none"
    endings = (*BY_ADAMW_WITHOUT_DECAY, "enorm.weight", "hnorm.weight")
    return "adamw_no_decay" if name.endswith(endings) else "muon"


@pytest.mark.parametrize("name", ["tiny", "flash", "pro"])
def test_every_parameter_has_its_group(name: str) -> None:
    names = names_of(preset(name))
    treatments = assign(names, muon=True, decay=0.1, decay_1d=0.0)
    assert list(treatments) == names
    assert {n: t.group for n, t in treatments.items()} == {n: group_by_ending(n) for n in names}
    assert all(t.why for t in treatments.values())
    for t in treatments.values():
        assert t.decay == (0.1 if t.group in ("muon", "adamw_decay") else 0.0)


def test_decay_of_vectors_spares_biases() -> None:
    treatments = assign(names_of(TINY), muon=True, decay=0.1, decay_1d=0.05)
    of = {name: treatments[f"layers.1.{name}"].decay for name in ("attn_norm.weight", "hc_ffn.base", "hc_attn.scale")}
    assert set(of.values()) == {0.05}
    assert treatments["layers.1.attn_norm.weight"].group == "adamw_decay"
    assert treatments["mtp.0.enorm.weight"].decay == treatments["norm.weight"].decay == 0.05
    for name in ("attn.attn_sink", "attn.compressor.ape", "attn.indexer.compressor.ape"):
        assert treatments[f"layers.1.{name}"].decay == 0.0


def test_without_muon_matrices_go_to_adamw_and_keep_their_decay() -> None:
    treatments = assign(names_of(TINY), muon=False, decay=0.1, decay_1d=0.0)
    assert "muon" not in {t.group for t in treatments.values()}
    assert treatments["layers.0.ffn.experts.w1"].group == "adamw_decay"
    assert treatments["layers.0.ffn.experts.w1"].decay == 0.1


@pytest.mark.parametrize(
    "name",
    [
        "layers.0.attn.wq_c.weight",
        "layers.0.attn.wq_a.weight.scale",
        "layers.x.attn.wq_a.weight",
        "attn.wq_a.weight",
        "layers.0.attn_normXweight",
        "hc_attn.fn",
        "layers.0.ffn.experts.w4",
        "mtp.0.markov_head.markov_w1.weight",
    ],
)
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no rule says how to train the parameter"):
        assign([name], muon=True, decay=0.1, decay_1d=0.0)


EXPECTED_PIECES = {
    "hc_head.fn": [(1, 4, 256)],
    "layers.0.hc_attn.fn": [(1, 4, 256), (1, 4, 256), (1, 16, 256)],
    "layers.0.hc_ffn.fn": [(1, 4, 256), (1, 4, 256), (1, 16, 256)],
    "mtp.0.hc_head.fn": [(1, 4, 256)],
    "mtp.0.e_proj.weight": [(1, 64, 64)],
    "layers.0.attn.wq_a.weight": [(1, 32, 64)],
    "layers.0.attn.wq_b.weight": [(1, 128, 32)],
    "layers.0.attn.wkv.weight": [(1, 32, 64)],
    "layers.0.attn.wo_a.weight": [(2, 16, 64)],
    "mtp.0.attn.wo_a.weight": [(2, 16, 64)],
    "layers.0.attn.wo_b.weight": [(1, 64, 32)],
    "layers.1.attn.compressor.wkv.weight": [(2, 32, 64)],  # csa: overlapping
    "layers.1.attn.compressor.wgate.weight": [(2, 32, 64)],
    "layers.1.attn.indexer.compressor.wgate.weight": [(2, 16, 64)],
    "layers.2.attn.compressor.wkv.weight": [(1, 32, 64)],  # hca: not
    "layers.1.attn.indexer.wq_b.weight": [(1, 64, 32)],
    "layers.1.attn.indexer.weights_proj.weight": [(1, 4, 64)],
    "layers.0.ffn.gate.weight": [(1, 8, 64)],
    "layers.0.ffn.experts.w1": [(8, 32, 64)],
    "layers.0.ffn.experts.w2": [(8, 64, 32)],
    "layers.0.ffn.shared_experts.w3.weight": [(1, 32, 64)],
}


def shapes_of_pieces(name: str, config: ModelConfig, *, split_query_heads: bool = False) -> list[tuple[int, ...]]:
    parameter = empty_model(config).get_parameter(name)
    return [tuple(piece.shape) for piece in pieces(name, parameter, config, split_query_heads=split_query_heads)]


@pytest.mark.parametrize("name", EXPECTED_PIECES)
def test_shapes_of_pieces(name: str) -> None:
    assert shapes_of_pieces(name, TINY) == EXPECTED_PIECES[name]


def test_query_heads_apart() -> None:
    assert shapes_of_pieces("layers.3.attn.wq_b.weight", TINY, split_query_heads=True) == [(4, 32, 32)]
    assert shapes_of_pieces("mtp.0.attn.wq_b.weight", TINY, split_query_heads=True) == [(4, 32, 32)]
    name = "layers.3.attn.indexer.wq_b.weight"
    assert shapes_of_pieces(name, TINY, split_query_heads=True) == [(1, 64, 32)]


def test_number_of_streams_decides_the_rows_of_a_mixer() -> None:
    config = dataclasses.replace(TINY, num_streams=2)
    assert shapes_of_pieces("layers.0.hc_attn.fn", config) == [(1, 2, 128), (1, 2, 128), (1, 4, 128)]


@pytest.mark.parametrize("split_query_heads", [False, True])
def test_every_element_is_in_exactly_one_piece(split_query_heads: bool) -> None:
    model = empty_model(TINY)
    treatments = assign(names_of(TINY), muon=True, decay=0.1, decay_1d=0.0)
    for name in (name for name, t in treatments.items() if t.group == "muon"):
        shape = model.get_parameter(name).shape
        numbered = torch.arange(shape.numel()).view(shape)
        views = pieces(name, numbered, TINY, split_query_heads=split_query_heads)
        found = torch.cat([view.flatten() for view in views]).sort().values
        assert torch.equal(found, numbered.flatten()), name
        for view in views:
            view.zero_()
        assert not numbered.any(), f"{name}: a piece does not share the memory of its parameter"


def test_pieces_are_the_parts_of_the_model_that_are_used_apart() -> None:
    """A group of the output projection and a series of a compressor are consecutive rows."""
    grouped = torch.arange(32.0)[:, None].expand(32, 64)
    [view] = pieces("layers.0.attn.wo_a.weight", grouped, TINY)
    assert torch.equal(view[1, :, 0], torch.arange(16.0, 32.0))
    series = torch.arange(64.0)[:, None].expand(64, 64)
    [view] = pieces("layers.1.attn.compressor.wkv.weight", series, TINY)
    assert torch.equal(view[0, :, 0], torch.arange(32.0))
