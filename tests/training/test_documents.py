"""Text with holes and split tokens is the same text; order, holes and splits are a function of the seed."""

import random
from collections import Counter

import numpy as np
import pytest
from data_cases import LINES, TEXTS, Texts, bare_tokenizer, tokenizer

from pelagos.chat.tokenizer import BOS, EOS
from pelagos.common.errors import TokenizerError, UsageError
from pelagos.training.bpe import FIM_BEGIN, FIM_END, FIM_HOLE, PAD
from pelagos.training.documents import Splits, TextSource, random_key, random_shares, token_table
from pelagos.training.task_documents import UP_TO_A_ROW, Passages, TaskSource, task_sources
from pelagos.training.tasks import TASKS, TaskMix, TaskShare

VOCABULARY = tokenizer()
SPLITS = Splits.of(VOCABULARY)


def text_source(*texts: str, fim_share: float = 0.0, split_share: float = 0.0, seed: int = 1) -> TextSource:
    tokens = Texts.of(*texts)
    return TextSource("t", tokens, VOCABULARY, SPLITS, seed=seed, fim_share=fim_share, split_share=split_share)


def text_of(source: TextSource, number: int) -> str:
    """The text of a document without special tokens."""
    return VOCABULARY.decode(source.document(number, 64).token_ids, skip_special=True)


def special(name: str) -> int:
    return VOCABULARY.encode_special(name)


# --- randomness ---


def test_random_numbers_are_pinned() -> None:
    """They decide what a run sees, so they must not change with a version of numpy or Python."""
    key = random_key(0, "fim", "a", 1)
    assert key == 337025483581425322943944835416235235849
    assert random_shares(3, key).tolist() == [0.5465632271649742, 0.8913701453892924, 0.6952087853838987]


def test_random_numbers_are_uniform_and_differ_by_purpose() -> None:
    shares = random_shares(20_000, random_key(0, "x"))
    assert shares.min() >= 0
    assert shares.max() < 1
    np.testing.assert_allclose(np.histogram(shares, 10, (0, 1))[0], 2000, rtol=0.1)
    keys = {random_key(s, p, n, i) for s in (0, 1) for p in ("fim", "order") for n in ("a", "b") for i in (1, 11)}
    assert len(keys) == 16


# --- order ---


def test_each_pass_has_every_document_once_in_another_order() -> None:
    source = text_source(*TEXTS)
    passes = [[text_of(source, number + 40 * p) for number in range(40)] for p in range(3)]
    assert all(sorted(texts) == sorted(TEXTS) for texts in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    assert passes[0] != [text_of(text_source(*TEXTS, seed=2), number) for number in range(40)]
    assert [text_of(source, number) for number in range(40)] == passes[0]  # going back gives the same again


def test_a_document_stands_between_start_and_end_token() -> None:
    document = text_source("Was it closed?\n").document(0, 4)
    assert document.token_ids.tolist() == [special(BOS), *VOCABULARY.encode("Was it closed?\n"), special(EOS)]
    assert document.loss_weights.tolist() == [1.0] * len(document)
    assert text_source("").document(5, 4).token_ids.tolist() == [special(BOS), special(EOS)]


# --- holes ---


def test_a_document_with_a_hole_gives_the_text_back() -> None:
    source = text_source(*TEXTS, fim_share=1.0)
    places = []
    for number in range(200):
        ids = source.document(number, 64).token_ids.tolist()
        begin, hole, end = (ids.index(special(mark)) for mark in (FIM_BEGIN, FIM_HOLE, FIM_END))
        assert (ids[0], begin, ids[-1]) == (special(BOS), 1, special(EOS))
        prefix, suffix, middle = ids[2:hole], ids[hole + 1 : end], ids[end + 1 : -1]
        assert middle
        assert VOCABULARY.decode(prefix + middle + suffix) in TEXTS
        places.append((len(prefix) / (len(ids) - 5), len(suffix) / (len(ids) - 5)))
    # The ends of a hole are uniform: prefix and suffix are a third of the text each, sometimes nothing, never alike.
    np.testing.assert_allclose(np.mean(places, axis=0), 1 / 3, atol=0.06)
    assert len(set(places)) > 150


def test_the_share_of_holes() -> None:
    source = text_source(*TEXTS, fim_share=0.3)
    with_hole = [special(FIM_HOLE) in source.document(number, 64).token_ids for number in range(2000)]
    assert np.mean(with_hole) == pytest.approx(0.3, abs=0.03)
    assert with_hole[:40] != with_hole[40:80]  # another pass, other holes


def test_no_hole_without_text_or_marks() -> None:
    assert len(text_source("", fim_share=1.0).document(0, 4)) == 2
    TextSource("t", Texts.of("a"), bare_tokenizer(), SPLITS, seed=0)
    with pytest.raises(TokenizerError, match="fim▁begin"):
        TextSource("t", Texts.of("a"), bare_tokenizer(), SPLITS, seed=0, fim_share=0.1)


# --- split tokens ---


def test_tokens_that_can_be_split_are_punctuation_with_line_ends() -> None:
    found = {
        VOCABULARY.token_bytes(i): [VOCABULARY.token_bytes(j) for j in SPLITS.parts[i, : SPLITS.counts[i]].tolist()]
        for i in np.flatnonzero(SPLITS.counts > 1).tolist()
    }
    assert found[b");\n"] == [b");", b"\n"] or found[b");\n"] == [b")", b";", b"\n"]
    assert {b"):\n", b".\n", b"?\n", b".\n\n", b'");\n'} <= found.keys()
    for merged, parts in found.items():
        assert b"".join(parts) == merged
        assert parts[-1].strip(b"\n") == b""
        assert not any(char.isalnum() for char in merged.decode())
    others = np.flatnonzero(SPLITS.counts == 1)
    np.testing.assert_array_equal(SPLITS.parts[others, 0], others)
    assert not {i for i in others.tolist() if VOCABULARY.token_bytes(i) in found} - VOCABULARY.special_ids


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_split_tokens_are_the_same_text(share: float) -> None:
    text = "".join(LINES) * 200
    ids = np.array(VOCABULARY.encode(text), dtype=np.uint16)
    split = SPLITS.apply(ids, share, key=7).tolist()
    num_split, place = 0, 0
    for token_id in ids.tolist():
        parts = SPLITS.parts[token_id, : SPLITS.counts[token_id]].tolist()
        if split[place] == token_id:
            place += 1
        else:
            assert split[place : place + len(parts)] == parts
            place += len(parts)
            num_split += 1
    assert place == len(split)
    assert VOCABULARY.decode(split) == text
    num_mergeable = int((SPLITS.counts[ids] > 1).sum())
    assert num_mergeable > 1000
    assert num_split / num_mergeable == pytest.approx(share, abs=0.04 if 0 < share < 1 else 0)


def test_a_source_splits_its_share() -> None:
    whole, split = text_source(*TEXTS), text_source(*TEXTS, split_share=0.5)
    assert [text_of(whole, n) for n in range(40)] == [text_of(split, n) for n in range(40)]
    count = [
        sum(int((SPLITS.counts[s.document(n, 64).token_ids] > 1).sum()) for n in range(400)) for s in (whole, split)
    ]
    assert count[1] / count[0] == pytest.approx(0.5, abs=0.05)


# --- the table of tokens ---


def test_token_table_counts_bytes_of_text() -> None:
    table = token_table(VOCABULARY)
    ids = [special(BOS), *VOCABULARY.encode("".join(TEXTS)), special(EOS)]
    assert table.num_bytes[ids].sum() == len("".join(TEXTS).encode())
    assert not table.num_bytes[sorted(VOCABULARY.special_ids)].any()
    assert table.padding_id == special(PAD)


def test_token_table_of_a_vocabulary_without_padding_token_and_with_unused_ids() -> None:
    bare = bare_tokenizer()
    table = token_table(bare)
    assert table.padding_id == bare.eos_id
    assert len(table.num_bytes) == bare.vocab_size


# --- tasks ---


def needle(**knobs: object) -> TaskSource:
    share = TaskShare(task="needle", knobs=TASKS["needle"].knobs(**knobs))
    return TaskSource("n", "recall", share, VOCABULARY, seed=3)


@pytest.mark.parametrize("row_length", [256, 1024])
def test_exercises_adapt_to_the_row(row_length: int) -> None:
    source = needle(target_tokens=UP_TO_A_ROW)
    documents = [source.document(number, row_length) for number in range(25)]
    lengths = [len(document) for document in documents]
    assert max(lengths) <= row_length
    assert max(lengths) > 0.6 * row_length
    for document in documents:
        assert document.token_ids[0] == special(BOS)
        assert 1.0 in document.loss_weights
    assert len({document.token_ids.tobytes() for document in documents}) == 25


def test_an_exercise_depends_on_seed_name_number_and_row_alone() -> None:
    first, second = needle().document(4, 512), needle().document(4, 512)
    np.testing.assert_array_equal(first.token_ids, second.token_ids)
    np.testing.assert_array_equal(first.loss_weights, second.loss_weights)
    assert needle().document(5, 512).token_ids.tolist() != first.token_ids.tolist()


def test_a_task_without_target_length_is_drawn_again_until_it_fits() -> None:
    share = TaskShare(task="kv", knobs=TASKS["kv"].knobs())
    source = TaskSource("kv", "recall", share, VOCABULARY, seed=3)
    lengths = [len(source.document(number, 300)) for number in range(20)]
    assert max(lengths) <= 300
    assert max(len(source.document(number, 4096)) for number in range(20)) > 300  # some had to be drawn again


def test_a_task_that_needs_more_than_a_row() -> None:
    share = TaskShare(task="calc-tool", knobs=TASKS["calc-tool"].knobs())
    source = TaskSource("calc", "chat", share, VOCABULARY, seed=3)
    assert [source.fits(row_length) for row_length in (16, 64, 4096)] == [False, False, True]
    with pytest.raises(UsageError, match=r"calc-tool makes nothing that fits into rows of 16 tokens"):
        source.document(0, 16)


def test_sources_of_a_mix() -> None:
    kinds = TASKS["needle"].knobs, TASKS["kv"].knobs
    shares = (
        TaskShare(task="needle", share=2.0, knobs=kinds[0](num_needles=(1, 1))),
        TaskShare(task="kv", share=0.0, knobs=kinds[1]()),
        TaskShare(task="needle", share=1.0, knobs=kinds[0](num_needles=(4, 4))),
    )
    sources = task_sources("recall", TaskMix(shares=shares), VOCABULARY, seed=0)
    assert [(s.name, s.group, s.size) for s in sources] == [
        ("recall:needle:0", "recall", 2.0),
        ("recall:needle:2", "recall", 1.0),
    ]
    assert sources[0].fingerprint != sources[1].fingerprint


# --- passages ---


def test_passages_are_pieces_of_the_text_in_proportion_to_its_size() -> None:
    small, large = "a line\n" * 20, "another one.\n" * 100
    passages = Passages([Texts.of(small), Texts.of(large)], VOCABULARY, max_tokens=24)
    rng = random.Random(0)
    pieces = [passages(rng) for _ in range(600)]
    assert all(piece in small or piece in large for piece in pieces)
    assert max(len(VOCABULARY.encode(piece)) for piece in pieces) <= 26  # cut between tokens, which may merge anew
    sizes = Texts.of(small).num_tokens, Texts.of(large).num_tokens
    count = Counter(piece in large for piece in pieces)
    assert count[False] / 600 == pytest.approx(sizes[0] / sum(sizes), abs=0.06)
    assert len({*pieces}) > 10
    assert passages(random.Random(5)) == passages(random.Random(5))


def test_a_long_text_is_taken_from_everywhere() -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    passages = Passages([Texts.of(text)], VOCABULARY, max_tokens=64)
    lines = {passages.line(random.Random(seed)) for seed in range(2000)}
    assert lines <= {*text.split("\n")}  # never a part of one
    assert len(lines) > 180


def test_characters_cut_in_two_are_left_out() -> None:
    passages = Passages([Texts.of("東京" * 50)], VOCABULARY, max_tokens=7)
    assert all({*passages(random.Random(seed))} <= {*"東京"} for seed in range(50))
