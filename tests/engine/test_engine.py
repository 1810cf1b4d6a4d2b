"""The engine's promises around the numbers: one end for every request, turns for all, nothing left over."""

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from pelagos.common.errors import ConfigError, OverloadedError, UsageError
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Event, Finished, Reading, Request, Tokens
from pelagos.engine.sequence import Batch
from pelagos.model.transformer import Model

SMALL = EngineConfig(cache_bytes=4_000_000, prefill_tokens=128, shared_prefill_tokens=32)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("tiny", implementation="native")


def request(seed: int, num_prompt: int, max_tokens: int, **settings: object) -> Request:
    ids = np.random.default_rng(seed).integers(0, 512, num_prompt).tolist()
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    return Request(prompt_ids=ids, params=params, **settings)  # type: ignore[arg-type]


@dataclass
class Watched:
    """The batches that an engine runs, with the answers that were being written when each was planned."""

    engine: Engine
    batches: list[Batch] = field(default_factory=list)
    writing: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.engine.scheduler.plan

        def watched() -> Batch:
            jobs = [job for job in self.engine.scheduler.running if not job.is_paused and not job.is_reading]
            batch = plan()
            self.batches.append(batch)
            self.writing.append(sum(not s.is_closed for job in jobs for s in job.sequences))
            return batch

        self.engine.scheduler.plan = watched  # type: ignore[method-assign]


def run(engine: Engine) -> None:
    while engine.step():
        pass


def test_events_come_in_order_and_add_up(model: Model) -> None:
    engine, events = Engine(model, SMALL), list[Event]()
    request_id = engine.add(request(1, 300, 20, num_choices=2), events.append)
    run(engine)
    readings = [event for event in events if isinstance(event, Reading)]
    tokens = [event for event in events if isinstance(event, Tokens)]
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert [event.request_id for event in events] == [request_id] * len(events)
    assert [event.num_read for event in readings] == [0, 128, 256]
    assert events[: len(readings)] == readings
    for choice in (0, 1):
        told = [token for event in tokens if event.choice == choice for token in event.tokens]
        assert told == list(finished.answers[choice].tokens)
        assert len(told) == 20
    assert finished.usage.num_generated == 40
    times = finished.times
    assert times.started is not None
    assert times.first_token is not None
    assert 0 <= times.started <= times.first_token <= times.finished


def test_no_answer_waits_longer_than_one_chunk_of_a_prompt(model: Model) -> None:
    engine = Engine(model, SMALL)
    watched = Watched(engine)
    for seed in range(64):
        engine.add(request(seed, 1 + seed * 37 % 500, 1 + seed * 13 % 40, user=f"user {seed % 5}"))
    run(engine)
    for batch, num_writing in zip(watched.batches, watched.writing, strict=True):
        reading = [piece for piece in batch if piece.start < piece.sequence.job.num_prompt_tokens]
        assert len(batch) - len(reading) == num_writing  # each of them has a token in the step
        assert sum(len(piece.token_ids) for piece in reading) <= (32 if num_writing else 128)
    assert engine.stats().finished == {"length": 64}


def test_users_take_turns(model: Model) -> None:
    """One who floods the queue does not keep another waiting behind all of it."""
    engine, order = Engine(model, EngineConfig(cache_bytes=4_000_000, max_running=1)), list[str]()

    def note(user: str) -> object:
        return lambda event: order.append(user) if isinstance(event, Finished) else None

    for seed in range(20):
        engine.add(request(seed, 40, 10, user="flood"), note("flood"))  # type: ignore[arg-type]
    engine.step()
    engine.add(request(99, 40, 10, user="other"), note("other"))  # type: ignore[arg-type]
    run(engine)
    assert order.index("other") <= 2


def test_a_big_request_is_not_passed_over_for_ever(model: Model) -> None:
    engine, finished = Engine(model, EngineConfig(cache_bytes=1_000_000)), list[str]()
    pages = engine.cache.num_pages
    big = request(500, 10, (pages - 2) * 128)
    small = [request(seed, 10, 300) for seed in range(30)]
    for number, one in enumerate([*small[:5], big, *small[5:]]):
        name = "big" if one is big else f"small {number}"
        engine.add(one, lambda event, name=name: finished.append(name) if isinstance(event, Finished) else None)  # type: ignore[misc]
    for _ in range(3000):
        if "big" in finished or not engine.step():
            break
        if len(finished) > 6:
            assert any(job.num_prompt_tokens == 10 and job.max_tokens > 1000 for job in engine.scheduler.running)
            break
    else:
        pytest.fail("nothing came to an end")


def test_a_higher_priority_takes_the_place_of_a_running_request_which_goes_on_later(model: Model) -> None:
    engine, order = Engine(model, EngineConfig(cache_bytes=4_000_000, max_running=1)), list[str]()
    low, high = request(1, 50, 60), request(2, 50, 5, priority=3)
    [alone] = Engine(model, SMALL).generate([low])
    answers: dict[str, Finished] = {}

    def note(name: str, event: Event) -> None:
        if isinstance(event, Finished):
            order.append(name)
            answers[name] = event

    engine.add(low, lambda event: note("low", event))
    for _ in range(20):
        engine.step()
    engine.add(high, lambda event: note("high", event))
    run(engine)
    assert order == ["high", "low"]
    assert answers["low"].answers[0].token_ids == alone.answers[0].token_ids
    assert answers["low"].usage.num_computed == 50  # nothing was read twice


def test_nobody_gives_way_to_one_that_does_not_fit(model: Model) -> None:
    """The urgent request needs the memory that the running one holds: that one goes on, else neither would."""
    engine, order = Engine(model, EngineConfig(cache_bytes=1_000_000, max_running=1)), list[str]()
    room = (engine.cache.num_pages - 2) * 128
    low = request(1, 10, room // 2 + 200)
    high = request(2, 10, room // 2 + 200, priority=3)
    for name, one in (("low", low), ("high", high)):
        engine.add(one, lambda event, name=name: order.append(name) if isinstance(event, Finished) else None)  # type: ignore[misc]
        for _ in range(5):
            engine.step()
    for _ in range(20_000):
        if not engine.step():
            break
    assert order == ["low", "high"]


def test_equal_prompts_are_read_once(model: Model) -> None:
    engine = Engine(model, SMALL)
    same = [request(3, 400, 5) for _ in range(6)]
    finished = engine.generate(same)
    assert len({tuple(one.answers[0].token_ids) for one in finished}) == 1
    assert sorted(one.usage.num_cached for one in finished) == [0, 384, 384, 384, 384, 384]


def test_who_waits_for_another_reads_alone_when_that_one_is_aborted(model: Model) -> None:
    engine, ends = Engine(model, SMALL), dict[str, Finished]()
    note = lambda event: ends.update({event.request_id: event}) if isinstance(event, Finished) else None  # noqa: E731
    first, second = (engine.add(request(3, 400, 5), note) for _ in range(2))
    engine.step()
    engine.step()
    assert engine.scheduler.waiting[0].waits_for is not None
    engine.abort(first)
    run(engine)
    assert ends[first].answers[0].finish_reason == "cancelled"
    assert ends[second].answers[0].finish_reason == "length"
    assert ends[second].usage.num_cached >= 128  # what the first one had read is not read again


def test_namespaces_share_nothing(model: Model) -> None:
    engine = Engine(model, SMALL)
    for namespace in ("a", "b", "a"):
        [finished] = engine.generate([request(3, 400, 5, namespace=namespace)])
        last = finished.usage.num_cached
        assert last == 0 or namespace == "a"
    assert last == 384


def test_a_deadline_ends_a_request_wherever_it_is(model: Model) -> None:
    engine = Engine(model, SMALL)
    [running] = engine.generate([request(1, 500, 3000, timeout=0.05)])
    assert running.answers[0].finish_reason == "deadline"
    assert running.times.finished < 5
    [waiting] = engine.generate([request(1, 500, 3000, timeout=0.0)])
    assert waiting.answers[0].token_ids == []
    engine.cache.check_integrity()


def test_a_full_queue_and_impossible_requests_are_refused_by_name(model: Model) -> None:
    engine = Engine(model, EngineConfig(cache_bytes=1_000_000, max_waiting=2))
    engine.add(request(1, 5, 5))
    engine.add(request(2, 5, 5))
    with pytest.raises(OverloadedError, match="2 requests are waiting already") as caught:
        engine.add(request(3, 5, 5))
    assert caught.value.retry_after > 0
    with pytest.raises(UsageError, match=r"may come to 4000 tokens in 5 answers, and the cache holds \d+: shorten"):
        engine.add(request(3, 1000, 3000, num_choices=5))
    with pytest.raises(UsageError, match="at least one token, got none"):
        engine.add(Request(prompt_ids=[]))
    with pytest.raises(UsageError, match="prompt token 1 must be a whole number from 0 to 511, got 512"):
        engine.add(Request(prompt_ids=[1, 512]))
    with pytest.raises(ConfigError, match="logit_bias must have token ids from 0 to 511, got 600"):
        engine.add(Request(prompt_ids=[1], params=SamplingParams(logit_bias=((600, 1.0),))))
    run(engine)
    assert engine.stats().finished == {"length": 2}


def test_a_handler_that_fails_stops_nobody(model: Model) -> None:
    engine, ends = Engine(model, SMALL), list[Event]()

    def fails(_: Event) -> None:
        raise RuntimeError("the caller's mistake")

    engine.add(request(1, 50, 5), fails)
    engine.add(request(2, 50, 5), lambda event: ends.append(event) if isinstance(event, Finished) else None)
    run(engine)
    assert len(ends) == 1
    assert engine.stats().finished == {"length": 2}


def test_broken_logits_end_their_request_alone(model: Model) -> None:
    engine, run_batch = Engine(model, SMALL), None
    run_batch = engine.runner.run
    broken = engine.add(request(1, 50, 50))
    kept: list[Finished] = []
    engine.add(request(2, 50, 50), lambda event: kept.append(event) if isinstance(event, Finished) else None)

    def spoiled(batch: Batch) -> tuple[object, object]:
        logits, streams = run_batch(batch)
        row = 0
        for piece in batch:
            if piece.sequence.job.request_id == broken and piece.start > 60:
                logits[row] = float("nan")
            row += piece.num_logits
        return logits, streams

    engine.runner.run = spoiled  # type: ignore[method-assign, assignment]
    run(engine)
    assert engine.stats().finished == {"error": 1, "length": 1}
    assert len(kept[0].answers[0].tokens) == 50
    engine.cache.check_integrity()


def test_a_decoder_that_fails_ends_its_request_alone(model: Model) -> None:
    """A fault of ours or of a caller's in one sequence, between two that are well."""

    class Broken:
        def push_one(self, token_id: int) -> str:
            raise IndexError("no such token")

        def flush(self) -> str:
            return ""

    engine = Engine(model, SMALL)
    well, ill = request(1, 50, 30), request(2, 50, 30, decoder=Broken)
    before, broken, after = engine.generate([well, ill, request(3, 50, 30)])
    assert [one.answers[0].finish_reason for one in (before, broken, after)] == ["length", "error", "length"]
    assert broken.error == "the next token could not be chosen: see the log"
    [alone] = Engine(model, SMALL).generate([well])
    assert before.answers == alone.answers
    engine.cache.check_integrity()


def test_what_a_failed_request_read_is_not_kept(model: Model) -> None:
    """It fails with guesses read and not taken back, right behind a page: its tokens must not be found by others."""
    engine = Engine(model, EngineConfig(cache_bytes=4_000_000, draft_tokens=3))
    pushed = 0

    class Broken:
        def push_one(self, token_id: int) -> str:
            nonlocal pushed
            pushed += 1
            if pushed == 7:
                raise IndexError("no such token")
            return ""

        def flush(self) -> str:
            return ""

    ill = request(5, 250, 30, decoder=Broken)
    [broken] = engine.generate([ill])
    assert broken.answers[0].finish_reason == "error"
    known = [*ill.prompt_ids, *broken.answers[0].token_ids, *[0] * 200]
    [next_one] = engine.generate([Request(prompt_ids=known, params=SamplingParams(max_tokens=20, ignore_eos=True))])
    [cold] = Engine(model, SMALL).generate(
        [Request(prompt_ids=known, params=SamplingParams(max_tokens=20, ignore_eos=True))]
    )
    assert next_one.answers == cold.answers
    assert next_one.usage.num_cached <= 250


@pytest.mark.parametrize("seed", range(4))
def test_random_adds_aborts_and_steps_leave_the_pool_whole(model: Model, seed: int) -> None:
    """2,500 operations each, 10,000 in all; afterwards nothing is in use, and what is kept can be given up."""
    rng = np.random.default_rng(seed)
    engine = Engine(model, EngineConfig(cache_bytes=900_000, max_running=4, prefill_tokens=64, max_waiting=20))
    ids, ends = list[str](), dict[str, int]()
    generated = 0

    def note(event: Event) -> None:
        nonlocal generated
        if isinstance(event, Finished):
            ends[event.request_id] = ends.get(event.request_id, 0) + 1
            generated += event.usage.num_generated

    for _ in range(2500):
        draw = rng.random()
        if draw < 0.15:
            number = int(rng.integers(0, 12))
            try:
                many = int(rng.integers(1, 3))
                one = request(number, 1 + number * 31 % 300, int(rng.integers(1, 30)), num_choices=many)
                ids.append(engine.add(one, note))
            except OverloadedError:
                pass
        elif draw < 0.2 and ids:
            engine.abort(str(rng.choice(ids)))
        else:
            engine.step()
    run(engine)
    stats = engine.stats()
    assert ends == dict.fromkeys(ids, 1)
    assert stats.num_generated == generated
    assert sum(stats.finished.values()) == len(ids)
    engine.cache.check_integrity()
    assert stats.cache.num_pages_used == stats.cache.num_pages_reserved == 0
    engine.cache.clear()
    assert engine.cache.stats().num_pages_kept == engine.cache.stats().restart_bytes == 0
    engine.cache.check_integrity()


def test_a_thread_of_its_own_serves_many_threads(model: Model) -> None:
    engine = Engine(model, SMALL)
    engine.start()
    ends, lock = list[str](), threading.Lock()

    def work(seed: int) -> None:
        for number in range(5):
            done = threading.Event()
            request_id = engine.add(
                request(seed * 10 + number, 30, 10),
                lambda event, done=done: done.set() if isinstance(event, Finished) else None,  # type: ignore[misc]
            )
            if number == 3:
                engine.abort(request_id)
            assert done.wait(30)
            with lock:
                ends.append(request_id)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(ends)) == 40
    engine.close()
    with pytest.raises(OverloadedError, match="closing"):
        engine.add(request(1, 5, 5))
    engine.cache.check_integrity()


def test_draining_waits_then_cancels(model: Model) -> None:
    engine, ends = Engine(model, SMALL), list[Finished]()
    engine.start()
    engine.add(request(1, 20, 5), lambda event: ends.append(event) if isinstance(event, Finished) else None)
    engine.add(request(2, 20, 3900), lambda event: ends.append(event) if isinstance(event, Finished) else None)
    began = time.monotonic()
    assert engine.drain(0.2) is False
    assert time.monotonic() - began < 10
    assert sorted(one.answers[0].finish_reason for one in ends) == ["cancelled", "length"]
    engine.close()
