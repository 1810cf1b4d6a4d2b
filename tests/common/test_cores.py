"""How many threads are taken when nobody asks for a number."""

from pathlib import Path

import pytest
import torch

from pelagos.common import cores


def write_siblings(root: Path, groups: list[str]) -> None:
    for cpu, text in enumerate(groups):
        folder = root / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")


def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    write_siblings(tmp_path, ["0,2", "1,3", "0,2", "1,3"])
    assert cores.num_physical_cores(range(4), tmp_path) == 2
    assert cores.num_physical_cores([0, 1, 2], tmp_path) == 2
    assert cores.num_physical_cores([0, 2], tmp_path) == 1


def test_unknown_cores_count_alone(tmp_path: Path) -> None:
    write_siblings(tmp_path, ["0-1", "0-1", ""])
    assert cores.num_physical_cores(range(5), tmp_path) == 4
    assert cores.num_physical_cores(range(3), tmp_path / "none") == 3


@pytest.fixture
def big_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Linux machine of 16 physical cores, all to be used."""
    monkeypatch.delenv("PELAGOS_THREADS", raising=False)
    monkeypatch.setattr(cores.sys, "platform", "linux")
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda _: set(range(32)), raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda quota: 32 if quota is None else int(quota))
    monkeypatch.setattr(cores.cgroup, "cpu_quota", lambda: None)
    monkeypatch.setattr(cores, "num_physical_cores", lambda logical: len(logical) // 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)


@pytest.mark.usefixtures("big_machine")
def test_the_smallest_limit_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores.default_num_threads() == 16
    monkeypatch.setattr(cores.cgroup, "cpu_quota", lambda: 3.5)
    assert cores.default_num_threads() == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert cores.default_num_threads() == 2
    monkeypatch.setenv("PELAGOS_THREADS", "24")
    assert cores.default_num_threads() == 24


@pytest.mark.usefixtures("big_machine")
def test_other_systems_have_no_topology_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.sys, "platform", "darwin")
    monkeypatch.delattr(cores.os, "sched_getaffinity")
    assert cores.default_num_threads() == 32
