"""Steps that go wrong: how they are seen, and choosing experts by older weights for a while after a roll-back.

Source of anticipatory routing: V4 report, training stability. A step's features use the current weights; the experts it
uses were chosen for its batch some steps before, by the weights of then.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.objective import Forced, routing_of
from pelagos.training.packed import Packed, PackedRows

_MEMORY = 0.98  # share of the running mean and deviation of the loss kept per step
_SETTLING = 20  # steps after a start or a change of stage in which nothing counts as a spike


@dataclass(kw_only=True)
class SpikeDetector:
    """Running mean of the loss and of its absolute deviation."""

    mean: float = 0.0
    deviation: float = 0.0
    num_steps: int = 0

    def is_bad(self, loss: float, deviations: float | None) -> bool:
        """Whether ``loss`` is not finite, or a spike: more than ``deviations`` mean deviations above the mean."""
        if not math.isfinite(loss):
            return True
        if deviations is None or self.num_steps < _SETTLING:
            return False
        return loss > self.mean + deviations * max(self.deviation, 1e-3 * abs(self.mean))

    def add(self, loss: float) -> None:
        keep = min(_MEMORY, self.num_steps / (self.num_steps + 1))
        self.deviation = keep * self.deviation + (1 - keep) * abs(loss - self.mean) * (self.num_steps > 0)
        self.mean = keep * self.mean + (1 - keep) * loss
        self.num_steps += 1

    def restart(self) -> None:
        """Forget: the text changes, and the loss with it."""
        self.mean, self.deviation, self.num_steps = 0.0, 0.0, 0


@torch.no_grad()
def chosen_experts(model: Model, passes: Sequence[PackedBatch], *, sparse: bool) -> list[Forced]:
    """The experts that the model's present weights choose for each pass: what ``Stepper.gradients`` takes as forced."""
    chosen = []
    for batch in passes:
        layout = PackedRows(batch)
        contexts = [Packed(layout=layout, sparse=sparse, with_index=False) for _ in model.layers]
        with routing_of(model) as routing:
            model(batch.token_ids.flatten(), batch.positions.flatten(), contexts)
        chosen.append({name: r.chosen for name, r in routing.items() if not model.get_submodule(name).by_hash})
    return chosen


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """A batch fetched before its step, and the experts that the weights of then chose, for each pass."""

    batch: PackedBatch
    forced: list[Forced]


def to_tensors(queue: Sequence[Ahead]) -> dict[str, Tensor]:
    """Batches and experts as named tensors, to be saved."""
    tensors: dict[str, Tensor] = {}
    for i, ahead in enumerate(queue):
        tensors |= {f"{i}/batch/{name}": tensor for name, tensor in vars(ahead.batch).items()}
        for number, forced in enumerate(ahead.forced):
            tensors |= {f"{i}/{number}/{router}": chosen for router, chosen in forced.items()}
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> list[Ahead]:
    """The inverse of ``to_tensors``."""
    batches: dict[int, dict[str, Tensor]] = {}
    forced: dict[int, dict[int, Forced]] = {}
    for key, tensor in tensors.items():
        i, part, name = key.split("/", 2)
        if part == "batch":
            batches.setdefault(int(i), {})[name] = tensor.clone()
        else:
            forced.setdefault(int(i), {}).setdefault(int(part), {})[name] = tensor.clone()
    return [
        Ahead(batch=PackedBatch(**batches[i]), forced=[forced[i][n] for n in sorted(forced.get(i, {}))])
        for i in sorted(batches)
    ]
