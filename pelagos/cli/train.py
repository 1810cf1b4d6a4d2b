"""``pelagos train``: a run by a recipe, new or resumed."""

from pathlib import Path
from typing import Annotated

import typer

from pelagos.cli.options import Device, Threads, use_threads
from pelagos.common.errors import UsageError

Recipe = Annotated[
    str, typer.Argument(metavar="RECIPE", help="tiny (seconds), nano (2 CPU cores, hours) or small (a GPU).")
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
Fields = Annotated[bool, typer.Option("--fields", help="List every field of the recipe with its value, and end.")]
Board = Annotated[bool, typer.Option("--tensorboard", help="Also write TensorBoard files (needs tensorboard).")]


def train_command(
    recipe: Recipe,
    out: Out = None,
    resume: Resume = False,
    force: Force = False,
    data: Data = None,
    settings: Settings = None,
    fields: Fields = False,
    tensorboard: Board = False,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Train a model. DIR gets checkpoints, metrics.jsonl, report.html and, at the end, the model.

    Ctrl-C or SIGTERM saves and ends; killed anywhere, --resume goes on to the same bits. Under torchrun the processes
    share the work.
    """
    from pelagos.recipes import RECIPES
    from pelagos.training.overrides import settings_of, with_settings

    if recipe not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    chosen = [f"data.folder={data}"] if data else []
    config = with_settings(RECIPES[recipe](), [*chosen, *(settings or [])])
    if fields:
        for path, value, text in settings_of(config):
            typer.echo(f"{path} = {value}  # {text}")
        return
    from pelagos.common.device import parse_device
    from pelagos.training.parallel import is_first_process
    from pelagos.training.session import train

    use_threads(threads)
    folder = out or Path("runs") / recipe
    done = train(config, folder, resume=resume, force=force, device=parse_device(device), tensorboard=tensorboard)
    if not is_first_process():
        return
    if done:
        typer.echo(f"done: the model is in {folder / 'model'}, the report in {folder / 'report.html'}")
    else:
        typer.echo(f"stopped and saved: go on with pelagos train {recipe} --out {folder} --resume")
