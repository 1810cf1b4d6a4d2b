"""How many CPU threads work should run on."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from pelagos.common import cgroup, env
from pelagos.common.device import usable_cores

_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_num_threads() -> int:
    """What the environment says, else torch's number as far as a container and the processor leave it that many cores.

    More threads than cores would wait for each other in every operation, and the second thread of a core adds nothing
    to work that waits for memory.
    """
    import torch

    asked = env.THREADS.get()
    if asked is not None:
        return asked
    cores = usable_cores(cgroup.cpu_quota())
    if sys.platform == "linux":
        cores = min(cores, num_physical_cores(os.sched_getaffinity(0)))
    return min(torch.get_num_threads(), cores)


def num_physical_cores(logical: Iterable[int], topology: Path = _TOPOLOGY) -> int:
    """Physical cores behind logical ones, as Linux numbers them. One that the system says nothing about counts as a
    core of its own."""
    return len({_siblings(cpu, topology) for cpu in logical})


def _siblings(cpu: int, topology: Path) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip() or str(cpu)
    except OSError:
        return str(cpu)
