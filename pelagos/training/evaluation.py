"""What an evaluation found, as records and as ``evaluation.json``, which the report of a run shows.

    {"step": 550, "bits_per_byte": .., "tasks": .., "recall": ..,                as evaluation_plots.py says
     "qat": {"full": 2.31, "fp4_weights": 2.32, "fp4": 2.32, "exported": 2.32},  see low_precision.py
     "held_out": {"split": "test", "context_length": 1024, "bits_per_byte": 1.7,    over all sources
                  "sources": {"stdlib": {"loss": 3.1, "bits_per_byte": 1.71, "num_tokens": 8184, "num_bytes": 21034}},
                  "expert_load": {"1": 1.4},                                     busiest expert / mean, by layer
                  "mtp": {"acceptance": 0.6, "accuracy": 0.3, "num_tokens": 8176}},
     "attention": {"sparse": 3.1, "dense": 3.1, "indexer_recall": {"1": 0.93}},  losses on one mixed batch
     "task_counts": {"kv": {"num_right": 15, "num_all": 16, "low": 0.72, "high": 0.99}},   95 % interval
     "tool_calls": {"num_right": 40, ..},                                        calls that parse and validate
     "seconds": {"tasks": 81.0}}

A part that was not measured is left out, and a number that is not finite is null, or left out where the report reads.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelagos.common.files import write_atomic
from pelagos.training.evaluation_plots import EVALUATION_FILE, write_heat_map
from pelagos.training.metrics import bits_per_byte

HEAT_MAP_FILE = "recall.png"
Z = 1.959964  # standard deviations of a normal distribution within which 95 % lies


@dataclass(frozen=True, kw_only=True)
class Share:
    """``num_right`` of ``num_all``."""

    num_right: int
    num_all: int

    @property
    def value(self) -> float:
        """From 0 to 1; NaN of none."""
        return self.num_right / self.num_all if self.num_all else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson score interval of the true share, 95 %; 0 to 1 of none."""
        if not self.num_all:
            return 0.0, 1.0
        n, p = self.num_all, self.value
        center = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        low = center - half if self.num_right else 0.0  # exactly
        return low, center + half if self.num_right < n else 1.0

    def __add__(self, other: "Share") -> "Share":
        return Share(num_right=self.num_right + other.num_right, num_all=self.num_all + other.num_all)

    def as_json(self) -> dict[str, Any]:
        low, high = self.interval
        return {"num_right": self.num_right, "num_all": self.num_all, "low": low, "high": high}


@dataclass(frozen=True, kw_only=True)
class TextScore:
    """Text: tokens that were predicted, bytes behind them, nats that all of them cost.

    An end mark counts as a token without bytes. A piece's first token is given, so neither its cost nor its bytes
    count.
    """

    num_tokens: int
    num_bytes: int
    nats: float

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.num_tokens if self.num_tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        return bits_per_byte(self.nats, self.num_bytes) if self.num_bytes else math.nan

    def __add__(self, other: "TextScore") -> "TextScore":
        return TextScore(
            num_tokens=self.num_tokens + other.num_tokens,
            num_bytes=self.num_bytes + other.num_bytes,
            nats=self.nats + other.nats,
        )


@dataclass(frozen=True, kw_only=True)
class DraftScore:
    """The multi-token-prediction block on text. accepted: its likeliest token after next is the model's own likeliest
    there; right: it is the text's. One step of drafting, which the text's own next token is given to."""

    accepted: Share
    right: Share


@dataclass(frozen=True, kw_only=True)
class TextReport:
    """Held-out text. context_length: tokens per piece; no piece sees another. expert_load: by layer, tokens of the
    busiest expert over the mean."""

    split: str
    context_length: int
    sources: Mapping[str, TextScore]
    expert_load: Mapping[int, float]
    draft: DraftScore | None


@dataclass(frozen=True, kw_only=True)
class AttentionReport:
    """One batch of held-out text. sparse, dense: loss in nats per token, where CSA queries see their top rows, as in
    inference, or all. indexer_recall: by layer, the share of dense attention on compressed rows that the top rows
    hold."""

    sparse: float
    dense: float
    indexer_recall: Mapping[int, float]


@dataclass(frozen=True, kw_only=True)
class RecallReport:
    """num_right: a row per depth, a column per length, out of ``num_samples`` in each."""

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    num_samples: int
    num_right: tuple[tuple[int, ...], ...]

    def grid(self) -> dict[str, Any]:
        """What ``evaluation_plots.write_heat_map`` takes."""
        return {
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "accuracy": [[count / self.num_samples for count in row] for row in self.num_right],
            "num_samples": self.num_samples,
        }


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model at one time. Parts that were not measured are None or empty. qat: loss by kind of numbers, see
    low_precision.py. seconds: of work, by part."""

    step: int | None = None
    text: TextReport | None = None
    attention: AttentionReport | None = None
    tasks: Mapping[str, Share] = field(default_factory=dict)
    tool_calls: Share | None = None
    recall: RecallReport | None = None
    qat: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values in the form that the top of this file shows."""
        plain: dict[str, Any] = {"step": self.step}
        if self.text is not None:
            sources = self.text.sources
            plain["bits_per_byte"] = _finite({name: score.bits_per_byte for name, score in sources.items()})
            plain["held_out"] = _text_as_json(self.text)
        if self.attention is not None:
            plain["attention"] = {"sparse": self.attention.sparse, "dense": self.attention.dense} | {
                "indexer_recall": _by_text(self.attention.indexer_recall)
            }
        if self.tasks:
            plain["tasks"] = _finite({name: share.value for name, share in self.tasks.items()})
            plain["task_counts"] = {name: share.as_json() for name, share in self.tasks.items()}
        if self.tool_calls is not None:
            plain["tool_calls"] = self.tool_calls.as_json()
        if self.recall is not None:
            plain["recall"] = self.recall.grid()
        if all(map(math.isfinite, self.qat.values())) and self.qat:
            plain["qat"] = dict(self.qat)
        plain["seconds"] = dict(self.seconds)
        without_nan: dict[str, Any] = _nulled(plain)
        return without_nan


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write ``evaluation.json``, and with recall measured ``recall.png`` and ``recall.json``, into ``folder``.

    Raises UsageError if matplotlib, which draws the heat map, is missing; the numbers are then written."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / EVALUATION_FILE, json.dumps(evaluation.as_json(), indent=1, allow_nan=False) + "\n")
    if evaluation.recall is not None:
        write_heat_map(evaluation.recall.grid(), folder / HEAT_MAP_FILE)


def _text_as_json(text: TextReport) -> dict[str, Any]:
    sources = {
        name: {
            "loss": score.loss,
            "bits_per_byte": score.bits_per_byte,
            "num_tokens": score.num_tokens,
            "num_bytes": score.num_bytes,
        }
        for name, score in text.sources.items()
    }
    total = sum(text.sources.values(), start=TextScore(num_tokens=0, num_bytes=0, nats=0.0))
    plain = {
        "split": text.split,
        "context_length": text.context_length,
        "bits_per_byte": total.bits_per_byte,
        "sources": sources,
        "expert_load": _by_text(text.expert_load),
    }
    if text.draft is not None:
        plain["mtp"] = {
            "acceptance": text.draft.accepted.value,
            "accuracy": text.draft.right.value,
            "num_tokens": text.draft.accepted.num_all,
        }
    return plain


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _by_text(values: Mapping[int, float]) -> dict[str, float]:
    return {str(layer): value for layer, value in values.items()}


def _nulled(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, dict):
        return {name: _nulled(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_nulled(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
