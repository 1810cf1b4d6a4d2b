"""Options that several commands have, and what they do."""

from typing import Annotated

import typer

from pelagos.common import env
from pelagos.common.cores import default_num_threads

MODEL_HELP = "A checkpoint folder, nano (built in), owner/name on the hub, or a preset such as tiny (random weights)."

Device = Annotated[str, typer.Option(help="cpu, mps, cuda, cuda:N, npu or npu:N.", rich_help_panel="Machine")]
Threads = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=env.MAX_THREADS,
        help=f"CPU threads. Default: {env.THREADS.name}, else one per core that may be used.",
        rich_help_panel="Machine",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def use_threads(threads: int | None) -> int:
    """Let torch and the native kernels run on ``threads`` CPU threads, and return the number.

    None: what the environment says, else one for each physical core that this process may use, as far as torch takes
    them, too.
    """
    from pelagos.ops.cpu.threads import set_num_threads

    number = threads or default_num_threads()
    set_num_threads(number)
    return number
