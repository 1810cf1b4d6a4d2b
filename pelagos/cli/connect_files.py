"""Settings of another program, changed with care: a backup first, everything else as it was, never half a file."""

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pelagos.cli.connect_clients import JsonFile, OwnFile, Setup, YamlFile
from pelagos.common.errors import PelagosError, UsageError
from pelagos.common.files import atomic_path, read_json

MAX_BYTES = 4 << 20


def write_setup(setup: Setup) -> Iterator[str]:
    """Write all files of a setup, and yield what was done. Every file is checked before the first one is changed.

    Raises UsageError for a client that reads no file, and for a file that cannot be changed without losing something
    in it; then nothing was written.
    """
    if not setup.files:
        raise UsageError(
            f"{setup.client} reads its settings from variables of the shell: leave --write out to see them"
        )
    for file, text in [(file, _changed(file)) for file in setup.files]:
        yield from _write(file.path, text)


def _changed(file: JsonFile | YamlFile | OwnFile) -> str:
    """The file's new text."""
    if isinstance(file, OwnFile):
        return file.text
    if isinstance(file, YamlFile):
        return _yaml_with(file)
    return _json_with(file)


def _json_with(file: JsonFile) -> str:
    old: Any = {}
    if file.path.with_suffix(".jsonc").exists():
        raise UsageError(f"{file.path.with_suffix('.jsonc')} has the settings: put there what is shown without --write")
    if file.path.exists() and file.path.stat().st_size > 0:
        try:
            old = read_json(file.path, MAX_BYTES)
        except PelagosError as error:
            raise UsageError(f"{error}; nothing was written: put there by hand what is shown without --write") from None
    new = _merged(old, file.values, file.path)
    return json.dumps({**file.optional, **new}, indent=2, ensure_ascii=False) + "\n"


def _merged(old: Any, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """``old`` with ``values`` in it: objects are joined, anything else is replaced."""
    if not isinstance(old, dict):
        raise UsageError(f"{path} must hold a JSON object where the settings go; nothing was written")
    joined = {
        key: _merged(old[key], value, path) if isinstance(value, Mapping) and isinstance(old.get(key), dict) else value
        for key, value in values.items()
    }
    for key, value in values.items():
        if isinstance(value, Mapping) and key in old and not isinstance(old[key], dict):
            raise UsageError(f"{path} has something else than an object as {key!r}; nothing was written")
    return {**old, **joined}


def _yaml_with(file: YamlFile) -> str:
    """The lines of the keys replaced where they stand, or added at the end; all other lines as they are."""
    try:
        old = file.path.read_text(encoding="utf-8") if file.path.exists() else ""
    except (OSError, UnicodeDecodeError):
        raise UsageError(f"{file.path} cannot be read as UTF-8 text; nothing was written") from None
    lines = old.splitlines()
    for key, value in file.values.items():
        line = f"{key}: {json.dumps(value)}"
        places = [number for number, text in enumerate(lines) if re.match(rf"{re.escape(key)}\s*:", text)]
        if len(places) > 1:
            raise UsageError(f"{file.path} has {key} twice; nothing was written")
        if places:
            _check_one_line(lines, places[0], file.path, key)
            lines[places[0]] = line
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _check_one_line(lines: list[str], place: int, path: Path, key: str) -> None:
    following = lines[place + 1] if place + 1 < len(lines) else ""
    if re.match(r"[ \t]+[^\s#]|- ", following):
        raise UsageError(f"{path} has {key} over several lines; nothing was written: change it by hand")


def _write(path: Path, text: str) -> Iterator[str]:
    path = Path(os.path.realpath(path))  # settings are often links into a folder under version control
    mode = 0o600  # a key may be in it
    if path.exists():
        old = path.read_bytes()
        if old == text.encode():
            yield f"{path} has these settings already"
            return
        mode = path.stat().st_mode & 0o777
        backup = _backup_name(path)
        _put(backup, old, mode)
        yield f"kept {path} as {backup}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{path.parent} cannot be made: {error.strerror}") from error
    _put(path, text.encode(), mode)
    yield f"wrote {path}"


def _backup_name(path: Path) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    candidates = [
        path.with_name(f"{path.name}.{stamp}{extra}.bak") for extra in ("", *(f"-{n}" for n in range(1, 100)))
    ]
    return next(candidate for candidate in candidates if not candidate.exists())


def _put(path: Path, data: bytes, mode: int) -> None:
    with atomic_path(path, fsync=True) as temporary:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
