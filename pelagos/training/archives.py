"""Reading the files of Debian packages, wheels and folders in memory, wary of what an archive may hold.

Nothing is installed or unpacked. A member whose name leaves the folder it would be unpacked to makes the whole archive
refused, wanted or not; sizes are bounded before memory is taken.
"""

import fnmatch
import os
import re
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from pelagos.common.errors import UsageError

MAX_MEMBER_BYTES = 64 << 20
MAX_TOTAL_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of an archive or folder: its relative name with '/' between the parts, and its bytes."""

    name: str
    data: bytes


def matcher(include: Sequence[str], exclude: Sequence[str]) -> Callable[[str], bool]:
    """Whether a name matches a pattern of ``include`` and none of ``exclude``; case counts, '*' also matches '/'."""
    wanted, unwanted = ([re.compile(fnmatch.translate(p)) for p in patterns] for patterns in (include, exclude))
    return lambda name: any(p.match(name) for p in wanted) and not any(p.match(name) for p in unwanted)


def read_members(path: Path, wanted: Callable[[str], bool]) -> list[Member]:
    """The regular files of an archive (.deb, .whl, .zip) or a folder that ``wanted`` names, sorted by name.

    Raises UsageError for an archive that is broken, too large, or holds a name that leaves its folder.
    """
    if path.is_dir():
        found = _folder_members(path, wanted)
    elif path.suffix == ".deb":
        found = _debian_members(path, wanted)
    else:
        found = _zip_members(path, wanted)
    members, total = [], 0
    for member in found:
        total += len(member.data)
        if total > MAX_TOTAL_BYTES:
            raise UsageError(f"{path} holds more than {MAX_TOTAL_BYTES >> 20} MiB of wanted files")
        members.append(member)
    return sorted(members, key=lambda member: member.name)


def folder_files(folder: Path, wanted: Callable[[str], bool]) -> list[tuple[str, Path]]:
    """Names and paths of the regular files under ``folder`` that ``wanted`` names, sorted; links are not followed."""
    found = []
    for place, _, files in os.walk(folder):
        for file in files:
            path = Path(place, file)
            name = path.relative_to(folder).as_posix()
            if wanted(name) and path.is_file() and not path.is_symlink():
                found.append((name, path))
    return sorted(found)


def read_file(name: str, path: Path) -> Member:
    """A file of at most MAX_MEMBER_BYTES as a member called ``name``. Raises UsageError if it is larger."""
    with path.open("rb") as file:
        return Member(name=name, data=_read(file, path.stat().st_size, str(path)))


def _folder_members(folder: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    for name, path in folder_files(folder, wanted):
        yield read_file(name, path)


def _debian_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    command = ["dpkg-deb", "--fsys-tarfile", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for info in archive:
                    name = _safe(info.name, path)
                    if info.isfile() and wanted(name):
                        file = archive.extractfile(info)
                        assert file is not None
                        yield Member(name=name, data=_read(file, info.size, f"{path}, member {name}"))
            while process.stdout.read(1 << 16):  # what follows the end of the archive
                pass
            if process.wait():
                raise UsageError(f"{path} is a damaged Debian package")
        except tarfile.TarError as error:
            raise UsageError(f"{path} is not a Debian package that can be read: {error}") from None
        finally:
            process.kill()  # it may still want to write what nobody will read


def _zip_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = _safe(info.filename, path)
                if not info.is_dir() and wanted(name):
                    with archive.open(info) as file:
                        yield Member(name=name, data=_read(file, info.file_size, f"{path}, member {name}"))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise UsageError(f"{path} is not a wheel or zip file that can be read: {error}") from None


def _safe(name: str, archive: Path) -> str:
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise UsageError(f"{archive} holds the member {name[:200]!r}, which leaves the folder it would be unpacked to")
    return "/".join(parts)


def _read(file: IO[bytes], size: int, place: str) -> bytes:
    data = file.read(MAX_MEMBER_BYTES + 1) if size <= MAX_MEMBER_BYTES else b""
    if size > MAX_MEMBER_BYTES or len(data) > MAX_MEMBER_BYTES:
        raise UsageError(f"{place} is larger than {MAX_MEMBER_BYTES >> 20} MiB")
    return data
