"""Which memory nodes are used, and when a process's pages are spread over them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pelagos.common import memory_nodes


def two_nodes(root: Path) -> Path:
    for node, cpus in enumerate(["0-3,8-11", "4-7", "12-15", ""]):
        (root / f"node{node}").mkdir()
        (root / f"node{node}" / "cpulist").write_text(cpus + "\n")
    (root / "has_memory").write_text("0-1,3\n")  # node 2 has cores alone, node 3 memory alone
    return root


class Kernel:
    """What the two system calls see and answer."""

    def __init__(self, policy: int = 0, refuses: tuple[int, ...] = ()) -> None:
        self.policy, self.refuses, self.nodes = policy, refuses, set[int]()

    def __call__(self, number: Any, *arguments: Any) -> int:
        if number.value in self.refuses:
            return -1
        if number.value == 239:
            arguments[0]._obj.value = self.policy
            return 0
        mode, mask, size = arguments
        self.policy = mode.value
        self.nodes = {bit for bit in range(size.value - 1) if mask._obj[bit // 64] >> bit % 64 & 1}
        return 0


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_nodes.sys, "platform", "linux")
    monkeypatch.setattr(memory_nodes.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(memory_nodes.os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def test_nodes_of_the_usable_cores(tmp_path: Path) -> None:
    root = two_nodes(tmp_path)
    assert memory_nodes.usable_nodes(range(16), root) == [0, 1]
    assert memory_nodes.usable_nodes([4, 5, 12], root) == [1]
    assert memory_nodes.usable_nodes([9], root) == [0]
    assert memory_nodes.usable_nodes(range(16), tmp_path / "none") == []


@pytest.mark.usefixtures("cores")
def test_pages_come_from_all_usable_nodes(tmp_path: Path) -> None:
    kernel = Kernel()
    assert memory_nodes.spread_pages(two_nodes(tmp_path), kernel) == [0, 1]
    assert (kernel.policy, kernel.nodes) == (3, {0, 1})


@pytest.mark.usefixtures("cores")
def test_a_policy_that_somebody_chose_stays(tmp_path: Path) -> None:
    kernel = Kernel(policy=2)
    assert memory_nodes.spread_pages(two_nodes(tmp_path), kernel) == []
    assert kernel.policy == 2


@pytest.mark.usefixtures("cores")
@pytest.mark.parametrize("number", [238, 239])
def test_a_system_that_refuses_is_left_alone(tmp_path: Path, number: int) -> None:
    kernel = Kernel(refuses=(number,))
    assert memory_nodes.spread_pages(two_nodes(tmp_path), kernel) == []
    assert kernel.policy == 0


@pytest.mark.usefixtures("cores")
def test_one_node_needs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_nodes.os, "sched_getaffinity", lambda _: {4, 5})
    kernel = Kernel()
    assert memory_nodes.spread_pages(two_nodes(tmp_path), kernel) == []
    assert kernel.policy == 0


REAL = """
import ctypes, os, pathlib, platform, sys
from pelagos.common import memory_nodes as m
set_number, get_number = m._SET_AND_GET[platform.machine()]
call = ctypes.CDLL(None, use_errno=True).syscall
node = min(m.usable_nodes(os.sched_getaffinity(0)))
if not m._interleave([node], set_number, get_number, call):
    sys.exit(77)
print("interleave" in pathlib.Path("/proc/self/numa_maps").read_text())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not memory_nodes.usable_nodes(range(1024)), reason="the system says nothing of nodes"
)
def test_the_system_calls_are_those_of_linux() -> None:
    done = subprocess.run([sys.executable, "-c", REAL], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("the system refuses, as containers do")
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
