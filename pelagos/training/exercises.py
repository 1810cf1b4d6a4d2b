"""Synthetic tasks as a test: exercises from the held-out side, answered by the model, graded by exact match.

The model answers greedily, by exact inference. Conversations are really held: it gets the history that its own turns
and calls have led to, and tools are run.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from pelagos.chat.parse import OutputParser, ParsedMessage, ToolCall
from pelagos.chat.render import RenderedPrompt
from pelagos.chat.tokenizer import DSML, Tokenizer
from pelagos.common.errors import ConfigError, UsageError
from pelagos.model.transformer import Model
from pelagos.training.answers import Timeline, greedy_answers, read_together
from pelagos.training.evaluation import Share
from pelagos.training.task_documents import TASK_MIXES
from pelagos.training.tasks import TASKS, Episode, Grade, Knobs, Sample, TextSource, encode, grade, last_prompt
from pelagos.training.tasks.tools import SCHEMAS

# Answers to the prompts of a turn, in their order: token ids, the stop token last where there was one. Given are the
# sample, the prompt and the most tokens of each.
Writer = Callable[[Sequence[tuple[Sample, RenderedPrompt, int]]], Sequence[list[int]]]

MAX_TRIES = 500  # exercises drawn until one is short enough
SPARE_TOKENS = 32  # that an answer may be longer than the sample's own


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of an exercise. calls: how many tool calls were begun, and how many of them parse and have the
    arguments that their tool asks for."""

    sample: Sample
    grade: Grade
    calls: Share


def held_out_exercises(
    name: str,
    num_samples: int,
    *,
    tokenizer: Tokenizer,
    max_tokens: int,
    seed: int,
    haystack: TextSource | None,
    glosses: TextSource | None,
) -> Iterator[Sample]:
    """Exercises of the test side as hard as those of pre-training, of at most ``max_tokens``, 32 or more, with their
    answers.

    Raises UsageError if the task makes nothing so short.
    """
    task, knobs = TASKS[name], _knobs(name, max_tokens)
    for index in range(num_samples):
        for attempt in range(MAX_TRIES):
            rng = random.Random(f"{seed} {name} {index} {attempt}")
            try:
                sample = task.make(rng, knobs, tokenizer=tokenizer, held_out=True, haystack=haystack, glosses=glosses)
            except ConfigError:  # its length was drawn too short for the rest of what was drawn
                continue
            if len(encode(sample, tokenizer)[0]) <= max_tokens:
                yield sample
                break
        else:
            raise UsageError(f"task_tokens must be larger for the task {name}: it makes nothing of {max_tokens} tokens")


def _knobs(name: str, max_tokens: int) -> Knobs:
    """Those of pre-training, with the target length no more than ``max_tokens``: to a task without filler a limit."""
    known = {share.task: share.knobs for mix in TASK_MIXES.values() for share in mix.shares}
    knobs = known.get(name) or TASKS[name].knobs()
    if not TASKS[name].fills:
        return dataclasses.replace(knobs, target_tokens=(max_tokens, max_tokens))
    if knobs.target_tokens is None:
        return knobs
    low, high = (min(end, max_tokens) for end in knobs.target_tokens)
    return dataclasses.replace(knobs, target_tokens=(low, high))


def attempt_all(
    model: Model,
    tokenizer: Tokenizer,
    samples: Iterable[Sample],
    *,
    side_by_side: int,
    answer_tokens: int,
    share_start: bool = False,
    write: Writer | None = None,
    on_done: Callable[[int], None] = lambda num_done: None,
) -> Iterator[Attempt]:
    """Let the model answer each sample, ``side_by_side`` at once, each turn with at most ``answer_tokens``, and no more
    than the sample's own answers take and some to spare. ``share_start``: what prompts that are answered at once have
    in common is read once. ``on_done`` gets the number of new attempts.
    """
    waiting = iter(samples)
    while group := [_Run(sample, tokenizer, answer_tokens) for sample in islice(waiting, side_by_side)]:
        if share_start:
            prompts = [run.prompt.token_ids for run in group if run.prompt is not None]
            for run, timeline in zip(group, read_together(model, prompts), strict=True):
                run.timeline = timeline
        while running := [run for run in group if run.prompt is not None]:
            _next_turns(model, tokenizer, running, write)
        on_done(len(group))
        for run in group:
            assert run.grade is not None
            yield Attempt(sample=run.sample, grade=run.grade, calls=run.calls)


def _next_turns(model: Model, tokenizer: Tokenizer, runs: "Sequence[_Run]", write: Writer | None) -> None:
    if write is not None:
        given = [(run.sample, run.prompt, run.max_tokens) for run in runs if run.prompt is not None]
        for run, answer in zip(runs, write(given), strict=True):
            run.take(answer)
        return
    answers = greedy_answers(
        model,
        [run.prompt.token_ids for run in runs if run.prompt is not None],
        [run.max_tokens for run in runs],
        stop_ids=tokenizer.stop_ids | set(model.config.eos_ids),
        timelines=[run.timeline for run in runs],
        is_over=lambda i, answer: runs[i].is_over(answer),
    )
    for run, answer in zip(runs, answers, strict=True):
        run.take(answer)


class _Run:
    """A sample on its way from the first prompt to its grade. ``prompt`` is None when it is over."""

    def __init__(self, sample: Sample, tokenizer: Tokenizer, answer_tokens: int) -> None:
        self.sample, self._tokenizer = sample, tokenizer
        self.timeline = Timeline()
        _, weights = encode(sample, tokenizer, answers_only=True)
        self.max_tokens = min(answer_tokens, SPARE_TOKENS + sum(weight > 0 for weight in weights))
        self.grade: Grade | None = None
        self.calls = Share(num_right=0, num_all=0)
        self._episode = Episode(sample) if sample.kind == "chat" and sample.quick is None else None
        self.prompt: RenderedPrompt | None = (
            last_prompt(sample, tokenizer) if self._episode is None else self._episode.prompt(tokenizer)
        )

    def is_over(self, answer: list[int]) -> bool:
        """Of a plain text the first line counts."""
        return self.sample.kind == "text" and "\n" in self._tokenizer.decode(answer).lstrip()

    def take(self, answer: list[int]) -> None:
        """The model's answer to ``prompt``."""
        assert self.prompt is not None
        stopped = bool(answer) and answer[-1] in self._tokenizer.stop_ids
        if self._episode is None:
            text = self._tokenizer.decode(answer[:-1] if stopped else answer)
            self.grade, self.prompt = grade(self.sample, text), None
            return
        parser = OutputParser.for_prompt(self.prompt, self._tokenizer)
        message = parser.parse(answer, "stop" if stopped else "length")
        self.calls = self._counted(message, answer)
        self._episode.reply(message)
        if self._episode.finished:
            self.grade, self.prompt = self._episode.grade(), None
        else:
            self.prompt = self._episode.prompt(self._tokenizer)

    def _counted(self, message: ParsedMessage, answer: list[int]) -> Share:
        """The calls so far. A turn that has the mark of calls and none that could be read counts as one bad call."""
        num_right = sum(is_valid(call, self.sample.tools) for call in message.tool_calls)
        begun = self._tokenizer.encode_special(DSML) in answer and bool(self.sample.tools)
        num_all = max(len(message.tool_calls), int(begun))
        return Share(num_right=self.calls.num_right + num_right, num_all=self.calls.num_all + num_all)


def is_valid(call: ToolCall, tools: Sequence[str]) -> bool:
    """Whether a call is of one of ``tools``, with exactly the arguments that its schema requires, of their types."""
    if call.name not in tools or not call.complete:
        return False
    given = json.loads(call.arguments)
    wanted = SCHEMAS[call.name]["function"]["parameters"]["required"]  # all are text
    return sorted(given) == sorted(wanted) and all(isinstance(value, str) for value in given.values())


def right(attempts: Iterable[Attempt]) -> Share:
    """How many of them were answered right."""
    grades = [attempt.grade.correct for attempt in attempts]
    return Share(num_right=sum(grades), num_all=len(grades))
