"""The plots of a training report. A plot is a function from a history, which has at least one step, to a figure, or to
None where there is nothing to show; ``PLOTS`` lists them with their titles and what they tell.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pelagos.training.console import compact
from pelagos.training.figures import (
    INK,
    SERIES,
    Get,
    Numbers,
    Plot,
    curve,
    finish,
    length_name,
    log_scale,
    new_axes,
    percent,
    points,
    set_ticks,
    smooth_curve,
)
from pelagos.training.metrics import History, StepRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_COLUMNS = 240  # of a heat map over steps
HEALTHY_RECALL, HEALTHY_GAIN, HEALTHY_LOAD = 0.9, 1.6, 2.0


def loss(history: History) -> "Figure | None":
    names = [name for name in ("balance", "index") if any(name in record.parts for record in history.steps)]
    figure, axes = new_axes(2.5, *[0.9] * len(names))
    smooth_curve(axes[0], history, lambda record: record.loss, SERIES[0], "objective")
    for number, (name, label) in enumerate({"main": "next token", "mtp": "token after next"}.items(), 1):
        smooth_curve(axes[0], history, _item(lambda record: record.parts, name), SERIES[number], label)
    axes[0].set_ylabel("nats per token")
    for number, name in enumerate(names):
        smooth_curve(axes[1 + number], history, _item(lambda record: record.parts, name), SERIES[3 + number])
        axes[1 + number].set_ylabel(name)
    return finish(figure, axes, history)


def bits(history: History) -> "Figure | None":
    figure, axes = new_axes(2.3)
    if not smooth_curve(axes[0], history, lambda record: record.bits_per_byte, SERIES[0]):
        return None
    axes[0].set_ylabel("bits per byte")
    return finish(figure, axes, history)


def schedule(history: History) -> "Figure | None":
    figure, axes = new_axes(1.4, 1.0, 1.0)
    curve(axes[0], history, lambda record: record.learning_rate, SERIES[0])
    curve(axes[1], history, lambda record: record.batch_tokens, SERIES[1], drawstyle="steps-post")
    curve(axes[2], history, lambda record: record.sequence_length, SERIES[2], drawstyle="steps-post")
    for part, label in zip(axes, ("learning rate", "tokens\nper step", "tokens per\nsequence"), strict=True):
        part.set_ylabel(label)
        part.set_ylim(bottom=0)
    for part in axes[:2]:
        set_ticks(part.yaxis, compact)
    lengths = sorted({record.sequence_length for record in history.steps})
    axes[2].set_yscale("log", base=2)
    axes[2].set_ylim(lengths[0] / 2, lengths[-1] * 2)
    axes[2].set_yticks(lengths if len(lengths) < 5 else [lengths[0], lengths[-1]])
    set_ticks(axes[2].yaxis, length_name)
    return finish(figure, axes, history)


def speed(history: History) -> "Figure | None":
    gets: dict[str, Get] = {
        "tokens/s": lambda record: record.tokens_per_second,
        "share of\npeak": lambda record: record.share_of_peak,
        "memory\nGiB": lambda record: None if record.memory_bytes is None else record.memory_bytes / 2**30,
    }
    gets = {label: get for label, get in gets.items() if len(points(history.steps, get)[0])}
    if not gets:
        return None
    figure, axes = new_axes(*(1.5 if label == "tokens/s" else 1.0 for label in gets))
    for number, (part, (label, get)) in enumerate(zip(axes, gets.items(), strict=True)):
        curve(part, history, get, SERIES[number])
        part.set_ylabel(label)
        part.set_ylim(bottom=0)
        if label == "tokens/s":
            set_ticks(part.yaxis, compact)
        elif "peak" in label:
            set_ticks(part.yaxis, percent)
    return finish(figure, axes, history)


def expert_load(history: History) -> "Figure | None":
    layers = _layers(history, lambda record: record.expert_load)
    if not layers:
        return None
    grid, width = _load_grid(history, layers)
    figure, axes = new_axes(min(1.2 + 0.22 * len(layers), 5.0))
    highest = float(np.nanmax(grid)) if np.isfinite(grid).any() else 0.0
    first, last = history.steps[0].step - width / 2, history.steps[-1].step + width / 2
    image = axes[0].imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap="inferno",
        vmin=1.0,
        vmax=max(HEALTHY_LOAD, highest),
        extent=(first, last, len(layers) - 0.5, -0.5),
    )
    axes[0].grid(visible=False)
    shown = range(0, len(layers), -(-len(layers) // 16))
    axes[0].set_yticks(list(shown), [str(layers[place]) for place in shown])
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes[0], label="busiest expert / mean", pad=0.01)
    return finish(figure, axes, history)


def _load_grid(history: History, layers: Sequence[int]) -> tuple[Numbers, float]:
    """Mean load by layer and column [L, N], and the width of a column in steps."""
    first, last = history.steps[0].step, history.steps[-1].step
    num_columns = min(MAX_COLUMNS, len(history.steps))
    width = (last - first) / max(num_columns - 1, 1) or 1.0
    total, count = np.zeros((len(layers), num_columns)), np.zeros((len(layers), num_columns))
    row_of = {layer: row for row, layer in enumerate(layers)}
    for record in history.steps:
        column = round((record.step - first) / width)
        for layer, value in record.expert_load.items():
            total[row_of[layer], column] += value
            count[row_of[layer], column] += 1
    grid = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    for column in range(1, num_columns):  # steps that stand further apart than others leave no hole
        grid[:, column] = np.where(count[:, column] == 0, grid[:, column - 1], grid[:, column])
    return grid, width


def router_bias(history: History) -> "Figure | None":
    layers = _layers(history, lambda record: record.router_bias)
    if not layers:
        return None
    figure, axes = new_axes(2.2)
    for layer, color, label in _styled(layers):
        for end, name in enumerate((label, None)):
            curve(axes[0], history, _bias(layer, end), color, name, linewidth=1.0)
    axes[0].set_ylabel("lowest and highest bias")
    return finish(figure, axes, history)


def _bias(layer: int, end: int) -> Get:
    return lambda record: record.router_bias[layer][end] if layer in record.router_bias else None


def indexer_recall(history: History) -> "Figure | None":
    layers = _layers(history, lambda record: record.indexer_recall)
    if not layers:
        return None
    figure, axes = new_axes(2.2)
    for layer, color, label in _styled(layers):
        curve(axes[0], history, _item(lambda record: record.indexer_recall, layer), color, label)
    axes[0].axhline(HEALTHY_RECALL, color=INK, linestyle="--", linewidth=0.8)
    axes[0].set_ylim(top=1.005)
    axes[0].set_ylabel("attention mass kept")
    set_ticks(axes[0].yaxis, percent)
    return finish(figure, axes, history)


def _layers(history: History, get: Callable[[StepRecord], Mapping[int, Any]]) -> list[int]:
    return sorted(set().union(*(get(record) for record in history.steps)))


def _item(get: Callable[[StepRecord], Mapping[Any, float]], key: object) -> Get:
    return lambda record: get(record).get(key)


def _styled(layers: Sequence[int]) -> Iterator[tuple[int, str, str | None]]:
    """Each layer with a colour and a name for the legend.

    Many layers get shades from one colour to another, and only the first and the last of them a name.
    """
    colors, named = list(SERIES), set(layers)
    if len(layers) > len(SERIES):
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        colors = [to_hex(colormaps["plasma"](0.3 + 0.5 * place)) for place in np.linspace(0, 1, len(layers))]
        named = {layers[0], layers[-1]}
    for layer, color in zip(layers, colors, strict=False):
        yield layer, color, f"layer {layer}" if layer in named else None


def streams(history: History) -> "Figure | None":
    figure, axes = new_axes(1.4, 1.2)
    found = curve(axes[0], history, lambda record: record.stream_gain, SERIES[0])
    axes[0].axhline(HEALTHY_GAIN, color=INK, linestyle="--", linewidth=0.8)
    axes[0].set_ylabel("gain of all\nmixing")
    found |= curve(axes[1], history, lambda record: record.post_share, SERIES[1])
    axes[1].set_ylabel("write weights\nabove 1.9")
    axes[1].set_ylim(bottom=0)
    set_ticks(axes[1].yaxis, percent)
    return finish(figure, axes, history) if found else None


def gradient_norm(history: History) -> "Figure | None":
    figure, axes = new_axes(2.2)
    if not smooth_curve(axes[0], history, lambda record: record.gradient_norm, SERIES[0], "gradient norm"):
        return None
    norms = points(history.steps, lambda record: record.gradient_norm)[1]
    if (norms > 0).any():
        log_scale(axes[0])
    skipped = [event.step for event in history.events if event.to_step is None]
    if skipped:
        place = axes[0].get_xaxis_transform()
        axes[0].plot(
            skipped, [0.04] * len(skipped), "x", color=SERIES[1], transform=place, label="skipped step", markersize=6
        )
    undone = [event for event in history.events if event.to_step is not None]
    for number, event in enumerate(undone):
        label = "rolled back" if number == 0 else None
        axes[0].axvspan(event.to_step or 0, event.step, color=SERIES[1], alpha=0.2, linewidth=0, label=label)
    return finish(figure, axes, history)


def clamped(history: History) -> "Figure | None":
    names = sorted(set().union(*(record.clamped for record in history.steps)))
    if not names:
        return None
    figure, axes = new_axes(1.8)
    for name, color in zip(names, itertools.cycle(SERIES)):
        curve(axes[0], history, _item(lambda record: record.clamped, name), color, name.replace("_", " "))
    axes[0].set_ylabel("share of inputs")
    set_ticks(axes[0].yaxis, percent)
    axes[0].set_ylim(bottom=0)
    return finish(figure, axes, history)


PLOTS = (
    Plot(
        title="Loss and its parts",
        text="The objective is next-token loss plus weighted terms: it should fall fast, then slowly, and jump only "
        "where a stage changes the text.",
        draw=loss,
    ),
    Plot(
        title="Bits per byte",
        text="The next-token loss per byte of text, which can be compared with models of other vocabularies.",
        draw=bits,
    ),
    Plot(
        title="Learning rate and batch",
        text="What the schedule asked for: the learning rate, tokens per step, and tokens per sequence.",
        draw=schedule,
    ),
    Plot(
        title="Speed and memory",
        text="Tokens per second, how much of the machine's measured matrix speed the model's arithmetic reaches, and "
        "the most memory taken so far.",
        draw=speed,
    ),
    Plot(
        title="Expert load",
        text="The tokens of a layer's busiest expert, as a multiple of its experts' mean: dark is balanced, bright is "
        "crowded.",
        draw=expert_load,
    ),
    Plot(
        title="Router bias",
        text="The range of the biases that steer tokens to idle experts: it should settle; if it keeps growing, some "
        "experts stay idle.",
        draw=router_bias,
    ),
    Plot(
        title="Indexer recall",
        text="How much of its attention a sparse layer finds in the rows that its indexer picks: above the dashed "
        "line, 90%, picking costs little.",
        draw=indexer_recall,
    ),
    Plot(
        title="Residual streams",
        text="How much the mixing of the streams amplifies over all layers, healthy below the dashed line, and the "
        "share of write weights near their limit.",
        draw=streams,
    ),
    Plot(
        title="Gradient norm",
        text="The length of the gradient before clipping, with the steps whose batch was skipped and the stretches "
        "that were rolled back.",
        draw=gradient_norm,
    ),
    Plot(
        title="Clamped activations",
        text="The share of expert inputs that reach a limit of SwiGLU: it should stay near zero.",
        draw=clamped,
    ),
)
