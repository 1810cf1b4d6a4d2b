import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkpoint_factory import (
    BASE_CONFIG,
    F32,
    FLOAT_CONFIG,
    FP4,
    FP8,
    OFFICIAL_CONFIG,
    hf_model,
    main_tensors,
    official_folder,
    packed,
    quantize,
    same_bits,
    write_folder,
)
from hf_oracle import official_tensors
from torch import Tensor

from pelagos.common.errors import CheckpointError, ResourceError, UsageError
from pelagos.common.files import FolderLock
from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model import convert as convert_module
from pelagos.model import recode
from pelagos.model.checkpoint import open_checkpoint
from pelagos.model.convert import convert

SMALL = 100_000  # bytes of a shard: some twenty of them


def stored_of(folder: Path) -> dict[str, Tensor]:
    checkpoint = open_checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.stored}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official_folder(tmp_path_factory.mktemp("source"))[0]


def test_bf16_holds_the_decoded_values(source: Path, tmp_path: Path) -> None:
    _, values = packed()
    report = convert(source, tmp_path / "bf16", "bf16", max_shard_bytes=SMALL)
    checkpoint = open_checkpoint(tmp_path / "bf16")
    assert checkpoint.config.storage == "bfloat16"
    assert checkpoint.config.official_rounding  # a fact of the model, not of its storage
    assert_same(
        stored_of(tmp_path / "bf16"),
        {name: value if is_kept(name) else value.bfloat16() for name, value in values.items()},
    )
    assert report.num_tensors == len(values) + sum(map(is_quantized, values))
    assert (report.num_resumed_files, report.ignored, report.notes) == (0, (), ())


def is_quantized(name: str) -> bool:
    return bool(FP8.search(name) or FP4.search(name))


def is_kept(name: str) -> bool:
    """Whether the tensor is float32 or int64 in every storage."""
    return bool(F32.search(name)) or name.endswith("tid2eid")


def test_transformers_loads_the_bf16_checkpoint(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path, "bf16", max_shard_bytes=SMALL)
    model, info = type(hf_model()).from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    _, values = packed()
    for name, tensor in official_tensors(model).items():
        expected = values[name] if is_kept(name) else values[name].bfloat16().float()
        assert same_bits(tensor.detach().contiguous(), expected), name


def test_there_and_back_is_the_identity(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "bf16", "bf16", max_shard_bytes=SMALL)
    convert(tmp_path / "bf16", tmp_path / "back", "official", max_shard_bytes=3 * SMALL)
    stored, _ = packed()
    assert_same(stored_of(tmp_path / "back"), stored)
    assert open_checkpoint(tmp_path / "back").config == open_checkpoint(source).config


def test_without_the_old_scales_the_way_back_would_not_be(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "bf16", "bf16")
    shutil.rmtree(tmp_path / "bf16" / "official_scales")
    convert(tmp_path / "bf16", tmp_path / "back", "official")
    stored, values = packed()
    back = open_checkpoint(tmp_path / "back")
    assert any(not same_bits(back.tensor(name), tensor) for name, tensor in stored.items())
    decoded = back.matrix("layers.0.attn.wq_b.weight")
    assert isinstance(decoded, QuantizedMatrix)
    assert same_bits(decoded.decode(), values["layers.0.attn.wq_b.weight"])  # other codes, the same values


def test_a_matrix_that_was_changed_gets_new_scales(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "bf16", "bf16")
    [path] = (tmp_path / "bf16").glob("model-*.safetensors")
    tensors = safetensors.torch.load_file(path)
    changed = ("layers.1.attn.wo_b.weight", "layers.2.ffn.experts.3.w1.weight")
    for name in changed:
        tensors[name][7] *= 1.5
        tensors[name][8] *= 100
    safetensors.torch.save_file(tensors, path)
    convert(tmp_path / "bf16", tmp_path / "back", "official")
    stored, _ = packed()
    for name in changed:
        codes, scales, _ = quantize(tensors[name].float().numpy(), fp4=FP4.search(name) is not None)
        stored[name], stored[name.removesuffix("weight") + "scale"] = codes, scales
    assert_same(stored_of(tmp_path / "back"), stored)


@pytest.mark.parametrize("spelling", ["official", "save_pretrained"])
def test_float_weights_are_quantised_as_released(spelling: str, tmp_path: Path) -> None:
    if spelling == "official":
        write_folder(tmp_path / "src", FLOAT_CONFIG, main_tensors())
    else:
        hf_model().save_pretrained(tmp_path / "src")
    report = convert(tmp_path / "src", tmp_path / "dst", "official")
    assert len(report.notes) == (1 if spelling == "official" else 0)  # no draft block
    expected = {}
    for name, tensor in main_tensors().items():
        if is_quantized(name):
            codes, scales, _ = quantize(tensor.numpy(), fp4=FP4.search(name) is not None)
            expected[name], expected[name.removesuffix("weight") + "scale"] = codes, scales
        else:
            expected[name] = tensor if is_kept(name) else tensor.bfloat16()
    assert_same(stored_of(tmp_path / "dst"), expected)
    assert open_checkpoint(tmp_path / "dst").config.storage == "official"


def test_base_checkpoints_convert_both_ways(tmp_path: Path) -> None:
    stored, values = packed(base=True)
    stored["mtp.0.head.weight"] = torch.ones(97, 160, dtype=torch.bfloat16)
    write_folder(tmp_path / "src", BASE_CONFIG, stored)
    assert convert(tmp_path / "src", tmp_path / "bf16", "bf16").ignored == ("mtp.0.head.weight",)
    assert not (tmp_path / "bf16" / "official_scales").exists()  # such scales are no powers of two
    name = "layers.1.ffn.experts.2.w2.weight"
    assert same_bits(stored_of(tmp_path / "bf16")[name], values[name].bfloat16())
    convert(tmp_path / "src", tmp_path / "official", "official")
    official = open_checkpoint(tmp_path / "official")
    codes, scales, _ = quantize(values[name].numpy(), fp4=True)
    assert same_bits(official.tensor(name), codes)
    assert same_bits(official.tensor(name.removesuffix("weight") + "scale"), scales)


def test_to_what_it_is_already_only_changes_the_files(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "again", "official", max_shard_bytes=SMALL)
    assert_same(stored_of(tmp_path / "again"), packed()[0])
    convert(source, tmp_path / "bf16", "bf16")
    convert(tmp_path / "bf16", tmp_path / "bf16 again", "bf16")
    assert_same(stored_of(tmp_path / "bf16 again"), stored_of(tmp_path / "bf16"))


def test_matrices_larger_than_a_piece_come_out_alike(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: dict[str, list[int]] = {}
    for size in (recode._PIECE, 1):
        monkeypatch.setattr(recode, "_PIECE", size)
        steps[str(size)] = []
        folder = tmp_path / str(size)
        convert(source, folder / "bf16", "bf16", progress=lambda done, total, size=size: steps[str(size)].append(done))
        convert(folder / "bf16", folder / "back", "official")
    assert len(steps["1"]) > len(steps[str(1 << 23)])
    for name in ("bf16", "back"):
        a, b = (tmp_path / size / name / "model-00001-of-00001.safetensors" for size in (str(1 << 23), "1"))
        assert a.read_bytes() == b.read_bytes()


def test_files_have_the_size_that_was_asked_for(source: Path, tmp_path: Path) -> None:
    reported: list[tuple[int, int]] = []
    report = convert(source, tmp_path, "official", max_shard_bytes=SMALL, progress=lambda *now: reported.append(now))
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) == report.num_files
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    for name in names:
        tensors = safetensors.torch.load_file(tmp_path / name)
        size = sum(tensor.nbytes for tensor in tensors.values())
        largest = max(tensor.nbytes for tensor in tensors.values())
        assert size <= SMALL + 10_000 or largest > SMALL
        assert all(f"{n[:-5]}weight" in tensors for n in tensors if n.endswith(".scale"))
    assert reported[-1] == (report.num_bytes, report.num_bytes)
    assert [done for done, _ in reported] == sorted(done for done, _ in reported)
    assert index["metadata"]["total_size"] == report.num_bytes == sum(tensor.nbytes for tensor in packed()[0].values())


def test_files_beside_the_weights_come_along(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    for name in ("tokenizer.json", "LICENSE", "other.txt"):
        (tmp_path / "src" / name).write_text(name)
    convert(tmp_path / "src", tmp_path / "dst", "bf16")
    assert (tmp_path / "dst" / "tokenizer.json").read_text() == "tokenizer.json"
    assert (tmp_path / "dst" / "LICENSE").read_text() == "LICENSE"
    assert not (tmp_path / "dst" / "other.txt").exists()


def test_a_complete_checkpoint_is_replaced_only_by_force(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path, "bf16", max_shard_bytes=SMALL)
    with pytest.raises(
        UsageError, match="holds a complete checkpoint: choose another folder, or replace it with --force"
    ):
        convert(source, tmp_path, "official")
    convert(source, tmp_path, "official", force=True)
    assert_same(stored_of(tmp_path), packed()[0])
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1


def test_a_folder_with_other_things_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        convert(source, tmp_path, "bf16")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    convert(source, tmp_path, "bf16", force=True)
    assert (tmp_path / "thesis.txt").read_text() == "x"


def test_arguments_that_cannot_be(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="to must be one of official, bf16, got 'int4'"):
        convert(source, tmp_path, "int4")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="max_shard_bytes must be at least 1"):
        convert(source, tmp_path, "bf16", max_shard_bytes=0)
    with pytest.raises(UsageError, match="must be another folder than the source"):
        convert(source, source, "bf16", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="must be a folder, or not exist yet"):
        convert(source, tmp_path / "file", "bf16")
    with pytest.raises(CheckpointError, match=r"must be a folder with config\.json"):
        convert(tmp_path / "none", tmp_path / "dst", "bf16")
    assert not (tmp_path / "dst").exists()


def test_a_disk_that_is_too_small_changes_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(source, tmp_path, "bf16")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(convert_module, "disk_free", lambda _: -10_000_000)
    with pytest.raises(ResourceError, match="GB of disk space, but only"):
        convert(source, tmp_path, "official", force=True)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    before[tmp_path / ".lock"] = after[tmp_path / ".lock"]
    assert after == before


def test_two_conversions_do_not_share_a_folder(source: Path, tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(ResourceError, match="is in use"):
        convert(source, tmp_path, "bf16")


@pytest.mark.parametrize(
    ("to", "name", "value", "problem"),
    [
        ("bf16", "norm.weight", float("nan"), "holds NaN, infinity or a number too large for bfloat16"),
        ("bf16", "layers.1.attn.wq_a.weight", float("inf"), "holds NaN, infinity or a number too large for bfloat16"),
        ("bf16", "layers.0.ffn.experts.0.w1.weight", 3.4e38, "holds NaN, infinity or a number too large for bfloat16"),
        ("bf16", "layers.0.attn.attn_sink", float("nan"), "holds NaN, infinity or a number too large for float32"),
        ("official", "layers.1.attn.wq_a.weight", float("nan"), "the matrix holds NaN or infinity"),
        ("official", "layers.0.ffn.experts.0.w1.weight", float("-inf"), "the matrix holds NaN or infinity"),
    ],
)
def test_values_that_the_target_cannot_hold(to: str, name: str, value: float, problem: str, tmp_path: Path) -> None:
    tensors = main_tensors()
    tensors[name] = tensors[name].clone()
    tensors[name].view(-1)[5 % tensors[name].numel()] = value
    write_folder(tmp_path / "src", FLOAT_CONFIG, tensors)
    with pytest.raises(CheckpointError, match=f"tensor {name}: {problem}"):
        convert(tmp_path / "src", tmp_path / "dst", to)  # type: ignore[arg-type]
    assert not (tmp_path / "dst" / "config.json").exists()


def test_old_scales_are_checked(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "bf16", "bf16")
    [path] = (tmp_path / "bf16" / "official_scales").iterdir()
    scales = safetensors.torch.load_file(path)
    scales["layers.0.attn.wq_a.scale"] = scales["layers.0.attn.wq_a.scale"].float()
    scales["junk.scale"] = torch.ones(1)
    safetensors.torch.save_file(scales, path)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "bf16", tmp_path / "back", "official")
    assert sorted(caught.value.problems) == [
        "tensor layers.0.attn.wq_a.scale must be F8_E8M0 [1, 2], got F32 [1, 2]",
        "unexpected tensor junk.scale",
    ]


def test_old_scales_that_do_not_fit_are_not_used(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "bf16", "bf16")
    [path] = (tmp_path / "bf16" / "official_scales").iterdir()
    scales = safetensors.torch.load_file(path)
    names = ("layers.0.attn.wq_a", "layers.0.attn.wq_b", "layers.0.attn.wkv")
    for name, byte in zip(names, (255, 0, 254), strict=True):  # NaN, the smallest, the largest
        scales[f"{name}.scale"].view(torch.uint8).fill_(byte)
    safetensors.torch.save_file(scales, path)
    convert(tmp_path / "bf16", tmp_path / "back", "official")
    back = open_checkpoint(tmp_path / "back")
    for name in names:
        matrix = back.matrix(f"{name}.weight")
        assert isinstance(matrix, QuantizedMatrix)
        assert same_bits(matrix.decode(), packed()[1][f"{name}.weight"])


class StopError(Exception):
    pass


def stopped(source: Path, dst: Path, share: float) -> None:
    """A conversion that ends after a share of its bytes."""

    def stop(done: int, total: int) -> None:
        if done > share * total:
            raise StopError

    with pytest.raises(StopError):
        convert(source, dst, "bf16", max_shard_bytes=SMALL, progress=stop)
    assert not (dst / "config.json").exists()


def test_a_changed_source_starts_over(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    stopped(tmp_path / "src", tmp_path / "dst", 0.5)
    path = sorted((tmp_path / "src").glob("*.safetensors"))[0]
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert convert(tmp_path / "src", tmp_path / "dst", "bf16", max_shard_bytes=SMALL).num_resumed_files == 0


def test_other_options_start_over(source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path, 0.5)
    assert convert(source, tmp_path, "official", max_shard_bytes=SMALL).num_resumed_files == 0
    assert_same(stored_of(tmp_path), packed()[0])
    assert not list((tmp_path / "official_scales").glob("*"))


def test_a_finished_file_that_was_damaged_is_written_again(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "whole", "bf16", max_shard_bytes=SMALL)
    stopped(source, tmp_path / "dst", 0.5)
    finished = sorted((tmp_path / "dst").glob("model-*"))
    damaged = bytearray(finished[1].read_bytes())
    damaged[-1] ^= 1
    finished[1].write_bytes(damaged)
    num_finished = len(list((tmp_path / "dst").rglob("*.safetensors")))
    report = convert(source, tmp_path / "dst", "bf16", max_shard_bytes=SMALL)
    assert report.num_resumed_files == num_finished - 1
    assert_same(stored_of(tmp_path / "dst"), stored_of(tmp_path / "whole"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"source": 1, "files": 2}', '{"source": "x"}'])
def test_a_broken_progress_file_starts_over(content: str, source: Path, tmp_path: Path) -> None:
    stopped(source, tmp_path, 0.5)
    (tmp_path / "convert-progress.json").write_text(content)
    assert convert(source, tmp_path, "bf16", max_shard_bytes=SMALL).num_resumed_files == 0


def test_a_source_that_changes_meanwhile_is_noticed(source: Path, tmp_path: Path) -> None:
    shutil.copytree(source, tmp_path / "src")
    path = sorted((tmp_path / "src").glob("*.safetensors"))[0]
    with pytest.raises(CheckpointError, match="has changed while it was converted"):
        convert(tmp_path / "src", tmp_path / "dst", "bf16", progress=lambda *_: path.touch())
    assert not (tmp_path / "dst" / "config.json").exists()


@pytest.mark.parametrize("to", ["bf16", "official"])
def test_killed_at_any_moment_and_resumed_it_ends_alike(to: str, source: Path, tmp_path: Path) -> None:
    src = source
    if to == "official":
        src = tmp_path / "bf16"
        convert(source, src, "bf16")
    (tmp_path / "work").mkdir()
    program = Path(__file__).parent / "killed_conversions.py"
    arguments = [str(src), str(tmp_path / "work"), to, str(3 * SMALL), "11"]
    done = subprocess.run(
        [sys.executable, str(program), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == []
    assert result["resumed"] > 20
    assert result["files"] > 5


def test_values_far_below_one_survive_there_and_back(tmp_path: Path) -> None:
    stored, _ = packed()
    rng = np.random.default_rng(1)
    name = "layers.0.ffn.experts.0.w1"
    stored[f"{name}.scale"] = torch.from_numpy(rng.integers(0, 250, (64, 5)).astype(np.uint8)).view(
        torch.float8_e8m0fnu
    )
    stored["layers.0.attn.wq_b.scale"] = torch.tensor([[3]], dtype=torch.uint8).view(torch.float8_e8m0fnu)
    write_folder(tmp_path / "src", OFFICIAL_CONFIG, stored)
    convert(tmp_path / "src", tmp_path / "bf16", "bf16")
    convert(tmp_path / "bf16", tmp_path / "back", "official")
    assert_same(stored_of(tmp_path / "back"), stored)
