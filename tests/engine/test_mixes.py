"""Requests of all kinds at once: each gets, to the bit, the logits and tokens that it gets alone from cold."""

from functools import cache

import numpy as np
import pytest
from alone import Alone, Oracle, Recorder, alone

from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Event, Finished, Request
from pelagos.model.places import built_in_models
from pelagos.model.transformer import Model

NUM_MIXES, NUM_REQUESTS = 300, 90


@cache
def load(name: str) -> Model:
    return Model.load(name, implementation="native")


def _biases(rng: np.random.Generator, vocabulary: int) -> tuple[tuple[int, float], ...]:
    ids = rng.integers(0, vocabulary, rng.integers(1, 40)).tolist()
    return tuple((token_id, float(rng.uniform(-3, 6))) for token_id in ids)


@cache
def pool(name: str) -> list[Request]:
    """Requests that share beginnings with each other; the last third goes on from answers to the first."""
    rng = np.random.default_rng(7)
    vocabulary = load(name).config.vocab_size
    stems = [rng.integers(0, vocabulary, 420) for _ in range(3)]
    requests = []
    for number in range(NUM_REQUESTS):
        stem = stems[number % 3][: rng.choice([0, 1, 60, 127, 128, 129, 200, 256, 300, 384, 400])]
        own = rng.integers(0, vocabulary, rng.integers(1, 90))
        is_random = rng.random() < 0.5
        params = SamplingParams(
            temperature=float(rng.choice([0.7, 1.0, 1.5])) if is_random else 0.0,
            top_p=float(rng.choice([1.0, 0.9])) if is_random else 1.0,
            repetition_penalty=float(rng.choice([1.0, 1.3])),
            seed=number,
            max_tokens=int(rng.integers(1, 48)),
            ignore_eos=bool(rng.random() < 0.8),
            logit_bias=_biases(rng, vocabulary) if rng.random() < 0.3 else (),
            stop_ids=tuple(rng.integers(0, vocabulary, rng.integers(0, 3)).tolist()),
        )
        prompt = [*stem.tolist(), *own.tolist()]
        if number >= NUM_REQUESTS * 2 // 3:
            earlier = requests[number - NUM_REQUESTS * 2 // 3]
            prompt = [*earlier.prompt_ids, *alone(load(name), earlier).ids, *own.tolist()[:20]]
        requests.append(Request(prompt_ids=prompt, params=params, num_choices=int(rng.choice([1, 1, 1, 2, 3]))))
    return requests


@cache
def expected(name: str, number: int) -> list[Alone]:
    request = pool(name)[number]
    return [alone(load(name), request, choice) for choice in range(request.num_choices)]


def random_config(rng: np.random.Generator) -> EngineConfig:
    return EngineConfig(
        cache_bytes=int(rng.choice([600_000, 1_500_000, 20_000_000])),
        max_running=int(rng.choice([1, 2, 3, 8])),
        prefill_tokens=int(rng.choice([16, 50, 128, 300, 512])),
        shared_prefill_tokens=int(rng.choice([16, 33, 128])),
        draft_tokens=int(rng.integers(0, 4)),
        max_drafting=int(rng.choice([1, 4, 100])),
    )


def chosen(rng: np.random.Generator) -> list[int]:
    """Numbers of requests, the last one first; some go on from one before."""
    numbers: list[int] = rng.integers(0, NUM_REQUESTS, rng.integers(2, 10)).tolist()
    third = NUM_REQUESTS // 3
    return [n + 2 * third for n in numbers if n < third] + numbers


def variant(request: Request, rng: np.random.Generator) -> Request:
    """The same work, asked for by someone else or more urgently."""
    return Request(
        prompt_ids=request.prompt_ids,
        params=request.params,
        num_choices=request.num_choices,
        namespace=str(rng.choice(["", "", "other"])),
        user=str(rng.choice(["a", "b", "c"])),
        priority=int(rng.choice([0, 0, 5])),
    )


@pytest.mark.parametrize("first", range(0, NUM_MIXES, 25))
def test_mixes_give_what_each_request_gives_alone(first: int) -> None:
    for seed in range(first, first + 25):
        run_mix("tiny", seed)


@pytest.mark.skipif("nano" not in built_in_models(), reason="the built-in nano is not in this copy")
def test_mixes_on_the_model_that_ships() -> None:
    for seed in range(1000, 1020):
        run_mix("nano", seed)


def run_mix(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    engine = Engine(load(name), random_config(rng))
    recorder, answers = Recorder(engine), dict[str, list[Alone]]()
    Oracle(engine, answers, rng)
    numbers, events = dict[str, int](), dict[str, list[Event]]()
    to_come = chosen(rng)
    aborted = set[str]()
    while to_come or engine.step():
        while to_come and rng.random() < 0.15:
            number = to_come.pop()
            log: list[Event] = []
            request_id = engine.add(variant(pool(name)[number], rng), log.append)
            numbers[request_id], events[request_id] = number, log
            answers[request_id] = expected(name, number)
        if numbers and rng.random() < 0.03:
            request_id = str(rng.choice(list(numbers)))
            engine.abort(request_id)
            aborted.add(request_id)
        if rng.random() < 0.05:
            engine.cache.check_integrity()
    engine.cache.check_integrity()
    for request_id, number in numbers.items():
        check(recorder, request_id, name, number, events[request_id], was_aborted=request_id in aborted)
    stats = engine.stats()
    assert stats.cache.num_pages_used == stats.cache.num_pages_reserved == 0


def check(
    recorder: Recorder, request_id: str, name: str, number: int, events: list[Event], *, was_aborted: bool
) -> None:
    *before, finished = events
    assert isinstance(finished, Finished)
    assert not any(isinstance(event, Finished) for event in before)
    request = pool(name)[number]
    num_prompt = len(request.prompt_ids)
    for choice, (answer, alone_) in enumerate(zip(finished.answers, expected(name, number), strict=True)):
        ids = answer.token_ids
        if was_aborted:
            assert ids == alone_.ids[: len(ids)]
        else:
            assert ids == alone_.ids
            assert answer.finish_reason in ("stop", "length")
        assert recorder.differing(request_id, choice, num_prompt, alone_, len(ids)) == []
    if not was_aborted:
        usage = finished.usage
        assert usage.num_cached + usage.num_computed == usage.num_prompt_tokens == num_prompt


def test_mixes_hold_everything_that_could_go_wrong() -> None:
    """The mixes above are worth something only if caches, guesses, forks, pauses and evictions happen in them."""
    seen = dict.fromkeys(("cached", "accepted", "rejected", "evicted", "paused", "waited", "tails"), 0)
    for seed in range(60):
        count_events(seed, seen)
    assert [name for name, count in seen.items() if count <= 5] == []


def count_events(seed: int, seen: dict[str, int]) -> None:
    rng = np.random.default_rng(seed)
    engine = Engine(load("tiny"), random_config(rng))
    answers = dict[str, list[Alone]]()
    Oracle(engine, answers, rng)
    to_come = chosen(rng)
    while to_come or engine.step():
        while to_come and rng.random() < 0.15:
            number = to_come.pop()
            answers[engine.add(variant(pool("tiny")[number], rng))] = expected("tiny", number)
        seen["paused"] += any(job.is_paused for job in engine.scheduler.running)
        seen["waited"] += any(job.waits_for is not None for job in engine.scheduler.waiting)
    stats = engine.stats()
    seen["cached"] += stats.num_cached
    seen["tails"] += stats.num_cached % 128 > 0
    seen["accepted"] += stats.num_accepted
    seen["rejected"] += stats.num_drafted - stats.num_accepted
    seen["evicted"] += stats.cache.num_evicted
