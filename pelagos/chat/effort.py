"""How hard to think: the words a user may say, and the level that a checkpoint's prompt carries for each.

The prompt text of a level was moved once between DeepSeek-V4 checkpoints, so the table belongs to the weights: it is
``effort_levels.json`` in the model folder, ``{"low": "low", "max": "max", ...}``. The level names are those of
deepseek-recipe: ``low`` adds no text to the prompt, ``high`` asks for the absolute maximum, ``max`` for more than that;
``none`` turns thinking off.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast

from pelagos.common.errors import ConfigError, UsageError
from pelagos.common.files import read_json, write_atomic

Level: TypeAlias = Literal["none", "low", "high", "max"]

LEVELS = ("none", "low", "high", "max")
WORDS = ("none", "minimal", "low", "medium", "high", "xhigh", "max", "ultra")
FILE_NAME = "effort_levels.json"
MAX_FILE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class EffortLevels:
    """``levels`` maps each word that the checkpoint knows (some or all of WORDS) to one of LEVELS."""

    levels: Mapping[str, Level]

    def __post_init__(self) -> None:
        if not self.levels:
            raise ConfigError(f"effort levels must map at least one of {_list(WORDS)}")
        for word, level in self.levels.items():
            if word not in WORDS:
                raise ConfigError(f"effort word {word!r} is not one of {_list(WORDS)}")
            if level not in LEVELS:
                raise ConfigError(f"effort word {word!r} must map to one of {_list(LEVELS)}, not {level!r}")
            if word == "none" and level != "none":
                raise ConfigError(f"effort word 'none' must map to 'none', not {level!r}: the user asked not to think")

    def resolve(self, word: str) -> Level:
        """The level for a user's word. Raises UsageError for a word that this table does not have."""
        if word not in self.levels:
            raise UsageError(f"effort must be one of {_list(self.levels)}, not {word!r}")
        return self.levels[word]


# The checkpoints of April 2026: their two efforts, high and max, are today's prompt texts of low and high.
LAUNCH = EffortLevels(
    levels={
        "none": "none",
        "minimal": "low",
        "low": "low",
        "medium": "low",
        "high": "low",
        "xhigh": "high",
        "max": "high",
        "ultra": "high",
    }
)
# The checkpoints from 31 July 2026 on, and what deepseek-recipe renders unasked.
JULY_2026 = EffortLevels(
    levels={
        "none": "none",
        "minimal": "low",
        "low": "low",
        "medium": "high",
        "high": "high",
        "xhigh": "high",
        "max": "max",
        "ultra": "max",
    }
)


def load_effort_levels(folder: str | Path) -> EffortLevels:
    """The table of a model folder, JULY_2026 if it has none.

    Raises UsageError if the file cannot be read as JSON, ConfigError if it is not such a table.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return JULY_2026
    table = read_json(path, MAX_FILE_BYTES)
    if not isinstance(table, dict) or not all(isinstance(level, str) for level in table.values()):
        raise ConfigError(f"{path} must hold a JSON object that maps effort words to level names")
    try:
        return EffortLevels(levels=cast(dict[str, Level], table))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def save_effort_levels(levels: EffortLevels, folder: str | Path) -> Path:
    """Write the table into a model folder and return its path."""
    path = Path(folder) / FILE_NAME
    write_atomic(path, json.dumps(dict(levels.levels), indent=2) + "\n")
    return path


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)
