"""Options that several commands have, and what they do."""

from typing import Annotated

import typer

from pelagos.common import cgroup, env
from pelagos.common.device import usable_cores

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
    """Let torch run on ``threads`` CPU threads, and return the number.

    None: what the environment says, else torch's own choice as far as a container leaves it that many cores. More
    threads than cores would wait for each other in every operation.
    """
    import torch

    number = threads or env.THREADS.get() or min(torch.get_num_threads(), usable_cores(cgroup.cpu_quota()))
    torch.set_num_threads(number)
    return number
