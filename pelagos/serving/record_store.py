"""JSON records in a folder or in memory: one file each, written whole or not at all, the oldest dropped when there are
too many."""

import json
import logging
import os
import re
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from pelagos.common.errors import ConfigError, PelagosError, UsageError
from pelagos.common.files import read_json, write_atomic

logger = logging.getLogger(__name__)

MAX_RECORD_BYTES = 1 << 30
LEFT_OVER_SECONDS = 60.0


class RecordStore:
    """Records by name; safe between threads. Without a folder they live as long as the process.

    A record is an object. One that cannot be written or read is logged and counts as not there.
    """

    def __init__(self, folder: Path | None, names: re.Pattern[str], *, max_count: int, max_bytes: int) -> None:
        """``names``: what a record's name looks like; other files of the folder are left alone. Raises ConfigError if
        the folder cannot be used."""
        self._folder = folder
        self._names = names
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # oldest first
        self._num_bytes = 0
        self._memory: dict[str, bytes] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _sweep(folder)
                found = [path for path in folder.iterdir() if path.suffix == ".json" and names.fullmatch(path.stem)]
                for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
                    self._add(path.stem, path.stat().st_size)
            except OSError as error:
                raise ConfigError(f"store_dir {folder} cannot be used: {error.strerror}") from error
        with self._lock:
            self._drop_oldest()

    def put(self, name: str, record: dict[str, Any]) -> None:
        """Store a record, or replace it."""
        assert self._names.fullmatch(name)
        data = json.dumps(record, ensure_ascii=False).encode(errors="replace")
        with self._lock:
            if self._folder is None:
                self._memory[name] = data
            else:
                try:
                    write_atomic(self._folder / f"{name}.json", data)
                except (PelagosError, OSError) as error:
                    logger.error("record %s is not stored: %s", name, error)
                    return
            self._add(name, len(data))
            self._drop_oldest()

    def get(self, name: str) -> dict[str, Any] | None:
        """The record, None if there is none."""
        with self._lock:
            if name not in self._sizes:
                return None
            data = self._memory.get(name)
        try:
            record = json.loads(data or b"null") if self._folder is None else self._read(self._folder, name)
        except UsageError as error:
            logger.error("stored record %s cannot be used: %s", name, error)
            return None
        return record if isinstance(record, dict) else None

    def use(self, name: str) -> None:
        """Make a record the newest: it was of use again."""
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
                if self._folder is not None:
                    with suppress(OSError):
                        os.utime(self._folder / f"{name}.json")

    def remove(self, name: str) -> None:
        """Forget a record, if there is one."""
        with self._lock:
            self._remove(name)

    def __len__(self) -> int:
        return len(self._sizes)

    def _read(self, folder: Path, name: str) -> Any:
        return read_json(folder / f"{name}.json", MAX_RECORD_BYTES)

    def _add(self, name: str, size: int) -> None:
        self._num_bytes += size - self._sizes.pop(name, 0)
        self._sizes[name] = size

    def _drop_oldest(self) -> None:
        while len(self._sizes) > self._max_count or (self._num_bytes > self._max_bytes and len(self._sizes) > 1):
            self._remove(next(iter(self._sizes)))

    def _remove(self, name: str) -> None:
        self._num_bytes -= self._sizes.pop(name, 0)
        self._memory.pop(name, None)
        if self._folder is not None and self._names.fullmatch(name):
            with suppress(OSError):
                (self._folder / f"{name}.json").unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed; a young file may be one that is being written."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFT_OVER_SECONDS:
                path.unlink()
