"""Seconds per token decoded behind contexts of given lengths, alone and in batches.

    python benchmarks/decode.py MODEL [--contexts 128,4096,131072] [--batches 1,4,8] [--threads N] [--out FILE.jsonl]

The last tokens of a context are really read; what lies before them are random rows in the model's own formats, which
take the same time as real ones. Beside each time stands the bound: the bytes that a token reads, by the accounting of
pelagos/model/accounting.py, at the read bandwidth measured in the same minute.
"""

import argparse
import ctypes
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import machine_record

from pelagos.cli.options import use_threads
from pelagos.model.accounting import bytes_read_per_token
from pelagos.model.config import PAGE_TOKENS
from pelagos.model.native_state import NativeState
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.ops.cpu.rounding import RowFormat, row_layout, store_rows

READ_TOKENS = 256  # really read at the end of a context, at least
PIECE_ROWS = 1 << 15
TOKENS, MAX_SECONDS = 32, 12.0


def context(model: Model, num_tokens: int, seed: int = 0) -> NativeState:
    """A state of so many tokens. Rows are random; the last tokens, with all that is kept of a window, are real."""
    state = model.new_state()
    assert isinstance(state, NativeState), "this measures the native kernels"
    rng = random.Random(seed)
    ids = [
        rng.randrange(model.config.vocab_size) for _ in range(min(num_tokens, READ_TOKENS + num_tokens % PAGE_TOKENS))
    ]
    skipped = num_tokens - len(ids)
    if skipped > 0:
        model.step(ids[:PAGE_TOKENS], state, num_logits=0)  # rings and open windows hold something
        state.reserve(num_tokens)
        for number, place in enumerate(state.layout.layers):
            for i, part in enumerate(place.parts):
                address, num_rows = int(state.memory[number, 2 * i]), skipped // part.ratio
                _fill(address, part.row, num_rows, torch.Generator().manual_seed(seed + 100 * number + i))
        state.num_tokens = skipped
    model.step(ids, state, num_logits=0)
    return state


def _fill(address: int, row: Any, num_rows: int, generator: torch.Generator) -> None:
    layout = row_layout(RowFormat(row.kind), row.size, row.num_rope)
    for start in range(0, num_rows, PIECE_ROWS):
        packed = store_rows(layout, torch.randn(min(PIECE_ROWS, num_rows - start), row.size, generator=generator))
        ctypes.memmove(address + start * row.bytes, packed.data_ptr(), packed.numel())


def seconds_per_step(model: Model, states: list[NativeState], *, num_logits: int = 1) -> float:
    """Of one token in each sequence: the better quartile, which is what an undisturbed machine takes."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < TOKENS and (len(times) < 4 or time.perf_counter() - began < MAX_SECONDS):
        start = time.perf_counter()
        if len(states) == 1:
            model.step([1 + len(times)], states[0], num_logits=num_logits)
        else:
            model.step_batch([[1 + len(times) + i] for i in range(len(states))], states, num_logits=num_logits)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 4]


def measure(model: Model, contexts: list[int], batches: list[int], bandwidth: float) -> Iterator[dict[str, Any]]:
    for length in contexts:
        states: list[NativeState] = []
        for batch in batches:
            while len(states) < batch:
                states.append(context(model, length, seed=len(states)))
            seconds = seconds_per_step(model, states[:batch])
            record: dict[str, Any] = {"context": length, "batch": batch, "seconds": seconds}
            if batch == 1:
                read = bytes_read_per_token(model.config, length)
                record["bytes"] = read.total
                record["share_of_bound"] = read.total / bandwidth / seconds
            yield record


def show(record: dict[str, Any]) -> str:
    share = f"{record['share_of_bound']:6.0%} of the bandwidth bound" if "share_of_bound" in record else ""
    return (
        f"context {record['context']:>9,}  batch {record['batch']:>2}  {1e3 * record['seconds']:9.3f} ms a step  "
        f"{record['batch'] / record['seconds']:9.1f} tokens/s  {share}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--contexts", default="128,4096,32768,131072", help="tokens before the one that is timed")
    parser.add_argument("--batches", default="1,4,8", help="sequences decoded side by side")
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument("--out", type=Path, default=None, help="append the report to this file")
    options = parser.parse_args()
    threads = use_threads(options.threads)
    machine = machine_record(threads)
    model = Model.load(model_place(options.model))
    records = []
    contexts, batches = ([int(n) for n in text.split(",")] for text in (options.contexts, options.batches))
    for record in measure(model, contexts, batches, 1e9 * machine["read_gb_per_second"]):
        records.append(record)
        print(show(record), flush=True)
    if options.out:
        with options.out.open("a") as file:
            file.write(json.dumps({"model": Path(options.model).name, "machine": machine, "steps": records}) + "\n")


if __name__ == "__main__":
    main()
