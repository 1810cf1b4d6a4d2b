"""The tree of known prefixes: what it finds, what it keeps, what it gives up first."""

import numpy as np
import pytest

from pelagos.cache.layout import CacheLayout
from pelagos.cache.pool import PagePool
from pelagos.cache.prefix import Node, PrefixTree, Tail
from pelagos.model.native_state import StateLayout
from pelagos.model.presets import preset


def tokens(*pages: int, rest: int = 0) -> np.ndarray:
    """Pages of 128 equal tokens each, and ``rest`` tokens more."""
    return np.array([page for page in pages for _ in range(128)] + [9] * rest, dtype=np.int32)


@pytest.fixture
def tree() -> PrefixTree:
    config = preset("tiny")
    layout = CacheLayout.of(StateLayout.of(config, config.layers), StateLayout.of(config, config.mtp_layers))
    return PrefixTree(PagePool(layout, 64), b"model")


def grow(tree: PrefixTree, *pages: int, namespace: str = "", restarts: tuple[int, ...] = ()) -> Node:
    """A path in use; ``restarts``: number of pages behind which there is a restart point."""
    node = tree.root(namespace)
    tree.use(node)
    for number, page in enumerate(pages, 1):
        child = tree.add(node, tokens(page).tobytes(), tree.pool.allocate())
        tree.move(node, child)
        node = child
        if number in restarts:
            tree.put_restart(node, np.zeros(100, dtype=np.uint8))
    return node


def test_the_longest_restart_point_is_found(tree: PrefixTree) -> None:
    grow(tree, 1, 2, 3, restarts=(1, 2))
    match = tree.match("", tokens(1, 2, 3, 4))
    assert (match.num_tokens, match.num_known) == (256, 384)
    assert tree.match("", tokens(1, 2)).num_tokens == 128  # one token is always left to read
    assert tree.match("", tokens(1, 2, rest=1)).num_tokens == 256
    assert tree.match("", tokens(5, 2)).num_known == 0
    assert tree.match("other", tokens(1, 2, 3)).num_known == 0


def test_a_tail_goes_on_to_the_token(tree: PrefixTree) -> None:
    leaf = grow(tree, 1, restarts=(1,))
    for rest in (5, 60):
        part = tokens(rest=rest).tobytes()
        tree.put_tail(leaf, part, tree.pool.allocate(), np.zeros(10, dtype=np.uint8))
    assert tree.match("", tokens(1, rest=61)).num_tokens == 188
    assert tree.match("", tokens(1, rest=60)).num_tokens == 133
    assert tree.match("", tokens(1, rest=5)).num_tokens == 128
    assert isinstance(tree.match("", tokens(1, rest=200)).place, Tail)


def test_keys_depend_on_all_that_rows_depend_on(tree: PrefixTree) -> None:
    paths = [grow(tree, 1, 2), grow(tree, 2, 2), grow(tree, 1, 2, namespace="other")]
    other = PrefixTree(tree.pool, b"another model")
    paths.append(grow(other, 1, 2))
    assert len({node.key for node in paths}) == 4
    assert grow(tree, 1, 2).key == paths[0].key


def test_known_pages_are_not_kept_twice(tree: PrefixTree) -> None:
    first, used = grow(tree, 1, 2), tree.pool.num_used
    assert grow(tree, 1, 2) is first
    assert tree.pool.num_used == used == 2


def test_what_cannot_be_gone_on_from_goes_when_it_is_left(tree: PrefixTree) -> None:
    leaf = grow(tree, 1, 2, 3, restarts=(1,))
    tree.leave(leaf)
    assert tree.num_pages == 1
    tree.check_integrity()


def test_what_is_in_use_stays(tree: PrefixTree) -> None:
    leaf = grow(tree, 1, 2, restarts=(1, 2))
    assert tree.num_evictable == 0
    assert tree.evict(10) == 0
    tree.leave(leaf)
    assert tree.num_evictable == 2
    assert tree.evict(10) == 2
    assert tree.pool.num_used == 0
    assert tree.check_integrity() == []


def test_the_cheapest_goes_first(tree: PrefixTree) -> None:
    """A restart point close behind another saves little; one far behind saves much."""
    tree.leave(grow(tree, 1, 1, 1, 1, 1, 1, 1, 1, restarts=(1, 7, 8)))
    assert tree.evict(1) == 1
    assert tree.match("", tokens(*[1] * 9)).num_tokens == 7 * 128


def test_what_was_used_lately_is_worth_more(tree: PrefixTree) -> None:
    for page in (1, 2, 3):
        tree.leave(grow(tree, page, restarts=(1,)))
    for _ in range(300):
        tree.match("", tokens(1, rest=1))
        tree.match("", tokens(3, rest=1))
    tree.evict(1)
    assert [tree.match("", tokens(page, rest=1)).num_tokens for page in (1, 2, 3)] == [128, 0, 128]


def test_restart_points_keep_to_their_limit_also_where_pages_are_in_use(tree: PrefixTree) -> None:
    leaf = grow(tree, *range(20), restarts=tuple(range(1, 21)))
    tree.evict_restarts(1000)
    assert tree.restart_bytes <= 1000
    assert tree.num_pages == 20
    tree.leave(leaf)
    tree.check_integrity()


def test_empty_namespaces_leave_nothing_behind(tree: PrefixTree) -> None:
    for number in range(50):
        tree.leave(grow(tree, 1, namespace=f"user {number}"))
    assert list(tree.nodes()) == []
    assert not tree._roots
