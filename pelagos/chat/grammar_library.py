"""The one door to llguidance: its import, its limits, and our tokenizers as it wants them.

It is imported at the first call, never at import of this module.
"""

import json
import threading
import weakref
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from pelagos.chat.grammar_schema import LENIENT, OPTIONS, Schema
from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ResourceError, TokenizerError

if TYPE_CHECKING:
    import llguidance


def load() -> ModuleType:
    """The library. Raises ResourceError, with what to do, if it cannot be imported."""
    try:
        import llguidance
    except ImportError as error:
        raise ResourceError(
            f"structured output needs llguidance, which cannot be imported ({error}): install it with `pip install "
            "'llguidance>=1.9,<2'`, or ask for free text"
        ) from error
    return llguidance


def new_matcher(source: str, tokenizer: Tokenizer) -> "llguidance.LLMatcher":
    """A matcher of a grammar; it may be in an error state."""
    matcher: llguidance.LLMatcher = load().LLMatcher(_vocabulary(tokenizer), source, log_level=0, limits=_limits())
    return matcher


def problem(source: str) -> str:
    """What is wrong with a grammar, empty if nothing is."""
    message: str = load().LLMatcher.validate_grammar(source, limits=_limits())
    return "" if message.startswith("WARNING") else message


def json_source(schema: Schema) -> str:
    """The grammar of the JSON documents that a checked schema accepts."""
    source: str = load().LLMatcher.grammar_from_json_schema(embedded_schema(schema))
    return source


def regex_source(pattern: str) -> str:
    """The grammar of the texts that a regular expression matches as a whole."""
    source: str = load().LLMatcher.grammar_from_regex(pattern)
    return source


def lark_source(text: str) -> str:
    """A grammar in the library's variant of Lark."""
    source: str = load().LLMatcher.grammar_from_lark(text)
    return source


def lark_pattern(pattern: str) -> str:
    """A JSON Schema pattern, its classes restricted to ASCII as ECMA-262 has them, to stand between slashes in Lark."""
    text: str = load().regex_to_lark(pattern, "dw")
    return text


def embedded_schema(schema: Schema, *, lenient: bool = False) -> str:
    """JSON text of a schema with our options for the library. ``lenient``: what it does not know is ignored."""
    plain = {"not": {}} if schema is False else {} if schema is True else dict(schema)
    return json.dumps({**plain, "x-guidance": LENIENT if lenient else OPTIONS}, ensure_ascii=False)


def _limits() -> "llguidance.LLParserLimits":
    """Bounds on time and memory: 0.2 s and 200 MB for the worst expression found, instead of 0.5 s and 350 MB; an enum
    of 10,000 texts still fits. Without verbose errors, which repeat the whole grammar."""
    limits: llguidance.LLParserLimits = load().LLParserLimits(
        initial_lexer_fuel=300_000, max_lexer_states=50_000, verbose_errors=False
    )
    return limits


class _Source:
    """Our tokenizer with the names that the library asks for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens: Sequence[bytes] = [_bytes_of(tokenizer, i) for i in range(tokenizer.vocab_size)]
        # All of them: the library would take from the file only those marked special, and the turn marks are not.
        self.special_token_ids = sorted(tokenizer.special_ids)
        # Bound to the function, not to the tokenizer, or the table below would keep it alive.
        self._encode = tokenizer.encode

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text.decode("utf-8"))


def _bytes_of(tokenizer: Tokenizer, token_id: int) -> bytes:
    try:
        return tokenizer.token_bytes(token_id)
    except TokenizerError:  # an id that the file leaves unused
        return b""


_lock = threading.Lock()
_vocabularies: "weakref.WeakKeyDictionary[Tokenizer, llguidance.LLTokenizer]" = weakref.WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer) -> "llguidance.LLTokenizer":
    """The tokenizer in the library's form, made once (0.2 s for 129,280 tokens)."""
    with _lock:
        if tokenizer not in _vocabularies:
            library = load()
            _vocabularies[tokenizer] = library.LLTokenizer(library.TokenizerWrapper(_Source(tokenizer)))
        return _vocabularies[tokenizer]
