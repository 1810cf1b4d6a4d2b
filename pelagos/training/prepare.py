"""From sources to a folder that training reads: text, tokenizer, token shards, notices and statistics.

    text/NAME.jsonl            the documents of each source, as a person can read them
    tokenizer.json             byte-level BPE, learnt from the training split
    effort_levels.json  generation_config.json   how a model that learns from this is to be asked
    tokens/NAME.SPLIT.*        shards, see shards.py
    NOTICE  prepare.json  plots/*.png  state.json

The same files in give the same bytes out. A run that was stopped goes on with what it had finished.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelagos.chat import tokenizer as tokenizers
from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import ConfigError, ResourceError, UsageError
from pelagos.common.fields import check_fields, setting
from pelagos.common.files import FolderLock, sha256_file, write_atomic
from pelagos.training import ledger, prepare_report
from pelagos.training.bpe import MIN_VOCAB_SIZE, train_tokenizer
from pelagos.training.catalogue import SOURCES
from pelagos.training.corpus import TextFacts, files_digest, read_text, split_documents, text_digest, write_text
from pelagos.training.extract import Document
from pelagos.training.ledger import Ledger
from pelagos.training.prepare_report import SourceReport, SplitReport
from pelagos.training.shards import SPLITS, ShardWriter, TokenSource, shard_paths
from pelagos.training.sources import Fetched, SourceConfig, SourceUnavailableError, fetch, optional_module
from pelagos.training.tasks.encoding import write_usage

RULES_VERSION = 2  # to be raised when the same files would give other bytes than before
TOKENS_FOLDER = "tokens"
TEXT_FOLDER = "text"
CACHE_FOLDER = "packages"

Progress = Callable[[str, int, int], None]  # what is being done, how much is done, how much there is


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """What goes into a prepared folder."""

    vocab_size: int = setting(
        4096, help="ids of the tokenizer, 64 special ones among them", low=MIN_VOCAB_SIZE, high=1 << 20
    )
    sources: tuple[SourceConfig, ...] = setting(SOURCES, help="what to read, in this order")
    seed: int = setting(0, help="chooses the held-out documents", low=0, high=2**63 - 1)
    valid_share: float = setting(0.01, help="share of each source held out for validation", low=0.0, high=0.4)
    test_share: float = setting(0.01, help="share of each source held out for the final test", low=0.0, high=0.4)
    min_held_out_bytes: int = setting(
        200_000, help="text that each held-out split has at least, up to 5 % of its source", low=0
    )
    min_document_chars: int = setting(100, help="shorter documents are left out", low=1)
    max_document_bytes: int = setting(16 << 20, help="longer documents are left out", low=1)
    max_source_bytes: int = setting(1 << 30, help="a source with more text is an error", low=1)
    tokenizer_bytes_per_source: int = setting(4_000_000, help="text that the tokenizer learns from", low=1)
    plots: bool = setting(True, help="draw the statistics (needs matplotlib)")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.sources or not all(isinstance(source, SourceConfig) for source in self.sources):
            raise ConfigError("sources must be a tuple of at least one SourceConfig")
        names = [source.name for source in self.sources]
        if doubled := sorted(name for name in set(names) if names.count(name) > 1):
            raise ConfigError(f"sources must have different names, but {doubled[0]} stands twice")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was prepared. ``missing`` holds sources that were left out and why, ``resumed`` the steps found finished."""

    folder: Path
    vocab_size: int
    sources: tuple[SourceReport, ...]
    missing: dict[str, str]
    resumed: tuple[str, ...]
    seconds: float


def prepare(
    config: PrepareConfig,
    out: Path,
    progress: Progress = lambda what, done, total: None,
    *,
    cache: Path | None = None,
    allow_missing: bool = False,
    force: bool = False,
) -> Report:
    """Prepare the folder ``out``. Packages come from ``cache`` (``out/packages``) or, if missing there, the network.

    Raises ResourceError that names the sources that cannot be had, unless ``allow_missing``; UsageError if ``out``
    holds anything but an unfinished or finished run of the same config, unless ``force``, which replaces what differs.
    """
    started = time.monotonic()
    if config.plots:
        optional_module("matplotlib", "matplotlib", "drawing statistics (plots)")
    out.mkdir(parents=True, exist_ok=True)
    with FolderLock(out):
        run = _Run(config, out, cache or out / CACHE_FOLDER, progress, force)
        missing = run.collect_text()
        if missing and not allow_missing:
            reasons = "".join(f"\n  - {name}: {reason}" for name, reason in missing.items())
            raise ResourceError(f"{len(missing)} of {len(config.sources)} sources cannot be had:{reasons}")
        if not run.texts:
            raise ResourceError(f"no source is left: {'; '.join(missing.values())}")
        run.split()
        run.learn_tokenizer()
        reports = run.write_shards()
        run.forget_the_rest()
        prepare_report.write(out, config, reports, missing)
        return Report(
            folder=out,
            vocab_size=config.vocab_size,
            sources=reports,
            missing=missing,
            resumed=tuple(run.resumed),
            seconds=time.monotonic() - started,
        )


class _Run:
    """The steps of one preparation and what they hand to each other."""

    def __init__(self, config: PrepareConfig, out: Path, cache: Path, progress: Progress, force: bool) -> None:
        self._config = config
        self._out = out
        self._cache = cache
        self._progress = progress
        if not force and not (out / ledger.FILE_NAME).exists():
            own = ((out / ".lock").resolve(), cache.resolve())
            if others := sorted(path.name for path in out.iterdir() if path.resolve() not in own):
                raise UsageError(f"{out} must be new or empty, but holds {others[0]}: choose another or use force")
        self._ledger = Ledger(out, dataclasses.asdict(config), force=force)
        self._steps: list[str] = []
        self._splits: dict[str, list[str | None]] = {}
        self.texts: dict[str, TextFacts] = {}
        self.versions: dict[str, str] = {}
        self.resumed: list[str] = []
        for folder in (TEXT_FOLDER, TOKENS_FOLDER):
            (out / folder).mkdir(exist_ok=True)

    def _step(self, name: str, inputs: object, files: list[Path], work: Callable[[], Any]) -> Any:
        """The facts of a step: from the ledger if it is finished, else from ``work``, recorded."""
        self._steps.append(name)
        facts = self._ledger.facts(name, inputs)
        if facts is not None:
            self.resumed.append(name)
            return facts
        facts = work()
        self._ledger.record(name, inputs, files, facts)
        return facts

    def collect_text(self) -> dict[str, str]:
        """Write the text of every source. Returns the sources that cannot be had, with reasons."""
        missing = {}
        for number, source in enumerate(self._config.sources):
            self._progress(f"text of {source.name}", number, len(self._config.sources))
            try:
                fetched = fetch(source, self._cache)
                self.texts[source.name] = self._text(source, fetched)
                self.versions[source.name] = fetched.version
            except SourceUnavailableError as error:
                missing[source.name] = str(error)
        return missing

    def _text(self, source: SourceConfig, fetched: Fetched) -> TextFacts:
        path = self._text_path(source.name)
        limits = {
            name: getattr(self._config, name)
            for name in ("min_document_chars", "max_document_bytes", "max_source_bytes")
        }
        inputs = [RULES_VERSION, dataclasses.asdict(source), limits, files_digest(source, fetched)]
        facts = self._step(
            f"text {source.name}",
            inputs,
            [path],
            lambda: dataclasses.asdict(write_text(source, fetched, path, **limits)),
        )
        return TextFacts(**facts)

    def split(self) -> None:
        """Give every document its split; None to what an earlier source said already."""
        seen: set[bytes] = set()
        rule = self._split_rule()
        for name in self.texts:
            digests, sizes = [], []
            for document in read_text(self._text_path(name)):
                digests.append(text_digest(document.text))
                sizes.append(len(document.text.encode()))
            new = [index for index, digest in enumerate(digests) if digest not in seen]
            seen.update(digests)
            splits: list[str | None] = [None] * len(digests)
            chosen = split_documents([digests[i] for i in new], [sizes[i] for i in new], **rule)
            for index, split in zip(new, chosen, strict=True):
                splits[index] = split
            self._splits[name] = splits

    def learn_tokenizer(self) -> None:
        """Learn the tokenizer from the training documents of all sources."""
        self._progress("tokenizer", 0, 1)
        path = self._out / tokenizers.FILE_NAME

        def learn() -> dict[str, str]:
            write_atomic(path, train_tokenizer(self._tokenizer_texts(), self._config.vocab_size))
            return {"sha256": sha256_file(path)}

        config = self._config
        inputs = [config.vocab_size, config.tokenizer_bytes_per_source, self._split_inputs()]
        self._tokenizer_sha256 = self._step("tokenizer", inputs, [path], learn)["sha256"]
        self._tokenizer = Tokenizer.from_file(path)
        write_usage(self._out)

    def _tokenizer_texts(self) -> Iterator[str]:
        """A random sample of the training documents of each source, about ``tokenizer_bytes_per_source`` of text."""
        for name, facts in self.texts.items():
            share = self._config.tokenizer_bytes_per_source / max(1, facts.num_text_bytes)
            for document, split in self._documents(name):
                if split == "train" and text_digest(document.text)[0] < 256 * share:
                    yield document.text

    def write_shards(self) -> tuple[SourceReport, ...]:
        """Write the shards of every source."""
        reports, done = [], 0
        total = sum(facts.num_text_bytes for facts in self.texts.values())
        for source in self._config.sources:
            if source.name not in self.texts:
                continue
            self._progress(f"tokens of {source.name}", done, total)
            facts = self.texts[source.name]
            splits = self._shards(source.name)
            reports.append(
                SourceReport(
                    name=source.name,
                    package=source.package,
                    version=self.versions[source.name],
                    licence=source.licence,
                    copyright=source.copyright,
                    num_duplicates=facts.num_duplicates + self._splits[source.name].count(None),
                    num_too_short=facts.num_too_short,
                    num_too_long=facts.num_too_long,
                    splits=splits,
                )
            )
            done += facts.num_text_bytes
        return tuple(reports)

    def _shards(self, name: str) -> dict[str, SplitReport]:
        folder = self._out / TOKENS_FOLDER
        files = [path for split in SPLITS for path in shard_paths(folder, name, split).values()]
        inputs = [self._tokenizer_sha256, name, self._split_inputs()]
        facts = self._step(f"tokens {name}", inputs, files, lambda: self._encode(name, folder))
        return {split: SplitReport(**facts[split]) for split in SPLITS}

    def _encode(self, name: str, folder: Path) -> dict[str, Any]:
        with ExitStack() as stack:
            writers = {
                split: stack.enter_context(ShardWriter(folder, name, split, self._config.vocab_size))
                for split in SPLITS
            }
            for document, split in self._documents(name):
                if split is not None:
                    writers[split].add(self._tokenizer.encode(document.text), len(document.text.encode()))
        shards = {split: TokenSource.open(folder, name, split) for split in SPLITS}
        return {split: dataclasses.asdict(SplitReport.of(shard)) for split, shard in shards.items()}

    def forget_the_rest(self) -> None:
        """Remove what an earlier run wrote for sources that are no longer there."""
        self._ledger.keep_only(self._steps)

    def _documents(self, name: str) -> Iterator[tuple[Document, str | None]]:
        return zip(read_text(self._text_path(name)), self._splits[name], strict=True)

    def _split_rule(self) -> dict[str, Any]:
        names = ("seed", "valid_share", "test_share", "min_held_out_bytes")
        return {name: getattr(self._config, name) for name in names}

    def _split_inputs(self) -> list[Any]:
        """All that the splits depend on."""
        texts = [[name, facts.sha256] for name, facts in self.texts.items()]
        return [RULES_VERSION, self._split_rule(), texts]

    def _text_path(self, name: str) -> Path:
        return self._out / TEXT_FOLDER / f"{name}.jsonl"
