"""Checkpoints that every process writes its part of, by torch.distributed.checkpoint in its safetensors form.

    DIR/checkpoints/sharded-00000120/
        shard-00001-*.safetensors, ...    what each process held: "weights/NAME" and "optimizer/NAME", rows and offsets
        state.json                        as in checkpoint.py, with the checksum of each file

Any number of processes reads what another number wrote, and ``to_plain`` makes the files of checkpoint.py of it. All
processes must see one file system. As there, a folder gets its name when all of it is on disk.
"""

import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from pelagos.common.errors import CheckpointError
from pelagos.common.files import read_json, sha256_file, write_atomic
from pelagos.training import checkpoint
from pelagos.training.checkpoint import _sync
from pelagos.training.parallel import Group

_FOLDER = "checkpoints"
_NAME = re.compile(r"sharded-(\d{8})")
_MAX_STATE_BYTES = 1 << 30
_PARTS = ("weights", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A sound checkpoint, whose tensors are still on disk."""

    folder: Path
    state: dict[str, Any]


def save(
    out: Path,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    group: Group,
) -> Path:
    """Write the checkpoint of ``step``, replacing one of the same step. All processes must call it together."""
    folder = out / _FOLDER / f"sharded-{step:08}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if group.is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    group.barrier()
    tensors = _joined(weights, optimizer)
    with _one_process_is_fine():
        state_dict_saver.save(
            tensors, storage_writer=HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        )  # syncs files
    group.barrier()
    if group.is_first:
        checksums = {path.name: sha256_file(path) for path in sorted(temporary.glob("*.safetensors"))}
        write_atomic(temporary / "state.json", json.dumps({**state, "sha256": checksums}), fsync=True)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
        _sync(folder.parent)
    group.barrier()
    return folder


def newest(out: Path, group: Group) -> Shards | None:
    """The newest checkpoint, or None if there is none. Each process checks its part of the files; all must call it
    together. Raises CheckpointError, with the problems of each, when there are checkpoints and none is sound."""
    problems = []
    for folder in reversed(_folders(out)):
        state, problem = None, "another process found it damaged"
        try:
            state = _checked_state(folder, group)
        except (CheckpointError, ValueError, OSError) as error:
            problem = str(error)
        if not group.agree(state is None) and state is not None:
            return Shards(folder=folder, state=state)
        problems.append(f"{folder.name}: {problem}")
    if problems:
        raise CheckpointError(str(out / _FOLDER), problems)
    return None


def load(shards: Shards, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> None:
    """Fill tensors, divided or whole, from a checkpoint; each process reads the rows it holds, and all must call it
    together. Raises CheckpointError, and changes nothing, if names, shapes or dtypes differ."""
    reader = HuggingFaceStorageReader(str(shards.folder))
    own = _joined(weights, optimizer)
    if problems := sorted(_misfits(own, _contents(reader))):
        raise CheckpointError(str(shards.folder), problems)
    with _one_process_is_fine():
        state_dict_loader.load(own, storage_reader=reader)


def read(shards: Shards) -> checkpoint.Saved:
    """The checkpoint as one process holds it, tensors whole and in memory."""
    reader = HuggingFaceStorageReader(str(shards.folder))
    whole = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in _contents(reader).items()}
    with _one_process_is_fine():
        state_dict_loader.load(whole, storage_reader=reader, no_dist=True)
    parts = {
        part: {name.removeprefix(f"{part}/"): tensor for name, tensor in whole.items() if name.startswith(f"{part}/")}
        for part in _PARTS
    }
    state = {key: value for key, value in shards.state.items() if key != "sha256"}
    return checkpoint.Saved(weights=parts["weights"], optimizer=parts["optimizer"], state=state)


def to_plain(out: Path) -> Path | None:
    """If the newest checkpoint of a run is divided, write it as checkpoint.py does, for a process alone to go on from.

    Returns the new folder; None if there is nothing to do. Raises CheckpointError as ``newest`` does.
    """
    numbers = [int(path.name[-8:]) for path in (out / _FOLDER).glob("step-????????")]
    shards = newest(out, Group())
    if shards is None or shards.state["step"] <= max(numbers, default=-1):
        return None
    saved = read(shards)
    return checkpoint.save(out, saved.state["step"], saved.weights, saved.optimizer, saved.state)


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` divided checkpoints, and what crashes left behind."""
    for folder in _folders(out)[:-keep]:
        shutil.rmtree(folder)
    for leftover in (out / _FOLDER).glob(".sharded-*.tmp"):
        shutil.rmtree(leftover)


def _folders(out: Path) -> list[Path]:
    folder = out / _FOLDER
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.is_dir() else []


def _checked_state(folder: Path, group: Group) -> dict[str, Any]:
    state: dict[str, Any] = read_json(folder / "state.json", _MAX_STATE_BYTES)
    checksums = state["sha256"]
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    if found != sorted(checksums):
        raise CheckpointError(str(folder), [f"it must hold the files {sorted(checksums)}, got {found}"])
    for name in found[group.rank :: group.num_ranks]:
        if sha256_file(folder / name) != checksums[name]:
            raise CheckpointError(str(folder / name), ["its checksum is not the one in state.json"])
    return state


def _joined(weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = zip(_PARTS, (weights, optimizer), strict=True)
    return {f"{part}/{name}": tensor.detach() for part, tensors in parts for name, tensor in tensors.items()}


def _contents(reader: HuggingFaceStorageReader) -> dict[str, TensorStorageMetadata]:
    entries = reader.read_metadata().state_dict_metadata
    return {name: entry for name, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}


def _misfits(own: Mapping[str, Tensor], saved: Mapping[str, TensorStorageMetadata]) -> Iterator[str]:
    yield from (f"missing {name}" for name in own.keys() - saved.keys())
    yield from (f"unexpected {name}" for name in saved.keys() - own.keys())
    for name in own.keys() & saved.keys():
        tensor, found = own[name], saved[name]
        if tensor.shape != found.size or tensor.dtype != found.properties.dtype:
            got = f"{found.properties.dtype} {list(found.size)}"
            yield f"{name} must be {tensor.dtype} {list(tensor.shape)}, got {got}"


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    """torch warns where there is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
