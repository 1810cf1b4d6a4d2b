import json
import os
import struct
import time
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from checkpoint_factory import (
    BASE_CONFIG,
    FLOAT_CONFIG,
    OFFICIAL_CONFIG,
    all_tensors,
    draft_tensors,
    hf_model,
    main_tensors,
    module_tensors,
    official_folder,
    packed,
    same_bits,
    write_folder,
)
from torch import Tensor

from pelagos.common.errors import CheckpointError
from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model.checkpoint import Checkpoint, open_checkpoint
from pelagos.model.config import ModelConfig
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.tensors import stored_tensors


def values_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every weight, decoded where it is stored as codes."""
    values = {}
    for name, stored in checkpoint.stored.items():
        if name.endswith(".scale"):
            continue
        value = checkpoint.tensor(name) if stored.dtype == "I64" else checkpoint.matrix(name)
        values[name] = value.decode() if isinstance(value, QuantizedMatrix) else value
    return values


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert same_bits(found[name], value), name


def test_the_released_layout_means_what_it_says(tmp_path: Path) -> None:
    folder, values = official_folder(tmp_path)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spelling == "official"
    assert (checkpoint.num_files, checkpoint.ignored, checkpoint.notes) == (3, (), ())
    assert [layer.kind for layer in checkpoint.config.layers] == ["window", "csa", "hca"]
    assert len(checkpoint.config.mtp_layers) == 1
    found = values_of(checkpoint)
    assert_same(
        {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in found.items()}, values
    )
    expert = checkpoint.matrix("layers.1.ffn.experts.3.w2.weight")
    dense = checkpoint.matrix("layers.1.attn.wo_b.weight")
    assert isinstance(expert, QuantizedMatrix)
    assert isinstance(dense, QuantizedMatrix)
    assert (expert.kind, expert.shape) == ("fp4", (160, 64))
    assert (dense.kind, dense.shape, tuple(dense.scales.shape)) == ("fp8", (160, 144), (2, 2))


def test_stored_says_what_is_in_the_files(tmp_path: Path) -> None:
    stored, _ = packed()
    checkpoint = open_checkpoint(write_folder(tmp_path, OFFICIAL_CONFIG, stored))
    assert checkpoint.stored.keys() == stored.keys()
    for name, tensor in stored.items():
        assert (checkpoint.stored[name].shape, checkpoint.stored[name].num_bytes) == (
            tuple(tensor.shape),
            tensor.nbytes,
        )
        assert same_bits(checkpoint.tensor(name), tensor)


def test_the_base_layout_means_what_it_says(tmp_path: Path) -> None:
    stored, values = packed(base=True)
    stored["mtp.0.emb.tok_emb.weight"] = torch.ones(97, 160, dtype=torch.bfloat16)
    stored["mtp.0.head.weight"] = torch.ones(97, 160, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(write_folder(tmp_path, BASE_CONFIG, stored, num_files=1))
    assert set(checkpoint.ignored) == {"mtp.0.emb.tok_emb.weight", "mtp.0.head.weight"}
    found = values_of(checkpoint)
    assert_same(
        {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in found.items()}, values
    )
    assert checkpoint.matrix("layers.0.ffn.experts.0.w1.weight").scales.dtype == torch.float32


def test_three_spellings_give_the_same_tensors(tmp_path: Path) -> None:
    official = open_checkpoint(write_folder(tmp_path / "official", FLOAT_CONFIG, main_tensors()))
    modules = open_checkpoint(write_folder(tmp_path / "modules", FLOAT_CONFIG, module_tensors()))
    hf_model().save_pretrained(tmp_path / "saved")
    saved = open_checkpoint(tmp_path / "saved")
    hf_model().save_pretrained(tmp_path / "sharded", max_shard_size="500KB")
    sharded = open_checkpoint(tmp_path / "sharded")
    assert sharded.num_files > 1
    assert [each.spelling for each in (official, modules, saved)] == ["official", "transformers", "save_pretrained"]
    for checkpoint in (official, modules, saved, sharded):
        assert checkpoint.ignored == ()
        assert_same(values_of(checkpoint), main_tensors())
        for name, tensor in main_tensors().items():
            assert (checkpoint.stored[name].shape, checkpoint.stored[name].num_bytes) == (
                tuple(tensor.shape),
                tensor.nbytes,
            )


def test_a_model_saved_in_bfloat16_opens(tmp_path: Path) -> None:
    hf_model().save_pretrained(tmp_path / "float32")
    model = type(hf_model()).from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "kept")  # transformers keeps norms, sinks and stream mixers in float32
    model.to(torch.bfloat16).save_pretrained(tmp_path / "all")
    for name in ("kept", "all"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.stored["layers.0.attn.wq_a.weight"].dtype == "BF16"
        assert checkpoint.stored["layers.0.attn_norm.weight"].dtype == ("F32" if name == "kept" else "BF16")
        wanted = main_tensors()["layers.2.ffn.experts.1.w3.weight"].bfloat16()
        assert same_bits(checkpoint.tensor("layers.2.ffn.experts.1.w3.weight"), wanted)


def test_draft_blocks_that_are_not_stored_are_left_out(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path, FLOAT_CONFIG, main_tensors(), num_files=1))
    assert checkpoint.config.mtp_layers == ()
    assert checkpoint.notes == ("config.json announces draft blocks, but there are no mtp tensors: the model has none",)


def test_draft_blocks_that_the_config_does_not_know_are_ignored(tmp_path: Path) -> None:
    config = FLOAT_CONFIG | {"num_nextn_predict_layers": 0, "compress_ratios": [0, 4, 128]}
    checkpoint = open_checkpoint(write_folder(tmp_path, config, all_tensors(), num_files=1))
    assert set(checkpoint.ignored) == set(draft_tensors())
    assert checkpoint.config.mtp_layers == ()


def test_other_dtypes_that_a_role_allows(tmp_path: Path) -> None:
    stored, _ = packed()
    changed = dict(stored)
    for name, tensor in stored.items():
        if tensor.dtype == torch.int8:
            changed[name] = tensor.view(torch.uint8)
        elif tensor.dtype == torch.int64:
            changed[name] = tensor.to(torch.int32)
        elif tensor.dtype == torch.bfloat16:
            changed[name] = tensor.to(torch.float16)
        elif tensor.dtype == torch.float8_e8m0fnu and ".experts." not in name:
            changed[name] = tensor.float()
    before = open_checkpoint(write_folder(tmp_path / "a", OFFICIAL_CONFIG, stored))
    after = open_checkpoint(write_folder(tmp_path / "b", OFFICIAL_CONFIG, changed))
    for name in ("layers.0.attn.wq_a.weight", "layers.0.ffn.experts.1.w1.weight"):
        assert same_bits(after.matrix(name).decode(), before.matrix(name).decode())
    assert after.tensor("layers.0.ffn.gate.tid2eid").dtype == torch.int32


def test_scales_under_their_older_name(tmp_path: Path) -> None:
    stored, _ = packed()
    renamed = {
        name.removesuffix("scale") + "weight_scale_inv" if name.endswith(".scale") else name: tensor
        for name, tensor in stored.items()
    }
    checkpoint = open_checkpoint(write_folder(tmp_path, OFFICIAL_CONFIG, renamed))
    assert checkpoint.stored.keys() == stored.keys()
    assert same_bits(checkpoint.tensor("layers.0.attn.wq_a.scale"), stored["layers.0.attn.wq_a.scale"])


def test_all_files_of_a_folder_without_index(tmp_path: Path) -> None:
    folder, _ = official_folder(tmp_path)
    (folder / "model.safetensors.index.json").unlink()
    assert open_checkpoint(folder).num_files == 3


def test_a_snapshot_of_a_hub_cache_opens(tmp_path: Path) -> None:
    folder, _ = official_folder(tmp_path / "snapshots" / "abc")
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(tmp_path / "blobs" / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert open_checkpoint(folder).num_files == 3


@pytest.mark.parametrize(
    "place", ["../other.safetensors", "/etc/other.safetensors", "link.safetensors", "a\0.safetensors"]
)
def test_an_index_cannot_lead_out_of_the_folder(place: str, tmp_path: Path) -> None:
    folder, _ = official_folder(tmp_path / "inner")
    safetensors.torch.save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "other.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["x"] = place
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"file name .* must ") as caught:
        open_checkpoint(folder)
    assert len(caught.value.problems) == 1


def test_expert_ids_are_checked_when_they_are_loaded(tmp_path: Path) -> None:
    for bad in (-1, 4):
        tensors = main_tensors()
        tensors["layers.0.ffn.gate.tid2eid"] = tensors["layers.0.ffn.gate.tid2eid"].clone()
        tensors["layers.0.ffn.gate.tid2eid"][5, 1] = bad
        checkpoint = open_checkpoint(write_folder(tmp_path, FLOAT_CONFIG, tensors, num_files=1))
        with pytest.raises(CheckpointError, match=r"expert ids must be from 0 to 3, found"):
            checkpoint.tensor("layers.0.ffn.gate.tid2eid")


def test_a_name_that_is_not_there_is_a_key_error(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(official_folder(tmp_path)[0])
    with pytest.raises(KeyError):
        checkpoint.tensor("layers.7.attn.wq_a.weight")


def sparse_folder(folder: Path, config: ModelConfig) -> tuple[int, int]:
    """A checkpoint without its data: config, index, and files with true headers and holes behind them."""
    (folder / "config.json").write_text(json.dumps(config_to_json(config)))
    files: list[dict[str, dict[str, object]]] = []
    weight_map, total, end = {}, 0, 0
    for spec in stored_tensors(config):
        if not files or end > 4e9:
            files.append({})
            end = 0
        offsets = [end, end + spec.num_bytes]
        files[-1][spec.name] = {"dtype": spec.dtype, "shape": list(spec.shape), "data_offsets": offsets}
        weight_map[spec.name] = f"model-{len(files)}.safetensors"
        end += spec.num_bytes
        total += spec.num_bytes
    for number, header in enumerate(files, start=1):
        raw = json.dumps(header).encode()
        path = folder / f"model-{number}.safetensors"
        path.write_bytes(struct.pack("<Q", len(raw)) + raw)
        os.truncate(path, 8 + len(raw) + max(entry["data_offsets"][1] for entry in header.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return len(weight_map), total


def test_a_checkpoint_larger_than_memory_opens_in_seconds(tmp_path: Path) -> None:
    num_names, num_bytes = 69_187, 159_609_485_896  # as published for Flash
    assert sparse_folder(tmp_path, preset("flash")) == (num_names, num_bytes)
    start = time.process_time()
    checkpoint = open_checkpoint(tmp_path)
    seconds = time.process_time() - start
    assert len(checkpoint.stored) == num_names
    assert sum(stored.num_bytes for stored in checkpoint.stored.values()) == num_bytes
    assert (checkpoint.ignored, checkpoint.notes) == ((), ())
    assert checkpoint.config == preset("flash")
    assert seconds < 6  # under 2 on an idle machine
    assert checkpoint.matrix("layers.42.ffn.experts.255.w2.weight").shape == (4096, 2048)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
def test_dspark_blocks_are_counted_by_their_names(num_blocks: int, tmp_path: Path) -> None:
    config = replace(preset("tiny"), mtp_layers=(), num_dspark_blocks=num_blocks, dspark_markov_rank=8)
    sparse_folder(tmp_path, config)
    data = config_to_json(replace(config, num_dspark_blocks=3)) | {"num_nextn_predict_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(data))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config.num_dspark_blocks == num_blocks
    assert f"mtp.{num_blocks - 1}.markov_head.markov_w1.weight" in checkpoint.stored
    assert checkpoint.notes == (() if num_blocks == 3 else (f"{num_blocks} DSpark blocks are stored, not 3",))
