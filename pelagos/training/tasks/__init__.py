"""Synthetic tasks: exercises with one right answer, made by dice, for pre-training, SFT, RL and evaluation alike.

    sample = TASKS["needle"].make(random.Random(1), tokenizer=tokenizer)      one exercise, JSON both ways
    token_ids, loss_weights = encode(sample, tokenizer)                       to learn from
    prompt = last_prompt(sample, tokenizer)                                   to answer; Episode(sample) over turns
    grade(sample, output).correct                                             right or wrong

One file per family of tasks; ``item`` is what such a file makes, ``task`` and ``compose`` bring it into its form and to
its length, ``words`` holds the split between training and test set.
"""

from pelagos.training.tasks.catalog import TASKS, TaskMix, TaskShare
from pelagos.training.tasks.encoding import encode, last_prompt
from pelagos.training.tasks.episode import Episode
from pelagos.training.tasks.grading import Grade, grade
from pelagos.training.tasks.grid import GridSample, evaluation_grid, shared_texts
from pelagos.training.tasks.item import TextSource
from pelagos.training.tasks.knobs import Knobs
from pelagos.training.tasks.sample import Call, Sample, Segment, Turn
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.tools import run_tool
from pelagos.training.tasks.words import is_held_out

__all__ = [
    "TASKS",
    "Call",
    "Episode",
    "Grade",
    "GridSample",
    "Knobs",
    "Sample",
    "Segment",
    "Task",
    "TaskMix",
    "TaskShare",
    "TextSource",
    "Turn",
    "encode",
    "evaluation_grid",
    "grade",
    "is_held_out",
    "last_prompt",
    "run_tool",
    "shared_texts",
]
