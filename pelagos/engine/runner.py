"""Runs a batch through the model: tokens in, logits out, timelines advanced."""

import numpy as np
import torch
from torch import Tensor

from pelagos.common.errors import ResourceError
from pelagos.engine.sequence import Batch, Piece
from pelagos.model.native import MAX_BATCH_TOKENS
from pelagos.model.transformer import Model


class Runner:
    """Owns the model's forward pass."""

    def __init__(self, model: Model) -> None:
        if model.native is None:
            raise ResourceError(
                "the engine needs the native kernels, which this installation lacks or was told not to use: "
                "pelagos doctor says why"
            )
        self.native, self._vocab_size = model.native, model.config.vocab_size

    def run(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """The logits that the pieces ask for, one piece's behind another's, [N, V]; and for each piece the residual
        streams [T, M, D] of its tokens. Both float32."""
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
