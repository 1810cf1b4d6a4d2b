"""The text of a source as one JSONL file of unique documents, and which of them are held out."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pelagos.common.errors import UsageError
from pelagos.common.files import atomic_path, sha256_file
from pelagos.training.archives import folder_files, matcher
from pelagos.training.extract import Document, cleaned, documents
from pelagos.training.shards import SPLITS
from pelagos.training.sources import Fetched, SourceConfig

MAX_HELD_OUT_SHARE = 0.05  # of a source for each held-out split, however small the source
MAX_DOCUMENT_SHARE = 0.1  # of a source for a document that is held out


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What was kept of a source and what was left out. ``sha256`` is that of the text file."""

    sha256: str
    num_documents: int
    num_text_bytes: int
    num_duplicates: int
    num_too_short: int
    num_too_long: int


def files_digest(source: SourceConfig, fetched: Fetched) -> str:
    """SHA-256 of the names and contents of the files that a source is read from."""
    wanted = matcher(source.include, source.exclude)
    digest = hashlib.sha256()
    for path in fetched.paths:
        for name, file in folder_files(path, wanted) if path.is_dir() else [(path.name, path)]:
            digest.update(f"{name}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()


def write_text(
    source: SourceConfig,
    fetched: Fetched,
    path: Path,
    *,
    min_document_chars: int,
    max_document_bytes: int,
    max_source_bytes: int,
) -> TextFacts:
    """Write the documents of a source, each text once, as lines ``{"name": ..., "text": ...}``.

    Raises UsageError if the source has more than ``max_source_bytes`` of text or cannot be read, SourceUnavailableError
    if something on this machine is missing.
    """
    seen: set[bytes] = set()
    num_text_bytes = num_duplicates = num_too_short = num_too_long = 0
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for document in documents(source, fetched):
            text = cleaned(document.text)
            size = len(_utf8(text, f"{source.name}, {document.name}"))
            digest = text_digest(text)
            if len(text) < min_document_chars:
                num_too_short += 1
            elif size > max_document_bytes:
                num_too_long += 1
            elif digest in seen:
                num_duplicates += 1
            else:
                seen.add(digest)
                num_text_bytes += size
                if num_text_bytes > max_source_bytes:
                    raise UsageError(f"source {source.name} has more text than max_source_bytes, {max_source_bytes:,}")
                file.write(json.dumps({"name": document.name, "text": text}, ensure_ascii=False) + "\n")
    return TextFacts(
        sha256=sha256_file(path),
        num_documents=len(seen),
        num_text_bytes=num_text_bytes,
        num_duplicates=num_duplicates,
        num_too_short=num_too_short,
        num_too_long=num_too_long,
    )


def read_text(path: Path) -> Iterator[Document]:
    """The documents that ``write_text`` wrote, in order."""
    with path.open(encoding="utf-8", newline="\n") as file:
        for line in file:
            yield Document(**json.loads(line))


def text_digest(text: str) -> bytes:
    """SHA-256 of a text, 32 bytes: its identity."""
    return hashlib.sha256(text.encode()).digest()


def split_documents(
    digests: Sequence[bytes],
    sizes: Sequence[int],
    *,
    seed: int,
    valid_share: float,
    test_share: float,
    min_held_out_bytes: int,
) -> list[str]:
    """The split of each document of a source, given identity and bytes: train, valid or test.

    Documents are taken in the order of a hash of seed and identity, first for test, then for valid, until a split has
    its share of the bytes or ``min_held_out_bytes``, whichever is more; but not more than 5 % for the sake of the
    latter. A document that is more than a tenth of its source stays in train. The order in which documents are given
    does not matter, and what other documents say only for where the borders lie.
    """
    total = sum(sizes)
    least = min(min_held_out_bytes, MAX_HELD_OUT_SHARE * total)
    order = iter(sorted(range(len(digests)), key=lambda i: hashlib.sha256(b"%d:" % seed + digests[i]).digest()))
    splits = [SPLITS[0]] * len(digests)
    for split, share in (("test", test_share), ("valid", valid_share)):
        target = max(share * total, least) if share else 0.0
        held_out = 0
        while held_out < target and (index := next(order, None)) is not None:
            if sizes[index] <= MAX_DOCUMENT_SHARE * total:
                splits[index] = split
                held_out += sizes[index]
    return splits


def _utf8(text: str, place: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{place} holds half a surrogate pair at character {error.start}") from None
