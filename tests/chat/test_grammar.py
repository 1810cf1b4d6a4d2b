"""Grammars of JSON, regular expressions and Lark: every walk under the masks fits, every refusal names its cause."""

import json
import random
import re
from typing import Any

import jsonschema
import pytest
import torch
from grammar_schemas import schemas
from grammar_walk import Walker, text_of

from pelagos.chat.grammar import (
    Constraint,
    JsonObject,
    JsonSchema,
    Lark,
    Regex,
    compile_grammar,
    num_mask_words,
    unpack_mask,
)
from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import UsageError

DRAFT = jsonschema.Draft202012Validator


def check(schema: Any, document: Any) -> None:
    DRAFT(schema, format_checker=DRAFT.FORMAT_CHECKER).validate(document)


def accepts(constraint: Constraint, tokenizer: Tokenizer, text: str) -> bool:
    matcher = compile_grammar(constraint, tokenizer).start()
    try:
        for token_id in tokenizer.encode(text):
            matcher.advance(token_id)
    except UsageError:
        return False
    return matcher.may_end


@pytest.mark.parametrize("part", range(4))
def test_every_walk_is_valid_json_of_its_schema(part: int, official: Tokenizer, tiny: Tokenizer) -> None:
    num_walks = num_unfinished = 0
    for number, schema in list(enumerate(schemas(200, seed=1)))[part::4]:
        for tokenizer in (tiny, official):
            grammar, walker = compile_grammar(JsonSchema(schema=schema), tokenizer), Walker(tokenizer)
            for attempt in range(2):
                ids = walker.walk(grammar.start(), random.Random(4 * number + attempt))
                num_walks += 1
                num_unfinished += ids is None
                if ids is not None and "0000-" not in text_of(tokenizer, ids):  # a year that Python's dates lack
                    check(schema, json.loads(text_of(tokenizer, ids)))
    assert num_walks == 200
    assert num_unfinished <= 4


def test_an_object(tokenizer: Tokenizer) -> None:
    walker = Walker(tokenizer)
    for seed in range(10):
        ids = walker.walk(compile_grammar(JsonObject(), tokenizer).start(), random.Random(seed))
        assert ids is None or isinstance(json.loads(text_of(tokenizer, ids)), dict)
    assert accepts(JsonObject(), tokenizer, '{"a": [1, {"b": null}]}')
    assert not accepts(JsonObject(), tokenizer, "[1]")
    assert not accepts(JsonObject(), tokenizer, '{"a": 1')


@pytest.mark.parametrize("pattern", ["[a-z]{3}-[0-9]+", "(yes|no)!", r"\d\d?|é*", "漢{2,4}"])
def test_a_regex_matches_the_whole_text(pattern: str, tokenizer: Tokenizer) -> None:
    walker = Walker(tokenizer)
    for seed in range(5):
        ids = walker.walk(compile_grammar(Regex(pattern=pattern), tokenizer).start(), random.Random(seed))
        assert ids is not None
        assert re.fullmatch(pattern, text_of(tokenizer, ids))


def test_lark(tokenizer: Tokenizer) -> None:
    sums = Lark(text='start: number (("+" | "-") number)*\nnumber: /[0-9]{1,3}/ | "(" start ")"')
    walker = Walker(tokenizer)
    for seed in range(5):
        ids = walker.walk(compile_grammar(sums, tokenizer).start(), random.Random(seed))
        if ids is not None:
            text = text_of(tokenizer, ids)
            eval(re.sub(r"0*(\d+)", r"\1", text), {"__builtins__": {}})  # Python takes no leading zeros
    assert accepts(sums, tokenizer, "1+(2-33)")
    assert not accepts(sums, tokenizer, "1+(2-33")
    assert accepts(Lark(text='start: "x" %json {"enum": [1, 2]}'), tokenizer, "x2")


def test_schemas_accept_what_they_should(tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        "required": ["a"],
        "$defs": {"n": {"type": "number", "exclusiveMaximum": 10}},
    }
    for text in ('{"a":"x"}', '{ "a" : "\\n\\u0000é🦀",\n  "b": [1, 2.5, -3]}', '{"a":"","c":{"d":[]}}'):
        check(schema, json.loads(text))
        assert accepts(JsonSchema(schema=schema), tokenizer, text)
    for text in ('{"b":[1]}', '{"a":1}', '{"a":"x","b":[10]}', '{"a":"x",}', '{"a":"x"} ', "{'a':'x'}"):
        assert not accepts(JsonSchema(schema=schema), tokenizer, text)


def test_special_tokens_are_never_part_of_a_text(tokenizer: Tokenizer) -> None:
    walker = Walker(tokenizer)
    cases: list[tuple[Constraint, str]] = [
        (JsonSchema(schema={"type": "string"}), '"a'),
        (JsonObject(), '{"x'),
        (Regex(pattern="(?s:.*)"), "ab"),
        (Lark(text="start: /(?s:.)*/"), "ab"),
        (JsonSchema(schema={"type": "string", "pattern": "[^a]+"}), '"b'),
    ]
    for constraint, text in cases:
        matcher = compile_grammar(constraint, tokenizer).start()
        for token_id in tokenizer.encode(text):
            matcher.advance(token_id)
        allowed = walker.allowed(matcher)
        assert allowed.sum() > 400
        assert walker.specials_in(allowed) <= {tokenizer.eos_id}
        assert bool(allowed[tokenizer.eos_id]) == matcher.may_end


def test_spelled_marks_are_text(tokenizer: Tokenizer) -> None:
    assert accepts(JsonSchema(schema={"const": "<｜User｜></think>"}), tokenizer, '"<｜User｜></think>"')


def test_masks_and_buffers(tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    matcher = compile_grammar(Regex(pattern="a|b"), tokenizer).start()
    mask = torch.full((num_mask_words(size) + 3,), -1, dtype=torch.int32)
    matcher.fill_mask(mask)
    assert mask[-3:].tolist() == [0, 0, 0]
    allowed = unpack_mask(mask, size + 50)
    assert allowed.dtype == torch.bool
    assert allowed.shape == (size + 50,)
    assert {tokenizer.token_bytes(i) for i in allowed.nonzero().flatten().tolist()} == {b"a", b"b"}
    for wrong in (mask.to(torch.int64), mask[:-4], torch.zeros(2 * size, dtype=torch.int32)[::2]):
        with pytest.raises(AssertionError):
            matcher.fill_mask(wrong)


def test_the_end(tokenizer: Tokenizer) -> None:
    matcher = compile_grammar(Regex(pattern="ab?"), tokenizer).start()
    assert (matcher.may_end, matcher.is_finished) == (False, False)
    matcher.advance(*tokenizer.encode("a"))
    assert (matcher.may_end, matcher.is_finished) == (True, False)
    ended = matcher.copy()
    ended.advance(tokenizer.eos_id)
    assert ended.is_finished
    assert ended.forced() == []
    matcher.advance(*tokenizer.encode("b"))
    assert (matcher.may_end, matcher.is_finished) == (True, True)
    assert Walker(tokenizer).allowed(matcher).nonzero().flatten().tolist() == [tokenizer.eos_id] == matcher.forced()


def test_forced_tokens_are_the_only_ones_and_spelled_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    names = {"first_name": {"const": "Ada Lovelace"}, "born": {"const": 1815}}
    schema = {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}
    text = 'start: "The answer to the question is: " %json ' + json.dumps(schema)
    matcher, walker = compile_grammar(Lark(text=text), tokenizer).start(), Walker(tokenizer)
    assert tokenizer.decode(matcher.forced()).startswith("The answer to the question is:")
    ids: list[int] = []
    while not matcher.is_finished:
        before = matcher.forced()
        assert matcher.forced() == before, "asking must not move the matcher"
        if before:
            for token_id in before:
                assert walker.allowed(matcher).nonzero().flatten().tolist() == [token_id]
                matcher.advance(token_id)
            ids += before
        else:
            matcher.advance(int(walker.allowed(matcher).nonzero()[0]))


def test_a_copy_is_independent(tokenizer: Tokenizer) -> None:
    matcher, walker = compile_grammar(JsonSchema(schema={"enum": ["ab", "cd"]}), tokenizer).start(), Walker(tokenizer)
    matcher.advance(*tokenizer.encode('"'))
    before = walker.allowed(matcher).clone()
    other = matcher.copy()
    other.advance(*tokenizer.encode("a"))
    assert torch.equal(walker.allowed(matcher), before)
    matcher.advance(*tokenizer.encode("c"))
    with pytest.raises(UsageError, match="does not fit"):
        other.advance(*tokenizer.encode("d"))
    matcher.advance(*tokenizer.encode("d"))
    matcher.advance(*tokenizer.encode('"'))
    assert matcher.is_finished


A: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("keyword", "value"),
    {
        "uniqueItems": True,
        "not": {"type": "string"},
        "if": {},
        "contains": {},
        "propertyNames": {"pattern": "a"},
        "dependentRequired": {"a": ["b"]},
        "dependentSchemas": {"a": {}},
        "dependencies": {"a": ["b"]},
        "unevaluatedProperties": False,
        "unevaluatedItems": False,
        "$dynamicRef": "#a",
        "minProperties": 2,
        "oneOf": [{"minProperties": 0}, {}],
    }.items(),
)
def test_keywords_that_cannot_be_enforced_are_named_with_their_place(keyword: str, value: Any, tiny: Tokenizer) -> None:
    inner = {**A, keyword: value}
    with pytest.raises(UsageError, match=rf"schema .*{re.escape(keyword)}.* at #/properties/p\b"):
        compile_grammar(JsonSchema(schema={"type": "object", "properties": {"p": inner}}), tiny)


def nested(depth: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def chain(length: int) -> Any:
    links = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"type": "null"}]} for n in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {}}}


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (JsonSchema(schema=[]), "schema must be a JSON schema"),  # type: ignore[arg-type]
        (JsonSchema(schema={"const": object()}), "schema is not JSON"),
        (JsonSchema(schema={"const": float("nan")}), "schema is not JSON"),
        (JsonSchema(schema={"const": "\ud800"}), "schema is not JSON"),
        (JsonSchema(schema={"enum": ["x" * 1000] * 300}), "schema has 30.* characters"),
        (JsonSchema(schema=nested(100)), "nested deeper than 64"),
        (JsonSchema(schema=nested(100_000)), "nested deeper than 64"),
        (JsonSchema(schema=chain(2000)), r"2001 different \$ref targets"),
        (JsonSchema(schema={"multipleOf": 99_991_000}), "multipleOf values"),
        (JsonSchema(schema={"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}), "multipleOf values"),
        (JsonSchema(schema={"multipleOf": 1e-300}), "multipleOf with more than 9"),
        (JsonSchema(schema={"x-guidance": {"lenient": True}, "not": {}}), "x-guidance at #"),
        (JsonSchema(schema={"allOf": [{"x-guidance": {}}]}), "x-guidance at #/allOf/0"),
        (JsonSchema(schema={"type": "object", "minProperties": 2}), "minProperties 2 at #"),
        (JsonSchema(schema={"type": "text"}), "Invalid type: text"),
        (JsonSchema(schema={"type": "string", "format": "regex"}), "Unknown format: regex"),
        (JsonSchema(schema={"type": "string", "pattern": "(?=a)"}), "look-around"),
        (JsonSchema(schema={"$ref": "https://example.org/x"}), "https://example.org/x"),
        (JsonSchema(schema={"$ref": "#/$defs/none"}), "/\\$defs/none"),
        (JsonSchema(schema={"type": "integer", "minimum": 3, "maximum": 1}), "minimum .3. is greater"),
        (JsonSchema(schema=False), "schema"),
        (Regex(pattern="a(b"), "pattern .*unclosed group"),
        (Regex(pattern=""), "pattern must be a text of 1 to"),
        (Regex(pattern="a" * 20_000), "pattern must be a text of 1 to 16384"),
        (Regex(pattern="(" * 5000 + ")" * 5000), "pattern cannot be"),
        (Lark(text='start: "a" b'), r"text cannot be .*1\(8\).*unknown name"),
        (Lark(text="start: <nothing>"), r"unknown special token: .<nothing>"),
        (Lark(text='x: "a"'), "no start rule"),
        (Lark(text="start: " + "(" * 20_000), "text cannot be .*deeply nested"),
        (Lark(text="\n".join(["start: a0", *(f"a{n}: a{n + 1}" for n in range(5000))])), "5001 lines"),
        (Lark(text='start: "a"\n  %json {"a": '), "text has a %json in line 2"),
        (Lark(text='start: %json {"multipleOf": 99991000}'), "text, %json in line 1, has multipleOf"),
        (Lark(text='start: %json {"not": {}}'), 'Unimplemented keys: ."not"'),
    ],
)
def test_what_is_refused_and_why(constraint: Constraint, message: str, tiny: Tokenizer) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compile_grammar(constraint, tiny)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_large_but_honest_schemas_compile(official: Tokenizer) -> None:
    large = [
        {"enum": [f"value {n}" for n in range(8000)]},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
        {"type": "string", "maxLength": 100_000},
        nested(60),
        chain(300),
    ]
    for schema in large:
        Walker(official).allowed(compile_grammar(JsonSchema(schema=schema), official).start())


def test_white_space_comes_to_an_end(tokenizer: Tokenizer) -> None:
    assert accepts(JsonObject(), tokenizer, "{" + "\n" * 60 + "}")
    assert not accepts(JsonObject(), tokenizer, "{" + "\n" * 100 + "}")
