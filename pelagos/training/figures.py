"""How figures of a training report are made: matplotlib into SVG text that follows the page's light or dark colours.

matplotlib is imported when something is drawn, never before.
"""

import html
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from pelagos.common.errors import UsageError
from pelagos.training.console import compact
from pelagos.training.metrics import History, StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Stand-ins that no drawing uses otherwise: in the SVG each becomes the style sheet's variable of the same name.
INK, MUTED, GRID, CARD = "#010101", "#020202", "#030303", "#050505"
SERIES = ("#040401", "#040402", "#040403", "#040404", "#040405", "#040406")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", CARD: "card"} | {
    c: f"series-{n}" for n, c in enumerate(SERIES, 1)
}

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.xmargin": 0.01,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "legend.edgecolor": CARD,
    "legend.facecolor": CARD,
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "savefig.transparent": True,
    "svg.fonttype": "none",
    "text.parse_math": False,
}
WIDTH = 7.2  # inches
MAX_POINTS = 800  # of a curve: more than a page has room for

Get = Callable[[StepRecord], float | None]

Numbers = npt.NDArray[np.float64]
Subject = TypeVar("Subject")


@dataclass(frozen=True, kw_only=True)
class Plot(Generic[Subject]):
    """One plot of a report. ``text`` explains it in a sentence; ``draw`` gives None where nothing is to show."""

    title: str
    text: str
    draw: "Callable[[Subject], Figure | None]"


@contextmanager
def theme(name: str, **colors: str) -> Iterator[None]:
    """Draw and save figures within it: in the report's style, whatever the user's matplotlib settings are.

    name: the same one gives the same SVG text. colors: real ones for ink, muted and grid, which otherwise are those of
    the page. Raises UsageError if matplotlib is missing.
    """
    try:
        from matplotlib import style
    except ImportError as error:
        raise UsageError("plots need the package matplotlib: pip install 'pelagos[train]'") from error
    real = {stand_in: colors.get(variable, stand_in) for stand_in, variable in _VARIABLES.items()}
    settings = {key: real.get(value, value) if isinstance(value, str) else value for key, value in _STYLE.items()}
    with style.context([settings | {"svg.hashsalt": name}], after_reset=True):
        yield


def svg(draw: "Callable[[], Figure | None]", name: str) -> str | None:
    """An <svg> element for a page, or None if ``draw`` has nothing to show.

    name: unlike those of the page's other figures, to keep their inner links apart, and what a screen reader says.
    Raises UsageError if matplotlib is missing.
    """
    with theme(name):
        figure = draw()
        if figure is None:
            return None
        file = io.StringIO()
        figure.savefig(file, format="svg", dpi=200, metadata={"Date": None})
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)  # known to every browser, and full of addresses
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # nothing refers to them
    text = re.sub(r' (width|height)="[^"]*pt"', "", text, count=2)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(name)}"', 1)
    return re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", text)


def thin(x: Numbers, y: Numbers, limit: int = MAX_POINTS) -> tuple[Numbers, Numbers]:
    """At most ``limit`` of the points [N], in order: the lowest and highest of each stretch, so that spikes stay."""
    if len(x) <= limit:
        return x, y
    kept = [0, len(x) - 1]
    for places in np.array_split(np.arange(len(x)), (limit - 2) // 2):
        finite = places[np.isfinite(y[places])]
        if len(finite):
            kept += [finite[y[finite].argmin()], finite[y[finite].argmax()]]
    places = np.unique(kept)
    return x[places], y[places]


def smooth(y: Numbers, breaks: Sequence[int] = ()) -> Numbers:
    """Mean of a curve [N] over a thirtieth of it to both sides; gaps (NaN) stay and count for nothing.

    breaks: places where something new begins; no mean reaches over them. Towards these and the ends it narrows from
    both sides, so that a steep curve is not bent.
    """
    edges, places = np.array([0, *breaks, len(y)]), np.arange(len(y))
    part = np.searchsorted(edges, places, "right")
    reach = np.minimum(places - edges[part - 1], edges[part] - 1 - places).clip(max=len(y) // 30)
    known = np.isfinite(y)
    total, count = (np.append(0.0, np.cumsum(values)) for values in (np.where(known, y, 0.0), known))
    low, high = places - reach, places + reach + 1
    mean = np.full(len(y), np.nan)
    mean[known] = ((total[high] - total[low]) / (count[high] - count[low]).clip(min=1))[known]
    return mean


def points(records: Iterable[StepRecord], get: Get) -> tuple[Numbers, Numbers]:
    """Steps [N] and values [N] where a value was measured."""
    pairs = [(record.step, value) for record in records if (value := get(record)) is not None]
    return np.array([x for x, _ in pairs], dtype=float), np.array([y for _, y in pairs], dtype=float)


def new_axes(*heights: float) -> "tuple[Figure, list[Axes]]":
    """A figure with axes one below the other, of these heights in inches, over one range of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)
    return figure, list(grid[:, 0])


def curve(axes: "Axes", history: History, get: Get, color: str, label: str | None = None, **more: Any) -> bool:
    """Draw a value over steps; pieces that were undone are dotted. False if it was never measured."""
    x, y = points(history.steps, get)
    if len(x) == 0:
        return False
    axes.plot(*thin(x, y), color=color, label=label, marker="o" if len(x) < 3 else None, **more)
    low, high = (np.nanmin(y), np.nanmax(y)) if np.isfinite(y).any() else (0.0, 1.0)
    for piece in history.abandoned:
        x, y = points(piece, get)
        y = y.clip(max=high + 0.2 * (high - low))  # the explosion that was undone must not flatten the rest
        axes.plot(*thin(x, y), color=color, linestyle=":", linewidth=1.2)
    return True


def smooth_curve(axes: "Axes", history: History, get: Get, color: str, label: str | None = None) -> bool:
    """As ``curve``, with a smoothed line over the measured one if there are points enough."""
    x, y = points(history.steps, get)
    if len(x) < 40:
        return curve(axes, history, get, color, label)
    curve(axes, history, get, color, alpha=0.35, linewidth=0.7)
    breaks = np.searchsorted(x, [record.step for record in _stage_starts(history)])
    axes.plot(*thin(x, smooth(y, breaks.tolist())), color=color, label=label, linewidth=1.6)
    return True


def finish(figure: "Figure", axes: "Sequence[Axes]", history: History) -> "Figure":
    """Stage boundaries, legends, and what stands below the axis."""
    from matplotlib.ticker import MaxNLocator

    steps = [record.step for record in history.steps]
    starts = _stage_starts(history)
    for part in axes:
        for record in starts:
            part.axvline(record.step, color=MUTED, linestyle=(0, (4, 3)), linewidth=0.8)
        if part.get_legend_handles_labels()[1]:
            part.legend(loc="best", ncols=3)
    span = steps[-1] - steps[0]
    ends = [*(record.step for record in starts[1:]), steps[-1]]
    for record, end in zip(starts, ends, strict=False):
        if end - record.step > 0.05 * span:  # no room for a name otherwise
            place = (record.step, 1.0)
            axes[0].annotate(
                record.stage,
                place,
                (2, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                fontsize=7.5,
                color=MUTED,
                va="bottom",
            )
    axes[-1].xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))
    set_ticks(axes[-1].xaxis, "{:,.0f}".format)
    if span == 0:
        axes[-1].set_xticks(steps[:1])
    axes[-1].set_xlabel("step")
    return figure


def _stage_starts(history: History) -> list[StepRecord]:
    """The first step of each stage but the first; another sequence length makes another stage."""
    pairs = itertools.pairwise(history.steps)
    return [b for a, b in pairs if (a.stage, a.sequence_length) != (b.stage, b.sequence_length)]


def set_ticks(axis: "Axis", text: Callable[[float], str]) -> None:
    """Write the numbers of an axis with ``text``."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def log_scale(axes: "Axes") -> None:
    """A logarithmic axis for values, with numbers at 1, 2 and 5 times powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    set_ticks(axes.yaxis, compact)


def percent(share: float) -> str:
    """0.5 as 50%, 0.0125 as 1.25%."""
    return f"{100 * share:.3g}%"


def length_name(num_tokens: float) -> str:
    """Length of a sequence as people say it: 256, 4K for 4,096, 1M for 1,048,576."""
    for letter, size in (("M", 1 << 20), ("K", 1 << 10)):
        if num_tokens >= size and num_tokens % size == 0:
            return f"{num_tokens // size:.0f}{letter}"
    return f"{num_tokens:,.0f}"
