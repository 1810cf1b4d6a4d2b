"""Everything that can be wrong with a checkpoint folder, and the sentence that says so."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from checkpoint_factory import (
    FLOAT_CONFIG,
    OFFICIAL_CONFIG,
    main_tensors,
    module_tensors,
    packed,
    write_folder,
    write_index,
)
from torch import Tensor

from pelagos.common.errors import CheckpointError
from pelagos.model.checkpoint import open_checkpoint

Tensors = dict[str, Tensor]
FIRST = "model-00001-of-00003.safetensors"
SECOND = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


def problems_of(folder: Path) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert caught.value.place == str(folder)
    return caught.value.problems


def drop(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def put(name: str, tensor: Tensor) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensor

    return change


def cast(name: str, dtype: torch.dtype) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    return change


FLOATS = "BF16, F16, F32"
E8M0 = torch.float8_e8m0fnu
EXPERT = "layers.1.ffn.experts.0.w1"
WRONG_TENSORS: dict[str, tuple[Callable[[Tensors], None], list[str]]] = {
    "no embedding": (drop("embed.weight"), ["missing tensor embed.weight"]),
    "no norm in a layer": (drop("layers.2.attn_norm.weight"), ["missing tensor layers.2.attn_norm.weight"]),
    "no stream mixer": (drop("layers.1.hc_ffn_scale"), ["missing tensor layers.1.hc_ffn_scale"]),
    "no hash table": (drop("layers.0.ffn.gate.tid2eid"), ["missing tensor layers.0.ffn.gate.tid2eid"]),
    "no router bias": (drop("layers.1.ffn.gate.bias"), ["missing tensor layers.1.ffn.gate.bias"]),
    "no indexer": (
        drop("layers.1.attn.indexer.weights_proj.weight"),
        ["missing tensor layers.1.attn.indexer.weights_proj.weight"],
    ),
    "a part of the draft block": (drop("mtp.0.enorm.weight"), ["missing tensor mtp.0.enorm.weight"]),
    "weight without its scale": (
        drop("layers.0.attn.wq_a.scale"),
        ["tensor layers.0.attn.wq_a.weight: F8_E4M3 needs scales, but there is no layers.0.attn.wq_a.scale"],
    ),
    "expert without its scale": (
        drop("layers.0.ffn.experts.1.w2.scale"),
        [
            "tensor layers.0.ffn.experts.1.w2.weight: I8 needs scales, but there is no layers.0.ffn.experts.1.w2.scale",
        ],
    ),
    "scale without its weight": (
        drop("layers.0.attn.wq_a.weight"),
        ["missing tensor layers.0.attn.wq_a.weight (its scale is there)"],
    ),
    "scale of a float matrix": (
        put("layers.0.attn.wq_a.weight", torch.ones(32, 160, dtype=torch.bfloat16)),
        ["tensor layers.0.attn.wq_a.weight: BF16 needs no scales, but there is layers.0.attn.wq_a.scale"],
    ),
    "scale of a norm": (
        put("layers.0.attn_norm.scale", torch.ones(1, 1)),
        ["tensor layers.0.attn_norm.weight: BF16 needs no scales, but there is layers.0.attn_norm.scale"],
    ),
    "scale of nothing": (
        put("layers.0.attn.wq_c.scale", torch.ones(1)),
        ["unexpected tensor layers.0.attn.wq_c.scale"],
    ),
    "scale shape": (
        put("layers.1.attn.wo_b.scale", torch.ones(2, 1).to(E8M0)),
        ["tensor layers.1.attn.wo_b.weight: shape of layers.1.attn.wo_b.scale must be [2, 2], got [2, 1]"],
    ),
    "expert scale from the packed width": (
        put(f"{EXPERT}.scale", torch.ones(64, 2).to(E8M0)),
        [f"tensor {EXPERT}.weight: shape of {EXPERT}.scale must be [64, 5], got [64, 2]"],
    ),
    "scale dtype": (
        cast("layers.1.attn.wo_b.scale", torch.bfloat16),
        ["tensor layers.1.attn.wo_b.weight: dtype of layers.1.attn.wo_b.scale must be F8_E8M0 or F32, got BF16"],
    ),
    "expert scale dtype": (
        cast(f"{EXPERT}.scale", torch.float32),
        [
            f"tensor {EXPERT}.weight: dtype of {EXPERT}.scale must be F8_E8M0, got F32",
        ],
    ),
    "two names of one scale": (
        put("layers.0.attn.wq_a.weight_scale_inv", torch.ones(1, 2)),
        ["unexpected tensor layers.0.attn.wq_a.weight_scale_inv"],
    ),
    "transposed": (
        put("head.weight", torch.ones(160, 97)),
        ["tensor head.weight: shape must be [97, 160], got [160, 97]"],
    ),
    "too many dims": (
        put("norm.weight", torch.ones(1, 160)),
        ["tensor norm.weight: shape must be [160], got [1, 160]"],
    ),
    "unpacked expert": (
        put("layers.0.ffn.experts.0.w1.weight", torch.ones(64, 160, dtype=torch.int8)),
        ["tensor layers.0.ffn.experts.0.w1.weight: shape must be [64, 80], got [64, 160]"],
    ),
    "packed dense matrix": (
        put("layers.0.attn.wq_a.weight", torch.ones(32, 80, dtype=torch.int8)),
        [f"tensor layers.0.attn.wq_a.weight: dtype must be one of {FLOATS}, F8_E4M3, got I8"],
    ),
    "whole numbers for an expert": (
        put("layers.0.ffn.experts.0.w1.weight", torch.ones(64, 160, dtype=torch.int32)),
        [f"tensor layers.0.ffn.experts.0.w1.weight: dtype must be one of {FLOATS}, F8_E4M3, I8, U8, got I32"],
    ),
    "FP8 router": (
        cast("layers.1.ffn.gate.weight", torch.float8_e4m3fn),
        [f"tensor layers.1.ffn.gate.weight: dtype must be one of {FLOATS}, got F8_E4M3"],
    ),
    "float ids": (
        cast("layers.0.ffn.gate.tid2eid", torch.float32),
        ["tensor layers.0.ffn.gate.tid2eid: dtype must be one of I64, I32, got F32"],
    ),
    "byte norm": (
        cast("norm.weight", torch.uint8),
        [f"tensor norm.weight: dtype must be one of {FLOATS}, got U8"],
    ),
    "double sink": (
        cast("layers.0.attn.attn_sink", torch.float64),
        [f"tensor layers.0.attn.attn_sink: dtype must be one of {FLOATS}, got F64"],
    ),
    "a layer too many": (
        put("layers.3.attn_norm.weight", torch.ones(160)),
        ["unexpected tensor layers.3.attn_norm.weight"],
    ),
    "an expert too many": (
        put("layers.0.ffn.experts.4.w1.weight", torch.ones(64, 160)),
        ["unexpected tensor layers.0.ffn.experts.4.w1.weight"],
    ),
    "a bias": (put("layers.0.attn.wq_a.bias", torch.ones(32)), ["unexpected tensor layers.0.attn.wq_a.bias"]),
    "a compressor in a window layer": (
        put("layers.0.attn.compressor.ape", torch.ones(4, 64)),
        ["unexpected tensor layers.0.attn.compressor.ape"],
    ),
    "a bias of a hash layer": (
        put("layers.0.ffn.gate.bias", torch.ones(4)),
        ["unexpected tensor layers.0.ffn.gate.bias"],
    ),
    "a name with a line break": (put("x\ny", torch.ones(1)), ["unexpected tensor 'x\\ny'"]),
    "two spellings": (
        put("model.layers.0.mlp.gate.weight", torch.ones(4, 160)),
        [
            "tensor names must have one spelling, but there are layers.0.ffn.gate.tid2eid (official) and "
            "model.layers.0.mlp.gate.weight (transformers)"
        ],
    ),
}


@pytest.mark.parametrize("kind", WRONG_TENSORS)
def test_every_wrong_tensor_has_its_own_sentence(kind: str, tmp_path: Path) -> None:
    change, expected = WRONG_TENSORS[kind]
    tensors, _ = packed()
    change(tensors)
    assert problems_of(write_folder(tmp_path, OFFICIAL_CONFIG, tensors, num_files=1)) == expected


def edit_index(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        (folder / INDEX).write_text(json.dumps(index | changes))

    return change


def edit_map(**changes: str | None) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        for name, value in changes.items():
            index["weight_map"].pop(name.replace("__", "."), None)
            if value is not None:
                index["weight_map"][name.replace("__", ".")] = value
        (folder / INDEX).write_text(json.dumps(index))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def duplicate(folder: Path) -> None:
    first = safetensors.torch.load_file(folder / FIRST)
    second = safetensors.torch.load_file(folder / SECOND)
    second["embed.weight"] = first["embed.weight"]
    safetensors.torch.save_file(second, folder / SECOND)


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


def config_too(folder: Path) -> None:
    config = OFFICIAL_CONFIG | {"num_attention_heads": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / FIRST).unlink()


MISPLACED = "tensor embed.weight must be in"
WRONG_FILES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "a missing file": (remove(FIRST), [f"{FIRST} is listed in {INDEX} but missing"]),
    "an empty file": (write(FIRST, b""), [f"{FIRST}: is 0 bytes long, too short for a safetensors file"]),
    "a pointer": (
        write(FIRST, b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 5\n"),
        [f"{FIRST}: is no safetensors file, it looks like a Git LFS pointer: fetch it with git lfs pull"],
    ),
    "the wrong file": (edit_map(embed__weight=SECOND), [f"{MISPLACED} {SECOND}, where the index places it"]),
    "a tensor that is nowhere": (
        edit_map(extra=SECOND),
        [f"tensor extra must be in {SECOND}, where the index places it"],
    ),
    "a tensor the index forgot": (
        edit_map(embed__weight=None),
        [f"tensor embed.weight in {FIRST} is not in the index"],
    ),
    "a tensor in two files": (duplicate, [f"tensor embed.weight is in {FIRST} and in {SECOND}"]),
    "another kind of file": (
        edit_map(embed__weight="pytorch_model.bin"),
        [
            f"{INDEX}: pytorch_model.bin must be a .safetensors file",
        ],
    ),
    "a wrong sum": (
        edit_index(metadata={"total_size": 5}),
        [f"{INDEX}: metadata.total_size must be the TOTAL bytes stored, got 5"],
    ),
    "a sum in words": (
        edit_index(metadata={"total_size": "5"}),
        [f"{INDEX}: metadata.total_size must be a whole number of bytes"],
    ),
    "a map that is none": (
        edit_index(weight_map=[1]),
        [f"{INDEX}: weight_map must be an object from tensor names to file names"],
    ),
    "a map to numbers": (
        edit_index(weight_map={"embed.weight": 1}),
        [f"{INDEX}: weight_map must be an object from tensor names to file names"],
    ),
    "a list for an index": (
        write(INDEX, b"[]"),
        [f"{INDEX}: weight_map must be an object from tensor names to file names"],
    ),
    "no weights": (no_weights, [f"there is no {INDEX}, no model.safetensors and no other .safetensors file"]),
    "config and files": (
        config_too,
        [
            "config.json: num_attention_heads must be a whole number from 1 to 4096, got 0",
            f"{FIRST} is listed in {INDEX} but missing",
        ],
    ),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_every_wrong_file_has_its_own_sentence(kind: str, tmp_path: Path) -> None:
    change, expected = WRONG_FILES[kind]
    tensors, _ = packed()
    folder = write_folder(tmp_path, OFFICIAL_CONFIG, tensors)
    change(folder)
    total = f"{sum(tensor.nbytes for tensor in tensors.values()):,}"
    assert problems_of(folder) == [problem.replace("TOTAL", total) for problem in expected]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "must be JSON"),
        (b"\xff", "must be UTF-8"),
        (b'{"weight_map": {}, "weight_map": {}}', "stands twice"),
        (b"[" * 100_000, "deep"),
    ],
)
def test_an_index_that_cannot_be_read(content: bytes, expected: str, tmp_path: Path) -> None:
    tensors, _ = packed()
    folder = write_folder(tmp_path, OFFICIAL_CONFIG, tensors)
    (folder / INDEX).write_bytes(content)
    [problem] = problems_of(folder)
    assert INDEX in problem
    assert expected in problem


def test_places_that_are_no_folder(tmp_path: Path) -> None:
    expected = ["must be a folder with config.json and .safetensors files"]
    assert problems_of(tmp_path / "none") == expected
    (tmp_path / "file").touch()
    assert problems_of(tmp_path / "file") == expected


def test_a_folder_without_config(tmp_path: Path) -> None:
    tensors, _ = packed()
    folder = write_folder(tmp_path, OFFICIAL_CONFIG, tensors)
    (folder / "config.json").unlink()
    [problem] = problems_of(folder)
    assert problem.startswith("config.json: ")


def test_fused_experts_are_named_once(tmp_path: Path) -> None:
    fused = "model.layers.1.mlp.experts.gate_up_proj"
    tensors = module_tensors()
    tensors[fused] = tensors[fused][:, :-1].contiguous()
    folder = write_folder(tmp_path, FLOAT_CONFIG, tensors, num_files=1)
    assert problems_of(folder) == [f"tensor {fused}: shape must be [4, 128, 160], got [4, 127, 160]"]
    del tensors[fused]
    folder = write_folder(tmp_path, FLOAT_CONFIG, tensors, num_files=1)
    assert problems_of(folder) == [f"missing tensor {fused}"]


def test_all_problems_are_kept_and_the_first_are_shown(tmp_path: Path) -> None:
    names = list(main_tensors())
    tensors = {name: tensor for name, tensor in main_tensors().items() if name not in names[3:40]}
    tensors["junk"] = torch.ones(1)
    folder = write_folder(tmp_path, FLOAT_CONFIG, tensors, num_files=1)
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert len(caught.value.problems) == 38
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{folder}: 38 problems:"
    assert lines[-1] == "  - and 18 more"
    assert len(lines) == 22


def test_a_lost_file_is_one_problem_and_not_one_for_each_tensor(tmp_path: Path) -> None:
    tensors, _ = packed()
    folder = write_folder(tmp_path, OFFICIAL_CONFIG, tensors)
    os.truncate(folder / SECOND, 100)
    (folder / FIRST).unlink()
    assert len(problems_of(folder)) == 2
    (folder / INDEX).unlink()
    assert len(problems_of(folder)) == 1


def test_an_empty_index_says_what_is_missing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, FLOAT_CONFIG, main_tensors())
    write_index(folder, {}, 0)
    assert len(problems_of(folder)) == len(main_tensors())


def test_a_config_cannot_ask_for_billions_of_tensors(tmp_path: Path) -> None:
    config = FLOAT_CONFIG | {"n_routed_experts": 65536, "num_hidden_layers": 500, "compress_ratios": [0] * 501}
    folder = write_folder(tmp_path, config, main_tensors(), num_files=1)
    expected = "config.json: experts times layers must give at most 300,000 tensors"
    assert problems_of(folder) == [expected]
