"""What a person sees while a model trains: a line per log interval, and on a terminal a bar with the time left."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from pelagos.training.metrics import Event, StepRecord

if TYPE_CHECKING:
    from rich.progress import Progress

RATE_MEMORY = 0.8  # how much of the time left comes from older speeds: one slow step must not make it jump


class ConsoleLine:
    """Writes to ``stream`` (default: standard error). The bar appears on a terminal only; elsewhere lines are plain.

    with ConsoleLine(num_steps=550, num_tokens=9_000_000) as console:
        console.advance(tokens)  # after every step
        console.show(record)  # after every logged step
    """

    def __init__(self, *, num_steps: int, num_tokens: int, stream: TextIO | None = None) -> None:
        self._num_steps, self._num_tokens = num_steps, num_tokens
        self._stream = stream or sys.stderr
        self._stage: tuple[str, int] | None = None
        self._rate: float | None = None
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(None), TextColumn("{task.percentage:>3.0f}%  {task.fields[left]}"))
            console = Console(file=self._stream, highlight=False, markup=False)
            self._bar = Progress(*columns, console=console, auto_refresh=False, expand=True)  # no thread beside torch
            self._task = self._bar.add_task("", total=self._num_tokens, left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, tokens: int) -> None:
        """Move the bar. tokens: seen so far."""
        if self._bar is not None:
            left = self._seconds_left(tokens)
            text = "" if left is None else f"{duration(left)} left"
            self._bar.update(self._task, completed=tokens, left=text, refresh=True)

    def show(self, entry: StepRecord | Event) -> None:
        """Write a line about a logged step or an event, and one more where a stage begins."""
        if isinstance(entry, Event):
            self._write(event_line(entry))
            return
        stage = (entry.stage, entry.sequence_length)
        if stage != self._stage:
            self._write(f"stage {entry.stage}: sequences of {entry.sequence_length:,} tokens")
            self._stage = stage
        if entry.tokens_per_second:
            old = self._rate or entry.tokens_per_second
            self._rate = RATE_MEMORY * old + (1 - RATE_MEMORY) * entry.tokens_per_second
        self._write(step_line(entry, self._num_steps, self._seconds_left(entry.tokens)))

    def _seconds_left(self, tokens: int) -> float | None:
        return max(self._num_tokens - tokens, 0) / self._rate if self._rate else None

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def step_line(record: StepRecord, num_steps: int, seconds_left: float | None) -> str:
    """A logged step in one line; what was not measured is left out."""
    parts = ", ".join(f"{name} {value:.3f}" for name, value in record.parts.items())
    pieces = [
        f"step {record.step:>{len(str(num_steps))}}/{num_steps}",
        f"{compact(record.tokens)} tokens",
        f"loss {record.loss:.3f}" + (f" ({parts})" if parts else ""),
    ]
    if record.bits_per_byte is not None:
        pieces.append(f"{record.bits_per_byte:.3f} bits/byte")
    pieces.append(f"lr {record.learning_rate:.2e}")
    if record.gradient_norm is not None:
        pieces.append(f"grad {record.gradient_norm:.2f}")
    if record.expert_load:
        pieces.append(f"load {max(record.expert_load.values()):.1f}x")
    if record.indexer_recall:
        pieces.append(f"recall {min(record.indexer_recall.values()):.2f}")
    if record.tokens_per_second is not None:
        peak = "" if record.share_of_peak is None else f" ({record.share_of_peak:.0%} of peak)"
        pieces.append(f"{compact(record.tokens_per_second)} tokens/s{peak}")
    if record.memory_bytes is not None:
        pieces.append(f"{record.memory_bytes / 2**30:.1f} GiB")
    if seconds_left is not None:
        pieces.append(f"{duration(seconds_left)} left")
    return "  ".join(pieces)


def event_line(event: Event) -> str:
    """An event in one line."""
    what = "batch skipped" if event.to_step is None else f"rolled back to step {event.to_step}"
    return f"step {event.step}: {what}: {event.reason}"


def compact(number: float) -> str:
    """At most three digits and a letter: 0.25, 950, 1.23k, 45.6M, 284B, 1.6T."""
    for letter in ("", "k", "M", "B", "T"):
        if abs(number) < 999.5 or letter == "T":
            break
        number /= 1000
    return f"{number:.3g}{letter}"


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:02:03, 3 d 04:05:06."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour:02d}:{minute:02d}:{second:02d}"
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
