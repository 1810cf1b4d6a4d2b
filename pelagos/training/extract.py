"""Files of a source to documents: one rule for each form in which text comes."""

import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pelagos.common.errors import UsageError
from pelagos.common.files import parse_json
from pelagos.training.archives import MAX_MEMBER_BYTES, Member, folder_files, matcher, read_file, read_members
from pelagos.training.html_text import html_to_text
from pelagos.training.sources import Fetched, Rule, SourceConfig, SourceUnavailableError, optional_module

MAX_CODE_BYTES = 200_000  # larger files are tables in all but name
MIN_LETTER_SHARE = 0.5  # of what is not a space; tables of numbers have less
GLOSSES_PER_DOCUMENT = 64
PARTS_OF_SPEECH = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}

# A line of a data file, see wndb(5WN): offset, file number, part of speech, number of words, then each word with a
# number behind it, and more fields.
SYNSET = re.compile(
    r"^\d{8} \d\d (?P<part>[nvasr]) (?P<num_words>[0-9a-f]{2}) (?P<fields>[^|\n]*) \| (?P<gloss>.*)$", re.MULTILINE
)
KJV_SECONDS = 60
KJV_FILES = ("usr/bin/bible", "usr/lib/bible.data", "usr/lib/bible.data.conc")  # without the last one it crashes


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text that belongs together; ``name`` says where it stood in its source."""

    name: str
    text: str


def documents(source: SourceConfig, fetched: Fetched) -> Iterator[Document]:
    """All documents of a source, in an order that depends on its files alone; duplicates are still in.

    Raises UsageError for files that cannot be read, SourceUnavailableError where a program or package is missing.
    """
    wanted = matcher(source.include, source.exclude)
    first = fetched.paths[0]
    if source.kind in ("folder", "sample"):
        yield from _files_and_records(source.rule, first, wanted)
    elif source.rule == "kjv":
        yield from _king_james(fetched.paths)
    else:
        yield from MEMBER_RULES[source.rule](read_members(first, wanted))


# --- files as documents ---


def _pages(members: list[Member]) -> Iterator[Document]:
    for member in members:
        yield Document(name=member.name, text=html_to_text(decoded(member.data)))


def _plain(members: list[Member]) -> Iterator[Document]:
    for member in members:
        yield Document(name=member.name, text=decoded(member.data))


def _code(members: list[Member]) -> Iterator[Document]:
    for member in members:
        if len(member.data) <= MAX_CODE_BYTES:
            text = decoded(member.data)
            if not is_table(text):
                yield Document(name=member.name, text=text)


def decoded(data: bytes) -> str:
    """UTF-8, or else Latin-1, with "\\n" at line ends and without a byte order mark."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def is_table(code: str) -> bool:
    """Whether less than half of what is not a space is letters."""
    solid = "".join(code.split())
    return sum(map(str.isalpha, solid)) < MIN_LETTER_SHARE * len(solid)


# --- WordNet ---


def _glosses(members: list[Member]) -> Iterator[Document]:
    """Lines ``word (pos): gloss`` in the order of the files, which keep what is alike together, 64 to a document."""
    for member in members:
        glosses = [_gloss(match) for match in SYNSET.finditer(decoded(member.data))]
        for start in range(0, len(glosses), GLOSSES_PER_DOCUMENT):
            text = "\n".join(glosses[start : start + GLOSSES_PER_DOCUMENT])
            yield Document(name=f"{member.name}:{start}", text=text)


def _gloss(synset: re.Match[str]) -> str:
    words = synset["fields"].split()[: 2 * int(synset["num_words"], 16) : 2]
    shown = (re.sub(r"\((?:a|p|ip)\)$", "", word).replace("_", " ") for word in words)
    return f"{', '.join(shown)} ({PARTS_OF_SPEECH[synset['part']]}): {synset['gloss'].strip()}"


# --- Bibles ---


def _sword(members: list[Member]) -> Iterator[Document]:
    """A zText module of the SWORD project with OSIS markup, a chapter a document."""
    files = {Path(member.name).name: member.data for member in members}
    for part in ("ot", "nt"):
        if not {f"{part}.bzs", f"{part}.bzz"} <= files.keys():
            raise UsageError(f"a SWORD module must hold {part}.bzs and {part}.bzz")
        for block in _sword_blocks(files[f"{part}.bzs"], files[f"{part}.bzz"]):
            _, *chapters = re.split(r'<chapter [^>]*sID="([^"]+)"[^>]*>', block)
            for chapter, osis in zip(chapters[::2], chapters[1::2], strict=True):
                yield Document(name=chapter, text=_osis_text(osis))


def _sword_blocks(index: bytes, data: bytes) -> Iterator[str]:
    """Blocks of a ``bzz`` file, zlib streams of a book each; ``bzs`` holds offset, size and unpacked size of each.

    The verse index (``bzv``) is not needed: chapters are marked in the text.
    """
    for offset, size, unpacked_size in struct.iter_unpack("<III", index[: len(index) // 12 * 12]):
        if unpacked_size > MAX_MEMBER_BYTES:
            raise UsageError(f"a block of a SWORD module has {unpacked_size} bytes, more than {MAX_MEMBER_BYTES}")
        if size and unpacked_size:
            try:
                block = zlib.decompressobj().decompress(data[offset : offset + size], unpacked_size)
            except zlib.error as error:
                raise UsageError(f"a block of a SWORD module is broken: {error}") from None
            yield block.decode("utf-8", "replace")


def _osis_text(osis: str) -> str:
    """Paragraphs and lines of poetry on lines of their own, without notes."""
    osis = re.sub(r"<(note|rdg|title)\b[^>]*(?<!/)>.*?</\1>", " ", osis, flags=re.DOTALL)
    osis = re.sub(r'<(?:div\b[^>]*type="x-p"|lg?\b|lb\b|/?item\b|speaker\b)[^>]*>', "\n", osis)
    text = re.sub(r"<[^>]*>", "", osis).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    lines = (re.sub(r" ([,.;:!?’”])", r"\1", " ".join(line.split())) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def _king_james(packages: tuple[Path, ...]) -> Iterator[Document]:
    """A chapter a document, as the program ``bible`` of a Debian package prints it, without labels of verses."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for package in packages:
            for member in read_members(package, KJV_FILES.__contains__):
                (folder / Path(member.name).name).write_bytes(member.data)
        if missing := [name for name in KJV_FILES if not (folder / Path(name).name).exists()]:
            raise SourceUnavailableError(f"the packages do not hold {missing[0]}")
        program = folder / "bible"
        program.chmod(0o755)
        command = [str(program), "gen1:1-rev22:21"]
        try:
            done = subprocess.run(
                command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=KJV_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SourceUnavailableError(f"the program bible does not run on this machine: {error}") from None
    yield from kjv_chapters(done.stdout.decode("utf-8", "replace"))


def kjv_chapters(printed: str) -> Iterator[Document]:
    """Chapters of what ``bible`` prints: a line with book and chapter, then verses as indented, numbered lines that go
    on without indent. Here a verse is one line.
    """
    title, verses = "", list[str]()
    for line in [*printed.split("\n"), "End 0"]:
        if verse := re.match(r"  +\d+ (.*)", line):
            verses.append(verse[1])
        elif re.fullmatch(r"(?:[123] )?[A-Z][A-Za-z ]* \d+", line.strip()):
            if verses:
                yield Document(name=title, text="\n".join(verses))
            title, verses = line.strip(), []
        elif line.strip() and verses:
            verses[-1] += " " + line.strip()


# --- dialogues ---


def _dialogues(members: list[Member]) -> Iterator[Document]:
    """YAML files of ChatterBot: ``conversations`` is a list of lists of turns. A file is a document, and
    says each dialogue once.
    """
    yaml = optional_module("yaml", "pyyaml", "a source with rule dialogues")
    for member in members:
        try:
            conversations = yaml.safe_load(decoded(member.data))["conversations"]
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise UsageError(f"{member.name} must be YAML with a list named conversations: {error}") from None
        blocks = ["\n".join(f"- {turn}" for turn in turns if isinstance(turn, str)) for turns in conversations]
        yield Document(name=member.name, text="\n\n".join(dict.fromkeys(blocks)))


MEMBER_RULES: dict[Rule, Callable[[list[Member]], Iterator[Document]]] = {
    "html": _pages,
    "text": _plain,
    "python": _code,
    "wordnet": _glosses,
    "sword": _sword,
    "dialogues": _dialogues,
}


# --- the user's files ---


def _files_and_records(rule: Rule, path: Path, wanted: Callable[[str], bool]) -> Iterator[Document]:
    """``.jsonl`` and ``.parquet`` files give a document a record, all others one by the source's rule."""
    for name, file in folder_files(path, wanted) if path.is_dir() else [(path.name, path)]:
        if file.suffix == ".jsonl":
            yield from _json_lines(name, file)
        elif file.suffix == ".parquet":
            yield from _parquet(name, file)
        else:
            yield from MEMBER_RULES[rule]([read_file(name, file)])


def _json_lines(name: str, path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                record = parse_json(line, f"{path}, line {number},")
                text = record.get("text") if isinstance(record, dict) else None
                if not isinstance(text, str):
                    raise UsageError(f'{path}, line {number}, must be an object {{"text": "..."}}')
                yield Document(name=f"{name}:{number}", text=text)


def _parquet(name: str, path: Path) -> Iterator[Document]:
    parquet = optional_module("pyarrow.parquet", "pyarrow", f"{path}")
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise UsageError(f"{path} must have a column named text")
            number = 0
            for batch in file.iter_batches(batch_size=256, columns=["text"]):
                for text in batch.column(0).to_pylist():
                    if not isinstance(text, str):
                        raise UsageError(f"{path}, row {number}: column text must hold texts")
                    yield Document(name=f"{name}:{number}", text=text)
                    number += 1
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not a Parquet file that can be read: {error}") from None


def cleaned(text: str) -> str:
    """A document's text for training: "\\n" at line ends, no spaces before it, at most two empty lines in a row."""
    text = re.sub(r"[ \t]+$", "", text.replace("\r\n", "\n").replace("\r", "\n"), flags=re.MULTILINE)
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n")
