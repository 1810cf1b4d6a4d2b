"""Answers held to a grammar by the engine: they fit it, and neither forced tokens nor guesses change them."""

import json
from collections.abc import Sequence
from dataclasses import replace

import jsonschema
import pytest
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers

from pelagos.chat.grammar import Constraint, JsonObject, JsonSchema, Regex, ToolCalls, compile_grammar
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.tokenizer import DSML, THINK_END, IncrementalDecoder, Tokenizer
from pelagos.engine.config import EngineConfig
from pelagos.engine.engine import Engine
from pelagos.engine.params import SamplingParams
from pelagos.engine.request import Finished, Request
from pelagos.model.loading import fill, random_values
from pelagos.model.presets import preset
from pelagos.model.transformer import Model

SPECIALS = (
    "<｜begin▁of▁sentence｜>",
    "<｜end▁of▁sentence｜>",
    "<｜User｜>",
    "<｜Assistant｜>",
    "<think>",
    THINK_END,
    DSML,
)
SCHEMAS = [
    {"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "integer", "minimum": 0, "maximum": 99}},
     "required": ["a", "b"], "additionalProperties": False},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"const": {"deep": [1, 2, {"er": None}]}},
    {"type": "string", "pattern": "^[ab]{3}$"},
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Bytes, and the special tokens that the chat package knows by name."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    library.train_from_iterator(["a"], trainer)
    library.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in SPECIALS])
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    library.save(str(path))
    return Tokenizer.from_folder(path.parent)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    """A random tiny model with a few ids more than the tokenizer."""
    config = replace(preset("tiny"), vocab_size=tokenizer.vocab_size + 9, eos_ids=(tokenizer.eos_id,), bos_id=0)
    with torch.device("meta"):
        model = Model(config)
    fill(model, random_values(config, seed=5))
    model.use_native()
    return model


def answers(
    model: Model, tokenizer: Tokenizer, constraint: Constraint, *, engine: EngineConfig | None = None, **params: object
) -> list[Finished]:
    state = ConstraintState(compile_grammar(constraint, tokenizer), thinking=False)
    requests = [
        Request(
            prompt_ids=[1, 2, 3, seed],
            params=SamplingParams(**{"seed": seed, "temperature": 1.0, "max_tokens": 400, **params}),  # type: ignore[arg-type]
            decoder=lambda: IncrementalDecoder(tokenizer),
            constraint=state,
            num_choices=2,
        )
        for seed in range(4)
    ]
    return Engine(model, engine or EngineConfig(cache_bytes=8_000_000)).generate(requests)


def texts(finished: Sequence[Finished]) -> list[str]:
    assert all(answer.finish_reason == "stop" for one in finished for answer in one.answers)
    return [answer.text or "" for one in finished for answer in one.answers]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_answers_fit_their_schema(model: Model, tokenizer: Tokenizer, schema: dict[str, object]) -> None:
    for text in texts(answers(model, tokenizer, JsonSchema(schema=schema))):
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))


def test_choices_of_a_request_follow_grammars_of_their_own(model: Model, tokenizer: Tokenizer) -> None:
    found = texts(answers(model, tokenizer, Regex(pattern="[a-z]{8}")))
    assert len(set(found)) == 8
    assert all(len(text) == 8 for text in found)


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_forced_tokens_and_guesses_change_nothing(
    model: Model, tokenizer: Tokenizer, schema: dict[str, object]
) -> None:
    ways = [
        answers(model, tokenizer, JsonSchema(schema=schema)),
        answers(model, tokenizer, JsonSchema(schema=schema), logprobs=0),  # each token chosen from its logits
        answers(
            model, tokenizer, JsonSchema(schema=schema), engine=EngineConfig(cache_bytes=8_000_000, draft_tokens=3)
        ),
        answers(
            model, tokenizer, JsonSchema(schema=schema), engine=EngineConfig(cache_bytes=8_000_000, draft_tokens=0)
        ),
    ]
    ids = [[answer.token_ids for one in way for answer in one.answers] for way in ways]
    assert ids[0] == ids[1] == ids[2] == ids[3]


def test_tool_calls_are_forced_from_their_mark_on(model: Model, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
        "required": ["n"],
    }
    tool = {"type": "function", "function": {"name": "look", "strict": True, "parameters": schema}}
    found = texts(answers(model, tokenizer, ToolCalls(tools=[tool], mode="required", parallel=False)))
    assert all('invoke name="look"' in text and 'name="n"' in text for text in found)


def test_a_grammar_that_allows_nothing_of_what_is_allowed_ends_its_request_alone(
    model: Model, tokenizer: Tokenizer
) -> None:
    finished = answers(model, tokenizer, JsonObject(), allowed_ids=(tokenizer.encode("q")[0],))
    assert {one.error for one in finished} == {"the grammar and the allowed tokens leave no token to choose"}
    assert all(answer.finish_reason == "error" for one in finished for answer in one.answers)
