"""``pelagos doctor``: what this machine can do, what runs on it and why, and what is known to be wrong with it."""

import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pelagos.cli.options import Json, Threads, use_threads
from pelagos.common import env

if TYPE_CHECKING:
    from pelagos.common.device import Machine
    from pelagos.ops.cpu.rates import Rate
    from pelagos.ops.dispatch import Choice
    from pelagos.ops.reference.row_products import Probe

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "deepseek-recipe", "typer", "rich")
MEASURE_SECONDS = 0.5  # of each rate
READ_BYTES = 256 << 20  # more than most processors have as cache
MATRIX_SIZE = 1024
# An expert, a map of attention and a compressor of V4-Flash; a token alone, and a batch's part of an expert.
KERNEL_SHAPES = {"fp4": (2048, 4096), "fp8": (4096, 4096), "bf16": (1024, 4096)}
KERNEL_ROWS = (1, 64)
KERNEL_BYTES = 128 << 20
NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured on the CPU with ``num_threads`` threads: bytes per second of a sum over a large float32 tensor, and
    floating-point operations per second of a square float32 matrix product."""

    num_threads: int
    read_bytes_per_second: float
    float32_flops: float


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The native kernels. ``compiled``: instruction sets of this build; ``available``: those that the processor runs,
    best first; ``chosen``: the one that is used, None where PyTorch computes; ``num_threads``: of their pool;
    ``memory_nodes``: those that pages are taken from in turns, none where there is one node."""

    compiled: list[str]
    available: list[str]
    chosen: str | None
    num_threads: int | None
    memory_nodes: list[int]
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that ``pelagos doctor`` says. ``libraries`` maps a name to its version, None if it is not installed."""

    pelagos: str
    machine: "Machine"
    libraries: dict[str, str | None]
    kernels: Kernels
    ops: "list[Choice]"
    row_tile: "Probe"
    rates: Rates
    products: "list[Rate]"
    problems: list[str]


def doctor_command(threads: Threads = None, as_json: Json = False) -> None:
    """Show the machine, the libraries, the code that runs each op and why, measured speeds, and known problems.

    Takes some ten seconds. The JSON object has the keys pelagos, machine, libraries, kernels, ops, row_tile, rates,
    products and problems; sizes are in bytes, rates in bytes or operations per second; null is what the system does not
    say.
    """
    report = examine(use_threads(threads))
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        _print(report)


def examine(num_threads: int) -> Report:
    """Look at the machine and measure it with the CPU threads that torch runs on now, ``num_threads`` of them."""
    from pelagos.common.device import describe_machine
    from pelagos.ops.dispatch import choices
    from pelagos.ops.reference.row_products import probe_row_tile

    machine, row_tile = describe_machine(), probe_row_tile()
    libraries = {name: _version(name) for name in LIBRARIES}
    kernels, rates = describe_kernels(), measure(num_threads)
    return Report(
        pelagos=metadata.version("pelagos"),
        machine=machine,
        libraries=libraries,
        kernels=kernels,
        ops=choices(),
        row_tile=row_tile,
        rates=rates,
        products=measure_kernels(),
        problems=find_problems(
            machine, libraries, kernels, row_tile, num_threads, has_nvidia_driver=NVIDIA_DRIVER.exists()
        ),
    )


def describe_kernels() -> Kernels:
    """What there is of native kernels, and what runs on the CPU."""
    import torch

    from pelagos.ops.cpu.module import memory_nodes, native
    from pelagos.ops.dispatch import choose_implementation

    module, chosen = native(), choose_implementation(torch.device("cpu"))
    return Kernels(
        compiled=module.compiled_isas() if module else [],
        available=module.available_isas() if module else [],
        chosen=chosen.isa,
        num_threads=module.num_threads() if module else None,
        memory_nodes=list(memory_nodes()),
        reason=chosen.reason,
    )


def measure(num_threads: int) -> Rates:
    """Measure for about one second; the best of the runs counts, because others can only slow a run down."""
    from pelagos.ops.cpu.rates import Limit, best_seconds

    reading, multiplying = Limit.reading(READ_BYTES), Limit.multiplying(MATRIX_SIZE)
    return Rates(
        num_threads=num_threads,
        read_bytes_per_second=reading.amount / best_seconds(reading.work, MEASURE_SECONDS),
        float32_flops=multiplying.amount / best_seconds(multiplying.work, MEASURE_SECONDS),
    )


def measure_kernels() -> "list[Rate]":
    """Products of the native kernels against these limits, in some three seconds."""
    from pelagos.ops.cpu.module import native
    from pelagos.ops.cpu.rates import Limit, measure_products

    if native() is None:
        return []
    reading, multiplying = Limit.reading(READ_BYTES), Limit.multiplying(MATRIX_SIZE)
    return [
        rate
        for kind, shape in KERNEL_SHAPES.items()
        for rate in measure_products(
            kind,
            shape,
            KERNEL_ROWS,
            num_bytes=KERNEL_BYTES,
            seconds=MEASURE_SECONDS,
            reading=reading,
            multiplying=multiplying,
        )
    ]


def find_problems(
    machine: "Machine",
    libraries: dict[str, str | None],
    kernels: Kernels,
    row_tile: "Probe",
    num_threads: int,
    *,
    has_nvidia_driver: bool,
) -> list[str]:
    """What is known to be wrong with this machine or installation: one sentence each, with what to do."""
    problems = [
        f"{name} is not installed, and Pelagos needs it: install Pelagos again with pip"
        for name, version in libraries.items()
        if version is None
    ]
    if not kernels.available:
        problems.append(f"models run on PyTorch, many times slower: {kernels.reason}")
    elif kernels.available == ["generic"]:
        problems.append(
            f"of the kernels' instruction sets ({', '.join(kernels.compiled)}) this processor runs only the plain C++ "
            "one, which is several times slower"
        )
    if row_tile.tile_rows == 1:
        problems.append(f"matrix products run row by row, which makes long prompts slow: {row_tile.reason}")
    if num_threads > machine.num_usable_cores:
        problems.append(
            f"{num_threads} threads share {machine.num_usable_cores} usable cores and wait for each other in every "
            f"operation: use --threads {machine.num_usable_cores} or {env.THREADS.name}={machine.num_usable_cores}"
        )
    if has_nvidia_driver and not any(accelerator.kind == "cuda" for accelerator in machine.accelerators):
        problems.append(
            f"there is an NVIDIA driver, but torch {machine.torch_version} finds no GPU to use: "
            "a torch build with CUDA may be missing"
        )
    if machine.system.endswith(("x86_64", "AMD64")) and machine.torch_cpu_capability in ("DEFAULT", "NO AVX"):
        problems.append("torch's elementwise kernels run without AVX2 here, which makes them several times slower")
    return problems


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _print(report: Report) -> None:
    for title, lines in (
        ("machine", _machine_lines(report.machine)),
        ("libraries", [(name, version or "not installed") for name, version in report.libraries.items()]),
        ("kernels", _kernel_lines(report.kernels)),
        ("ops", _op_lines(report.ops)),
        ("measured", _measured_lines(report)),
        ("problems", [("-", problem) for problem in report.problems] or [("none", "")]),
    ):
        print(title)
        width = max(len(name) for name, _ in lines)
        for name, text in lines:
            print(f"  {name:{width}}  {text}".rstrip())


def _machine_lines(machine: "Machine") -> list[tuple[str, str]]:
    processor, memory = machine.processor, machine.memory
    accelerators = [f"{a.num_devices} {a.kind} ({', '.join(a.models) or 'unnamed'})" for a in machine.accelerators]
    quota = "" if machine.cpu_quota is None else f", limited to {machine.cpu_quota:g} by a control group"
    limit = "" if memory.limit is None else f", limited to {_gigabytes(memory.limit)} by a control group"
    return [
        ("system", machine.system),
        ("processor", processor.model or "unknown"),
        (
            "cores",
            f"{processor.num_physical_cores or 'unknown'} physical, {processor.num_logical_cores} logical, "
            f"{machine.num_usable_cores} usable{quota}",
        ),
        ("instructions", " ".join(processor.instruction_sets) or "none of those that matter"),
        ("memory", f"{_gigabytes(memory.total)}, {_gigabytes(memory.available)} available{limit}"),
        ("accelerators", "; ".join(accelerators) or "none"),
        ("torch", f"{machine.torch_version}, {machine.torch_blas}, kernels for {machine.torch_cpu_capability}"),
    ]


def _kernel_lines(kernels: Kernels) -> list[tuple[str, str]]:
    lines = [
        ("built for", ", ".join(kernels.compiled) or "nothing"),
        ("runs here", ", ".join(kernels.available) or "nothing"),
        ("used", "none" if kernels.chosen is None else f"{kernels.chosen}, {kernels.num_threads} threads"),
        ("why", kernels.reason),
    ]
    if kernels.memory_nodes:
        lines.append(("memory", f"pages in turns from nodes {', '.join(map(str, kernels.memory_nodes))}"))
    return lines


def _op_lines(choices: "list[Choice]") -> list[tuple[str, str]]:
    """The ops of each implementation, and under each group of them the reason."""
    lines = []
    for reason in dict.fromkeys(choice.reason for choice in choices):
        group = [choice for choice in choices if choice.reason == reason]
        for implementation in dict.fromkeys(choice.implementation for choice in group):
            names = [choice.op for choice in group if choice.implementation == implementation]
            lines.append((implementation, ", ".join(names)))
        lines.append(("why", reason))
    return lines


def _measured_lines(report: Report) -> list[tuple[str, str]]:
    rates = report.rates
    return [
        ("threads", str(rates.num_threads)),
        ("memory read", f"{rates.read_bytes_per_second / 1e9:.1f} GB/s"),
        ("float32 product", f"{rates.float32_flops / 1e9:.0f} GFLOP/s"),
        ("row tile", f"{report.row_tile.tile_rows} rows: {report.row_tile.reason}"),
        *((rate.op, f"{rate.value / 1e9:.1f} G{rate.unit}, {rate.share:.0%} of the limit") for rate in report.products),
    ]


def _gigabytes(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"
