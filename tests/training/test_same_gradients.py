"""Gradients of rows that are read many times: the same bits every time, however many threads add them up."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from pelagos.model.compressor import Compressor
from pelagos.model.layers import Embedding
from pelagos.model.state import CompressedShape
from pelagos.ops.dispatch import autograd_ops
from pelagos.training import packed

NUM_TOKENS, NUM_ROWS, SIZE = 4096, 16, 128


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def gradients(weight: Tensor, read: Callable[[], Tensor]) -> list[Tensor]:
    """Of several passes forward and back; rows differ in size, so that the order of a sum shows in its last bits."""
    found = []
    for _ in range(8):
        weight.grad = None
        rows = read()
        rows.backward(torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).exp())
        assert weight.grad is not None
        found.append(weight.grad)
    return found


def numbers(below: int) -> Tensor:
    return torch.randint(0, below, (NUM_TOKENS,), generator=torch.Generator().manual_seed(0))


def test_of_an_embedding() -> None:
    embedding = Embedding(NUM_ROWS, SIZE)
    torch.nn.init.ones_(embedding.weight)
    first, *others = gradients(embedding.weight, lambda: embedding(numbers(NUM_ROWS), torch.float32))
    assert all(torch.equal(first, other) for other in others)


def test_of_position_biases() -> None:
    shape = CompressedShape(ratio=4, size=SIZE, overlap=False)
    compressor = Compressor(8, shape, autograd_ops(), norm_eps=1e-6)
    for parameter in compressor.parameters():
        torch.nn.init.ones_(parameter)
    x = torch.zeros(NUM_TOKENS, 8)
    first, *others = gradients(compressor.ape, lambda: compressor.pairs(x, torch.arange(NUM_TOKENS))[1])
    assert all(torch.equal(first, other) for other in others)


def test_of_chosen_rows() -> None:
    rows = torch.ones(1, NUM_ROWS, SIZE, requires_grad=True)
    chosen = numbers(NUM_ROWS).view(1, -1, 8)
    first, *others = gradients(rows, lambda: packed._gathered(rows, chosen))
    assert all(torch.equal(first, other) for other in others)
