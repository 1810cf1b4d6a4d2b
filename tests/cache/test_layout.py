"""Bytes: pages are as small as the rows in them, for the released models as the published figures say."""

import numpy as np
import pytest

from pelagos.cache.layout import CacheLayout
from pelagos.cache.policy import RestartPolicy
from pelagos.cache.pool import PagePool
from pelagos.cache.prefix import PrefixTree
from pelagos.cache.timeline import Timeline
from pelagos.model.native_state import RowFormats, StateLayout
from pelagos.model.presets import preset

V3_2_BYTES_PER_TOKEN = 48_068  # 61 layers of 656-byte rows and 132-byte index rows


def layout_of(name: str, **formats: str) -> CacheLayout:
    config, rows = preset(name), RowFormats(**formats)
    main = StateLayout.of(config, config.layers, rows)
    return CacheLayout.of(main, StateLayout.of(config, config.mtp_layers[:1], rows))


@pytest.mark.parametrize(("name", "expected", "factor"), [("flash", 3514.25, 13.6), ("pro", 5031.4, 9.5)])
def test_bytes_per_token_of_the_released_models(name: str, expected: float, factor: float) -> None:
    layout = layout_of(name)
    assert layout.bytes_per_token == pytest.approx(expected, abs=0.05)
    assert V3_2_BYTES_PER_TOKEN / layout.bytes_per_token == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize(
    ("rows", "index_rows", "flash", "pro"), [("fp8", "fp8", 3850.25, 5511.4), ("bf16", "bf16", 6880.0, 9848.0)]
)
def test_bytes_per_token_of_the_other_formats(rows: str, index_rows: str, flash: float, pro: float) -> None:
    for name, expected in (("flash", flash), ("pro", pro)):
        layout = layout_of(name, rows=rows, index_rows=index_rows)
        assert layout.bytes_per_token == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("name", ["flash", "pro"])
def test_a_long_sequence_takes_the_minimum_and_no_more(name: str) -> None:
    """100,000 tokens: what is allocated, and what the system has really given, against rows alone."""
    layout, num_tokens = layout_of(name), 100_000
    pool = PagePool(layout, 1 << 13)
    timeline = Timeline(pool, PrefixTree(pool, b"").root(""), [], 1 << 13)
    timeline.reserve(num_tokens)
    minimum = layout.bytes_per_token * num_tokens
    allocated = timeline.num_pages * layout.page_bytes
    assert minimum <= allocated <= 1.002 * minimum
    before = resident_bytes()
    for page in timeline.own_pages:
        pool.copy((1 << 13) - 1, page)  # writes every byte of the page
    grown = resident_bytes() - before
    if before:
        assert grown <= 1.02 * minimum


def resident_bytes() -> int:
    try:
        with open("/proc/self/smaps_rollup") as file:
            private = [line.split()[1] for line in file if line.startswith(("Private_Dirty", "Private_Clean"))]
    except OSError:
        return 0
    return 1024 * sum(map(int, private))


def test_a_million_tokens_can_be_addressed() -> None:
    layout = layout_of("pro")
    pool = PagePool(layout, (1 << 20) // 128)
    last = pool.num_pages - 1
    for page in (0, last):
        pool.copy(page, page)
    assert pool.read(last) == bytes(layout.page_bytes)


def test_the_pool_grows_without_moving() -> None:
    pool = PagePool(layout_of("flash"), 1000)
    addresses = pool.memory.clone()
    pages = [pool.allocate() for _ in range(500)]
    assert (pool.memory == addresses).all()
    assert pages == list(range(500))
    pool.release(7)
    assert pool.allocate() == 7
    pool.check_integrity(pages)
    with pytest.raises(AssertionError, match="lost"):
        pool.check_integrity(pages[1:])


def test_restart_points_of_long_texts_take_a_tenth_of_the_pages() -> None:
    for name in ("tiny", "flash", "pro"):
        layout = layout_of(name)
        interval = RestartPolicy.of(layout).interval
        assert interval % 128 == 0
        assert layout.boundary_bytes <= 0.11 * layout.page_bytes * interval / 128


def test_a_prompt_is_read_up_to_the_next_restart_point() -> None:
    policy = RestartPolicy(interval=512)
    assert policy.next_stop(0, 300, ()) == 256
    assert policy.next_stop(256, 300, ()) == 300
    assert policy.next_stop(0, 257, ()) == 256
    assert policy.next_stop(0, 256, ()) == 128  # the last token is read after the restart point
    assert policy.next_stop(0, 5000, ()) == 512
    assert policy.next_stop(512, 5000, {640}) == 640
    assert policy.next_stop(100, 5000, {64}) == 512
    assert policy.is_stop(640, 5000, {640})
    assert not policy.is_stop(768, 5000, {640})


def test_pages_are_copied_whole() -> None:
    layout = layout_of("tiny")
    pool = PagePool(layout, 4)
    rng = np.random.default_rng(0)
    source, target = pool.allocate(), pool.allocate()
    arena = np.frombuffer(pool._map, dtype=np.uint8)
    arena[:] = rng.integers(0, 256, len(arena))
    before = pool.read(source)
    assert len(before) == layout.page_bytes
    assert pool.read(target) != before
    pool.copy(source, target)
    assert pool.read(target) == pool.read(source) == before
