"""Runs a batch through the model: tokens in, logits out, sequences advanced.

``NativeRunner`` runs the native forward pass on sequences in pages, ``PlainRunner`` the reference ops on plain states.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from pelagos.engine.sequence import Batch, Piece
from pelagos.model.native import MAX_BATCH_TOKENS
from pelagos.model.transformer import Model


class Runner(ABC):
    """Owns the model's forward pass."""

    @abstractmethod
    def run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The logits that the pieces ask for, one piece's behind another's, [N, V]; and for each piece the residual
        streams [T, M, D] of its tokens, or none at all where nothing is drafted. All float32."""


class NativeRunner(Runner):
    def __init__(self, model: Model) -> None:
        assert model.native is not None
        self.native, self._vocab_size = model.native, model.config.vocab_size

    def run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        logits: list[Tensor] = []
        streams: list[Tensor] = []
        for part in _passes(batch):
            logits.append(self._pass(part, streams))
        return torch.cat(logits) if len(logits) > 1 else logits[0], streams

    def _pass(self, batch: Batch, streams: list[Tensor]) -> Tensor:
        lengths = [len(piece.token_ids) for piece in batch]
        flat = torch.from_numpy(np.concatenate([piece.token_ids for piece in batch]))
        out = self.native.new_streams(len(flat))
        self.native.advance(flat, lengths, [piece.sequence.timeline for piece in batch], out)
        streams += torch.split(out, lengths)
        rows: list[int] = []
        end = 0
        for piece, length in zip(batch, lengths, strict=True):
            end += length
            rows += range(end - piece.num_logits, end)
        return self.native.output(out, rows) if rows else out.new_empty(0, self._vocab_size)


def _passes(batch: Batch) -> list[Batch]:
    """Pieces in native calls of at most MAX_BATCH_TOKENS; a piece is never longer than that."""
    passes: list[list[Piece]] = []
    room = 0
    for piece in batch:
        assert len(piece.token_ids) <= MAX_BATCH_TOKENS
        if len(piece.token_ids) > room:
            passes.append([])
            room = MAX_BATCH_TOKENS
        passes[-1].append(piece)
        room -= len(piece.token_ids)
    return passes


class PlainRunner(Runner):
    def __init__(self, model: Model) -> None:
        self._model = model

    def run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        ids = [torch.from_numpy(piece.token_ids.astype(np.int64)) for piece in batch]
        states = [piece.sequence.timeline.state for piece in batch]
        rows: dict[int, Tensor] = {}
        for num_logits in (0, 1):
            chosen = [i for i, piece in enumerate(batch) if piece.num_logits == num_logits]
            if chosen:
                parts = self._model.step_batch(
                    [ids[i] for i in chosen], [states[i] for i in chosen], num_logits=num_logits
                )
                rows.update(zip(chosen, parts, strict=True))
        return torch.cat([rows[i] for i in range(len(batch))]), []
