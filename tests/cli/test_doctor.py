"""``pelagos doctor``: what it says, and which machines it finds problems with."""

import dataclasses
import json
from importlib import metadata
from typing import Any

import pytest
import torch

from pelagos.cli import doctor
from pelagos.cli.doctor import Kernels, find_problems, measure
from pelagos.cli.main import main
from pelagos.common.device import Accelerator, Machine, Memory, Processor
from pelagos.ops.contract import OPS
from pelagos.ops.cpu.rates import best_seconds
from pelagos.ops.dispatch import Choice
from pelagos.ops.reference.row_products import Probe

MACHINE = Machine(
    system="Linux 6.1 x86_64",
    processor=Processor(model="Some CPU", num_physical_cores=4, num_logical_cores=8, instruction_sets=("avx2",)),
    cpu_quota=3.5,
    num_usable_cores=3,
    memory=Memory(total=64_000_000_000, available=None, limit=8_000_000_000),
    torch_version="2.13.0",
    torch_blas="MKL",
    torch_cpu_capability="AVX2",
    accelerators=(),
)
GPU = Accelerator(kind="cuda", num_devices=2, models=("H100",))
TILE = Probe(tile_rows=16, reason="rows agree")
KERNELS = Kernels(
    compiled=["avx2", "generic"],
    available=["avx2", "generic"],
    chosen="avx2",
    num_threads=3,
    memory_nodes=[],
    reason="the best",
)
LIBRARIES: dict[str, str | None] = {"torch": "2.13.0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.01)
    monkeypatch.setattr(doctor, "READ_BYTES", 1 << 20)
    monkeypatch.setattr(doctor, "MATRIX_SIZE", 64)


def problems(**changes: Any) -> list[str]:
    machine = dataclasses.replace(MACHINE, **changes.pop("machine", {}))
    arguments: dict[str, Any] = {"libraries": LIBRARIES, "row_tile": TILE, "num_threads": 3, "has_nvidia_driver": False}
    arguments["kernels"] = dataclasses.replace(KERNELS, **changes.pop("kernels", {}))
    return find_problems(machine, **arguments | changes)


def test_a_good_machine_has_no_problems() -> None:
    assert problems() == []
    assert problems(machine={"accelerators": (GPU,)}, has_nvidia_driver=True) == []
    assert problems(machine={"system": "Darwin 24.0 arm64", "torch_cpu_capability": "NO AVX"}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"libraries": {"torch": "2", "rich": None}}, "rich is not installed"),
        (
            {"row_tile": Probe(tile_rows=1, reason="rows differ")},
            "run row by row, which makes long prompts slow: rows differ",
        ),
        ({"kernels": {"available": [], "reason": "no compiler"}}, "run on PyTorch, many times slower: no compiler"),
        ({"kernels": {"available": ["generic"]}}, "(avx2, generic) this processor runs only the plain C++ one"),
        ({"num_threads": 4}, "4 threads share 3 usable cores"),
        ({"has_nvidia_driver": True}, "there is an NVIDIA driver, but torch 2.13.0 finds no GPU"),
        ({"machine": {"torch_cpu_capability": "DEFAULT"}}, "without AVX2"),
    ],
)
def test_each_problem_is_found_alone(changes: dict[str, Any], expected: str) -> None:
    (problem,) = problems(**changes)
    assert expected in problem


def test_json_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--threads", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {
        "pelagos",
        "machine",
        "libraries",
        "kernels",
        "ops",
        "row_tile",
        "rates",
        "products",
        "problems",
    }
    assert report["pelagos"] == metadata.version("pelagos")
    assert report["libraries"]["torch"] == metadata.version("torch")
    assert [choice["op"] for choice in report["ops"]] == list(OPS)
    assert all(choice["reason"] for choice in report["ops"])
    assert report["rates"]["num_threads"] == torch.get_num_threads() == 1
    assert report["machine"]["torch_version"] == torch.__version__
    assert len(report["products"]) == (6 if report["kernels"]["available"] else 0)
    for product in report["products"]:
        assert product["value"] > 0
        assert product["share"] > 0


def test_text_has_a_part_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--threads", "1"]) == 0
    output = capsys.readouterr().out
    for title in ("machine", "libraries", "ops", "measured", "problems"):
        assert f"\n{title}\n" in f"\n{output}"
    for op in OPS:
        assert op in output


def test_text_says_what_is_unknown_and_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pelagos.common.device.describe_machine", lambda: dataclasses.replace(MACHINE, accelerators=(GPU,))
    )
    monkeypatch.setattr(doctor, "LIBRARIES", ("torch", "no-such-library"))
    monkeypatch.setattr(
        "pelagos.ops.dispatch.choices",
        lambda: [
            Choice(op="linear", implementation="cpu.linear", reason="the CPU has AVX2"),
            Choice(op="attend", implementation="reference.attention", reason="nothing faster"),
            Choice(op="swiglu", implementation="cpu.linear", reason="the CPU has AVX2"),
        ],
    )
    assert main(["doctor", "--threads", "3"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for expected in (
        "cores 4 physical, 8 logical, 3 usable, limited to 3.5 by a control group",
        "memory 64.0 GB, unknown available, limited to 8.0 GB by a control group",
        "accelerators 2 cuda (H100)",
        "no-such-library not installed",
        "- no-such-library is not installed, and Pelagos needs it: install Pelagos again with pip",
        "cpu.linear linear, swiglu",
        "why the CPU has AVX2",
        "reference.attention attend",
    ):
        assert expected in lines


def test_rates_are_work_over_the_best_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pelagos.ops.cpu.rates.best_seconds", lambda work, seconds: (work(), 0.5)[1])
    rates = measure(num_threads=2)
    assert rates.read_bytes_per_second == (1 << 20) / 0.5
    assert rates.float32_flops == 2 * 64**3 / 0.5


def test_the_best_of_the_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 0.0, 3.0, 3.0, 4.0, 4.0, 9.0])  # the end is set, then runs of 3, 1 and 5 seconds
    monkeypatch.setattr("pelagos.ops.cpu.rates.time.perf_counter", lambda: next(times))
    assert best_seconds(lambda: None, 5.0) == 1.0
