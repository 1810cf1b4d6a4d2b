"""Answers against golden files, literal expectations, the bare library, and themselves cut in every way."""

import codecs
import dataclasses
import json
from itertools import pairwise
from typing import Any

import deepseek_recipe as recipe
import pytest
from chat_golden import read_golden, regenerate
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.chat.parse import Delta, OutputParser, ParsedMessage, ToolCall
from pelagos.chat.tokenizer import DSML, EOS, THINK_END, USER, Tokenizer
from pelagos.common.errors import TokenizerError

CASES = {case["name"]: case for case in regenerate.outputs()}
GOLDEN = read_golden("parsed.json")
CALL = f'\n\n<{DSML}tool_calls>\n<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">x</{DSML}parameter>\n'
CALL_END = f"</{DSML}invoke>\n</{DSML}tool_calls>"


def test_golden_files_cover_the_same_cases() -> None:
    assert list(GOLDEN) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_golden_answer(name: str, tokenizer: Tokenizer) -> None:
    case = CASES[name]
    ids = regenerate.output_ids(case, tokenizer)
    found = regenerate.as_json(regenerate.parser_for(case, tokenizer).parse(ids, case.get("reason", "stop")))
    if tokenizer.vocab_size != 129280:  # the counts are those of the official vocabulary
        found |= {key: GOLDEN[name][key] for key in ("num_tokens", "num_reasoning_tokens")}
        if case.get("json_output"):  # so is the number of spaces that stand for the text around the JSON
            assert found["content"].strip() == GOLDEN[name]["content"].strip()
            found["content"] = GOLDEN[name]["content"]
    assert found == GOLDEN[name]


@pytest.mark.parametrize("name", CASES)
def test_same_as_the_bare_library(name: str, official: Tokenizer) -> None:
    """The library alone, fed one id at a time up to a stop id, its own accumulator in place of our deltas."""
    case = CASES[name]
    stages = recipe.ThinkingInitialStage
    stage = {None: "ReasoningStart", "content": "ContentContinuation", "reasoning": "ReasoningContinuation"}
    thinking = case.get("thinking", True)
    options = recipe.ParsingOptions(
        parse_tool_calls=case.get("tools", False),
        parse_json_output=case.get("json_output", False),
        thinking_initial_stage=getattr(stages, stage[case.get("continues")]) if thinking else None,
        stop_sequences=case.get("stop", []),
    )
    conversation = recipe.Conversation([recipe.UserMessage("Hi")], thinking_mode=thinking)
    request = recipe.ConversationRequest(conversation, recipe.ModelVersion.DeepseekV4Pro)
    generator = recipe.ChatCompletionRequest.chunk_generator(request, "id", "model")
    processor = recipe.StreamProcessor(generator, options, official.official.tokenizer)
    response = recipe.ChatCompletionResponse("id", "model", 0, 0, 0)
    reason = recipe.InferenceFinishReason.Length if case.get("reason") else recipe.InferenceFinishReason.Stop
    ids = regenerate.output_ids(case, official)
    ids = ids[: next((n for n, i in enumerate(ids) if i in official.stop_ids), len(ids))]
    inputs = [recipe.InferenceChunk.tokens([i]) for i in ids] + [recipe.InferenceChunk.finish(reason)]
    chunks = [chunk for given in inputs if not processor.finished for chunk in processor.push(given)]
    for chunk in [*chunks, *processor.finish()]:
        response.accumulate(chunk)
    choice = json.loads(response.to_json())["choices"][0]
    message = choice["message"]
    assert GOLDEN[name]["content"] == (message["content"] or "")
    assert (GOLDEN[name]["reasoning"] or "") == (message.get("reasoning_content") or "")
    assert GOLDEN[name]["finish_reason"] == choice["finish_reason"]
    calls = [call["function"] for call in message.get("tool_calls") or []]
    assert [
        {**call, "complete": mine["complete"]} for call, mine in zip(calls, GOLDEN[name]["tool_calls"], strict=True)
    ] == (GOLDEN[name]["tool_calls"])


def message(content: str = "", reasoning: str | None = "r", calls: tuple[str, ...] = (), reason: str = "stop") -> Any:
    """What ``shown`` gives of a parsed answer."""
    return (reasoning, content, calls, reason)


def shown(parsed: ParsedMessage) -> Any:
    calls = tuple(call.arguments for call in parsed.tool_calls)
    return (parsed.reasoning, parsed.content, calls, parsed.finish_reason)


ARGUMENTS = '{"a": "x"}'


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        (f"r{THINK_END}c", {}, message("c")),
        (f"r{CALL}{CALL_END}", {}, message(calls=(ARGUMENTS,), reason="tool_calls")),
        (f"r{THINK_END}a{THINK_END}b", {}, message("ab")),
        (f"r{THINK_END}c{CALL}{CALL_END}dropped", {}, message("c", calls=(ARGUMENTS,), reason="tool_calls")),
        (f"r{THINK_END}c{CALL}", {"tools": False}, message(f"c{CALL}")),
        (f"r{THINK_END}{CALL}", {"reason": "length"}, message(calls=('{"a": "x"',), reason="length")),
        (f'r{THINK_END}```json\n{{"a": 1}}\n```', {"json_output": True}, message('{"a": 1}')),
        (f"r{THINK_END}&amp;", {}, message("&amp;")),
        (f"r{THINK_END}one two three", {"stop": ["two t"]}, message("one ")),
        (f"r{THINK_END}c{EOS}", {}, message("c")),
        (f"r{THINK_END}c{USER}evil", {}, message("c")),
        ("c", {"thinking": False}, message("c", reasoning=None)),
        ("r", {}, message()),
    ],
)
def test_literal_answers(text: str, options: dict[str, Any], expected: Any, tokenizer: Tokenizer) -> None:
    options = {"thinking": True, "tools": True} | options
    reason = options.pop("reason", "stop")
    parsed = OutputParser(tokenizer, **options).parse(regenerate.encode_marks(tokenizer, text), reason)
    if options.get("json_output"):  # text around the JSON becomes spaces, as many as its tokens need
        parsed = dataclasses.replace(parsed, content=parsed.content.strip())
    assert shown(parsed) == expected


def assemble(deltas: list[Delta]) -> tuple[str, str, list[ToolCall]]:
    """A message from its deltas, as a client would do it."""
    text = {"reasoning": "", "content": ""}
    calls: list[ToolCall] = []
    for delta in deltas:
        assert delta.text or delta.name is not None, "an empty delta"
        if delta.kind != "tool_call":
            text[delta.kind] += delta.text
        elif delta.name is not None:
            assert delta.index == len(calls)
            calls.append(ToolCall(name=delta.name, arguments="", call_id=delta.call_id or ""))
        else:
            assert delta.index is not None
            old = calls[delta.index]
            calls[delta.index] = ToolCall(name=old.name, arguments=old.arguments + delta.text, call_id=old.call_id)
    return text["reasoning"], text["content"], calls


def parse_in_pieces(parser: OutputParser, pieces: list[list[int]], reason: Any = "stop") -> ParsedMessage:
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish(reason)
    parsed = parser.message
    assert assemble(deltas) == (parsed.reasoning or "", parsed.content, list(parsed.tool_calls))
    return parsed


@pytest.mark.parametrize("name", CASES)
def test_every_cut_gives_the_same_answer(name: str, tiny: Tokenizer, official: Tokenizer) -> None:
    case = CASES[name]
    reason = case.get("reason", "stop")
    for tokenizer in (official, tiny):
        ids = regenerate.output_ids(case, tokenizer)
        whole = regenerate.parser_for(case, tokenizer).parse(ids, reason)
        cuts = [[ids[:n], ids[n:]] for n in range(len(ids) + 1)] + [[[i] for i in ids]]
        for pieces in cuts:
            assert parse_in_pieces(regenerate.parser_for(case, tokenizer), pieces, reason) == whole


@given(data=st.data())
@settings(max_examples=60)
def test_random_ids_in_random_cuts(official: Tokenizer, tiny: Tokenizer, data: st.DataObject) -> None:
    """Bytes that are not UTF-8 and marks in any order: no exception, the same in every cut, and no lost text."""
    tokenizer = data.draw(st.sampled_from([official, tiny]))
    marks = [tokenizer.encode_special(mark) for mark in (THINK_END, DSML, EOS)]
    any_id = st.one_of(st.integers(0, 400), st.sampled_from(marks), st.integers(0, tokenizer.vocab_size - 1))
    ids = data.draw(st.lists(any_id, max_size=24))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    options = {"thinking": data.draw(st.booleans()), "tools": data.draw(st.booleans())}
    whole = OutputParser(tokenizer, **options).parse(ids)
    pieces = [ids[start:end] for start, end in pairwise([0, *cuts, len(ids)])]
    assert parse_in_pieces(OutputParser(tokenizer, **options), pieces) == whole
    end = next((n for n, i in enumerate(ids) if i in tokenizer.stop_ids), len(ids))
    assert whole.num_tokens == min(end + 1, len(ids))
    if not options["thinking"] and not options["tools"]:  # line ends at the front are the library's to drop
        assert whole.content.replace("\n", "") == text_of(tokenizer, ids[:end]).replace("\n", "")


def text_of(tokenizer: Tokenizer, ids: list[int]) -> str:
    """All text of ``ids``, a mark ending an unfinished character, without </think> and an unfinished last character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        if token_id in tokenizer.special_ids:
            text += decoder.decode(b"", final=True) + data.decode().replace(THINK_END, "")
            decoder.reset()
        else:
            text += decoder.decode(data)
    return text


def test_unfinished_character_at_the_end_is_not_shown(tiny: Tokenizer) -> None:
    half = tiny.encode("🦀")[:-1]
    parser = OutputParser(tiny, thinking=False, tools=False)
    parser.push([*tiny.encode("ab"), *half])
    parser.finish("length")
    assert parser.message.content == "ab"
    assert parser.message.num_tokens == len(tiny.encode("ab")) + len(half)


def test_whole_characters_before_an_unfinished_one_are_shown(official: Tokenizer) -> None:
    """Some tokens hold both: the library drops them whole when the answer ends there."""
    tokens = [(i, official.token_bytes(i)) for i in range(128_000)]
    token_id, data = next(t for t in tokens if t[1].endswith(b"\xe2\x80") and len(t[1].decode("utf-8", "ignore")) > 0)
    parsed = OutputParser(official, thinking=False, tools=False).parse([token_id])
    assert parsed.content == data.decode("utf-8", "ignore")


def test_character_broken_off_by_a_mark(tiny: Tokenizer) -> None:
    half = tiny.encode("🦀")[:-1]
    ids = [*tiny.encode("a"), *half, tiny.encode_special(THINK_END), *half, *tiny.encode("b")]
    parsed = OutputParser(tiny, thinking=True, tools=False).parse(ids)
    assert (parsed.reasoning, parsed.content) == ("a\ufffd", "\ufffdb")


def test_long_run_of_broken_bytes_is_shown_as_it_comes(official: Tokenizer) -> None:
    half = official.encode("😀")[0]
    parser = OutputParser(official, thinking=False, tools=False)
    for count in range(1, 200):
        parser.push([half])
        assert sum(map(len, parser._content)) == count - 1  # all but the last, which may still become a character


def test_nothing_is_taken_after_a_stop(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer, thinking=False, tools=False, stop=["b"])
    assert not parser.finished
    parser.push(tokenizer.encode("a b c"))
    assert parser.finished
    count = parser.num_tokens
    assert parser.push(tokenizer.encode("d")) == []
    assert parser.finish("length") == []
    assert shown(parser.message) == message("a ", reasoning=None)
    assert parser.num_tokens == count < len(tokenizer.encode("a b c"))


def test_id_out_of_range(tokenizer: Tokenizer) -> None:
    parser = OutputParser(tokenizer, thinking=True, tools=False)
    with pytest.raises(TokenizerError, match=f"token id {tokenizer.vocab_size} is not in"):
        parser.push([tokenizer.vocab_size])


@pytest.mark.parametrize("end", range(len(CALL) + 1))
def test_cut_call_is_never_complete(end: int, tiny: Tokenizer) -> None:
    ids = regenerate.encode_marks(tiny, CALL[:end])
    parsed = OutputParser(tiny, thinking=False, tools=True).parse(ids, "length")
    assert parsed.finish_reason == "length"
    assert not any(call.complete for call in parsed.tool_calls)
    assert len(parsed.tool_calls) == (end >= CALL.index('"f">') + 3)


@pytest.mark.parametrize(
    ("arguments", "complete"),
    [
        ("{}", True),
        (ARGUMENTS, True),
        ("", False),
        ('{"a": 1', False),
        ("[1]", False),
        ('{"a": NaN}', False),
        ("[" * 9999, False),
    ],
)
def test_complete_is_a_json_object(arguments: str, complete: bool) -> None:
    assert ToolCall(name="f", arguments=arguments, call_id="").complete == complete


def test_misuse_is_a_programming_error(tiny: Tokenizer) -> None:
    parser = OutputParser(tiny, thinking=True, tools=False)
    with pytest.raises(AssertionError, match="message before finish"):
        _ = parser.message
    parser.finish()
    with pytest.raises(AssertionError, match="finish called twice"):
        parser.finish()
    with pytest.raises(AssertionError, match="push after finish"):
        parser.push([1])
