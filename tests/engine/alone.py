"""What a request gives alone, from cold, by the plainest loop there is: the standard that the engine is held to."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pelagos.engine.engine import Engine
from pelagos.engine.request import Request
from pelagos.engine.sampler import History, sample
from pelagos.engine.sequence import Batch
from pelagos.model.transformer import Model


@dataclass
class Alone:
    """``ids``: the answer. ``logits[i]``: those that token i was chosen from."""

    ids: list[int]
    logits: list[Tensor]


def alone(model: Model, request: Request, choice: int = 0) -> Alone:
    params, ids = request.params, list(request.prompt_ids)
    history = History(model.config.vocab_size, ids) if params.uses_history else None
    state, result = model.new_state(), Alone(ids=[], logits=[])
    end_ids = set(params.stop_ids) | (set() if params.ignore_eos else set(model.config.eos_ids))
    logits = model.step(ids, state, num_logits=1)[-1]
    while True:
        token_id = sample(logits, params, history, state.num_tokens, choice=choice).token_id
        result.ids.append(token_id)
        result.logits.append(logits)
        if history is not None:
            history.add(token_id)
        if token_id in end_ids or len(result.ids) == params.max_tokens:
            return result
        logits = model.step([token_id], state, num_logits=1)[-1]


@dataclass
class Recorder:
    """Notes the logits that an engine's runner returns, by request, answer and position; what was read anew wins."""

    engine: Engine
    rows: dict[tuple[str, int, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        run = self.engine.runner.run

        def recorded(batch: Batch) -> tuple[Tensor, Tensor]:
            logits, streams = run(batch)
            row = 0
            for piece in batch:
                end = piece.start + len(piece.token_ids)
                for position in range(end - piece.num_logits, end):
                    key = (piece.sequence.job.request_id, piece.sequence.choice, position)
                    self.rows[key] = logits[row].clone()
                    row += 1
            assert row == len(logits)
            return logits, streams

        self.engine.runner.run = recorded  # type: ignore[method-assign]

    def differing(self, request_id: str, choice: int, num_prompt: int, expected: Alone, num_tokens: int) -> list[int]:
        """Which of the first ``num_tokens`` tokens of an answer were chosen from other logits."""
        wrong = []
        for i in range(num_tokens):
            own = choice if i else 0  # the first token of every answer comes from the prompt's logits
            row = self.rows[request_id, own, num_prompt - 1 + i]
            if not torch.equal(row, expected.logits[i]):
                wrong.append(i)
        return wrong


class Oracle:
    """Guesses that are often right, so that taking them, and taking them back, both happen."""

    def __init__(self, engine: Engine, answers: dict[str, list[Alone]], rng: np.random.Generator) -> None:
        draft = engine.drafter.draft

        def guessed(batch: Batch, streams: list[Tensor]) -> None:
            draft(batch, streams)
            for piece in batch:
                sequence = piece.sequence
                expected = answers.get(sequence.job.request_id)
                if expected is None or not sequence.drafts:
                    continue
                done = len(sequence.sampled)
                known = expected[sequence.choice].ids[done : done + len(sequence.drafts)]
                for i, token_id in enumerate(known):
                    sequence.drafts[i] = token_id if rng.random() < 0.7 else sequence.drafts[i]

        engine.drafter.draft = guessed  # type: ignore[method-assign]
