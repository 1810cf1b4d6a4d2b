"""The processes of a run: one, or several under torchrun that each read their rows of every batch.

Here weights are whole in each process: gradients are summed, and the work of Muon is spread by whole matrices
(optimizer.py). Sums over processes are taken in the order of ranks and not as the network has it, so all processes hold
the same bits: those of one process whose passes are the ranks' rows. sharded.py divides the weights, too.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.training.batch import PackedBatch

if TYPE_CHECKING:
    from pelagos.training.optimizer import Optimizer, Ranks
    from pelagos.training.stability import Ahead

_BUCKET_ELEMENTS = 1 << 24  # numbers that are sent at a time, unless a parameter has more


@dataclass(frozen=True, kw_only=True)
class Group:
    """Who takes part. With one process every sum is the value itself. All processes must call a method together."""

    rank: int = 0
    num_ranks: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Tensor) -> list[Tensor]:
        """The ``value`` of every rank, of one shape and dtype, in their order."""
        if self.num_ranks == 1:
            return [value]
        parts = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(self.num_ranks)]
        dist.all_gather(parts, value.contiguous())
        return parts

    def sum(self, value: Tensor) -> Tensor:
        """The sum over ranks, added in their order, the same bits everywhere. For small tensors."""
        return value if self.num_ranks == 1 else _in_order(self.gather(value))

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
        """Send the flat ``parts[r]`` to rank r; returns what each rank sent here, ``sizes[r]`` numbers from rank r."""
        if self.num_ranks == 1:
            return list(parts)
        received = parts[0].new_empty(sum(sizes))
        dist.all_to_all_single(received, torch.cat(list(parts)), list(sizes), [len(part) for part in parts])
        return list(received.split(list(sizes)))

    def sum_share(self, value: Tensor) -> Tensor:
        """This rank's share of the sum over ranks, added in their order. value: [N], N a multiple of ``num_ranks``.

        Every rank adds up its own share of the numbers: what a reduce-scatter does, in an order that is known.
        """
        shares = value.chunk(self.num_ranks)
        return _in_order(self.exchange(shares, [len(share) for share in shares]))

    @torch.no_grad()
    def reduce_gradients(self, optimizer: "Optimizer") -> None:
        """Replace each gradient by its sum over ranks. One that no rank has stays None, as with one process."""
        if self.num_ranks == 1:
            return
        parameters = list(optimizer.parameters.values())
        num_with = self.sum(torch.tensor([int(p.grad is not None) for p in parameters]))
        for bucket in _buckets([p for p, num in zip(parameters, num_with.tolist(), strict=True) if num]):
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            share = self.sum_share(F.pad(flat, (0, -len(flat) % self.num_ranks)))
            total = torch.cat(self.gather(share))[: len(flat)]
            for parameter, part in zip(bucket, total.split([p.numel() for p in bucket]), strict=True):
                parameter.grad = part.view(parameter.shape).clone()  # not a view that keeps its whole bucket alive

    def ranks(self) -> "Ranks | None":
        """What the optimizer needs to spread its work."""
        from pelagos.training.optimizer import Ranks

        if self.num_ranks == 1:
            return None
        return Ranks(rank=self.rank, num_ranks=self.num_ranks, broadcast=dist.broadcast)

    def agree(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return bool(self.sum(torch.tensor(float(flag))) > 0)

    def barrier(self) -> None:
        """Wait until every process is here."""
        self.agree(True)


def is_first_process() -> bool:
    """Whether this process is the one that talks: the only one, or the first that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def join() -> Group:
    """The group that torchrun started, or one process alone. Where there is a GPU for each process of this machine,
    "cuda" is from then on this process's own."""
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks == 1:
        return Group()
    if not dist.is_initialized():
        has_gpu = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
        if has_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo")  # losses and flags stay on the CPU
    return Group(rank=dist.get_rank(), num_ranks=dist.get_world_size())


def leave() -> None:
    """Give the connections back that ``join`` opened."""
    if dist.is_initialized():
        dist.destroy_process_group()


def whole_queue(queue: Sequence["Ahead"], group: Group) -> list["Ahead"]:
    """Batches fetched ahead with the rows of all ranks, each with its experts as those of one pass: what is saved, as
    it does not depend on who reads which rows. All processes must call it together."""
    from pelagos.training.stability import Ahead

    def whole(tensor: Tensor) -> Tensor:
        return torch.cat(group.gather(tensor))

    return [
        Ahead(
            batch=PackedBatch(**{name: whole(tensor) for name, tensor in vars(ahead.batch).items()}),
            forced=[{name: whole(torch.cat([part[name] for part in ahead.forced])) for name in ahead.forced[0]}],
        )
        for ahead in queue
    ]


def own_queue(
    queue: Sequence["Ahead"], group: Group, passes: Callable[[PackedBatch], Sequence[PackedBatch]]
) -> list["Ahead"]:
    """The inverse: this rank's rows, with the experts of each of its ``passes``."""
    from pelagos.training.stability import Ahead

    own = []
    for ahead in queue:
        num_rows, length = ahead.batch.token_ids.shape
        if num_rows % group.num_ranks:
            raise UsageError(f"{num_rows} rows fetched ahead cannot be shared by {group.num_ranks} processes equally")
        share = num_rows // group.num_ranks
        batch = ahead.batch.rows(group.rank * share, (group.rank + 1) * share)
        first = group.rank * share * length
        ends = [first, *(first + n for n in accumulate(part.token_ids.numel() for part in passes(batch)))]
        chosen = ahead.forced[0] if ahead.forced else {}  # no router learns: nothing was saved of the experts
        forced = [{name: ids[start:stop] for name, ids in chosen.items()} for start, stop in pairwise(ends)]
        own.append(Ahead(batch=batch, forced=forced))
    return own


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _buckets(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for parameter in parameters:
        if bucket and sum(p.numel() for p in bucket) + parameter.numel() > _BUCKET_ELEMENTS:
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket
