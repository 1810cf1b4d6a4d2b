"""Many requests at once: the engine against transformers on the same weights, and against our own bare forward pass.

    python benchmarks/offline.py MODEL [--threads N] [--samples 5] [--official-rounding] [--out FILE.jsonl]

MODEL is a folder of benchmarks/models.py with transformers/ and official/ in it. Systems take turns within one process;
the figures are medians. transformers reads and writes a batch of equal prompts in bfloat16 and float32, which it does
best; the engine gets the same prompts as separate requests.

    1 stream, 8 streams    tokens written per second behind a prompt of 128, steady part
    bare                   the same through Model.step_batch, with no engine around it
    prefill                tokens read per second of one prompt of 4,096
    work                   16 requests of 256 tokens read and 64 written: all tokens per second from start to end
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from engines import Transformers
from machine import machine_record

from pelagos.cli.options import use_threads
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Event, Request, Tokens
from pelagos.model.transformer import Model

WRITTEN, PROMPT, LONG = 128, 128, 4096
WORK = (16, 256, 64)  # requests, tokens read, tokens written


class Ours:
    def __init__(self, folder: Path, official_rounding: bool) -> None:
        self.model = Model.load(folder, official_rounding=official_rounding)
        self.rng = random.Random(0)

    def prompt(self, length: int) -> list[int]:
        return [self.rng.randrange(self.model.config.vocab_size) for _ in range(length)]

    def streams(self, number: int) -> float:
        """Tokens per second between the 16th and the last step in which all streams write."""
        engine, times = Engine(self.model, EngineConfig(cache_bytes=1 << 29)), list[float]()

        def note(event: Event) -> None:
            if isinstance(event, Tokens):
                times.extend([time.perf_counter()] * len(event.tokens))

        params = SamplingParams(max_tokens=WRITTEN, ignore_eos=True)
        for _ in range(number):
            engine.add(Request(prompt_ids=self.prompt(PROMPT), params=params), note)
        while engine.step():
            pass
        steady = times[16 * number : -8 * number]
        return (len(steady) - 1) / (steady[-1] - steady[0])

    def bare(self, number: int) -> float:
        states = [self.model.new_state() for _ in range(number)]
        for state in states:
            self.model.step(self.prompt(PROMPT), state, num_logits=1)
        ids = [[1]] * number
        for step in range(WRITTEN):
            if step == 16:
                began = time.perf_counter()
            logits = self.model.step_batch(ids, states, num_logits=1)
            ids = [[int(row.argmax())] for row in logits]
        return (WRITTEN - 16) * number / (time.perf_counter() - began)

    def prefill(self) -> float:
        engine = Engine(self.model, EngineConfig(cache_bytes=1 << 29))
        request = Request(prompt_ids=self.prompt(LONG), params=SamplingParams(max_tokens=1))
        began = time.perf_counter()
        engine.generate([request])
        return LONG / (time.perf_counter() - began)

    def bare_prefill(self) -> float:
        state = self.model.new_state()
        prompt = self.prompt(LONG)
        began = time.perf_counter()
        self.model.step(prompt, state, num_logits=1)
        return LONG / (time.perf_counter() - began)

    def work(self) -> float:
        number, length, written = WORK
        engine = Engine(self.model, EngineConfig(cache_bytes=1 << 29))
        params = SamplingParams(max_tokens=written, ignore_eos=True)
        requests = [Request(prompt_ids=self.prompt(length), params=params) for _ in range(number)]
        began = time.perf_counter()
        engine.generate(requests)
        return number * (length + written) / (time.perf_counter() - began)


def their_work(system: Transformers) -> float:
    number, length, written = WORK
    rng = random.Random(0)
    rows = [[rng.randrange(system.vocab_size) for _ in range(length)] for _ in range(number)]
    began = time.perf_counter()
    system.prefill(rows)
    for _ in range(written - 1):
        system.decode()
    return number * (length + written) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument(
        "--official-rounding", action="store_true", help="ours computes as the released models are served"
    )
    parser.add_argument("--samples", type=int, default=5, help="of each figure")
    parser.add_argument("--out", type=Path, default=None, help="append a JSON line to this file")
    options = parser.parse_args()
    num_threads = use_threads(options.threads)
    ours = Ours(options.model / "official", options.official_rounding)
    theirs = {
        dtype: Transformers(options.model / "transformers", num_threads, dtype) for dtype in ("bfloat16", "float32")
    }
    measures: dict[str, Callable[[], float]] = {
        "engine, 1 stream": lambda: ours.streams(1),
        "bare, 1 stream": lambda: ours.bare(1),
        "engine, 8 streams": lambda: ours.streams(8),
        "bare, 8 streams": lambda: ours.bare(8),
        "engine, prefill": ours.prefill,
        "bare, prefill": ours.bare_prefill,
        "engine, work": ours.work,
    }
    measures |= {f"transformers {dtype}, work": lambda s=system: their_work(s) for dtype, system in theirs.items()}
    samples: dict[str, list[float]] = {name: [] for name in measures}
    with torch.inference_mode():
        for _ in range(options.samples):
            for name, measure in measures.items():
                samples[name].append(measure())
    medians = {name: statistics.median(values) for name, values in samples.items()}
    report(medians)
    if options.out is not None:
        record: dict[str, Any] = {
            "model": options.model.name,
            "official_rounding": options.official_rounding,
            "samples": samples,
            "machine": machine_record(num_threads),
        }
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")


def report(medians: dict[str, float]) -> None:
    for name, value in medians.items():
        print(f"{name:30} {value:8,.0f} tokens/s")
    best = max(medians["transformers bfloat16, work"], medians["transformers float32, work"])
    ratios = {
        "engine / bare, 1 stream": medians["engine, 1 stream"] / medians["bare, 1 stream"],
        "engine / bare, 8 streams": medians["engine, 8 streams"] / medians["bare, 8 streams"],
        "engine / bare, prefill": medians["engine, prefill"] / medians["bare, prefill"],
        "8 streams / 1 stream": medians["engine, 8 streams"] / medians["engine, 1 stream"],
        "engine / transformers, work": medians["engine, work"] / best,
    }
    for name, ratio in ratios.items():
        print(f"{name:30} {ratio:8.2f}")


if __name__ == "__main__":
    main()
