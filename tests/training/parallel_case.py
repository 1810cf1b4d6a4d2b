"""One leg of a training run on synthetic batches, by one process or by several under torchrun:

    torchrun --standalone --nproc-per-node 2 parallel_case.py '{"out": "DIR", "sharding": "full", "num_steps": 2}'

Goes on from the newest checkpoint in DIR, does the steps, saves, and writes what each rank saw of them.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from training_case import changed, random_batch

from pelagos.recipes.tiny import tiny
from pelagos.training import sharded_checkpoint
from pelagos.training.batch import PackedBatch
from pelagos.training.config import StageConfig, TrainConfig
from pelagos.training.data import DataReport
from pelagos.training.loop import Run, run_steps
from pelagos.training.metrics import Event
from pelagos.training.parallel import Group, join, leave
from pelagos.training.sharded import whole_model
from pelagos.training.sharded_run import ShardedRun
from pelagos.training.views import named_weights

LENGTH = 64
DIGEST = "digest"
NORM = 5  # place of the gradient norm among the numbers of a step


class RandomBatches:
    """The data of ``random_batch``, this rank's rows of it, by the number of the batch. ``bad``: number of one whose
    first row makes the loss not a number."""

    def __init__(self, group: Group, bad: int | None) -> None:
        self.group, self.bad, self.num_batches = group, bad, 0

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        pass

    def batch(self, num_rows: int, row_length: int) -> PackedBatch:
        whole = random_batch(num_rows, row_length, 100 + self.num_batches)
        if self.num_batches == self.bad:
            whole.loss_weights[0] = torch.nan
        self.num_batches += 1
        share = num_rows // self.group.num_ranks
        return whole.rows(self.group.rank * share, (self.group.rank + 1) * share)

    def report(self) -> DataReport:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {"num_batches": self.num_batches}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_batches = state["num_batches"]


@dataclass(frozen=True, kw_only=True)
class Leg:
    """``rows_per_pass``: of each process. ``late``: the second batch is bad, which leads to a roll-back; YaRN and
    sparse attention come in the middle, QAT later. ``smooth``: every token uses all experts, so that rounding cannot
    change which, and the learning rate is lower.
    """

    out: str
    num_steps: int
    num_rows: int = 4
    sharding: str = "none"
    rows_per_pass: int = 2
    clip_norm: float | None = 1.0
    late: bool = False
    recompute: bool = False
    smooth: bool = False

    def config(self) -> TrainConfig:
        base = tiny()
        stages = [StageConfig(until=1.0, sequence_length=LENGTH, num_rows=self.num_rows)]
        if self.late:
            second = dataclasses.replace(stages[0], yarn=True, sparse_from=0.5)
            stages = [dataclasses.replace(stages[0], until=0.5), second]
        return changed(
            base,
            num_steps=6 if self.late else 20,
            micro_tokens=self.rows_per_pass * LENGTH,
            recompute=self.recompute,
            model=dataclasses.replace(base.model, num_experts_per_token=8) if self.smooth else base.model,
            stages=tuple(stages),
            optimizer=dataclasses.replace(
                base.optimizer, clip_norm=self.clip_norm, weight_decay=0.1, peak_lr=1e-3 if self.smooth else 1e-2
            ),
            stability=dataclasses.replace(
                base.stability, rollback_after=1, anticipate_steps=3 if self.late else None, anticipate_delay=1
            ),
            qat=dataclasses.replace(base.qat, start=4 / 6 if self.late else 1.0),
        )


def run_leg(leg: Leg, group: Group) -> list[list[float]]:
    """Returns numbers of each step, undone ones too: losses, gradient norm, load of experts."""
    out, seen = Path(leg.out), list[list[float]]()
    kind = ShardedRun if leg.sharding == "full" else Run
    run = kind(leg.config(), RandomBatches(group, 1 if leg.late else None), group, torch.device("cpu"))
    if leg.sharding == "none" and group.is_first:
        sharded_checkpoint.to_plain(out)
    group.barrier()
    run.resume(out, DIGEST)

    def watch(step: int, entry: Any) -> None:
        if isinstance(entry, Event):
            assert entry.kind in ("skipped", "rolled_back")
            return
        load = [float(n) for counts in entry.load.values() for n in counts]
        seen.append([entry.loss, entry.main, entry.mtp, entry.balance, entry.index, entry.gradient_norm, *load])

    run_steps(run, out, DIGEST, watch, stop_after=leg.num_steps)
    tensors = [tensor for part in run._tensors() for tensor in part.values()]
    held = sum(t.to_local().numel() if isinstance(t, DTensor) else t.numel() for t in tensors)
    assert held < (0.05 + 1 / (group.num_ranks if leg.sharding == "full" else 1)) * sum(t.numel() for t in tensors)
    model = whole_model(run.model)
    weights = {name: tensor.detach().clone() for name, tensor in named_weights(model).items()}
    save_file(weights, out / f"rank{group.rank}.safetensors")
    (out / f"rank{group.rank}.json").write_text(json.dumps(seen))
    return seen


if __name__ == "__main__":
    torch.set_num_threads(1)
    members = join()
    for given in json.loads(sys.argv[1]):
        run_leg(Leg(**given), members)
    leave()
