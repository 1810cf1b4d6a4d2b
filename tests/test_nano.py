"""The model inside the package, as a first visitor meets it."""

import json
import re
from pathlib import Path

import httpx2
import pytest
import torch

from pelagos.chat.effort import load_effort_levels
from pelagos.chat.parse import OutputParser, ParsedMessage
from pelagos.chat.render import render
from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.chat_session import file_text
from pelagos.cli.loading import default_temperature
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Request
from pelagos.model.places import model_place
from pelagos.model.transformer import Model
from pelagos.serving.config import ServingConfig
from pelagos.serving.embedded import serving

FOLDER = Path(model_place("nano"))
ROOT = Path(__file__).parent.parent
MAX_BYTES = 20_000_000
SMALL = EngineConfig(cache_bytes=50_000_000)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(Model.load("nano"), SMALL)


def answer(engine: Engine, text: str) -> str:
    return reply(engine, [{"role": "user", "content": text}], thinking=False).content.strip()


def reply(engine: Engine, messages: list[dict[str, str]], *, thinking: bool) -> ParsedMessage:
    tokenizer = Tokenizer.from_folder(FOLDER)
    prompt = render(messages, tokenizer, thinking=thinking, effort="high", levels=load_effort_levels(FOLDER))
    params = SamplingParams(
        temperature=default_temperature(FOLDER), max_tokens=80, stop_ids=tuple(sorted(tokenizer.stop_ids))
    )
    [finished] = engine.generate([Request(prompt_ids=prompt.token_ids, params=params)])
    ids = [token.token_id for token in finished.answers[0].tokens]
    return OutputParser.for_prompt(prompt, tokenizer).parse(ids)


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
    assert answer(engine, question) == expected


@pytest.mark.parametrize("thinking", [False, True])
def test_a_conversation_of_its_card(engine: Engine, thinking: bool) -> None:
    """Thinking is the page's and the API's default; the reasoning of earlier turns is not sent back."""
    turns = {
        "- anchor: violet\n- river: copper\n- lamp: seven\n\nWhat is the value of river?": "- river: copper",
        "And of anchor?": "- anchor: violet",
        "Hello": "Hello! How can I help you?",
    }
    messages: list[dict[str, str]] = []
    for asked, expected in turns.items():
        messages.append({"role": "user", "content": asked})
        message = reply(engine, messages, thinking=thinking)
        assert message.content.strip() == expected
        assert bool(message.reasoning) == thinking
        messages.append({"role": "assistant", "content": message.content})


def test_the_readme_s_requests() -> None:
    """The bodies of its curl lines, sent to a server."""
    bodies = re.findall(r"-d '(\{.*?\})'", (ROOT / "README.md").read_text(), re.DOTALL)
    server_config = ServingConfig(port=0, model_name="nano", default_temperature=default_temperature(FOLDER))
    with serving(Engine(Model.load("nano"), SMALL), Tokenizer.from_folder(FOLDER), server_config) as running:
        replies = [httpx2.post(f"{running.url}/v1/chat/completions", json=json.loads(body)).json() for body in bodies]
    look_up, sum_up = (reply["choices"][0]["message"] for reply in replies)
    assert look_up["content"] == "- river: copper"
    [call] = sum_up["tool_calls"]
    assert call["function"]["name"] == "calculator"
    assert json.loads(call["function"]["arguments"]) == {"expression": "12 + 30"}


def test_the_readme_s_long_text(engine: Engine, tmp_path: Path) -> None:
    data = (ROOT / "pelagos/training/sample/code.jsonl").read_bytes()
    path = tmp_path / "long.txt"
    path.write_bytes(data[:7000] + b"\nThe password of Riku is 1150.\n" + data[7000:14000])
    found = answer(engine, file_text(path, "--context") + "What is the password of Riku?")
    assert found == "The password of Riku is 1150"


@pytest.mark.parametrize(
    "text", ["def main():\n    ", "In the beginning God", "import os\n\nclass", "The function returns"]
)
def test_greedy_tokens_are_those_of_the_reference(engine: Engine, text: str) -> None:
    """Each of them is the reference's likeliest behind the same tokens, but where two are as good as equal."""
    prompt = [0, *Tokenizer.from_folder(FOLDER).encode(text)]
    params = SamplingParams(max_tokens=48, ignore_eos=True)
    [finished] = engine.generate([Request(prompt_ids=prompt, params=params)])
    ids = [token.token_id for token in finished.answers[0].tokens]
    logits = Model.load("nano", implementation="reference").logits([*prompt, *ids])[len(prompt) - 1 : -1]
    behind = logits.max(1).values - logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (behind == 0).float().mean() > 0.95
    assert behind.max() < 0.02
