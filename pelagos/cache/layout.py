"""What of a sequence lies where: pages of rows, one block of fixed size, and what of the block a restart point needs.

    page    the compressed rows of 128 tokens, of every layer: the unit of storage, of hashing and of sharing
    block   window rings, open windows and overlaps of every layer, then the same of the multi-token-prediction block

Shapes come from the model's state alone (``model/native_state.py``).
"""

from dataclasses import dataclass

from pelagos.model.config import PAGE_TOKENS
from pelagos.model.native_state import CompressedPlace, LayerPlace, StateLayout

Span = tuple[int, int]  # bytes start .. stop of a block


@dataclass(frozen=True, kw_only=True)
class CacheLayout:
    """Bytes of a model's sequences. ``boundary``: spans of a block that hold what is live behind a multiple of 128
    tokens, where no window is open: window rings and overlaps; elsewhere the whole block is live."""

    main: StateLayout
    draft: StateLayout
    page_bytes: int
    block_bytes: int
    boundary: tuple[Span, ...]

    @staticmethod
    def of(main: StateLayout, draft: StateLayout) -> "CacheLayout":
        """For a model with these layouts; ``draft`` has no layers where the model has no such block."""
        spans = [*_live_spans(main, 0), *_live_spans(draft, main.block_bytes)]
        return CacheLayout(
            main=main,
            draft=draft,
            page_bytes=sum(part.page_bytes for place in main.layers for part in place.parts),
            block_bytes=main.block_bytes + draft.block_bytes,
            boundary=tuple(_joined(spans)),
        )

    @property
    def boundary_bytes(self) -> int:
        """Bytes of a restart point behind a multiple of 128 tokens."""
        return sum(stop - start for start, stop in self.boundary)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of pages per token of context."""
        return self.page_bytes / PAGE_TOKENS


def _live_spans(layout: StateLayout, offset: int) -> list[Span]:
    spans: list[Span] = []
    for place in layout.layers:
        spans.append((place.window_at, place.window_at + place.num_window_rows * place.window_row.bytes))
        spans += [(part.overlap_at, part.overlap_at + part.overlap_bytes) for part in place.parts]
    return [(start + offset, stop + offset) for start, stop in spans if stop > start]


def _joined(spans: list[Span]) -> list[Span]:
    """Neighbouring spans in one piece."""
    joined: list[Span] = []
    for start, stop in sorted(spans):
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return joined


def rewind_spans(layout: StateLayout, offset: int, position: int) -> list[Span]:
    """Bytes of a block, at ``offset``, that the token at ``position`` writes, overlaps left out: its window row and its
    pairs of every layer."""
    spans: list[Span] = []
    for place in layout.layers:
        at = place.window_at + position % place.num_window_rows * place.window_row.bytes
        spans.append((at, at + place.window_row.bytes))
        spans += [_pair(part, position) for part in place.parts]
    return [(start + offset, stop + offset) for start, stop in spans]


def overlap_spans(place: LayerPlace) -> list[tuple[int, Span]]:
    """Tokens per row and bytes of each overlap of a layer."""
    return [
        (part.ratio, (part.overlap_at, part.overlap_at + part.overlap_bytes))
        for part in place.parts
        if part.overlap_bytes
    ]


def _pair(part: CompressedPlace, position: int) -> Span:
    at = part.tail_at + position % part.ratio * part.pair_bytes
    return at, at + part.pair_bytes
