"""File names that come from outside: a checkpoint's index, a request, an archive."""

import os
from pathlib import Path, PurePath

from pelagos.common.errors import UsageError


def inside(folder: Path, name: str) -> Path:
    """``folder / name``, if that is a place inside ``folder``; neither has to exist.

    Symbolic links are followed, so a link may point anywhere within ``folder`` and nowhere else. In a download cache
    whose entries are links to a store beside them, give the folder that holds both.
    The check holds for the moment of the call: it is no defence against someone who changes ``folder`` meanwhile.
    Raises UsageError for a name that is empty, absolute, leads out of the folder, or cannot be a file name.
    """
    shown = f"file name {name[:200]!r}"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise UsageError(f"{shown} must be valid Unicode text") from None
    if "\0" in name:
        raise UsageError(f"{shown} must not contain a NUL character")
    relative = PurePath(name)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts:
        raise UsageError(f"{shown} must name a place inside {folder}: relative, not empty and without '..'")
    path = folder / relative
    real_folder = Path(os.path.realpath(folder))
    if real_folder not in Path(os.path.realpath(path)).parents:
        raise UsageError(f"{shown} must name a place inside {folder}, but is a link that leads out of it")
    return path
