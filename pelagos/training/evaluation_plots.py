"""The plots of an evaluation, and the heat map of recall over depth and length.

``evaluation.json`` in a run's folder is one object; every part of it may be missing:

    {"step": 550,
     "bits_per_byte": {"stdlib": 1.71, "sqlite": 1.66},            held-out text, by source
     "recall": {"lengths": [1024, 4096], "depths": [0.0, 1.0],     tokens; 0 is the start of the text, 1 its end
                "accuracy": [[1.0, 0.96], [1.0, null]]},           from 0 to 1, a row per depth; null: not measured
     "tasks": {"kv": 0.98},                                        accuracy from 0 to 1
     "tool_calls": {"num_right": 40, "num_all": 41, "low": 0.87, "high": 1.0},    calls that validate, 95 % interval
     "held_out": {"mtp": {"acceptance": 0.6, "accuracy": 0.3, "num_tokens": 8176},  drafts: the model's own, the text's
                  "expert_load": {"1": 1.4}},                      by layer, the busiest expert's tokens over the mean
     "attention": {"sparse": 3.11, "dense": 3.10, "indexer_recall": {"1": 0.93}},  loss with top rows, with all; share
     "qat": {"full": 2.310, "fp4_weights": 2.32, "fp4": 2.32, "exported": 2.32}}  loss by numbers, as low_precision.py
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pelagos.common.errors import UsageError
from pelagos.common.fields import check_value
from pelagos.common.files import atomic_path, read_json, write_atomic
from pelagos.training.figures import INK, SERIES, Plot, length_name, new_axes, percent, set_ticks, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EVALUATION_FILE = "evaluation.json"
MAX_NUMBERS_PER_ROW = 16  # more cells leave no room for numbers in them
QAT_GOAL = 0.01  # relative gap of the loss


@dataclass(frozen=True, kw_only=True)
class RecallGrid:
    """accuracy: from 0 to 1, a row per depth, a column per length; NaN: not measured."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    accuracy: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What ``evaluation.json`` holds; parts that it lacks are None or empty. tool_calls, draft (held_out.mtp) and
    attention have the file's names, the last two by layer."""

    step: int | None
    bits_per_byte: Mapping[str, float]
    recall: RecallGrid | None
    tasks: Mapping[str, float]
    qat: Mapping[str, float]
    tool_calls: Mapping[str, float]
    draft: Mapping[str, float]
    attention: Mapping[str, float]
    indexer_recall: Mapping[str, float]
    expert_load: Mapping[str, float]


def read_evaluation(folder: Path) -> Evaluation | None:
    """Read ``evaluation.json``; None if there is none. Raises UsageError or ConfigError that names what is wrong."""
    path = folder / EVALUATION_FILE
    if not path.exists():
        return None
    value = read_json(path, 64 << 20)
    if not isinstance(value, dict):
        raise UsageError(f"{path} must be an object")
    check_value(f"{path}: step", value.get("step"), int | None, low=0)
    qat = _numbers(value, "qat", str(path))
    if qat and not (qat.get("full", 0.0) > 0 and "fp4" in qat):
        raise UsageError(f"{path}: qat must have full, above 0, and fp4")
    held_out, attention = _object(value, "held_out", str(path)), _object(value, "attention", str(path))
    return Evaluation(
        step=value.get("step"),
        bits_per_byte=_numbers(value, "bits_per_byte", str(path)),
        recall=recall_grid(value["recall"], f"{path}: recall") if value.get("recall") else None,
        tasks=_numbers(value, "tasks", str(path), high=1.0),
        qat=qat,
        tool_calls=_numbers(value, "tool_calls", str(path), names=("num_right", "num_all", "low", "high")),
        draft=_numbers(held_out, "mtp", f"{path}: held_out", names=("acceptance", "accuracy", "num_tokens")),
        attention=_numbers(value, "attention", str(path), names=("sparse", "dense")),
        indexer_recall=_numbers(attention, "indexer_recall", f"{path}: attention"),
        expert_load=_numbers(held_out, "expert_load", f"{path}: held_out"),
    )


def recall_grid(grid: Any, place: str) -> RecallGrid:
    """Check a grid as in ``evaluation.json``. Raises UsageError or ConfigError that starts with ``place``."""
    if not isinstance(grid, dict):
        raise UsageError(f"{place} must be an object")
    lengths, depths, rows = (_list(grid.get(name), f"{place}: {name}") for name in ("lengths", "depths", "accuracy"))
    for length in lengths:
        check_value(f"{place}: lengths", length, int, low=1)
    for depth in depths:
        check_value(f"{place}: depths", depth, float, low=0.0, high=1.0)
    rows = [_list(row, f"{place}: a row of accuracy") for row in rows]
    if len(rows) != len(depths) or any(len(row) != len(lengths) for row in rows):
        raise UsageError(f"{place}: accuracy must have {len(depths)} rows of {len(lengths)} numbers, one row per depth")
    for number in itertools.chain(*rows):
        check_value(f"{place}: accuracy", number, float | None, low=0.0, high=1.0)
    accuracy = tuple(tuple(math.nan if number is None else float(number) for number in row) for row in rows)
    return RecallGrid(lengths=tuple(lengths), depths=tuple(map(float, depths)), accuracy=accuracy)


def write_heat_map(grid: Mapping[str, Any], path: Path) -> None:
    """Write recall over depth and length to ``path`` as PNG, and beside it, ending in .json, the numbers.

    grid: "lengths", "depths" and "accuracy" as in ``evaluation.json``; what else it holds goes into the JSON file only.
    Raises UsageError if it is not such a grid, ``path`` does not end in .png, or matplotlib is missing.
    """
    if path.suffix != ".png":
        raise UsageError(f"a heat map's name must end in .png, got {path.name}")
    checked = recall_grid(grid, "grid")
    with theme(path.name, ink="#1b1f24", muted="#59636e", grid="#d1d9e0"), atomic_path(path) as temporary:
        heat_map(checked).savefig(temporary, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    write_atomic(path.with_suffix(".json"), json.dumps(dict(grid), allow_nan=False) + "\n")


def heat_map(grid: RecallGrid) -> "Figure":
    """Accuracy by length and depth, with numbers in the cells while there is room."""
    figure, [axes] = new_axes(min(1.3 + 0.3 * len(grid.depths), 6.0))
    accuracy = np.array(grid.accuracy)
    image = axes.imshow(accuracy, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0.0, vmax=1.0)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    _label(axes, "x", [length_name(length) for length in grid.lengths])
    _label(axes, "y", [f"{depth:.0%}" for depth in grid.depths])
    axes.set_xlabel("length of the text, tokens")
    axes.set_ylabel("depth of the fact")
    if len(grid.lengths) <= MAX_NUMBERS_PER_ROW:
        for (row, column), number in np.ndenumerate(accuracy):
            color = "white" if number < 0.6 else "black"
            if math.isfinite(number):
                axes.text(column, row, f"{number:.0%}", ha="center", va="center", fontsize=7.5, color=color)
    bar = figure.colorbar(image, ax=axes, label="answers found", pad=0.01)
    set_ticks(bar.ax.yaxis, percent)
    return figure


def _label(axes: "Axes", which: str, names: Sequence[str]) -> None:
    shown = range(0, len(names), -(-len(names) // 16))
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_ticks(list(shown), [names[place] for place in shown])


def source_bits(evaluation: Evaluation) -> "Figure | None":
    best_first = dict(sorted(evaluation.bits_per_byte.items(), key=lambda item: item[1]))
    return _bars(best_first, "{:.3f}", "bits per byte, held-out text", SERIES[0])


def task_accuracy(evaluation: Evaluation) -> "Figure | None":
    best_first = dict(sorted(evaluation.tasks.items(), key=lambda item: -item[1]))
    figure = _bars(best_first, "{:.0%}", "answers right", SERIES[2])
    if figure is not None:
        figure.axes[0].set_xlim(0, 1.08)
        figure.axes[0].set_xticks([0, 0.25, 0.5, 0.75, 1])
        set_ticks(figure.axes[0].xaxis, percent)
    return figure


def recall(evaluation: Evaluation) -> "Figure | None":
    return heat_map(evaluation.recall) if evaluation.recall else None


def qat_gap(evaluation: Evaluation) -> "Figure | None":
    if not evaluation.qat:
        return None
    full = evaluation.qat["full"]
    names = {"fp4_weights": "weights", "fp4": "weights and activations", "exported": "exported checkpoint"}
    gaps = {text: evaluation.qat[name] / full - 1 for name, text in names.items() if name in evaluation.qat}
    figure = _bars(gaps, "{:+.2%}", "loss above full precision", SERIES[1])
    assert figure is not None
    axes = figure.axes[0]
    axes.axvline(QAT_GOAL, color=INK, linestyle="--", linewidth=0.8)
    axes.set_xlim(min(0.0, *gaps.values()) * 1.3, max(QAT_GOAL, *gaps.values()) * 1.3)
    set_ticks(axes.xaxis, percent)
    return figure


PLOTS = (
    Plot(
        title="Bits per byte by source",
        text="How well the model predicts held-out text of each source: lower is better, and some sources are easier "
        "than others.",
        draw=source_bits,
    ),
    Plot(
        title="Recall",
        text="How often the model finds a fact again, by the length of the text and its depth in it: 0% "
        "is its start, 100% its end.",
        draw=recall,
    ),
    Plot(
        title="Tasks",
        text="The share of right answers in each task, with names and numbers that training never showed.",
        draw=task_accuracy,
    ),
    Plot(
        title="Four-bit weights",
        text="What experts in FP4 and the other numbers of the served model cost in loss: the goal is to stay left of "
        "the dashed line, 1%.",
        draw=qat_gap,
    ),
)


def _bars(values: Mapping[str, float], form: str, label: str, color: str) -> "Figure | None":
    """One bar per name, from top to bottom, each with its value."""
    if not values:
        return None
    figure, [axes] = new_axes(0.7 + 0.24 * len(values))
    bars = axes.barh(list(values), list(values.values()), color=color, height=0.66)
    axes.bar_label(bars, [form.format(value) for value in values.values()], padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1, y=0.02)
    axes.set_xlabel(label)
    return figure


def _list(value: object, place: str) -> list[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise UsageError(f"{place} must be a list with at least one entry")
    return list(value)


def _object(value: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    found = value.get(name, {})
    if not isinstance(found, dict):
        raise UsageError(f"{place}: {name} must be an object")
    return found


def _numbers(
    value: Mapping[str, Any], name: str, place: str, *, names: Sequence[str] | None = None, high: float | None = None
) -> dict[str, float]:
    """The object of numbers that ``value`` has as ``name``, without nulls; empty if there is none. ``names``: those
    read, if they are all there. Raises UsageError or ConfigError that starts with ``place``."""
    found = {key: number for key, number in _object(value, name, place).items() if number is not None}
    if names is not None:
        found = {key: found[key] for key in names} if found.keys() >= set(names) else {}
    for key, number in found.items():
        check_value(f"{place}: {name}[{key}]", number, float, low=0.0, high=high)
    return {key: float(number) for key, number in found.items()}
