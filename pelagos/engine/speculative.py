"""Guesses at the tokens to come, by the model's multi-token-prediction block.

A guess is read together with the token before it and counts only if it is what would have been chosen anyway, by the
same random number: tokens and their distribution stay exactly as they are, at any temperature. What a guess costs is
reading one token more; whether that pays is measured while the engine runs: stretches of steps with guesses and without
take turns, and the faster way gets the longer stretches.

The block keeps window rows alone. It sees every token that is read while guesses are made; when they pause, its window
has gaps, which makes guesses worse and nothing else.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pelagos.engine.config import EngineConfig
from pelagos.engine.sequence import Batch, Piece, Sequence
from pelagos.model.native import MAX_BATCH_TOKENS
from pelagos.model.transformer import Model

_TRIAL, _STRETCH = 16, 256  # steps


@dataclass
class _Way:
    """Steps made in one of the two ways: tokens and seconds, older ones counting less."""

    tokens: float = 0.0
    seconds: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self.tokens = 0.98 * self.tokens + num_tokens
        self.seconds = 0.98 * self.seconds + seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Drafter:
    """Makes guesses for few answers at a time, where the model can and it pays."""

    def __init__(self, model: Model, config: EngineConfig) -> None:
        self.config = config
        self._native = model.native if model.mtp and config.draft_tokens else None
        self._window = model.config.mtp_layers[0].window if model.mtp else 0
        self._ways = {True: _Way(), False: _Way()}
        self._is_drafting, self._is_trial, self._steps_left = True, True, _TRIAL

    @property
    def is_drafting(self) -> bool:
        """Whether guesses are made now."""
        return self._native is not None and self._is_drafting

    def mark(self, batch: Batch) -> None:
        """Before a step: from where guesses may have to be taken back."""
        for piece in batch:
            if piece.num_drafts:
                piece.sequence.timeline.mark()

    def draft(self, batch: Batch, streams: Tensor) -> None:
        """After tokens were chosen: guess the ones behind them. ``streams`` [T, M, D]: what the main model made of the
        pieces' tokens."""
        if not self.is_drafting or sum(piece.num_logits > 0 for piece in batch) > self.config.max_drafting:
            return
        seen: list[_Seen] = []
        room = MAX_BATCH_TOKENS
        for piece, stream in zip(batch, streams.split([len(piece.token_ids) for piece in batch]), strict=True):
            part = self._seen(piece, stream)
            if part is not None and len(part.next_ids) <= room:
                room -= len(part.next_ids)
                seen.append(part)
        if seen:
            self._guess(seen)

    def _seen(self, piece: Piece, stream: Tensor) -> "_Seen | None":
        """What the block learns of a piece; None of those too far from a prompt's end to matter."""
        sequence = piece.sequence
        stop = sequence.timeline.num_tokens
        is_far = stop < sequence.job.num_prompt_tokens - self._window
        if is_far or stop >= sequence.num_ids or sequence.finish_reason is not None:
            return None
        sequence.timeline.draft.num_tokens = piece.start
        next_ids: list[int] = sequence.ids[piece.start + 1 : stop + 1].tolist()
        return _Seen(sequence=sequence, streams=stream[: len(next_ids)], next_ids=next_ids)

    def _guess(self, seen: "list[_Seen]") -> None:
        """Read what is new, then guess one token after another behind sequences whose prompt is read."""
        streams = torch.cat([part.streams for part in seen])
        ids, lengths = [i for part in seen for i in part.next_ids], [len(part.next_ids) for part in seen]
        logits_rows = np.cumsum(lengths) - 1
        guesses = self._advance(ids, lengths, [part.sequence for part in seen], streams, logits_rows.tolist())
        ready = [i for i, part in enumerate(seen) if self._may_guess(part.sequence)]
        for i in ready:
            seen[i].sequence.drafts = [guesses[i]]
        kept = [(seen[i].sequence, seen[i].sequence.timeline.save_draft()) for i in ready]
        last = streams[logits_rows[ready]] if ready else streams[:0]
        for _ in range(1, self.config.draft_tokens if ready else 1):
            sequences = [sequence for sequence, _ in kept]
            ids = [sequence.drafts[-1] for sequence in sequences]
            ones = [1] * len(sequences)
            for sequence, guess in zip(
                sequences, self._advance(ids, ones, sequences, last, list(range(len(ones)))), strict=True
            ):
                sequence.drafts.append(guess)
        for sequence, saved in kept:
            sequence.timeline.load_draft(saved)

    def _may_guess(self, sequence: Sequence) -> bool:
        """Whether the next step reads one token of the sequence alone, and more may follow it."""
        room = sequence.job.num_prompt_tokens + sequence.job.max_tokens - sequence.num_ids
        return len(sequence.pending) == 1 and room > self.config.draft_tokens

    def _advance(
        self, ids: list[int], lengths: list[int], sequences: list[Sequence], streams: Tensor, rows: list[int]
    ) -> list[int]:
        """The block's likeliest token behind each of ``rows``; ``streams`` become the block's own."""
        assert self._native is not None
        states = [sequence.timeline.draft for sequence in sequences]
        self._native.advance(ids, lengths, states, streams, is_draft=True)
        logits = self._native.new_logits(len(rows))
        self._native.output(streams, rows, logits, is_draft=True)
        guesses: list[int] = logits.numpy().argmax(axis=1).tolist()
        return guesses

    def note(self, batch: Batch, num_tokens: int, seconds: float) -> None:
        """After a step that wrote ``num_tokens``: find out the faster way. Steps that read prompts do not count."""
        if self._native is None or len(batch) > self.config.max_drafting:
            return
        if any(piece.start < piece.sequence.job.num_prompt_tokens for piece in batch):
            return
        self._ways[self._is_drafting].add(num_tokens, seconds)
        self._steps_left -= 1
        if self._steps_left > 0:
            return
        drafting, plain = self._ways[True], self._ways[False]
        faster = drafting.rate > plain.rate if drafting.seconds and plain.seconds else not self._is_drafting
        is_trial = self._is_trial = not self._is_trial
        self._is_drafting = not faster if is_trial else faster
        self._steps_left = _TRIAL if is_trial else _STRETCH


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """New tokens of a sequence as the block reads them: streams of their positions, and the tokens behind each."""

    sequence: Sequence
    streams: Tensor
    next_ids: list[int]
