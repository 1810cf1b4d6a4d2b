"""Decoding speed of a released model that does not fit here, from one layer of each kind at its real width.

    python benchmarks/slice.py FOLDER [--preset flash] [--contexts 4096,131072,1048576] [--discard] [--out FILE.jsonl]

FOLDER gets a checkpoint per kind of layer, with random weights in the official formats (benchmarks/make_slice.py;
about 6 GB each for flash, 17 for pro), unless it has them already; --discard deletes each once it was timed. A token's
time in one layer of each kind, times the number of such layers, plus the head, is the time of the whole model, if it
were in memory.
"""

import argparse
import json
import mmap
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from decode import context, seconds_per_step
from machine import machine_record
from make_slice import make_slice, slice_config

from pelagos.cli.options import use_threads
from pelagos.model.accounting import bytes_read_per_token
from pelagos.model.presets import preset
from pelagos.model.safetensors_file import open_file
from pelagos.model.transformer import Model

KINDS = ("window", "csa", "hca")
SPARE = 256  # tokens of the longest context that are decoded behind it


def warm(folder: Path) -> None:
    """Bring the files into memory as a server's first tokens do: through the map, in large pages where there are any.
    What lies there already is let go before, for it keeps the pages that it was written or copied in."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        data = open_file(path)
        for name in data.tensors:
            data.tensor(name).flatten().view(torch.uint8)[:: mmap.PAGESIZE].max()


def layer_seconds(folder: Path, contexts: list[int]) -> tuple[dict[int, float], float]:
    """Seconds per token in the one layer of a checkpoint, by context, and in the head."""
    warm(folder)
    model = Model.load(folder)
    layer: dict[int, float] = {}
    head = 0.0
    for length in contexts:
        states = [context(model, min(length, model.config.max_positions - SPARE))]
        layer[length] = seconds_per_step(model, states, num_logits=0)
        head = seconds_per_step(model, states) - layer[length]
    return layer, head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=("flash", "pro"), default="flash")
    parser.add_argument("--contexts", default="4096,131072,1048576", help="tokens before the one that is timed")
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument("--discard", action="store_true", help="delete each checkpoint once it was timed")
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    threads = use_threads(options.threads)
    contexts = [int(n) for n in options.contexts.split(",")]
    whole = preset(options.preset)
    seconds: dict[str, dict[int, float]] = {}
    head = 0.0
    for kind in (kind for kind in KINDS if any(layer.kind == kind for layer in whole.layers)):
        folder = options.folder / f"{options.preset}-{kind}"
        if not (folder / "config.json").exists():
            make_slice(folder, slice_config(options.preset, [kind]))
        seconds[kind], head = layer_seconds(folder, contexts)
        if options.discard:
            shutil.rmtree(folder)
        times = "  ".join(f"{1e3 * seconds[kind][n]:8.2f} at {n:,}" for n in contexts)
        print(f"{kind:6} layer, ms a token: {times}; head {1e3 * head:.1f}", flush=True)
    machine = machine_record(threads)
    bandwidth = 1e9 * machine["read_gb_per_second"]
    totals: list[dict[str, Any]] = []
    for n in contexts:
        total = head + sum(seconds[layer.kind][n] for layer in whole.layers)
        bound = bytes_read_per_token(whole, n).total / bandwidth
        totals.append({"context": n, "seconds": total, "bound_seconds": bound})
        ratio = total / totals[0]["seconds"]
        print(
            f"{options.preset}, {len(whole.layers)} layers, context {n:>9,}: {total:6.3f} s a token, "
            f"{bound / total:4.0%} of the bandwidth bound, {ratio:.2f} times the first"
        )
    if options.out:
        layers = {kind: {str(n): each for n, each in by.items()} for kind, by in seconds.items()}
        record = {
            "preset": options.preset,
            "machine": machine,
            "layer_seconds": layers,
            "head_seconds": head,
            "whole": totals,
        }
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
