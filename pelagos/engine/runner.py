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
    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits that the pieces ask for, one piece's behind another's, [N, V]; and the residual streams of all
        their tokens, [T, M, D], or of none where nothing is drafted. Both float32."""


class NativeRunner(Runner):
    def __init__(self, model: Model) -> None:
        assert model.native is not None
        self.native, self._vocab_size = model.native, model.config.vocab_size

    def run(self, batch: Batch) -> tuple[Tensor, Tensor]:
        passes = [self._pass(part) for part in _passes(batch)]
        if len(passes) == 1:
            return passes[0]
        logits, streams = zip(*passes, strict=True)
        return torch.cat(logits), torch.cat(streams)

    def _pass(self, batch: Batch) -> tuple[Tensor, Tensor]:
        lengths: list[int] = []
        rows: list[int] = []
        end = 0
        for piece in batch:
            lengths.append(len(piece.token_ids))
            end += lengths[-1]
            rows += range(end - piece.num_logits, end)
        flat = torch.from_numpy(np.concatenate([piece.token_ids for piece in batch]))
        streams = self.native.new_streams(end)
        self.native.advance(flat, lengths, [piece.sequence.timeline for piece in batch], streams)
        logits = self.native.output(streams, rows) if rows else streams.new_empty(0, self._vocab_size)
        return logits, streams


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
        return torch.cat([rows[i] for i in range(len(batch))]), torch.empty(0)
