"""Which files of a checkpoint folder hold its tensors, and whether they agree with the folder's index."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pelagos.common.errors import CheckpointError, UsageError
from pelagos.common.files import read_json
from pelagos.common.paths import inside
from pelagos.model.safetensors_file import FileTensor, SafetensorsFile, open_file, show_name

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
_MAX_INDEX_BYTES = 256 << 20
_MOST_COPIED = 1 << 30  # bytes of a checkpoint that is read whole: large pages save a token 6 %, cache lines 4


@dataclass(kw_only=True)
class StoredFiles:
    """The tensors of several files, by the names the files give them.

    ``lost`` are names that should be here but are not, which is reported already; ``all_lost``: any name may be one.
    """

    paths: list[Path] = field(default_factory=list)
    tensors: dict[str, FileTensor] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    all_lost: bool = False
    _owner: dict[str, SafetensorsFile] = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor:
        return self._owner[name].tensor(name)

    def read_whole(self) -> None:
        """Have the files read into memory instead of mapped, unless that is much."""
        files = {file.path: file for file in self._owner.values()}.values()
        if sum(file.num_bytes for file in files) <= _MOST_COPIED:
            for file in files:
                file.in_own_memory = True

    def may_be_lost(self, name: str) -> bool:
        """Whether the absence of the tensor is no problem of its own."""
        return self.all_lost or name in self.lost

    def file_name(self, name: str) -> str | None:
        """The file that holds the tensor, or None."""
        owner = self._owner.get(name)
        return owner.path.name if owner else None

    def add(self, file: SafetensorsFile) -> list[str]:
        """Take in the tensors of a file; the problems are names that an earlier file has too."""
        twice = file.tensors.keys() & self.tensors.keys()
        problems = [
            f"tensor {show_name(name)} is in {self.file_name(name)} and in {file.path.name}" for name in sorted(twice)
        ]
        self.paths.append(file.path)
        self.tensors.update(file.tensors)
        self._owner.update(dict.fromkeys(file.tensors, file))
        return problems


def find_files(folder: Path) -> tuple[StoredFiles, list[str]]:
    """Open the weight files of a folder (headers only); the second value is every problem found, one sentence each."""
    files, problems = _found(folder)
    files.read_whole()
    return files, problems


def _found(folder: Path) -> tuple[StoredFiles, list[str]]:
    if (folder / INDEX_NAME).exists():
        return _files_of_index(folder)
    single = folder / SINGLE_NAME
    paths = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    files = StoredFiles()
    if not paths:
        files.all_lost = True
        return files, [f"there is no {INDEX_NAME}, no {SINGLE_NAME} and no other .safetensors file"]
    problems: list[str] = []
    for path in paths:
        file = _open(path, problems)
        if file is None:
            files.all_lost = True
        else:
            problems += files.add(file)
    return files, problems


def _open(path: Path, problems: list[str]) -> SafetensorsFile | None:
    try:
        return open_file(path)
    except CheckpointError as error:
        problems += [f"{path.name}: {problem}" for problem in error.problems]
        return None


def _files_of_index(folder: Path) -> tuple[StoredFiles, list[str]]:
    files, problems = StoredFiles(), list[str]()
    weight_map, total_size = _read_index(folder, problems)
    if weight_map is None:
        files.all_lost = True
        return files, problems
    by_file: dict[str, set[str]] = {}
    for name, file_name in weight_map.items():
        by_file.setdefault(file_name, set()).add(name)
    for file_name, names in sorted(by_file.items()):
        file = _open_listed(folder, file_name, problems)
        if file is None:
            files.lost |= names
            continue
        problems += files.add(file)
        elsewhere = names - file.tensors.keys()
        files.lost |= elsewhere
        problems += [
            f"tensor {show_name(name)} must be in {file.path.name}, where the index places it"
            for name in sorted(elsewhere)
        ]
        problems += [
            f"tensor {show_name(name)} in {file.path.name} is not in the index"
            for name in sorted(file.tensors.keys() - weight_map.keys())
        ]
    if total_size is not None and not files.lost:
        found = sum(tensor.num_bytes for tensor in files.tensors.values())
        if found != total_size:
            problems.append(f"{INDEX_NAME}: metadata.total_size must be the {found:,} bytes stored, got {total_size:,}")
    return files, problems


def _open_listed(folder: Path, file_name: str, problems: list[str]) -> SafetensorsFile | None:
    if not file_name.endswith(".safetensors"):
        problems.append(f"{INDEX_NAME}: {show_name(file_name)} must be a .safetensors file")
        return None
    try:
        path = _place(folder, file_name)
    except UsageError as error:
        problems.append(f"{INDEX_NAME}: {error}")
        return None
    if not path.exists():
        problems.append(f"{show_name(file_name)} is listed in {INDEX_NAME} but missing")
        return None
    return _open(path, problems)


def _place(folder: Path, file_name: str) -> Path:
    """``folder / file_name`` if that is inside. A snapshot of a hub cache holds links into the store beside it."""
    folder = folder.absolute()
    if folder.parent.name == "snapshots":
        return inside(folder.parent.parent, f"snapshots/{folder.name}/{file_name}")
    return inside(folder, file_name)


def _read_index(folder: Path, problems: list[str]) -> tuple[Mapping[str, str] | None, int | None]:
    """weight_map (tensor name -> file name) and total_size; None for what is absent or unusable."""
    try:
        index: Any = read_json(folder / INDEX_NAME, _MAX_INDEX_BYTES)
    except UsageError as error:
        problems.append(str(error))
        return None, None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(value, str) for value in weight_map.values()):
        problems.append(f"{INDEX_NAME}: weight_map must be an object from tensor names to file names")
        return None, None
    metadata = index.get("metadata", {})
    total_size = metadata.get("total_size") if isinstance(metadata, dict) else metadata
    if total_size is not None and type(total_size) is not int:
        problems.append(f"{INDEX_NAME}: metadata.total_size must be a whole number of bytes")
        total_size = None
    return weight_map, total_size
