"""Lines and the bar of a training run, on a terminal and elsewhere."""

import io
import re

import pytest
from fake_run import NUM_STEPS, TOKENS_PER_STEP, record

from pelagos.training.console import ConsoleLine, compact, duration, event_line, step_line
from pelagos.training.metrics import Event, StepRecord


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


ROLL_BACK = Event(step=45, kind="rolled_back", to_step=30, reason="loss 9 above 4")


def show_run(stream: io.StringIO) -> str:
    with ConsoleLine(num_steps=NUM_STEPS, num_tokens=NUM_STEPS * TOKENS_PER_STEP, stream=stream) as console:
        for step in (240, 250, 260):
            console.advance(step * TOKENS_PER_STEP)
            console.show(record(step, tokens_per_second=TOKENS_PER_STEP / 2))
        console.show(ROLL_BACK)
        console.advance(270 * TOKENS_PER_STEP)
    return stream.getvalue()


def test_lines_elsewhere_are_plain() -> None:
    lines = show_run(io.StringIO()).splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "stage short: sequences of 256 tokens",
        "step 240/550",
        "stage middle: sequences of 1,024 tokens",
        "step 250/550",
        "step 260/550",
        "step 45: rolled back to step 30: loss 9 above 4",
    ]
    assert [re.search(r"(\S+) left", line)[1] for line in lines if line.startswith("step 2")] == [
        "10:20",  # 310, 300 and 290 steps of 2 seconds
        "10:00",
        "9:40",
    ]


def test_a_terminal_has_a_bar_below_the_same_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    text = show_run(Terminal())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text)
    for line in show_run(io.StringIO()).splitlines():
        assert line in plain
    assert "━" in plain
    assert "49%  9:20 left" in plain  # 270 of 550 steps, 280 steps of 2 seconds
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_one_slow_step_hardly_moves_the_time_left() -> None:
    stream = io.StringIO()
    with ConsoleLine(num_steps=100, num_tokens=100_000, stream=stream) as console:
        for step, speed in ((10, 100.0), (20, 50.0)):
            console.show(record(step, tokens=1000 * step, tokens_per_second=speed))
    assert "15:00 left" in stream.getvalue()
    assert f"{duration(80_000 / 90)} left" in stream.getvalue()


def test_a_line_holds_what_was_measured_and_no_more() -> None:
    full = StepRecord(
        step=7,
        tokens=114_688,
        seconds=1.0,
        stage="a",
        sequence_length=256,
        batch_tokens=16384,
        loss=3.41234,
        learning_rate=5e-3,
        parts={"main": 3.2, "mtp": 0.6},
        bits_per_byte=2.11,
        tokens_per_second=6234.0,
        share_of_peak=0.52,
        gradient_norm=0.834,
        expert_load={0: 1.2, 1: 1.44},
        indexer_recall={1: 0.97, 3: 0.934},
        memory_bytes=3 << 30,
    )
    assert step_line(full, 550, 734.2) == (
        "step   7/550  115k tokens  loss 3.412 (main 3.200, mtp 0.600)  2.110 bits/byte  lr 5.00e-03  grad 0.83  "
        "load 1.4x  recall 0.93  6.23k tokens/s (52% of peak)  3.0 GiB  12:14 left"
    )
    least = StepRecord(
        step=7,
        tokens=8,
        seconds=1.0,
        stage="a",
        sequence_length=4,
        batch_tokens=8,
        loss=float("nan"),
        learning_rate=0.1,
    )
    assert step_line(least, 9, None) == "step 7/9  8 tokens  loss nan  lr 1.00e-01"


def test_events_are_told_in_a_line() -> None:
    skipped = Event(step=12, kind="skipped", reason="the gradient is not finite")
    assert event_line(skipped) == "step 12: batch skipped: the gradient is not finite"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (0.25, "0.25"), (950, "950"), (999.4, "999"), (999.6, "1k"), (1234, "1.23k"), (16_400_000, "16.4M"),
        (284e9, "284B"), (1.6e12, "1.6T"), (-1500, "-1.5k"), (3.3e15, "3.3e+03T"),
    ],
)  # fmt: skip
def test_compact_numbers(number: float, text: str) -> None:
    assert compact(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (6.6, "0:07"), (754, "12:34"), (3723, "1:02:03"), (3599.7, "1:00:00"), (273906, "3 d 04:05:06")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
