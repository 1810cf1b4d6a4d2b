"""Recall over depth and length: one fact in a long text, asked for at its end, answered by exact inference."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, islice

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError, UsageError
from pelagos.common.fields import check_fields, check_value, setting
from pelagos.model.transformer import Model
from pelagos.training.evaluation import RecallReport
from pelagos.training.exercises import attempt_all
from pelagos.training.tasks import GridSample, TextSource, evaluation_grid, shared_texts
from pelagos.training.tasks.knobs import MAX_TOKENS

TOKENS_SIDE_BY_SIDE = 16_384  # of all samples that are answered at once


@dataclass(frozen=True, kw_only=True)
class RecallConfig:
    """Which cells are measured, and how well."""

    lengths: tuple[int, ...] = setting((1024, 2048, 4096), help="lengths of the whole text, tokens", low=128)
    depths: tuple[float, ...] = setting(
        (0.0, 0.25, 0.5, 0.75, 1.0), help="places of the fact: 0 is the start of the text, 1 its end", low=0.0, high=1.0
    )
    num_samples: int = setting(4, help="texts per length and depth", low=1, high=10_000)
    together: bool = setting(
        False, help="one text holds a fact at every depth and is read once for all of them, as very long texts need it"
    )
    answer_tokens: int = setting(48, help="longest answer, tokens", low=1, high=1024)
    seed: int = setting(0, help="of texts, facts and questions", low=0, high=(1 << 31) - 1)

    def __post_init__(self) -> None:
        check_fields(self)
        for name, kind, low, high in (("lengths", int, 128, MAX_TOKENS), ("depths", float, 0.0, 1.0)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not values:
                raise ConfigError(f"{name} must be a tuple of at least one number")
            for value in values:
                check_value(name, value, kind, low=low, high=high)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name} must hold no number twice")
            object.__setattr__(self, name, tuple(sorted(map(kind, values))))

    @property
    def num_tokens(self) -> int:
        """Of all texts together."""
        return sum(self.lengths) * self.num_samples * (1 if self.together else len(self.depths))


def check_lengths(config: RecallConfig, model: Model) -> None:
    """Raises UsageError if the model does not take texts so long."""
    most = model.config.max_positions
    if max(config.lengths) > most:
        raise UsageError(f"lengths must be at most {most}, what the model takes, got {max(config.lengths)}")


def measure_recall(
    model: Model,
    tokenizer: Tokenizer,
    config: RecallConfig,
    *,
    haystack: TextSource | None = None,
    on_tokens: Callable[[int], None] = lambda num_tokens: None,
) -> RecallReport:
    """The whole grid, shortest texts first. ``model`` is on the functions for inference. ``haystack``: pieces of real
    text around the facts; None: random sentences. ``on_tokens`` gets the tokens of the texts just answered.

    Raises UsageError for texts longer than the model takes, ConfigError for a length too short for a fact.
    """
    check_lengths(config, model)
    cells = _cells(config, tokenizer, haystack)
    right: Counter[tuple[float, int]] = Counter()
    for length in config.lengths:
        own = list(islice(cells, len(config.depths) * config.num_samples))
        together = max(1, min(16, TOKENS_SIDE_BY_SIDE // length))
        attempts = attempt_all(
            model,
            tokenizer,
            (cell.sample for cell in own),
            side_by_side=len(config.depths) if config.together else together,
            answer_tokens=config.answer_tokens,
            share_start=config.together,
            on_done=_times(on_tokens, length / (len(config.depths) if config.together else 1)),
        )
        for cell, attempt in zip(own, attempts, strict=True):
            right[cell.depth, length] += attempt.grade.correct
    return RecallReport(
        lengths=config.lengths,
        depths=config.depths,
        num_samples=config.num_samples,
        num_right=tuple(tuple(right[depth, length] for length in config.lengths) for depth in config.depths),
    )


def _cells(config: RecallConfig, tokenizer: Tokenizer, haystack: TextSource | None) -> Iterator[GridSample]:
    where = (config.lengths, config.depths, config.num_samples, config.seed)
    if not config.together:
        return evaluation_grid(*where, tokenizer=tokenizer, haystack=haystack)
    return chain.from_iterable(shared_texts(*where, tokenizer=tokenizer, haystack=haystack))


def _times(on_tokens: Callable[[int], None], length: float) -> Callable[[int], None]:
    return lambda num_done: on_tokens(round(num_done * length))
