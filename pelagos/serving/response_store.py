"""Stored responses: one file each, written whole or not at all, the oldest dropped when there are too many.

A record is ``{"key", "previous", "input", "response"}``: whose it is, which response it goes on from, the input items
of that request alone, and the response with its output items. Whoever asks for a record of another key gets none.
"""

import json
import logging
import re
import threading
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

from pelagos.common.errors import ConfigError, PelagosError, UsageError
from pelagos.common.files import read_json, write_atomic

logger = logging.getLogger(__name__)

ID = re.compile(r"resp_[0-9a-f]{24}")
MAX_RECORD_BYTES = 1 << 30


class ResponseStore:
    """Records by the id of their response; safe between threads. Without a folder they live as long as the process."""

    def __init__(self, folder: Path | None, *, max_count: int, max_bytes: int) -> None:
        """Raises ConfigError if the folder cannot be used."""
        self._folder = folder
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()  # oldest first
        self._memory: dict[str, bytes] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                found = [path for path in folder.iterdir() if path.suffix == ".json" and ID.fullmatch(path.stem)]
                for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
                    self._sizes[path.stem] = path.stat().st_size
            except OSError as error:
                raise ConfigError(f"store_dir {folder} cannot be used: {error.strerror}") from error
        self._drop_oldest()

    def put(self, record: dict[str, Any]) -> None:
        """Store a record, or replace it. One that cannot be written is logged and lost: the answer was sent all the
        same."""
        response_id = record["response"]["id"]
        assert ID.fullmatch(response_id)
        data = json.dumps(record, ensure_ascii=False).encode(errors="replace")
        with self._lock:
            if self._folder is None:
                self._memory[response_id] = data
            else:
                try:
                    write_atomic(self._folder / f"{response_id}.json", data)
                except (PelagosError, OSError) as error:
                    logger.error("response %s is not stored: %s", response_id, error)
                    return
            self._sizes.pop(response_id, None)
            self._sizes[response_id] = len(data)
        self._drop_oldest()

    def get(self, response_id: str, key: str) -> dict[str, Any] | None:
        """The record, None if there is none that this key may see."""
        if not ID.fullmatch(response_id):
            return None
        with self._lock:
            if response_id not in self._sizes:
                return None
            data = self._memory.get(response_id)
        try:
            if self._folder is None:
                record = json.loads(data or b"null")
            else:
                record = read_json(self._folder / f"{response_id}.json", MAX_RECORD_BYTES)
        except UsageError as error:
            logger.error("stored response %s cannot be used: %s", response_id, error)
            return None
        whole = isinstance(record, dict) and {"key", "previous", "input", "response"} <= record.keys()
        return record if whole and record["key"] == key else None

    def delete(self, response_id: str, key: str) -> bool:
        """Whether there was one."""
        if self.get(response_id, key) is None:
            return False
        with self._lock:
            self._remove(response_id)
        return True

    def __len__(self) -> int:
        return len(self._sizes)

    def _drop_oldest(self) -> None:
        with self._lock:
            total = sum(self._sizes.values())
            while len(self._sizes) > self._max_count or (total > self._max_bytes and len(self._sizes) > 1):
                oldest, size = next(iter(self._sizes.items()))
                total -= size
                self._remove(oldest)

    def _remove(self, response_id: str) -> None:
        self._sizes.pop(response_id, None)
        self._memory.pop(response_id, None)
        if self._folder is not None:
            with suppress(OSError):
                (self._folder / f"{response_id}.json").unlink(missing_ok=True)
