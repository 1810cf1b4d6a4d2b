"""``pelagos train``: a run by a recipe, new or resumed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pelagos.cli.options import Device, Threads, use_threads
from pelagos.common.errors import UsageError

if TYPE_CHECKING:
    from pelagos.training.config import TrainConfig

Recipe = Annotated[
    str | None,
    typer.Argument(metavar="RECIPE", help="tiny (seconds), nano (2 CPU cores, hours) or small (a GPU)."),
]
Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/RECIPE.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in DIR.")]
Force = Annotated[bool, typer.Option("--force", help="Start over, and replace the run in DIR.")]
Data = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Folder that `pelagos train prepare` made; 'sample': the text that ships."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a field of the recipe, such as optimizer.peak_lr=0.01."),
]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files (needs tensorboard).")]
Help = Annotated[bool, typer.Option("--help", help="Show this message; after RECIPE also all its fields, and exit.")]


def train_command(
    context: typer.Context,
    recipe: Recipe = None,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    data: Data = None,
    settings: Settings = None,
    tensorboard: Board = False,
    device: Device = "cpu",
    threads: Threads = None,
    show_help: Help = False,
) -> None:
    """Train a model. DIR gets checkpoints, metrics.jsonl, report.html and, at the end, the model.

    Ctrl-C or SIGTERM saves and ends; killed anywhere, --resume goes on to the same bits. Under torchrun the processes
    share the work. `pelagos train RECIPE --help` lists what --set can change: meaning, unit, range and value.
    """
    if show_help:
        typer.echo(context.get_help())
        if recipe is not None:
            _show_fields(_config(recipe, data, settings))
        return
    if recipe is None:
        raise UsageError("Missing argument 'RECIPE': tiny, nano or small")
    config, folder = _config(recipe, data, settings), out or Path("runs") / recipe
    from pelagos.common.device import parse_device
    from pelagos.training.parallel import is_first_process
    from pelagos.training.session import train

    use_threads(threads)
    done = train(config, folder, resume=resume, force=force, device=parse_device(device), tensorboard=tensorboard)
    if not is_first_process():
        return
    if done:
        typer.echo(f"done: the model is in {folder / 'model'}, the report in {folder / 'report.html'}")
    else:
        typer.echo(f"stopped and saved: go on with pelagos train {recipe} --out {folder} --resume")


def _config(recipe: str, data: str | None, settings: list[str] | None) -> "TrainConfig":
    from pelagos.recipes import RECIPES
    from pelagos.training.overrides import with_settings

    if recipe not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    chosen = [f"data.folder={data}"] if data else []
    return with_settings(RECIPES[recipe](), [*chosen, *(settings or [])])


def _show_fields(config: "TrainConfig") -> None:
    """One line per field; those of layers and stages stand together, in their order."""
    from pelagos.training.overrides import settings_of

    values: dict[tuple[str, str], list[str]] = {}
    for path, value, text in settings_of(config):
        values.setdefault((re.sub(r"\.\d+\.", ".N.", path), text), []).append(str(value))
    typer.echo(f"Fields of {config.name}, for --set PATH=VALUE (N: a number from 0 on; one value: of all of them):\n")
    for (path, text), found in values.items():
        shown = found if len(set(found)) > 1 else found[:1]
        typer.echo(f"  {path} = {', '.join(shown)}  # {text}")
