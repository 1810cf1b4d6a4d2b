"""Files that are never half written, folders with one user at a time, and JSON that may come from anywhere."""

import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from pelagos.common.errors import ResourceError, UsageError

MAX_JSON_DEPTH = 100  # lists and objects within each other


@contextmanager
def atomic_path(path: Path, *, fsync: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write a file to; it becomes ``path`` when the block ends well.

    Whatever happens, ``path`` is the old file or the whole new one. After a crash a hidden ``.tmp`` file may remain.
    With ``fsync`` the new file also survives a power cut once the block has ended.
    Raises ResourceError when the disk is full and UsageError when ``path`` cannot be written.
    """
    temporary = path.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        if fsync:
            _sync(temporary)
        os.replace(temporary, path)
        if fsync:
            _sync(path.parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(f"{path} was not written: no space left in {path.parent}") from error
        if str(error.filename) in (str(temporary), str(path)):
            raise UsageError(f"{path} cannot be written: {error.strerror}") from error
        raise
    finally:
        with suppress(OSError):  # a folder that is gone must not hide the first error
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str, *, fsync: bool = False) -> None:
    """Write a whole file as ``atomic_path`` does; text is written as UTF-8, line ends as they are."""
    with atomic_path(path, fsync=fsync) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FolderLock:
    """``with FolderLock(folder):`` keeps every other FolderLock on that folder out, in this process or another.

    The operating system drops the lock when the process ends, however it ends. The file ``.lock`` stays: removing it
    would let two processes hold a lock on two files of that name. Raises ResourceError if the folder is in use and
    UsageError if it cannot be locked at all.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        assert self._descriptor is None, "this lock is held already"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self.folder / ".lock", flags, 0o644)
        except OSError as error:
            raise UsageError(f"{self.folder} cannot be locked: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):
                raise UsageError(f"{self.folder} cannot be locked: {error.strerror}") from error
            user = f"process {holder}" if holder.isdecimal() else "another process"
            raise ResourceError(f"{self.folder} is in use by {user}: stop it or choose another folder") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        self._descriptor = descriptor
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._descriptor is not None, "this lock is not held"
        os.close(self._descriptor)
        self._descriptor = None


def read_json(path: Path, max_bytes: int) -> Any:
    """The value in a JSON file of at most ``max_bytes`` bytes, as strict as ``parse_json``.

    Raises UsageError that names the file and what is wrong.
    """
    return parse_json(_read_regular_file(path, max_bytes), str(path))


def parse_json(data: bytes, source: str) -> Any:
    """The value of a JSON text (RFC 8259, UTF-8) that came from ``source``: a file's name, or what else a user knows.

    Stricter than ``json.loads``: an object may name a key once, a number must be finite, and lists and objects may lie
    within each other at most ``MAX_JSON_DEPTH`` deep. Raises UsageError that names the source and what is wrong.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} must be UTF-8 text, but byte {error.start} is not") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object_without_duplicates, parse_constant=_no_constant, parse_float=_finite_float
        )
    except RecursionError:
        raise _too_deep(source) from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"{source} must be JSON, but is not from {where} on: {error.msg}") from None
    except ValueError as error:  # from the three hooks, or Python's own limit on the digits of an integer
        raise UsageError(f"{source} must be JSON with unique keys and finite numbers: {error}") from None
    if _deeper_than(value, MAX_JSON_DEPTH):
        raise _too_deep(source)
    return value


def _read_regular_file(path: Path, max_bytes: int) -> bytes:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            raise UsageError(f"{path} must be a file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > max_bytes:
        raise UsageError(f"{path} must have at most {max_bytes:,} bytes")
    return data


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        [(key, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {key[:80]!r} stands twice in one object")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:80]} is too large for a float64")
    return number


def _deeper_than(value: Any, max_depth: int) -> bool:
    level = [[value]]  # the values of all containers at one depth
    for _ in range(max_depth + 1):
        level = [
            list(child.values()) if isinstance(child, dict) else child
            for values in level
            for child in values
            if isinstance(child, dict | list)
        ]
    return bool(level)


def _too_deep(source: str) -> UsageError:
    return UsageError(f"{source} must nest lists and objects at most {MAX_JSON_DEPTH} deep")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 lower-case hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_free(path: Path) -> int:
    """Bytes that this user may still write where ``path`` is or, if it does not exist yet, would be."""
    path = path.absolute()
    while not os.path.exists(path):  # also where a folder on the way may not be looked into
        path = path.parent
    return shutil.disk_usage(path).free
