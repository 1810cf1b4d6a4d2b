"""From one way of storing a checkpoint to another: FP4 and FP8 as released ("official"), or plain bfloat16 ("bf16").

To bf16, every matrix is decoded and rounded to bfloat16. Codes of 2 or 4 significant bits times a power of two are
exact there (down to 2^-133). To official, dense matrices become FP8 in blocks of 128 x 128 and experts FP4 in groups of
32, each block under the smallest scale that holds its largest value; other matrices and norms become bfloat16.

Values alone do not tell their scale: a block whose largest code is not the largest there is would get a smaller scale
and other codes. So a bf16 checkpoint keeps the scales it came from in a folder beside its weights, ``official_scales``,
and the way back uses them for every matrix whose values they still divide into exact codes; a matrix that was changed
in between gets new scales. There and back is therefore the identity, on codes and on scales.

The work goes file by file and needs memory for one matrix. A finished file is on disk under its own name and noted with
its checksum in a progress file; a run that was killed goes on behind it, unless the source has changed. The index and
config.json are written last: a folder without them is no checkpoint yet.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pelagos.common.errors import CheckpointError, ResourceError, UsageError
from pelagos.common.files import FolderLock, atomic_path, disk_free, read_json, sha256_file, write_atomic
from pelagos.model.checkpoint import Checkpoint, open_checkpoint
from pelagos.model.checkpoint_files import INDEX_NAME, StoredFiles, find_files
from pelagos.model.config import ModelConfig, Storage
from pelagos.model.config_json import config_to_json
from pelagos.model.recode import Recoder
from pelagos.model.safetensors_file import StreamingWriter, show_name
from pelagos.model.tensors import StoredSpec, stored_tensors, tensor_specs

Target = Literal["official", "bf16"]
Progress = Callable[[int, int], None]  # bytes done, bytes in all

SCALES_FOLDER = "official_scales"
PROGRESS_NAME = "convert-progress.json"
MAX_SHARD_BYTES = 5_000_000_000
_STORAGE: Mapping[Target, Storage] = {"official": "official", "bf16": "bfloat16"}
_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "effort_levels.json",
    "LICENSE",
    "README.md",
)
_SHARD_GLOB = "model-*-of-*.safetensors"
_TEMPORARY_GLOB = "." + "[0-9a-f]" * 16 + ".tmp"  # what a killed atomic_path leaves behind
_HEADER_BYTES = 256  # of one tensor in a file's header, about


@dataclass(frozen=True, kw_only=True)
class ConvertReport:
    """What a conversion wrote. ``num_resumed_files`` were there already, from a run that was killed."""

    folder: Path
    num_files: int
    num_tensors: int
    num_bytes: int
    num_resumed_files: int
    ignored: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Output:
    """One file to write. ``name`` is its place in the folder."""

    name: str
    tensors: tuple[StoredSpec, ...]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.tensors)


def convert(
    src: Path,
    dst: Path,
    to: Target,
    *,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> ConvertReport:
    """Write the checkpoint of ``src`` to the folder ``dst`` in another storage, or go on where a killed run stopped.

    ``force`` replaces a complete checkpoint, or writes into a folder with other things in it. Files have about
    ``max_shard_bytes``. Raises UsageError for unusable folders, ResourceError where the disk is too small or ``dst`` is
    in use, CheckpointError for an unsound source or values that the target cannot hold.
    """
    if to not in _STORAGE:
        raise UsageError(f"to must be one of {', '.join(_STORAGE)}, got {to!r}")
    if max_shard_bytes < 1:
        raise UsageError(f"max_shard_bytes must be at least 1, got {max_shard_bytes}")
    checkpoint = open_checkpoint(src)
    if dst.exists() and dst.samefile(src):
        raise UsageError(f"{dst} must be another folder than the source")
    _check_folder(dst, force=force)
    config = replace(checkpoint.config, storage=_STORAGE[to])
    old_scales = _read_old_scales(src, config) if to == "official" else StoredFiles()
    outputs = _plan(checkpoint, config, max_shard_bytes)
    source = _Source(checkpoint=checkpoint, old_scales=old_scales, options=f"{to} {max_shard_bytes}")
    dst.mkdir(parents=True, exist_ok=True)
    with FolderLock(dst):
        done = _finished(dst, source.fingerprint())
        num_resumed_files = len(done)
        _make_room(dst, outputs, done)
        _write_outputs(dst, outputs, done, source, progress)
        _complete(src, dst, config, outputs)
    return ConvertReport(
        folder=dst,
        num_files=len(outputs),
        num_tensors=sum(len(output.tensors) for output in outputs),
        num_bytes=sum(output.num_bytes for output in outputs),
        num_resumed_files=num_resumed_files,
        ignored=checkpoint.ignored,
        notes=checkpoint.notes,
    )


def _check_folder(dst: Path, *, force: bool) -> None:
    if not dst.exists():
        return
    if not dst.is_dir():
        raise UsageError(f"{dst} must be a folder, or not exist yet")
    if force or (dst / PROGRESS_NAME).exists():
        return
    if (dst / INDEX_NAME).exists() and (dst / "config.json").exists():
        raise UsageError(f"{dst} holds a complete checkpoint: choose another folder, or replace it with --force")
    if any(path.name != ".lock" and not path.match(_TEMPORARY_GLOB) for path in dst.iterdir()):
        raise UsageError(f"{dst} is not empty: choose another folder, or write into it with --force")


def _read_old_scales(src: Path, config: ModelConfig) -> StoredFiles:
    """The scales that a bf16 checkpoint keeps; checked like everything in a checkpoint."""
    folder = src / SCALES_FOLDER
    if not folder.is_dir():
        return StoredFiles()
    files, problems = find_files(folder)
    expected = {spec.name: spec for spec in stored_tensors(config) if spec.name.endswith(".scale")}
    for name, found in files.tensors.items():
        if name not in expected:
            problems.append(f"unexpected tensor {show_name(name)}")
        elif (found.dtype, found.shape) != (expected[name].dtype, expected[name].shape):
            wanted = expected[name]
            problems.append(
                f"tensor {name} must be {wanted.dtype} {list(wanted.shape)}, got {found.dtype} {list(found.shape)}"
            )
    if problems:
        raise CheckpointError(str(folder), problems)
    return files


def _plan(checkpoint: Checkpoint, config: ModelConfig, max_shard_bytes: int) -> list[_Output]:
    """The files to write: weights in order, each file's old scales (to bf16) before it."""
    shards: list[list[StoredSpec]] = []
    size = max_shard_bytes
    for spec in stored_tensors(config):
        if size + spec.num_bytes > max_shard_bytes and not spec.name.endswith(".scale"):  # stays with its weight
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    keep = _official_scales(checkpoint) if config.storage == "bfloat16" else {}
    outputs = []
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        scales = tuple(keep[spec.name] for spec in shard if spec.name in keep)
        if scales:
            outputs.append(_Output(name=f"{SCALES_FOLDER}/{name}", tensors=scales))
        outputs.append(_Output(name=name, tensors=tuple(shard)))
    return outputs


def _official_scales(checkpoint: Checkpoint) -> dict[str, StoredSpec]:
    """The scales of every weight that is stored in its official format, by the name of the weight."""
    codes = {"dense": ("F8_E4M3",), "expert": ("I8", "U8")}
    scales = {}
    for spec in tensor_specs(checkpoint.config):
        if checkpoint.stored[spec.name].dtype in codes.get(spec.role, ()):
            scale = checkpoint.stored[f"{spec.name.removesuffix('.weight')}.scale"]
            if scale.dtype == "F8_E8M0":
                scales[spec.name] = scale
    return scales


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What a conversion reads, and what it was asked to do with it."""

    checkpoint: Checkpoint
    old_scales: StoredFiles
    options: str

    def fingerprint(self) -> str:
        """Changes when the config, the size or time of a file, or the options do."""
        stats = [(path.name, path.stat()) for path in (*self.checkpoint.paths, *self.old_scales.paths)]
        state = [
            self.options,
            (self.checkpoint.folder / "config.json").read_text(),
            [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats],
        ]
        return hashlib.sha256(json.dumps(state).encode()).hexdigest()


_Finished = dict[str, dict[str, Any]]  # file name -> {"bytes", "sha256"}


def _finished(dst: Path, fingerprint: str) -> _Finished:
    """The files of an earlier run on the same source that are still what they were."""
    with suppress(UsageError, KeyError, TypeError, AttributeError):  # no such file, or not one that we wrote
        progress = read_json(dst / PROGRESS_NAME, 64 << 20)
        if progress["source"] == fingerprint:
            return {name: note for name, note in progress["files"].items() if _is_intact(dst / name, note)}
    return {}


def _is_intact(path: Path, note: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == note["bytes"] and sha256_file(path) == note["sha256"]


def _make_room(dst: Path, outputs: Sequence[_Output], done: _Finished) -> None:
    """Check the disk, then remove what an older checkpoint or a killed run left. The folder is no checkpoint then."""
    old = [dst / "config.json", dst / INDEX_NAME]
    for folder in (dst, dst / SCALES_FOLDER):
        old += [path for path in folder.glob(_SHARD_GLOB) if str(path.relative_to(dst)) not in done]
        old += folder.glob(_TEMPORARY_GLOB)
    old = [path for path in old if path.is_file()]
    missing = [output for output in outputs if output.name not in done]
    needed = sum(output.num_bytes + _HEADER_BYTES * len(output.tensors) for output in missing)
    free = disk_free(dst) + sum(path.stat().st_size for path in old)
    if needed > free:
        raise ResourceError(f"{dst} needs {needed / 1e9:.1f} GB of disk space, but only {free / 1e9:.1f} GB are free")
    for path in old:
        path.unlink()


def _write_outputs(
    dst: Path, outputs: Sequence[_Output], done: _Finished, source: _Source, progress: Progress | None
) -> None:
    fingerprint = source.fingerprint()
    old_scales = {name: source.old_scales.tensor(name) for name in source.old_scales.tensors}
    recoder = Recoder(source.checkpoint, old_scales)
    total = sum(output.num_bytes for output in outputs)
    num_done = 0

    def advance(num_bytes: int) -> None:
        nonlocal num_done
        num_done += num_bytes
        if progress is not None:
            progress(num_done, total)

    def note_progress() -> None:
        note = json.dumps({"source": fingerprint, "files": done}, indent=1)
        write_atomic(dst / PROGRESS_NAME, note, fsync=True)

    note_progress()
    for output in outputs:
        if output.name in done:
            advance(output.num_bytes)
            continue
        path = dst / output.name
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path, fsync=True) as temporary:
            sha256 = _write(temporary, output, recoder, advance)
        done[output.name] = {"bytes": path.stat().st_size, "sha256": sha256}
        note_progress()
    if source.fingerprint() != fingerprint:
        raise CheckpointError(str(source.checkpoint.folder), ["has changed while it was converted: start again"])


def _write(path: Path, output: _Output, recoder: Recoder, advance: Callable[[int], None]) -> str:
    wanted = {tensor.name: tensor for tensor in output.tensors}
    with StreamingWriter(path, {name: (tensor.dtype, tensor.shape) for name, tensor in wanted.items()}) as writer:
        for name in writer.order:
            for piece in recoder.pieces(wanted[name]):
                writer.write(name, piece)
                advance(piece.nbytes)
    return writer.sha256


def _complete(src: Path, dst: Path, config: ModelConfig, outputs: Sequence[_Output]) -> None:
    """Everything but the weights; config.json makes the folder a checkpoint."""
    for name in _COPIED:
        if (src / name).is_file():
            with atomic_path(dst / name, fsync=True) as temporary:
                shutil.copyfile(src / name, temporary)
    weights = [output for output in outputs if "/" not in output.name]
    index = {
        "metadata": {"total_size": sum(output.num_bytes for output in weights)},
        "weight_map": {tensor.name: output.name for output in weights for tensor in output.tensors},
    }
    write_atomic(dst / INDEX_NAME, json.dumps(index, indent=2) + "\n", fsync=True)
    # What DSpark's blocks need beyond their tensors is not part of a ModelConfig: it goes over as it is.
    dspark = {key: value for key, value in read_json(src / "config.json", 1 << 20).items() if key.startswith("dspark_")}
    data = {**config_to_json(config), **dspark}
    write_atomic(dst / "config.json", json.dumps(data, indent=2) + "\n", fsync=True)
    (dst / PROGRESS_NAME).unlink()
