"""From facts, questions and answers to a sample: as plain text or as a conversation, with filler around the facts.

text:  filler, fact, filler, then per question  "Question: ...\nAnswer: ...\n"  or a line that starts with a cue
chat:  the same filler and facts in front of the first question; each answer is an assistant's turn
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pelagos.training.tasks.item import Exchange, Item, Piece
from pelagos.training.tasks.knobs import Knobs
from pelagos.training.tasks.sample import Kind, Sample, Segment, Turn


@dataclass(frozen=True, kw_only=True)
class Form:
    """What a sample is to look like. ``cue``: plain text asks by the start of a line; ``real``: filler is real text;
    ``num_tokens``: the length it is to have."""

    task: str
    kind: Kind
    held_out: bool
    thinking: bool
    cue: bool
    real: bool
    depth: float
    num_tokens: int | None
    knobs: Knobs


def in_order(item: Item) -> list[Piece]:
    """The pieces from depth 0 to depth 1."""
    return sorted(item.pieces, key=lambda piece: piece.depth)


def compose(item: Item, form: Form, gaps: Sequence[str] = ()) -> Sample:
    """``gaps``: the filler before each piece ``in_order`` and behind the last, each ending in a line end or empty."""
    exchanges = item.exchanges
    if form.thinking and not item.tools and not item.connected:
        exchanges = exchanges[-1:]  # the official prompt drops the reasoning of all turns but the last
    context = tuple(_context(item, form, gaps))
    segments = tuple(_text(context, exchanges, form)) if form.kind == "text" else ()
    turns = tuple(_turns(context, exchanges, form, item)) if form.kind == "chat" else ()
    return Sample(
        task=form.task,
        kind=form.kind,
        held_out=form.held_out,
        segments=segments,
        turns=turns,
        tools=item.tools,
        thinking=form.thinking,
        quick=item.quick[0] if item.quick else None,
        answer=item.quick[1] if item.quick else _answer(exchanges[-1], form),
        grader=item.grader,
        metadata={**item.metadata, "depth": form.depth, "target_tokens": form.num_tokens},
    )


def _answer(exchange: Exchange, form: Form) -> str:
    """What is to be written: in a conversation the lead too."""
    return f"{exchange.lead} {exchange.answer}" if form.kind == "chat" and exchange.lead else exchange.answer


def _context(item: Item, form: Form, gaps: Sequence[str]) -> Iterator[Segment]:
    pieces = in_order(item)
    filler_weight = form.knobs.haystack_weight if form.real else form.knobs.filler_weight
    for gap, piece in zip(gaps or [""] * (len(pieces) + 1), [*pieces, None], strict=True):
        if gap:
            yield Segment(text=gap, weight=filler_weight)
        if piece is not None:
            yield Segment(text=piece.text + "\n", weight=form.knobs.filler_weight)


def _text(context: tuple[Segment, ...], exchanges: Sequence[Exchange], form: Form) -> Iterator[Segment]:
    yield from context
    for exchange in exchanges:
        asked = exchange.cue if form.cue and exchange.cue is not None else f"Question: {exchange.question}\nAnswer:"
        yield Segment(text=asked, weight=form.knobs.filler_weight)
        yield Segment(text=f" {exchange.answer}\n", weight=1.0, answer=True)


def _turns(context: tuple[Segment, ...], exchanges: Sequence[Exchange], form: Form, item: Item) -> Iterator[Turn]:
    num_calls = 0
    for exchange in exchanges:
        question = ("\n" if context else "") + exchange.question
        yield Turn(role="user", segments=(*context, Segment(text=question, weight=form.knobs.filler_weight)))
        context = ()
        if item.quick and exchange is exchanges[-1] and not exchange.answer:
            return
        for step in exchange.steps:
            ids = tuple(f"call_{num_calls + i}" for i in range(len(step.calls)))
            num_calls += len(ids)
            yield Turn(
                role="assistant",
                reasoning=step.reasoning if form.thinking else None,
                calls=step.calls,
                call_ids=ids,
            )
            for result, call_id in zip(step.results, ids, strict=True):
                yield Turn(role="tool", segments=(Segment(text=result, weight=0.0),), call_ids=(call_id,))
        yield Turn(
            role="assistant",
            segments=(Segment(text=_answer(exchange, form), weight=0.0 if item.quick else 1.0, answer=not item.quick),),
            reasoning=exchange.reasoning if form.thinking else None,
        )
