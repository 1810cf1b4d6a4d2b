"""Graders: what is right is accepted, what is changed is not; conversations with a model that plays along, or not."""

import dataclasses
import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from task_cases import make, official, samples

from pelagos.chat.parse import OutputParser, ParsedMessage, ToolCall
from pelagos.training.tasks import TASKS, Episode, Sample, encode, grade, last_prompt
from pelagos.training.tasks.grading import expected_calls

TOOL_TASKS = ["calc-tool", "store-tool"]
PLAIN = [name for name in TASKS if name not in TOOL_TASKS]


def mutations(answer: str, rng: random.Random) -> list[str]:
    """Answers that are wrong: cut, longer, one letter or digit other, words in another order."""
    wrong = ["", answer[:-1], answer[1:], answer + "x", "x" + answer, answer + " " + answer, answer[::-1]]
    place = rng.randrange(len(answer))
    wrong.append(answer[:place] + ("7" if answer[place] != "7" else "8") + answer[place + 1 :])
    wrong.append(" ".join(reversed(answer.split())))
    return [text for text in wrong if text.strip() != answer]


@pytest.mark.parametrize("name", PLAIN)
def test_right_is_right_and_wrong_is_wrong(name: str) -> None:
    rng = random.Random(0)
    for sample in samples(name, 40, thinking_share=0.5):
        assert grade(sample, sample.answer).correct
        assert grade(sample, f" {sample.answer}\n").correct
        assert grade(sample, sample.answer).parts == {"answer": True}
        for wrong in mutations(sample.answer, rng):
            if name == "code-recall" and wrong.replace(" ", "") == sample.answer.replace(" ", ""):
                continue
            assert not grade(sample, wrong).correct, (sample.answer, wrong)
            assert grade(sample, wrong).parts == {"answer": False}


@pytest.mark.parametrize("name", PLAIN)
def test_another_samples_answer_is_wrong(name: str) -> None:
    made = list(samples(name, 30))
    for one in made:
        for other in made:
            assert grade(one, other.answer).correct == (one.answer == other.answer) or name == "dict"


@pytest.mark.parametrize("name", PLAIN)
def test_the_parsed_answer_is_graded(name: str) -> None:
    for sample in samples(name, 6, thinking_share=0.5):
        prompt = last_prompt(sample, official())
        ids, _ = encode(sample, official())
        message = OutputParser.for_prompt(prompt, official()).parse(ids[len(prompt.token_ids) :])
        assert grade(sample, message).correct
        assert not grade(sample, dataclasses.replace(message, content="x" + message.content)).correct


def test_text_goes_on_after_the_answer() -> None:
    sample = make("kv", 5, chat_share=0)
    assert grade(sample, f" {sample.answer}\nQuestion: what next?\nAnswer: no idea").correct
    chat = make("kv", 5, chat_share=1)
    assert not grade(chat, f"{chat.answer}\nQuestion: what next?").correct


def test_the_start_of_a_gloss_may_be_longer_but_not_other() -> None:
    sample = make("dict", 3)
    words = sample.metadata["full"].split()
    num_asked = len(sample.answer.split())
    assert num_asked < len(words)
    assert grade(sample, " ".join(words[: num_asked + 1])).correct
    assert grade(sample, " ".join(words)).correct
    assert not grade(sample, " ".join(words[: num_asked - 1])).correct
    assert not grade(sample, " ".join([*words[:num_asked], "sand"])).correct
    assert not grade(sample, " ".join([*words, "sand"])).correct


def test_spaces_in_code_do_not_count_but_order_does() -> None:
    sample = make("code-recall", 3)
    assert grade(sample, sample.answer.replace(", ", ",").replace("(", " ( ")).correct
    name, arguments = sample.answer.removesuffix(")").split("(")
    values = arguments.split(", ")
    assert len(set(values)) > 1
    assert not grade(sample, f"{name}({', '.join([*values[1:], values[0]])})").correct
    assert not grade(sample, f"{name}({arguments}, 1)").correct


def play(sample: Sample, change: Callable[[int, Sample], dict[str, Any]] | None = None) -> Episode:
    """Run an episode with a model that says what the sample's assistant says, but for what ``change`` gives."""
    episode = Episode(sample)
    turns = [turn for turn in sample.turns if turn.role == "assistant"]
    for position, turn in enumerate(turns):
        prompt = episode.prompt(official())
        assert prompt.tools == bool(sample.tools)
        said = {
            "content": turn.text,
            "tool_calls": tuple(
                ToolCall(name=call.name, arguments=json.dumps(call.arguments), call_id=f"id_{position}_{i}")
                for i, call in enumerate(turn.calls)
            ),
            **(change(position, sample) if change else {}),
        }
        episode.reply(
            ParsedMessage(reasoning=turn.reasoning, finish_reason="stop", num_tokens=1, num_reasoning_tokens=0, **said)
        )
        if episode.finished:
            break
    return episode


@pytest.mark.parametrize("name", [name for name in TASKS if name != "quick"])
def test_episode_of_a_perfect_model(name: str) -> None:
    for sample in samples(name, 12, chat_share=1, thinking_share=0.5):
        episode = play(sample)
        assert episode.finished
        result = episode.grade()
        assert result.correct
        assert all(result.parts.values())
        # The tools that were run gave what the sample has, so the conversation is the sample's, call ids aside.
        ids = encode(sample, official())[0]
        assert episode.prompt(official()).token_ids[:-2] == ids or not sample.tools


def wrong_call(position: int, sample: Sample) -> dict[str, Any]:
    """The first call with another value."""
    if position > 0:
        return {}
    call = expected_calls(sample)[0]
    arguments = {key: value + "0" for key, value in call.arguments.items()}
    return {"tool_calls": (ToolCall(name=call.name, arguments=json.dumps(arguments), call_id="c"),)}


def broken_call(position: int, sample: Sample) -> dict[str, Any]:
    return {"tool_calls": (ToolCall(name="calculator", arguments='{"expression": "1', call_id="c"),)}


def unknown_tool(position: int, sample: Sample) -> dict[str, Any]:
    return {"tool_calls": (ToolCall(name="rm", arguments="{}", call_id="c"),)}


def no_call(position: int, sample: Sample) -> dict[str, Any]:
    return {"content": sample.answer, "tool_calls": ()}


def silence(position: int, sample: Sample) -> dict[str, Any]:
    return {"content": "", "tool_calls": ()}


def wrong_answer(position: int, sample: Sample) -> dict[str, Any]:
    last = sum(turn.role == "assistant" for turn in sample.turns) - 1
    return {"content": "12345678901"} if position == last else {}


@pytest.mark.parametrize("change", [wrong_call, broken_call, unknown_tool, silence, wrong_answer, no_call])
@pytest.mark.parametrize("thinking", [0.0, 1.0])
def test_calculator_episodes_that_go_wrong(change: Callable[[int, Sample], dict[str, Any]], thinking: float) -> None:
    for sample in samples("calc-tool", 8, thinking_share=thinking):
        episode = play(sample, change)
        while not episode.finished:  # calls for ever
            episode.reply(
                ParsedMessage(
                    reasoning=None,
                    content="",
                    tool_calls=unknown_tool(0, sample)["tool_calls"],
                    finish_reason="tool_calls",
                    num_tokens=1,
                    num_reasoning_tokens=0,
                )
            )
        result = episode.grade()
        assert not result.correct
        assert result.parts["answer"] == (change in (wrong_call, no_call))
        assert result.parts["calls"] == (change is wrong_answer)


def test_a_store_episode_is_decided_by_the_final_answer() -> None:
    found = 0
    for sample in samples("store-tool", 60, missing_share=0.0, num_turns=(2, 2)):
        assert play(sample).grade().correct
        other = play(sample, wrong_call)  # the store really holds the other value, or another key
        assert other.finished
        result = other.grade()
        assert not result.parts["calls"]
        assert result.correct == result.parts["answer"] == (other.messages[-1]["content"] == sample.answer)
        lookups = [message["content"] for message in other.messages if message["role"] == "tool"]
        found += lookups[-1] != sample.answer
        assert not play(sample, wrong_answer).grade().correct
        assert not play(sample, silence).grade().correct
    assert found == 60


def test_a_model_that_answers_too_early_has_not_finished_the_conversation() -> None:
    sample = next(s for s in samples("store-tool", 20, num_turns=(4, 4)))
    episode = Episode(sample)
    for _ in range(4):
        assert not episode.finished
        episode.reply(
            ParsedMessage(
                reasoning=None,
                content=sample.answer,
                tool_calls=(),
                finish_reason="stop",
                num_tokens=1,
                num_reasoning_tokens=0,
            )
        )
    assert episode.finished, "one reply to each of the four questions"
    assert episode.grade().parts == {"answer": True, "calls": False, "finished": True}


def test_a_transcript_that_ends_in_a_call_has_no_answer() -> None:
    sample = make("calc-tool", 2)
    assert grade(sample, sample.messages).correct
    assert not grade(sample, sample.messages[:-2]).parts["answer"]
    assert grade(sample, sample.answer).parts == {"calls": False, "answer": True}
    assert not grade(sample, []).correct
