"""Loaders: nothing lost, nothing twice, the same batches after any interruption, on any number of ranks."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import MAX_LENGTH, NUM_WORDS, TEXTS, CountingSource, counting_table, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.common.errors import CheckpointError, ConfigError, UsageError
from pelagos.training.batch import PackedBatch
from pelagos.training.data import Batches, DataConfig, Loader, open_loader, open_shards
from pelagos.training.documents import DocumentSource
from pelagos.training.prefetch import Prefetcher
from pelagos.training.shards import ShardWriter
from pelagos.training.tasks import TASKS, TaskMix, TaskShare

SHORT, LONG = {"text": 0.6, "recall": 0.25, "chat": 0.15}, {"text": 0.2, "recall": 0.8}
# What a training loop asks for: (mixture, rows, tokens a row).
Request = tuple[dict[str, float], int, int]
requests = st.tuples(
    st.sampled_from([SHORT, LONG, {"text-1": 1.0}]), st.sampled_from([2, 4, 8]), st.sampled_from([4, 32, 150])
)


def sources() -> list[DocumentSource]:
    return [
        CountingSource(0, "text", 300.0, num_documents=70),
        CountingSource(1, "text", 100.0, num_documents=5),
        CountingSource(2, "recall"),
        CountingSource(3, "chat", min_row=3),
    ]


def make_loader(**ranks: int) -> Loader:
    return Loader(sources(), counting_table(4), num_open=8, **ranks)


def ask(batches: Batches, request: Request) -> PackedBatch:
    weights, num_rows, row_length = request
    batches.set_mixture(weights)
    return batches.batch(num_rows, row_length)


def equal(first: PackedBatch, second: PackedBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def saved(batches: Batches) -> dict[str, Any]:
    """The state after a trip through a file."""
    state: dict[str, Any] = json.loads(json.dumps(batches.state_dict(), sort_keys=True))
    return state


# --- what is in batches ---


@settings(max_examples=30)
@given(st.lists(requests, min_size=1, max_size=8))
def test_every_token_is_handed_out_once_or_still_there(asked: list[Request]) -> None:
    loader = make_loader()
    given_out: Counter[int] = Counter()
    for request in asked:
        batch = ask(loader, request)
        given_out.update(batch.token_ids[batch.document_ids >= 0].tolist())
    state = loader.state_dict()
    by_name = {source.name: source for source in sources()}
    kept = [(name, *cursor) for name, *cursor in state["waiting"]]
    kept += [(name, *c) for name, stream in state["mixture"]["streams"].items() for c in stream["open"]]
    there = Counter(given_out)
    for name, number, made_for, start, length in kept:
        there.update(by_name[name].document(number, made_for).token_ids[start : start + length].tolist())
    opened: Counter[int] = Counter()
    for name, stream in state["mixture"]["streams"].items():
        for number in range(stream["opened"]):
            opened.update(by_name[name].document(number, 1).token_ids.tolist())
    assert there == opened


def test_batches_have_the_shape_that_was_asked_for_and_whole_documents() -> None:
    loader = make_loader()
    for row_length in (32, 150, 16):
        batch = ask(loader, (SHORT, 6, row_length))
        assert batch.token_ids.shape == (6, row_length)
        inside = batch.document_ids >= 0
        assert bool((batch.document_ids[:, :1] == 0).all())
        # Within a document tokens count up, positions count from 0, and only the first has no weight.
        same = inside[:, 1:] & (batch.document_ids[:, 1:] == batch.document_ids[:, :-1])
        step = batch.token_ids.diff(dim=1)
        assert bool((step[same] == 1).all())
        assert bool((batch.positions.diff(dim=1)[same] == 1).all())
        first = inside & ~torch.nn.functional.pad(same, (1, 0))
        assert not batch.positions[first].any()
        assert torch.equal(batch.loss_weights > 0, inside & ~first)
        assert not batch.num_bytes[~inside].any()


@pytest.mark.parametrize("row_length", [64, 256])
def test_shares_of_tokens_in_batches_before_and_after_a_change(row_length: int) -> None:
    loader = make_loader()
    for weights in (SHORT, LONG):
        count = torch.zeros(4, dtype=torch.int64)
        for _ in range(80):
            batch = ask(loader, (weights, 8, row_length))
            count += (batch.token_ids[batch.document_ids >= 0] // (NUM_WORDS * MAX_LENGTH)).bincount(minlength=4)
        shares = dict(zip((source.name for source in sources()), (count / count.sum()).tolist(), strict=True))
        text, chat = weights["text"], weights.get("chat", 0.0)
        expected = {"text-0": 0.75 * text, "text-1": 0.25 * text, "recall-2": weights["recall"], "chat-3": chat}
        for name, share in expected.items():
            assert shares[name] == pytest.approx(share, abs=0.01)


def test_rows_come_from_many_documents() -> None:
    """However long documents are, those that are open take turns."""
    source = CountingSource(0, "text", num_documents=70, shortest=100)
    loader = Loader([source], counting_table(1), num_open=50)
    batch = ask(loader, ({"text": 1.0}, 30, 10))
    assert len(set((batch.token_ids[:, 0] // MAX_LENGTH).tolist())) == 30


def test_report() -> None:
    loader = make_loader()
    batches = [ask(loader, request) for request in ((SHORT, 8, 32), (SHORT, 4, 100), (LONG, 2, 100))]
    report = loader.report()
    num_tokens = sum(batch.num_tokens for batch in batches)
    assert report.num_batches == 3
    assert report.num_tokens == num_tokens == sum(report.tokens.values())
    assert report.padding_share == pytest.approx(1 - num_tokens / (8 * 32 + 4 * 100 + 2 * 100))
    ids = torch.cat([batch.token_ids[batch.document_ids >= 0] for batch in batches])
    assert report.tokens["recall-2"] == int((ids // (NUM_WORDS * MAX_LENGTH) == 2).sum())
    assert report.passes == {"text-0": report.tokens["text-0"] / 300, "text-1": report.tokens["text-1"] / 100}
    assert make_loader().report().padding_share == 0.0


def test_padding_is_small() -> None:
    loader = make_loader()
    for _ in range(50):
        ask(loader, (SHORT, 8, 256))
    assert loader.report().padding_share < 0.01


# --- the same again ---


@settings(max_examples=25)
@given(st.lists(requests, min_size=1, max_size=8), st.data())
def test_a_run_goes_on_anywhere_as_if_never_stopped(asked: list[Request], data: st.DataObject) -> None:
    stop = data.draw(st.integers(0, len(asked)))
    unbroken, first, second = make_loader(), make_loader(), make_loader()
    expected = [ask(unbroken, request) for request in asked]
    assert all(equal(ask(first, request), batch) for request, batch in zip(asked[:stop], expected, strict=False))
    second.load_state_dict(saved(first))
    assert saved(second) == saved(first)
    assert all(equal(ask(second, r), batch) for r, batch in zip(asked[stop:], expected[stop:], strict=True))
    assert second.report() == unbroken.report()


def test_going_back_in_the_same_loader() -> None:
    loader = make_loader()
    ask(loader, (SHORT, 4, 64))
    state = saved(loader)
    after = [ask(loader, (SHORT, 4, 64)), ask(loader, (LONG, 2, 150))]
    loader.load_state_dict(state)
    assert equal(ask(loader, (SHORT, 4, 64)), after[0])
    assert equal(ask(loader, (LONG, 2, 150)), after[1])


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_have_the_rows_of_one_batch(num_ranks: int) -> None:
    whole = make_loader()
    ranks = [make_loader(rank=rank, num_ranks=num_ranks) for rank in range(num_ranks)]
    for request in ((SHORT, 8, 32), (SHORT, 4, 64), (LONG, 8, 64)):
        batch = ask(whole, request)
        parts = [ask(loader, request) for loader in ranks]
        for name, value in vars(batch).items():
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)
    assert all(loader.state_dict() == whole.state_dict() for loader in ranks)
    assert all(loader.report() == whole.report() for loader in ranks)
    with pytest.raises(UsageError, match=f"multiple of {num_ranks} rows, one per process, got {num_ranks + 1}"):
        ranks[0].batch(num_ranks + 1, 32)


# --- what is refused ---


def test_a_mixture_that_cannot_be_loses_nothing() -> None:
    loader, other = make_loader(), make_loader()
    assert equal(ask(loader, (SHORT, 4, 64)), ask(other, (SHORT, 4, 64)))
    with pytest.raises(UsageError, match="names 'chess'"):
        loader.set_mixture({"chess": 1.0})
    with pytest.raises(UsageError, match="rows of 2 tokens are too short"):
        loader.batch(4, 2)
    assert equal(loader.batch(4, 64), other.batch(4, 64))


def test_the_mixture_comes_first() -> None:
    with pytest.raises(AssertionError, match="set_mixture"):
        make_loader().batch(4, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(version=9), "version 1 and sources, got version 9"),
        (lambda state: state.pop("sources"), "version 1 and sources"),
        (lambda state: state["sources"].pop("chat-3"), "source chat-3 was not there, and now is None, 1 to 100"),
        (
            lambda state: state["sources"].update({"text-0": "other"}),
            "source text-0 was other, and now is 70, 1",
        ),
        (lambda state: state.pop("waiting"), "damaged"),
        (lambda state: state["waiting"].append(["text-7", 0, 8, 0, 1]), "damaged"),
        (lambda state: state["waiting"].append(["text-0", 0, 8, 0, 101]), "damaged"),
        (lambda state: state["waiting"].append(["text-0", 0, 8]), "damaged"),
        (lambda state: state["waiting"].append(["text-0", 0.5, 8, 0, 1]), "damaged"),
        (lambda state: state["waiting"].append(["text-0", "0", 8, 0, 1]), "damaged"),
        (lambda state: state["mixture"]["streams"].pop("text-0"), "damaged"),
        (lambda state: state["mixture"].update(aim=7), "damaged"),
        (lambda state: state["mixture"].update(aim=[{"chess": 1.0}, 64]), "damaged"),
        (lambda state: state["counts"].update(tokens=7), "damaged"),
    ],
)
def test_states_that_do_not_fit(change: Callable[[dict[str, Any]], object], message: str) -> None:
    loader = make_loader()
    ask(loader, (SHORT, 4, 64))
    state = saved(loader)
    make_loader().load_state_dict(state)
    change(state)
    with pytest.raises(CheckpointError, match=f"state of the data: .*{message}"):
        make_loader().load_state_dict(state)


# --- batches made ahead ---


@settings(max_examples=10)
@given(st.lists(requests, min_size=1, max_size=6), st.integers(1, 3), st.data())
def test_batches_made_ahead_are_the_same(asked: list[Request], num_batches: int, data: st.DataObject) -> None:
    asked = [request for request in asked for _ in range(data.draw(st.integers(1, 3)))]
    plain = make_loader()
    with Prefetcher(make_loader(), num_batches) as ahead:
        for request in asked:
            assert equal(ask(ahead, request), ask(plain, request))
            assert saved(ahead) == saved(plain)
            assert ahead.report() == plain.report()
        state = saved(ahead)
    after = (SHORT, 4, 64)
    expected = ask(plain, after)
    resumed = make_loader()
    resumed.load_state_dict(state)
    assert equal(ask(resumed, after), expected)
    with Prefetcher(make_loader(), num_batches) as ahead:
        ask(ahead, (LONG, 2, 100))
        ahead.load_state_dict(state)
        assert saved(ahead) == state
        assert equal(ask(ahead, after), expected)


def test_a_thread_makes_no_more_than_it_was_allowed_and_ends_with_the_block() -> None:
    loader = make_loader()
    with Prefetcher(loader, 2) as ahead:
        ask(ahead, (SHORT, 4, 64))
        deadline = time.monotonic() + 10
        while loader.report().num_batches < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert loader.report().num_batches == 3
        assert ahead.report().num_batches == 1
    assert loader.report().num_batches == 1  # where the last batch handed out left it
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data")]


def test_an_error_of_the_thread_is_raised_and_loses_nothing() -> None:
    plain = make_loader()
    with Prefetcher(make_loader(), 2) as ahead:
        assert equal(ask(ahead, (SHORT, 4, 64)), ask(plain, (SHORT, 4, 64)))
        with pytest.raises(UsageError, match="rows of 2 tokens are too short"):
            ahead.batch(4, 2)
        with pytest.raises(UsageError, match="names 'chess'"):
            ahead.set_mixture({"chess": 1.0})
        assert equal(ahead.batch(4, 64), plain.batch(4, 64))


# --- a prepared folder ---


def write_shard(folder: Path, name: str, texts: Sequence[str], split: str = "train") -> None:
    (folder / "tokens").mkdir(exist_ok=True)
    with ShardWriter(folder / "tokens", name, split, tokenizer().vocab_size) as shard:
        for text in texts:
            shard.add(tokenizer().encode(text), len(text.encode()))


def mix(**shares: float) -> TaskMix:
    return TaskMix(
        shares=tuple(
            TaskShare(task=name, share=share, knobs=TASKS[name].knobs(chat_share=0.0)) for name, share in shares.items()
        )
    )


def test_a_folder_of_shards_and_tasks(tmp_path: Path) -> None:
    write_shard(tmp_path, "prose", TEXTS)
    write_shard(tmp_path, "wordnet", [f"word{i}, other (noun): the gloss of number {i} it is\n" * 9 for i in range(9)])
    write_shard(tmp_path, "empty", [])
    write_shard(tmp_path, "later", TEXTS, "valid")
    config = DataConfig(folder=str(tmp_path), fim_share=0.0, split_share=0.5, buffer_documents=4)
    mixes = {"recall": mix(dict=1.0, needle=1.0)}
    loader, other = (open_loader(config, tokenizer(), mixes=mixes) for _ in range(2))
    weights = {"text": 0.7, "recall": 0.3}
    texts = []
    for _ in range(4):
        batch = ask(loader, (weights, 4, 512))
        other.load_state_dict(saved(other))
        assert equal(batch, ask(other, (weights, 4, 512)))
        for row, ids in zip(batch.token_ids, batch.document_ids, strict=True):
            texts += [tokenizer().decode(row[ids == number], skip_special=True) for number in range(int(ids.max()) + 1)]
        inside = batch.document_ids >= 0
        assert int(batch.num_bytes.sum()) == len(
            tokenizer().decode_bytes(batch.token_ids[inside].tolist(), skip_special=True)
        )
    assert sum(text in TEXTS for text in texts) > 20
    assert any("the gloss of number" in text and text not in TEXTS for text in texts)
    report = loader.report()
    assert report.tokens.keys() == {"prose", "wordnet", "recall:dict:0", "recall:needle:1"}
    assert report.passes.keys() == {"prose", "wordnet"}


def test_a_folder_without_shards(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no text of split train: make it with `pelagos train prepare`"):
        open_shards(tmp_path, "train")
    write_shard(tmp_path, "empty", [])
    with pytest.raises(UsageError, match="holds no text"):
        open_loader(DataConfig(folder=str(tmp_path)), tokenizer())


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        ("seed", (0, 2**63 - 1), (-1, 2**63)),
        ("fim_share", (0.0, 1.0), (-0.1, 1.1)),
        ("split_share", (0.0, 1.0), (-0.1, 1.1)),
        ("buffer_documents", (1, 65536), (0, 65537)),
        ("prefetch_batches", (None, 1, 64), (0, 65)),
    ],
)
def test_ranges_of_the_config(field: str, good: tuple[Any, ...], bad: tuple[Any, ...]) -> None:
    for value in good:
        assert getattr(DataConfig(folder="x", **{field: value}), field) == value
    for value in bad:
        with pytest.raises(ConfigError, match=field):
            DataConfig(folder="x", **{field: value})
