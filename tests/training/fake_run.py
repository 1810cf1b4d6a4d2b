"""The log of a run that never was: shaped like that of the nano recipe, from a formula and a seed."""

import math
import random

from pelagos.training.metrics import StepRecord

NUM_STEPS = 550
STAGES = ((0.0, "short", 256), (0.45, "middle", 1024), (0.75, "long", 4096), (0.93, "longest", 16384))
TOKENS_PER_STEP = 16384


def record(step: int, *, num_layers: int = 6, csa_layers: tuple[int, ...] = (1, 3, 5), **changes: object) -> StepRecord:
    """What the run logs after a step: the same for the same step, whatever was logged before."""
    rng = random.Random(step)
    share = step / NUM_STEPS
    _, stage, length = max(row for row in STAGES if row[0] <= share)
    main = 1.9 + 6.4 * math.exp(-6 * share) + rng.gauss(0, 0.06)
    parts = {"main": main, "mtp": main + 0.6 + rng.gauss(0, 0.05), "balance": 1 + 0.4 * math.exp(-9 * share)}
    if csa_layers:
        parts["index"] = 0.3 * math.exp(-5 * share) + 0.02 * rng.random()
    values: dict[str, object] = {
        "step": step,
        "tokens": step * TOKENS_PER_STEP,
        "seconds": 16.4 * step,
        "stage": stage,
        "sequence_length": length,
        "batch_tokens": TOKENS_PER_STEP,
        "loss": main + 0.3 * parts["mtp"] + parts.get("index", 0.0),
        "learning_rate": 5e-3 * min(1, step / 30, 0.1 + 0.9 * math.cos(math.pi / 2 * max(0, min(1, 4 * share - 2.6)))),
        "parts": parts,
        "bits_per_byte": main / math.log(2) / 3.17,
        "tokens_per_second": rng.gauss(1050, 15) / (1 + length / 20000),
        "share_of_peak": rng.gauss(0.41, 0.006) / (1 + length / 20000),
        "gradient_norm": 0.3 + 4 * math.exp(-8 * share) + abs(rng.gauss(0, 0.08)),
        "expert_load": {layer: 1.2 + 2 * rng.random() * math.exp(-(4 + layer) * share) for layer in range(num_layers)},
        "router_bias": {layer: (-0.4 * share * layer, 0.3 * share * layer) for layer in range(1, num_layers)},
        "indexer_recall": {layer: 0.97 - 0.5 * math.exp(-7 * share) - 0.01 * layer for layer in csa_layers},
        "stream_gain": 1.02 + 0.1 * share + rng.gauss(0, 0.004),
        "post_share": 0.002 * share,
        "clamped": {"gate_high": 1e-5 * rng.random(), "up_high": 2e-5 * rng.random(), "up_low": 2e-5 * rng.random()},
        "memory_bytes": 3 * 2**30 + step * 2**19,
    }
    return StepRecord(**(values | changes))  # type: ignore[arg-type]
