"""Where a model is: a folder, the one inside the package, a preset, or a repository on the Hugging Face hub."""

import re
from pathlib import Path

from pelagos.common.errors import ResourceError, UsageError
from pelagos.common.fields import show
from pelagos.model.presets import PRESETS

BUILT_IN = Path(__file__).parent.parent / "assets"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_WANTED_FILES = ("*.safetensors", "*.json", "*.txt", "*.md")


def model_place(name: str) -> str:
    """The folder of the model called ``name``, or ``name`` itself if it is a preset.

    A folder goes before everything else, then built-in models (nano), presets, and ``owner/name`` on the hub, which is
    downloaded unless it is in the cache. Raises UsageError for what is none of these, ResourceError if the hub does not
    give it.
    """
    if Path(name).is_dir():
        return name
    built_in = BUILT_IN / name
    if name in built_in_models():
        return str(built_in)
    if name in PRESETS:
        return name
    if _HUB_ID.fullmatch(name):
        return _downloaded(name)
    known = ", ".join([*built_in_models(), *PRESETS])
    raise UsageError(f"model must be a checkpoint folder, owner/name on the hub, or one of {known}, got {show(name)}")


def built_in_models() -> list[str]:
    """Names of the models that the package holds."""
    return sorted(path.parent.name for path in BUILT_IN.glob("*/config.json"))


def _downloaded(name: str) -> str:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ResourceError(f"{name} is no folder, and to download it huggingface_hub must be installed") from error
    try:
        return str(snapshot_download(name, allow_patterns=list(_WANTED_FILES)))
    except Exception as error:  # the library's own errors, and those of the network below it, have no common base
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ResourceError(f"{name} is no folder, and the hub did not give it: {reason[0][:300]}") from error
