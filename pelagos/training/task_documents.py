"""Synthetic tasks as a loader's sources: every number an exercise, fitted to the rows it is for."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError, UsageError
from pelagos.training.documents import TokenDocuments, random_key
from pelagos.training.packing import Document
from pelagos.training.tasks import TASKS, Knobs, TaskMix, TaskShare, TextSource, encode
from pelagos.training.tasks.knobs import MAX_TOKENS

MAX_TRIES = 500  # exercises drawn, one after the other, until one fits into a row
NUM_PROBES, MIN_FITTING = 32, 4  # a task is for rows of a length if so many of so many exercises fit
PASSAGE_TOKENS = 1024
UP_TO_A_ROW = (64, MAX_TOKENS)  # as target length: any, up to that of the rows


def _mix(shares: Mapping[str, float], **knobs: Any) -> TaskMix:
    return TaskMix(
        shares=tuple(
            TaskShare(task=name, share=share, knobs=TASKS[name].knobs(**knobs)) for name, share in shares.items()
        )
    )


# Short pairs with many questions: much of such a text is answers.
DENSE_PAIRS = {"key_words": (1, 1), "value_words": (1, 2), "chat_share": 0.6, "thinking_share": 0.0}
TALKING = {"chat_share": 1.0, "thinking_share": 0.7}
FEW_PAIRS = DENSE_PAIRS | {"num_pairs": (2, 12), "num_queries": (4, 12)}
MORE_PAIRS = DENSE_PAIRS | {"num_pairs": (2, 16), "num_queries": (4, 16), "target_tokens": UP_TO_A_ROW}

# What pre-training takes. lists: short and without filler, so that looking things up is learned early; recall: at every
# depth and length; chat: the formats of conversations and tools.
# talk: turns that follow each other, and thinking everywhere. The last mix that has a task says how hard its exercises
# are where a model is measured.
TASK_MIXES: dict[str, TaskMix] = {
    "talk": TaskMix(
        shares=(
            *_mix({"talk": 5}, thinking_share=0.6).shares,
            *_mix({"kv": 1}, **MORE_PAIRS | TALKING).shares,
            *_mix({"needle": 1}, target_tokens=UP_TO_A_ROW, **TALKING).shares,
            *_mix({"reading": 0.5, "unknown": 0.3}, **TALKING).shares,
            *_mix({"calc-tool": 0.7, "store-tool": 0.7}, thinking_share=0.7).shares,
        )
    ),
    "lists": TaskMix(
        shares=(
            *_mix({"kv": 3}, **FEW_PAIRS).shares,
            *_mix({"kv": 3}, **FEW_PAIRS, spelled_share=0.7).shares,
            *_mix({"needle": 3}, chat_share=0.7, thinking_share=0.0).shares,
            *_mix({"copy": 1}).shares,
        )
    ),
    "recall": TaskMix(
        shares=(
            *_mix({"kv": 4}, **MORE_PAIRS).shares,
            *_mix({"kv": 3}, **MORE_PAIRS, spelled_share=0.7).shares,
            *_mix(
                {"kv": 2, "needle": 5, "last-wins": 1, "chain": 1, "dict": 1, "code-recall": 1, "list-index": 1}
                | {"copy": 2, "reverse": 0.5, "count": 0.5},
                target_tokens=UP_TO_A_ROW,
            ).shares,
        )
    ),
    # Shares are of tokens: where an exercise takes 30, as these at the end do, a large share would drown all else.
    "chat": TaskMix(
        shares=(
            *_mix({"calc-tool": 2}, num_questions=(2, 6), thinking_share=0.15).shares,
            *_mix({"store-tool": 3}, num_turns=(3, 8), thinking_share=0.15).shares,
            *_mix({"calc-tool": 0.5, "store-tool": 0.5}, thinking_share=0.15).shares,
            *_mix({"reading": 2, "unknown": 0.3, "quick": 0.4, "greeting": 0.4}).shares,
        )
    ),
}


class TaskSource:
    """Exercises of one task, none of its test set.

    The target length of the knobs goes no further than the row. An exercise that is longer is drawn again; ``fits``
    says whether that is likely to end.
    """

    num_documents: int | None = None

    def __init__(
        self,
        name: str,
        group: str,
        share: TaskShare,
        tokenizer: Tokenizer,
        *,
        seed: int,
        haystack: TextSource | None = None,
        glosses: TextSource | None = None,
    ) -> None:
        self.name, self.group, self.size = name, group, share.share
        self.fingerprint = f"task {share.task}, seed {seed}, {share.knobs}"
        self._task, self._knobs = TASKS[share.task], share.knobs
        self._tokenizer, self._seed = tokenizer, seed
        self._haystack, self._glosses = haystack, glosses
        self._fits: dict[int, bool] = {}  # by row length

    def fits(self, row_length: int) -> bool:
        """Whether at least one of eight exercises is no longer than a row; measured, the same for the same seed."""
        if row_length not in self._fits:
            keys = (random_key(self._seed, "probe", self.name, number) for number in range(NUM_PROBES))
            fitting = (key for key in keys if self._draw(key, row_length))
            self._fits[row_length] = len(list(islice(fitting, MIN_FITTING))) == MIN_FITTING
        return self._fits[row_length]

    def document(self, number: int, row_length: int) -> Document:
        """Raises UsageError if exercises are always longer than a row."""
        for attempt in range(MAX_TRIES):
            key = random_key(self._seed, "task", self.name, number, attempt)
            if exercise := self._draw(key, row_length):
                return exercise
        raise UsageError(
            f"the task {self._task.name} makes nothing that fits into rows of {row_length} tokens: "
            f"make its knobs smaller, or leave it out of the mixture while rows are so short"
        )

    def _draw(self, key: int, row_length: int) -> Document | None:
        """An exercise; None if it is longer than a row."""
        try:
            knobs = _limited(self._knobs, row_length, fills=self._task.fills)
            sample = self._task.make(
                random.Random(key),
                knobs,
                tokenizer=self._tokenizer,
                haystack=self._haystack,
                glosses=self._glosses,
            )
        except ConfigError:  # no target so short, or the one drawn is too short for the rest that was drawn
            return None
        token_ids, loss_weights = encode(sample, self._tokenizer)
        if len(token_ids) > row_length:
            return None
        return Document(
            token_ids=np.array(token_ids, dtype=np.int64), loss_weights=np.array(loss_weights, dtype=np.float32)
        )


def _limited(knobs: Knobs, row_length: int, *, fills: bool) -> Knobs:
    """Knobs whose target, if they have one, is no longer than a row. To a task without filler it is a limit alone."""
    if not fills:
        return dataclasses.replace(knobs, target_tokens=(row_length, row_length))
    if knobs.target_tokens is None:
        return knobs
    low, high = (min(end, row_length) for end in knobs.target_tokens)
    return dataclasses.replace(knobs, target_tokens=(low, high))


def task_sources(
    group: str,
    mix: TaskMix,
    tokenizer: Tokenizer,
    *,
    seed: int,
    haystack: TextSource | None = None,
    glosses: TextSource | None = None,
) -> list[TaskSource]:
    """A source for each task of a mix, named after group, task and place in the mix. Shares count tokens, not
    exercises."""
    return [
        TaskSource(
            f"{group}:{share.task}:{place}", group, share, tokenizer, seed=seed, haystack=haystack, glosses=glosses
        )
        for place, share in enumerate(mix.shares)
        if share.share > 0
    ]


class Passages:
    """Random pieces of real text: ``passages(rng)`` for a haystack, ``passages.line(rng)`` for a glossary."""

    def __init__(
        self, sources: Sequence[TokenDocuments], tokenizer: Tokenizer, max_tokens: int = PASSAGE_TOKENS
    ) -> None:
        assert any(source.num_tokens for source in sources), "there must be text"
        self._sources, self._tokenizer, self._max_tokens = sources, tokenizer, max_tokens
        self._sizes = [source.num_tokens for source in sources]

    def __call__(self, rng: random.Random) -> str:
        """At most ``max_tokens`` of a document; a source comes up in proportion to its size. May be empty."""
        [source] = rng.choices(self._sources, weights=self._sizes)
        token_ids = source.document(rng.randrange(source.num_documents))
        start = rng.randrange(max(1, len(token_ids) - self._max_tokens + 1))
        passage = token_ids[start : start + self._max_tokens].tolist()
        return self._tokenizer.decode_bytes(passage).decode("utf-8", errors="ignore")

    def line(self, rng: random.Random) -> str:
        """A line of a passage that has lines before and after it, so that it is whole; any line of a shorter one."""
        lines = self(rng).split("\n")
        return rng.choice(lines[1:-1] or lines)
