"""Batches of packed documents from a mixture of sources: the same in every run, wherever it was interrupted.

    loader = open_loader(config, tokenizer)
    loader.set_mixture({"text": 0.6, "recall": 0.25, "chat": 0.15})
    batch = loader.batch(num_rows=64, row_length=256)
    state = loader.state_dict()  # plain JSON; a loader that loads it goes on with the next batch, bit for bit

Whatever is random is in the sources, which keep no state (see documents.py): what has to be saved is which documents
are open, how far each was read, and which parts wait to be packed.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import CheckpointError, UsageError
from pelagos.common.fields import check_fields, setting, show
from pelagos.training.batch import PackedBatch
from pelagos.training.documents import DocumentSource, Splits, TextSource, token_table
from pelagos.training.mixture import Mixture, Part, token_shares
from pelagos.training.packing import TokenTable, best_fit_decreasing, cut, to_batch
from pelagos.training.prepare import TOKENS_FOLDER
from pelagos.training.shards import TokenSource
from pelagos.training.task_documents import TASK_MIXES, Passages, task_sources
from pelagos.training.tasks import TaskMix

STATE_VERSION = 1
GLOSSES = "wordnet"  # the source whose lines are entries of a dictionary
GLOSS_TOKENS = 128
SPARE_ROWS = 0.25  # parts for so many more rows are at hand than a batch needs, to choose those that fit together
MIN_SPARE_ROWS = 3


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where documents come from and what is done to them."""

    folder: str = setting(help="folder that `pelagos train prepare` made")
    seed: int = setting(0, help="of the order of documents, of holes, splits and tasks", low=0, high=(1 << 63) - 1)
    fim_share: float = setting(0.1, help="share of text documents with a hole to be filled in", low=0.0, high=1.0)
    split_share: float = setting(
        0.1, help="share of the tokens of punctuation with line ends that are split in two", low=0.0, high=1.0
    )
    buffer_documents: int = setting(
        64, help="documents of each text source that are read side by side", low=1, high=1 << 16
    )
    prefetch_batches: int | None = setting(
        2, help="batches that a thread makes ahead of the training step; None: no thread", low=1, high=64
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """What a loader has handed out, on all ranks. ``padding_share``: of all places. ``tokens``: by source.
    ``passes``: by source that has an end, how often it was gone through, in tokens."""

    num_batches: int
    num_tokens: int
    padding_share: float
    tokens: dict[str, int]
    passes: dict[str, float]


class Batches(Protocol):
    """What a training loop reads from: a Loader, or a Prefetcher in front of it."""

    def set_mixture(self, weights: Mapping[str, float]) -> None: ...

    def batch(self, num_rows: int, row_length: int) -> PackedBatch: ...

    def report(self) -> DataReport: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Loader:
    """Packs documents of a mixture into batches. Every rank packs the same batch and keeps its own rows of it."""

    def __init__(
        self, sources: Sequence[DocumentSource], table: TokenTable, *, num_open: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        """``num_open``: documents of each source that has an end which are read side by side."""
        assert 0 <= rank < num_ranks, "rank must be 0 to num_ranks - 1"
        self._table, self._rank, self._num_ranks = table, rank, num_ranks
        self._mixture = Mixture(sources, num_open)
        self._weights: dict[str, float] = {}
        self._waiting: list[Part] = []  # the oldest first
        self._tokens: Counter[str] = Counter()
        self._num_batches = self._num_places = 0

    def set_mixture(self, weights: Mapping[str, float]) -> None:
        """Shares of tokens, by group or source, from the next batch on; setting the same again changes nothing.

        Raises UsageError as ``mixture.token_shares`` does.
        """
        token_shares(self._mixture.sources, weights)
        self._weights = dict(weights)

    def batch(self, num_rows: int, row_length: int) -> PackedBatch:
        """The next ``num_rows`` rows, of all ranks together: this rank's part of them.

        Raises UsageError if the ranks cannot share the rows equally, or a group of the mixture has nothing as short as
        a row; nothing is lost then.
        """
        assert self._weights, "set_mixture comes first"
        if num_rows < 1 or num_rows % self._num_ranks:
            raise UsageError(f"a batch must have a multiple of {self._num_ranks} rows, one per process, got {num_rows}")
        rows = self._next_rows(num_rows, row_length)
        self._num_batches += 1
        self._num_places += num_rows * row_length
        for row in rows:
            for part in row:
                self._tokens[part.source.name] += len(part)
        per_rank = num_rows // self._num_ranks
        mine = rows[self._rank * per_rank : (self._rank + 1) * per_rank]
        return to_batch([[part.document for part in row] for row in mine], row_length, self._table)

    def _next_rows(self, num_rows: int, row_length: int) -> list[list[Part]]:
        """Packs more than is needed, puts the emptiest row back, and takes those with the oldest parts."""
        self._mixture.aim(self._weights, row_length, self._waiting)
        self._waiting = [part.part(*ends) for part in self._waiting for ends in cut(len(part), row_length)]
        spare_rows = max(MIN_SPARE_ROWS, round(SPARE_ROWS * num_rows))
        lacking = (num_rows + spare_rows) * row_length - sum(map(len, self._waiting))
        while lacking > 0:
            self._waiting.append(self._mixture.take())
            lacking -= len(self._waiting[-1])
        waiting, lengths = self._waiting, [len(part) for part in self._waiting]
        rows = best_fit_decreasing(lengths, row_length)
        rows.remove(min(rows, key=lambda row: sum(lengths[i] for i in row)))
        rows = sorted(rows)[:num_rows]  # the numbers in a row rise, and so does age
        used = {i for row in rows for i in row}
        self._waiting = [part for i, part in enumerate(waiting) if i not in used]
        return [[waiting[i] for i in row] for row in rows]

    def report(self) -> DataReport:
        """What was handed out so far, runs before a resume included."""
        num_tokens = self._tokens.total()
        finite = [source for source in self._mixture.sources if source.num_documents is not None]
        return DataReport(
            num_batches=self._num_batches,
            num_tokens=num_tokens,
            padding_share=1 - num_tokens / self._num_places if self._num_places else 0.0,
            tokens=dict(self._tokens),
            passes={source.name: self._tokens[source.name] / source.size for source in finite},
        )

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, in plain JSON values; the same on every rank."""
        return {
            "version": STATE_VERSION,
            "sources": {source.name: source.fingerprint for source in self._mixture.sources},
            "weights": self._weights,
            "mixture": self._mixture.state_dict(),
            "waiting": [[part.source.name, *part.cursor()] for part in self._waiting],
            "counts": {"batches": self._num_batches, "places": self._num_places, "tokens": dict(self._tokens)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was called, on any number of ranks.

        Raises CheckpointError if the sources are not the same any more or the state is damaged; after the latter this
        loader must not be used.
        """
        if problems := list(self._differences(state)):
            raise CheckpointError("state of the data", problems)
        by_name = {source.name: source for source in self._mixture.sources}
        try:
            self._mixture.load_state_dict(state["mixture"])
            self._weights = dict(state["weights"])
            self._waiting = [Part.at(by_name[name], cursor) for name, *cursor in state["waiting"]]
            counts = state["counts"]
            self._num_batches, self._num_places = int(counts["batches"]), int(counts["places"])
            self._tokens = Counter({str(name): int(number) for name, number in counts["tokens"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError("state of the data", [f"it is damaged: {error!r}"]) from error

    def _differences(self, state: Mapping[str, Any]) -> Iterator[str]:
        there = state.get("sources")
        if state.get("version") != STATE_VERSION or not isinstance(there, Mapping):
            yield f"it must have version {STATE_VERSION} and sources, got version {show(state.get('version'))}"
            return
        here = {source.name: source.fingerprint for source in self._mixture.sources}
        for name in sorted({*here, *there}):
            if here.get(name) != there.get(name):
                yield f"source {name} was {there.get(name, 'not there')}, and now is {here.get(name, 'not there')}"


def open_loader(
    config: DataConfig,
    tokenizer: Tokenizer,
    *,
    mixes: Mapping[str, TaskMix] = TASK_MIXES,
    rank: int = 0,
    num_ranks: int = 1,
) -> Loader:
    """A loader of the training split of a prepared folder, group ``text``, and of a group of tasks per mix.

    ``tokenizer``: the folder's. Raises UsageError if the folder holds no shards or a damaged one.
    """
    shards = open_shards(Path(config.folder), "train")
    splits = Splits.of(tokenizer)
    sources: list[DocumentSource] = [
        TextSource(
            name,
            shard,
            tokenizer,
            splits,
            seed=config.seed,
            fim_share=config.fim_share,
            split_share=config.split_share,
        )
        for name, shard in shards.items()
    ]
    haystack = Passages(list(shards.values()), tokenizer)
    glosses = Passages([shards[GLOSSES]], tokenizer, GLOSS_TOKENS).line if GLOSSES in shards else None
    for group, mix in mixes.items():
        sources += task_sources(group, mix, tokenizer, seed=config.seed, haystack=haystack, glosses=glosses)
    return Loader(sources, token_table(tokenizer), num_open=config.buffer_documents, rank=rank, num_ranks=num_ranks)


def open_shards(folder: Path, split: str) -> dict[str, TokenSource]:
    """Shards of a prepared folder by the name of their source, without empty ones.

    Raises UsageError if there is none or one is damaged.
    """
    ending = f".{split}.tokens"
    names = sorted(path.name.removesuffix(ending) for path in (folder / TOKENS_FOLDER).glob(f"*{ending}"))
    shards = {name: TokenSource.open(folder / TOKENS_FOLDER, name, split) for name in names}
    found = {name: shard for name, shard in shards.items() if shard.num_tokens}
    if not found:
        raise UsageError(f"{folder} holds no text of split {split}: make it with `pelagos train prepare`")
    return found
