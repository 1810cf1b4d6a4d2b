"""Runs a batch through the model: tokens in, logits out, sequences advanced.

``NativeRunner`` runs the native forward pass on sequences in pages, ``PlainRunner`` the reference ops on plain states.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from pelagos.engine.sequence import Batch, Piece
from pelagos.model.native import MAX_BATCH_TOKENS
from pelagos.model.transformer import Model


class Runner(ABC):
    """Owns the model's forward pass."""

    @abstractmethod
    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits that the pieces ask for, one piece's behind another's, [N, V]; and the residual streams of all
        their tokens, [T, M, D], or of none where nothing is drafted. Both float32, and there until the next call."""


class NativeRunner(Runner):
    def __init__(self, model: Model) -> None:
        assert model.native is not None
        self.native = model.native
        # What ``run`` returned last: the next call writes over it where the sizes are the same, as they are in most
        # steps, which read one token of each of the same sequences.
        self._num_rows, self._num_tokens = 0, 0
        self._logits, self._streams = self.native.new_logits(0), self.native.new_streams(0)

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        num_tokens = num_rows = 0
        for piece in batch:
            num_tokens += len(piece.token_ids)
            num_rows += piece.num_logits
        if num_tokens != self._num_tokens:
            self._streams, self._num_tokens = self.native.new_streams(num_tokens), num_tokens
        if num_rows != self._num_rows:
            self._logits, self._num_rows = self.native.new_logits(num_rows), num_rows
        if num_tokens <= MAX_BATCH_TOKENS:
            self._pass(batch, self._logits, self._streams)
        else:
            self._run_parts(_passes(batch))
        return self._logits, self._streams

    def _run_parts(self, parts: list[Batch]) -> None:
        logits = self._logits.split([sum(piece.num_logits for piece in part) for part in parts])
        streams = self._streams.split([sum(len(piece.token_ids) for piece in part) for part in parts])
        for part in zip(parts, logits, streams, strict=True):
            self._pass(*part)

    def _pass(self, batch: Batch, logits: Tensor, streams: Tensor) -> None:
        ids: list[int] = []
        lengths: list[int] = []
        states: list[Any] = []
        rows: list[int] = []
        for piece in batch:
            ids += piece.token_ids
            lengths.append(len(piece.token_ids))
            states.append(piece.sequence.timeline)
            rows += range(len(ids) - piece.num_logits, len(ids))
        self.native.advance(ids, lengths, states, streams)
        if rows:
            self.native.output(streams, rows, logits)


def _passes(batch: Batch) -> list[Batch]:
    """Pieces in native calls of at most MAX_BATCH_TOKENS; a piece is never longer than that."""
    passes: list[list[Piece]] = []
    room = 0
    for piece in batch:
        length = len(piece.token_ids)
        assert length <= MAX_BATCH_TOKENS
        if length > room:
            passes.append([])
            room = MAX_BATCH_TOKENS
        passes[-1].append(piece)
        room -= length
    return passes


class PlainRunner(Runner):
    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        ids = [torch.tensor(piece.token_ids) for piece in batch]
        states = [piece.sequence.timeline.state for piece in batch]
        rows: dict[int, Tensor] = {}
        for num_logits in (0, 1):
            chosen = [i for i, piece in enumerate(batch) if piece.num_logits == num_logits]
            if chosen:
                parts = self._model.step_batch(
                    [ids[i] for i in chosen], [states[i] for i in chosen], num_logits=num_logits
                )
                rows.update(zip(chosen, parts, strict=True))
        return torch.cat([rows[i] for i in range(len(batch))]), torch.empty(0)
