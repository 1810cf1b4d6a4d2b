"""Presets against the released config.json files, and what ``tiny`` promises."""

import pytest
from released_configs import RELEASED

from pelagos.common.errors import UsageError
from pelagos.model.config_json import config_from_json
from pelagos.model.presets import PRESETS, preset
from pelagos.model.tensors import stored_tensors, tensor_specs


@pytest.mark.parametrize("name", RELEASED)
def test_preset_is_the_released_config(name: str) -> None:
    assert preset(name) == config_from_json(RELEASED[name])


def test_presets_are_the_released_ones_and_tiny() -> None:
    assert set(PRESETS) == {*RELEASED, "tiny"}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [("flash", {"window": 2, "csa": 21, "hca": 20}), ("pro", {"window": 0, "csa": 30, "hca": 31})],
)
def test_layer_kinds_of_the_report(name: str, kinds: dict[str, int]) -> None:
    layers = preset(name).layers
    assert {kind: sum(layer.kind == kind for layer in layers) for kind in kinds} == kinds
    assert [layer.router for layer in layers[:4]] == ["hash", "hash", "hash", "learned"]
    assert layers[-1].kind == "csa"


def test_tiny_has_every_part() -> None:
    config = preset("tiny")
    assert {layer.kind for layer in config.layers} == {"window", "csa", "hca"}
    assert {layer.router for layer in config.layers} == {"learned", "hash"}
    assert len(config.mtp_layers) == 1
    assert config.compressed_rope.yarn is not None
    assert config.index_topk < config.max_positions // 4  # so that an indexer has something to leave out


def test_tiny_fits_the_official_layout_without_cut_fp4_groups() -> None:
    config = preset("tiny")
    experts = [spec for spec in tensor_specs(config) if spec.role == "expert"]
    assert experts
    assert all(spec.shape[1] % 32 == 0 for spec in experts)
    assert {"F8_E4M3", "F8_E8M0", "I8", "BF16", "F32", "I64"} == {s.dtype for s in stored_tensors(config, "official")}


def test_unknown_preset_lists_the_names() -> None:
    with pytest.raises(UsageError, match=r"^preset must be one of flash, flash-0731, .*tiny, got 'nano'$"):
        preset("nano")
