"""What this machine is made of, and the names of its devices. Nothing here starts an accelerator."""

import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pelagos.common import cgroup
from pelagos.common.errors import ResourceError, UsageError

if TYPE_CHECKING:
    import torch

ACCELERATORS = ("cuda", "mps", "npu")  # NVIDIA and AMD GPUs, Apple GPUs, Ascend NPUs

# Instruction sets that matter to our kernels, in the words of Linux. x86-64 first, then 64-bit Arm (asimd is NEON).
_INSTRUCTION_SETS = (
    *("avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16"),
    *("asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"),
)
_MACOS_NAMES = {
    "hw.optional.AdvSIMD": "asimd",
    "hw.optional.arm.FEAT_FP16": "asimdhp",
    "hw.optional.arm.FEAT_DotProd": "asimddp",
    "hw.optional.arm.FEAT_I8MM": "i8mm",
    "hw.optional.arm.FEAT_BF16": "bf16",
    "hw.optional.arm.FEAT_SME": "sme",
    "hw.optional.arm.FEAT_SME2": "sme2",
}
_BLAS_NAMES = {"mkl": "MKL", "open": "OpenBLAS", "accelerate": "Accelerate"}


@dataclass(frozen=True, kw_only=True)
class Processor:
    """``instruction_sets`` are those that kernels could use, in the words of Linux. None: the system does not say."""

    model: str | None
    num_physical_cores: int | None
    num_logical_cores: int
    instruction_sets: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of RAM. ``limit`` is a control group's, None without one: ``available`` respects it, ``total`` does not.
    None: the system does not say."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """``num_devices`` is what torch may use; ``models`` is what the driver has, as it names them (may be empty)."""

    kind: str
    num_devices: int
    models: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """``cpu_quota`` is a control group's limit in cores, None without one. ``num_usable_cores`` respects it and the
    process's affinity. ``torch_cpu_capability`` is the instruction set that torch's own kernels use."""

    system: str
    processor: Processor
    cpu_quota: float | None
    num_usable_cores: int
    memory: Memory
    torch_version: str
    torch_blas: str
    torch_cpu_capability: str
    accelerators: tuple[Accelerator, ...]


def describe_machine() -> Machine:
    """Look at the machine. Takes seconds the first time, because it imports torch."""
    import torch

    if sys.platform == "darwin":
        sysctl = _output("sysctl", "hw", "machdep.cpu")
        processor, memory = macos_processor(sysctl), macos_memory(sysctl, _output("vm_stat"))
    else:
        processor, memory = linux_processor(_read("/proc/cpuinfo")), linux_memory(_read("/proc/meminfo"))
    quota = cgroup.cpu_quota()
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor,
        cpu_quota=quota,
        num_usable_cores=usable_cores(quota),
        memory=memory,
        torch_version=str(torch.__version__),
        torch_blas=blas_name(torch.__config__.show()),
        torch_cpu_capability=torch.backends.cpu.get_cpu_capability(),
        accelerators=accelerators(processor),
    )


def usable_cores(quota: float | None) -> int:
    """Logical cores that this process may run on, at most ``quota`` rounded down, at least 1."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return cores if quota is None else max(1, min(cores, int(quota)))


def linux_processor(cpuinfo: str) -> Processor:
    """Read the text of /proc/cpuinfo. Arm kernels give neither a model's name nor core numbers: None."""
    values: list[tuple[str, str]] = re.findall(r"^(\w[\w ]*?)\s*:[ \t]*(.*)$", cpuinfo, re.MULTILINE)
    first = dict(reversed(values))
    packages = [value for name, value in values if name == "physical id"]
    cores = [value for name, value in values if name == "core id"]
    flags = set(first.get("flags", first.get("Features", "")).split())
    return Processor(
        model=first.get("model name"),
        num_physical_cores=len(set(zip(packages, cores, strict=False))) or None,
        num_logical_cores=os.cpu_count() or 1,
        instruction_sets=tuple(name for name in _INSTRUCTION_SETS if name in flags),
    )


def linux_memory(meminfo: str, root: Path = Path("/")) -> Memory:
    """Read the text of /proc/meminfo and the control groups under ``root``."""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+): +(\d+) kB$", meminfo, re.MULTILINE)}
    known = [size for size in (sizes.get("MemAvailable"), cgroup.memory_left(root)) if size is not None]
    return Memory(total=sizes.get("MemTotal"), available=min(known, default=None), limit=cgroup.memory_limit(root))


def macos_processor(sysctl: str) -> Processor:
    """Read the output of ``sysctl hw machdep.cpu``."""
    values = dict(re.findall(r"^([\w.]+): (.*)$", sysctl, re.MULTILINE))
    return Processor(
        model=values.get("machdep.cpu.brand_string"),
        num_physical_cores=int(values["hw.physicalcpu"]) if "hw.physicalcpu" in values else None,
        num_logical_cores=os.cpu_count() or 1,
        instruction_sets=tuple(name for key, name in _MACOS_NAMES.items() if values.get(key) == "1"),
    )


def macos_memory(sysctl: str, vm_stat: str) -> Memory:
    """Read the outputs of ``sysctl hw`` and ``vm_stat``. Inactive pages count as available, as they do for psutil."""
    total = re.search(r"^hw\.memsize: (\d+)$", sysctl, re.MULTILINE)
    page_bytes = re.search(r"page size of (\d+) bytes", vm_stat)
    pages = re.findall(r"^Pages (?:free|inactive|speculative): +(\d+)\.$", vm_stat, re.MULTILINE)
    return Memory(
        total=int(total[1]) if total else None,
        available=int(page_bytes[1]) * sum(map(int, pages)) if page_bytes else None,
        limit=None,
    )


def blas_name(build: str) -> str:
    """The library behind torch's matrix products, from the text of ``torch.__config__.show()``."""
    match = re.search(r"\bBLAS_INFO=(\w+)", build)
    return _BLAS_NAMES.get(match[1], match[1]) if match else "unknown"


def parse_device(text: str) -> "torch.device":
    """The device that a user names: "cpu", "mps", "cuda", "cuda:1", "npu", "npu:0". Without a number it is the first.

    Raises UsageError for any other text and ResourceError for a device that this machine does not have.
    """
    import torch

    match = re.fullmatch(r"cpu|mps|(?:cuda|npu)(?::(\d{1,4}))?", text, re.ASCII)
    if not match:
        raise UsageError(f"device must be cpu, mps, cuda, cuda:N, npu or npu:N, got {text[:80]!r}")
    kind = text.partition(":")[0]
    if kind == "cpu":
        return torch.device("cpu")
    index, count = int(match[1] or 0), num_devices(kind)
    if count == 0:
        raise ResourceError(f"device {text} is not available: torch {torch.__version__} finds no {kind} device here")
    if index >= count:
        raise ResourceError(f"device {text} is not available: this machine has {kind}:0 to {kind}:{count - 1}")
    return torch.device(kind, index)


def num_devices(kind: str) -> int:
    """How many devices of one of ``ACCELERATORS`` torch may use, without starting any."""
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    backend = getattr(torch, kind, None)  # torch.npu is there when torch_npu is installed
    return int(backend.device_count()) if backend else 0


def accelerators(processor: Processor, root: Path = Path("/")) -> tuple[Accelerator, ...]:
    """What torch may compute on beside the CPU. Names come from the driver's files under ``root``, not from torch,
    which would have to start the device to know them."""
    texts = [_read(file) for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))]
    models = {
        "cuda": tuple(match[1] for text in texts if (match := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))),
        "mps": (processor.model,) if processor.model else (),
        "npu": (),
    }
    counts = {kind: num_devices(kind) for kind in ACCELERATORS}
    return tuple(Accelerator(kind=kind, num_devices=n, models=models[kind]) for kind, n in counts.items() if n)


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    """What a program prints; empty if it is not there, fails or hangs."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
