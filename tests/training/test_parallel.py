"""Training by several processes, against one process: the same bits where sums have the same order, and checkpoints
that go from two processes to one and back."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_case import NORM, Leg, run_leg
from safetensors.torch import load_file
from torch import Tensor
from training_case import random_batch

from pelagos.common.errors import CheckpointError, UsageError
from pelagos.training import checkpoint, sharded_checkpoint
from pelagos.training.batch import PackedBatch
from pelagos.training.parallel import Group, own_queue, whole_queue
from pelagos.training.sharded_optimizer import row_range
from pelagos.training.stability import Ahead

SCRIPT = Path(__file__).with_name("parallel_case.py")


def start(num_ranks: int, *legs: Leg) -> subprocess.Popen[str]:
    """The legs one after another, by ``num_ranks`` processes under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}"]
    plan = json.dumps([dataclasses.asdict(leg) for leg in legs])
    return subprocess.Popen([*command, str(SCRIPT), plan], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: "subprocess.Popen[str]") -> None:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, output[-4000:]


def seen_by(leg: Leg, rank: int) -> list[list[float]]:
    seen: list[list[float]] = json.loads((Path(leg.out) / f"rank{rank}.json").read_text())
    return seen


def weights_of(leg: Leg, rank: int = 0) -> dict[str, Tensor]:
    return load_file(Path(leg.out) / f"rank{rank}.safetensors")


def assert_same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def in_folder(leg: Leg, path: Path, **changes: Any) -> Leg:
    path.mkdir()
    return dataclasses.replace(leg, out=str(path), **changes)


def assert_same_checkpoint(a: Leg, b: Leg) -> None:
    found = [checkpoint.newest(Path(leg.out)) for leg in (a, b)]
    assert found[0] is not None
    assert found[1] is not None
    assert_same(found[0].weights, found[1].weights)
    assert_same(found[0].optimizer, found[1].optimizer)
    for key in ("step", "num_tokens", "num_bad", "num_rollbacks", "data", "config"):
        assert found[0].state[key] == found[1].state[key], key


def test_relay_has_the_bits_of_one_process(tmp_path: Path) -> None:
    """Two processes, then one, then two, each from the checkpoint of those before; a bad batch and a roll-back first,
    then YaRN, sparse attention and low precision set in. Against one process from start to end, its passes cut alike.

    Once with whole weights, once with divided ones. There the gradient norm is summed in another order, so nothing is
    clipped by it.
    """
    leg = Leg(out="", num_steps=2, late=True)
    whole = in_folder(leg, tmp_path / "whole")
    divided = in_folder(leg, tmp_path / "divided", sharding="full", clip_norm=None)
    alone = {
        whole: in_folder(whole, tmp_path / "whole_alone", num_steps=6),
        divided: in_folder(divided, tmp_path / "divided_alone", num_steps=6, sharding="none"),
    }
    two = start(2, whole, divided)
    expected = {relay: run_leg(straight, Group()) for relay, straight in alone.items()}

    def check(relay: Leg, found: Sequence[Sequence[float]], part: slice) -> None:
        for numbers, right in zip(found, expected[relay][part], strict=True):
            if relay is divided:
                assert numbers[NORM] == pytest.approx(right[NORM], rel=1e-6)
                numbers = [*numbers[:NORM], right[NORM], *numbers[NORM + 1 :]]
            assert list(numbers) == right

    finish(two)
    for relay in (whole, divided):
        assert seen_by(relay, 0) == seen_by(relay, 1)
        check(relay, seen_by(relay, 0), slice(3))  # the first of them was undone
        check(relay, run_leg(dataclasses.replace(relay, sharding="none"), Group()), slice(3, 5))
    finish(start(2, whole, divided))
    sharded_checkpoint.to_plain(Path(divided.out))
    for relay in (whole, divided):
        check(relay, seen_by(relay, 1), slice(5, 7))
        assert_same(weights_of(relay, 0), weights_of(alone[relay]))
        assert_same(weights_of(relay, 0), weights_of(relay, 1))
        assert_same_checkpoint(relay, alone[relay])


@pytest.mark.slow
def test_curves_differ_by_rounding(tmp_path: Path) -> None:
    """20 clipped steps, in other passes, layers computed twice.

    Some gradients of a new model are little but rounding, which Muon and AdamW scale to full updates: so one process,
    too, strays from itself by up to 1e-4 when its passes are cut in another way. The first steps are close.
    """
    leg = Leg(out="", num_steps=20, smooth=True)
    alone = in_folder(leg, tmp_path / "alone", rows_per_pass=4)
    relays = [
        in_folder(leg, tmp_path / sharding, sharding=sharding, rows_per_pass=1, recompute=True)
        for sharding in ("none", "full")
    ]
    two = start(2, *relays)
    expected = torch.tensor(run_leg(alone, Group()), dtype=torch.float64)
    finish(two)
    for relay in relays:
        found = torch.tensor(seen_by(relay, 0), dtype=torch.float64)
        assert found.shape == expected.shape
        assert torch.allclose(found[:2], expected[:2], rtol=1e-6)
        assert torch.allclose(found[:, 1:3], expected[:, 1:3], rtol=1e-3)


@pytest.mark.slow
def test_three_processes(tmp_path: Path) -> None:
    """Sums of three parts have an order, and three processes hold unequal parts. Two go on from what they wrote."""
    leg = Leg(out="", num_steps=2, num_rows=6, clip_norm=None)
    alone = in_folder(leg, tmp_path / "alone")
    relays = [in_folder(leg, tmp_path / sharding, sharding=sharding) for sharding in ("none", "full")]
    finish(start(3, *relays))
    expected = run_leg(alone, Group())
    for relay in relays:
        for rank in range(3):
            found = seen_by(relay, rank)
            assert [numbers[:NORM] for numbers in found] == [numbers[:NORM] for numbers in expected]
            assert_same(weights_of(relay, rank), weights_of(alone))
    finish(start(2, dataclasses.replace(relays[1], num_steps=0)))
    assert_same(weights_of(relays[1], 1), weights_of(alone))


# --- in one process ---


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("num_rows", [1, 2, 5, 8, 9])
def test_rows_are_cut_as_torch_cuts(num_rows: int, num_ranks: int) -> None:
    rows = [torch.arange(num_rows)[row_range(num_rows, rank, num_ranks)] for rank in range(num_ranks)]
    expected = list(torch.arange(num_rows).chunk(num_ranks))
    assert [part.tolist() for part in rows if len(part)] == [part.tolist() for part in expected]
    assert torch.cat(rows).tolist() == list(range(num_rows))


WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "ids": torch.tensor([[3], [1]])}
OPTIMIZER = {"a.weight.momentum": torch.ones(2, 3), "a.weight.num_steps": torch.tensor(7)}
PARTS = {"weights": WEIGHTS, "optimizer": OPTIMIZER, "ahead": {"0/batch/ids": torch.tensor([1, 2], dtype=torch.int32)}}


def write(out: Path, step: int) -> Path:
    return sharded_checkpoint.save(out, step, PARTS, {"step": step, "note": "x"}, Group())


def test_divided_checkpoint_to_plain(tmp_path: Path) -> None:
    assert sharded_checkpoint.newest(tmp_path, Group()) is None
    assert sharded_checkpoint.to_plain(tmp_path) is None
    write(tmp_path, 5)
    write(tmp_path, 5)
    assert sharded_checkpoint.to_plain(tmp_path) == tmp_path / "checkpoints" / "step-00000005"
    saved = checkpoint.newest(tmp_path)
    assert saved is not None
    assert_same(saved.weights, WEIGHTS)
    assert_same(saved.optimizer, OPTIMIZER)
    assert_same(saved.ahead, PARTS["ahead"])
    assert saved.state["note"] == "x"
    assert sharded_checkpoint.to_plain(tmp_path) is None  # done already


def test_newest_sound_checkpoint_is_used(tmp_path: Path) -> None:
    folders = [write(tmp_path, step) for step in (10, 20, 30)]
    (tmp_path / "checkpoints" / ".sharded-00000040.tmp").mkdir()
    next(folders[2].glob("*.safetensors")).unlink()
    path = next(folders[1].glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    found = sharded_checkpoint.newest(tmp_path, Group())
    assert found is not None
    assert found.folder == folders[0]
    sharded_checkpoint.remove_old(tmp_path, 2)
    assert sorted(x.name for x in (tmp_path / "checkpoints").iterdir()) == [f.name for f in folders[1:]]
    with pytest.raises(CheckpointError, match="its checksum is not the one"):
        sharded_checkpoint.newest(tmp_path, Group())
    sharded_checkpoint.remove_after(tmp_path, 20)
    assert [x.name for x in (tmp_path / "checkpoints").iterdir()] == [folders[1].name]


def test_checkpoint_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, 5)
    shards = sharded_checkpoint.newest(tmp_path, Group())
    assert shards is not None
    own = {"a.weight": torch.zeros(3, 2), "b": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        sharded_checkpoint.load(shards, {"weights": own, "optimizer": OPTIMIZER})
    for problem in (
        "missing weights/b",
        "unexpected weights/ids",
        r"weights/a.weight must be torch.float32 [3, 2], got",
    ):
        assert problem in str(caught.value)
    assert not own["a.weight"].any()
    fitting = {name: torch.zeros_like(tensor) for name, tensor in WEIGHTS.items()}
    sharded_checkpoint.load(shards, {"weights": fitting})
    assert_same(fitting, WEIGHTS)


def test_batches_fetched_ahead_are_saved_whole() -> None:
    """Cut for two ranks and put together again by hand, and cut into other passes."""

    def passes(batch: PackedBatch) -> list[PackedBatch]:
        return [batch.rows(i, i + 2) for i in range(0, len(batch.token_ids), 2)]

    batch, chosen = random_batch(6, 32, 1), torch.arange(6 * 32 * 2).view(-1, 2)
    queue = [Ahead(batch=batch, forced=[{"gate": chosen}])] * 2
    parts = [own_queue(queue, Group(rank=rank, num_ranks=2), passes)[1] for rank in (0, 1)]
    assert [[len(x["gate"]) for x in part.forced] for part in parts] == [[64, 32], [64, 32]]
    assert torch.equal(torch.cat([x["gate"] for part in parts for x in part.forced]), chosen)
    assert torch.equal(torch.cat([part.batch.positions for part in parts]), batch.positions)
    whole = whole_queue(own_queue(queue, Group(), passes), Group())
    assert torch.equal(whole[0].forced[0]["gate"], chosen)
    assert own_queue([Ahead(batch=batch, forced=[])], Group(), passes)[0].forced == [{}, {}, {}]
    with pytest.raises(UsageError, match="6 rows fetched ahead cannot be shared by 4 processes"):
        own_queue(queue, Group(rank=0, num_ranks=4), passes)
