"""The choice of tokens from logits: native/sampling.h."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from pelagos.common.errors import UsageError
from pelagos.ops.cpu.arguments import kernels

NOT_FINITE: Final = -1
NONE_ALLOWED: Final = -2


class TokenChoice(NamedTuple):
    """How one token is chosen from row ``row`` of the logits: see ops.reference.sampling. ``temperature`` 0: the
    largest; ``top_k`` 0: all; ``allowed`` [V] bool. The random number is a function of seed, choice and position."""

    row: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    choice: int = 0
    position: int = 0
    allowed: Tensor | None = None


def choose_tokens(logits: Tensor, choices: Sequence[TokenChoice]) -> list[int]:
    """One token id for each choice; NOT_FINITE where the row's largest logit is no finite number or a NaN is among
    them, NONE_ALLOWED where no token is left. logits [N, V] float32, dense. Weights are float32 where the reference
    has float64: a random number within some 1e-6 of a border may fall on its other side. Raises UsageError."""
    shape = logits.shape
    if len(shape) != 2 or logits.dtype != torch.float32 or not logits.is_contiguous() or not logits.is_cpu:
        raise UsageError(f"logits must be [N, V] float32, dense, on the CPU, not {list(shape)} {logits.dtype}")
    num_rows, vocab_size = shape
    kept: list[Tensor] = []
    wanted = []
    for row, temperature, top_k, top_p, min_p, seed, choice, position, allowed in choices:
        if not 0 <= row < num_rows:
            raise UsageError(f"row must be from 0 to {num_rows - 1}, not {row}")
        address = 0
        if allowed is not None:
            if allowed.dtype != torch.bool or allowed.shape != (vocab_size,):
                raise UsageError(f"allowed must be [{vocab_size}] bool, not {list(allowed.shape)}")
            kept.append(allowed.contiguous())
            address = kept[-1].data_ptr()
        wanted.append((row, temperature, top_k, top_p, min_p, seed, choice, position, address))
    tokens: list[int] = kernels().choose_tokens(logits.data_ptr(), vocab_size, wanted)
    return tokens
