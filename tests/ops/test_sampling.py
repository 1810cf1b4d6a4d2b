"""Each step of sampling against transformers' processors, a few lines of numpy, or exact probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from torch import Tensor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pelagos.ops.reference import sampling

# Few distinct values, so that ties are common; -inf as left by a filter, never a whole row of it.
tied_rows = st.lists(st.sampled_from([-math.inf, -2.0, -1.0, 0.0, 1.0, 1.5]), min_size=1, max_size=40).filter(
    lambda row: max(row) > -math.inf
)
float_rows = st_numpy.arrays(np.float32, st.integers(1, 60), elements=st.floats(-30, 30, width=32))


def random_rows(num_rows: int, vocab_size: int, seed: int = 0) -> Tensor:
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * 4


def kept(logits: Tensor) -> Tensor:
    return logits > -torch.inf


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3, 10.0])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = random_rows(3, 50)
    logits[0, 5] = 0.0
    history = torch.tensor([[5, 7, 7, 49], [0, 1, 2, 3], [9, 9, 9, 9]])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(history, logits.clone())
    seen = torch.zeros(3, 50, dtype=torch.bool).scatter(1, history, True)
    assert torch.equal(sampling.penalize_repetition(logits, seen, penalty), expected)


def test_presence_and_frequency_penalties_follow_the_formula() -> None:
    logits = random_rows(2, 6)
    counts = torch.tensor([[0, 1, 5, 0, 0, 2], [3, 0, 0, 0, 0, 0]])
    result = sampling.penalize_counts(logits, counts, presence=0.75, frequency=-0.5)
    for row in range(2):
        for token, count in enumerate(counts[row].tolist()):
            expected = logits[row, token].item() - count * -0.5 - (0.75 if count else 0.0)
            assert result[row, token].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 1.0, 2.0])
def test_temperature_gives_the_distribution_of_transformers(temperature: float) -> None:
    logits = random_rows(3, 200)
    expected = torch.softmax(TemperatureLogitsWarper(temperature)(None, logits).double(), dim=-1)
    result = sampling.probabilities(sampling.apply_temperature(logits, temperature))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30])
def test_the_smallest_temperatures_take_the_largest_logit(temperature: float) -> None:
    result = sampling.probabilities(sampling.apply_temperature(torch.tensor([-3e38, 3e38, 2.9e38]), temperature))
    assert result.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("k", [1, 2, 50, 199, 200, 1000])
def test_top_k_keeps_the_tokens_of_transformers_where_nothing_ties(k: int) -> None:
    logits = random_rows(4, 200)
    assert torch.equal(sampling.keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_tokens_of_transformers_where_nothing_ties(p: float) -> None:
    logits = random_rows(4, 200)
    assert torch.equal(sampling.keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 0.9, 1.0])
def test_min_p_keeps_the_tokens_of_transformers(p: float) -> None:
    logits = random_rows(4, 200)
    assert torch.equal(sampling.keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


@given(row=tied_rows, k=st.integers(1, 45))
def test_top_ids_sorts_by_value_then_by_id(row: list[float], k: int) -> None:
    expected = sorted(range(len(row)), key=lambda token: (-row[token], token))[:k]
    assert sampling.top_ids(torch.tensor(row), k).tolist() == expected
    batch = torch.tensor([row, row[::-1]])
    assert sampling.top_ids(batch, k)[0].tolist() == expected


@given(row=tied_rows, k=st.integers(1, 45))
def test_top_k_keeps_exactly_k_and_ties_by_smaller_id(row: list[float], k: int) -> None:
    best = sorted(range(len(row)), key=lambda token: (-row[token], token))[:k]
    expected = [value if token in best else -math.inf for token, value in enumerate(row)]
    assert sampling.keep_top_k(torch.tensor(row), k).tolist() == expected


@given(row=tied_rows, p=st.sampled_from([0.01, 0.2, 0.33, 0.5, 0.77, 0.95]))
def test_top_p_keeps_the_shortest_prefix_that_reaches_p(row: list[float], p: float) -> None:
    weights = np.exp(np.array(row, dtype=np.float64))
    order = sorted(range(len(row)), key=lambda token: (-row[token], token))
    reached = np.cumsum(weights[order]) / weights.sum()
    num_kept = 1 + int(np.argmax(reached >= p - 1e-12))
    result = kept(sampling.keep_top_p(torch.tensor(row), p)).nonzero().squeeze(-1).tolist()
    assert result == sorted(order[:num_kept])


@given(row=float_rows, p=st.floats(0, 1))
def test_min_p_compares_with_the_most_likely_token(row: np.ndarray, p: float) -> None:
    shares = np.exp(row.astype(np.float64) - row.max())
    clear = np.abs(shares - p) > 1e-12
    result = kept(sampling.keep_min_p(torch.from_numpy(row), p)).numpy()
    assert (result == (shares >= p))[clear].all()
    assert result[row.argmax()]


@given(row=float_rows)
def test_log_probabilities_match_a_sum_without_rounding(row: np.ndarray) -> None:
    values = [float(value) for value in row]
    total = math.log(math.fsum(math.exp(value - max(values)) for value in values)) + max(values)
    expected = torch.tensor([value - total for value in values], dtype=torch.float64)
    result = sampling.log_probabilities(torch.from_numpy(row))
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sampling.probabilities(torch.from_numpy(row)), expected.exp(), rtol=1e-12, atol=0)


def test_log_probabilities_survive_extreme_logits() -> None:
    result = sampling.log_probabilities(torch.tensor([-torch.inf, 3.4e38, 3.4e38, -3.4e38]))
    assert result.tolist() == pytest.approx([-math.inf, -math.log(2), -math.log(2), -6.8e38])


@given(row=tied_rows)
def test_greedy_takes_the_smallest_id_of_equal_logits(row: list[float]) -> None:
    assert sampling.greedy(torch.tensor(row)).item() == row.index(max(row))
    assert sampling.greedy(torch.tensor([row, row])).tolist() == [row.index(max(row))] * 2


def test_choose_hits_every_border_of_the_running_sum() -> None:
    shares = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0], dtype=torch.float64)
    below = math.nextafter(1.0, 0.0)
    for number, token in [(0.0, 1), (math.nextafter(0.25, 0), 1), (0.25, 3), (math.nextafter(0.75, 0), 3), (0.75, 4)]:
        assert sampling.choose(shares, torch.tensor(number, dtype=torch.float64)).item() == token
    assert sampling.choose(shares, torch.tensor(below, dtype=torch.float64)).item() == 4
    assert sampling.choose(shares.expand(2, -1), torch.tensor([0.1, 0.8], dtype=torch.float64)).tolist() == [1, 4]


@given(row=float_rows, number=st.floats(0, 1, exclude_max=True))
def test_choose_never_leaves_the_support(row: np.ndarray, number: float) -> None:
    logits = sampling.keep_top_k(torch.from_numpy(row), 3)
    token = sampling.choose(sampling.probabilities(logits), torch.tensor(number, dtype=torch.float64))
    assert kept(logits)[token]


def test_choices_follow_the_exact_probabilities() -> None:
    """Chi-square of draws against probabilities from exact fractions; 31.3 is the 99.9 % point for 11 degrees."""
    num_draws = 20_000
    weights = np.array([1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128], dtype=np.float64)
    shares = sampling.probabilities(torch.from_numpy(np.log(weights).astype(np.float32)))
    numbers = torch.from_numpy(np.random.default_rng(7).random(num_draws))
    counts = np.bincount(sampling.choose(shares.expand(num_draws, -1), numbers), minlength=len(weights))
    expected = weights / weights.sum() * num_draws
    assert ((counts - expected) ** 2 / expected).sum() < 31.3


STEPS = {
    "temperature": lambda logits: sampling.apply_temperature(logits, 0.7),
    "top_k": lambda logits: sampling.keep_top_k(logits, 40),
    "top_p": lambda logits: sampling.keep_top_p(logits, 0.9),
    "min_p": lambda logits: sampling.keep_min_p(logits, 0.01),
    "log_probabilities": sampling.log_probabilities,
    "probabilities": sampling.probabilities,
    "top_ids": lambda logits: sampling.top_ids(logits, 9),
    "greedy": sampling.greedy,
    "choose": lambda logits: sampling.choose(
        sampling.probabilities(logits), torch.full(logits.shape[:-1], 0.37, dtype=torch.float64)
    ),
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("vocab_size", [1, 7, 1001, 40_000])
def test_a_row_has_the_same_bits_alone_and_in_any_batch(step: str, vocab_size: int) -> None:
    rows = random_rows(5, vocab_size)
    alone = [STEPS[step](row.clone()) for row in rows]
    transposed = rows.t().contiguous().t()  # the same rows in another memory order
    num_threads = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(torch.equal(STEPS[step](rows[i]), alone[i]) for i in range(5))
            for batch in (rows, transposed, rows[1:], rows[4:], rows[:0]):
                offset = 5 - len(batch)
                result = STEPS[step](batch)
                assert result.shape[0] == len(batch)
                assert all(torch.equal(result[i], alone[i + offset]) for i in range(len(batch)))
    finally:
        torch.set_num_threads(num_threads)
