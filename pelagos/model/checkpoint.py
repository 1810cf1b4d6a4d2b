"""A checkpoint folder: config.json and safetensors files, checked as a whole before anything is loaded.

Only headers are read to open one, so a checkpoint larger than memory opens in seconds; tensors are views of the mapped
files. Whichever of the three spellings a folder uses (names.py), everything here goes by official names.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError
from pelagos.formats.blocks import BLOCK_128X128, ROW_32
from pelagos.formats.matrix import QuantizedMatrix
from pelagos.model.checkpoint_files import StoredFiles, find_files
from pelagos.model.config import ModelConfig
from pelagos.model.config_json import read_config
from pelagos.model.names import Source, Spelling, find_spellings, is_optional, scale_names, source_of
from pelagos.model.safetensors_file import FileTensor, show_name
from pelagos.model.tensors import StoredSpec, TensorSpec, tensor_specs

_SHOWN_PROBLEMS = 20
_MAX_TENSORS = 300_000  # a config of a few bytes can ask for billions; the largest model has 73,164
_FLOATS = ("BF16", "F16", "F32")
_FP8_SCALES = ("F8_E8M0", "F32")
_FP4 = ("I8", "U8")  # two codes per byte


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Checkpoint:
    """A folder in which every tensor of ``config`` was found, with the right shape and a dtype its role allows.

    ``config`` has no draft blocks where the folder holds none; ``notes`` says so. ``ignored`` names the tensors that
    nothing asks for. ``stored`` maps official names, scales (``X.scale``) included, to what is on disk.
    """

    folder: Path
    config: ModelConfig
    spelling: Spelling
    stored: Mapping[str, StoredSpec]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]
    _files: StoredFiles
    _sources: Mapping[str, Source]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The weight files."""
        return tuple(self._files.paths)

    @property
    def num_files(self) -> int:
        return len(self._files.paths)

    def tensor(self, name: str) -> Tensor:
        """The tensor of this official name in its stored dtype, a view of the mapped file. KeyError if there is none.

        Raises CheckpointError where a table of expert ids names an expert that does not exist.
        """
        source = self._sources[name]
        tensor = self._files.tensor(source.name)
        if source.expert is not None:
            tensor = tensor[source.expert].chunk(source.num_parts)[source.part]
        if name.endswith(".tid2eid") and tensor.numel():
            low, high = (int(bound) for bound in torch.aminmax(tensor))
            if low < 0 or high >= self.config.num_experts:
                limit = self.config.num_experts - 1
                problem = f"tensor {source.name}: expert ids must be from 0 to {limit}, found {low} to {high}"
                raise CheckpointError(str(self.folder), [problem])
        return tensor

    def matrix(self, name: str) -> Tensor | QuantizedMatrix:
        """The weight of this official name as it is stored: a float tensor, or codes with their scales."""
        codes = self.tensor(name)
        if codes.dtype.is_floating_point and codes.dtype != torch.float8_e4m3fn:
            return codes
        scales = self.tensor(_scale_name(name))
        if codes.dtype == torch.float8_e4m3fn:
            return QuantizedMatrix(codes=codes, scales=scales, layout=BLOCK_128X128)
        return QuantizedMatrix(codes=codes.view(torch.int8), scales=scales, layout=ROW_32)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open a folder in Hugging Face layout. Raises one CheckpointError with every problem of config, files and tensors.

    Weights are the files that model.safetensors.index.json lists, else model.safetensors, else every .safetensors file.
    A matrix may be stored as float16, bfloat16 or float32, as FP8 with 128x128 scales or, an expert, as FP4.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(str(folder), ["must be a folder with config.json and .safetensors files"])
    files, problems = find_files(folder)
    try:
        config = read_config(folder)
    except CheckpointError as error:
        raise _error(folder, [*(f"config.json: {problem}" for problem in error.problems), *problems]) from None
    config, notes = _fit_draft_blocks(config, files.tensors)
    spellings = find_spellings(files.tensors)
    if len(spellings) > 1:
        examples = " and ".join(f"{show_name(name)} ({spelling})" for spelling, name in spellings.items())
        raise _error(folder, [*problems, f"tensor names must have one spelling, but there are {examples}"])
    check = _TensorCheck(config, next(iter(spellings), "official"), files)
    problems += check.problems
    if problems:
        raise _error(folder, problems)
    return Checkpoint(
        folder=folder,
        config=config,
        spelling=check.spelling,
        stored=check.stored,
        ignored=check.ignored,
        notes=notes,
        _files=files,
        _sources=check.sources,
    )


def _error(folder: Path, problems: list[str]) -> CheckpointError:
    """All problems in ``.problems``, the first ones in the message."""
    error = CheckpointError(str(folder), problems)
    if len(problems) > _SHOWN_PROBLEMS:
        lines = str(error).splitlines()[: 1 + _SHOWN_PROBLEMS]
        error.args = ("\n".join([*lines, f"  - and {len(problems) - _SHOWN_PROBLEMS} more"]),)
    return error


def _scale_name(name: str) -> str:
    return name.removesuffix(".weight") + ".scale"


def _fit_draft_blocks(config: ModelConfig, names: Iterable[str]) -> tuple[ModelConfig, tuple[str, ...]]:
    """The config with as many draft blocks as the files hold; some configs announce blocks that are not there."""
    blocks = {match[1] for name in names if (match := re.match(r"mtp\.(\d+)\.", name))}
    if not blocks and (config.mtp_layers or config.num_dspark_blocks):
        notes = ("config.json announces draft blocks, but there are no mtp tensors: the model has none",)
        return replace(config, mtp_layers=(), num_dspark_blocks=0, dspark_markov_rank=None), notes
    if config.num_dspark_blocks not in (0, len(blocks)):
        notes = (f"{len(blocks)} DSpark blocks are stored, not {config.num_dspark_blocks}",)
        return replace(config, num_dspark_blocks=len(blocks)), notes
    return config, ()


class _TensorCheck:
    """Matches what the config asks for with what the files hold; ``problems`` says where they differ."""

    def __init__(self, config: ModelConfig, spelling: Spelling, files: StoredFiles) -> None:
        self.config = config
        self.spelling = spelling
        self.files = files
        self.problems: list[str] = []
        self.sources: dict[str, Source] = {}
        self.stored: dict[str, StoredSpec] = {}
        self.ignored: tuple[str, ...] = ()
        self._used: set[str] = set()
        for number, spec in enumerate(tensor_specs(config)):
            if number == _MAX_TENSORS:
                self.problems = [f"config.json: experts times layers must give at most {_MAX_TENSORS:,} tensors"]
                return
            self._find(spec)
        others = [name for name in files.tensors if name not in self._used]
        self.ignored = tuple(name for name in others if is_optional(name))
        self.problems += [f"unexpected tensor {show_name(name)}" for name in others if not is_optional(name)]

    def _find(self, spec: TensorSpec) -> None:
        source = source_of(spec.name, self.spelling)
        scale = next((name for name in scale_names(source.name) if name in self.files.tensors), None)
        first_use = source.name not in self._used  # many experts may share one tensor: say it once
        self._used.add(source.name)
        if scale is not None:
            self._used.add(scale)
        if source.name in self.files.tensors:
            found = self.files.tensors[source.name]
            problem = self._problem(spec, source, found, scale)
            if problem is None:
                self._keep(spec, source, found, scale)
            elif first_use:
                self.problems.append(f"tensor {source.name}: {problem}")
        elif first_use and not self.files.may_be_lost(source.name):
            beside = " (its scale is there)" if scale else ""
            self.problems.append(f"missing tensor {source.name}{beside}")

    def _problem(self, spec: TensorSpec, source: Source, found: FileTensor, scale: str | None) -> str | None:
        forms = _forms(spec)
        if found.dtype not in forms:
            return f"dtype must be one of {', '.join(forms)}, got {found.dtype}"
        shape, scale_dtypes, scale_shape = forms[found.dtype]
        if source.expert is not None:
            shape = (self.config.num_experts, source.num_parts * shape[0], *shape[1:])
        if found.shape != shape:
            return f"shape must be {list(shape)}, got {list(found.shape)}"
        if not scale_dtypes:
            return f"{found.dtype} needs no scales, but there is {scale}" if scale else None
        if scale is None:
            wanted = scale_names(source.name)
            lost = any(self.files.may_be_lost(name) for name in wanted)
            return None if lost or not wanted else f"{found.dtype} needs scales, but there is no {wanted[0]}"
        found_scale = self.files.tensors[scale]
        if found_scale.dtype not in scale_dtypes:
            return f"dtype of {scale} must be {' or '.join(scale_dtypes)}, got {found_scale.dtype}"
        if found_scale.shape != scale_shape:
            return f"shape of {scale} must be {list(scale_shape)}, got {list(found_scale.shape)}"
        return None

    def _keep(self, spec: TensorSpec, source: Source, found: FileTensor, scale: str | None) -> None:
        self.sources[spec.name] = source
        shape = spec.shape if source.expert is not None else found.shape
        num_bytes = found.num_bytes // (1 if source.expert is None else self.config.num_experts * source.num_parts)
        self.stored[spec.name] = StoredSpec(name=spec.name, dtype=found.dtype, shape=shape, num_bytes=num_bytes)
        if scale is not None:
            name, at = _scale_name(spec.name), self.files.tensors[scale]
            self.sources[name] = Source(scale)
            self.stored[name] = StoredSpec(name=name, dtype=at.dtype, shape=at.shape, num_bytes=at.num_bytes)


_Form = tuple[tuple[int, ...], tuple[str, ...], tuple[int, ...]]  # stored shape, dtypes and shape of its scales


def _forms(spec: TensorSpec) -> dict[str, _Form]:
    """The dtypes that the role allows, best first, and what each asks of the tensor's shape and of its scales."""
    plain: _Form = (spec.shape, (), ())
    if spec.role == "ids":
        return dict.fromkeys(("I64", "I32"), plain)
    forms = dict.fromkeys(_FLOATS, plain)
    if spec.role in ("dense", "expert"):
        num_outputs, num_inputs = spec.shape
        forms["F8_E4M3"] = (spec.shape, _FP8_SCALES, BLOCK_128X128.scale_shape(num_outputs, num_inputs))
        if spec.role == "expert" and num_inputs % 2 == 0:
            packed = (num_outputs, num_inputs // 2)
            forms |= dict.fromkeys(_FP4, (packed, ("F8_E8M0",), ROW_32.scale_shape(num_outputs, num_inputs)))
    return forms
