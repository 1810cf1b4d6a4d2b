"""Tokens that the native code chooses, against the reference and exact borders, on every instruction set."""

import math
from typing import Any

import pytest
import torch
from rowwise_checks import check_contract, needs_native, same_everywhere
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.engine.sampler import uniform
from pelagos.ops.cpu.sampling import NONE_ALLOWED, NOT_FINITE, TokenChoice, choose_tokens
from pelagos.ops.reference import sampling

pytestmark = needs_native
BORDER = 1e-5  # how far from a border of the running sum a random number may be and still fall on its other side

FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 40},
    {"top_k": 1 << 22},
    {"top_p": 1e-9},
    {"top_p": 0.3},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"top_k": 30, "top_p": 0.8, "min_p": 0.02},
]


def rows(kind: str, vocab_size: int, num: int = 8) -> Tensor:
    """Rows of logits: spread, of few values so that many tie, or mostly -inf."""
    g = torch.Generator().manual_seed(vocab_size)
    spread = 3 * torch.randn(num, vocab_size, generator=g)
    if kind == "ties":
        return spread.round()
    if kind == "holes":
        kept = torch.rand(num, vocab_size, generator=g) < 0.3
        kept[:, vocab_size // 2] = True
        return spread.masked_fill(~kept, -torch.inf)
    return spread


def kept_shares(logits: Tensor, one: TokenChoice) -> Tensor:
    """Probabilities [V] float64 of the reference."""
    if one.allowed is not None:
        logits = logits.masked_fill(~one.allowed, -torch.inf)
    logits = sampling.apply_temperature(logits, one.temperature)
    if one.top_k:
        logits = sampling.keep_top_k(logits, one.top_k)
    return sampling.probabilities(sampling.keep_min_p(sampling.keep_top_p(logits, one.top_p), one.min_p))


def check(logits: Tensor, choices: list[TokenChoice]) -> None:
    """Every token is the reference's, or the next one to a border that the random number is close to."""
    for one, token in zip(choices, choose_tokens(logits, choices), strict=True):
        shares = kept_shares(logits[one.row], one)
        number = uniform(one.seed, one.position, one.choice)
        running = shares.cumsum(0)
        below = running[token].item() - shares[token].item()
        assert shares[token] > 0, one
        assert below - BORDER <= number <= running[token].item() + BORDER, one


@pytest.mark.parametrize("kind", ["spread", "ties", "holes"])
@pytest.mark.parametrize("vocab_size", [1, 2, 15, 16, 17, 255, 257, 1000, 4096])
@pytest.mark.parametrize("filters", FILTERS)
def test_choices_are_those_of_the_reference(kind: str, vocab_size: int, filters: dict[str, Any]) -> None:
    logits = rows(kind, vocab_size)
    allowed = torch.rand(vocab_size, generator=torch.Generator().manual_seed(1)) < 0.7
    allowed[vocab_size // 2] = True
    choices = [
        TokenChoice(
            row=i % len(logits),
            temperature=(0.3, 1.0, 2.0)[i % 3],
            seed=7,
            choice=i % 2,
            position=i,
            allowed=allowed if i % 4 == 3 else None,
            **filters,
        )
        for i in range(48)
    ]
    check(logits, choices)


def test_a_large_vocabulary() -> None:
    logits = rows("spread", 129_280, num=2)
    check(logits, [TokenChoice(row=i % 2, temperature=1.0, seed=3, position=i, **f) for i, f in enumerate(FILTERS)])


def test_filters_keep_exactly_the_tokens_of_the_reference() -> None:
    """Equal shares of the kept tokens: every one of them is drawn, and no other."""
    logits = rows("ties", 60, num=1)
    for filters in ({"top_k": 7}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 20, "top_p": 0.7}):
        one = TokenChoice(row=0, temperature=2.0, seed=5, **filters)
        drawn = set(choose_tokens(logits, [one._replace(position=i) for i in range(4000)]))
        assert drawn == set(kept_shares(logits[0], one).nonzero().squeeze(1).tolist()), filters


def test_the_random_number_is_philox() -> None:
    """Of 4,096 equal logits the token is the number's place among 4,096."""
    wanted = [
        TokenChoice(row=0, temperature=1.0, seed=seed, choice=choice, position=position)
        for seed in (0, 1, 1234567, (1 << 63) - 1)
        for choice in (0, 1, 127)
        for position in (0, 1, 99, 1 << 20, (1 << 63) - 1)
    ]
    tokens = choose_tokens(torch.zeros(1, 4096), wanted)
    assert tokens == [math.floor(4096 * uniform(one.seed, one.position, one.choice)) for one in wanted]


def greedy(logits: Tensor) -> Tensor:
    rows = logits.reshape(-1, logits.shape[-1]).float()
    return (
        torch.tensor(choose_tokens(rows, [TokenChoice(row=i) for i in range(len(rows))])).long().view(logits.shape[:-1])
    )


def test_contract() -> None:
    check_contract("greedy", greedy)


def test_greedy_takes_the_smallest_id_of_equal_logits() -> None:
    logits = torch.zeros(3, 1000)
    logits[0, [997, 400, 401]] = 2.0
    logits[1] = -torch.inf
    logits[1, 7] = -3e38
    assert choose_tokens(logits, [TokenChoice(row=i) for i in (2, 1, 0)]) == [0, 7, 400]


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6])
def test_the_smallest_temperatures_take_the_largest_logit(temperature: float) -> None:
    logits = torch.tensor([[-3e38, 3e38, 2.9e38]])
    assert choose_tokens(logits, [TokenChoice(row=0, temperature=temperature, position=i) for i in range(9)]) == [1] * 9


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_without_a_token(temperature: float) -> None:
    logits = torch.zeros(5, 37)
    logits[0, 36], logits[1, 3], logits[2], logits[3] = torch.nan, torch.inf, -torch.inf, torch.nan
    one = TokenChoice(row=0, temperature=temperature)
    assert choose_tokens(logits, [one._replace(row=i) for i in range(4)]) == [NOT_FINITE] * 4
    nothing, last = torch.zeros(37, dtype=torch.bool), torch.zeros(37, dtype=torch.bool)
    last[36] = True
    assert choose_tokens(logits, [one._replace(row=4, allowed=mask) for mask in (nothing, last)]) == [NONE_ALLOWED, 36]


def test_tokens_depend_on_neither_neighbours_nor_threads_nor_instruction_set() -> None:
    logits = rows("spread", 3000)
    choices = [
        TokenChoice(row=i % 8, temperature=1.0, seed=i, position=i, **FILTERS[i % len(FILTERS)]) for i in range(66)
    ]
    together = same_everywhere(lambda: torch.tensor(choose_tokens(logits, choices)))[0].tolist()
    assert [choose_tokens(logits, [one])[0] for one in choices] == together


def test_what_it_is_given_is_checked() -> None:
    logits = torch.zeros(2, 8)
    for wrong in (logits.double(), logits[0], logits.t()):
        with pytest.raises(UsageError, match="logits must be"):
            choose_tokens(wrong, [TokenChoice(row=0)])
    with pytest.raises(UsageError, match="row must be from 0 to 1"):
        choose_tokens(logits, [TokenChoice(row=2)])
    with pytest.raises(UsageError, match=r"allowed must be \[8\] bool"):
        choose_tokens(logits, [TokenChoice(row=0, allowed=torch.ones(7, dtype=torch.bool))])
