"""Share of the machine's limits that the native products reach, at V4-Flash's shapes, weights larger than caches.

    python benchmarks/kernels.py [--threads N] [--megabytes 512] [--out FILE.jsonl]

One row: share of the read bandwidth (a streaming sum with as many threads). Many rows, which is an expert's part of a
batch: share of the float32 product's rate. Each product and its limit are measured in turns, since shared machines
change speed. "rounded" is what a model with official rounding computes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from machine import machine_record

from pelagos.cli.doctor import MATRIX_SIZE, READ_BYTES
from pelagos.cli.options import use_threads
from pelagos.ops.cpu.rates import Limit, measure_products

SECONDS = 1.0
# Of V4-Flash: an expert's first and last map, the second query map, the output map of one group, compressor and head.
SHAPES = {
    "fp4": ((2048, 4096), (4096, 2048)),
    "fp8": ((32_768, 1024), (4096, 8192)),
    "bf16": ((1024, 4096),),
    "fp32": ((256, 4096),),
}
ROWS = {"fp4": (1, 4, 16, 64, 256), "fp8": (1, 8, 64, 256), "bf16": (1, 64), "fp32": (1, 64)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--megabytes", type=int, default=512, help="of weights that each pass goes over")
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    use_threads(options.threads)
    report: dict[str, Any] = {"machine": machine_record(options.threads), "megabytes": options.megabytes, "rates": []}
    reading, multiplying = Limit.reading(READ_BYTES), Limit.multiplying(MATRIX_SIZE)
    for kind, shapes in SHAPES.items():
        for rounded in (False, True) if kind in ("fp4", "fp8") else (False,):
            for shape in shapes:
                for rate in measure_products(
                    kind,
                    shape,
                    ROWS[kind],
                    num_bytes=options.megabytes << 20,
                    seconds=SECONDS,
                    reading=reading,
                    multiplying=multiplying,
                    rounded=rounded,
                ):
                    report["rates"].append(vars(rate))
                    print(f"  {rate.op:40} {rate.value / 1e9:8.1f} G{rate.unit:7} {rate.share:5.0%}", flush=True)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
