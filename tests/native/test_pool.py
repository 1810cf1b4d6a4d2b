"""The pool of threads: regions, barriers, shares, sizes, forks. Races are looked for by races.cpp, `make sanitize`."""

import os
import threading
from types import ModuleType

import pytest
import torch


@pytest.mark.parametrize("num_threads", range(1, 9))
def test_barriers_hold_every_thread(module: ModuleType, num_threads: int) -> None:
    module.set_num_threads(num_threads)
    assert module.num_threads() == num_threads
    assert module.count_missed(50, 5) == 0
    assert module.count_missed(1, 200) == 0
    assert module.count_missed(200, 0) == 0


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("n", "grain"), [(0, 1), (1, 1), (2, 16), (100, 16), (97, 1), (1 << 40, 128)])
def test_shares_cover_everything_once(module: ModuleType, num_threads: int, n: int, grain: int) -> None:
    module.set_num_threads(num_threads)
    parts = module.shares(n, grain)
    assert len(parts) == num_threads
    assert [begin for begin, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == n
    assert all(begin % grain == 0 or begin == n for begin, _ in parts)
    sizes = [-(-(end - begin) // grain) for begin, end in parts]
    assert max(sizes) - min(sizes) <= 1


def test_callers_take_turns(module: ModuleType) -> None:
    module.set_num_threads(3)
    missed: list[int] = []
    callers = [threading.Thread(target=lambda: missed.append(module.count_missed(100, 3))) for _ in range(4)]
    for caller in callers:
        caller.start()
    for i in range(30):
        module.set_num_threads(1 + i % 4)
        missed.append(module.count_missed(1, 1))
    for caller in callers:
        caller.join()
    assert missed == [0] * 34


def test_every_thread_keeps_subnormals(module: ModuleType) -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("torch cannot flush subnormals here")
    try:
        module.set_num_threads(3)  # the other threads are made by one that flushes
        assert module.half_of_a_subnormal() == [1 << 18] * 3  # the bits of 2^-131
        half = torch.tensor([2.0**-130]) * 0.5
        assert half.item() == 0.0  # and the caller goes on as it did
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(module: ModuleType) -> None:
    module.set_num_threads(3)
    assert module.count_missed(2, 2) == 0
    child = os.fork()
    if child == 0:  # no pytest from here on
        same = module.num_threads() == 3 and module.count_missed(5, 2) == 0
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert module.count_missed(2, 2) == 0


@pytest.mark.parametrize("num_threads", [0, -1])
def test_no_threads_are_refused(module: ModuleType, num_threads: int) -> None:
    with pytest.raises(ValueError, match="num_threads must be at least 1"):
        module.set_num_threads(num_threads)
