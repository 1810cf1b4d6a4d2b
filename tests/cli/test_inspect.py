"""``pelagos inspect``: published numbers for presets, and a folder made by the safetensors library."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer
from typer.testing import CliRunner

from pelagos.cli.inspect import inspect_command
from pelagos.common.errors import CheckpointError, UsageError
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.tensors import stored_tensors

app = typer.Typer()
app.command("inspect")(inspect_command)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def report(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``tiny`` in BF16, all zeros, in two files, without its draft block."""
    data = config_to_json(preset("tiny")) | {"torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(data))
    dtypes = {"BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}
    tensors = {
        spec.name: torch.zeros(spec.shape, dtype=dtypes[spec.dtype])
        for spec in stored_tensors(preset("tiny"), "bfloat16")
        if not spec.name.startswith("mtp.")
    }
    names = list(tensors)
    for number, part in enumerate((names[:50], names[50:])):
        safetensors.torch.save_file({name: tensors[name] for name in part}, tmp_path / f"part-{number}.safetensors")
    return tmp_path


def test_flash_in_json() -> None:
    flash = report("--preset", "flash")
    assert flash["model"] == "flash"
    assert flash["source"] == {"kind": "preset"}
    assert flash["storage"] == "official"
    assert flash["sizes"]["num_heads"] == 64
    assert flash["layers"]["kinds"] == {"window": 2, "csa": 21, "hca": 20}
    assert flash["layers"]["ratios"][:4] == [None, None, 4, 128]
    assert (flash["layers"]["num"], flash["layers"]["num_hash"], flash["layers"]["num_mtp"]) == (43, 3, 1)
    assert flash["parameters"]["total"] == 284_332_240_471
    assert flash["parameters"]["active"] == 13_270_101_591
    assert (flash["checkpoint"]["num_tensors"], flash["checkpoint"]["num_bytes"]) == (69_187, 159_609_485_896)
    assert flash["checkpoint"]["by_dtype"]["I8"]["num_tensors"] == 44 * 256 * 3
    assert flash["state"]["fp8_fp4"] == {
        "per_token": 3514.25, "window": 3_214_336, "open_windows": 11_048_960, "overlaps": 430_080,
    }  # fmt: skip
    assert [context["tokens"] for context in flash["contexts"]] == [4096, 131_072, 1_048_576]
    last = flash["contexts"][-1]
    assert last["flops"]["total"] == sum(last["flops"][part] for part in ("dense", "window", "csa", "hca", "indexer"))
    assert round(last["flops"]["total"] / 1e9, 1) == 140.3
    assert last["bytes_read"]["total"] == last["bytes_read"]["weights"] + last["bytes_read"]["state"]
    assert "tensors" not in flash


def test_totals_of_parts() -> None:
    for name in ("flash-0731", "tiny"):
        found = report("--preset", name, "--tensors")
        assert len(found["tensors"]) == found["checkpoint"]["num_tensors"]
        assert sum(tensor["num_bytes"] for tensor in found["tensors"]) == found["checkpoint"]["num_bytes"]
        by_dtype = found["checkpoint"]["by_dtype"].values()
        assert sum(counts["num_bytes"] for counts in by_dtype) == found["checkpoint"]["num_bytes"]
    assert found["tensors"][0] == {"name": "embed.weight", "dtype": "F32", "shape": [512, 64], "num_bytes": 131_072}


def test_contexts_end_where_the_model_does() -> None:
    assert [context["tokens"] for context in report("--preset", "tiny")["contexts"]] == [4096]


def test_flash_for_people() -> None:
    text = run("--preset", "flash")
    for part in (
        "43: 2 window, 21 csa, 20 hca; 3 route by token id",
        "284,332,240,471",
        "13,270,101,591",
        "159,609,485,896 bytes in 69,187 tensors",
        "3,514.25 bytes per token, 3,214,336 for the window",
        "140.3 G",
    ):
        assert part in text
    assert "…" not in text  # fits a terminal of 80 columns


def test_tensor_list_for_people() -> None:
    lines = run("--preset", "tiny", "--tensors").splitlines()
    assert "layers.1.ffn.gate.tid2eid  I64  [512, 2]  8192" in lines


def test_folder(folder: Path) -> None:
    found = report(str(folder))
    tiny = report("--preset", "tiny")
    assert found["model"] == str(folder)
    assert (found["source"]["kind"], found["source"]["num_files"]) == ("folder", 2)
    assert found["storage"] == "bfloat16"
    assert found["layers"] == tiny["layers"] | {"num_mtp": 0}
    assert found["parameters"] == tiny["parameters"] | {"mtp": 0}
    assert found["checkpoint"]["num_bytes"] == sum(
        counts["num_bytes"] for counts in found["checkpoint"]["by_dtype"].values()
    )
    files = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0 < files - found["checkpoint"]["num_bytes"] < 100_000  # the headers
    assert "Note: " in run(str(folder))  # no draft blocks are stored


def test_wrong_use(tmp_path: Path) -> None:
    for arguments in ({}, {"model": "x", "preset": "tiny"}):
        with pytest.raises(UsageError, match=r"^give either a checkpoint folder or --preset NAME$"):
            inspect_command(**arguments)
    with pytest.raises(UsageError, match="preset must be one of"):
        inspect_command(preset="nano")
    with pytest.raises(CheckpointError):
        inspect_command(model=str(tmp_path))
