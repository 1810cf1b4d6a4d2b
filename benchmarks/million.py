"""Reading a long text to its end: seconds, memory and time per token over the position, and decoding far inside it.

    python benchmarks/million.py MODEL [--tokens 1048576] [--threads N] [--out DIR]

Reads seeded random tokens in chunks into one sequence; at 4K, 32K, 128K, 512K and the end it also times
single tokens. Writes million.json and million.png to DIR, which must exist.
"""

import argparse
import json
import random
import resource
import time
from pathlib import Path
from typing import Any

from machine import machine_record

from pelagos.cli.options import use_threads
from pelagos.model.places import model_place
from pelagos.model.transformer import AnyState, Model
from pelagos.training.figures import theme

CHUNK, DECODED = 512, 48
ON_PAPER = {"ink": "#1b1f24", "muted": "#59636e", "grid": "#d1d9e0", "card": "#ffffff"}
DECODE_AT = (4096, 32_768, 131_072, 524_288)


def decode_seconds(model: Model, state: AnyState) -> float:
    """Seconds per single token behind what the state holds, best half of them: the median of a quiet machine."""
    times = []
    for i in range(DECODED):
        began = time.perf_counter()
        model.step([i + 1], state, num_logits=1)
        times.append(time.perf_counter() - began)
    return sorted(times)[DECODED // 4]


def read(model: Model, num_tokens: int) -> dict[str, Any]:
    rng, state = random.Random(0), model.new_state()
    decode_at = [n for n in DECODE_AT if n < num_tokens] + [num_tokens]
    points: list[dict[str, float]] = []
    decoded: dict[int, float] = {}
    began = time.perf_counter()
    spent = 0.0
    while state.num_tokens < num_tokens:
        before = state.num_tokens
        ids = [rng.randrange(model.config.vocab_size) for _ in range(min(CHUNK, num_tokens - before))]
        start = time.perf_counter()
        model.step(ids, state, num_logits=0)
        seconds = time.perf_counter() - start
        spent += seconds
        points.append({"position": before, "us_per_token": 1e6 * seconds / len(ids), "bytes": state.num_bytes})
        if decode_at and state.num_tokens >= decode_at[0]:
            decoded[decode_at.pop(0)] = decode_seconds(model, state)
            print(
                f"{state.num_tokens:>9,} tokens, {spent:7.1f} s, {1e3 * decoded[max(decoded)]:.2f} ms a token",
                flush=True,
            )
    return {
        "tokens": num_tokens,
        "read_seconds": spent,
        "wall_seconds": time.perf_counter() - began,
        "state_bytes": state.num_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "decode_seconds": decoded,
        "points": points,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    with theme(path.name, **ON_PAPER):
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
        positions = [point["position"] / 1024 for point in result["points"]]
        left.plot(
            positions,
            [point["us_per_token"] for point in result["points"]],
            color="tab:blue",
            lw=0.8,
            label="reading, chunks of 512",
        )
        decoded = result["decode_seconds"]
        left.plot(
            [n / 1024 for n in decoded],
            [1e6 * s for s in decoded.values()],
            "o-",
            color="tab:orange",
            label="decoding one token",
        )
        left.set(xlabel="position, 1,024 tokens", ylabel="µs a token", ylim=(0, None))
        left.legend()
        right.plot(positions, [point["bytes"] / 2**20 for point in result["points"]], color="tab:blue")
        right.set(xlabel="position, 1,024 tokens", ylabel="state, MiB", ylim=(0, None))
        figure.savefig(path, dpi=110, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--threads", type=int, default=None, help="default: one per usable core")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    num_threads = use_threads(options.threads)
    model = Model.load(model_place(options.model))
    num_tokens = min(options.tokens, model.config.max_positions - DECODED * (len(DECODE_AT) + 1))
    result = read(model, num_tokens)
    minutes = result["read_seconds"] / 60
    ratio = result["decode_seconds"][num_tokens] / result["decode_seconds"].get(4096, float("nan"))
    print(
        f"{num_tokens:,} tokens in {minutes:.1f} minutes; decoding there takes {ratio:.2f} times what it takes at 4,096"
    )
    print(f"state {result['state_bytes'] / 2**20:.0f} MiB, peak memory {result['peak_rss_bytes'] / 2**20:.0f} MiB")
    if options.out is not None:
        record = {"model": Path(options.model).name, "machine": machine_record(num_threads), **result}
        (options.out / "million.json").write_text(json.dumps(record))
        plot(result, options.out / "million.png")


if __name__ == "__main__":
    main()
