"""What this machine can do at most: read bandwidth and float32 products, as ``pelagos doctor`` measures them.

    python benchmarks/machine.py [--threads N] [--out FILE.jsonl]

Prints one JSON line; other benchmarks put the same record beside their results, since shared machines change speed.
"""

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

from pelagos.cli.doctor import measure
from pelagos.cli.options import use_threads
from pelagos.common.device import describe_machine


def machine_record(threads: int | None) -> dict[str, Any]:
    """Date, processor, versions, and rates measured now in about one second, with the load of others beside them."""
    load = os.getloadavg()[0]
    rates, machine = measure(use_threads(threads)), describe_machine()
    return {
        "date": datetime.date.today().isoformat(),
        "processor": machine.processor.model,
        "usable_cores": machine.num_usable_cores,
        "instruction_sets": " ".join(machine.processor.instruction_sets),
        "torch": machine.torch_version,
        "threads": rates.num_threads,
        "read_gb_per_second": round(rates.read_bytes_per_second / 1e9, 1),
        "float32_gflops": round(rates.float32_flops / 1e9),
        "load_before": round(load, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument("--out", type=Path, default=None, help="append the line to this file")
    options = parser.parse_args()
    line = json.dumps(machine_record(options.threads))
    print(line)
    if options.out:
        with options.out.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
