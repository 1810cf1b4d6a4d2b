"""Grammars of tool calls: every walk under the masks is read by the official parser as calls that fit their tools."""

import json
import random
from typing import Any

import jsonschema
import pytest
import torch
from grammar_schemas import composed
from grammar_walk import Walker

from pelagos.chat.grammar import JsonObject, ToolCalls, compile_grammar, num_mask_words
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.parse import OutputParser, ParsedMessage
from pelagos.chat.tokenizer import DSML, THINK_END, Tokenizer
from pelagos.common.errors import UsageError

DRAFT = jsonschema.Draft202012Validator
Schema = dict[str, Any]


def tool(name: str, parameters: Schema | None, *, strict: bool = True) -> Schema:
    function: Schema = {"name": name, "strict": strict}
    return {"type": "function", "function": function if parameters is None else {**function, "parameters": parameters}}


class CallWalker(Walker):
    """Ends raw strings too: any text may go on in them, until ``</`` is followed by the mark."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, most=1500)
        self._open, self._slash = (tokenizer.encode(text)[0] for text in "</")
        self._mark, self._last = tokenizer.encode_special(DSML), -1

    def _choose(self, allowed: torch.Tensor, rng: random.Random, *, hurry: bool) -> int:
        wanted = {self._open: self._slash, self._slash: self._mark}.get(self._last, self._open)
        if hurry and allowed[wanted] and (wanted != self._open or rng.random() < 0.2):
            self._last = wanted
        else:
            self._last = super()._choose(allowed, rng, hurry=hurry)
        return self._last


def tool_set(rng: random.Random) -> list[Schema]:
    """One to three strict tools, whose parameters are leaves, objects, arrays and choices."""
    tools = []
    for name in rng.sample(["weather", "get_time", "a.b-c", "x", "search"], rng.randint(1, 3)):
        names = rng.sample(["city", "days", "long_name", "é", "id", "a>b"], rng.randint(0, 4))
        definitions: Schema = {}
        properties = {key: hoisted(composed(rng, depth=rng.choice((0, 0, 1))), definitions) for key in names}
        parameters = {"type": "object", "properties": properties, "required": rng.sample(names, len(names) // 2)}
        tools.append(tool(name, {**parameters, "$defs": definitions}))
    return tools


def hoisted(schema: Any, definitions: Schema) -> Any:
    """The schema with its definitions moved to ``definitions``, where references of the whole look for them."""
    if isinstance(schema, list):
        return [hoisted(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    definitions.update({name: hoisted(part, definitions) for name, part in schema.get("$defs", {}).items()})
    return {key: hoisted(part, definitions) for key, part in schema.items() if key not in ("$id", "$defs")}


def parsed(tokenizer: Tokenizer, ids: list[int], *, thinking: bool = False) -> ParsedMessage:
    return OutputParser(tokenizer, thinking=thinking, tools=True).parse(ids)


def check_calls(message: ParsedMessage, tools: list[Schema]) -> None:
    schemas = {t["function"]["name"]: t["function"].get("parameters", {}) for t in tools}
    assert message.finish_reason == "tool_calls"
    assert message.tool_calls
    for call in message.tool_calls:
        assert call.complete
        pairs = json.loads(call.arguments, object_pairs_hook=list)
        assert len({key for key, _ in pairs}) == len(pairs), "a parameter was repeated"
        if "0000-" not in call.arguments:  # a year that Python's dates lack
            DRAFT(schemas[call.name], format_checker=DRAFT.FORMAT_CHECKER).validate(json.loads(call.arguments))


@pytest.mark.parametrize("part", range(4))
def test_every_walk_is_calls_that_fit_their_tools(part: int, tiny: Tokenizer, official: Tokenizer) -> None:
    for number in range(part, 100, 4):
        tools = tool_set(random.Random(number))
        tokenizer = official if number % 5 == 0 else tiny
        walker, walks = CallWalker(tokenizer), []
        for parallel in (True, False):
            grammar = compile_grammar(ToolCalls(tools=tools, mode="required", parallel=parallel), tokenizer)
            state = ConstraintState(grammar, thinking=False)
            walks += [walker.walk(state.copy(), random.Random(10 * number + attempt)) for attempt in range(2)]
        finished = [parsed(tokenizer, ids) for ids in walks if ids is not None]
        assert finished, "no walk came to an end"
        for message in finished:
            check_calls(message, tools)


CITY: Schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TIME: Schema = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}, "days": {"type": "integer"}}}
TOOLS = [tool("weather", CITY), tool("get_time", TIME), tool("now", None)]


def block(*calls: str) -> str:
    return f"\n\n<{DSML}tool_calls>\n{''.join(calls)}</{DSML}tool_calls>"


def call(name: str, *parameters: str) -> str:
    return f'<{DSML}invoke name="{name}">\n{"".join(parameters)}</{DSML}invoke>\n'


def parameter(name: str, value: str, *, string: bool = True) -> str:
    return f'<{DSML}parameter name="{name}" string="{str(string).lower()}">{value}</{DSML}parameter>\n'


def marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of text in which the DSML mark is the token."""
    ids = tokenizer.encode(text.split(DSML)[0])
    for piece in text.split(DSML)[1:]:
        ids += [tokenizer.encode_special(DSML), *tokenizer.encode(piece)]
    return ids


def takes(tokenizer: Tokenizer, text: str, **options: Any) -> bool:
    """Whether an answer may be ``text`` and end there."""
    options = {"mode": "required"} | options
    state = ConstraintState(compile_grammar(ToolCalls(tools=TOOLS, **options), tokenizer), thinking=False)
    try:
        for token_id in marked(tokenizer, text):
            state.observe(token_id)
    except UsageError:
        return False
    return state.may_end


PARIS = call("weather", parameter("city", "Paris </b> <x>"))
CET = call("get_time", parameter("zone", "CET"), parameter("days", "3", string=False))


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_what_is_a_call(mode: str, tokenizer: Tokenizer) -> None:
    for right in (block(PARIS), block(CET, PARIS), block(call("now")), block(call("get_time"))):
        assert takes(tokenizer, right, mode=mode)
    for wrong in (
        block(call("forecast", parameter("city", "Paris"))),  # no such tool
        block(call("weather")),  # a required parameter is missing
        block(call("weather", parameter("town", "Paris"))),
        block(call("weather", parameter("city", "Paris"), parameter("city", "Rome"))),
        block(call("get_time", parameter("zone", "PST"))),
        block(call("get_time", parameter("days", "three", string=False))),
        block(call("get_time", parameter("days", "3"))),  # a number is no raw text
        block(call("now", parameter("x", "1"))),
        block(),
        block(PARIS).removesuffix(">"),
        block(PARIS) + "More.",
    ):
        assert not takes(tokenizer, wrong, mode=mode)


def test_modes(tokenizer: Tokenizer) -> None:
    assert takes(tokenizer, "Hello.", mode="auto")
    assert takes(tokenizer, "Hello. a < b", mode="auto")
    assert takes(tokenizer, "Let me see." + block(PARIS), mode="auto")
    assert not takes(tokenizer, "Hello.", mode="required")
    assert takes(tokenizer, block(CET), mode="named", name="get_time")
    assert not takes(tokenizer, block(PARIS), mode="named", name="get_time")
    assert takes(tokenizer, block(CET, CET))
    assert not takes(tokenizer, block(CET, CET), parallel=False)


def test_reasoning_is_free_and_then_the_grammar_begins(tokenizer: Tokenizer) -> None:
    walker, end = Walker(tokenizer), tokenizer.encode_special(THINK_END)
    for constraint in (ToolCalls(tools=TOOLS, mode="required"), JsonObject()):
        state = ConstraintState(compile_grammar(constraint, tokenizer), thinking=True)
        for token_id in tokenizer.encode("Is {1} < 2? "):
            assert not state.is_active
            assert walker.allowed(state)[end]
            assert not walker.allowed(state)[list(tokenizer.stop_ids)].any()
            state.observe(token_id)
        state.observe(end)
        assert state.is_active
        walks = (walker.walk(state.copy(), random.Random(seed)) for seed in range(20))
        ids = next(walk for walk in walks if walk is not None)
        message = parsed(tokenizer, [*tokenizer.encode("Is {1} < 2? "), end, *ids], thinking=True)
        assert message.reasoning == "Is {1} < 2? "
        if isinstance(constraint, ToolCalls):
            check_calls(message, TOOLS)
        else:
            assert isinstance(json.loads(message.content), dict)


def test_auto_is_free_until_the_mark(tokenizer: Tokenizer) -> None:
    mark = tokenizer.encode_special(DSML)
    state = ConstraintState(compile_grammar(ToolCalls(tools=TOOLS), tokenizer), thinking=False)
    mask = torch.full((num_mask_words(tokenizer.vocab_size),), 7, dtype=torch.int32)
    for token_id in [*tokenizer.encode("Look: "), mark, *tokenizer.encode("\n\n<")]:  # a mark without < is text
        assert not state.fill_mask(mask)
        assert (mask == 7).all()
        assert state.forced() == []
        state.observe(token_id)
    state.observe(mark)
    assert state.is_active
    assert state.fill_mask(mask)
    assert tokenizer.decode(state.forced()).startswith("tool_calls>")


def test_a_prompt_may_hold_the_beginning(tokenizer: Tokenizer) -> None:
    grammar = compile_grammar(ToolCalls(tools=TOOLS, mode="required"), tokenizer)
    beginning = marked(tokenizer, block(PARIS).split('name="weather"')[0])
    state = ConstraintState(grammar, thinking=False, prefix=beginning)
    ids = Walker(tokenizer).walk(state, random.Random(2))
    assert ids is not None
    check_calls(parsed(tokenizer, [*beginning, *ids]), TOOLS)
    with pytest.raises(UsageError, match="does not fit the grammar"):
        ConstraintState(grammar, thinking=False, prefix=tokenizer.encode("Hello"))


def test_a_copy_goes_its_own_way(tokenizer: Tokenizer) -> None:
    state = ConstraintState(compile_grammar(ToolCalls(tools=TOOLS), tokenizer), thinking=False)
    free = state.copy()
    for token_id in marked(tokenizer, block(PARIS)):
        state.observe(token_id)
    assert state.is_finished
    assert not free.is_active
    assert free.may_end


def test_other_tools_are_held_to_what_can_be_enforced(tokenizer: Tokenizer) -> None:
    """A schema that a strict tool may not have: the rest of it is still kept."""
    odd = {"type": "object", "properties": {"n": {"type": "integer"}, "s": {"not": {}}}, "if": {}, "required": ["n"]}
    with pytest.raises(UsageError, match=r"tools\[0\].function.parameters has if beside properties"):
        compile_grammar(ToolCalls(tools=[tool("f", odd)]), tokenizer)
    grammar = compile_grammar(ToolCalls(tools=[tool("f", odd, strict=False)], mode="required"), tokenizer)
    for seed in range(4):
        ids = Walker(tokenizer).walk(ConstraintState(grammar, thinking=False), random.Random(seed))
        if ids is not None:
            for found in parsed(tokenizer, ids).tool_calls:
                assert isinstance(json.loads(found.arguments)["n"], int | float)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (ToolCalls(tools=[]), "tools must be 1 to 512 tools, got 0"),
        (ToolCalls(tools=[{}]), r"tools\[0\].function must be an object"),
        (ToolCalls(tools=[tool('a"b', None)]), r"tools\[0\].function.name must be 1 to 256 characters without"),
        (ToolCalls(tools=[tool("a", None), tool("a", None)]), r"tools\[1\].function.name 'a' is the name of another"),
        (ToolCalls(tools=TOOLS, mode="named"), 'name must be given with mode "named"'),
        (ToolCalls(tools=TOOLS, name="now"), 'name must be given with mode "named", and only then'),
        (ToolCalls(tools=TOOLS, mode="named", name="x"), "name must be the name of one of the tools, not 'x'"),
        (ToolCalls(tools=[tool("a", {"type": "string"})]), r'parameters.type must be "object"'),
        (ToolCalls(tools=[tool("a", {"required": ["b"]})]), "required has 'b', which is not in properties"),
        (
            ToolCalls(tools=[tool("a", {"properties": {"b": {"items": {"$ref": "#/$defs/no"}}}})]),
            r"properties.b has a \$ref to '#/\$defs/no', which is not in tools\[0\].function.parameters",
        ),
        (
            ToolCalls(tools=[tool("a", {"properties": {"b c": {}}})]),
            "has the property 'b c': a parameter of a tool cannot",
        ),
        (ToolCalls(tools=[tool("a", {"$ref": "#/no"})]), r"parameters has a \$ref to '#/no', which is not in it"),
        (
            ToolCalls(tools=[tool("a", {"properties": {"b": {"type": "array", "uniqueItems": True}}})]),
            r"parameters.properties.b has uniqueItems at #, which a grammar cannot enforce",
        ),
        (ToolCalls(tools=[tool("a", {"properties": {f"p{n}": {} for n in range(65)}})]), "a strict tool may have 64"),
    ],
)
def test_what_is_refused_and_why(constraint: ToolCalls, message: str, tiny: Tokenizer) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        compile_grammar(constraint, tiny)
    assert "\n" not in str(caught.value)


def test_a_lost_reference_of_another_tool_means_any_value(tokenizer: Tokenizer) -> None:
    lost = {"properties": {"a": {"$id": "https://example.org/x", "$ref": "#/$defs/y", "$defs": {"y": {}}}}}
    tools = [tool("f", lost, strict=False)]
    state = ConstraintState(compile_grammar(ToolCalls(tools=tools), tokenizer), thinking=False)
    for token_id in marked(tokenizer, block(call("f", parameter("a", "[1]", string=False)))):
        state.observe(token_id)
    assert state.is_finished
