"""How commands load a model, and what its folder says about using it."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pelagos.model.transformer import Model


class Dtype(StrEnum):
    """Dtypes of activations."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Rounding(StrEnum):
    """Whether the served model's low-precision steps are done."""

    AUTO = "auto"
    OFFICIAL = "official"
    OFF = "off"


DtypeOption = Annotated[
    Dtype | None,
    typer.Option(help="Dtype between operations. Default: the checkpoint's.", rich_help_panel="Machine"),
]
RoundingOption = Annotated[
    Rounding,
    typer.Option(
        help="Round as the served model does; auto: if the weights are quantised as its are.", rich_help_panel="Machine"
    ),
]


def load(place: str, device: str, dtype: Dtype | None = None, rounding: Rounding = Rounding.AUTO) -> "Model":
    """The model at ``place``, which ``model_place`` gave; says so if its weights are random."""
    import torch

    from pelagos.model.transformer import Model

    loaded = Model.load(
        place,
        device,
        None if dtype is None else getattr(torch, dtype),
        official_rounding={Rounding.AUTO: None, Rounding.OFFICIAL: True, Rounding.OFF: False}[rounding],
    )
    if not Path(place).is_dir():
        print(f"pelagos: preset {place} has random weights: its output means nothing", file=sys.stderr)
    return loaded


def default_temperature(folder: Path) -> float:
    """The temperature in a checkpoint's generation_config.json, if it has one from 0 to 2; else 1, the model's own."""
    from pelagos.common.files import read_json

    path = folder / "generation_config.json"
    if not path.is_file():
        return 1.0
    settings = read_json(path, 1 << 20)
    value = settings.get("temperature") if isinstance(settings, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 2:
        return float(value)
    return 1.0
