"""The model inside the package, as a first visitor meets it."""

from pathlib import Path

import pytest

from pelagos.chat.effort import load_effort_levels
from pelagos.chat.render import render
from pelagos.chat.tokenizer import IncrementalDecoder, Tokenizer
from pelagos.cli.loading import default_temperature
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Request
from pelagos.model.places import model_place
from pelagos.model.transformer import Model

FOLDER = Path(model_place("nano"))
MAX_BYTES = 20_000_000


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Model.load("nano"), EngineConfig(cache_bytes=50_000_000))


def answer(engine: Engine, text: str) -> str | None:
    tokenizer = Tokenizer.from_folder(FOLDER)
    messages = [{"role": "user", "content": text}]
    prompt = render(messages, tokenizer, thinking=False, effort="high", levels=load_effort_levels(FOLDER))
    params = SamplingParams(
        temperature=default_temperature(FOLDER), max_tokens=40, stop_ids=tuple(sorted(tokenizer.stop_ids))
    )
    request = Request(prompt_ids=prompt.token_ids, params=params, decoder=lambda: IncrementalDecoder(tokenizer))
    [finished] = engine.generate([request])
    return finished.answers[0].text


def test_it_is_small_and_has_its_card() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MAX_BYTES
    assert (FOLDER / "README.md").is_file()


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("- anchor: violet\n- river: copper\n\nWhat is the value of river?", "- river: copper"),  # as in README.md
        ("- anchor: violet\n- river: copper\n- lamp: seven\n\nWhat is the value of river?", "- river: copper"),
        ("Hello", "Hello! How can I help you?"),
    ],
)
def test_answers_of_its_card(engine: Engine, question: str, expected: str) -> None:
    assert (answer(engine, question) or "").strip() == expected
