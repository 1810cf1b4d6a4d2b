"""The pictures of a model's card: recall over lengths, and the curves of its training.

    python benchmarks/card_plots.py OUT --recall recall.json [more.json ...] --metrics metrics.jsonl

The files of recall are those that `pelagos bench context --out` writes, with the same depths; their lengths are put
side by side. metrics.jsonl has a line per logged step with step, tokens, length, main, mtp, recall. Writes recall.png,
recall.json and curves.png into OUT.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from million import ON_PAPER

from pelagos.training.evaluation_plots import write_heat_map
from pelagos.training.figures import theme


def joined(grids: list[dict[str, Any]]) -> dict[str, Any]:
    """One grid of all lengths, and how many texts each length had."""
    depths = grids[0]["depths"]
    if any(grid["depths"] != depths for grid in grids):
        raise SystemExit("all files of recall must have the same depths")
    columns = [(length, i, grid) for grid in grids for i, length in enumerate(grid["lengths"])]
    columns.sort(key=lambda column: column[0])
    return {
        "lengths": [length for length, _, _ in columns],
        "depths": depths,
        "accuracy": [[grid["accuracy"][row][i] for _, i, grid in columns] for row in range(len(depths))],
        "num_samples": [grid["num_samples"] for _, _, grid in columns],
    }


def curves(steps: list[dict[str, Any]], path: Path) -> None:
    """Loss of the next token and of the one behind it, and the indexers' recall, over tokens."""
    with theme(path.name, **ON_PAPER):
        import matplotlib.pyplot as plt

        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), constrained_layout=True)
        tokens = [step["tokens"] / 1e6 for step in steps]
        for name, label, color in (("main", "next token", "tab:blue"), ("mtp", "the one behind it", "tab:orange")):
            left.plot(tokens, [step[name] for step in steps], color=color, lw=1, label=label)
        changes = [after for before, after in itertools.pairwise(steps) if before["length"] != after["length"]]
        for i, step in enumerate(changes):
            left.axvline(step["tokens"] / 1e6, color="tab:gray", lw=0.8, ls=":")
            left.text(step["tokens"] / 1e6, 8.2 - 0.5 * (i % 3), f" {step['length']:,}", fontsize=7, va="top")
        left.set(xlabel="million tokens", ylabel="loss on its own batches, nats", ylim=(0, 8.5))
        left.legend(loc="lower left")
        known = [step for step in steps if "recall" in step]
        right.plot([step["tokens"] / 1e6 for step in known], [step["recall"] for step in known], color="tab:blue", lw=1)
        right.set(xlabel="million tokens", ylabel="recall of the worst indexer", ylim=(0, 1))
        figure.savefig(path, dpi=110, facecolor="white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recall", type=Path, nargs="+", required=True)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_heat_map(joined([json.loads(path.read_text()) for path in options.recall]), options.out / "recall.png")
    curves([json.loads(line) for line in options.metrics.read_text().splitlines()], options.out / "curves.png")


if __name__ == "__main__":
    main()
