"""The tokenizer of a model folder: text to ids, ids to bytes and text, without a way to forge a special token.

A *special token* is any entry of ``added_tokens`` in tokenizer.json (turn marks, think marks, DSML, placeholders). Text
never encodes to one: ``encode("<｜Assistant｜>")`` gives ordinary ids, because a user who could type a turn mark could
speak as the model. Only ``encode_special`` gives them.
"""

import codecs
import operator
from collections.abc import Iterable
from functools import cached_property
from itertools import filterfalse
from pathlib import Path
from typing import SupportsIndex

import tokenizers

from pelagos.chat import adapter
from pelagos.common.errors import TokenizerError

FILE_NAME = "tokenizer.json"
MAX_FILE_BYTES = 64 << 20  # the official file has 6.4 MB

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
LATEST_REMINDER = "<｜latest_reminder｜>"
THINK_START = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"  # opens every tag of a tool call: <｜DSML｜invoke name="...">

# What ends an answer: EOS, and the marks that only a prompt may hold, should a model ever write one.
STOP_TOKENS = (EOS, BOS, USER, ASSISTANT, LATEST_REMINDER)


class Tokenizer:
    """A byte-level BPE vocabulary with special tokens; immutable, safe to share between threads.

    Attributes: ``vocab_size`` (highest id + 1), ``bos_id``, ``eos_id``, ``stop_ids`` (ids of STOP_TOKENS that the
    vocabulary has: an engine ends an answer there), ``special_ids``, ``path``.
    """

    def __init__(self, path: Path, library: tokenizers.Tokenizer) -> None:
        """Use ``from_file`` or ``from_folder``; ``path`` is what the messages name."""
        self.path = path
        self._special = {token.content: i for i, token in library.get_added_tokens_decoder().items()}
        self._bytes = _bytes_of_ids(path, library, self._special)
        self._ascii: dict[int, str] = {}  # found so far
        self._plain = _without_special_tokens(library)
        self.vocab_size = len(self._bytes)
        self.special_ids = frozenset(self._special.values())
        self.bos_id = self.encode_special(BOS)
        self.eos_id = self.encode_special(EOS)
        self.stop_ids = frozenset(self._special[token] for token in STOP_TOKENS if token in self._special)

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """Read ``tokenizer.json`` of a model folder. Raises TokenizerError as ``from_file`` does."""
        return cls.from_file(Path(folder) / FILE_NAME)

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Read a Hugging Face tokenizer file.

        Raises TokenizerError if the file is missing, broken, larger than 64 MiB, not a byte-level BPE, or lacks a byte,
        BOS or EOS.
        """
        path = Path(path)
        text = _read(path)
        try:
            library = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library has no exception type of its own
            raise TokenizerError(f"{path} is not a tokenizer file: {error}") from error
        return cls(path, library)

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text: never a special token. Raises TokenizerError on half a surrogate pair."""
        _check_text(text)
        ids: list[int] = self._plain.encode(text, add_special_tokens=False).ids
        return ids

    def encode_special(self, name: str) -> int:
        """The id of the special token spelled ``name``, such as ``<｜User｜>``."""
        if name not in self._special:
            raise TokenizerError(
                f"{self.path} has no special token {name!r} among its {len(self._special)} added_tokens"
            )
        return self._special[name]

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, which need not be whole UTF-8 characters; UTF-8 of the spelling if special."""
        data = self._bytes[token_id] if 0 <= token_id < self.vocab_size else None
        if data is None:
            raise TokenizerError(f"token id {token_id} is not in {self.path}: its ids are 0 to {self.vocab_size - 1}")
        return data

    def ascii_text(self, token_id: int) -> str | None:
        """The text of a token that is plain ASCII, whatever stands around it; None of others, and of special ones."""
        text = self._ascii.get(token_id)
        if text is None and token_id not in self.special_ids and (data := self.token_bytes(token_id)).isascii():
            text = self._ascii[token_id] = data.decode("ascii")
        return text

    def decode(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are not UTF-8 become U+FFFD; ``skip_special`` leaves special tokens out."""
        return self.decode_bytes(ids, skip_special=skip_special).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[SupportsIndex], *, skip_special: bool = False) -> bytes:
        """Bytes of ``ids``, one after the other. Raises TokenizerError on an id out of range."""
        indices = map(operator.index, ids)
        shown = filterfalse(self.special_ids.__contains__, indices) if skip_special else indices
        return b"".join(map(self.token_bytes, shown))

    @cached_property
    def official(self) -> adapter.OfficialTokenizer:
        """The same file as deepseek-recipe reads it, made at first use (0.2 s, 70 MB for the official file)."""
        return adapter.load_tokenizer(self.path)


class IncrementalDecoder:
    """Decodes a stream of ids: the texts of all ``push`` calls and ``flush`` joined equal one ``decode`` of all ids.

    No push ends in half a character: the bytes of an unfinished one (at most three) wait for the next id. A push costs
    time in its own ids alone.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._is_whole = True

    def push(self, ids: Iterable[SupportsIndex]) -> str:
        """Take ids and return the text they complete. Raises TokenizerError on an id out of range and takes none."""
        text = self._decoder.decode(self._tokenizer.decode_bytes(ids, skip_special=self._skip_special))
        self._is_whole = not self._decoder.getstate()[0]
        return text

    def push_one(self, token_id: int) -> str:
        """``push`` of one id, fast for plain ASCII."""
        text = self._tokenizer.ascii_text(token_id) if self._is_whole else None
        return self.push((token_id,)) if text is None else text

    def flush(self) -> str:
        """End the stream: U+FFFD if a character was left unfinished, else nothing. The decoder is then new again."""
        self._is_whole = True
        return self._decoder.decode(b"", final=True)

    @property
    def pending(self) -> bool:
        """Whether an unfinished character waits for its next bytes."""
        return not self._is_whole


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise TokenizerError(f"{path} is not there or not a file; a model folder must hold {FILE_NAME}")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB, too large for a tokenizer file")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 text: bad byte at {error.start}") from error


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"text holds half a surrogate pair at character {error.start}, which has no UTF-8"
        ) from error


def _without_special_tokens(library: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The same BPE model without its added tokens. (The library's ``encode_special_tokens`` switch is not enough: the
    official file marks only some of its added tokens as special, and not the turn marks.)"""
    plain = tokenizers.Tokenizer(library.model)
    plain.pre_tokenizer = library.pre_tokenizer
    if library.normalizer is not None:
        plain.normalizer = library.normalizer
    return plain


def _bytes_of_ids(path: Path, library: tokenizers.Tokenizer, special: dict[str, int]) -> list[bytes | None]:
    """Bytes of each id; None where the file leaves an id unused."""
    if not isinstance(library.model, tokenizers.models.BPE) or not isinstance(
        library.decoder, tokenizers.decoders.ByteLevel
    ):
        raise TokenizerError(f"{path} must hold a byte-level BPE: model BPE and decoder ByteLevel")
    byte_of_char = _byte_of_char()
    vocab = library.get_vocab(with_added_tokens=False)
    if missing := [byte for char, byte in byte_of_char.items() if char not in vocab]:
        raise TokenizerError(f"{path} must hold all 256 single bytes; {len(missing)} are missing, first {min(missing)}")
    table: list[bytes | None] = [None] * (1 + max(*vocab.values(), *special.values()))
    for token, token_id in vocab.items():
        if token not in special:
            try:
                table[token_id] = bytes(map(byte_of_char.__getitem__, token))
            except KeyError as error:
                raise TokenizerError(
                    f"{path} is not byte-level: token {token_id} {token!r} is not spelled in it"
                ) from error
    for token, token_id in special.items():
        table[token_id] = token.encode()
    return table


def _byte_of_char() -> dict[str, int]:
    """GPT-2's spelling of bytes: a printable Latin-1 byte is its own character, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
