"""The report of a training run: ``report.html``, one file that opens anywhere, without a network.

It shows what is there: a run of one step, one that goes on, or a finished and evaluated one.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from pelagos.common.files import write_atomic
from pelagos.training import evaluation_plots, plots
from pelagos.training.console import compact, duration, event_line
from pelagos.training.evaluation_plots import Evaluation, read_evaluation
from pelagos.training.figures import Plot, Subject, svg
from pelagos.training.metrics import History, RunInfo, StepRecord, read_history, read_run_info
from pelagos.training.report_style import STYLE

REPORT_FILE = "report.html"
MAX_EVENTS = 100  # listed; all are in the plots


@dataclass(frozen=True, kw_only=True)
class Run:
    """All that a report is made of."""

    name: str
    info: RunInfo | None
    history: History
    evaluation: Evaluation | None


def write_report(folder: Path) -> Path:
    """Write ``folder/report.html`` from what the run has logged so far, and return its path.

    Reads metrics.jsonl, and run.json and evaluation.json if they exist. Raises UsageError or ConfigError if one of them
    is broken or there is no log, and UsageError if matplotlib is missing.
    """
    info = read_run_info(folder)
    name = info.recipe if info else folder.resolve().name
    run = Run(name=name, info=info, history=read_history(folder), evaluation=read_evaluation(folder))
    path = folder / REPORT_FILE
    write_atomic(path, page(run))
    return path


def page(run: Run) -> str:
    """The whole HTML text."""
    title = escape(f"{run.name}: training report")
    sections = "".join(_sections(run))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<p class="kicker">Pelagos training report</p>
<h1>{escape(run.name)}</h1>
<p class="status">{escape(_status(run))}</p>
</header>
<main>
{sections}</main>
</body>
</html>
"""


def _status(run: Run) -> str:
    last = run.history.steps[-1] if run.history.steps else None
    if last is None:
        return "No step has been logged yet."
    if run.info is None:
        return f"{last.step:,} steps in {duration(last.seconds)}."
    if last.step >= run.info.num_steps:
        return f"Finished: {last.step:,} steps in {duration(last.seconds)}."
    share = last.tokens / run.info.num_tokens if run.info.num_tokens else 0.0
    return f"Step {last.step:,} of {run.info.num_steps:,} after {duration(last.seconds)}, {share:.0%} of the tokens."


def _sections(run: Run) -> Iterator[str]:
    yield _tiles(run)
    right = _stages(run.history) + (_held_out(run.evaluation) if run.evaluation else "")
    yield f'<section class="tables"><div>{_table("Summary", _facts(run))}</div><div>{right}</div></section>\n'
    if run.evaluation:
        yield _cards("Evaluation", evaluation_plots.PLOTS, run.evaluation)
    if run.history.steps:
        yield _cards("Training", plots.PLOTS, run.history)
    yield _events(run.history)


def _cards(heading: str, shown: Sequence[Plot[Subject]], subject: Subject) -> str:
    cards = ""
    for plot in shown:
        if picture := svg(partial(plot.draw, subject), plot.title):
            about = f"<h3>{escape(plot.title)}</h3><figcaption>{escape(plot.text)}</figcaption>"
            cards += f"<figure>{about}{picture}</figure>\n"
    return f'<section><h2>{heading}</h2>\n<div class="cards">\n{cards}</div></section>\n' if cards else ""


def _tiles(run: Run) -> str:
    """The few numbers that one looks for first."""
    tiles: list[tuple[str, str]] = []
    if run.history.steps:
        last = run.history.steps[-1]
        tiles.append((f"{last.loss:.3f}", "loss, nats per token"))
        if last.bits_per_byte is not None:
            tiles.append((f"{last.bits_per_byte:.3f}", "bits per byte, training"))
        tiles += [(compact(last.tokens), "tokens"), (duration(last.seconds), "training time")]
        if last.tokens_per_second is not None:
            peak = "" if last.share_of_peak is None else f", {last.share_of_peak:.0%} of peak"
            tiles.append((compact(last.tokens_per_second), f"tokens/s{peak}"))
    if run.evaluation and run.evaluation.tasks:
        tasks = run.evaluation.tasks.values()
        tiles.append((f"{sum(tasks) / len(tasks):.0%}", f"answers right, {len(tasks)} tasks"))
    boxes = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles)
    return f'<section class="tiles">{boxes}</section>\n'


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    info, steps = run.info, run.history.steps
    if info:
        yield "Recipe", info.recipe
        counts = f"{compact(info.num_parameters)} in all, {compact(info.num_active_parameters)} active per token"
        yield "Parameters", counts
    if steps:
        last = steps[-1]
        yield "Tokens", f"{last.tokens:,}" + (f" of {info.num_tokens:,}" if info else "")
        yield "Steps", f"{last.step:,}" + (f" of {info.num_steps:,}" if info else "")
        rate = f" ({compact(last.tokens / last.seconds)} tokens/s)" if last.seconds > 0 else ""
        yield "Time", f"{duration(last.seconds)}{rate}"
        yield (
            "Last loss",
            ", ".join([f"{last.loss:.4f}", *(f"{name} {value:.4f}" for name, value in last.parts.items())]),
        )
        if last.memory_bytes is not None:
            yield "Memory, at most", f"{last.memory_bytes / 2**30:.2f} GiB"
    if run.evaluation:
        yield from _measured(run.evaluation)
    if steps:
        undone = sum(event.to_step is not None for event in run.history.events)
        yield "Steps skipped", str(len(run.history.events) - undone)
        yield "Roll backs", str(undone)
    if info:
        yield "Hardware", info.hardware


def _measured(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """What an evaluation found that has no plot."""
    yield "Evaluated after", "" if evaluation.step is None else f"step {evaluation.step:,}"
    if calls := evaluation.tool_calls:
        share = f" ({calls['low']:.0%} to {calls['high']:.0%} with 95% confidence)"
        yield "Tool calls that validate", f"{calls['num_right']:,.0f} of {calls['num_all']:,.0f}{share}"
    if draft := evaluation.draft:
        shares = f"{draft['acceptance']:.0%} accepted, {draft['accuracy']:.0%} right"
        yield "Drafts of the next block", f"{shares}, of {draft['num_tokens']:,.0f} tokens"
    if loss := evaluation.attention:
        gap = f" ({loss['sparse'] / loss['dense'] - 1:+.2%})" if loss["dense"] else ""
        yield "Held-out loss", f"{loss['sparse']:.4f} with top rows, {loss['dense']:.4f} with all{gap}"


def _table(heading: str, rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>\n' for a, b in rows if b)
    return f"<h2>{heading}</h2>\n<table>\n{cells}</table>\n"


def _number_table(heading: str, names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    cells = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<h2>{heading}</h2>\n<table class="numbers">\n<tr>{head}</tr>\n{cells}</table>\n' if cells else ""


def _held_out(evaluation: Evaluation) -> str:
    rows = [(source, f"{bits:.3f}") for source, bits in evaluation.bits_per_byte.items()]
    load, recall = evaluation.expert_load, evaluation.indexer_recall
    layers = [
        (layer, f"{load[layer]:.2f}" if layer in load else "", f"{recall[layer]:.1%}" if layer in recall else "")
        for layer in sorted({*load, *recall}, key=lambda name: (len(name), name))
    ]
    return _number_table("Held-out text", ("Source", "Bits per byte"), rows) + _number_table(
        "Layers on held-out text", ("Layer", "Busiest expert / mean", "Indexer recall"), layers
    )


def _stages(history: History) -> str:
    rows = []
    before = None
    for _, group in itertools.groupby(history.steps, lambda record: (record.stage, record.sequence_length)):
        records = list(group)
        rows.append(_stage_row(records, before))
        before = records[-1]
    return _number_table("Stages", ("Stage", "Steps", "Tokens", "Sequence", "Time", "Loss at end"), rows)


def _stage_row(records: list[StepRecord], before: StepRecord | None) -> tuple[str, ...]:
    first, last = records[0], records[-1]
    start, tokens, seconds = (before.step + 1, before.tokens, before.seconds) if before else (1, 0, 0.0)
    return (
        first.stage,
        f"{start:,}–{last.step:,}" if start < last.step else f"{last.step:,}",
        compact(last.tokens - tokens),
        f"{first.sequence_length:,}",
        duration(last.seconds - seconds),
        f"{last.loss:.3f}",
    )


def _events(history: History) -> str:
    if not history.events:
        return ""
    lines = "".join(f"<li>{escape(event_line(event))}</li>\n" for event in history.events[-MAX_EVENTS:])
    left_out = len(history.events) - MAX_EVENTS
    note = f"<p>The last {MAX_EVENTS} of {len(history.events)}.</p>" if left_out > 0 else ""
    return f'<section class="events"><h2>Events</h2>{note}<ul>\n{lines}</ul></section>\n'
