"""Both versions of control groups, as trees of files under a temporary root."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pelagos.common import cgroup

MIB = 1 << 20
Tree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup.cpu_quota(tmp_path) is None
    assert cgroup.memory_limit(tmp_path) is None
    assert cgroup.memory_left(tmp_path) is None


def test_version_2_without_limits(tree: Tree) -> None:
    root = tree(
        {
            "proc/self/cgroup": "0::/user.slice\n",
            "sys/fs/cgroup/user.slice/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": "max\n",
            "sys/fs/cgroup/user.slice/memory.current": "4096\n",
        }
    )
    assert cgroup.cpu_quota(root) is None
    assert cgroup.memory_limit(root) is None
    assert cgroup.memory_left(root) is None


def test_version_2_in_a_container(tree: Tree) -> None:
    root = tree(
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{512 * MIB}\n",
            "sys/fs/cgroup/memory.current": f"{300 * MIB}\n",
            "sys/fs/cgroup/memory.stat": f"anon {200 * MIB}\nfile {100 * MIB}\ninactive_file {64 * MIB}\n",
        }
    )
    assert cgroup.cpu_quota(root) == 1.5
    assert cgroup.memory_limit(root) == 512 * MIB
    assert cgroup.memory_left(root) == (512 - 300 + 64) * MIB


def test_the_smallest_limit_on_the_way_to_the_root_holds(tree: Tree) -> None:
    root = tree(
        {
            "proc/self/cgroup": "0::/job/step/task\n",
            "sys/fs/cgroup/job/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/job/memory.max": f"{100 * MIB}\n",
            "sys/fs/cgroup/job/memory.current": f"{99 * MIB}\n",
            "sys/fs/cgroup/job/step/memory.max": f"{200 * MIB}\n",
            "sys/fs/cgroup/job/step/memory.current": f"{10 * MIB}\n",
            "sys/fs/cgroup/job/step/task/cpu.max": "800000 100000\n",
            "sys/fs/cgroup/other/memory.max": "1\n",
        }
    )
    assert cgroup.cpu_quota(root) == 4.0
    assert cgroup.memory_limit(root) == 100 * MIB
    assert cgroup.memory_left(root) == 1 * MIB


def test_version_1_in_a_container_that_sees_the_hosts_path(tree: Tree) -> None:
    root = tree(
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "200000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{64 * MIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{80 * MIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {4 * MIB}\n",
        }
    )
    assert cgroup.cpu_quota(root) == 4.0
    assert cgroup.memory_limit(root) == 64 * MIB
    assert cgroup.memory_left(root) == 0


def test_version_1_without_limits(tree: Tree) -> None:
    root = tree(
        {
            "proc/self/cgroup": "5:memory:/\n4:cpu,cpuacct:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        }
    )
    assert cgroup.cpu_quota(root) is None
    assert cgroup.memory_limit(root) is None
