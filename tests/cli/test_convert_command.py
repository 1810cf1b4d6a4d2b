import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from pelagos.cli.main import main
from pelagos.model.checkpoint import open_checkpoint
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.tensors import tensor_specs


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The tiny preset, all values 0.5, and a tensor that nothing asks for."""
    folder = tmp_path / "src"
    folder.mkdir()
    config = preset("tiny")
    tensors = {
        spec.name: torch.full(spec.shape, 1 if spec.role == "ids" else 0.5, dtype=DTYPES.get(spec.role, torch.float32))
        for spec in tensor_specs(config)
    }
    tensors["mtp.0.head.weight"] = torch.ones(1)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_to_json(config)))
    return folder


DTYPES = {"ids": torch.int64}


def test_it_prints_what_it_did(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "dst"), "--to", "official"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith(f"{tmp_path / 'dst'}: ")
    assert "note: tensors left out because the model does not use them: 1 (mtp.0.head.weight)" in out.out
    assert out.err == ""
    assert open_checkpoint(tmp_path / "dst").config.storage == "official"


def test_json(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(source), str(tmp_path / "dst"), "--to", "bf16", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    stored = open_checkpoint(tmp_path / "dst").stored
    assert report == {
        "folder": str(tmp_path / "dst"),
        "num_files": 1,
        "num_tensors": len(stored),
        "num_bytes": sum(tensor.num_bytes for tensor in stored.values()),
        "num_resumed_files": 0,
        "ignored": ["mtp.0.head.weight"],
        "notes": [],
    }


def test_exit_codes(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = str(tmp_path / "dst")
    assert main(["convert", str(source), dst]) == 2
    assert main(["convert", str(source), dst, "--to", "int4"]) == 2
    assert main(["convert", str(tmp_path / "none"), dst, "--to", "bf16"]) == 2
    assert main(["convert", str(source), dst, "--to", "bf16"]) == 0
    assert main(["convert", str(source), dst, "--to", "bf16"]) == 2
    assert "--force" in capsys.readouterr().err
    assert main(["convert", str(source), dst, "--to", "official", "--force"]) == 0


def test_the_help_names_both_formats_and_needs_no_torch() -> None:
    code = (
        "import sys; from pelagos.cli.main import main; main(['convert', '--help']); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "official|bf16" in done.stdout
