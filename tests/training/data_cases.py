"""A small vocabulary, texts for it, and sources whose tokens tell where they come from."""

import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pelagos.chat.tokenizer import BOS, EOS, FILE_NAME, Tokenizer
from pelagos.training.bpe import train_tokenizer
from pelagos.training.packing import Document, TokenTable

LINES = (
    "def area(width, height):\n",
    "    return scale(width * height);\n",
    'print(area(3, 4));\n\nprint("done");\n',
    "The café is open. Nobody came.\n\n",
    "Was it closed?\n",
)
TEXTS = ["".join(LINES[(i + k) % len(LINES)] for k in range(1 + i % 7)) + f"Text {i} ends here.\n" for i in range(40)]
NUM_WORDS = 1000  # documents of one CountingSource
MAX_LENGTH = 100


@functools.cache
def tokenizer() -> Tokenizer:
    return _read(_tokenizer_text())


@functools.cache
def bare_tokenizer() -> Tokenizer:
    """The same without special tokens but those for start and end; the other ids are unused."""
    data = json.loads(_tokenizer_text())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in (BOS, EOS)]
    return _read(json.dumps(data))


@functools.cache
def _tokenizer_text() -> str:
    return train_tokenizer(TEXTS * 20, 400)


def _read(text: str) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE_NAME
        path.write_text(text, encoding="utf-8")
        tokenizer = Tokenizer.from_file(path)
        assert tokenizer.official is not None  # reads the file while it is there
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts as a shard would hold them."""

    documents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, *texts: str) -> "Texts":
        return cls(documents=tuple(tuple(tokenizer().encode(text)) for text in texts))

    @property
    def num_documents(self) -> int:
        return len(self.documents)

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.documents))

    def document(self, index: int) -> NDArray[Any]:
        return np.array(self.documents[index], dtype=np.uint16)


class CountingSource:
    """Document ``number`` has ``shortest`` to 100 tokens, each of which is (place of the source, number, place in the
    document) as one number."""

    def __init__(
        self,
        place: int,
        group: str,
        size: float = 1.0,
        *,
        num_documents: int | None = None,
        min_row: int = 1,
        shortest: int = 1,
    ) -> None:
        self.name, self.group, self.size = f"{group}-{place}", group, size
        self.num_documents = num_documents
        self.fingerprint = f"{num_documents}, {shortest} to {MAX_LENGTH}"
        self.place, self.min_row, self.shortest = place, min_row, shortest

    def fits(self, row_length: int) -> bool:
        return row_length >= self.min_row

    def document(self, number: int, row_length: int) -> Document:
        index = number if self.num_documents is None else number % self.num_documents
        length = self.shortest + index * 37 % (MAX_LENGTH + 1 - self.shortest)
        first = (self.place * NUM_WORDS + index % NUM_WORDS) * MAX_LENGTH
        weights = np.linspace(0.5, 1.0, length, dtype=np.float32)
        return Document(token_ids=np.arange(first, first + length), loss_weights=weights)


def counting_table(num_sources: int) -> TokenTable:
    vocab_size = num_sources * NUM_WORDS * MAX_LENGTH
    return TokenTable(num_bytes=(np.arange(vocab_size) % 7).astype(np.int32), padding_id=0)
