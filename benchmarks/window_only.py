"""What compressed layers are for: nano, and a model of the same size that has windows alone, on the same batches.

    python benchmarks/window_only.py --run RUN --data DATA --step N --work DIR [--samples 40] [--out FILE.json]

RUN is a folder of `pelagos train nano` that keeps the checkpoint of step N. The other model, trained in DIR up to the
same step of the same recipe (and resumed there), has a window of 64 in every layer. Both are asked for one of four
pairs at the start of texts of growing length, by the start of a line to complete ("- river:"), in words of training;
weights are float32.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import machine_record
from run_weights import model_at

from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.options import use_threads
from pelagos.model.config import ModelConfig, window_layer
from pelagos.model.transformer import Model
from pelagos.recipes.nano import nano
from pelagos.training.exercises import attempt_all, right
from pelagos.training.export import export
from pelagos.training.overrides import with_settings
from pelagos.training.session import train
from pelagos.training.tasks import TASKS, Sample

LENGTHS = (48, 96, 160, 256, 512, 1024)
ANSWER_TOKENS, SIDE_BY_SIDE = 24, 16


def window_only(config: ModelConfig) -> ModelConfig:
    """The same widths and experts, a window in every layer."""
    first, *others = config.layers
    return replace(config, layers=(first, *(window_layer(window=layer.window) for layer in others)))


def loaded(config: ModelConfig, run: Path, step: int, tokenizer_folder: Path, place: Path) -> Model:
    """The run's weights at that step, as exact inference has them."""
    export(model_at(config, run, step), place, official=False, tokenizer_folder=tokenizer_folder)
    return Model.load(place)


def pairs(tokenizer: Tokenizer, length: int, samples: int) -> Iterator[Sample]:
    """Four pairs at the start of so many tokens, one question at the end."""
    knobs: dict[str, Any] = {"num_pairs": (4, 4), "key_words": (1, 1), "value_words": (1, 1), "num_queries": (1, 1)}
    knobs |= {"chat_share": 0.0, "cue_share": 1.0, "depth": (0.0, 0.0), "target_tokens": (length, length)}
    for i in range(samples):
        yield TASKS["kv"].make(random.Random(f"{length} {i}"), TASKS["kv"].knobs(**knobs), tokenizer=tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--step", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    threads = use_threads(options.threads)
    config = with_settings(nano(), [f"data.folder={options.data}"])
    other = replace(config, model=window_only(config.model), evaluation=None)
    run = options.work / "run"
    saved = sorted(run.glob("checkpoints/step-*"))
    done = int(saved[-1].name[5:]) if saved else 0
    if done < options.step:
        train(other, run, resume=bool(saved), stop_after=options.step - done)
    use_threads(threads)
    tokenizer = Tokenizer.from_folder(options.data)
    found: dict[str, dict[int, int]] = {}
    for name, shape, place in (("nano", config.model, options.run), ("window only", other.model, run)):
        model = loaded(shape, place, options.step, options.data, options.work / name.replace(" ", "_"))
        for length in LENGTHS:
            attempts = attempt_all(
                model, tokenizer, pairs(tokenizer, length, options.samples),
                side_by_side=SIDE_BY_SIDE, answer_tokens=ANSWER_TOKENS,
            )  # fmt: skip
            found.setdefault(name, {})[length] = right(attempts).num_right
            print(f"{name:12} {length:5} tokens  {found[name][length]:3}/{options.samples}", flush=True)
    if options.out is not None:
        result = {"step": options.step, "samples": options.samples, "right": found, "machine": machine_record(threads)}
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
