"""``Run`` for weights divided among processes: the same loop and the same files but for the checkpoints."""

from pathlib import Path

import torch

from pelagos.training import checkpoint, sharded_checkpoint
from pelagos.training.config import TrainConfig
from pelagos.training.data import Batches
from pelagos.training.export import export
from pelagos.training.loop import Run
from pelagos.training.parallel import Group
from pelagos.training.sharded import ShardedGroup, ShardedStepper, shard, shards_like, whole_model
from pelagos.training.sharded_optimizer import ShardedOptimizer


class ShardedRun(Run):
    """All processes of ``group`` must make one and call its methods together."""

    def __init__(self, config: TrainConfig, batches: Batches, group: Group, device: torch.device) -> None:
        divided = ShardedGroup(rank=group.rank, num_ranks=group.num_ranks)
        super().__init__(config, batches, divided, torch.device("cpu"))  # whole once, in main memory
        shard(self.model, divided, device)
        self.optimizer = ShardedOptimizer(self.model, config.optimizer, divided)
        self.stepper = ShardedStepper(config, self.model, self.optimizer, divided)

    def save(self, out: Path, digest: str) -> None:
        """Write a checkpoint of this moment, every process its part."""
        sharded_checkpoint.save(out, self.step, self._parts(), self._state(digest), self.group)
        if self.group.is_first:
            sharded_checkpoint.remove_old(out, self.config.saving.keep)

    def resume(self, out: Path, digest: str) -> bool:
        """Go on from the newest checkpoint, divided or whole. Raises CheckpointError if it is of another config."""
        shards, saved = sharded_checkpoint.newest(out, self.group), checkpoint.newest(out)
        if shards is not None and saved is not None and saved.state["step"] > shards.state["step"]:
            shards = None
        state = shards.state if shards is not None else saved.state if saved is not None else None
        if state is None:
            return False
        self._check_digest(out, state, digest)
        weights, optimizer = self._tensors()
        if shards is not None:
            sharded_checkpoint.load(shards, {"weights": weights, "optimizer": optimizer})
            ahead = sharded_checkpoint.read(shards, "ahead")
        elif saved is not None:
            checkpoint.load_weights(weights, shards_like(saved.weights, weights))
            optimizer, ahead = shards_like(saved.optimizer, optimizer), saved.ahead
        self.optimizer.load_state_dict(optimizer)
        self._take_state(state, ahead)
        return True

    def export(self, out: Path, tokenizer_folder: Path) -> Path:
        """``loop.export_model``: the model is put together in every process, and written by the first."""
        model = whole_model(self.stepper.view(self.config.num_steps - 1))
        if self.group.is_first:
            export(model, out / "model", official=False, tokenizer_folder=tokenizer_folder)
        self.group.barrier()
        return out / "model"
