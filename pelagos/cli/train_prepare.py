"""``pelagos train prepare``: text from packages and folders to a tokenizer and token shards that training reads."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pelagos.cli.options import Json
from pelagos.cli.progress import PatientBar
from pelagos.common.errors import UsageError

if TYPE_CHECKING:
    from pelagos.training.prepare import Report
    from pelagos.training.sources import SourceConfig

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; a run that was stopped goes on there.")]
Names = Annotated[
    list[str] | None, typer.Option("--source", metavar="NAME", help="A source to use, again for more. Default: all.")
]
Folders = Annotated[
    list[str] | None,
    typer.Option(
        "--folder",
        metavar="NAME=PATH",
        help="Your own text, again for more: a folder of .txt, .md, .py, .jsonl and .parquet files, or one such file. "
        "Records have a field 'text'. Without --source it is all there is.",
    ),
]
Licence = Annotated[str, typer.Option(help="Licence of the text in --folder, for NOTICE.")]
Sample = Annotated[
    bool, typer.Option("--sample", help="Use the sample that ships with Pelagos (0.8 MB), nothing else.")
]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="Downloaded packages. Default: OUT/packages.")]
VocabSize = Annotated[int, typer.Option(help="Ids of the tokenizer, 64 special ones among them.")]
Seed = Annotated[int, typer.Option(help="Chooses the held-out documents.")]
Plots = Annotated[bool, typer.Option(help="Draw the statistics (needs matplotlib).")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Go on without sources that cannot be had.")]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace what an earlier run with other options wrote to OUT, as far as it differs."),
]

FOLDER_PATTERNS = ("*.txt", "*.md", "*.rst", "*.py", "*.jsonl", "*.parquet")


def train_prepare_command(
    out: Out,
    source: Names = None,
    folder: Folders = None,
    licence: Licence = "not stated",
    sample: Sample = False,
    cache: Cache = None,
    vocab_size: VocabSize = 4096,
    seed: Seed = 0,
    plots: Plots = True,
    allow_missing: AllowMissing = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Prepare text for training: extract, hold out, learn a tokenizer, encode.

    Packages are downloaded but not installed; with a full cache no network is needed. --json prints folder, vocab_size,
    sources (terms, what was left out, and documents, tokens and bytes by split), missing, resumed and seconds.
    """
    from pelagos.training.prepare import PrepareConfig, prepare

    sources = _sources(source or [], folder or [], licence, sample)
    config = PrepareConfig(vocab_size=vocab_size, sources=sources, seed=seed, plots=plots)
    bars = _Bars()
    try:
        report = prepare(config, out, bars.show, cache=cache, allow_missing=allow_missing, force=force)
    finally:
        bars.stop()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"folder": str(report.folder)}))
    else:
        _print(report)


def _sources(names: list[str], folders: list[str], licence: str, sample: bool) -> "tuple[SourceConfig, ...]":
    from pelagos.training.catalogue import SAMPLE, SOURCES
    from pelagos.training.sources import named

    if sample and (names or folders):
        raise UsageError("give either --sample or --source and --folder")
    if sample:
        return SAMPLE
    own = tuple(_own_folder(text, licence) for text in folders)
    return named(SOURCES, names) + own if names or own else SOURCES


def _own_folder(text: str, licence: str) -> "SourceConfig":
    from pelagos.training.sources import SourceConfig

    name, equals, path = text.partition("=")
    if not equals or not path:
        raise UsageError(f"--folder must be NAME=PATH, got {text!r}")
    return SourceConfig(name=name, kind="folder", package=path, rule="text", include=FOLDER_PATTERNS, licence=licence)


class _Bars:
    """One bar for each kind of work."""

    def __init__(self) -> None:
        self._kind = ""
        self._bar = PatientBar("")

    def show(self, what: str, num_done: int, num_total: int) -> None:
        kind = what.split()[0]
        if kind != self._kind:
            self._bar.stop()
            self._kind, self._bar = kind, PatientBar(f"preparing {kind}")
        self._bar.show(num_done, num_total)

    def stop(self) -> None:
        self._bar.stop()


def _print(report: "Report") -> None:
    typer.echo(f"{'source':24}{'documents':>10}{'MB':>9}{'M tokens':>10}{'held out MB':>13}")
    for source in report.sources:
        held_out = source.num_text_bytes - source.splits["train"].num_text_bytes
        typer.echo(
            f"{source.name:24}{source.num_documents:>10,}{source.num_text_bytes / 1e6:>9.2f}"
            f"{source.num_tokens / 1e6:>10.2f}{held_out / 1e6:>13.2f}"
        )
    total_bytes = sum(source.num_text_bytes for source in report.sources)
    total_tokens = sum(source.num_tokens for source in report.sources)
    typer.echo(
        f"{report.folder}: {total_bytes / 1e6:.1f} MB, {total_tokens / 1e6:.2f} million tokens of a vocabulary of "
        f"{report.vocab_size:,}, in {report.seconds:.0f} s"
    )
    for name, reason in report.missing.items():
        typer.echo(f"note: {name} was left out: {reason}")
