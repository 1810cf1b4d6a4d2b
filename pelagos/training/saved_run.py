"""The folder of a run, read: its config and the state of a checkpoint, also while the run goes on. Nothing is written.

config = read_config(Path("runs/nano"))
saved = read_checkpoint(Path("runs/nano"), step=300)    # or the newest
run = fork(dataclasses.replace(config, num_steps=60), saved, loader)
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from pelagos.common.errors import CheckpointError, UsageError
from pelagos.common.files import read_json
from pelagos.training import checkpoint
from pelagos.training.checkpoint import FOLDER, Saved
from pelagos.training.config import TrainConfig
from pelagos.training.data import Batches
from pelagos.training.loop import Run
from pelagos.training.parallel import Group
from pelagos.training.session import CONFIG_FILE
from pelagos.training.views import named_weights

_MAX_CONFIG_BYTES = 1 << 24
_Value = TypeVar("_Value")


def read_config(folder: Path) -> TrainConfig:
    """The config of the run in ``folder``; fields that were added since have their defaults.

    Raises UsageError where there is no run or the file has fields of another version, ConfigError for wrong values.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise UsageError(f"{folder} must be the folder of a training run, but has no {CONFIG_FILE}")
    return from_plain(TrainConfig, read_json(path, _MAX_CONFIG_BYTES), str(path))


def from_plain(kind: type[_Value], value: Any, place: str) -> _Value:
    """A config dataclass out of what ``session.plain`` made of it. Raises UsageError that starts with ``place``."""
    result: _Value = _typed(kind, value, place)
    return result


def _typed(hint: Any, value: Any, place: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _typed(arguments[0], value, place)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, Mapping):
            raise UsageError(f"{place} must be an object")
        hints = typing.get_type_hints(hint)
        if unknown := [name for name in value if name not in hints]:
            raise UsageError(f"{place}: {unknown[0]} is no field of {hint.__name__}")
        missing = [field.name for field in dataclasses.fields(hint) if field.default is dataclasses.MISSING]
        if absent := [name for name in missing if name not in value]:
            raise UsageError(f"{place}: {absent[0]} is missing")
        return hint(**{name: _typed(hints[name], item, f"{place}: {name}") for name, item in value.items()})
    if origin is tuple:
        if not isinstance(value, list):
            raise UsageError(f"{place} must be a list")
        return tuple(_typed(arguments[0], item, place) for item in value)
    return value


def read_checkpoint(folder: Path, step: int | None = None) -> Saved:
    """The checkpoint of ``step``, or the newest sound one. Raises CheckpointError without one."""
    if step is None:
        saved = checkpoint.newest(folder)
        if saved is None:
            raise CheckpointError(str(folder), ["it has no checkpoint of one process"])
        return saved
    place = folder / FOLDER / f"step-{step:08}"
    if not place.is_dir():
        there = sorted(int(path.name[5:]) for path in (folder / FOLDER).glob("step-*"))
        raise CheckpointError(str(folder), [f"it has no checkpoint of step {step}; there are {there}"])
    try:
        return checkpoint._read(place)
    except OSError as error:  # the run may have removed it meanwhile
        raise CheckpointError(str(place), [str(error)]) from error


def fork(config: TrainConfig, saved: Saved, batches: Batches, device: torch.device | None = None) -> Run:
    """A run of ``config`` from its step 0 on, with the weights and the optimizer's state of ``saved``.

    Raises CheckpointError where ``config`` has another model or choice of optimizers; all else may differ.
    """
    run = Run(config, batches, Group(), device or torch.device("cpu"))
    checkpoint.load_weights(named_weights(run.model), saved.weights)
    run.optimizer.load_state_dict(saved.optimizer)
    return run
