"""``pelagos inspect``: what a checkpoint or a preset holds and costs, without loading it."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pelagos.cli.options import Json
from pelagos.common.errors import UsageError

if TYPE_CHECKING:
    from pelagos.model.config import ModelConfig
    from pelagos.model.tensors import StoredSpec

_CONTEXTS = (4096, 131_072, 1_048_576)
_SIZES = (
    *("vocab_size", "hidden_size", "num_heads", "head_dim", "rope_dim", "query_rank", "num_output_groups"),
    *("output_rank", "num_index_heads", "index_head_dim", "index_topk", "num_experts", "num_experts_per_token"),
    *("expert_dim", "num_streams", "max_positions"),
)

ModelFolder = Annotated[str | None, typer.Argument(metavar="FOLDER", help="A checkpoint folder.")]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", help="A preset, such as flash or tiny, instead of a folder.")
]
Tensors = Annotated[bool, typer.Option("--tensors", help="List every tensor: name, format, shape, bytes.")]


def inspect_command(
    model: ModelFolder = None, preset: Preset = None, as_json: Json = False, tensors: Tensors = False
) -> None:
    """Show what a checkpoint folder or a preset holds: layers, parameters, bytes, and costs per token.

    Of a folder only headers are read, and all of it is checked. The keys of the JSON object:

    model, source, storage, sizes
    layers: num, kinds, ratios, num_hash, num_mtp, num_dspark
    parameters: total, active (both without draft blocks), active_with_embedding, mtp, dspark, ids, by_part
    checkpoint: num_tensors, num_bytes, by_dtype
    state: bytes of one sequence, by row format (fp8_fp4 is the official one)
    contexts: flops and bytes_read of one token at 4K, 128K and 1M tokens, or as far as the model goes
    tensors: with --tensors
    """
    if (model is None) == (preset is None):
        raise UsageError("give either a checkpoint folder or --preset NAME")
    config, source, stored = _open(model, preset)
    report = {"model": model or preset, "source": source, **_describe(config), "checkpoint": _count(stored)}
    if as_json:
        if tensors:
            report["tensors"] = [dataclasses.asdict(spec) for spec in stored]
        print(json.dumps(report, indent=2))
        return
    _print_tables(report)
    if tensors:
        for spec in stored:
            print(f"{spec.name}  {spec.dtype}  {list(spec.shape)}  {spec.num_bytes}")


def _open(model: str | None, preset: str | None) -> "tuple[ModelConfig, dict[str, Any], list[StoredSpec]]":
    """The config, where it comes from, and what is stored. As everywhere, a folder goes before a preset of its name."""
    from pelagos.model import presets
    from pelagos.model.places import model_place
    from pelagos.model.tensors import stored_tensors

    if model is not None:
        model = model_place(model)
        preset = model if model in presets.PRESETS and not Path(model).is_dir() else None
    if preset is not None:
        config = presets.preset(preset)
        return config, {"kind": "preset"}, list(stored_tensors(config))
    from pelagos.model.checkpoint import open_checkpoint

    assert model is not None
    checkpoint = open_checkpoint(Path(model))
    source = {
        "kind": "folder",
        "num_files": checkpoint.num_files,
        "spelling": checkpoint.spelling,
        "notes": list(checkpoint.notes),
        "ignored_tensors": list(checkpoint.ignored),
    }
    return checkpoint.config, source, list(checkpoint.stored.values())


def _describe(config: "ModelConfig") -> dict[str, Any]:
    from pelagos.model import accounting

    parameters = accounting.parameters(config)
    return {
        "storage": config.storage,
        "sizes": {name: getattr(config, name) for name in _SIZES},
        "layers": {
            "num": len(config.layers),
            "kinds": {kind: sum(layer.kind == kind for layer in config.layers) for kind in ("window", "csa", "hca")},
            "ratios": [layer.ratio for layer in config.layers],
            "num_hash": sum(layer.router == "hash" for layer in config.layers),
            "num_mtp": len(config.mtp_layers),
            "num_dspark": config.num_dspark_blocks,
        },
        "parameters": dataclasses.asdict(parameters),
        "state": {name: dataclasses.asdict(accounting.state_bytes(config, name)) for name in accounting.ROW_FORMATS},
        "contexts": [
            {
                "tokens": tokens,
                "flops": _with_total(accounting.flops_per_token(config, tokens)),
                "bytes_read": _with_total(accounting.bytes_read_per_token(config, tokens)),
            }
            for tokens in sorted({min(tokens, config.max_positions) for tokens in _CONTEXTS})
        ],
    }


def _with_total(costs: Any) -> dict[str, int]:
    return {**dataclasses.asdict(costs), "total": costs.total}


def _count(stored: "Iterable[StoredSpec]") -> dict[str, Any]:
    num_tensors: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for spec in stored:
        num_tensors[spec.dtype] += 1
        num_bytes[spec.dtype] += spec.num_bytes
    return {
        "num_tensors": num_tensors.total(),
        "num_bytes": num_bytes.total(),
        "by_dtype": {
            dtype: {"num_tensors": num_tensors[dtype], "num_bytes": num_bytes[dtype]} for dtype in sorted(num_tensors)
        },
    }


def _print_tables(report: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    facts = Table(box=box.SIMPLE, show_header=False, title=f"{report['model']} ({_source(report['source'])})")
    for name, value in _facts(report):
        facts.add_row(name, value)
    costs = Table(box=box.SIMPLE, pad_edge=False, title="FLOP and bytes read for one token")
    for heading in ("context", "FLOP", "dense", "attention", "indexer", "bytes", "weights", "state"):
        costs.add_column(heading, justify="right")
    for row in report["contexts"]:
        flops, read = row["flops"], row["bytes_read"]
        attention = flops["window"] + flops["csa"] + flops["hca"]
        parts = (flops["total"], flops["dense"], attention, flops["indexer"], *_pick(read, "total", "weights", "state"))
        costs.add_row(_tokens(row["tokens"]), *map(_short, parts))
    console.print(facts, costs, sep="\n")
    for note in report["source"].get("notes", ()):
        console.print(f"Note: {note}.", soft_wrap=True)


def _source(source: dict[str, Any]) -> str:
    if source["kind"] == "preset":
        return "preset"
    return f"{source['num_files']} files, {source['spelling']} tensor names"


def _facts(report: dict[str, Any]) -> Iterable[tuple[str, str]]:
    layers, sizes, parameters = report["layers"], report["sizes"], report["parameters"]
    kinds = ", ".join(f"{number} {kind}" for kind, number in layers["kinds"].items() if number)
    yield "layers", f"{layers['num']}: {kinds}; {layers['num_hash']} route by token id"
    yield "draft blocks", f"{layers['num_mtp']} MTP, {layers['num_dspark']} DSpark"
    yield "heads", f"{sizes['num_heads']} of {sizes['head_dim']}; hidden size {sizes['hidden_size']:,}"
    yield "experts", f"{sizes['num_experts_per_token']} of {sizes['num_experts']}, inner width {sizes['expert_dim']:,}"
    yield "parameters", f"{parameters['total']:,}"
    yield "  active", f"{parameters['active']:,} (with embedding {parameters['active_with_embedding']:,})"
    yield "  draft blocks", f"{parameters['mtp'] + parameters['dspark']:,}"
    yield "  expert id tables", f"{parameters['ids']:,} entries"
    yield f"stored as {report['storage']}", _size(report["checkpoint"])
    for dtype, counts in report["checkpoint"]["by_dtype"].items():
        yield f"  {dtype}", _size(counts)
    for name, state in report["state"].items():
        yield f"state in {name}", f"{state['per_token']:,.2f} bytes per token, {state['window']:,} for the window"


def _size(counts: dict[str, int]) -> str:
    return f"{counts['num_bytes']:,} bytes in {counts['num_tensors']:,} tensors"


def _pick(values: dict[str, int], *names: str) -> list[int]:
    return [values[name] for name in names]


def _tokens(number: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "K")):
        if number % size == 0:
            return f"{number // size}{unit}"
    return f"{number:,}"


def _short(number: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " K")):
        if number >= size:
            return f"{number / size:,.1f}{unit}"
    return str(number)
