"""Conversations of some turns: what was told earlier is there when it is asked for, with thinking as without."""

import random

import pytest
from task_cases import official, samples

from pelagos.chat.tokenizer import THINK_END
from pelagos.training.tasks import TASKS, Sample, encode, last_prompt
from pelagos.training.tasks.greeting import REPLIES
from pelagos.training.tasks.item import UNKNOWN
from pelagos.training.tasks.talk import BEYOND, DECLINED, NO_CALCULATOR

FIXED = {*REPLIES.values(), UNKNOWN, DECLINED, NO_CALCULATOR}


def talks(number: int, *, thinking: float, held_out: bool = False) -> list[Sample]:
    return list(samples("talk", number, held_out=held_out, thinking_share=thinking))


def texts(sample: Sample, role: str) -> list[str]:
    return [turn.text for turn in sample.turns if turn.role == role]


@pytest.mark.parametrize("thinking", [0.0, 1.0])
def test_what_is_asked_for_was_told(thinking: float) -> None:
    """In the same message or in one before: the earlier turns stay also where the last alone is learned."""
    looked_up = 0
    for sample in talks(200, thinking=thinking):
        assert sample.thinking == bool(thinking)
        if sample.answer in FIXED or sample.answer.startswith("Hello, "):
            continue
        looked_up += 1
        subject, value = sample.metadata["keys"]
        told = texts(sample, "user")
        assert any(subject in text and value in text for text in told)
        assert sample.answer.endswith(value)
        assert subject in sample.answer
        assert subject in told[-1]
    assert looked_up > 60


def test_later_turns_ask_for_earlier_ones() -> None:
    later = [s for s in talks(200, thinking=1.0) if len(s.turns) > 2 and len(s.metadata["keys"]) == 2]
    earlier = [s for s in later if s.metadata["keys"][1] not in texts(s, "user")[-1]]
    assert len(earlier) > 20


def test_thinking_learns_the_last_turn_alone_and_the_prompt_holds_the_others() -> None:
    sample = next(s for s in talks(50, thinking=1.0) if len(s.turns) >= 6)
    ids, weights = encode(sample, official())
    learned = official().decode([token_id for token_id, weight in zip(ids, weights, strict=True) if weight == 1.0])
    assert learned.startswith(f"{sample.turns[-1].reasoning}{THINK_END}{sample.answer}")
    assert all(text in last_prompt(sample, official()).text for text in texts(sample, "assistant")[:-1])
    assert sample.turns[1].reasoning not in last_prompt(sample, official()).text


def test_nothing_is_known_of_what_was_not_told() -> None:
    unknown = [s for s in talks(300, thinking=0.5) if s.answer == UNKNOWN]
    assert unknown
    for sample in unknown:
        [subject] = sample.metadata["keys"]
        assert not any(f"- {subject}:" in text for text in texts(sample, "user"))


@pytest.mark.usefixtures("plain_wording")
@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_declined_is_worded_by_its_side(held_out: bool) -> None:
    starts = {text.split("{")[0] for text in (BEYOND.held_out if held_out else BEYOND.training)}
    declined = [
        asked
        for sample in talks(200, thinking=0.0, held_out=held_out)
        for asked, answer in zip(texts(sample, "user"), texts(sample, "assistant"), strict=True)
        if answer == DECLINED
    ]
    assert len(declined) > 20
    assert all(any(start in asked or start.lower() in asked for start in starts) for asked in declined)


def test_a_limit_is_kept() -> None:
    for seed in range(40):
        sample = TASKS["talk"].make(
            random.Random(seed), TASKS["talk"].knobs(target_tokens=(96, 96), num_turns=(1, 2)), tokenizer=official()
        )
        assert len(encode(sample, official())[0]) <= 96
