"""The next token of every sequence of a step: in one go where nothing but the logits counts, the others one by one.

A piece with guesses has logits behind each of them: tokens are chosen in order as long as the guess before was what was
chosen. Guesses thus change which tokens are read at once, and no token.
"""

import logging
from collections.abc import Iterator
from itertools import islice

from torch import Tensor

from pelagos.common.errors import PelagosError
from pelagos.engine.request import Constraint
from pelagos.engine.sampler import Sampled, checked_token, choose, sample, token_choice
from pelagos.engine.sequence import Batch, Piece, Sequence
from pelagos.ops.cpu.sampling import TokenChoice

_log = logging.getLogger(__name__)


def choose_tokens(batch: Batch, logits: Tensor) -> Iterator[tuple[Sequence, str | None]]:
    """Append to each sequence that asked for logits its next tokens; yields it with what went wrong with it, if
    something did. ``logits``: [N, V], one piece's rows behind another's. Guesses that were wrong are rewound."""
    turns: list[tuple[Piece, Sequence, int]] = []  # sequences that asked for logits, and which row is their first
    wanted: list[TokenChoice] = []  # what free sequences want, behind each guess as if it were right
    row = 0
    for piece in batch:
        num_logits = piece.num_logits
        if num_logits == 0:
            continue
        first = piece.sequence
        job = first.job
        for sequence in job.sequences if first.num_ids == job.num_prompt_tokens else (first,):
            turns.append((piece, sequence, row))
            if sequence.is_free:
                for i in range(num_logits):
                    wanted.append(token_choice(job.params, sequence.num_ids + i, row + i, sequence.choice))
        row += num_logits
    chosen = iter(choose(logits, wanted) if wanted else ())
    for piece, sequence, row in turns:
        if sequence.is_free:
            rows: list[int] | Tensor = list(islice(chosen, piece.num_logits))
        else:
            rows = logits[row : row + piece.num_logits]
        try:
            _extend(piece, sequence, rows)
        except PelagosError as error:
            yield sequence, str(error)
        except Exception:  # of one sequence's making: its neighbours in the step go on
            _log.exception("the next token of request %s could not be chosen", sequence.job.request_id)
            yield sequence, "the next token could not be chosen: see the log"
        else:
            yield sequence, None


def _extend(piece: Piece, sequence: Sequence, rows: Tensor | list[int]) -> None:
    """``rows``: what was chosen for a free sequence behind each token, for others the logits there."""
    num_accepted, num_drafts = 0, piece.num_drafts
    for row in rows:
        sampled = Sampled(checked_token(row, sequence.num_ids)) if isinstance(row, int) else _sampled(sequence, row)
        sequence.append(sampled)
        if num_accepted == num_drafts or sampled.token_id != piece.token_ids[num_accepted - num_drafts]:
            break
        num_accepted += 1
        if sequence.finish_reason is not None:
            break
    if num_drafts:
        _settle(piece, sequence, num_accepted)
    if sequence.constraint is not None:
        _append_forced(sequence, sequence.constraint)


def _settle(piece: Piece, sequence: Sequence, num_accepted: int) -> None:
    """Take back the guesses of a piece that were wrong."""
    sequence.drafts = []
    sequence.job.num_drafted += piece.num_drafts
    sequence.job.num_accepted += num_accepted
    num_wrong = piece.num_drafts - num_accepted
    if num_wrong:
        sequence.timeline.rewind(sequence.timeline.num_tokens - num_wrong)


def _sampled(sequence: Sequence, logits: Tensor) -> Sampled:
    constraint = sequence.constraint
    mask = None if constraint is None else constraint.mask(len(logits))
    params = sequence.job.params
    return sample(logits, params, sequence.history, sequence.num_ids, choice=sequence.choice, mask=mask)


def _append_forced(sequence: Sequence, constraint: Constraint) -> None:
    """Tokens that a grammar leaves no choice about are appended as they are: what choosing under the mask would give.
    Where log-probabilities are asked for, each token is chosen from its logits."""
    if not constraint.is_active or sequence.job.params.logprobs is not None:
        return
    for token_id in constraint.forced() if sequence.finish_reason is None else ():
        sequence.append(Sampled(token_id=token_id))
        if sequence.finish_reason is not None:
            return
