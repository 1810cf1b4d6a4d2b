"""A model folder to try clients with: the parts of the preset tiny, a long context, random weights, short answers.

    python tests/clients/make_model.py DIR [--context 131072]

Its vocabulary is learnt from the project's own documents. What it says means nothing, but it ends its thoughts and its
answers now and then, because the rows of these two marks in the output layer are longer than the others.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from pelagos.chat.tokenizer import FILE_NAME, THINK_END, Tokenizer
from pelagos.model.config_json import config_to_json
from pelagos.model.loading import random_values
from pelagos.model.presets import preset
from pelagos.model.safetensors_file import StreamingWriter
from pelagos.model.tensors import tensor_specs
from pelagos.training.bpe import train_tokenizer

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 2048
HEAD = "head.weight"
# A mark with a row so many times as long as the others' is the likeliest token at that share of all places: 0.2.
LONGER = 4.0


def make_model(folder: Path, context: int = 131_072) -> None:
    """Write the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    (folder / FILE_NAME).write_text(train_tokenizer(texts, VOCAB_SIZE), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(folder)
    marks = [tokenizer.eos_id, tokenizer.encode_special(THINK_END)]
    config = replace(
        preset("tiny"),
        vocab_size=VOCAB_SIZE,
        bos_id=tokenizer.bos_id,
        eos_ids=(tokenizer.eos_id,),
        max_positions=context,
    )
    value_of = random_values(config, seed=7)
    weights = {spec.name: value_of(spec) for spec in tensor_specs(config)}
    weights[HEAD][marks] *= LONGER
    specs = {
        name: ("I64" if weight.dtype == torch.int64 else "F32", tuple(weight.shape)) for name, weight in weights.items()
    }
    with StreamingWriter(folder / "model.safetensors", specs) as writer:
        for name in writer.order:
            writer.write(name, weights[name])
    (folder / "config.json").write_text(json.dumps(config_to_json(config), indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--context", type=int, default=131_072, help="tokens of a prompt and its answer")
    options = parser.parse_args()
    make_model(options.folder, options.context)


if __name__ == "__main__":
    main()
