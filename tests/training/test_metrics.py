"""The log of a run: what is written comes back, crashes and resumes leave no trace, wrong files are named."""

import errno
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_run import record
from hypothesis import given
from hypothesis import strategies as st

from pelagos.common.device import Accelerator, Machine, Memory, Processor
from pelagos.common.errors import ConfigError, PelagosError, ResourceError, UsageError
from pelagos.training.metrics import (
    METRICS_FILE,
    Event,
    MetricsLog,
    RunInfo,
    StepRecord,
    bits_per_byte,
    describe_hardware,
    read_history,
    read_run_info,
    share_of_peak,
    stream_gain,
    write_run_info,
)

MINIMAL = {
    "step": 1,
    "tokens": 8,
    "seconds": 0.5,
    "stage": "a",
    "sequence_length": 4,
    "batch_tokens": 8,
    "loss": 2.5,
    "learning_rate": 1e-3,
}
ROLL_BACK = Event(step=45, kind="rolled_back", to_step=30, reason="loss 9 above 4")

# A run that is logged every ten steps, skips a batch, and goes back from step 45 to 30.
ENTRIES = [
    *(record(step) for step in (10, 20)),
    Event(step=23, kind="skipped", reason="the gradient is not finite"),
    *(record(step) for step in (30, 40)),
    ROLL_BACK,
    *(record(step, loss=1.0) for step in (40, 50, 60)),
]


def write(folder: Path, entries: list[StepRecord | Event], resume_step: int | None = None) -> bytes:
    with MetricsLog(folder, resume_step=resume_step) as log:
        for entry in entries:
            log.write(entry)
    return (folder / METRICS_FILE).read_bytes()


def test_bits_per_byte_of_uniform_bytes_is_eight() -> None:
    assert bits_per_byte(math.log(256), 1.0) == pytest.approx(8.0)
    assert bits_per_byte(math.log(256), 4.0) == pytest.approx(2.0)


def test_share_of_peak() -> None:
    assert share_of_peak(1000.0, 44.6e6, 100e9) == pytest.approx(0.446)


def test_stream_gain_is_the_largest_sum_over_all_products() -> None:
    mixes = np.random.default_rng(3).normal(size=(4, 5, 3, 3))
    sums = []
    for token in range(5):
        for count in range(1, 5):
            product = np.linalg.multi_dot([np.eye(3), *mixes[:count, token]])
            sums += [abs(product[row]).sum() for row in range(3)] + [abs(product[:, row]).sum() for row in range(3)]
    assert stream_gain(torch.tensor(mixes)) == pytest.approx(max(sums))


def test_stream_gain_counts_rows_and_columns() -> None:
    one_row = torch.tensor([[[[1.0, -1.0], [0.0, 0.0]]]])
    assert stream_gain(one_row) == stream_gain(one_row.mT) == 2.0


def test_stream_gain_of_doubly_stochastic_mixing_is_one() -> None:
    permutations = torch.eye(4).repeat(6, 2, 1, 1)[..., torch.tensor([2, 0, 3, 1])]
    assert stream_gain(permutations) == 1.0
    assert stream_gain(0.5 * permutations + 0.125) == pytest.approx(1.0)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    write(tmp_path, ENTRIES)
    history = read_history(tmp_path)
    assert history.steps == (*ENTRIES[:2], ENTRIES[3], *ENTRIES[-3:])
    assert history.abandoned == ((ENTRIES[4],),)
    assert history.events == (ENTRIES[2], ROLL_BACK)


numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    loss=numbers,
    rate=numbers,
    parts=st.dictionaries(st.text(), numbers),
    share=st.none() | numbers,
    bias=st.dictionaries(st.integers(0, 99), st.tuples(numbers, numbers)),
    stage=st.text(),
)
def test_any_finite_numbers_come_back(tmp_path_factory, loss, rate, parts, share, bias, stage) -> None:
    folder = tmp_path_factory.mktemp("run")
    values = {"loss": loss, "learning_rate": rate, "parts": parts, "share_of_peak": share, "router_bias": bias}
    entry = StepRecord(**(MINIMAL | values | {"stage": stage}))
    write(folder, [entry])
    assert read_history(folder).steps == (entry,)


def test_lines_are_json_and_hold_only_what_was_measured(tmp_path: Path) -> None:
    entry = StepRecord(**(MINIMAL | {"loss": math.nan, "parts": {"main": math.inf}, "router_bias": {3: (-0.5, 0.5)}}))
    line = write(tmp_path, [entry]).decode()
    assert json.loads(line) == MINIMAL | {"loss": None, "parts": {"main": None}, "router_bias": {"3": [-0.5, 0.5]}}
    [back] = read_history(tmp_path).steps
    assert math.isnan(back.loss)
    assert math.isnan(back.parts["main"])
    assert back.gradient_norm is None


def test_a_half_written_last_line_is_dropped(tmp_path: Path) -> None:
    whole = write(tmp_path, ENTRIES)
    start = whole[:-1].rindex(b"\n") + 1
    for cut in (start + 1, start + 100, len(whole) - 1):
        (tmp_path / METRICS_FILE).write_bytes(whole[:cut])
        assert read_history(tmp_path).steps[-1].step == 50
        assert write(tmp_path, ENTRIES[-1:]) == whole
    (tmp_path / METRICS_FILE).write_bytes(whole[:start] + b"\0" * 512)  # what some disks leave after a power cut
    assert write(tmp_path, ENTRIES[-1:]) == whole


def crashes() -> Iterator[tuple[int, int]]:
    """Numbers of entries that the log holds when a checkpoint is written after a step, and when the run crashes."""
    for known in range(1, len(ENTRIES) + 1):
        if isinstance(ENTRIES[known - 1], StepRecord):
            for written in range(known, len(ENTRIES) + 1):
                later = {entry.step for entry in ENTRIES[known:written] if isinstance(entry, StepRecord)}
                if ENTRIES[known - 1].step not in later:  # else a newer checkpoint has replaced it
                    yield known, written


@pytest.mark.parametrize(("known", "written"), list(crashes()))
def test_a_resumed_run_leaves_the_log_of_the_unbroken_one(tmp_path: Path, known: int, written: int) -> None:
    whole = write(tmp_path, ENTRIES)
    (tmp_path / METRICS_FILE).unlink()
    assert whole.startswith(write(tmp_path, ENTRIES[:written]))
    assert write(tmp_path, ENTRIES[known:], resume_step=ENTRIES[known - 1].step) == whole


def test_resuming_between_logged_steps(tmp_path: Path) -> None:
    whole = write(tmp_path, ENTRIES)
    assert write(tmp_path, ENTRIES[3:], resume_step=25) == whole
    assert write(tmp_path, ENTRIES[2:], resume_step=22) == whole
    assert write(tmp_path, ENTRIES, resume_step=0) == whole


def test_resuming_before_a_roll_back_forgets_it(tmp_path: Path) -> None:
    write(tmp_path, ENTRIES)
    write(tmp_path, [record(35)], resume_step=30)
    assert [entry.step for entry in read_history(tmp_path).steps] == [10, 20, 30, 35]
    assert [event.kind for event in read_history(tmp_path).events] == ["skipped"]


def test_steps_must_rise(tmp_path: Path) -> None:
    write(tmp_path, [record(10)])
    with pytest.raises(AssertionError, match="step 10 was logged already"):
        write(tmp_path, [record(10)])
    write(tmp_path, [Event(step=12, kind="rolled_back", to_step=5, reason="x"), record(10)])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 must be JSON"),
        ("[]", "line 1 must be an object"),
        ('{"step": 1, "step": 2}', "line 1 must be JSON with unique keys"),
        (json.dumps(MINIMAL | {"loss": "low"}), "line 1: loss must be a number, got 'low'"),
        (json.dumps(MINIMAL | {"step": 1.5}), "line 1: step must be a whole number, got 1.5"),
        (
            json.dumps(MINIMAL | {"expert_load": {"a": 1.0}}),
            "line 1: expert_load must be an object with numbers of lay",
        ),
        (json.dumps(MINIMAL | {"router_bias": {"1": [1.0]}}), r"line 1: router_bias\[1\] must be a list of 2 numbers"),
        (json.dumps({k: v for k, v in MINIMAL.items() if k != "stage"}), "line 1: stage is missing"),
        (
            json.dumps({"event": "lost", "step": 1, "reason": ""}),
            "line 1: kind must be one of 'skipped', 'rolled_back'",
        ),
    ],
)
def test_a_broken_line_is_named_and_nothing_is_changed(tmp_path: Path, line: str, message: str) -> None:
    text = f"{line}\n{json.dumps(MINIMAL)}\n"
    (tmp_path / METRICS_FILE).write_text(text)
    for use in (read_history, MetricsLog):
        with pytest.raises(PelagosError, match=f"{METRICS_FILE} {message}"):
            use(tmp_path)
    assert (tmp_path / METRICS_FILE).read_text() == text


def test_names_of_later_versions_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(json.dumps(MINIMAL | {"mood": "good"}) + "\n")
    assert read_history(tmp_path).steps == (StepRecord(**MINIMAL),)


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be the folder of a training run, but has no metrics"):
        read_history(tmp_path)


@pytest.mark.parametrize("full", ["half a line", "nothing"])
def test_a_full_disk_is_an_error_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    real = os.write

    def write_less(file: int, data: bytes) -> int:
        if full == "nothing":
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[: len(data) // 2])

    with MetricsLog(tmp_path) as log:
        log.write(record(1))
        monkeypatch.setattr(os, "write", write_less)
        with pytest.raises(ResourceError, match="cannot grow: no space is left"):
            log.write(record(2))
        monkeypatch.undo()
        log.sync()
    assert [entry.step for entry in read_history(tmp_path).steps] == [1]


def test_run_info_comes_back(tmp_path: Path) -> None:
    assert read_run_info(tmp_path) is None
    info = RunInfo(
        recipe="nano", num_parameters=9, num_active_parameters=4, num_steps=3, num_tokens=24, hardware="one box"
    )
    write_run_info(tmp_path, info)
    assert read_run_info(tmp_path) == info
    (tmp_path / "run.json").write_text('{"recipe": 3}')
    with pytest.raises(ConfigError, match=r"run\.json: recipe must be text, got 3"):
        read_run_info(tmp_path)


def test_hardware_is_described_in_a_line() -> None:
    machine = Machine(
        system="Linux",
        processor=Processor(model=None, num_physical_cores=None, num_logical_cores=8, instruction_sets=()),
        cpu_quota=None,
        num_usable_cores=8,
        memory=Memory(total=64 << 30, available=None, limit=None),
        torch_version="2.13.0",
        torch_blas="MKL",
        torch_cpu_capability="AVX2",
        accelerators=(
            Accelerator(kind="cuda", num_devices=2, models=("H100", "H100")),
            Accelerator(kind="npu", num_devices=0, models=()),
        ),
    )
    assert describe_hardware(machine) == "Linux, 8 cores, 64 GiB, 2 x H100, torch 2.13.0 (MKL, AVX2)"


def test_tensorboard_holds_the_same_numbers(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with MetricsLog(tmp_path, tensorboard=True) as log:
        for step in (1, 2, 3):
            log.write(record(step))
    events = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    for tag, get in {
        "loss": lambda r: r.loss,
        "parts/mtp": lambda r: r.parts["mtp"],
        "expert_load/layer_02": lambda r: r.expert_load[2],
        "router_bias/layer_03/low": lambda r: r.router_bias[3][0],
        "memory_bytes": lambda r: r.memory_bytes,
    }.items():
        seen = [(event.step, event.value) for event in events.Scalars(tag)]
        assert seen == [(step, np.float32(get(record(step)))) for step in (1, 2, 3)]
    assert not {"step", "stage"} & set(events.Tags()["scalars"])


def test_tensorboard_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"needs the package tensorboard: pip install 'pelagos\[train\]'"):
        MetricsLog(tmp_path, tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_importing_loads_no_optional_package() -> None:
    code = (
        "import sys, pelagos.training.metrics, pelagos.training.console, pelagos.training.report\n"
        "print({'matplotlib', 'tensorboard', 'rich', 'PIL'} & {name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
