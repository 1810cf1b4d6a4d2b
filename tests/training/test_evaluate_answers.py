"""Answers, exercises and recall: against hand loops of exact inference, and with models that know what is right."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from evaluation_case import Parrot, config, exact, exercise, tokenizer, untrained
from hypothesis import given
from hypothesis import strategies as st

from pelagos.chat.parse import ToolCall
from pelagos.chat.render import RenderedPrompt
from pelagos.chat.tokenizer import ASSISTANT, DSML
from pelagos.common.errors import ConfigError, UsageError
from pelagos.engine.offline import generate
from pelagos.engine.params import SamplingParams
from pelagos.model.transformer import Model
from pelagos.training import exercises
from pelagos.training.answers import Timeline, greedy_answers, log_probabilities, read_together
from pelagos.training.evaluation import Share, Z
from pelagos.training.exercises import attempt_all, held_out_exercises, is_valid, right
from pelagos.training.recall import RecallConfig, measure_recall
from pelagos.training.tasks import Call, Sample, encode, evaluation_grid, shared_texts

PROMPTS = [[448, 5, 9, 200], [448], [448, *range(70, 90)]]


def by_hand(model: Model, prompt: Sequence[int], num_tokens: int, stop_ids: Sequence[int] = ()) -> list[int]:
    """Greedy generation, everything read anew for each token."""
    ids = list(prompt)
    while len(ids) < len(prompt) + num_tokens:
        ids.append(int(model.logits(ids)[-1].argmax()))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :]


def run(parrot: Parrot, samples: Sequence[Sample], **options: Any) -> list[exercises.Attempt]:
    options = {"side_by_side": 3, "answer_tokens": 200} | options
    return list(attempt_all(cast(Model, parrot), tokenizer(), samples, **options))


def test_answers_are_those_of_each_prompt_alone() -> None:
    model = exact(untrained())
    limits = [4, 6, 3]
    expected = [by_hand(model, prompt, limit) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert greedy_answers(model, PROMPTS, limits, stop_ids=(), prefill_tokens=7) == expected
    stop = expected[1][3]
    stopped = [by_hand(model, prompt, limit, [stop]) for prompt, limit in zip(PROMPTS, limits, strict=True)]
    assert greedy_answers(model, PROMPTS, limits, stop_ids=[stop]) == stopped
    assert stopped[1][-1] == stop


def test_answers_are_those_of_the_engine() -> None:
    model = exact(untrained(config(eos_ids=(101, 102, 103, 104, 105))))
    expected = [generate(model, prompt, SamplingParams(max_tokens=16)).token_ids for prompt in PROMPTS]
    assert greedy_answers(model, PROMPTS, [16] * 3, stop_ids=model.config.eos_ids) == expected


def test_an_answer_ends_where_the_model_does() -> None:
    model = exact(untrained(config(max_positions=23)))
    lengths = [len(answer) for answer in greedy_answers(model, PROMPTS, [50] * 3, stop_ids=())]
    assert lengths == [19, 22, 2]
    with pytest.raises(UsageError, match="at most 23"):
        greedy_answers(model, [[5] * 24], [1], stop_ids=())


def test_is_over_ends_one_answer() -> None:
    model = exact(untrained())
    answers = greedy_answers(model, PROMPTS, [5] * 3, stop_ids=(), is_over=lambda i, ids: i == 1 and len(ids) == 2)
    assert list(map(len, answers)) == [5, 2, 5]


def test_a_timeline_goes_on_where_it_can() -> None:
    model, timeline = exact(untrained()), Timeline()
    first = greedy_answers(model, [PROMPTS[0]], [3], stop_ids=(), timelines=[timeline])[0]
    longer = [*PROMPTS[0], *first, 11, 12]
    state = timeline.state
    second = greedy_answers(model, [longer], [3], stop_ids=(), timelines=[timeline])[0]
    assert timeline.state is state
    assert second == by_hand(model, longer, 3)
    other = [*longer[:3], 77, *longer[3:], 13, 14, 15]
    assert greedy_answers(model, [other], [3], stop_ids=(), timelines=[timeline])[0] == by_hand(model, other, 3)
    assert timeline.state is not state


@pytest.mark.parametrize(("start", "prefill_tokens"), [(1, 100), (1, 7), (10, 7), (20, 7), (21, 9)])
def test_log_probabilities(start: int, prefill_tokens: int) -> None:
    model, ids = exact(untrained()), PROMPTS[2]
    log_p, likeliest = log_probabilities(model, ids, start=start, prefill_tokens=prefill_tokens)
    logits = model.logits(ids).double()
    rows = torch.arange(start - 1, len(ids) - 1)
    targets = torch.tensor(ids[start:], dtype=torch.int64)
    assert torch.equal(log_p, torch.log_softmax(logits, 1)[rows, targets])
    assert torch.equal(likeliest, logits[rows].argmax(1) == targets)


@given(st.integers(0, 300), st.integers(1, 300))
def test_an_interval_holds_the_shares_that_fit(num_right: int, num_more: int) -> None:
    """Its ends are where the distance to the found share is Z standard deviations: Wilson's definition."""
    share = Share(num_right=num_right, num_all=num_right + num_more)
    low, high = share.interval
    assert 0 <= low <= share.value <= high <= 1
    for end in (low, high):
        assert abs(share.value - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / share.num_all), abs=1e-12)


def test_an_interval_of_ten() -> None:
    assert Share(num_right=8, num_all=10).interval == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998
    assert Share(num_right=0, num_all=10).interval == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert Share(num_right=0, num_all=0).interval == (0.0, 1.0)


KNOBS: dict[str, dict[str, Any]] = {
    "kv": {"num_pairs": (4, 6), "target_tokens": (256, 256)},
    "needle": {"target_tokens": (300, 300)},
    "calc-tool": {},
    "store-tool": {},
    "quick": {},
    "greeting": {},
}


@pytest.mark.parametrize("name", KNOBS)
def test_who_knows_the_answers_is_right(name: str) -> None:
    samples = [exercise(name, seed, **KNOBS[name]) for seed in range(5)]
    parrot = Parrot.of(samples)
    attempts = run(parrot, samples)
    assert [attempt.grade.correct for attempt in attempts] == [True] * 5
    assert [attempt.sample for attempt in attempts] == samples
    num_calls = sum(len(turn.calls) for sample in samples for turn in sample.turns)
    assert sum((attempt.calls for attempt in attempts), start=Share(num_right=0, num_all=0)) == Share(
        num_right=num_calls, num_all=num_calls
    )
    assert (num_calls > 0) == name.endswith("tool")
    # Of each conversation every token was read once, but for a last one.
    assert parrot.num_read <= sum(len(encode(sample, tokenizer())[0]) for sample in samples)


def test_who_knows_some_answers_is_right_there() -> None:
    samples = [exercise("kv", seed, **KNOBS["kv"]) for seed in range(7)]
    attempts = run(Parrot.of(samples[2:5]), samples)
    assert [attempt.grade.correct for attempt in attempts] == [False, False, True, True, True, False, False]
    assert right(attempts) == Share(num_right=3, num_all=7)


def test_who_knows_the_answers_to_other_questions_is_wrong() -> None:
    samples = [exercise("calc-tool", seed) for seed in range(4)]
    attempts = run(Parrot([]), samples)
    assert right(attempts) == Share(num_right=0, num_all=4)
    assert all(attempt.calls.num_all == 0 for attempt in attempts)


def test_another_writer_gets_each_turn_and_its_answers_count() -> None:
    samples = [exercise("calc-tool", seed) for seed in range(4)]
    seen: list[str] = []

    def write(turns: Sequence[tuple[Sample, RenderedPrompt, int]]) -> list[list[int]]:
        seen.extend(sample.tools[0] for sample, _, _ in turns)
        prompts, limits = [prompt.token_ids for _, prompt, _ in turns], [limit for _, _, limit in turns]
        model, stop_ids = cast(Model, Parrot.of(samples[1:])), tokenizer().stop_ids
        return greedy_answers(model, prompts, limits, stop_ids=stop_ids)

    attempts = run(Parrot([]), samples, write=write)
    assert [attempt.grade.correct for attempt in attempts] == [False, True, True, True]
    assert set(seen) == {"calculator"}
    assert len(seen) > len(samples)  # a turn for the calls, one for the result


def test_an_answer_has_the_room_of_the_right_one_and_some() -> None:
    [sample] = [exercise("copy", 1, chat_share=0.0)]
    ids, weights = encode(sample, tokenizer(), answers_only=True)
    start = weights.index(1.0)
    rambling = [*ids[:start], *[70] * 500]
    parrot = Parrot([rambling])
    [attempt] = run(parrot, [sample])
    assert not attempt.grade.correct
    assert parrot.num_read == start + sum(weight > 0 for weight in weights) + exercises.SPARE_TOKENS - 1
    parrot = Parrot([rambling])
    run(parrot, [sample], answer_tokens=5)
    assert parrot.num_read == start + 4


def test_a_plain_text_is_over_after_a_line() -> None:
    sample = exercise("kv", 3, chat_share=0.0, **KNOBS["kv"])
    ids, _ = encode(sample, tokenizer())
    going_on = [*ids[:-1], *tokenizer().encode("\nand so on, and so on, and so on")]
    parrot = Parrot([going_on])
    [attempt] = run(parrot, [sample])
    assert attempt.grade.correct
    assert parrot.num_read <= len(ids)


def test_a_call_with_bad_arguments_is_counted() -> None:
    sample = exercise("calc-tool", 2)
    turns = tuple(
        dataclasses.replace(turn, calls=tuple(Call(name=c.name, arguments={"formula": "1"}) for c in turn.calls))
        for turn in sample.turns
    )
    [attempt] = run(Parrot.of([dataclasses.replace(sample, turns=turns)]), [sample])
    assert not attempt.grade.correct
    assert attempt.calls == Share(num_right=0, num_all=len(sample.turns[1].calls))


def test_a_call_that_is_never_closed_is_counted() -> None:
    sample = exercise("calc-tool", 2)
    ids, _ = encode(sample, tokenizer())
    answer = ids.index(tokenizer().encode_special(ASSISTANT))
    mark = ids.index(tokenizer().encode_special(DSML), answer)
    [attempt] = run(Parrot([[*ids[: mark + 1], tokenizer().eos_id]]), [sample])
    assert not attempt.grade.correct
    assert attempt.calls == Share(num_right=0, num_all=1)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("calculator", {"expression": "1+1"}, True),
        ("calculator", {"expression": 2}, False),
        ("calculator", {}, False),
        ("calculator", {"expression": "1", "more": "2"}, False),
        ("get", {"key": "a"}, False),
        ("other", {}, False),
    ],
)
def test_is_valid(name: str, arguments: dict[str, object], expected: bool) -> None:
    call = ToolCall(name=name, arguments=json.dumps(arguments), call_id="1")
    assert is_valid(call, ["calculator"]) == expected
    assert not is_valid(dataclasses.replace(call, arguments='{"expression": "1'), ["calculator"])


def test_exercises_are_held_out_and_short() -> None:
    def make(limit: int, seed: int = 0, name: str = "kv") -> list[Sample]:
        found = held_out_exercises(
            name, 6, tokenizer=tokenizer(), max_tokens=limit, seed=seed, haystack=None, glosses=None
        )
        return list(found)

    samples = make(300)
    assert samples == make(300)
    assert samples != make(300, seed=1)
    assert all(sample.held_out for sample in samples)
    assert max(len(encode(sample, tokenizer())[0]) for sample in samples) <= 300
    with pytest.raises(UsageError, match="task_tokens must be larger for the task store-tool"):
        make(128, name="store-tool")


def test_recall_counts_in_the_right_cell() -> None:
    grid = RecallConfig(lengths=(512, 256), depths=(1.0, 0.0), num_samples=3)
    cells = list(evaluation_grid(grid.lengths, grid.depths, grid.num_samples, grid.seed, tokenizer=tokenizer()))
    known = [cell.sample for cell in cells if (cell.length, cell.depth) in [(256, 1.0), (512, 0.0)]]
    known += [cell.sample for cell in cells if (cell.length, cell.depth, cell.index) == (512, 1.0, 2)]
    told: list[int] = []
    report = measure_recall(cast(Model, Parrot.of(known)), tokenizer(), grid, on_tokens=told.append)
    assert report.lengths == (256, 512)
    assert report.depths == (0.0, 1.0)
    assert report.num_right == ((0, 3), (3, 1))
    assert report.grid()["accuracy"] == [[0.0, 1.0], [1.0, 1 / 3]]
    assert sum(told) == grid.num_tokens == (256 + 512) * 2 * 3
    with pytest.raises(UsageError, match="lengths must be at most 300"):
        measure_recall(cast(Model, Parrot([], max_positions=300)), tokenizer(), grid)


def test_a_shared_start_is_read_once_and_changes_no_answer() -> None:
    model, start = exact(untrained()), [448, *range(60, 97)]
    prompts = [[*start, 7, 8, 9], [*start, 7, 9], [*start, 7], [*start, 7, 9, 8]]
    lines = read_together(model, prompts, prefill_tokens=16)
    assert [line.token_ids for line in lines] == [start] * 4
    answers = greedy_answers(model, prompts, [5] * 4, stop_ids=(), timelines=lines)
    assert answers == [by_hand(model, prompt, 5) for prompt in prompts]
    [alone] = read_together(model, prompts[:1])
    assert alone.token_ids == prompts[0][:-1]


def test_recall_of_shared_texts_counts_each_text_once() -> None:
    grid = RecallConfig(lengths=(256, 512), depths=(0.0, 1.0), num_samples=2, together=True)
    texts = shared_texts(grid.lengths, grid.depths, grid.num_samples, grid.seed, tokenizer=tokenizer())
    known = [cell.sample for cells in texts for cell in cells if (cell.length, cell.depth) == (512, 1.0)]
    told: list[int] = []
    report = measure_recall(cast(Model, Parrot.of(known)), tokenizer(), grid, on_tokens=told.append)
    assert report.num_right == ((0, 0), (0, 2))
    assert sum(told) == grid.num_tokens == (256 + 512) * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": ()}, "lengths must be a tuple"),
        ({"lengths": (64,)}, "lengths must be a whole number from 128 to 1048576, got 64"),
        ({"depths": (0.5, 1.5)}, "depths must be a number from 0 to 1, got 1.5"),
        ({"depths": (0.5, 0.5)}, "depths must hold no number twice"),
        ({"num_samples": 0}, "num_samples must be a whole number from 1"),
    ],
)
def test_a_bad_grid_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RecallConfig(**changes)
