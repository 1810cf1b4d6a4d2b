"""The tokenizer against the tokenizers library, the UTF-8 codec and the published ids of DeepSeek-V4."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.chat import tokenizer as module
from pelagos.chat.tokenizer import (
    ASSISTANT,
    BOS,
    DSML,
    EOS,
    THINK_END,
    THINK_START,
    USER,
    IncrementalDecoder,
    Tokenizer,
)
from pelagos.common.errors import TokenizerError

MARKS = [BOS, EOS, USER, ASSISTANT, THINK_START, THINK_END, DSML, "<｜latest_reminder｜>", "<dsml:", "<|EOT|>"]
# Emoji with modifiers and joiners, CJK, combining marks, right-to-left, a byte order mark, U+FFFD itself.
TEXTS = [
    "a😀b👩🏽‍🚀🏳️‍🌈",
    "漢字とかな𠮷",
    "e\u0301n\u0303ก็",
    "\u200fשלום\u200e",
    "\ufeff\u00a0\ufffd!",
    "𝒳\U0010ffff\x00",
]
SPELLINGS = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=5))).map("".join)
EditFile = Callable[[Callable[[dict[str, Any]], object]], Path]


@pytest.fixture(scope="session")
def library(official_file: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(official_file))


def test_official_special_ids(official: Tokenizer) -> None:
    wanted = {BOS: 0, EOS: 1, USER: 128803, ASSISTANT: 128804, THINK_START: 128821, THINK_END: 128822, DSML: 128825}
    assert {mark: official.encode_special(mark) for mark in wanted} == wanted
    assert (official.bos_id, official.eos_id, official.vocab_size) == (0, 1, 129280)
    assert official.stop_ids == {0, 1, 128803, 128804, 128828}
    assert len(official.special_ids) == 1283


def test_plain_text_gets_the_library_ids(official: Tokenizer, library: tokenizers.Tokenizer) -> None:
    for text in ["", "Hello, world! 12345", "  a\t\r\n\n x", "def f(x):\n    return x", *TEXTS]:
        assert official.encode(text) == library.encode(text).ids


def test_typed_turn_mark_stays_text(official: Tokenizer, library: tokenizers.Tokenizer) -> None:
    assert official.encode("<｜Assistant｜>x")[:3] == [30, 28217, 88031]
    assert library.encode("<｜Assistant｜>x").ids[0] == 128804  # the hole that a naive encode leaves


@given(text=SPELLINGS)
@settings(max_examples=60)
def test_no_text_encodes_to_a_special_token(official: Tokenizer, tiny: Tokenizer, text: str) -> None:
    for tokenizer in (official, tiny):
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


def test_special_tokens_decode_or_are_left_out(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.encode_special(THINK_END), *tokenizer.encode("b")]
    assert tokenizer.decode(ids) == f"{BOS}a{THINK_END}b"
    assert tokenizer.decode(ids, skip_special=True) == "ab"
    assert tokenizer.token_bytes(ids[0]) == BOS.encode()


def test_ids_may_be_numpy_or_torch(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.bos_id, *tokenizer.encode("abc")]
    for same in (np.array(ids), torch.tensor(ids)):
        assert tokenizer.decode(same, skip_special=True) == "abc"


@pytest.mark.parametrize("bad", [-1, 129280, 10**30])
def test_id_out_of_range_names_id_and_range(official: Tokenizer, bad: int) -> None:
    message = rf"token id {bad} is not in .*tokenizer.json: its ids are 0 to 129279"
    with pytest.raises(TokenizerError, match=message):
        official.decode([5, bad])
    with pytest.raises(TokenizerError, match=message):
        official.token_bytes(bad)
    decoder = IncrementalDecoder(official)
    with pytest.raises(TokenizerError, match=message):
        decoder.push([5, bad])
    assert decoder.push([5]) == official.decode([5])  # the failed push took nothing


def test_unused_id_is_an_error(edited_file: EditFile) -> None:
    tokenizer = Tokenizer.from_file(edited_file(lambda data: data["model"]["vocab"].update({"qqqq": 5000})))
    assert (tokenizer.vocab_size, tokenizer.decode([5000])) == (5001, "qqqq")
    with pytest.raises(TokenizerError, match="token id 4999 is not in"):
        tokenizer.decode([4999])


def test_unknown_special_token_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json has no special token 'User'"):
        tokenizer.encode_special("User")


def test_half_surrogate_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="half a surrogate pair at character 2"):
        tokenizer.encode("ab\ud83d")


def test_missing_or_broken_files(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer.json is not there or not a file"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(TokenizerError, match="is not there or not a file"):
        Tokenizer.from_file(tmp_path)
    path = tmp_path / "t.json"
    data = tiny_file.read_bytes()
    for part in (0, 1, len(data) // 2, len(data) - 2):
        path.write_bytes(data[:part])
        with pytest.raises(TokenizerError, match=r"t.json is not a tokenizer file: "):
            Tokenizer.from_file(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(TokenizerError, match="is not a tokenizer file"):
        Tokenizer.from_file(path)
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(TokenizerError, match="is not UTF-8 text: bad byte at 7"):
        Tokenizer.from_file(path)
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 10)
    with pytest.raises(TokenizerError, match="too large"):
        Tokenizer.from_file(tiny_file)


def rename_token(data: dict[str, Any], old: str, new: str) -> None:
    vocab = data["model"]["vocab"]
    vocab[new] = vocab.pop(old)
    data["model"]["merges"] = []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(decoder=None), "must hold a byte-level BPE"),
        (
            lambda d: d.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            "must hold a byte-level BPE",
        ),
        (lambda d: d["added_tokens"].pop(0), "has no special token '<｜begin▁of▁sentence｜>'"),
        (lambda d: rename_token(d, "a", "aé€"), "must hold all 256 single bytes; 1 are missing, first 97"),
    ],
)
def test_other_vocabularies_are_refused(edited_file: EditFile, change: Callable[[Any], object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        Tokenizer.from_file(edited_file(change))


def test_token_outside_the_byte_alphabet_is_refused(edited_file: EditFile) -> None:
    path = edited_file(lambda data: data["model"]["vocab"].update({"€": 5000}))
    with pytest.raises(TokenizerError, match="not byte-level: token 5000 '€'"):
        Tokenizer.from_file(path)


@pytest.mark.parametrize("text", TEXTS)
def test_no_push_ends_in_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    decoder = IncrementalDecoder(tokenizer)
    shown = ""
    for count, token_id in enumerate(ids, start=1):
        shown += decoder.push([token_id])
        whole_characters = tokenizer.decode_bytes(ids[:count]).decode("utf-8", errors="ignore")
        assert shown == whole_characters  # at once, and no more than whole characters
        assert decoder.pending == (tokenizer.decode_bytes(ids[:count]) != shown.encode())
    assert shown + decoder.flush() == text


def test_a_character_of_four_single_byte_tokens(tiny: Tokenizer) -> None:
    ids = tiny.encode("🦀")
    assert len(ids) > 2
    decoder = IncrementalDecoder(tiny)
    assert [decoder.push([i]) for i in ids] == [""] * (len(ids) - 1) + ["🦀"]
    assert decoder.push(ids[:1]) == ""
    assert decoder.flush() == "\ufffd"
    assert (decoder.push(ids), decoder.flush()) == ("🦀", "")


@given(data=st.data())
@settings(max_examples=80)
def test_incremental_equals_one_shot(
    official: Tokenizer, tiny: Tokenizer, library: tokenizers.Tokenizer, data: st.DataObject
) -> None:
    tokenizer = data.draw(st.sampled_from([official, tiny]))
    # Ids up to 400 are mostly single bytes in both vocabularies, so most sequences are not UTF-8.
    id_strategy = st.one_of(st.integers(0, 400), st.integers(0, tokenizer.vocab_size - 1))
    pushes = data.draw(st.lists(st.lists(id_strategy, max_size=4), max_size=12))
    skip = data.draw(st.booleans())
    ids = [i for push in pushes for i in push]
    whole = tokenizer.decode(ids, skip_special=skip)
    decoder = IncrementalDecoder(tokenizer, skip_special=skip)
    shown = ""
    for push in pushes:
        shown += decoder.push(push)
        assert whole.startswith(shown)  # nothing is shown early that more ids would have made another character
    assert shown + decoder.flush() == whole
    if tokenizer is official and not skip:
        assert whole == library.decode(ids, skip_special_tokens=False)


def test_a_push_looks_at_its_own_ids_only(tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    token_bytes = Tokenizer.token_bytes
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, i: seen.append(i) or token_bytes(self, i))
    ids = tiny.encode("some text 😀 " * 50)
    decoder = IncrementalDecoder(tiny)
    for token_id in ids:
        decoder.push([token_id])
    assert seen == ids
