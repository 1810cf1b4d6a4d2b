"""Evaluations are checked when read, and their plots hold their numbers."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pelagos.common.errors import PelagosError, UsageError
from pelagos.training import evaluation
from pelagos.training.evaluation import AttentionReport, DraftScore, Share, TextReport, TextScore, write_evaluation
from pelagos.training.evaluation_plots import (
    PLOTS,
    Evaluation,
    heat_map,
    qat_gap,
    read_evaluation,
    recall_grid,
    source_bits,
    write_heat_map,
)
from pelagos.training.figures import theme

pytest.importorskip("matplotlib")

GRID = {"lengths": [1024, 4096, 65536], "depths": [0.0, 1.0], "accuracy": [[1.0, 0.75, None], [0.5, 0.25, 0.0]]}


def read(folder: Path, value: Any) -> Evaluation | None:
    (folder / "evaluation.json").write_text(json.dumps(value))
    return read_evaluation(folder)


def test_parts_may_be_missing(tmp_path: Path) -> None:
    assert read_evaluation(tmp_path) is None
    evaluation = read(tmp_path, {})
    parts = ("bits_per_byte", "tasks", "qat", "tool_calls", "draft", "attention", "indexer_recall", "expert_load")
    assert evaluation == Evaluation(step=None, recall=None, **{part: {} for part in parts})
    with theme("test"):
        assert [plot.draw(evaluation) for plot in PLOTS] == [None] * len(PLOTS)


def test_what_an_evaluation_writes_is_read(tmp_path: Path) -> None:
    share = Share(num_right=3, num_all=4)
    text = TextReport(
        split="test",
        context_length=64,
        sources={"a": TextScore(num_tokens=10, num_bytes=30, nats=20.0)},
        expert_load={0: 1.5, 3: math.nan},
        draft=DraftScore(accepted=share, right=Share(num_right=1, num_all=4)),
    )
    attention = AttentionReport(sparse=2.02, dense=2.0, indexer_recall={1: 0.9})
    write_evaluation(evaluation.Evaluation(step=7, text=text, attention=attention, tool_calls=share), tmp_path)
    found = read_evaluation(tmp_path)
    assert found is not None
    assert (found.tool_calls["num_right"], found.tool_calls["num_all"]) == (3, 4)
    assert (found.tool_calls["low"], found.tool_calls["high"]) == share.interval
    assert found.draft == {"acceptance": 0.75, "accuracy": 0.25, "num_tokens": 4}
    assert found.attention == {"sparse": 2.02, "dense": 2.0}
    assert (found.indexer_recall, found.expert_load) == ({"1": 0.9}, {"0": 1.5})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object"),
        ({"step": "last"}, "step must be a whole number"),
        ({"tasks": {"kv": 1.5}}, r"tasks\[kv\] must be a number from 0 to 1, got 1.5"),
        ({"bits_per_byte": [1]}, "bits_per_byte must be an object"),
        ({"tool_calls": {"num_right": -1, "num_all": 1, "low": 0, "high": 1}}, r"tool_calls\[num_right\] must be"),
        ({"held_out": {"expert_load": {"1": "high"}}}, r"held_out: expert_load\[1\] must be a number"),
        ({"attention": 3}, "attention must be an object"),
        ({"qat": {"fp4": 1.0}}, "qat must have full, above 0, and fp4"),
        ({"qat": {"full": 0.0, "fp4": 1.0}}, "qat must have full, above 0, and fp4"),
        ({"recall": {"lengths": [1]}}, "recall: depths must be a list with at least one entry"),
        ({"recall": [1]}, "recall must be an object"),
        ({"recall": GRID | {"depths": [0.0, 50]}}, "recall: depths must be a number from 0 to 1, got 50"),
        ({"recall": GRID | {"lengths": [0, 1, 2]}}, "recall: lengths must be a whole number of at least 1, got 0"),
        ({"recall": GRID | {"lengths": [1, 2]}}, "accuracy must have 2 rows of 2 numbers, one row per depth"),
        ({"recall": GRID | {"depths": [0.5]}}, "accuracy must have 1 rows of 3 numbers, one row per depth"),
        ({"recall": GRID | {"accuracy": [[1, 1, 2], [1, 1, 1]]}}, "accuracy must be a number from 0 to 1, got 2"),
    ],
)
def test_wrong_evaluations_are_named(tmp_path: Path, value: Any, message: str) -> None:
    with pytest.raises(PelagosError, match=rf"evaluation\.json.* {message}"):
        read(tmp_path, value)


def test_a_heat_map_shows_its_numbers_where_they_belong() -> None:
    with theme("test"):
        axes = heat_map(recall_grid(GRID, "grid")).axes[0]
    expected = np.array([[1.0, 0.75, np.nan], [0.5, 0.25, 0.0]])
    assert axes.images[0].get_array().filled(np.nan) == pytest.approx(expected, nan_ok=True)
    cells = {tuple(map(int, text.get_position()[::-1])): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "100%", (0, 1): "75%", (1, 0): "50%", (1, 1): "25%", (1, 2): "0%"}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1K", "4K", "64K"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0%", "100%"]


def test_a_large_heat_map_has_no_room_for_numbers() -> None:
    grid = {"lengths": list(range(1, 41)), "depths": [0.5], "accuracy": [[0.5] * 40]}
    with theme("test"):
        axes = heat_map(recall_grid(grid, "grid")).axes[0]
    assert not axes.texts
    assert len(axes.get_xticks()) <= 16


def test_a_heat_map_is_written_as_picture_and_numbers(tmp_path: Path) -> None:
    grid = GRID | {"num_samples": 50}
    write_heat_map(grid, tmp_path / "recall.png")
    data = (tmp_path / "recall.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width == 7.2 * 150
    assert 100 < height < width
    assert json.loads((tmp_path / "recall.json").read_text()) == grid
    assert len(list(tmp_path.iterdir())) == 2
    write_heat_map(grid, tmp_path / "recall.png")
    assert (tmp_path / "recall.png").read_bytes() == data


def test_a_wrong_heat_map_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png, got recall\.svg"):
        write_heat_map(GRID, tmp_path / "recall.svg")
    with pytest.raises(UsageError, match="grid: accuracy must be a list"):
        write_heat_map(GRID | {"accuracy": None}, tmp_path / "recall.png")
    assert list(tmp_path.iterdir()) == []


def test_bars_are_sorted_and_labelled(tmp_path: Path) -> None:
    evaluation = read(tmp_path, {"bits_per_byte": {"b": 1.75, "a": 2.0, "c": 1.5}})
    with theme("test"):
        [axes] = source_bits(evaluation).axes
    assert [bar.get_width() for bar in axes.patches] == [1.5, 1.75, 2.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a"]
    assert [text.get_text() for text in axes.texts] == ["1.500", "1.750", "2.000"]
    assert axes.yaxis_inverted()  # the best on top


@pytest.mark.parametrize("fp4", [2.02, 1.99])
def test_the_gap_is_relative_to_full_precision(tmp_path: Path, fp4: float) -> None:
    evaluation = read(tmp_path, {"qat": {"full": 2.0, "fp4": fp4}})
    with theme("test"):
        [axes] = qat_gap(evaluation).axes
    [bar] = axes.patches
    assert bar.get_width() == pytest.approx(fp4 / 2 - 1)
    low, high = axes.get_xlim()
    assert low <= bar.get_width() <= high
    assert high > 0.01
