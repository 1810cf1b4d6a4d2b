"""Native window pooling against the reference and against float64."""

import pytest
import torch
from rowwise_checks import check_contract, needs_native, noise, same_bits, same_everywhere

from pelagos.common.errors import UsageError
from pelagos.ops.cpu import compressor

pytestmark = needs_native


def test_pool_window() -> None:
    check_contract("pool_window", compressor.pool_window)


@pytest.mark.parametrize(("slots", "size"), [(1, 1), (8, 128), (128, 40), (256, 530)])
def test_values_with_missing_slots(slots: int, size: int) -> None:
    values, gates = noise(3, slots, size), 30.0 * noise(3, slots, size, seed=1)
    exists = torch.rand(3, slots) < 0.6
    exists[:, -1] = True
    hidden_values, hidden_gates = values.clone(), gates.clone()
    hidden_values[~exists], hidden_gates[~exists] = torch.nan, torch.nan  # not read
    (row,) = same_everywhere(lambda: compressor.pool_window(hidden_values, hidden_gates, exists))
    weights = gates.double().masked_fill(~exists.unsqueeze(-1), -torch.inf).softmax(1)
    torch.testing.assert_close(row.double(), (weights * values.double()).sum(1), rtol=0, atol=1e-5)

    values[~exists], gates[~exists] = 0.0, -torch.inf
    (spelled_out,) = same_everywhere(lambda: compressor.pool_window(values, gates))
    assert same_bits(row, spelled_out)


def test_gates_of_any_size() -> None:
    gates = torch.tensor([[[3e38, -3e38, 1e-40], [-3e38, -3e38, -1e-40]]])
    (row,) = same_everywhere(lambda: compressor.pool_window(torch.tensor([[[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]]), gates))
    assert row.tolist() == [[1.0, 2.0, 2.0]]


def test_errors_name_the_argument() -> None:
    with pytest.raises(UsageError, match="1 to 256 slots, not 257"):
        compressor.pool_window(noise(1, 257, 2), noise(1, 257, 2))
    with pytest.raises(UsageError, match=r"gates must have shape \[1, 2, 3\]"):
        compressor.pool_window(noise(1, 2, 3), noise(1, 3, 2))
    with pytest.raises(UsageError, match="exists must be bool"):
        compressor.pool_window(noise(1, 2, 3), noise(1, 2, 3), torch.ones(1, 2))
