"""Which prefixes are known: a tree of pages by content, with the places where a sequence can go on from.

A node is one full page behind its parent's: 128 tokens, found by the tokens themselves. A tail is a part of a page
behind a node, kept where an answer ended. Both may hold a restart point; a page that no restart point lies at or
behind, and that nobody uses, is of no use and goes at once.

Ownership: the tree owns the pages of nodes and tails. A node is in use while a timeline has it as its leaf or a child
is in use. What is not in use may be evicted, cheapest first: a restart point's worth is the tokens that would have to
be read again without it, per byte that goes with it, less the longer ago it was used.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash

from pelagos.cache.pool import PagePool
from pelagos.model.config import PAGE_TOKENS

_HALF_LIFE = 256  # uses of the tree after which a restart point's worth has halved


@dataclass(kw_only=True, eq=False)
class Node:
    """One page of a known prefix. ``tokens``: its ids as int32 bytes; ``key``: hash of the whole prefix up to its end,
    of the model and of the namespace. A root stands for the empty prefix of a namespace, whose name are its tokens."""

    parent: "Node | None"
    tokens: bytes
    key: bytes
    page: int
    num_tokens: int
    children: dict[bytes, "Node"] = field(default_factory=dict)
    tails: dict[bytes, "Tail"] = field(default_factory=dict)
    restart: np.ndarray | None = None
    num_users: int = 0
    last_used: int = 0

    def path(self) -> list[int]:
        """Pages from the first to this one."""
        pages, node = [], self
        while node.parent is not None:
            pages.append(node.page)
            node = node.parent
        return pages[::-1]

    @property
    def is_useless(self) -> bool:
        nothing = not self.children and not self.tails and self.restart is None
        return nothing and self.num_users == 0


@dataclass(kw_only=True, eq=False)
class Tail:
    """Part of a page behind ``parent``, with a restart point at its end."""

    parent: Node
    tokens: bytes
    page: int
    num_tokens: int
    restart: np.ndarray
    last_used: int = 0


@dataclass(frozen=True, kw_only=True)
class Match:
    """What is known of a prompt. ``num_tokens``: from where it can go on, at ``place``; ``num_known``: tokens whose
    rows are there, whether or not a restart point is."""

    place: Node | Tail
    num_tokens: int
    num_known: int


class PrefixTree:
    def __init__(self, pool: PagePool, fingerprint: bytes) -> None:
        """``fingerprint``: what the rows depend on beside the tokens, such as the model."""
        self.pool, self._fingerprint = pool, fingerprint
        pool.reclaim = self.evict
        self._roots: dict[str, Node] = {}
        self._clock = 0
        self._restarts: set[Node | Tail] = set()
        self.num_pages = 0  # owned by nodes and tails
        self.num_pinned = 0  # of nodes in use
        self.restart_bytes = 0
        self.num_evicted = 0

    @property
    def num_evictable(self) -> int:
        """Pages that could be freed now."""
        return self.num_pages - self.num_pinned

    def root(self, namespace: str) -> Node:
        if namespace not in self._roots:
            key = xxhash.xxh3_128_digest(self._fingerprint + namespace.encode())
            self._roots[namespace] = Node(parent=None, tokens=namespace.encode(), key=key, page=-1, num_tokens=0)
        return self._roots[namespace]

    def match(self, namespace: str, ids: np.ndarray) -> Match:
        """The longest known prefix of ``ids`` (int32) that leaves at least one token to read."""
        self._clock += 1
        node = self.root(namespace)
        path = [node]
        for page in _pages(ids):
            child = node.children.get(page)
            if child is None:
                break
            node = child
            path.append(node)
        num_known = min(node.num_tokens, len(ids) - 1)
        for node in reversed(path):
            tail = self._tail(node, ids)
            if tail is not None:
                tail.last_used = self._clock
                return Match(place=tail, num_tokens=tail.num_tokens, num_known=max(num_known, tail.num_tokens))
            if node.restart is not None and node.num_tokens < len(ids):
                node.last_used = self._clock
                return Match(place=node, num_tokens=node.num_tokens, num_known=num_known)
        return Match(place=path[0], num_tokens=0, num_known=num_known)

    def _tail(self, node: Node, ids: np.ndarray) -> Tail | None:
        """The longest tail behind ``node`` that ``ids`` goes on with."""
        rest = ids[node.num_tokens : node.num_tokens + PAGE_TOKENS].tobytes()
        fitting = [t for t in node.tails.values() if t.num_tokens < len(ids) and rest.startswith(t.tokens)]
        return max(fitting, key=lambda tail: tail.num_tokens, default=None)

    def add(self, parent: Node, tokens: bytes, page: int) -> Node:
        """File a full page, which is the tree's from now on. If it is known already, ``page`` is released, and the node
        that was there is the one to use."""
        known = parent.children.get(tokens)
        if known is not None:
            self.pool.release(page)
            return known
        key = xxhash.xxh3_128_digest(parent.key + tokens)
        node = Node(parent=parent, tokens=tokens, key=key, page=page, num_tokens=parent.num_tokens + PAGE_TOKENS)
        parent.children[tokens] = node
        self.num_pages += 1
        return node

    def put_restart(self, node: Node, data: np.ndarray) -> None:
        """Let sequences go on from the end of ``node``."""
        if node.restart is None and node.parent is not None:
            node.restart, node.last_used = data, self._clock
            self._restarts.add(node)
            self.restart_bytes += data.nbytes

    def put_tail(self, parent: Node, tokens: bytes, page: int, data: np.ndarray) -> None:
        """Let sequences go on from the end of ``tokens`` behind ``parent``; ``page`` is the tree's from now on."""
        if tokens in parent.tails:
            self.pool.release(page)
            return
        num_tokens = parent.num_tokens + len(tokens) // 4
        tail = Tail(parent=parent, tokens=tokens, page=page, num_tokens=num_tokens, restart=data, last_used=self._clock)
        parent.tails[tokens] = tail
        self._restarts.add(tail)
        self.num_pages += 1
        self.restart_bytes += data.nbytes

    def use(self, node: Node) -> None:
        """A timeline has ``node`` as its leaf."""
        node.num_users += 1
        while node.num_users == 1 and node.parent is not None:
            self.num_pinned += 1
            node = node.parent
            node.num_users += 1

    def leave(self, node: Node) -> None:
        """It does no more."""
        leaf = node
        node.num_users -= 1
        while node.num_users == 0 and node.parent is not None:
            self.num_pinned -= 1
            node = node.parent
            node.num_users -= 1
        self._prune(leaf)

    def move(self, old: Node, new: Node) -> None:
        """A timeline's leaf was ``old`` and is its child ``new``."""
        self.use(new)
        self.leave(old)

    def evict(self, num_pages: int, spare: Tail | None = None) -> int:
        """Free at least ``num_pages`` pages if that many are not in use and not of ``spare``; returns how many."""
        before = self.num_pages
        for place in sorted(self._restarts, key=self._worth):
            if before - self.num_pages >= num_pages:
                break
            if place is not spare and (isinstance(place, Tail) or place.num_users == 0):
                self._drop(place)
        return before - self.num_pages

    def evict_restarts(self, limit_bytes: int) -> None:
        """Drop restart points until those left take at most ``limit_bytes``."""
        if self.restart_bytes > limit_bytes:
            for place in sorted(self._restarts, key=self._worth):
                if self.restart_bytes <= limit_bytes * 0.9:
                    break
                self._drop(place)

    def _drop(self, place: Node | Tail) -> None:
        assert place.restart is not None
        self._restarts.remove(place)
        self.num_evicted += 1
        self.restart_bytes -= place.restart.nbytes
        if isinstance(place, Tail):
            del place.parent.tails[place.tokens]
            self._free(place.page)
            self._prune(place.parent)
        else:
            place.restart = None
            self._prune(place)

    def _prune(self, node: Node) -> None:
        """Remove nodes that nothing needs, from ``node`` upwards."""
        while node.parent is not None and node.is_useless:
            parent = node.parent
            if parent.children.get(node.tokens) is node:
                del parent.children[node.tokens]
                self._free(node.page)
            node = parent
        if node.parent is None and node.is_useless:
            self._roots.pop(node.tokens.decode(), None)

    def _free(self, page: int) -> None:
        self.pool.release(page)
        self.num_pages -= 1

    def _worth(self, place: Node | Tail) -> float:
        """Tokens saved per byte that goes with the restart point, halved every _HALF_LIFE uses of the tree."""
        assert place.restart is not None
        assert place.parent is not None
        freed = isinstance(place, Tail) or not (place.children or place.tails or place.num_users)
        num_pages, node = int(freed), place.parent
        while node.parent is not None and node.restart is None:
            freed = freed and node.num_users == 0 and len(node.children) + len(node.tails) == 1
            num_pages += freed
            node = node.parent
        num_bytes = place.restart.nbytes + num_pages * self.pool.layout.page_bytes
        age = self._clock - place.last_used
        return (place.num_tokens - node.num_tokens) / num_bytes * float(0.5 ** (age / _HALF_LIFE))

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            stack += node.children.values()
            if node.parent is not None:
                yield node

    def check_integrity(self) -> list[int]:
        """The pages that the tree owns; AssertionError where its counts do not add up."""
        nodes = list(self.nodes())
        everything = [*nodes, *self._roots.values()]
        tails = [tail for node in everything for tail in node.tails.values()]
        pages = [node.page for node in nodes] + [tail.page for tail in tails]
        assert len(pages) == self.num_pages
        assert sum(node.num_users > 0 for node in nodes) == self.num_pinned
        restarts: set[Node | Tail] = {node for node in nodes if node.restart is not None} | set(tails)
        assert restarts == self._restarts
        assert sum(place.restart.nbytes for place in restarts if place.restart is not None) == self.restart_bytes
        assert not any(node.is_useless for node in nodes), "a page that nothing needs was kept"
        return pages


def _pages(ids: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(ids) - PAGE_TOKENS + 1, PAGE_TOKENS):
        yield ids[start : start + PAGE_TOKENS].tobytes()
