"""NOTICE, statistics and plots of a prepared folder."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pelagos.common.files import atomic_path, write_atomic
from pelagos.training.shards import TokenSource
from pelagos.training.sources import optional_module

NOTICE = "NOTICE"
STATISTICS = "prepare.json"
PLOTS_FOLDER = "plots"

INK = "#1f4e79"
HELD_OUT_INK = "#e08a2c"
NOTICE_HEAD = """\
The text in this folder was extracted from the packages below and remains under their terms.
Byte counts are those of the extracted text (UTF-8), without duplicates.
"""


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """A shard in numbers. ``length_histogram[n]`` counts documents of 2^(n-1) to 2^n - 1 tokens."""

    num_documents: int
    num_tokens: int
    num_text_bytes: int
    length_histogram: list[int]

    @classmethod
    def of(cls, shard: TokenSource) -> "SplitReport":
        bit_lengths = np.array([int(length).bit_length() for length in shard.lengths()], dtype=np.int64)
        return cls(
            num_documents=shard.num_documents,
            num_tokens=shard.num_tokens,
            num_text_bytes=shard.num_text_bytes,
            length_histogram=np.bincount(bit_lengths).tolist(),
        )


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """A source as it went in: terms, what was left out (in documents), and its shards by split."""

    name: str
    package: str
    version: str
    licence: str
    copyright: str
    num_duplicates: int
    num_too_short: int
    num_too_long: int
    splits: dict[str, SplitReport]

    @property
    def num_tokens(self) -> int:
        return sum(split.num_tokens for split in self.splits.values())

    @property
    def num_text_bytes(self) -> int:
        return sum(split.num_text_bytes for split in self.splits.values())

    @property
    def num_documents(self) -> int:
        return sum(split.num_documents for split in self.splits.values())


def write(out: Path, config: Any, reports: Sequence[SourceReport], missing: dict[str, str]) -> None:
    """Write NOTICE, prepare.json and, if the config wants them, the plots."""
    write_atomic(out / NOTICE, notice(reports))
    statistics = {
        "num_documents": sum(report.num_documents for report in reports),
        "num_tokens": sum(report.num_tokens for report in reports),
        "num_text_bytes": sum(report.num_text_bytes for report in reports),
        "sources": [dataclasses.asdict(report) for report in reports],
        "missing": missing,
        "config": dataclasses.asdict(config),
    }
    write_atomic(out / STATISTICS, json.dumps(statistics, indent=1) + "\n")
    if config.plots:
        (out / PLOTS_FOLDER).mkdir(exist_ok=True)
        for name, draw in PLOTS.items():
            with atomic_path(out / PLOTS_FOLDER / name) as temporary:
                _draw(reports, draw, temporary)


def notice(reports: Sequence[SourceReport]) -> str:
    """The text of NOTICE: source, package, version, licence, copyright and bytes of each source."""
    blocks = [NOTICE_HEAD]
    for report in reports:
        lines = [
            f"{report.name}: {report.package or 'the Python standard library'} {report.version}".rstrip(),
            f"  licence:   {report.licence}",
            f"  copyright: {report.copyright or 'not stated'}",
            f"  bytes:     {report.num_text_bytes:,}",
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _draw(reports: Sequence[SourceReport], draw: Callable[[Any, Sequence[SourceReport]], None], path: Path) -> None:
    figure = optional_module("matplotlib.figure", "matplotlib", "drawing statistics (plots)").Figure(
        figsize=(9, 1.6 + 0.32 * max(8, len(reports))), layout="constrained"
    )
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes, reports)
    figure.savefig(path, format="png", dpi=120, metadata={"Software": None})


def _plot_bytes(axes: Any, reports: Sequence[SourceReport]) -> None:
    names = [report.name for report in reports]
    train = [report.splits["train"].num_text_bytes / 1e6 for report in reports]
    held_out = [report.num_text_bytes / 1e6 - part for report, part in zip(reports, train, strict=True)]
    axes.barh(names, train, color=INK, label="training")
    axes.barh(names, held_out, left=train, color=HELD_OUT_INK, label="held out")
    axes.invert_yaxis()
    axes.set_xlabel("MB of text")
    axes.set_title("Text per source")
    axes.legend(loc="lower right", frameon=False)


def _plot_lengths(axes: Any, reports: Sequence[SourceReport]) -> None:
    """Shares of a source's documents by their length, a row per source."""
    num_bins = max(len(split.length_histogram) for report in reports for split in report.splits.values())
    shares = np.zeros((len(reports), num_bins))
    for row, report in zip(shares, reports, strict=True):
        for split in report.splits.values():
            row[: len(split.length_histogram)] += split.length_histogram
        row *= 100 / max(1.0, row.sum())
    first = int(np.flatnonzero(shares.any(axis=0))[0]) if shares.any() else 0
    image = axes.imshow(shares[:, first:], aspect="auto", cmap="Blues", interpolation="nearest")
    axes.set_yticks(range(len(reports)), [report.name for report in reports])
    borders = np.arange(num_bins - first) + 0.5
    axes.set_xticks(borders, [f"{2**n:,}" for n in range(first, num_bins)], rotation=45, ha="right")
    axes.set_xlabel("tokens of a document, up to")
    axes.set_title("Lengths of documents")
    axes.figure.colorbar(image, ax=axes, label="% of the source's documents")


def _plot_tokens_per_byte(axes: Any, reports: Sequence[SourceReport]) -> None:
    ratios = [report.num_tokens / max(1, report.num_text_bytes) for report in reports]
    bars = axes.barh([report.name for report in reports], ratios, color=INK)
    axes.bar_label(bars, fmt="%.3f", padding=3)
    axes.invert_yaxis()
    axes.set_xlabel("tokens per byte")
    axes.set_title("How well the tokenizer packs each source (less is better)")


PLOTS: dict[str, Callable[[Any, Sequence[SourceReport]], None]] = {
    "bytes.png": _plot_bytes,
    "lengths.png": _plot_lengths,
    "tokens_per_byte.png": _plot_tokens_per_byte,
}
