"""Counter-based randomness, and the choice of one token against transformers' processors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from pelagos.common.errors import PelagosError
from pelagos.engine import sampler
from pelagos.engine.params import SamplingParams
from pelagos.engine.sampler import History, sample, uniform

MASK = (1 << 64) - 1


@pytest.fixture(params=["native", "reference"], autouse=True)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this holds with and without the native kernels."""
    if request.param == "reference":
        monkeypatch.setattr(sampler, "native", lambda: None)


def philox(key: int, counter: int) -> float:
    """Philox-4x64 with 10 rounds, from the paper; numpy counts up before it makes the first block."""
    block = [(counter + 1 >> 64 * word) & MASK for word in range(4)]
    keys = [key & MASK, key >> 64]
    for _ in range(10):
        low, high = 0xD2E7470EE14C6C93 * block[0], 0xCA5A826395121157 * block[2]
        block = [(high >> 64) ^ block[1] ^ keys[0], high & MASK, (low >> 64) ^ block[3] ^ keys[1], low & MASK]
        keys = [keys[0] + 0x9E3779B97F4A7C15 & MASK, keys[1] + 0xBB67AE8584CAA73B & MASK]
    return (block[0] >> 11) * 2.0**-53


def logits_row(vocab_size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * 1.5


@pytest.mark.parametrize("seed", [0, 1, 12345, (1 << 63) - 1])
@pytest.mark.parametrize("position", [0, 1, 2, 1 << 20, MASK])
def test_uniform_is_philox(seed: int, position: int) -> None:
    assert uniform(seed, position) == philox(seed, position)


def test_uniform_numbers_are_spread_evenly_over_positions_and_seeds() -> None:
    """Chi-square over 20 cells; 43.8 is the 99.9 % point for 19 degrees."""
    for numbers in ([uniform(3, n) for n in range(4000)], [uniform(n, 3) for n in range(4000)]):
        counts = np.histogram(numbers, bins=20, range=(0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 43.8
        assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.06


CASES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.5},
    {"temperature": 2.0, "top_k": 5},
    {"temperature": 1.2, "top_p": 0.7},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.4},
    {"temperature": 1.0, "repetition_penalty": 0.6},
]


@pytest.mark.parametrize("case", CASES)
def test_choices_follow_the_distribution_of_transformers(case: dict[str, Any]) -> None:
    """Chi-square of one choice at each of 6,000 positions; cells with fewer than 5 expected are merged.

    The bound is the 99.9 % point by the Wilson-Hilferty approximation.
    """
    logits, prompt, num_draws = logits_row(), [3, 3, 17, 60], 6000
    chain = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(case.get("repetition_penalty", 1.0)),
            TemperatureLogitsWarper(case["temperature"]),
            TopKLogitsWarper(case.get("top_k", 64)),
            TopPLogitsWarper(case.get("top_p", 1.0)),
            MinPLogitsWarper(case.get("min_p", 0.0)),
        ]
    )
    expected = torch.softmax(chain(torch.tensor([prompt]), logits[None])[0].double(), 0).numpy() * num_draws
    params, history = SamplingParams(**case, seed=11), History(64, prompt)
    chosen = [sample(logits, params, history, position).token_id for position in range(num_draws)]
    counts = np.bincount(chosen, minlength=64)
    assert counts[expected == 0].sum() == 0
    large = expected >= 5
    observed_cells = np.append(counts[large], counts[~large].sum())
    expected_cells = np.append(expected[large], expected[~large].sum())
    used = expected_cells > 0
    degrees = int(used.sum()) - 1
    bound = degrees * (1 - 2 / (9 * degrees) + 3.09 * math.sqrt(2 / (9 * degrees))) ** 3
    assert ((observed_cells - expected_cells)[used] ** 2 / expected_cells[used]).sum() < bound


def test_penalties_use_prompt_and_output_as_defined() -> None:
    history = History(6, [0, 0, 1])
    for token_id in (2, 2, 1):
        history.add(token_id)
    logits = torch.tensor([1.0, 1.0, 1.0, 0.9, -1.0, 0.0])
    # Output holds 1 once and 2 twice; the prompt alone holds 0.
    assert sample(logits, SamplingParams(presence_penalty=0.05), history, 6).token_id == 0
    assert sample(logits, SamplingParams(presence_penalty=-0.05), history, 6).token_id == 1
    assert sample(logits, SamplingParams(frequency_penalty=-0.05), history, 6).token_id == 2
    assert sample(logits, SamplingParams(repetition_penalty=1.2), history, 6).token_id == 3


def test_greedy_takes_the_smallest_id_of_equal_logits() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 2.0])
    assert {sample(logits, SamplingParams(seed=s), None, s).token_id for s in range(20)} == {1}


def test_a_token_depends_on_logits_seed_and_position_alone() -> None:
    params = SamplingParams(temperature=1.0, top_p=0.95, seed=99)
    rows = torch.stack([logits_row(seed=s) for s in range(50)])
    forward = [sample(rows[p], params, None, p) for p in range(50)]
    torch.manual_seed(1)
    np.random.seed(2)
    order = np.random.default_rng(3).permutation(50)
    shuffled = {int(p): sample(rows[int(p)].clone(), params, None, int(p)) for p in order}
    assert [shuffled[p] for p in range(50)] == forward
    other_seed = SamplingParams(temperature=1.0, top_p=0.95, seed=100)
    assert [sample(rows[p], other_seed, None, p) for p in range(50)] != forward
    assert [sample(rows[p], params, None, p + 1) for p in range(50)] != forward


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_logprobs_are_of_the_models_own_distribution(num_top: int) -> None:
    logits = logits_row()
    history = History(64, [int(logits.argmax())])
    params = SamplingParams(temperature=0.3, top_k=2, repetition_penalty=5.0, seed=4, logprobs=num_top)
    result = sample(logits, params, history, 0)
    expected = torch.log_softmax(logits.double(), 0)
    assert result.logprob == pytest.approx(expected[result.token_id].item(), abs=1e-12)
    assert [token_id for token_id, _ in result.top_logprobs] == expected.topk(num_top).indices.tolist()
    assert [value for _, value in result.top_logprobs] == pytest.approx(expected.topk(num_top).values.tolist())


def test_logprobs_are_left_out_unless_asked_for() -> None:
    result = sample(logits_row(), SamplingParams(), None, 0)
    assert (result.logprob, result.top_logprobs) == (None, ())


@pytest.mark.parametrize("row", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, -math.inf]])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_refused(row: list[float], temperature: float) -> None:
    with pytest.raises(PelagosError, match="logits for position 7 are not finite"):
        sample(torch.tensor(row), SamplingParams(temperature=temperature, seed=0), None, 7)


def test_a_ruled_out_token_is_no_broken_logit() -> None:
    assert sample(torch.tensor([-math.inf, 0.0]), SamplingParams(temperature=1.0, seed=0), None, 0).token_id == 1
