"""The engine on the reference ops, where there are no native kernels: the same answers, prefixes found again."""

import numpy as np
import pytest
from alone import alone

from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Request
from pelagos.model.transformer import Model


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("tiny", implementation="reference")


def requests(rng: np.random.Generator) -> list[Request]:
    stem = rng.integers(0, 512, 300).tolist()
    return [
        Request(
            prompt_ids=[*stem[: rng.choice([0, 100, 260])], *rng.integers(0, 512, rng.integers(1, 40)).tolist()],
            params=SamplingParams(max_tokens=int(rng.integers(1, 12)), temperature=float(seed % 2), seed=seed),
            num_choices=1 + seed % 3 // 2,
        )
        for seed in range(8)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_answers_are_those_of_each_request_alone(model: Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    work = requests(rng)
    engine = Engine(model, EngineConfig(cache_bytes=int(rng.choice([400_000, 8_000_000])), prefill_tokens=64))
    for _ in range(2):  # the second time from what is kept
        for request, finished in zip(work, engine.generate(work), strict=True):
            for choice, answer in enumerate(finished.answers):
                assert answer.token_ids == alone(model, request, choice).ids
        engine.cache.check_integrity()
    engine.cache.clear()
    assert engine.stats().cache.restart_bytes == engine.stats().cache.num_pages_used == 0


def test_a_conversation_goes_on_where_it_ended(model: Model) -> None:
    engine = Engine(model, EngineConfig(cache_bytes=8_000_000))
    params = SamplingParams(max_tokens=10, ignore_eos=True)
    [first] = engine.generate([Request(prompt_ids=list(range(50)), params=params)])
    longer = [*range(50), *first.answers[0].token_ids, 7]
    [second] = engine.generate([Request(prompt_ids=longer, params=params)])
    assert second.usage.num_cached == 59
    [other] = engine.generate([Request(prompt_ids=longer, params=params, namespace="other")])
    assert other.usage.num_cached == 0
    assert other.answers == second.answers
