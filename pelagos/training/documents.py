"""Where a loader gets documents from: shards of text, and synthetic tasks.

Document ``number`` of a source is a function of the seed and that number alone: its place in the shuffled order, its
hole, its split tokens, its exercise. So a source keeps no state, and a position in it is one number.

Shapes: n tokens of a document, V vocabulary, P tokens that a split one becomes at most.
"""

import hashlib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pelagos.chat.tokenizer import EOS, Tokenizer
from pelagos.common.errors import TokenizerError
from pelagos.training.bpe import FIM_BEGIN, FIM_END, FIM_HOLE, PAD
from pelagos.training.packing import Document, TokenTable


class DocumentSource(Protocol):
    """Documents 0, 1, 2, .. without end.

    ``num_documents``: of one pass; None: no document comes twice. ``group`` shares its part of the tokens among its
    sources by ``size``, which is the number of tokens of one pass if there are passes. ``fingerprint``: sources with
    the same name and fingerprint have the same documents.
    """

    name: str
    group: str
    size: float
    num_documents: int | None
    fingerprint: str

    def fits(self, row_length: int) -> bool:
        """Whether rows of that length can be filled from here."""
        ...

    def document(self, number: int, row_length: int) -> Document:
        """The same for the same arguments. It may adapt to ``row_length``, or be longer and be cut."""
        ...


class TokenDocuments(Protocol):
    """Plain text as token ids, [n] integers per document: what ``shards.TokenSource`` is."""

    @property
    def num_documents(self) -> int: ...

    @property
    def num_tokens(self) -> int: ...

    def document(self, index: int) -> NDArray[Any]: ...


def random_key(seed: int, *key: str | int) -> int:
    """A number below 2^128, another one for every purpose, source and number of a document."""
    text = "/".join(map(str, (seed, *key)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def random_shares(num: int, key: int) -> NDArray[np.float64]:
    """``num`` numbers uniform in [0, 1). From raw bits of Philox: numpy keeps those alike over its versions."""
    bits: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(num)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def token_table(tokenizer: Tokenizer) -> TokenTable:
    """Bytes behind each token. Rows are filled with the padding token, or EOS in a vocabulary without one."""
    num_bytes = np.zeros(tokenizer.vocab_size, dtype=np.int32)
    for token_id, data in _plain_tokens(tokenizer):
        num_bytes[token_id] = len(data)
    try:
        padding_id = tokenizer.encode_special(PAD)
    except TokenizerError:
        padding_id = tokenizer.encode_special(EOS)
    return TokenTable(num_bytes=num_bytes, padding_id=padding_id)


def _plain_tokens(tokenizer: Tokenizer) -> Iterator[tuple[int, bytes]]:
    for token_id in range(tokenizer.vocab_size):
        if token_id not in tokenizer.special_ids:
            try:
                yield token_id, tokenizer.token_bytes(token_id)
            except TokenizerError:  # the vocabulary leaves this id unused
                continue


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Tokens that merge punctuation with the line ends behind it, and the tokens of the two when they are not merged.

    counts: [V] int64, how many tokens it becomes, 1 for all that cannot be split. parts: [V, P] int64, these tokens,
    then zeros.
    """

    counts: NDArray[np.int64]
    parts: NDArray[np.int64]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Splits":
        parts = {token_id: [token_id] for token_id in range(tokenizer.vocab_size)}
        for token_id, data in _plain_tokens(tokenizer):
            head = data.rstrip(b"\r\n")
            if len(head) < len(data) and _is_punctuation(head):
                parts[token_id] = tokenizer.encode(head.decode()) + tokenizer.encode(data[len(head) :].decode())
        width = max(map(len, parts.values()))
        return cls(
            counts=np.array([len(ids) for ids in parts.values()], dtype=np.int64),
            parts=np.array([ids + [0] * (width - len(ids)) for ids in parts.values()], dtype=np.int64),
        )

    def apply(self, token_ids: NDArray[Any], share: float, key: int) -> NDArray[Any]:
        """Split a random ``share`` of the tokens that can be."""
        chosen = self.counts[token_ids] > 1
        chosen[chosen] = random_shares(int(chosen.sum()), key) < share
        if not chosen.any():
            return token_ids
        parts = np.where(chosen[:, None], self.parts[token_ids], token_ids[:, None].astype(np.int64))
        counts = np.where(chosen, self.counts[token_ids], 1)
        return parts[np.arange(parts.shape[1]) < counts[:, None]]


def _is_punctuation(data: bytes) -> bool:
    """Whether these are punctuation marks or symbols, at least one, and else only spaces."""
    try:
        categories = {unicodedata.category(char)[0] for char in data.decode().strip(" \t")}
    except UnicodeDecodeError:
        return False
    return bool(categories) and categories <= {"P", "S"}


class TextSource:
    """Documents of text between start and end token, in another random order in each pass.

    On ``fim_share`` of them a random middle is taken out and put behind (prefix, suffix, middle; DeepSeek-V3 report,
    section on data construction), for a model that fills holes:

        BOS FIM_BEGIN prefix FIM_HOLE suffix FIM_END middle EOS

    Of tokens that merge punctuation with line ends, ``split_share`` are written as the tokens they consist of.
    """

    def __init__(
        self,
        name: str,
        tokens: TokenDocuments,
        tokenizer: Tokenizer,
        splits: Splits,
        *,
        seed: int,
        fim_share: float = 0.0,
        split_share: float = 0.0,
        group: str = "text",
    ) -> None:
        assert tokens.num_documents > 0, "a source must have a document"
        self.name, self.group, self.size = name, group, float(tokens.num_tokens)
        self.num_documents: int | None = tokens.num_documents
        self.fingerprint = (
            f"{tokens.num_documents} documents, {tokens.num_tokens} tokens, seed {seed}, "
            f"fim_share {fim_share}, split_share {split_share}"
        )
        self._tokens, self._splits, self._seed = tokens, splits, seed
        self._fim_share, self._split_share = fim_share, split_share
        self._bos, self._eos = [tokenizer.bos_id], [tokenizer.eos_id]
        self._marks = [[tokenizer.encode_special(mark)] for mark in (FIM_BEGIN, FIM_HOLE, FIM_END)] if fim_share else []
        self._order: tuple[int, NDArray[np.int64]] | None = None  # the pass, and its documents in order

    def fits(self, row_length: int) -> bool:
        """Text may be cut anywhere."""
        return True

    def document(self, number: int, row_length: int) -> Document:
        """The whole document, whatever ``row_length`` is."""
        token_ids = self._tokens.document(self._index(number))
        if self._split_share:
            token_ids = self._splits.apply(token_ids, self._split_share, self._key("split", number))
        token_ids = np.concatenate([self._bos, *self._with_hole(token_ids, number), self._eos], dtype=np.int64)
        weights = np.broadcast_to(np.float32(1), token_ids.shape)
        return Document(token_ids=token_ids, loss_weights=weights)

    def _with_hole(self, token_ids: NDArray[Any], number: int) -> list[Any]:
        if not self._fim_share or not len(token_ids):
            return [token_ids]
        chance, *ends = random_shares(3, self._key("fim", number))
        if chance >= self._fim_share:
            return [token_ids]
        first, last = sorted(int(end * len(token_ids)) for end in ends)
        begin, hole, end = self._marks
        prefix, middle, suffix = token_ids[:first], token_ids[first : last + 1], token_ids[last + 1 :]
        return [begin, prefix, hole, suffix, end, middle]

    def _index(self, number: int) -> int:
        """The place in the shard of a document of the endless sequence."""
        num_passes, place = divmod(number, self._tokens.num_documents)
        if self._order is None or self._order[0] != num_passes:
            shares = random_shares(self._tokens.num_documents, self._key("order", num_passes))
            self._order = num_passes, np.argsort(shares, kind="stable")
        return int(self._order[1][place])

    def _key(self, purpose: str, number: int) -> int:
        return random_key(self._seed, purpose, self.name, number)
