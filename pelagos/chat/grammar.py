"""Output held to a grammar: what a caller can ask for, its compilation, and the state of one sequence in it.

``compile_grammar`` makes a ``Grammar`` of a constraint, ``Grammar.start`` a ``Matcher`` for each sequence. The matcher
says which tokens may follow (a mask), which must (forced tokens), and moves on with each token. Where in an answer the
grammar begins is the business of ``pelagos.chat.grammar_state``. The parser is llguidance, imported at first use.

Masks are packed: bit ``i % 32`` of word ``i // 32`` of an int32 tensor is 1 if token ``i`` may follow.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from pelagos.chat import grammar_library as library
from pelagos.chat.grammar_schema import check_exact, check_schema, one_line, refusal
from pelagos.chat.grammar_tools import tool_calls_grammar
from pelagos.chat.render import Tool
from pelagos.chat.tokenizer import DSML, Tokenizer
from pelagos.common.errors import UsageError

if TYPE_CHECKING:
    import llguidance

MAX_REGEX_CHARS = 1 << 14
MAX_LARK_CHARS = 1 << 18
# The library follows rules recursively: 2,000 in a chain fit in a stack of 8 MB, 5,000 end the process.
MAX_LARK_LINES = 1000


@dataclass(frozen=True, kw_only=True)
class JsonSchema:
    """A JSON document that ``schema`` (draft 2020-12, older drafts where they agree) accepts."""

    schema: Mapping[str, Any] | bool


@dataclass(frozen=True, kw_only=True)
class JsonObject:
    """Any JSON object."""


@dataclass(frozen=True, kw_only=True)
class Regex:
    """A text that ``pattern`` matches as a whole; syntax of Rust's regex crate, without look-around."""

    pattern: str


@dataclass(frozen=True, kw_only=True)
class Lark:
    """A text that the Lark grammar ``text`` derives from ``start``, with llguidance's additions such as %json."""

    text: str


@dataclass(frozen=True, kw_only=True)
class ToolCalls:
    """Calls of ``tools``, which have the shape that ``render`` takes, plus ``"strict": true`` in a function.

    ``mode``: "auto" leaves the answer free until it opens a block of calls, "required" makes it one, "named" makes it
    one with calls of the tool ``name`` alone. Without ``parallel`` a block has one call. A strict tool's arguments meet
    its schema, or the schema is refused; another's meet what a grammar can enforce of it.
    """

    tools: Sequence[Tool]
    mode: Literal["auto", "required", "named"] = "auto"
    name: str | None = None
    parallel: bool = True


Constraint = JsonSchema | JsonObject | Regex | Lark | ToolCalls


class Matcher:
    """One sequence in a grammar. It is of no more use after a UsageError (a wrong token, limits outgrown)."""

    def __init__(self, matcher: "llguidance.LLMatcher", vocab_size: int, eos_id: int) -> None:
        """Use ``Grammar.start``."""
        self._matcher = matcher
        self._num_words = num_mask_words(vocab_size)
        self._eos_id = eos_id
        self._ended = False

    def fill_mask(self, out: Tensor) -> None:
        """Write the mask of the next token to ``out``, int32 [W], contiguous, on the CPU, W at least
        ``num_mask_words`` of the vocabulary. Padding is 0."""
        assert out.dtype == torch.int32
        assert out.is_cpu
        assert out.is_contiguous()
        assert out.numel() >= self._num_words
        self._matcher.unsafe_compute_mask_ptr(out.data_ptr(), 4 * self._num_words)
        self._check()
        out[self._num_words :] = 0

    def advance(self, token_id: int) -> None:
        """Take the next token. Raises UsageError if the grammar does not allow it."""
        self._matcher.consume_token(token_id)
        self._check()
        self._ended |= token_id == self._eos_id

    def forced(self) -> list[int]:
        """The tokens that must follow, up to the next choice; the end token where nothing else may follow.

        They are what choosing under the mask would give, one at a time. The matcher does not move.
        """
        if self._ended:
            return []
        tokens = self._matcher.compute_ff_tokens()
        self._check()
        return [self._eos_id] if not tokens and self._matcher.is_stopped() else tokens

    @property
    def may_end(self) -> bool:
        """Whether the text so far is whole: the end token may follow."""
        return self._matcher.is_accepting()

    @property
    def is_finished(self) -> bool:
        """Whether the text is whole and only the end token may follow, or did."""
        return self._matcher.is_stopped()

    def copy(self) -> "Matcher":
        """An independent matcher in the same state, made in a microsecond."""
        other = Matcher.__new__(Matcher)
        other.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy())
        return other

    def _check(self) -> None:
        if self._matcher.is_error():
            raise UsageError(f"the output does not fit the grammar: {one_line(self._matcher.get_error())}")


class Grammar:
    """A compiled constraint for one tokenizer; immutable, for any number of sequences.

    Attributes: ``constraint``, ``tokenizer``, ``mark_id`` (the token that opens a block of tool calls, None for other
    constraints), ``opening`` (the ids of such a block up to and with the mark).
    """

    def __init__(self, constraint: Constraint, tokenizer: Tokenizer, matcher: "llguidance.LLMatcher") -> None:
        """Use ``compile_grammar``."""
        self.constraint = constraint
        self.tokenizer = tokenizer
        self.mark_id = tokenizer.encode_special(DSML) if isinstance(constraint, ToolCalls) else None
        self.opening = [] if self.mark_id is None else [*tokenizer.encode("\n\n<"), self.mark_id]
        self._matcher = matcher

    @cached_property
    def unending_mask(self) -> Tensor:
        """The mask, int32 [W], of all tokens but those that end an answer."""
        size = self.tokenizer.vocab_size
        allowed = np.zeros(32 * num_mask_words(size), dtype=np.uint8)
        allowed[:size] = 1
        allowed[list(self.tokenizer.stop_ids)] = 0
        return torch.from_numpy(np.packbits(allowed, bitorder="little").view(np.int32))

    def start(self) -> Matcher:
        """A matcher before the first token of the text that is held to the grammar."""
        return Matcher(self._matcher.deep_copy(), self.tokenizer.vocab_size, self.tokenizer.eos_id)


def compile_grammar(constraint: Constraint, tokenizer: Tokenizer) -> Grammar:
    """Check and compile ``constraint`` (about a millisecond; a tokenizer's first grammar also takes 0.2 s).

    Raises UsageError that names the field and the keyword or place for what is wrong, too large, or cannot be enforced
    exactly; ResourceError if llguidance is not installed.
    """
    matcher = library.new_matcher(_source(constraint, tokenizer), tokenizer)
    if matcher.is_error():
        reason = matcher.get_error()
        if isinstance(constraint, JsonSchema):
            raise refusal("schema", constraint.schema, reason)
        field = "pattern" if isinstance(constraint, Regex) else "text" if isinstance(constraint, Lark) else "tools"
        raise UsageError(f"{field} cannot be made a grammar: {one_line(reason)}")
    return Grammar(constraint, tokenizer, matcher)


def num_mask_words(vocab_size: int) -> int:
    """Words of a packed mask."""
    return (vocab_size + 31) // 32


def unpack_mask(mask: Tensor, vocab_size: int) -> Tensor:
    """A packed mask, int32 [W] on the CPU, as bool [vocab_size]; tokens past its end are not allowed."""
    bits = np.unpackbits(mask.numpy().view(np.uint8), count=vocab_size, bitorder="little")
    return torch.from_numpy(bits).view(torch.bool)


def _source(constraint: Constraint, tokenizer: Tokenizer) -> str:
    """The constraint in the library's language."""
    match constraint:
        case JsonSchema(schema=schema):
            check_schema("schema", schema)
            check_exact("schema", schema)
            return library.json_source(schema)
        case JsonObject():
            return library.json_source({"type": "object"})
        case Regex(pattern=pattern):
            _check_text("pattern", pattern, MAX_REGEX_CHARS)
            return library.regex_source(pattern)
        case Lark(text=text):
            _check_lark(text)
            return library.lark_source(text)
        case ToolCalls(tools=tools, name=name):
            if (constraint.mode == "named") != (name is not None):
                raise UsageError('name must be given with mode "named", and only then')
            mark = tokenizer.encode_special(DSML)
            text = tool_calls_grammar(tools, name=name, parallel=constraint.parallel, mark_id=mark)
            return library.lark_source(text)


def _check_text(field: str, text: object, most: int) -> None:
    if not isinstance(text, str) or not 0 < len(text) <= most:
        raise UsageError(f"{field} must be a text of 1 to {most} characters")


def _check_lark(text: str) -> None:
    _check_text("text", text, MAX_LARK_CHARS)
    num_lines = sum(bool(line.strip()) for line in text.splitlines())
    if num_lines > MAX_LARK_LINES:
        raise UsageError(f"text has {num_lines} lines that are not empty, at most {MAX_LARK_LINES} are taken")
    for found in re.finditer(r"%json\s*", text):
        line = text.count("\n", 0, found.start()) + 1
        try:
            schema, _ = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError) as error:
            raise UsageError(f"text has a %json in line {line} that no JSON schema follows: {error}") from error
        check_schema(f"text, %json in line {line},", schema)
        check_exact(f"text, %json in line {line},", schema)
