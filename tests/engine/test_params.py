"""Sampling parameters: every range, named in every refusal."""

import math
from typing import Any

import pytest

from pelagos.common.errors import ConfigError
from pelagos.engine.params import SamplingParams


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("temperature", -0.1, "temperature must be a number from 0 to 2, got -0.1"),
        ("temperature", math.nan, "temperature must be a number from 0 to 2, got nan"),
        ("top_k", 0, "top_k must be a whole number from 1 to 4194304, got 0"),
        ("top_k", True, "top_k must be a whole number from 1 to 4194304, got True"),
        ("top_p", 0.0, "top_p must be above 0, got 0"),
        ("top_p", 1.01, "top_p must be a number from 0 to 1, got 1.01"),
        ("min_p", -0.5, "min_p must be a number from 0 to 1, got -0.5"),
        ("repetition_penalty", 0, "repetition_penalty must be a number from 0.01 to 100, got 0"),
        ("presence_penalty", 2.5, "presence_penalty must be a number from -2 to 2, got 2.5"),
        ("frequency_penalty", "1", "frequency_penalty must be a number from -2 to 2, got '1'"),
        ("seed", -1, "seed must be a whole number from 0 to 9223372036854775807, got -1"),
        ("max_tokens", 0, "max_tokens must be a whole number from 1 to 16777216, got 0"),
        ("logprobs", 21, "logprobs must be a whole number from 0 to 20, got 21"),
        ("ignore_eos", 1, "ignore_eos must be true or false, got 1"),
        ("stop", ("x",) * 17, "stop must be at most 16 texts of 1 to 1024 characters"),
        ("stop", ("",), "stop must be at most 16 texts of 1 to 1024 characters"),
        ("stop", "x", "stop must be at most 16 texts of 1 to 1024 characters"),
        ("stop", ("x" * 1025,), "stop must be at most 16 texts of 1 to 1024 characters"),
        ("stop_ids", (-1,), "stop_ids must be token ids, whole numbers of at least 0"),
        ("stop_ids", [1], "stop_ids must be token ids, whole numbers of at least 0"),
    ],
)
def test_params_refuse_what_does_not_fit_and_name_it(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingParams(**{field: value})
    assert str(caught.value) == message


def test_params_accept_the_ends_of_every_range() -> None:
    SamplingParams(temperature=2, top_k=1, top_p=1, min_p=1, repetition_penalty=100.0, presence_penalty=-2, seed=0)
    SamplingParams(stop=("x" * 1024,) * 16, logprobs=0, seed=(1 << 63) - 1, frequency_penalty=2, max_tokens=1)


def test_a_drawn_seed_is_new_each_time_and_a_given_one_stays() -> None:
    drawn = {SamplingParams().with_seed().seed for _ in range(8)}
    assert len(drawn) == 8
    assert all(seed is not None and 0 <= seed < 1 << 63 for seed in drawn)
    assert SamplingParams(seed=0).with_seed().seed == 0
