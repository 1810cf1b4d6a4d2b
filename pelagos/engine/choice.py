"""The next token of every sequence of a step: greedy ones in one go, the others one by one.

A piece with guesses has logits behind each of them: tokens are chosen in order as long as the guess before was what was
chosen. Guesses thus change which tokens are read at once, and no token.
"""

import logging
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pelagos.common.errors import PelagosError
from pelagos.engine.sampler import Sampled, sample
from pelagos.engine.sequence import Batch, Piece, Sequence

_log = logging.getLogger(__name__)


def choose_tokens(batch: Batch, logits: Tensor) -> Iterator[tuple[Sequence, str | None]]:
    """Append to each sequence that asked for logits its next tokens; yields it with what went wrong with it, if
    something did. ``logits``: [N, V], one piece's rows behind another's. Guesses that were wrong are rewound."""
    if not len(logits):
        return
    # Not torch's argmax: its threads and those of the native kernels would wait for the same cores.
    rows_of_numbers = logits.numpy()
    best = rows_of_numbers.argmax(axis=1)  # documented to return the first of equal entries
    is_finite = np.isfinite(rows_of_numbers[np.arange(len(best)), best]).tolist()
    greedy = best.tolist()
    _heed_biases(batch, rows_of_numbers, greedy)
    row = 0
    for piece in batch:
        if piece.num_logits == 0:
            continue
        rows = slice(row, row + piece.num_logits)
        row = rows.stop
        is_first = piece.sequence.num_ids == piece.sequence.job.num_prompt_tokens
        for sequence in piece.sequence.job.sequences if is_first else (piece.sequence,):
            try:
                _extend(piece, sequence, logits[rows], greedy[rows], is_finite[rows])
            except PelagosError as error:
                yield sequence, str(error)
            except Exception:  # of one sequence's making: its neighbours in the step go on
                _log.exception("the next token of request %s could not be chosen", sequence.job.request_id)
                yield sequence, "the next token could not be chosen: see the log"
            else:
                yield sequence, None


def _heed_biases(batch: Batch, rows_of_numbers: npt.NDArray[np.float32], greedy: list[int]) -> None:
    """Choose again where biases are all that keeps a token from being that of the largest logit."""
    row = 0
    for piece in batch:
        params = piece.sequence.job.params
        if params.logit_bias and params.is_plain and piece.sequence.constraint is None:
            ids, values = zip(*params.logit_bias, strict=True)
            for i in range(row, row + piece.num_logits):
                numbers = rows_of_numbers[i].copy()
                np.add.at(numbers, list(ids), np.array(values, dtype=numbers.dtype))
                greedy[i] = int(numbers.argmax())
        row += piece.num_logits


def _extend(piece: Piece, sequence: Sequence, logits: Tensor, greedy: list[int], is_finite: list[bool]) -> None:
    job, params = sequence.job, sequence.job.params
    is_plain = params.is_plain and sequence.constraint is None
    num_accepted = 0
    for i in range(piece.num_logits):
        if is_plain and is_finite[i]:
            sequence.append(Sampled(token_id=greedy[i]))
        else:
            sequence.append(_sampled(sequence, logits[i]))
        is_guessed = (
            i < piece.num_drafts and sequence.ids[sequence.num_ids - 1] == piece.token_ids[i - piece.num_drafts]
        )
        if not is_guessed:
            break
        num_accepted += 1
        if sequence.finish_reason is not None:
            break
    if piece.num_drafts:
        sequence.drafts = []
        job.num_drafted += piece.num_drafts
        job.num_accepted += num_accepted
        num_wrong = piece.num_drafts - num_accepted
        if num_wrong:
            sequence.timeline.rewind(sequence.timeline.num_tokens - num_wrong)
    _append_forced(sequence)


def _sampled(sequence: Sequence, logits: Tensor) -> Sampled:
    constraint = sequence.constraint
    mask = None if constraint is None else constraint.mask(len(logits))
    params = sequence.job.params
    return sample(logits, params, sequence.history, sequence.num_ids, choice=sequence.choice, mask=mask)


def _append_forced(sequence: Sequence) -> None:
    """Tokens that a grammar leaves no choice about are appended as they are: what choosing under the mask would give.
    Where log-probabilities are asked for, each token is chosen from its logits."""
    constraint = sequence.constraint
    if constraint is None or not constraint.is_active or sequence.job.params.logprobs is not None:
        return
    for token_id in constraint.forced() if sequence.finish_reason is None else ():
        sequence.append(Sampled(token_id=token_id))
        if sequence.finish_reason is not None:
            return
