"""What a training run writes down about itself: ``metrics.jsonl``, one JSON object a line, appended as the run goes.

    with MetricsLog(folder, resume_step=checkpoint.step) as log:
        log.write(StepRecord(step=120, loss=3.41, ...))
        log.write(Event(step=123, kind="rolled_back", to_step=100, reason="loss 9.81 above 4.20"))

    history = read_history(folder)  # what report.py draws

Lines are only ever added, so a crash costs at most the line being written, which is dropped when the file is opened
again. A resumed run cuts the lines that its checkpoint does not know and writes them anew. Lines that a roll back undid
stay in the file; ``read_history`` tells them apart. A number that is not finite is written as null, and read as NaN or,
where None is allowed, as None.
"""

import dataclasses
import errno
import itertools
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from pelagos.common.device import Machine
from pelagos.common.errors import ConfigError, ResourceError, UsageError
from pelagos.common.fields import check_value
from pelagos.common.files import parse_json, read_json, write_atomic

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
RUN_FILE = "run.json"
TENSORBOARD_FOLDER = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What does not change during a run: the head of its report. ``num_steps`` and ``num_tokens`` are those planned;
    ``hardware`` is one line for people."""

    recipe: str
    num_parameters: int
    num_active_parameters: int
    num_steps: int
    num_tokens: int
    hardware: str


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One logged step. Whatever was not measured is None or left out of its mapping; mappings by int are by layer.

    step, tokens: optimizer steps done and tokens seen, this one included. seconds: of training so far, over all parts
    of a resumed run. batch_tokens: of this step. loss: the objective, in nats per token. parts: its terms before their
    weights, "main", "mtp", "balance", "index". bits_per_byte: of the main term. gradient_norm: before clipping.
    expert_load: tokens of the busiest expert over the mean, 1 is balance. router_bias: lowest and highest.
    indexer_recall: share of the attention mass that the chosen rows hold, per CSA layer. post_share: share of write
    weights above 1.9 (their limit is 2). clamped: share of SwiGLU inputs at a limit, "gate_high", "up_high", "up_low".
    memory_bytes: highest so far. The other names are those of functions below.
    """

    step: int
    tokens: int
    seconds: float
    stage: str
    sequence_length: int
    batch_tokens: int
    loss: float
    learning_rate: float
    parts: Mapping[str, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    share_of_peak: float | None = None
    gradient_norm: float | None = None
    expert_load: Mapping[int, float] = field(default_factory=dict)
    router_bias: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    indexer_recall: Mapping[int, float] = field(default_factory=dict)
    stream_gain: float | None = None
    post_share: float | None = None
    clamped: Mapping[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened at a step beside learning: its batch was skipped, or the run went back to the state after
    ``to_step``. ``reason`` is for people."""

    step: int
    kind: Literal["skipped", "rolled_back"]
    reason: str
    to_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class History:
    """A run as it stands. ``steps`` rise; ``abandoned`` holds the pieces that roll backs undid, oldest first."""

    steps: tuple[StepRecord, ...]
    abandoned: tuple[tuple[StepRecord, ...], ...]
    events: tuple[Event, ...]


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """Loss in nats per token as bits per byte of text: the figure that does not depend on the vocabulary."""
    return loss / (math.log(2) * bytes_per_token)


def share_of_peak(tokens_per_second: float, flops_per_token: float, peak_flops: float) -> float:
    """Floating-point operations per second that the model needed, over those of a large matrix product."""
    return tokens_per_second * flops_per_token / peak_flops


def stream_gain(mixes: "Tensor") -> float:
    """How much the residual streams can grow on their way: 1 for doubly stochastic mixing, healthy below 1.6.

    mixes: [S, T, M, M], the mixing matrices of S sub-blocks in order. The largest sum of magnitudes in a row or column
    of the products of the first 1, 2, .. S of them, over all tokens (gain magnitude, mHC, arXiv 2512.24880).
    """
    products = list(itertools.accumulate(mixes, lambda product, mix: product @ mix))
    return max(float(product.abs().sum(dim).max()) for product in products for dim in (-1, -2))


def describe_hardware(machine: Machine) -> str:
    """One line about a machine, for ``RunInfo.hardware``."""
    memory = machine.memory.total
    parts = [machine.processor.model or machine.system, f"{machine.num_usable_cores} cores"]
    parts += [f"{memory / 2**30:.0f} GiB"] if memory else []
    for accelerator in machine.accelerators:
        if accelerator.num_devices:
            parts.append(f"{accelerator.num_devices} x {(accelerator.models or (accelerator.kind,))[0]}")
    return ", ".join([*parts, f"torch {machine.torch_version} ({machine.torch_blas}, {machine.torch_cpu_capability})"])


def write_run_info(folder: Path, info: RunInfo) -> None:
    """Write ``run.json``."""
    write_atomic(folder / RUN_FILE, json.dumps(dataclasses.asdict(info), indent=2) + "\n")


def read_run_info(folder: Path) -> RunInfo | None:
    """Read ``run.json``; None if there is none. Raises UsageError or ConfigError if it is broken."""
    path = folder / RUN_FILE
    return _record(RunInfo, read_json(path, 1 << 20), str(path)) if path.exists() else None


class MetricsLog:
    """The log of one run, open for writing. One process at a time: the caller holds the folder's lock."""

    def __init__(self, folder: Path, *, resume_step: int | None = None, tensorboard: bool = False) -> None:
        """Open or make ``folder/metrics.jsonl``.

        resume_step: drop what was logged after that step, because the run goes on from it. None: keep every whole line.
        tensorboard: write the same numbers to ``folder/tensorboard``.

        Raises UsageError if the package tensorboard is asked for and missing, and UsageError or ConfigError for a log
        that is broken before its last line; it is then untouched.
        """
        self._path = folder / METRICS_FILE
        kept_bytes, self._last_step = _kept(self._path, resume_step)
        self._board = _open_board(folder, self._last_step) if tensorboard else None
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.ftruncate(self._file, kept_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def write(self, entry: StepRecord | Event) -> None:
        """Append one line. Steps must rise, from ``to_step`` on after a roll back. Raises ResourceError: disk full."""
        if isinstance(entry, StepRecord):
            assert entry.step > self._last_step, f"step {entry.step} was logged already"
            self._last_step = entry.step
            if self._board is not None:
                for name, number in scalars(entry).items():
                    self._board.add_scalar(name, number, entry.step)
        elif entry.to_step is not None:
            self._last_step = min(self._last_step, entry.to_step)
        line = json.dumps(_plain(entry), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        try:
            whole = os.write(self._file, line) == len(line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            whole = False
        if not whole:
            raise ResourceError(f"{self._path} cannot grow: no space is left on its disk")

    def sync(self) -> None:
        """Make all lines survive a power cut. To be called before a checkpoint is written, so that none is ahead."""
        os.fsync(self._file)

    def close(self) -> None:
        """No more lines. Must be called once."""
        os.close(self._file)
        if self._board is not None:
            self._board.close()


def read_history(folder: Path) -> History:
    """Read the log of a run, which may be running. Raises UsageError or ConfigError if none is
    there or it is broken."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise UsageError(f"{folder} must be the folder of a training run, but has no {METRICS_FILE}")
    steps: list[StepRecord] = []
    abandoned: list[tuple[StepRecord, ...]] = []
    events: list[Event] = []
    for _, entry in _entries(path):
        if isinstance(entry, StepRecord):
            steps.append(entry)
            continue
        events.append(entry)
        if entry.to_step is not None:
            num_kept = sum(record.step <= entry.to_step for record in steps)
            abandoned.append(tuple(steps[num_kept:]))
            del steps[num_kept:]
    return History(steps=tuple(steps), abandoned=tuple(piece for piece in abandoned if piece), events=tuple(events))


def scalars(record: StepRecord) -> dict[str, float]:
    """All numbers of a record but its step under flat names: "loss", "parts/main", "router_bias/layer_03/low"."""
    flat: dict[str, float] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                add(f"{name}/layer_{key:02d}" if isinstance(key, int) else f"{name}/{key}", item)
        elif isinstance(value, tuple):
            for end, item in zip(("low", "high"), value, strict=True):
                add(f"{name}/{end}", item)
        elif isinstance(value, int | float):
            flat[name] = value

    for name, value in vars(record).items():
        if name != "step":
            add(name, value)
    return flat


def _open_board(folder: Path, last_step: int) -> "SummaryWriter":
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("TensorBoard output needs the package tensorboard: pip install 'pelagos[train]'") from error
    return SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=last_step + 1)


def _kept(path: Path, resume_step: int | None) -> tuple[int, int]:
    """How many bytes of a log stay, and the last step in them (0 without any).

    The state after ``resume_step`` knows all lines up to the last one not beyond it. A roll back has the step it
    happened at, so those after the checkpoint are cut, and those before it stay, wherever they went back to.
    """
    kept_bytes, kept_step, step = 0, 0, 0
    for end, entry in _entries(path) if path.exists() else ():
        step = entry.step if isinstance(entry, StepRecord) else step
        if isinstance(entry, Event) and entry.to_step is not None:
            step = min(step, entry.to_step)
        if resume_step is None or entry.step <= resume_step:
            kept_bytes, kept_step = end, step
    return kept_bytes, kept_step


def _entries(path: Path) -> Iterator[tuple[int, StepRecord | Event]]:
    """Every entry and the offset behind its line; a last line that is cut short or broken is left out."""
    end, broken = 0, None
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if broken:
                raise broken
            try:
                entry = _entry(line, f"{path} line {number}")
            except (UsageError, ConfigError) as error:
                broken = error
                continue
            if line.endswith(b"\n"):
                end += len(line)
                yield end, entry


def _entry(line: bytes, place: str) -> StepRecord | Event:
    value = parse_json(line, place)
    if isinstance(value, dict) and "event" in value:
        return _record(Event, {"kind": value["event"], **value}, place)
    return _record(StepRecord, value, place)


_HINTS: dict[type, dict[str, Any]] = {kind: typing.get_type_hints(kind) for kind in (StepRecord, Event, RunInfo)}
_Record = typing.TypeVar("_Record", StepRecord, Event, RunInfo)


def _record(kind: type[_Record], value: object, place: str) -> _Record:
    """A dataclass from a JSON object. Names that it does not have are passed over: a later version may write more."""
    if not isinstance(value, dict):
        raise UsageError(f"{place} must be an object")
    hints = _HINTS[kind]
    found = {}
    for item in dataclasses.fields(kind):
        if item.name in value:
            found[item.name] = _value(f"{place}: {item.name}", value[item.name], hints[item.name])
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise UsageError(f"{place}: {item.name} is missing")
    return kind(**found)


def _value(name: str, value: Any, hint: Any) -> Any:
    if hint is float and type(value) is float:  # nearly all of a log
        return value
    kind, arguments = typing.get_origin(hint), typing.get_args(hint)
    if kind is Mapping:
        if not isinstance(value, dict) or (arguments[0] is int and not all(key.isdecimal() for key in value)):
            raise UsageError(f"{name} must be an object" + " with numbers of layers as keys" * (arguments[0] is int))
        return {arguments[0](key): _value(f"{name}[{key}]", item, arguments[1]) for key, item in value.items()}
    if kind is tuple:
        if not isinstance(value, list) or len(value) != len(arguments):
            raise UsageError(f"{name} must be a list of {len(arguments)} numbers")
        return tuple(_value(name, item, argument) for item, argument in zip(value, arguments, strict=True))
    if hint is float and value is None:
        return math.nan
    check_value(name, value, hint, choices=arguments if kind is Literal else None)
    return float(value) if value is not None and float in (hint, *arguments) else value


def _plain(entry: StepRecord | Event) -> dict[str, Any]:
    """An entry as a JSON object, without what was not measured."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    values = {name: plain(value) for name, value in vars(entry).items() if value is not None and value != {}}
    return {"event": values.pop("kind"), **values} if isinstance(entry, Event) else values
