"""Weights divided among the processes of a run, by torch's FSDP2: for models that do not fit in each of them.

Between steps every parameter is a DTensor cut along its first dimension. A layer's weights are whole in a process from
its forward pass to the next layer's, and again during its backward pass; embedding, head, norms and draft blocks, which
are also used outside of ``Model.forward``, stay whole from then to the end of the backward pass. Router biases and hash
tables are small and whole everywhere.

Gradients are summed in the order of ranks, as in parallel.py. The optimizer: sharded_optimizer.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from pelagos.model.config import ModelConfig
from pelagos.model.transformer import Model
from pelagos.training.batch import PackedBatch
from pelagos.training.config import QatConfig, TrainConfig
from pelagos.training.objective import Forced
from pelagos.training.parallel import Group
from pelagos.training.qat import served_value
from pelagos.training.sharded_optimizer import ShardedOptimizer, rows_of
from pelagos.training.step import Stepper, StepReport
from pelagos.training.views import named_weights, stacked_specs

if TYPE_CHECKING:
    from pelagos.training.optimizer import Optimizer, Ranks


@dataclass(frozen=True, kw_only=True)
class ShardedGroup(Group):
    """A group whose weights are divided: what it would do for whole ones is done elsewhere."""

    def reduce_gradients(self, optimizer: "Optimizer") -> None:
        """Nothing: each layer's gradients are summed during the backward pass, as soon as they are there."""

    def ranks(self) -> "Ranks | None":
        """None: ShardedOptimizer divides the work itself."""
        return None


class _OrderedReduceScatter:
    """FSDP's sum of gradients by ``Group.sum_share``: the two methods that ``set_custom_reduce_scatter`` asks for."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: object, op: object, async_op: bool = False
    ) -> None:
        output_tensor.copy_(self.group.sum_share(input_tensor))


def shard(model: Model, group: Group, device: torch.device) -> None:
    """Divide the weights of ``model`` among the processes of ``group``, on ``device``; must be whole and equal before.

    From then on its parameters are DTensors; use it through ``ShardedStepper``.
    """
    mesh = init_device_mesh(device.type, (group.num_ranks,))
    biases = {p for name, p in model.named_parameters() if name.endswith(".gate.bias")}  # moved by their own rule
    for layer in model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=biases)
    fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=biases)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # the losses are parts of a mean over all ranks already
            module.set_force_sum_reduction_for_comms(True)
            module.set_custom_reduce_scatter(_OrderedReduceScatter(group))  # type: ignore[arg-type]
    for weight in (*biases, *model.buffers()):
        weight.data = weight.data.to(device)


def set_config(model: Model, config: ModelConfig) -> None:
    """Let ``model`` be one of ``config``, whose tensors must be the same; its modules, and so FSDP's hooks, stay."""
    with torch.device("meta"):
        other = Model(config, model.ops)
    for name, module in model.named_modules():
        settings = vars(other.get_submodule(name)).items()
        vars(module).update({key: value for key, value in settings if not key.startswith("_") and key != "training"})


@contextmanager
def served_shards(model: Model) -> Iterator[None]:
    """``qat.served_weights`` for divided weights: each is put together to be rounded, for scales reach across rows."""
    weights, masters = named_weights(model), []
    with torch.no_grad():
        for name, spec in stacked_specs(model.config):
            weight = weights[name]
            if isinstance(weight, DTensor) and spec.role not in ("ids", "float32"):
                local = weight.to_local()
                masters.append((local, local.clone()))
                local.copy_(served_value(weight.full_tensor(), spec.role)[rows_of(weight)])
    try:
        yield
    finally:
        for local, master in masters:
            local.copy_(master)


class ShardedStepper(Stepper):
    """``Stepper`` for divided weights. Reports are the same on every rank."""

    optimizer: ShardedOptimizer

    def __init__(self, config: TrainConfig, model: Model, optimizer: ShardedOptimizer, group: ShardedGroup) -> None:
        # The base would round and view whole weights; both are done here, and it is told that there is no QAT.
        super().__init__(replace(config, qat=QatConfig()), model, optimizer, group)
        self._rounds_from = round(config.qat.start * config.num_steps)
        self._rounds_activations = config.qat.official_rounding

    def view(self, step: int) -> Model:
        """The model itself, changed to what it is at ``step``."""
        config = self.config.model
        if not self.config.stage_at(step).yarn:
            config = replace(config, compressed_rope=replace(config.compressed_rope, yarn=None))
        if step >= self._rounds_from and self._rounds_activations:
            config = replace(config, official_rounding=True)
        if config != self.model.config:
            set_config(self.model, config)
        return self.model

    def gradients(self, step: int, batch: PackedBatch, forced: Sequence[Forced] | None = None) -> StepReport:
        assert isinstance(self.model, FSDPModule)
        self.model.reshard()  # a pass without gradients may have left the outer weights whole, and old
        with served_shards(self.model) if step >= self._rounds_from else nullcontext():
            return super().gradients(step, batch, forced)


def whole_model(model: Model) -> Model:
    """A model of whole weights in every process, detached from ``model``: to evaluate and to export."""
    with torch.device("meta"):
        whole = Model(model.config, model.ops)
    whole.to_empty(device=model.device)
    copies = named_weights(whole)
    with torch.no_grad():
        for name, weight in named_weights(model).items():
            copies[name].copy_(weight.full_tensor() if isinstance(weight, DTensor) else weight)
    return whole


def shards_like(whole: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors divided as those of the same name in ``own`` are; of each only this rank's rows are read."""
    parts = {}
    for name, tensor in whole.items():
        like = own.get(name)
        if isinstance(like, DTensor) and like.shape == tensor.shape:
            local = tensor[rows_of(like)].to(like.device)
            tensor = DTensor.from_local(
                local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
            )
        parts[name] = tensor
    return parts
