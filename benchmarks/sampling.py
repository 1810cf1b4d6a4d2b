"""What choosing a token costs behind logits of a given size: the native kernels and the reference in torch, in turns.

    python benchmarks/sampling.py [--sizes 4096,129280] [--rounds 15] [--threads N] [--out FILE.jsonl]

One row of random logits, as one answer alone has it. Medians, in microseconds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from machine import machine_record

from pelagos.cli.options import use_threads
from pelagos.engine import sampler
from pelagos.engine.params import SamplingParams
from pelagos.ops.cpu.module import native

WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 1.0},
    "top-p": {"temperature": 1.0, "top_p": 0.95},
    "top-k": {"temperature": 1.0, "top_k": 50},
    "min-p": {"temperature": 1.0, "min_p": 0.05},
}
REPEATS = 10


def measure(size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds by wish, then by implementation."""
    logits = 3 * torch.randn(size, generator=torch.Generator().manual_seed(0))
    times: dict[str, dict[str, list[float]]] = {wish: {"native": [], "torch": []} for wish in WISHES}
    for number in range(rounds):
        for wish, settings in WISHES.items():
            params = SamplingParams(seed=1, **settings)
            for name, module in (("native", native), ("torch", lambda: None)):
                sampler.native = module
                began = time.perf_counter()
                for i in range(REPEATS):
                    sampler.sample(logits, params, None, REPEATS * number + i)
                times[wish][name].append(1e6 * (time.perf_counter() - began) / REPEATS)
    return {wish: {name: round(statistics.median(each), 1) for name, each in by.items()} for wish, by in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="4096,129280")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    threads = use_threads(options.threads)
    if native() is None:
        raise SystemExit("the native kernels are not built")
    report: dict[str, Any] = {"machine": machine_record(threads), "microseconds": {}}
    for size in map(int, options.sizes.split(",")):
        report["microseconds"][size] = found = measure(size, options.rounds)
        for wish, by in found.items():
            print(f"{size:7} logits  {wish:12} native {by['native']:8.1f}  torch {by['torch']:8.1f}  "
                  f"{by['torch'] / by['native']:5.1f} times")  # fmt: skip
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
