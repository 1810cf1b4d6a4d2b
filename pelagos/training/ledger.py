"""What a long preparation has finished already, so that it can go on where it was stopped."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelagos.common.errors import UsageError
from pelagos.common.files import read_json, write_atomic
from pelagos.common.paths import inside

FILE_NAME = "state.json"
MAX_FILE_BYTES = 16 << 20


class Ledger:
    """Finished steps, in ``state.json`` of a folder. A step counts while its inputs and the sizes of its files agree.

    Raises UsageError if the folder's state belongs to another config or is damaged; with ``force`` the new config takes
    its place, and steps whose inputs are still the same stay finished.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, force: bool) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME
        config = json.loads(json.dumps(config))  # as it will be read again
        self._state: dict[str, Any] = {"config": config, "steps": {}}
        if self._path.exists():
            state = self._read(force)
            if state["config"] != config and not force:
                raise UsageError(f"{folder} was prepared with another config: use force to replace it")
            self._state["steps"] = state["steps"]
        self._save()

    def _read(self, force: bool) -> dict[str, Any]:
        try:
            state = read_json(self._path, MAX_FILE_BYTES)
            for entry in state["steps"].values():
                _, _ = entry["inputs"], entry["facts"]
                for name in entry["files"]:
                    inside(self._folder, name)
            return {"config": state["config"], "steps": state["steps"]}
        except (UsageError, KeyError, TypeError, AttributeError) as error:
            if force:
                return {"config": None, "steps": {}}
            raise UsageError(f"{self._path} is damaged: use force to prepare everything again") from error

    def facts(self, step: str, inputs: object) -> Any | None:
        """What was recorded for a finished step; None if it must be done, again or for the first time."""
        entry = self._state["steps"].get(step)
        if entry is None or entry["inputs"] != _digest(inputs):
            return None
        for name, num_bytes in entry["files"].items():
            path = self._folder / name
            if not path.is_file() or path.stat().st_size != num_bytes:
                return None
        return entry["facts"]

    def record(self, step: str, inputs: object, files: Sequence[Path], facts: object) -> None:
        """A step is finished: ``files`` were written; ``facts`` are JSON values about them."""
        sizes = {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in files}
        entry = {"inputs": _digest(inputs), "files": sizes, "facts": facts}
        self._state["steps"][step] = entry
        self._save()

    def keep_only(self, steps: Sequence[str]) -> None:
        """Forget other steps and remove their files."""
        for step in set(self._state["steps"]) - set(steps):
            for name in self._state["steps"].pop(step)["files"]:
                (self._folder / name).unlink(missing_ok=True)
        self._save()

    def _save(self) -> None:
        write_atomic(self._path, json.dumps(self._state, indent=1, sort_keys=True) + "\n")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
