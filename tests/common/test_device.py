import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pelagos.common import device
from pelagos.common.device import Accelerator, Memory, Processor
from pelagos.common.errors import ResourceError, UsageError

GIB = 1 << 30


def cpuinfo(packages: int, cores: int, threads: int) -> str:
    """/proc/cpuinfo of an x86-64 machine with so many of each."""
    entries = [
        f"processor\t: {package * cores * threads + thread}\n"
        "vendor_id\t: GenuineIntel\n"
        "model name\t: Intel(R) Xeon(R) Platinum 8480+\n"
        f"physical id\t: {package}\n"
        f"core id\t\t: {thread % cores}\n"
        "flags\t\t: fpu sse2 fma f16c avx avx2 avx512f avx512_bf16 amx_bf16\n"
        "power management:\n"
        for package in range(packages)
        for thread in range(cores * threads)
    ]
    return "\n".join(entries)


def test_x86_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 224)
    assert device.linux_processor(cpuinfo(packages=2, cores=56, threads=2)) == Processor(
        model="Intel(R) Xeon(R) Platinum 8480+",
        num_physical_cores=112,
        num_logical_cores=224,
        instruction_sets=("avx", "f16c", "fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16"),
    )


def test_arm_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    text = (
        "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd aes asimdhp asimddp sve i8mm bf16\nCPU part\t: 0xd40\n"
    )
    assert device.linux_processor(text * 64) == Processor(
        model=None,
        num_physical_cores=None,
        num_logical_cores=64,
        instruction_sets=("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve"),
    )


def test_apple_processor_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    sysctl = (
        "hw.ncpu: 12\nhw.physicalcpu: 12\nhw.memsize: 38654705664\nhw.optional.AdvSIMD: 1\n"
        "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_SME: 0\n"
        "machdep.cpu.brand_string: Apple M3 Pro\n"
    )
    vm_stat = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free:    1000.\nPages active:  5000.\n"
        'Pages inactive:  200.\nPages speculative:  30.\nPages wired down:  9000.\n"Translation faults":  77.\n'
    )
    assert device.macos_processor(sysctl) == Processor(
        model="Apple M3 Pro",
        num_physical_cores=12,
        num_logical_cores=12,
        instruction_sets=("asimd", "asimddp", "bf16"),
    )
    assert device.macos_memory(sysctl, vm_stat) == Memory(total=36 * GIB, available=1230 * 16384, limit=None)


def test_a_silent_system_is_described_as_unknown(tmp_path: Path) -> None:
    for processor in (device.linux_processor(""), device.macos_processor("")):
        assert (processor.model, processor.num_physical_cores, processor.instruction_sets) == (None, None, ())
    nothing = Memory(total=None, available=None, limit=None)
    assert device.linux_memory("", tmp_path) == device.macos_memory("", "") == nothing


def test_memory_respects_the_control_group(tmp_path: Path) -> None:
    meminfo = f"MemTotal:  {8 << 20} kB\nMemFree:  1000 kB\nMemAvailable:  {6 << 20} kB\nHugePages_Total:       0\n"
    assert device.linux_memory(meminfo, tmp_path) == Memory(total=8 * GIB, available=6 * GIB, limit=None)
    for name, text in {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        "sys/fs/cgroup/memory.current": f"{GIB}\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert device.linux_memory(meminfo, tmp_path) == Memory(total=8 * GIB, available=GIB, limit=2 * GIB)


@pytest.mark.parametrize(("quota", "expected"), [(None, 8), (0.5, 1), (1.9, 1), (3.0, 3), (64.0, 8)])
def test_usable_cores(quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert device.usable_cores(quota) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("  - Build settings: BLAS_INFO=mkl, BUILD_TYPE=Release", "MKL"),
        ("BLAS_INFO=open, LAPACK_INFO=open", "OpenBLAS"),
        ("BLAS_INFO=accelerate,", "Accelerate"),
        ("BLAS_INFO=flexi,", "flexi"),
        ("LAPACK_INFO=mkl", "unknown"),
    ],
)
def test_blas_name(build: str, expected: str) -> None:
    assert device.blas_name(build) == expected


# --- naming a device ---


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "npu", SimpleNamespace(device_count=lambda: 0), raising=False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_parse_device(two_gpus: None) -> None:
    expected = {
        "cpu": ("cpu", None),
        "mps": ("mps", 0),
        "cuda": ("cuda", 0),
        "cuda:0": ("cuda", 0),
        "cuda:1": ("cuda", 1),
    }
    for text, (kind, index) in expected.items():
        assert device.parse_device(text) == torch.device(kind, index)


@pytest.mark.parametrize(
    "text", ["", "gpu", "CPU", "cpu:0", "mps:0", "cuda:", "cuda:-1", "cuda:x", "cuda:1 ", "cuda:٣", "meta"]
)
def test_an_unknown_name_lists_the_known_ones(two_gpus: None, text: str) -> None:
    with pytest.raises(UsageError, match=r"^device must be cpu, mps, cuda, cuda:N, npu or npu:N, got ") as caught:
        device.parse_device(text)
    assert repr(text) in str(caught.value)


def test_a_number_out_of_range_names_the_range(two_gpus: None) -> None:
    with pytest.raises(ResourceError, match=r"^device cuda:2 is not available: this machine has cuda:0 to cuda:1$"):
        device.parse_device("cuda:2")


def test_a_device_that_is_not_there(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResourceError, match=r"^device npu is not available: torch 2\..* finds no npu device here$"):
        device.parse_device("npu")
    monkeypatch.delattr(torch, "npu")
    with pytest.raises(ResourceError, match=r"^device npu:1 is not available"):
        device.parse_device("npu:1")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ResourceError, match=r"^device mps is not available"):
        device.parse_device("mps")


def test_accelerators_are_named_from_the_drivers_files(two_gpus: None, tmp_path: Path) -> None:
    for number in range(3):  # the driver may know more devices than torch is allowed to use
        folder = tmp_path / f"proc/driver/nvidia/gpus/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 51\n")
    processor = device.macos_processor("machdep.cpu.brand_string: Apple M3 Pro\n")
    assert device.accelerators(processor, tmp_path) == (
        Accelerator(kind="cuda", num_devices=2, models=("NVIDIA H100 80GB HBM3",) * 3),
        Accelerator(kind="mps", num_devices=1, models=("Apple M3 Pro",)),
    )


# --- this machine ---


def test_describe_machine_agrees_with_the_system_and_starts_no_device() -> None:
    code = """
import os, sys
from pelagos.common.device import describe_machine, parse_device
assert "torch" not in sys.modules
machine = describe_machine()
import torch
assert not torch.cuda.is_initialized()
assert machine.torch_version == torch.__version__
assert machine.processor.num_logical_cores == os.cpu_count()
assert 1 <= machine.num_usable_cores <= os.cpu_count()
physical_pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
assert abs(machine.memory.total - physical_pages) < 0.01 * physical_pages
assert 0 < machine.memory.available <= machine.memory.total
capability = machine.torch_cpu_capability.lower()
if capability in ("avx2", "avx512"):
    assert any(name.startswith(capability) for name in machine.processor.instruction_sets)
assert parse_device("cpu") == torch.device("cpu")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
