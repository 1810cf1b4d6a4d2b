"""Where pages are taken from on a machine with several memory nodes (NUMA).

Linux takes a page from the node of the thread that touches it first. Weights that one thread read would all lie on one
node, and every thread would wait for that node's memory. All threads read all weights, so no place is near to all of
them; in turns on all nodes, they are read at the rate of all nodes together.
"""

import ctypes
import logging
import os
import platform
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

_log = logging.getLogger(__name__)
_SYSTEM = Path("/sys/devices/system/node")
_SET_AND_GET = {"x86_64": (238, 239), "aarch64": (237, 236)}  # numbers of set_mempolicy and get_mempolicy
_DEFAULT, _INTERLEAVE = 0, 3  # of linux/mempolicy.h
_MAX_NODES = 1024
_WORD = 64  # bits of the mask's words

Call = Callable[..., int]


def usable_nodes(cpus: Iterable[int], system: Path = _SYSTEM) -> list[int]:
    """The nodes with memory that these logical cores belong to; none where the system does not say."""
    wanted = set(cpus)
    with_memory = _numbers(system / "has_memory")
    return [node for node in sorted(with_memory) if _numbers(system / f"node{node}" / "cpulist") & wanted]


def spread_pages(system: Path = _SYSTEM, call: Call | None = None) -> list[int]:
    """From now on take this thread's pages, and those of threads that it starts, in turns from all usable nodes.

    Returns these nodes. None, and nothing is changed, if there is one node only, if somebody has chosen a policy for
    the process already (numactl), or if the system refuses.
    """
    numbers = _SET_AND_GET.get(platform.machine())
    if sys.platform != "linux" or numbers is None:
        return []
    nodes = usable_nodes(os.sched_getaffinity(0), system)
    if len(nodes) < 2:
        return []
    return nodes if _interleave(nodes, *numbers, call or ctypes.CDLL(None, use_errno=True).syscall) else []


def _interleave(nodes: list[int], set_number: int, get_number: int, call: Call) -> bool:
    policy = ctypes.c_int(-1)
    if call(ctypes.c_long(get_number), ctypes.byref(policy), None, ctypes.c_ulong(0), None, ctypes.c_ulong(0)):
        _log.debug("the memory policy cannot be read: errno %d", ctypes.get_errno())
        return False
    if policy.value != _DEFAULT:
        return False
    mask = (ctypes.c_ulong * (_MAX_NODES // _WORD))()
    for node in nodes:
        mask[node // _WORD] |= 1 << node % _WORD
    size = ctypes.c_ulong(_MAX_NODES + 1)  # the kernel looks at one bit less
    if call(ctypes.c_long(set_number), ctypes.c_int(_INTERLEAVE), ctypes.byref(mask), size):
        _log.debug("the memory policy cannot be set: errno %d", ctypes.get_errno())
        return False
    return True


def _numbers(path: Path) -> set[int]:
    """Numbers of a list such as 0-3,8; none if there is no such file."""
    try:
        text = path.read_text().strip()
    except OSError:
        return set()
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
