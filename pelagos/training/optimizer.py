"""The optimizer of a model: Muon for matrices, AdamW for the rest, one learning rate for both, and its schedule.

    optimizer = Optimizer(model, config)
    loss.backward()
    norm = optimizer.clip(config.clip_norm)
    optimizer.step(learning_rate(step, total_steps, config))
    optimizer.zero_grad()

Weights, gradients and state are float32. The same gradients give the same bits: after a restart from ``state_dict``,
and with the work of Muon spread over several processes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pelagos.common.errors import CheckpointError, ConfigError, UsageError
from pelagos.common.fields import check_fields, setting, show
from pelagos.model.transformer import Model
from pelagos.ops.reference.elementwise import ordered_sum
from pelagos.training.muon import apply_update, assign_ranks, look_ahead, newton_schulz_flops, scaled_direction
from pelagos.training.parameter_rules import Group, assign, pieces

_BATCH_ELEMENTS = 1 << 24  # numbers that Newton-Schulz takes at a time: it needs about four times their memory


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Defaults are those of the released models, where these are known."""

    peak_lr: float = setting(help="learning rate between warm-up and decay, of Muon and AdamW", low=0.0, high=10.0)
    warmup_steps: int = setting(help="steps over which the learning rate rises from 0 to its peak", low=0)
    end_lr_share: float = setting(0.1, help="learning rate at the end, as a share of the peak", low=0.0, high=1.0)
    decay_start_share: float = setting(0.65, help="share of all steps where the cosine decay starts", low=0.0, high=1.0)
    decay_end_share: float = setting(0.9, help="share of all steps where the decay ends", low=0.0, high=1.0)
    muon: bool = setting(True, help="Muon for matrices; false: AdamW for all, for comparison")
    muon_momentum: float = setting(0.95, help="share of Muon's momentum kept per step", low=0.0, high=0.9999)
    muon_update_rms: float = setting(0.18, help="RMS of a Muon update at learning rate 1", low=0.0, high=10.0)
    newton_schulz_steps: tuple[int, int] = setting((8, 2), help="Newton-Schulz steps: growing, then settling")
    newton_schulz_dtype: str = setting(
        "float32", help="number format of the products in Newton-Schulz", choices=("float32", "bfloat16")
    )
    split_query_heads: bool = setting(False, help="orthogonalize the query projection head by head")
    weight_decay: float = setting(0.1, help="decay of matrices, embedding and head, times the rate", low=0.0, high=10.0)
    decay_1d: float = setting(0.0, help="decay of norm weights and stream statics, times the rate", low=0.0, high=10.0)
    adam_beta1: float = setting(0.9, help="share of AdamW's mean kept per step", low=0.0, high=0.9999)
    adam_beta2: float = setting(0.95, help="share of AdamW's mean square kept per step", low=0.0, high=0.99999)
    adam_eps: float = setting(1e-20, help="floor of AdamW's denominator", low=1e-30, high=1.0)
    table_eps: float = setting(
        1e-20, help="the same of embedding and head; large: rows of tokens that hardly occur stay", low=1e-30, high=1.0
    )
    embed_lr_mult: float = setting(1.0, help="factor on the learning rate of the embedding", low=0.0, high=100.0)
    head_lr_mult: float = setting(1.0, help="factor on the learning rate of the output head", low=0.0, high=100.0)
    clip_norm: float | None = setting(1.0, help="largest norm of all gradients together; None: any", low=1e-12)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.decay_start_share > self.decay_end_share:
            limit = f"decay_end_share ({self.decay_end_share})"
            raise ConfigError(f"decay_start_share must be at most {limit}, got {self.decay_start_share}")
        steps = self.newton_schulz_steps
        counts_fit = (
            isinstance(steps, tuple) and len(steps) == 2 and all(type(n) is int and 0 <= n <= 100 for n in steps)
        )
        if not counts_fit or steps == (0, 0):
            what = "two whole numbers from 0 to 100, not both 0"
            raise ConfigError(f"newton_schulz_steps must be {what}, got {show(steps)}")


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of step 0, 1, .. total_steps − 1: linear warm-up, constant, cosine decay, flat."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    start, end = config.decay_start_share * total_steps, config.decay_end_share * total_steps
    progress = min(1.0, max(0.0, (step - start) / (end - start))) if end > start else float(step >= end)
    share = config.end_lr_share + (1 - config.end_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return config.peak_lr * warmup * share


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train copies of one model and see the same gradients.

    Muon's work is divided among them; the state is whole on each. ``broadcast(tensor, source)`` fills ``tensor`` on
    every rank with that of rank ``source``, as torch.distributed.broadcast does.
    """

    rank: int
    num_ranks: int
    broadcast: Callable[[Tensor, int], object]


@dataclass(frozen=True, kw_only=True)
class GroupStatistics:
    """``gradient_norm``: as the last ``clip`` found it, before it clipped; ``update_rms``: of the last step's update at
    learning rate 1, without decay. None before the first of them."""

    gradient_norm: float | None
    update_rms: float | None


class _Block(NamedTuple):
    """Matrices start .. stop of one of the ``pieces`` of a parameter."""

    name: str
    piece: int
    start: int
    stop: int


class _AdamState:
    def __init__(self, parameter: Tensor) -> None:
        self.mean, self.mean_square = torch.zeros_like(parameter), torch.zeros_like(parameter)
        self.num_steps = 0

    def advance(self, gradient: Tensor, config: OptimizerConfig, eps: float) -> Tensor:
        """Take a gradient in; return the update for a learning rate of 1: bias-corrected mean over RMS and ``eps``."""
        self.num_steps += 1
        self.mean.mul_(config.adam_beta1).add_(gradient * (1 - config.adam_beta1))
        self.mean_square.mul_(config.adam_beta2).add_(gradient.square().mul_(1 - config.adam_beta2))
        root_correction = math.sqrt(1 - config.adam_beta2**self.num_steps)
        rms = self.mean_square.sqrt().div_(root_correction).add_(eps)
        return (self.mean / rms).div_(1 - config.adam_beta1**self.num_steps)


class Optimizer:
    """Steps all trained parameters of a model. One whose gradient is None stays as it is, its state too."""

    def __init__(self, model: Model, config: OptimizerConfig, *, ranks: Ranks | None = None) -> None:
        """Raises UsageError for parameters that no rule covers, that are not float32, or that are missing because they
        are still in the stored form of a checkpoint."""
        self.config, self.model_config, self.ranks = config, model.config, ranks
        named = dict(model.named_parameters())
        rules = assign(named, muon=config.muon, decay=config.weight_decay, decay_1d=config.decay_1d)
        self.treatments = {name: rule for name, rule in rules.items() if rule.group != "none"}
        self.parameters = {name: named[name] for name in self.treatments}
        _check_parameters(model, named)
        is_muon = {name: rule.group == "muon" for name, rule in self.treatments.items()}
        self._momenta = {name: torch.zeros_like(p) for name, p in self.parameters.items() if is_muon[name]}
        self._adam = {name: _AdamState(p) for name, p in self.parameters.items() if not is_muon[name]}
        self._batches = _plan({name: self._pieces(name, momentum) for name, momentum in self._momenta.items()})
        self._gradient_squares: dict[Group, float] = {}
        self._update_squares: dict[Group, list[Tensor]] = {}
        self._num_updated: dict[Group, int] = {}

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> float:
        """Scale all gradients down so that their norm together is at most ``max_norm``; returns the norm before.

        The sum has a fixed order. If it is not finite, the gradients stay as they are: the caller decides.
        """
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        self._gradient_squares = {}
        if not gradients:
            return 0.0
        squares = self._squares(list(gradients.values())).tolist()
        for name, square in zip(gradients, squares, strict=True):
            group = self.treatments[name].group
            self._gradient_squares[group] = self._gradient_squares.get(group, 0.0) + square
        norm = math.sqrt(math.fsum(squares))
        if max_norm is not None and max_norm < norm < math.inf:
            for gradient in gradients.values():
                gradient.mul_(max_norm / norm)
        return norm

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move every parameter that has a gradient."""
        self._update_squares, self._num_updated = {}, {}
        batches = [present for batch in self._batches if (present := [b for b in batch if self._has_gradient(b.name)])]
        for batch, update in zip(batches, self._directions(batches), strict=True):
            self._note("muon", update)
            sizes = [block.stop - block.start for block in batch]
            for block, part in zip(batch, torch.split(update, sizes), strict=True):
                weight = self._matrices(block, self.parameters[block.name])
                apply_update(weight, part, lr=lr, decay=self.treatments[block.name].decay)
        factors = {"embed.weight": self.config.embed_lr_mult, "head.weight": self.config.head_lr_mult}
        for name, state in self._adam.items():
            parameter, treatment = self.parameters[name], self.treatments[name]
            if parameter.grad is not None:
                eps = self.config.table_eps if name in factors else self.config.adam_eps
                update = state.advance(parameter.grad, self.config, eps)
                self._note(treatment.group, update)
                apply_update(parameter, update, lr=lr * factors.get(name, 1.0), decay=treatment.decay)

    def statistics(self) -> dict[Group, GroupStatistics]:
        """Size of gradients and updates by group of parameters."""
        return {group: self._statistics_of(group) for group in sorted({t.group for t in self.treatments.values()})}

    def state_dict(self) -> dict[str, Tensor]:
        """The state, under a parameter's name and ``.momentum`` (Muon) or ``.mean``, ``.mean_square``, ``.num_steps``
        (AdamW). Float32 tensors are the live ones: clone what must not change with the next step."""
        tensors = {f"{name}.momentum": momentum for name, momentum in self._momenta.items()}
        for name, state in self._adam.items():
            tensors |= {f"{name}.mean": state.mean, f"{name}.mean_square": state.mean_square}
            tensors[f"{name}.num_steps"] = torch.tensor(state.num_steps)
        return tensors

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from a ``state_dict``. Raises CheckpointError, and changes nothing, if it does not fit."""
        own = self.state_dict()
        if problems := list(_misfits(own, tensors)):
            raise CheckpointError("optimizer state", problems)
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        for name, state in self._adam.items():
            state.num_steps = int(tensors[f"{name}.num_steps"])

    def _squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sum of squares of each tensor."""
        return torch.stack([_sum_of_squares(tensor) for tensor in tensors])

    def _has_gradient(self, name: str) -> bool:
        return self.parameters[name].grad is not None

    def _pieces(self, name: str, tensor: Tensor) -> list[Tensor]:
        return pieces(name, tensor, self.model_config, split_query_heads=self.config.split_query_heads)

    def _matrices(self, block: _Block, tensor: Tensor) -> Tensor:
        return self._pieces(block.name, tensor)[block.piece][block.start : block.stop]

    def _directions(self, batches: Sequence[Sequence[_Block]]) -> Iterator[Tensor]:
        """Muon's update for each batch, all momenta advanced; with several ranks, each made by one of them.

        A batch is the unit of work: which matrices share a product does not depend on the number of ranks.
        """
        if self.ranks is None:
            for batch in batches:
                yield self._direction(self._look_ahead(batch))
            return
        looked_ahead = [self._look_ahead(batch) for batch in batches]
        costs = {f"{i:09}": self._cost(x) for i, x in enumerate(looked_ahead)}
        owners = assign_ranks(costs, self.ranks.num_ranks)
        updates = [
            self._direction(x) if owners[name] == self.ranks.rank else torch.empty_like(x)
            for name, x in zip(costs, looked_ahead, strict=True)
        ]
        for name, update in zip(costs, updates, strict=True):
            self.ranks.broadcast(update, owners[name])
            yield update

    def _look_ahead(self, batch: Sequence[_Block]) -> Tensor:
        parts = []
        for block in batch:
            gradient = self.parameters[block.name].grad
            assert gradient is not None
            momentum = self._matrices(block, self._momenta[block.name])
            parts.append(look_ahead(momentum, self._matrices(block, gradient), self.config.muon_momentum))
        return torch.cat(parts)

    def _cost(self, matrices: Tensor) -> float:
        num, num_rows, num_columns = matrices.shape
        return float(num * newton_schulz_flops(num_rows, num_columns, self.config.newton_schulz_steps))

    def _direction(self, looked_ahead: Tensor) -> Tensor:
        config = self.config
        dtype: torch.dtype = getattr(torch, config.newton_schulz_dtype)
        steps = config.newton_schulz_steps
        return scaled_direction(looked_ahead, rms=config.muon_update_rms, steps=steps, dtype=dtype)

    def _note(self, group: Group, update: Tensor) -> None:
        self._update_squares.setdefault(group, []).append(_sum_of_squares(update))
        self._num_updated[group] = self._num_updated.get(group, 0) + update.numel()

    def _statistics_of(self, group: Group) -> GroupStatistics:
        square, updates = self._gradient_squares.get(group), self._update_squares.get(group)
        rms = math.sqrt(math.fsum(torch.stack(updates).tolist()) / self._num_updated[group]) if updates else None
        return GroupStatistics(gradient_norm=None if square is None else math.sqrt(square), update_rms=rms)


def _check_parameters(model: Model, named: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        expected = [name for name, _ in Model(model.config).named_parameters()]
    if missing := [name for name in expected if name not in named]:
        raise UsageError(
            f"{missing[0]} is no parameter of the model ({len(missing)} are missing): to train it, give it float32 "
            "weights, with the experts of a layer in one tensor"
        )
    if wrong := [name for name, parameter in named.items() if parameter.dtype != torch.float32]:
        raise UsageError(f"{wrong[0]} must be float32 to be trained, got {named[wrong[0]].dtype}")


def _plan(pieces_of: Mapping[str, Sequence[Tensor]]) -> list[list[_Block]]:
    """Batches of matrices of equal shape, in the order of names, none above _BATCH_ELEMENTS unless a matrix is."""
    by_shape: dict[tuple[int, ...], list[list[_Block]]] = {}
    for name, parts in pieces_of.items():
        for number, part in enumerate(parts):
            shape = tuple(part.shape[1:])
            capacity = max(1, _BATCH_ELEMENTS // math.prod(shape))
            batches = by_shape.setdefault(shape, [[]])
            for start in range(0, len(part), capacity):
                block = _Block(name, number, start, min(start + capacity, len(part)))
                if sum(b.stop - b.start for b in [*batches[-1], block]) > capacity:
                    batches.append([])
                batches[-1].append(block)
    return [batch for batches in by_shape.values() for batch in batches]


def _misfits(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in own.items():
        if name not in given:
            yield f"{name} is missing"
        elif given[name].shape != tensor.shape or given[name].dtype != tensor.dtype:
            found = f"{given[name].dtype} {list(given[name].shape)}"
            yield f"{name} must be {tensor.dtype} {list(tensor.shape)}, got {found}"
    for name in given:
        if name not in own:
            yield f"{name} belongs to no parameter"


def _sum_of_squares(x: Tensor) -> Tensor:
    return ordered_sum(x.square().flatten(), 0)
