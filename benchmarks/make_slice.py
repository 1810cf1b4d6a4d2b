"""Write a slice: a checkpoint of real width and few layers, random weights in the official formats.

    python benchmarks/make_slice.py DIR [--preset flash] [--layers window,csa,hca]

Speed, memory and opening time of the released checkpoints depend on widths and formats, not on what the numbers say;
so a slice gives honest figures on a machine that cannot hold the whole. About 3.6 GB a Flash layer, 2.1 GB embedding
and head. The text such a model writes has no meaning.
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.progress import Progress
from torch import Tensor

from pelagos.model.config import ModelConfig
from pelagos.model.config_json import config_to_json
from pelagos.model.presets import preset
from pelagos.model.safetensors_file import StreamingWriter
from pelagos.model.tensors import StoredSpec, stored_tensors

_PIECE_ROWS = 4096
_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32}


def slice_config(preset_name: str, kinds: list[str]) -> ModelConfig:
    """The preset with one layer of each of ``kinds``: the first of that kind with a learned router."""
    whole = preset(preset_name)
    layers = []
    for kind in kinds:
        found = [layer for layer in whole.layers if layer.kind == kind]
        if not found:
            raise SystemExit(f"preset {preset_name} has no {kind} layer")
        layers.append(next((layer for layer in found if layer.router == "learned"), found[0]))
    return dataclasses.replace(whole, layers=tuple(layers), mtp_layers=(), num_dspark_blocks=0, dspark_markov_rank=None)


def make_slice(folder: Path, config: ModelConfig, *, seed: int = 0) -> int:
    """Write the checkpoint and return the bytes of its tensors. A layer is a shard, the rest is one more."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: dict[str, list[StoredSpec]] = {}
    for stored in stored_tensors(config):
        part = ".".join(stored.name.split(".")[:2]) if stored.name.startswith("layers.") else "outer"
        shards.setdefault(part, []).append(stored)
    generator = torch.Generator().manual_seed(seed)
    weight_map, total = {}, 0
    num_bytes = sum(spec.num_bytes for specs in shards.values() for spec in specs)
    with Progress() as progress:
        task = progress.add_task("writing", total=num_bytes)
        for number, specs in enumerate(shards.values(), 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            by_name = {spec.name: spec for spec in specs}
            with StreamingWriter(folder / name, {s.name: (s.dtype, s.shape) for s in specs}) as writer:
                for tensor in writer.order:
                    for piece in _random_pieces(by_name[tensor], config, generator):
                        writer.write(tensor, piece)
                        progress.advance(task, piece.nbytes)
            weight_map |= dict.fromkeys(by_name, name)
            total += sum(spec.num_bytes for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config_to_json(config), indent=2))
    return total


def _random_pieces(spec: StoredSpec, config: ModelConfig, generator: torch.Generator) -> Iterator[Tensor]:
    num_rows = spec.shape[0]
    for start in range(0, num_rows, _PIECE_ROWS):
        shape = (min(_PIECE_ROWS, num_rows - start), *spec.shape[1:])
        yield _random(spec, shape, config, generator)


def _random(spec: StoredSpec, shape: tuple[int, ...], config: ModelConfig, g: torch.Generator) -> Tensor:
    """Values of the size that trained weights have: matrices near 1/sqrt(inputs), norms near 1."""
    if spec.dtype == "F8_E8M0":  # FP8 codes below have size 1, FP4 codes size 3
        exponent = round(math.log2(config.hidden_size**-0.5)) - (2 if ".experts." in spec.name else 0)
        codes = torch.randint(127 + exponent - 1, 127 + exponent + 1, shape, generator=g, dtype=torch.uint8)
        return codes.view(torch.float8_e8m0fnu)
    if spec.dtype == "F8_E4M3":
        return torch.randn(shape, generator=g).to(torch.float8_e4m3fn)
    if spec.dtype == "I8":
        return torch.randint(-128, 128, shape, generator=g, dtype=torch.int8)
    if spec.dtype == "I64":
        order = torch.rand(shape[0], config.num_experts, generator=g).argsort(1)
        return order[:, : shape[1]].contiguous()
    noise = torch.randn(shape, generator=g)
    value = 1.0 + 0.1 * noise if "norm" in spec.name else noise * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
    return value.to(_DTYPES[spec.dtype])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", default="flash", help="flash or pro")
    parser.add_argument("--layers", default="window,csa,hca", help="kinds of layers, in order")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total = make_slice(options.folder, slice_config(options.preset, options.layers.split(",")), seed=options.seed)
    print(f"{options.folder}: {total:,} bytes of tensors")


if __name__ == "__main__":
    main()
