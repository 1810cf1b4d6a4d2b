"""Random walks under a grammar's masks: what a model that follows no rule but the mask may write."""

import random
from collections.abc import Iterable

import numpy as np
import torch

from pelagos.chat.grammar import Matcher, num_mask_words, unpack_mask
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.tokenizer import DSML, Tokenizer

# What brings a text nearer to its end, best first.
CLOSERS = (b'"', b"}", b"]", b'">', b"</", b"null", b"[]", b"{}", b'""', b",", b"true")
# Enough to complete every format and pattern of the test schemas.
ALPHABET = b"ab01237.:-/@TZPDDWSxy"


class Walker:
    """Walks with one tokenizer. ``budget``: tokens after which a walk goes straight to its end."""

    def __init__(self, tokenizer: Tokenizer, *, budget: int = 40, most: int = 600) -> None:
        self.tokenizer = tokenizer
        self.budget, self.most = budget, most
        by_bytes = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size) if i not in tokenizer.special_ids}
        mark = tokenizer.encode_special(DSML)
        self._closers = [tokenizer.eos_id, mark, *(by_bytes[data] for data in CLOSERS if data in by_bytes)]
        self._alphabet = [by_bytes[bytes([byte])] for byte in ALPHABET]
        self._mask = torch.zeros(num_mask_words(tokenizer.vocab_size), dtype=torch.int32)
        self._specials = np.array(sorted(tokenizer.special_ids))

    def allowed(self, state: Matcher | ConstraintState) -> torch.Tensor:
        """The mask as bool [V]."""
        assert state.fill_mask(self._mask) in (None, True)
        return unpack_mask(self._mask, self.tokenizer.vocab_size)

    def walk(self, state: Matcher | ConstraintState, rng: random.Random) -> list[int] | None:
        """Ids up to and with the end token; None if it did not come in time. Every mask is checked on the way."""
        ids: list[int] = []
        step = state.advance if isinstance(state, Matcher) else state.observe
        while len(ids) < self.most:
            allowed = self.allowed(state)
            assert bool(allowed[self.tokenizer.eos_id]) == state.may_end
            forced = state.forced()
            if forced:
                assert allowed.nonzero().flatten().tolist() == forced[:1]
            token_id = self._choose(allowed, rng, hurry=len(ids) >= self.budget)
            step(token_id)
            ids.append(token_id)
            if token_id == self.tokenizer.eos_id:
                assert state.is_finished
                return ids
        return None

    def specials_in(self, allowed: torch.Tensor) -> set[int]:
        return set(self._specials[allowed.numpy()[self._specials]].tolist())

    def _choose(self, allowed: torch.Tensor, rng: random.Random, *, hurry: bool) -> int:
        for liked, chance in ((self._closers, 0.5 if hurry else 0.35), (self._alphabet, float(hurry))):
            possible = [i for i in liked if allowed[i]]
            if possible and rng.random() < chance:
                return possible[0] if hurry and liked is self._closers else rng.choice(possible)
        ids = allowed.nonzero().flatten()
        return int(ids[rng.randrange(len(ids))])


def text_of(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of ids without the end token; bytes that are not UTF-8 are an error."""
    return tokenizer.decode_bytes([i for i in ids if i != tokenizer.eos_id]).decode("utf-8")
