"""What a model can do, measured: held-out text, graded tasks, recall, and the price of low precision.

    evaluation = evaluate(model, tokenizer, Path("data/nano"), EvaluateConfig())
    write_evaluation(evaluation, Path("runs/nano"))     # evaluation.json, recall.png; the report shows them

Losses come from the functions for training, which read many documents at once; whatever is generated comes from exact
inference with the same weights.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError, UsageError
from pelagos.common.fields import check_fields, setting
from pelagos.model.moe import Experts
from pelagos.model.transformer import Model
from pelagos.ops.dispatch import autograd_ops, reference_ops
from pelagos.training.batch import PackedBatch
from pelagos.training.data import GLOSS_TOKENS, GLOSSES, open_shards
from pelagos.training.evaluation import AttentionReport, Evaluation, RecallReport, Share, TextReport, write_evaluation
from pelagos.training.exercises import attempt_all, held_out_exercises, right
from pelagos.training.held_out import measure_attention, measure_text, mixed_batch, text_batch
from pelagos.training.low_precision import measure_low_precision
from pelagos.training.recall import RecallConfig, check_lengths, measure_recall
from pelagos.training.shards import TokenSource
from pelagos.training.task_documents import Passages
from pelagos.training.tasks import TASKS, Sample, TextSource
from pelagos.training.views import with_config

__all__ = ["EvaluateConfig", "Evaluation", "evaluate", "write_evaluation"]

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, how much there is


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is measured and how well. The defaults take a model of the size of nano some minutes on two cores."""

    split: str = setting("test", help="split of the prepared text", choices=("valid", "test"))
    context_length: int = setting(1024, help="tokens that held-out text is cut into", low=8, high=1 << 20)
    tokens_per_source: int | None = setting(
        4096, help="held-out tokens read of each source; None: text is not measured", low=8, high=1 << 40
    )
    batch_tokens: int | None = setting(
        16_384,
        help="tokens of the batch on which attention and low precision are measured; None: they are not",
        low=8,
        high=1 << 30,
    )
    low_precision: bool = setting(True, help="measure what the served model's numbers cost")
    samples_per_task: int | None = setting(16, help="exercises per task; None: none", low=1, high=1 << 20)
    tasks: tuple[str, ...] = setting(tuple(TASKS), help="which tasks")
    task_tokens: int = setting(1024, help="longest exercise, tokens", low=128, high=1 << 20)
    answer_tokens: int = setting(160, help="longest turn of the model in an exercise, tokens", low=1, high=1 << 16)
    recall: RecallConfig | None = setting(RecallConfig(), help="the grid of lengths and depths; None: not measured")
    pass_tokens: int = setting(4096, help="held-out tokens read at once", low=8, high=1 << 30)
    side_by_side: int = setting(16, help="exercises answered at once", low=1, high=1024)
    seed: int = setting(0, help="of text pieces and exercises", low=0, high=(1 << 31) - 1)

    def __post_init__(self) -> None:
        check_fields(self)
        if unknown := [name for name in self.tasks if name not in TASKS]:
            raise ConfigError(f"tasks must be among {', '.join(TASKS)}, got {unknown[0]!r}")
        if self.recall is not None and not isinstance(self.recall, RecallConfig):
            raise ConfigError("recall must be a RecallConfig or None")


def evaluate(
    model: Model,
    tokenizer: Tokenizer,
    data_folder: Path,
    config: EvaluateConfig = EvaluateConfig(),
    progress: Progress = lambda what, num_done, num_total: None,
    *,
    step: int | None = None,
) -> Evaluation:
    """Measure ``model``, whose weights are float tensors as training has them; its config says whether YaRN and
    rounding are on. Nothing of it is changed. ``data_folder``: made by `pelagos train prepare`, with ``tokenizer``.

    Raises UsageError, before any work, for a folder without text of the split, a vocabulary larger than the model's and
    texts longer than it takes.
    """
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    assert all(isinstance(module.w1, Tensor) for module in experts), "weights must be as training has them"
    if tokenizer.vocab_size > model.config.vocab_size:
        raise UsageError(
            f"{tokenizer.path} has {tokenizer.vocab_size} ids, but the model only {model.config.vocab_size}"
        )
    if config.recall is not None:
        check_lengths(config.recall, model)
    for name in ("context_length", "task_tokens"):
        if getattr(config, name) > model.config.max_positions:
            raise UsageError(f"{name} must be at most {model.config.max_positions}, what the model takes")
    data = _HeldOut.open(data_folder, tokenizer, config)
    work = _Work(model, tokenizer, config, data, progress)
    with work.timed("text"):
        text = work.text()
    with work.timed("attention"):
        attention = work.attention()
    with work.timed("low precision"):
        qat = work.low_precision()
    with work.timed("tasks"):
        tasks, tool_calls = work.tasks()
    with work.timed("recall"):
        recall = work.recall()
    return Evaluation(
        step=step,
        text=text,
        attention=attention,
        tasks=tasks,
        tool_calls=tool_calls,
        recall=recall,
        qat=qat,
        seconds=work.seconds,
    )


@dataclass(frozen=True, kw_only=True)
class _HeldOut:
    """All that is measured on but recall: batches by source, one mixed of them, exercises by task; and real text."""

    batches: Mapping[str, PackedBatch]
    mixed: PackedBatch | None
    exercises: Mapping[str, Sequence[Sample]]
    haystack: TextSource

    @classmethod
    def open(cls, folder: Path, tokenizer: Tokenizer, config: EvaluateConfig) -> "_HeldOut":
        shards = open_shards(folder, config.split)
        haystack = Passages(list(shards.values()), tokenizer)
        return cls(
            batches={
                name: text_batch(
                    name,
                    shard,
                    tokenizer,
                    context_length=config.context_length,
                    num_tokens=config.tokens_per_source,
                    seed=config.seed,
                )
                for name, shard in shards.items()
                if config.tokens_per_source is not None
            },
            mixed=_mixed(shards, tokenizer, config),
            exercises=_exercises(shards, tokenizer, config, haystack),
            haystack=haystack,
        )


def _mixed(shards: Mapping[str, TokenSource], tokenizer: Tokenizer, config: EvaluateConfig) -> PackedBatch | None:
    """The same number of rows from each source; where there are more sources than rows, from a random choice."""
    if config.batch_tokens is None:
        return None
    length = config.context_length
    num_rows = -(-config.batch_tokens // length)
    names = random.Random(config.seed).sample(sorted(shards), min(len(shards), num_rows))
    per_source = -(-num_rows // len(names)) * length
    batches = [
        text_batch(name, shards[name], tokenizer, context_length=length, num_tokens=per_source, seed=config.seed)
        for name in names
    ]
    return mixed_batch(batches, num_rows)


def _exercises(
    shards: Mapping[str, TokenSource], tokenizer: Tokenizer, config: EvaluateConfig, haystack: TextSource
) -> dict[str, list[Sample]]:
    if config.samples_per_task is None:
        return {}
    glosses = Passages([shards[GLOSSES]], tokenizer, GLOSS_TOKENS).line if GLOSSES in shards else None
    return {
        name: list(
            held_out_exercises(
                name,
                config.samples_per_task,
                tokenizer=tokenizer,
                max_tokens=config.task_tokens,
                seed=config.seed,
                haystack=haystack,
                glosses=glosses,
            )
        )
        for name in config.tasks
    }


@dataclass
class _Work:
    """The parts of an evaluation, each with its progress and time."""

    model: Model
    tokenizer: Tokenizer
    config: EvaluateConfig
    data: _HeldOut
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.model.config
        self._batched = with_config(self.model, config, autograd_ops())
        self._exact = with_config(self.model, config, reference_ops())

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[part] = round(time.monotonic() - started, 2)

    def text(self) -> TextReport | None:
        batches = self.data.batches
        if not batches:
            return None
        config = self.config
        count = _Counter(self.progress, "held-out text", sum(batch.token_ids.numel() for batch in batches.values()))
        return measure_text(
            self._batched,
            batches,
            split=config.split,
            context_length=config.context_length,
            pass_tokens=config.pass_tokens,
            on_pass=count.add,
        )

    def attention(self) -> AttentionReport | None:
        if self.data.mixed is None:
            return None
        self.progress("attention", 0, 1)
        return measure_attention(self._batched, self.data.mixed, pass_tokens=self.config.pass_tokens)

    def low_precision(self) -> dict[str, float]:
        if self.data.mixed is None or not self.config.low_precision:
            return {}
        self.progress("low precision", 0, 1)
        return measure_low_precision(self._batched, self.data.mixed, pass_tokens=self.config.pass_tokens)

    def tasks(self) -> tuple[dict[str, Share], Share | None]:
        exercises = self.data.exercises
        if not exercises:
            return {}, None
        count = _Counter(self.progress, "tasks", sum(map(len, exercises.values())))
        shares: dict[str, Share] = {}
        calls = none = Share(num_right=0, num_all=0)
        for name, samples in exercises.items():
            attempts = list(
                attempt_all(
                    self._exact,
                    self.tokenizer,
                    samples,
                    side_by_side=self.config.side_by_side,
                    answer_tokens=self.config.answer_tokens,
                    on_done=count.add,
                )
            )
            shares[name] = right(attempts)
            calls += sum((attempt.calls for attempt in attempts), start=none)
        return shares, calls if calls.num_all else None

    def recall(self) -> RecallReport | None:
        grid = self.config.recall
        if grid is None:
            return None
        count = _Counter(self.progress, "recall", grid.num_tokens)
        return measure_recall(self._exact, self.tokenizer, grid, haystack=self.data.haystack, on_tokens=count.add)


class _Counter:
    """Adds up what is done of one kind of work, and shows it."""

    def __init__(self, progress: Progress, what: str, num_total: int) -> None:
        self._progress, self._what, self._num_total = progress, what, num_total
        self._num_done = 0
        self.add(0)

    def add(self, num: int) -> None:
        self._num_done += num
        self._progress(self._what, self._num_done, self._num_total)
