"""How one request wants its tokens chosen. This module needs no torch, so that a command's help is quick."""

import secrets
from dataclasses import dataclass, replace

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, check_value, setting

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
MAX_BIAS = 100.0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Sampling of one request. The filters act in the order temperature, top_k, top_p, min_p, after the penalties."""

    temperature: float = setting(
        0.0, help="0 always takes the most likely token; 1 is the model's own", low=0.0, high=2.0
    )
    top_k: int | None = setting(None, help="keep only the k most likely tokens", low=1, high=1 << 22)
    top_p: float = setting(1.0, help="keep the likeliest tokens up to this total probability", low=0.0, high=1.0)
    min_p: float = setting(0.0, help="keep tokens at least this likely against the best", low=0.0, high=1.0)
    # A logit divided by less may be too large for a float32, and then no token can be chosen.
    repetition_penalty: float = setting(1.0, help="over prompt and output; above 1 lowers", low=0.01, high=100.0)
    presence_penalty: float = setting(0.0, help="taken off once per token in the output", low=-2.0, high=2.0)
    frequency_penalty: float = setting(0.0, help="taken off per occurrence in the output", low=-2.0, high=2.0)
    seed: int | None = setting(None, help="same seed, same tokens; without one it is drawn", low=0, high=(1 << 63) - 1)
    max_tokens: int = setting(256, help="tokens to generate at most", low=1, high=1 << 24)
    stop: tuple[str, ...] = setting((), help="texts that end the output, at most 16; the output is cut before them")
    stop_ids: tuple[int, ...] = setting((), help="token ids that end the output, beside the model's end tokens")
    logprobs: int | None = setting(None, help="report this many likeliest tokens at each place", low=0, high=20)
    logit_bias: tuple[tuple[int, float], ...] = setting((), help="(token id, what is added to its logit), at most 1024")
    allowed_ids: tuple[int, ...] | None = setting(None, help="token ids that may be chosen; None: all")
    ignore_eos: bool = setting(False, help="go on after the model's end tokens")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.top_p == 0:
            raise ConfigError("top_p must be above 0, got 0")
        few = isinstance(self.stop, tuple) and len(self.stop) <= MAX_STOPS
        if not few or not all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARS for text in self.stop):
            raise ConfigError(f"stop must be at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters")
        if not isinstance(self.stop_ids, tuple) or not all(type(i) is int and i >= 0 for i in self.stop_ids):
            raise ConfigError("stop_ids must be token ids, whole numbers of at least 0")

        self._check_biases()

    def _check_biases(self) -> None:
        biases, allowed = self.logit_bias, self.allowed_ids
        if not isinstance(biases, tuple) or len(biases) > MAX_BIASES:
            raise ConfigError(f"logit_bias must have at most {MAX_BIASES} entries")
        for token_id, value in biases:
            check_value("a token id of logit_bias", token_id, int, low=0)
            check_value(f"logit_bias of token {token_id}", value, float, low=-MAX_BIAS, high=MAX_BIAS)
        if allowed is not None and (not isinstance(allowed, tuple) or not allowed):
            raise ConfigError("allowed_ids must have at least one token id")
        if allowed is not None and not all(type(i) is int and i >= 0 for i in allowed):
            raise ConfigError("allowed_ids must be token ids, whole numbers of at least 0")

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise ConfigError for token ids that a vocabulary of this size does not have."""
        for name, ids in (("logit_bias", [i for i, _ in self.logit_bias]), ("allowed_ids", self.allowed_ids or ())):
            if ids and max(ids) >= vocab_size:
                raise ConfigError(f"{name} must have token ids from 0 to {vocab_size - 1}, got {max(ids)}")

    @property
    def is_free(self) -> bool:
        """Whether tokens are chosen from the logits as they are, whatever came before, with nothing to report."""
        untouched = not self.logit_bias and self.allowed_ids is None and self.logprobs is None
        return untouched and not self.uses_history

    @property
    def uses_history(self) -> bool:
        """Whether the tokens so far change the choice of the next."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0

    def with_seed(self) -> "SamplingParams":
        """The same parameters with a seed: the given one, else one drawn now."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(63))
