"""Small models and a decoder with the methods that the engine uses, for tests."""

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor


@dataclass
class ScriptedState:
    token_ids: list[int] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_bytes(self) -> int:
        return 8 * len(self.token_ids)


class RandomModel:
    """Logits are a pseudo-random function of the whole sequence. ``calls`` lists (tokens read, logits asked for)."""

    def __init__(self, vocab_size: int = 32, eos_ids: tuple[int, ...] = (), max_positions: int = 1000) -> None:
        self.config = SimpleNamespace(vocab_size=vocab_size, eos_ids=eos_ids, max_positions=max_positions)
        self.calls: list[tuple[int, int]] = []

    def new_state(self) -> ScriptedState:
        return ScriptedState()

    def step(self, token_ids: Sequence[int], state: ScriptedState, *, num_logits: int = 1) -> Tensor:
        self.calls.append((len(token_ids), num_logits))
        state.token_ids += token_ids
        return self.logits(state.token_ids).unsqueeze(0)[:num_logits]

    def logits(self, token_ids: list[int]) -> Tensor:
        values = np.random.default_rng(token_ids).normal(scale=2.0, size=self.config.vocab_size)
        return torch.from_numpy(values.astype(np.float32))


class ScriptedModel(RandomModel):
    """Answers with ``script``, token by token, whatever the prompt of ``num_prompt_tokens`` tokens was."""

    def __init__(self, script: Sequence[int], num_prompt_tokens: int = 1, **config: int | tuple[int, ...]) -> None:
        super().__init__(**({"vocab_size": max(script) + 1} | config))
        self.script = list(script)
        self.num_prompt_tokens = num_prompt_tokens

    def logits(self, token_ids: list[int]) -> Tensor:
        row = torch.zeros(self.config.vocab_size)
        row[self.script[len(token_ids) - self.num_prompt_tokens]] = 5.0
        return row


class PieceDecoder:
    """Token i is the bytes ``pieces[i]``; characters come out when they are whole."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push_one(self, token_id: int) -> str:
        return self._decoder.decode(self._pieces[token_id])

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)
