"""``pelagos convert``: a checkpoint from one storage to another, with a progress bar on a terminal."""

import dataclasses
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pelagos.cli.options import Json
from pelagos.cli.progress import PatientBar

if TYPE_CHECKING:
    from pelagos.model.convert import ConvertReport


class Target(StrEnum):
    """What to convert to."""

    OFFICIAL = "official"
    BF16 = "bf16"


Source = Annotated[Path, typer.Argument(metavar="SRC", help="The folder of a checkpoint.")]
Destination = Annotated[
    Path, typer.Argument(metavar="DST", help="The folder to write to; a run that was stopped goes on there.")
]
To = Annotated[Target, typer.Option("--to", help="official: FP4 experts and FP8 dense matrices; bf16: plain bfloat16.")]
Force = Annotated[bool, typer.Option("--force", help="Write into a folder that holds a checkpoint or other things.")]


def convert_command(src: Source, dst: Destination, to: To, force: Force = False, as_json: Json = False) -> None:
    """Convert a checkpoint between the released number formats and bfloat16, file by file.

    There and back gives the same codes and scales. --json prints folder, num_files, num_tensors, num_bytes (of
    tensors), num_resumed_files (finished by an earlier run), ignored (tensors that were left out) and notes.
    """
    from pelagos.model.convert import convert

    bar = PatientBar("converting")
    try:
        report = convert(src, dst, to.value, force=force, progress=bar.show)
    finally:
        bar.stop()
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(report) | {"folder": str(report.folder)}))
    else:
        _print(report)


def _print(report: "ConvertReport") -> None:
    size = f"{report.num_bytes / 1e9:.2f} GB in {report.num_files} files"
    resumed = f", {report.num_resumed_files} of them from an earlier run" if report.num_resumed_files else ""
    typer.echo(f"{report.folder}: {report.num_tensors} tensors, {size}{resumed}")
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.ignored:
        names = ", ".join(report.ignored[:3]) + (", ..." if len(report.ignored) > 3 else "")
        typer.echo(f"note: tensors left out because the model does not use them: {len(report.ignored)} ({names})")
