"""What a training step reads: rows of packed documents.

Shapes: B rows, T tokens a row.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING = -1  # document id of padding


@dataclass(frozen=True, kw_only=True)
class PackedBatch:
    """Documents side by side in rows of equal length; nothing crosses from one document into another.

    token_ids: [B, T] int64. document_ids: [B, T] int32, number of the document within its row (0, 1, ...), ``PADDING``
    at a row's end. positions: [B, T] int64, from 0 in each document. loss_weights: [B, T] float32, weight of predicting
    this token from those before; 0 on a document's first token and on padding. num_bytes: [B, T] int32, bytes of text
    behind each token (0 for special tokens and padding), for bits per byte.
    """

    token_ids: Tensor
    document_ids: Tensor
    positions: Tensor
    loss_weights: Tensor
    num_bytes: Tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int((self.document_ids >= 0).sum())

    def to(self, device: torch.device) -> "PackedBatch":
        """The batch on another device."""
        return PackedBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def rows(self, start: int, stop: int) -> "PackedBatch":
        """A part of the rows, as a batch."""
        parts = {name: value[start:stop] for name, value in vars(self).items()}
        return PackedBatch(**parts)
