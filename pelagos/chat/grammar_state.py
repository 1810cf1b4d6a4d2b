"""Where in an answer its grammar begins: the one object that an engine needs for a request with a constraint.

An answer may begin with reasoning, which is free; what follows ``</think>`` is held to the grammar, the first token
at once. Tool calls of mode "auto" are held to theirs from the DSML token on that follows a ``<``; the official parser
takes that for a call anywhere in an answer, so it begins the grammar in reasoning too, in every mode of tool calls.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from pelagos.chat.grammar import Grammar, Matcher, ToolCalls, num_mask_words, unpack_mask
from pelagos.chat.tokenizer import THINK_END
from pelagos.common.errors import TokenizerError


class ConstraintState:
    """Follows the tokens of one answer. ``observe`` every token of it, sampled or forced, the end token too."""

    def __init__(self, grammar: Grammar, *, thinking: bool, prefix: Iterable[int] = ()) -> None:
        """``thinking``: the answer begins in reasoning, the prompt having opened it and not closed it. ``prefix``: ids
        of the answer that the prompt already holds behind that, such as the start of a message to go on with or an
        opened block of calls. Raises UsageError if they do not fit the grammar."""
        self._grammar = grammar
        self._think_end = grammar.tokenizer.encode_special(THINK_END)
        self._waits = thinking
        self._previous: int | None = None
        self._matcher: Matcher | None = None
        self._is_auto = isinstance(grammar.constraint, ToolCalls) and grammar.constraint.mode == "auto"
        if not thinking and not self._is_auto:
            self._matcher = grammar.start()
        for token_id in prefix:
            self.observe(token_id)

    @property
    def is_active(self) -> bool:
        """Whether the next token is held to the grammar."""
        return self._matcher is not None

    @property
    def may_end(self) -> bool:
        """Whether the end token may follow: not while the text that was asked for has not begun or is not whole."""
        return self._is_auto if self._matcher is None else self._matcher.may_end

    @property
    def is_finished(self) -> bool:
        """Whether only the end token may follow, or did."""
        return self._matcher is not None and self._matcher.is_finished

    def observe(self, token_id: int) -> None:
        """Take the next token of the answer. Raises UsageError if the grammar does not allow it."""
        if self._matcher is not None:
            self._matcher.advance(token_id)
        elif token_id == self._grammar.mark_id and self._is_after_angle():
            self._matcher = self._grammar.start()
            for opening_id in self._grammar.opening:
                self._matcher.advance(opening_id)
        elif token_id == self._think_end and self._waits and not self._is_auto:
            self._matcher = self._grammar.start()
        self._previous = token_id

    def fill_mask(self, out: Tensor) -> bool:
        """Write the mask of the next token to ``out`` as ``Matcher.fill_mask`` does, or return False, with ``out``
        untouched, if every token may follow. In reasoning with a grammar to come all may but those that end an answer.
        """
        if self._matcher is not None:
            self._matcher.fill_mask(out)
        elif not self._is_auto:
            unending = self._grammar.unending_mask
            out[: unending.numel()] = unending
            out[unending.numel() :] = 0
        else:
            return False
        return True

    def mask(self, size: int) -> Tensor | None:
        """The mask of the next token as bool [size], for a model with ``size`` token ids; None: every token may
        follow."""
        packed = torch.zeros(num_mask_words(max(size, self._grammar.tokenizer.vocab_size)), dtype=torch.int32)
        return unpack_mask(packed, size) if self.fill_mask(packed) else None

    def forced(self) -> list[int]:
        """The tokens that must follow, as ``Matcher.forced`` gives them; none while the answer is free."""
        return [] if self._matcher is None else self._matcher.forced()

    def copy(self) -> "ConstraintState":
        """An independent state at the same place."""
        other = ConstraintState.__new__(ConstraintState)
        other.__dict__.update(self.__dict__, _matcher=None if self._matcher is None else self._matcher.copy())
        return other

    def _is_after_angle(self) -> bool:
        if self._previous is None:
            return False
        try:
            return self._grammar.tokenizer.token_bytes(self._previous).endswith(b"<")
        except TokenizerError:  # an id that only pads the vocabulary
            return False
