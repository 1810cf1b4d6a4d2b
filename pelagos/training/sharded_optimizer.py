"""The optimizer of a model whose weights are divided among processes (sharded.py): the state is divided alike.

AdamW and momenta work on each process's own rows. Muon needs whole matrices: each expert lies whole in one process
already, as their stack is cut between them; every other matrix is sent to an owner, made orthogonal there, and sent
back. Owners are dealt out by cost, the same on every rank.

Shapes: R rows of a parameter, its first dimension.
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pelagos.model.transformer import Model
from pelagos.training.muon import apply_update, assign_ranks, look_ahead, newton_schulz_flops
from pelagos.training.optimizer import Optimizer, OptimizerConfig, _plan
from pelagos.training.parallel import Group
from pelagos.training.parameter_rules import Group as TreatmentGroup


def row_range(num_rows: int, rank: int, num_ranks: int) -> slice:
    """The rows that a rank holds: as FSDP2 and ``torch.chunk`` cut, equal parts, the last ones smaller or empty."""
    size = -(-num_rows // num_ranks)
    return slice(min(rank * size, num_rows), min((rank + 1) * size, num_rows))


def rows_of(tensor: DTensor) -> slice:
    """The rows of ``tensor`` that this process holds."""
    mesh = tensor.device_mesh
    return row_range(tensor.shape[0], mesh.get_local_rank(), mesh.size())


class ShardedOptimizer(Optimizer):
    """``Optimizer`` for a model after ``sharded.shard``: the same steps; norms are summed in another order."""

    def __init__(self, model: Model, config: OptimizerConfig, group: Group) -> None:
        super().__init__(model, config)
        self.group = group
        self._batches = []  # the base steps no matrices
        dense = {name: self._flops(name) for name, momentum in self._momenta.items() if momentum.dim() == 2}
        self._owners = assign_ranks(dense, group.num_ranks)

    @torch.no_grad()
    def step(self, lr: float) -> None:
        super().step(lr)
        for name, update in self._muon_updates().items():
            self._note("muon", update)
            apply_update(_local(self.parameters[name]), update, lr=lr, decay=self.treatments[name].decay)
        for group, squares in self._update_squares.items():
            self._update_squares[group] = [self.group.sum(torch.stack(squares).sum())]
            self._num_updated[group] = int(self.group.sum(torch.tensor(self._num_updated[group])))

    def _note(self, group: TreatmentGroup, update: Tensor) -> None:
        super()._note(group, _local(update))

    def _pieces(self, name: str, tensor: Tensor) -> list[Tensor]:
        whole = torch.empty(tensor.shape, device="meta") if isinstance(tensor, DTensor) else tensor
        return super()._pieces(name, whole)

    def _squares(self, tensors: Sequence[Tensor]) -> Tensor:
        """Sum of squares of each tensor over all ranks; tensors that are whole everywhere do not occur."""
        return self.group.sum(super()._squares([_local(tensor) for tensor in tensors]))

    def _flops(self, name: str) -> float:
        steps = self.config.newton_schulz_steps
        parts = self._pieces(name, self._momenta[name])
        return float(sum(len(part) * newton_schulz_flops(part.shape[1], part.shape[2], steps) for part in parts))

    def _muon_updates(self) -> dict[str, Tensor]:
        """The update of this rank's rows of each matrix that has a gradient, all momenta advanced."""
        ahead = {}
        for name, momentum in self._momenta.items():
            gradient = self.parameters[name].grad
            if gradient is not None:
                ahead[name] = look_ahead(_local(momentum), _local(gradient), self.config.muon_momentum)
        own = self._to_owners({name: rows for name, rows in ahead.items() if name in self._owners})
        experts = {name: stack for name, stack in ahead.items() if name not in self._owners}
        self._orthogonalize(own | {name: stack for name, stack in experts.items() if len(stack)})
        return experts | self._from_owners(own, [name for name in ahead if name in self._owners])

    def _orthogonalize(self, wholes: Mapping[str, Tensor]) -> None:
        """Replace whole matrices by their updates."""
        for batch in _plan({name: self._pieces(name, whole) for name, whole in wholes.items()}):
            parts = [self._matrices(block, wholes[block.name]) for block in batch]
            updates = torch.split(self._direction(torch.cat(parts)), [len(part) for part in parts])
            for part, update in zip(parts, updates, strict=True):
                part.copy_(update)

    def _to_owners(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's rows [r, C] of every matrix -> the whole of those that it owns [R, C]."""
        ranks = range(self.group.num_ranks)
        own = [name for name in rows if self._owners[name] == self.group.rank]
        parts = [self._flat(x for name, x in rows.items() if self._owners[name] == rank) for rank in ranks]
        counts = [[self._num_elements(name, rank) for name in own] for rank in ranks]
        received = self.group.exchange(parts, [sum(count) for count in counts])
        pieces = [flat.split(count) for flat, count in zip(received, counts, strict=True)]
        return {
            name: torch.cat([piece[i] for piece in pieces]).view(self.parameters[name].shape)
            for i, name in enumerate(own)
        }

    def _from_owners(self, own: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """The way back: this rank's rows of all ``names``."""
        ranks, here = range(self.group.num_ranks), self.group.rank
        parts = [self._flat(whole[row_range(len(whole), rank, len(ranks))] for whole in own.values()) for rank in ranks]
        theirs = [[name for name in names if self._owners[name] == rank] for rank in ranks]
        counts = [[self._num_elements(name, here) for name in group] for group in theirs]
        received = self.group.exchange(parts, [sum(count) for count in counts])
        rows: dict[str, Tensor] = {}
        for flat, group, count in zip(received, theirs, counts, strict=True):
            for name, part in zip(group, flat.split(count), strict=True):
                rows[name] = part.view(-1, self.parameters[name].shape[1])
        return {name: rows[name] for name in names}

    def _flat(self, tensors: Iterable[Tensor]) -> Tensor:
        device = next(iter(self.parameters.values())).device
        return torch.cat([torch.empty(0, device=device), *(tensor.flatten() for tensor in tensors)])

    def _num_elements(self, name: str, rank: int) -> int:
        shape = self.parameters[name].shape
        rows = row_range(shape[0], rank, self.group.num_ranks)
        return len(range(shape[0])[rows]) * shape[1]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
