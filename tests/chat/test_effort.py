"""Effort words, their tables, and the file that travels with a checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest

from pelagos.chat.effort import (
    FILE_NAME,
    JULY_2026,
    LAUNCH,
    LEVELS,
    WORDS,
    EffortLevels,
    load_effort_levels,
    save_effort_levels,
)
from pelagos.common.errors import ConfigError, PelagosError, UsageError


def test_built_in_tables() -> None:
    july = ["none", "low", "low", "high", "high", "high", "max", "max"]
    assert [JULY_2026.resolve(word) for word in WORDS] == july
    # The first API: low, medium -> high and xhigh -> max; its high has no text, its max is today's text for high.
    launch = ["none", "low", "low", "low", "low", "high", "high", "high"]
    assert [LAUNCH.resolve(word) for word in WORDS] == launch


def test_unknown_word_lists_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match=r"effort must be one of none, minimal, low, .*, ultra, not 'hard'"):
        JULY_2026.resolve("hard")
    with pytest.raises(UsageError, match="effort must be one of none, low, not 'high'"):
        EffortLevels(levels={"none": "none", "low": "low"}).resolve("high")


@pytest.mark.parametrize("levels", [LAUNCH, JULY_2026, EffortLevels(levels={"max": "low"})])
def test_saved_table_loads(levels: EffortLevels, tmp_path: Path) -> None:
    path = save_effort_levels(levels, tmp_path)
    assert path == tmp_path / FILE_NAME
    assert json.loads(path.read_text()) == levels.levels
    assert load_effort_levels(tmp_path) == levels


def test_folder_without_a_table(tmp_path: Path) -> None:
    assert load_effort_levels(tmp_path) is JULY_2026


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "at least one of none, minimal"),
        ({"hard": "low"}, "effort word 'hard' is not one of none, minimal"),
        ({"low": "xhigh"}, f"effort word 'low' must map to one of {', '.join(LEVELS)}, not 'xhigh'"),
        ({"none": "low"}, "effort word 'none' must map to 'none', not 'low'"),
        ({"low": 1}, "must hold a JSON object that maps effort words to level names"),
        (["low"], "must hold a JSON object"),
    ],
)
def test_bad_table_names_the_file(table: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=rf"effort_levels.json.*{message}"):
        load_effort_levels(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 3000, b" " * 5000, b'{"low": "low", "low": "max"}'])
def test_bad_file_names_the_file(data: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(data)
    with pytest.raises(PelagosError, match=FILE_NAME):
        load_effort_levels(tmp_path)
