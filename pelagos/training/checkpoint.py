"""State of a run on disk: all that is needed to go on to the bit.

    DIR/checkpoints/step-00000120/
        weights.safetensors      parameters and router biases, float32, hash tables; module names
        optimizer.safetensors    momenta, moments, step counts
        ahead.safetensors        batches fetched before their step, with the experts chosen for them; mostly empty
        state.json               step, tokens, data cursor, detector, digest of the config, checksums of the files

A checkpoint is written under a temporary name and renamed when all of it is on disk, so a crash costs at most the one
being written. The newest sound one is used; older ones than ``keep`` are removed.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError
from pelagos.common.files import read_json, sha256_file, write_atomic
from pelagos.model.safetensors_file import DTYPES, StreamingWriter, open_file

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})")
_PARTS = ("weights", "optimizer", "ahead")
_MAX_STATE_BYTES = 1 << 30
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that was read. Tensors are views of its files."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    ahead: dict[str, Tensor]
    state: dict[str, Any]


def save(out: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step``, replacing one of the same step. ``parts``: the three files' tensors."""
    folder = out / FOLDER / f"step-{step:08}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    checksums = {}
    for name, tensors in parts.items():
        specs = {key: (_DTYPE_NAMES[tensor.dtype], tuple(tensor.shape)) for key, tensor in tensors.items()}
        with StreamingWriter(temporary / f"{name}.safetensors", specs) as writer:
            for key in writer.order:
                writer.write(key, tensors[key].cpu())
        checksums[name] = writer.sha256
    write_atomic(temporary / "state.json", json.dumps({**state, "sha256": checksums}), fsync=True)
    for path in temporary.iterdir():
        _sync(path)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(temporary, folder)
    _sync(folder.parent)
    return folder


def newest(out: Path) -> Saved | None:
    """The newest checkpoint, or None if there is none. Raises CheckpointError, with the problems of each, when there
    are checkpoints and none is sound."""
    problems = []
    for folder in reversed(_folders(out)):
        try:
            return _read(folder)
        except (CheckpointError, ValueError, OSError) as error:
            problems.append(f"{folder.name}: {error}")
    if problems:
        raise CheckpointError(str(out / FOLDER), problems)
    return None


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest ``keep``, and what crashes left behind."""
    for folder in _folders(out)[:-keep]:
        shutil.rmtree(folder)
    for leftover in (out / FOLDER).glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def remove_after(out: Path, step: int) -> None:
    """Remove checkpoints of later steps, which a roll-back has undone."""
    for folder in _folders(out):
        if folder.name > f"step-{step:08}":
            shutil.rmtree(folder)


def remove_all(out: Path) -> None:
    """Remove every checkpoint, for a run that starts over."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def _folders(out: Path) -> list[Path]:
    folder = out / FOLDER
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def _read(folder: Path) -> Saved:
    state = read_json(folder / "state.json", _MAX_STATE_BYTES)
    tensors = {}
    for name in _PARTS:
        path = folder / f"{name}.safetensors"
        if sha256_file(path) != state["sha256"][name]:
            raise CheckpointError(str(path), ["its checksum is not the one in state.json"])
        file = open_file(path)
        tensors[name] = {key: file.tensor(key) for key in file.tensors}
    return Saved(**tensors, state=state)


@torch.no_grad()
def load_weights(own: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy saved weights into ``own``. Raises CheckpointError, and changes nothing, if names or shapes differ."""
    problems = [f"missing {name}" for name in own.keys() - saved.keys()]
    problems += [f"unexpected {name}" for name in saved.keys() - own.keys()]
    problems += [
        f"{name}: shape must be {list(own[name].shape)}, got {list(saved[name].shape)}"
        for name in own.keys() & saved.keys()
        if own[name].shape != saved[name].shape
    ]
    if problems:
        raise CheckpointError("saved weights", sorted(problems))
    for name, tensor in own.items():
        tensor.copy_(saved[name])


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
