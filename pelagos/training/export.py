"""A trained model as a checkpoint folder that inference opens."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from pelagos.common.files import write_atomic
from pelagos.model.config_json import config_to_json
from pelagos.model.convert import convert
from pelagos.model.safetensors_file import StreamingWriter
from pelagos.model.transformer import Model
from pelagos.training.views import official_weights

_COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "effort_levels.json", "generation_config.json")


def export(model: Model, folder: Path, *, official: bool, tokenizer_folder: Path | None = None) -> None:
    """Write ``model`` (its config says YaRN and rounding) under official names into ``folder``: float32, or with
    ``official`` in FP4 and FP8. The tokenizer's files go along."""
    plain = folder / "float32" if official else folder
    plain.mkdir(parents=True, exist_ok=True)
    weights = {spec.name: weight for spec, weight in official_weights(model)}
    specs = {name: ("I64" if name.endswith("tid2eid") else "F32", tuple(w.shape)) for name, w in weights.items()}
    with StreamingWriter(plain / "model.safetensors", specs) as writer:
        for name in writer.order:
            for piece in _pieces(weights[name]):
                writer.write(name, piece.cpu())
    for name in _COMPANIONS:
        if tokenizer_folder is not None and (tokenizer_folder / name).is_file():
            shutil.copyfile(tokenizer_folder / name, plain / name)
    write_atomic(plain / "config.json", json.dumps(config_to_json(model.config), indent=2) + "\n")
    if official:
        convert(plain, folder, "official", force=True)
        shutil.rmtree(plain)


def _pieces(weight: Tensor) -> Iterator[Tensor]:
    yield weight.contiguous()
