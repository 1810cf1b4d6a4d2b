"""Stored responses.

A record is ``{"key", "previous", "input", "response"}``: whose it is, which response it goes on from, the input items
of that request alone, and the response with its output items. Whoever asks for a record of another key gets none.
"""

import re
from pathlib import Path
from typing import Any

from pelagos.serving.record_store import RecordStore

ID = re.compile(r"resp_[0-9a-f]{24}")


class ResponseStore:
    """Records by the id of their response; safe between threads."""

    def __init__(self, folder: Path | None, *, max_count: int, max_bytes: int) -> None:
        """Raises ConfigError if the folder cannot be used."""
        self._records = RecordStore(folder, ID, max_count=max_count, max_bytes=max_bytes)

    def put(self, record: dict[str, Any]) -> None:
        """Store a record, or replace it. One that cannot be written is logged and lost: the answer was sent all the
        same."""
        self._records.put(record["response"]["id"], record)

    def get(self, response_id: str, key: str) -> dict[str, Any] | None:
        """The record, None if there is none that this key may see."""
        record = self._records.get(response_id)
        whole = record is not None and {"key", "previous", "input", "response"} <= record.keys()
        return record if whole and record is not None and record["key"] == key else None

    def delete(self, response_id: str, key: str) -> bool:
        """Whether there was one."""
        if self.get(response_id, key) is None:
            return False
        self._records.remove(response_id)
        return True

    def __len__(self) -> int:
        return len(self._records)
