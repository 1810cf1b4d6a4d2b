"""All tasks by name, and mixes of them."""

import random
from dataclasses import dataclass
from typing import Any

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_value, setting
from pelagos.training.tasks import kv, needle, reading, spans
from pelagos.training.tasks.calc_tool import CALC_TOOL
from pelagos.training.tasks.chain import CHAIN
from pelagos.training.tasks.code_recall import CODE_RECALL
from pelagos.training.tasks.count import COUNT
from pelagos.training.tasks.dictionary import DICT
from pelagos.training.tasks.greeting import GREETING
from pelagos.training.tasks.item import TextSource
from pelagos.training.tasks.knobs import Knobs
from pelagos.training.tasks.last_wins import LAST_WINS
from pelagos.training.tasks.list_index import LIST_INDEX
from pelagos.training.tasks.quick import QUICK
from pelagos.training.tasks.sample import Sample
from pelagos.training.tasks.store_tool import STORE_TOOL
from pelagos.training.tasks.talk import TALK
from pelagos.training.tasks.task import Task
from pelagos.training.tasks.unknown import UNKNOWN_TASK

TASKS: dict[str, Task[Any]] = {
    task.name: task
    for task in (
        kv.KV,
        needle.NEEDLE,
        LAST_WINS,
        CHAIN,
        DICT,
        CODE_RECALL,
        LIST_INDEX,
        spans.COPY,
        spans.REVERSE,
        CALC_TOOL,
        STORE_TOOL,
        QUICK,
        COUNT,
        reading.READING,
        UNKNOWN_TASK,
        GREETING,
        TALK,
    )
}


@dataclass(frozen=True, kw_only=True)
class TaskShare:
    """A task in a mix: ``share`` of the samples, relative to the other shares, as hard as ``knobs`` say."""

    task: str = setting(help="name of the task")
    share: float = setting(1.0, help="samples of it, relative to the other shares", low=0)
    knobs: Knobs = setting(help="how hard they are, a config of the task's own kind")

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ConfigError(f"task must be one of {', '.join(TASKS)}, got {self.task!r}")
        check_value("share", self.share, float, low=0)
        wanted = TASKS[self.task].knobs
        if type(self.knobs) is not wanted:
            raise ConfigError(
                f"knobs of the task {self.task} must be {wanted.__name__}, got {type(self.knobs).__name__}"
            )


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Which tasks, how often and how hard; the same task may stand in it several times with different knobs."""

    shares: tuple[TaskShare, ...] = setting(help="the tasks of the mix")

    def __post_init__(self) -> None:
        if not sum(share.share for share in self.shares) > 0:
            raise ConfigError("shares of a task mix must have a sum above 0")

    def make(
        self,
        rng: random.Random,
        *,
        tokenizer: Tokenizer,
        held_out: bool = False,
        haystack: TextSource | None = None,
        glosses: TextSource | None = None,
    ) -> Sample:
        """A sample of a task drawn by share; see ``Task.make``."""
        [chosen] = rng.choices(self.shares, weights=[share.share for share in self.shares])
        return TASKS[chosen.task].make(
            rng, chosen.knobs, tokenizer=tokenizer, held_out=held_out, haystack=haystack, glosses=glosses
        )
