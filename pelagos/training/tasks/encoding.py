"""Samples to token ids with loss weights, and to the prompts that a model answers: what serving sees, to the token.

Conversations go through the official renderer. It gives a prompt: the history and the mark of the next assistant turn.
That makes the ids of a whole conversation too:

- with tools a history keeps all reasoning, so the whole conversation rendered as history, without the two marks of
  the turn that would follow, is the text to learn from, end mark included;
- without tools a history loses its reasoning, so the last turn is rendered as one to be continued (``prefix``), and
  the end mark put behind it.

A turn is learned if it starts with the mark that its prompt ends in; in a thinking conversation without tools that is
the last one alone.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

from pelagos.chat.effort import WORDS, EffortLevels, Level, save_effort_levels
from pelagos.chat.render import RenderedPrompt, render
from pelagos.chat.tokenizer import ASSISTANT, THINK_END, THINK_START, USER, Tokenizer
from pelagos.common.files import write_atomic
from pelagos.training.tasks.sample import Sample, Segment
from pelagos.training.tasks.tools import SCHEMAS

EFFORT: Level = "low"  # the level whose prompt has no text about effort
NUM_TURN_MARKS = 2  # a prompt ends in the assistant's mark and a think mark


def write_usage(folder: Path) -> None:
    """Write beside a tokenizer how a model trained on these samples is to be asked: its prompts have seen no text about
    effort, whatever the word, and its tasks have one right answer."""
    levels: dict[str, Level] = {word: "none" if word == "none" else EFFORT for word in WORDS}
    save_effort_levels(EffortLevels(levels=levels), folder)
    write_atomic(folder / "generation_config.json", json.dumps({"temperature": 0.0}) + "\n")


def encode(sample: Sample, tokenizer: Tokenizer, *, answers_only: bool = False) -> tuple[list[int], list[float]]:
    """Token ids from the start mark to the end mark, and for each the loss weight of predicting it.

    An answer's tokens have weight 1: in a conversation the assistant's reasoning, calls, content and end mark. Other
    text has the weight of its segment, with ``answers_only`` 0; a token across two segments has that of the first.
    What the prompt format adds has weight 0.
    """
    if answers_only:
        sample = _without_other_weights(sample)
    return _encode_text(sample, tokenizer) if sample.kind == "text" else _encode_chat(sample, tokenizer)


def last_prompt(sample: Sample, tokenizer: Tokenizer) -> RenderedPrompt:
    """The prompt that ``sample.answer`` follows, with all turns and answers before it as the sample has them."""
    if sample.kind == "text":
        last = max(i for i, segment in enumerate(sample.segments) if segment.answer)
        before = dataclasses.replace(sample, segments=sample.segments[:last])
        text = "".join(segment.text for segment in before.segments)
        ids = _encode_text(before, tokenizer)[0][:-1]
        return RenderedPrompt(token_ids=ids, text=text, thinking=False, tools=False, continues=None)
    if sample.quick is None:
        return render_history(sample, sample.messages[:-1], tokenizer)
    history = render_history(sample, sample.messages, tokenizer)
    return dataclasses.replace(
        history,
        token_ids=[*history.token_ids[:-NUM_TURN_MARKS], tokenizer.encode_special(sample.quick)],
        text=history.text.removesuffix(ASSISTANT + THINK_END) + sample.quick,
    )


def render_history(sample: Sample, messages: Sequence[Mapping[str, Any]], tokenizer: Tokenizer) -> RenderedPrompt:
    """The prompt for the next assistant turn after ``messages``, with the tools and the thinking of ``sample``."""
    tools = [SCHEMAS[name] for name in sample.tools]
    return render(messages, tokenizer, tools=tools or None, thinking=sample.thinking, effort=EFFORT)


def _encode_text(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    """Answers are encoded apart from what stands before them, which is how a model writes them."""
    ids, weights = [tokenizer.bos_id], [0.0]
    for _, group in groupby(sample.segments, key=lambda segment: segment.answer):
        segments = list(group)
        part = tokenizer.encode("".join(segment.text for segment in segments))
        ids += part
        weights += _spread(part, segments, tokenizer)
    return [*ids, tokenizer.eos_id], [*weights, weights[-1]]


def _encode_chat(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], list[float]]:
    ids = _conversation(sample, tokenizer)
    weights = [0.0] * len(ids)
    marks = {tokenizer.encode_special(USER), tokenizer.encode_special(ASSISTANT)}
    places = [place for place, token_id in enumerate(ids) if token_id in marks]
    think_mark = tokenizer.encode_special(THINK_START if sample.thinking else THINK_END)
    turns = [next(group) for _, group in groupby(sample.turns, key=lambda turn: turn.role)]  # tool results share a mark
    for turn, (start, end) in zip(turns, pairwise([*places, len(ids)]), strict=True):
        if turn.role == "user":
            weights[start + 1 : end] = _spread(ids[start + 1 : end], turn.segments, tokenizer)
        elif turn.role == "assistant" and ids[start + 1] == think_mark and sample.quick is None:
            weights[start + NUM_TURN_MARKS : end] = [1.0] * (end - start - NUM_TURN_MARKS)
    if sample.quick is not None:
        answer = [*tokenizer.encode(sample.answer), tokenizer.eos_id]
        ids += [tokenizer.encode_special(sample.quick), *answer]
        weights += [0.0, *[1.0] * len(answer)]
    return ids, weights


def _conversation(sample: Sample, tokenizer: Tokenizer) -> list[int]:
    """All turns, as the text above says."""
    messages = sample.messages
    if sample.tools or sample.quick is not None:
        return render_history(sample, messages, tokenizer).token_ids[:-NUM_TURN_MARKS]
    messages[-1]["prefix"] = True
    return [*render_history(sample, messages, tokenizer).token_ids, tokenizer.eos_id]


def _spread(ids: Sequence[int], segments: Iterable[Segment], tokenizer: Tokenizer) -> list[float]:
    """The weight of each token: that of the segment in which its first byte lies."""
    weights: list[float] = []
    place = end = 0  # in bytes
    for segment in segments:
        end += len(segment.text.encode())
        while place < end and len(weights) < len(ids):
            place += len(tokenizer.token_bytes(ids[len(weights)]))
            weights.append(segment.weight)
    assert place == end, "tokens and segments are not of the same text"
    return weights


def _without_other_weights(sample: Sample) -> Sample:
    def strip(segments: Sequence[Segment]) -> tuple[Segment, ...]:
        return tuple(s if s.answer else dataclasses.replace(s, weight=0.0) for s in segments)

    turns = tuple(dataclasses.replace(turn, segments=strip(turn.segments)) for turn in sample.turns)
    return dataclasses.replace(sample, segments=strip(sample.segments), turns=turns)
