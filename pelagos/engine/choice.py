"""The next token of every sequence of a step: in one go where nothing but the logits counts, the others one by one.

A piece with guesses has logits behind each of them: tokens are chosen in order as long as the guess before was what was
chosen. Guesses thus change which tokens are read at once, and no token.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from pelagos.common.errors import PelagosError
from pelagos.engine.sampler import Sampled, checked_token, choose, sample, token_choice
from pelagos.engine.sequence import Batch, Piece, Sequence
from pelagos.ops.cpu.sampling import TokenChoice

_log = logging.getLogger(__name__)


class _Turn(NamedTuple):
    """A sequence that asked for logits, and which row of them is its first."""

    piece: Piece
    sequence: Sequence
    row: int

    @property
    def is_free(self) -> bool:
        return self.sequence.job.params.is_free and self.sequence.constraint is None


def choose_tokens(batch: Batch, logits: Tensor) -> Iterator[tuple[Sequence, str | None]]:
    """Append to each sequence that asked for logits its next tokens; yields it with what went wrong with it, if
    something did. ``logits``: [N, V], one piece's rows behind another's. Guesses that were wrong are rewound."""
    turns = list(_turns(batch))
    chosen = iter(choose(logits, _choices(turns)) if turns else ())
    for turn in turns:
        tokens = [next(chosen) for _ in range(turn.piece.num_logits)] if turn.is_free else None
        try:
            _extend(turn, logits, tokens)
        except PelagosError as error:
            yield turn.sequence, str(error)
        except Exception:  # of one sequence's making: its neighbours in the step go on
            _log.exception("the next token of request %s could not be chosen", turn.sequence.job.request_id)
            yield turn.sequence, "the next token could not be chosen: see the log"
        else:
            yield turn.sequence, None


def _turns(batch: Batch) -> Iterator[_Turn]:
    row = 0
    for piece in batch:
        if piece.num_logits == 0:
            continue
        job = piece.sequence.job
        is_first = piece.sequence.num_ids == job.num_prompt_tokens
        for sequence in job.sequences if is_first else (piece.sequence,):
            yield _Turn(piece, sequence, row)
        row += piece.num_logits


def _choices(turns: list[_Turn]) -> list[TokenChoice]:
    """What free sequences want, behind each guess as if it were right."""
    return [
        token_choice(turn.sequence.job.params, turn.sequence.num_ids + i, turn.row + i, turn.sequence.choice)
        for turn in turns
        if turn.is_free
        for i in range(turn.piece.num_logits)
    ]


def _extend(turn: _Turn, logits: Tensor, tokens: list[int] | None) -> None:
    """``tokens``: those of a free sequence."""
    piece, sequence, job = turn.piece, turn.sequence, turn.sequence.job
    num_accepted = 0
    for i in range(piece.num_logits):
        if tokens is not None:
            sequence.append(Sampled(token_id=checked_token(tokens[i], sequence.num_ids)))
        else:
            sequence.append(_sampled(sequence, logits[turn.row + i]))
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
