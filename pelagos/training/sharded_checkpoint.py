"""Checkpoints that every process writes its part of, by torch.distributed.checkpoint in its safetensors form.

    DIR/checkpoints/sharded-00000120/
        shard-00001-*.safetensors, ...    what each process held: "weights/NAME", "optimizer/NAME", ..., with offsets
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
from pelagos.training.checkpoint import FOLDER, _sync
from pelagos.training.parallel import Group

_NAME = re.compile(r"sharded-(\d{8})")
_MAX_STATE_BYTES = 1 << 30
PARTS = ("weights", "optimizer", "ahead")


@dataclass(frozen=True, kw_only=True)
class Shards:
    """A sound checkpoint, whose tensors are still on disk."""

    folder: Path
    state: dict[str, Any]


def save(
    out: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], group: Group
) -> Path:
    """Write the checkpoint of ``step``, replacing one of the same step. All processes must call it together.

    ``parts``: as of ``checkpoint.save``, divided tensors or whole ones that are the same everywhere.
    """
    folder = out / FOLDER / f"sharded-{step:08}"
    temporary = folder.with_name(f".{folder.name}.tmp")
    if group.is_first:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    group.barrier()
    tensors = _joined(parts)
    with _one_process_is_fine():
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)  # which syncs its files
        state_dict_saver.save(tensors, storage_writer=writer)
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
        raise CheckpointError(str(out / FOLDER), problems)
    return None


def load(shards: Shards, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Fill the tensors of some ``parts``, divided or whole; each process reads the rows it holds, and all must call it
    together. Raises CheckpointError, and changes nothing, if names, shapes or dtypes differ."""
    reader = HuggingFaceStorageReader(str(shards.folder))
    own = _joined(parts)
    saved = {name: entry for name, entry in _contents(reader).items() if name.split("/")[0] in parts}
    if problems := sorted(_misfits(own, saved)):
        raise CheckpointError(str(shards.folder), problems)
    with _one_process_is_fine():
        state_dict_loader.load(own, storage_reader=reader)


def read(shards: Shards, part: str) -> dict[str, Tensor]:
    """One part of the checkpoint, its tensors whole and in memory."""
    reader, prefix = HuggingFaceStorageReader(str(shards.folder)), f"{part}/"
    found = {name: entry for name, entry in _contents(reader).items() if name.startswith(prefix)}
    whole = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in found.items()}
    with _one_process_is_fine():
        state_dict_loader.load(whole, storage_reader=reader, no_dist=True)
    return {name.removeprefix(prefix): tensor for name, tensor in whole.items()}


def to_plain(out: Path) -> Path | None:
    """If the newest checkpoint of a run is divided, write it as checkpoint.py does, for a process alone to go on from.

    Returns the new folder; None if there is nothing to do. Raises CheckpointError as ``newest`` does.
    """
    numbers = [int(path.name[-8:]) for path in (out / FOLDER).glob("step-????????")]
    shards = newest(out, Group())
    if shards is None or shards.state["step"] <= max(numbers, default=-1):
        return None
    state = {key: value for key, value in shards.state.items() if key != "sha256"}
    return checkpoint.save(out, state["step"], {part: read(shards, part) for part in PARTS}, state)


def remove_old(out: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` divided checkpoints, and what crashes left behind."""
    for folder in _folders(out)[:-keep]:
        shutil.rmtree(folder)
    for leftover in (out / FOLDER).glob(".sharded-*.tmp"):
        shutil.rmtree(leftover)


def remove_after(out: Path, step: int) -> None:
    """Remove divided checkpoints of later steps, which a roll-back has undone."""
    for folder in _folders(out):
        if folder.name > f"sharded-{step:08}":
            shutil.rmtree(folder)


def _folders(out: Path) -> list[Path]:
    folder = out / FOLDER
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


def _joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor.detach() for part, tensors in parts.items() for name, tensor in tensors.items()}


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
