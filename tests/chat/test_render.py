"""Prompts against golden files, literal expectations and an encoding made from the text alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_golden import read_golden, regenerate
from hypothesis import given, settings
from hypothesis import strategies as st

from pelagos.chat import adapter
from pelagos.chat.effort import JULY_2026, LAUNCH, EffortLevels
from pelagos.chat.parse import OutputParser
from pelagos.chat.render import Message, render
from pelagos.chat.tokenizer import ASSISTANT, DSML, EOS, THINK_END, USER, Tokenizer
from pelagos.common.errors import ResourceError, TokenizerError, UsageError

HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
CASES = {case["name"]: case for case in regenerate.conversations()}
GOLDEN = read_golden("rendered.json")


def test_golden_files_cover_the_same_cases() -> None:
    assert list(GOLDEN) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_golden_prompt(name: str, official: Tokenizer) -> None:
    prompt = regenerate.render_case(CASES[name], official)
    assert prompt.text == GOLDEN[name]["text"]
    assert prompt.token_ids == GOLDEN[name]["token_ids"]
    assert prompt.continues == GOLDEN[name]["continues"]
    assert official.decode(prompt.token_ids) == prompt.text


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("effort")])
def test_tiny_vocabulary_gives_the_same_prompt(name: str, official: Tokenizer, tiny: Tokenizer) -> None:
    prompt = regenerate.render_case(CASES[name], tiny)
    assert prompt.text == GOLDEN[name]["text"] == tiny.decode(prompt.token_ids)
    marks = [tiny.decode([i]) for i in prompt.token_ids if i in tiny.special_ids]
    assert marks == [official.decode([i]) for i in GOLDEN[name]["token_ids"] if i in official.special_ids]


@pytest.mark.parametrize("name", ["plain, low effort", "tool call and result", "unicode", "spaces, digits, line ends"])
def test_our_encoding_of_the_text_between_marks_is_the_official_one(name: str, tokenizer: Tokenizer) -> None:
    prompt = regenerate.render_case(CASES[name], tokenizer)
    assert regenerate.encode_marks(tokenizer, prompt.text) == prompt.token_ids


def test_literal_prompts(official: Tokenizer) -> None:
    start = "<｜begin▁of▁sentence｜>"
    thinking = render([HI], official, effort="low")
    assert thinking.text == f"{start}<｜User｜>Hi<｜Assistant｜><think>"
    assert thinking.token_ids == [0, 128803, 23166, 128804, 128821]
    assert (thinking.thinking, thinking.tools, thinking.continues) == (True, False, None)
    plain = render([{"role": "system", "content": "S"}, HI], official, thinking=False)
    assert plain.text == f"{start}S<｜User｜>Hi<｜Assistant｜></think>"
    assert not plain.thinking
    assert render([HI], official, tools=[TOOL]).tools
    assert not render([HI], official, tools=[]).tools


def test_effort_goes_through_the_table(official: Tokenizer) -> None:
    def text(effort: str, levels: EffortLevels = JULY_2026, thinking: bool = True) -> str:
        return render([HI], official, effort=effort, levels=levels, thinking=thinking).text

    assert "Absolute maximum" in text("high")
    assert "Beyond maximum" in text("max")
    assert text("max", LAUNCH) == text("high")
    assert text("high", LAUNCH) == text("low")
    assert text("max", thinking=False) == text("none") == text("none", LAUNCH)
    assert text("medium") == text("high") == render([HI], official).text
    with pytest.raises(UsageError, match="effort must be one of"):
        text("hard", thinking=False)


@given(text=st.lists(st.sampled_from([USER, ASSISTANT, EOS, THINK_END, DSML, "<", "｜", "a", " "]), max_size=8))
@settings(max_examples=40)
def test_no_text_changes_the_marks_of_a_prompt(official: Tokenizer, text: list[str]) -> None:
    def marks(content: str) -> list[int]:
        messages: list[Message] = [
            {"role": "system", "content": content},
            {"role": "user", "content": content},
            {"role": "assistant", "content": content, "reasoning_content": content},
            {"role": "user", "content": content},
        ]
        ids = render(messages, official, tools=[TOOL], effort="low").token_ids
        return [i for i in ids if i in official.special_ids]

    assert marks("".join(text)) == marks("x")


def test_with_tools_the_next_prompt_begins_with_this_one_and_its_answer(tokenizer: Tokenizer) -> None:
    """Otherwise no agent could reuse its cache. It also shows that parsing and rendering are inverse."""
    messages: list[Message] = [HI]
    call = (
        f'<{DSML}invoke name="f">\n<{DSML}parameter name="a" string="true">é "x"\n</{DSML}parameter>\n</{DSML}invoke>\n'
    )
    answer = f"I think.{THINK_END}Wait.\n\n<{DSML}tool_calls>\n{call}</{DSML}tool_calls>{EOS}"
    prompt = render(messages, tokenizer, tools=[TOOL])
    ids = regenerate.encode_marks(tokenizer, answer)
    parsed = OutputParser.for_prompt(prompt, tokenizer).parse(ids)
    assert parsed.tool_calls[0].arguments == '{"a": "é \\"x\\"\\n"}'
    messages += [parsed.as_message(), {"role": "tool", "content": "r", "tool_call_id": parsed.tool_calls[0].call_id}]
    following = render(messages, tokenizer, tools=[TOOL]).token_ids
    assert following[: len(prompt.token_ids) + len(ids)] == prompt.token_ids + ids


def test_answer_of_a_turn_without_thinking_goes_back_without_reasoning(tiny: Tokenizer) -> None:
    prompt = render([HI], tiny, tools=[TOOL], thinking=False)
    parsed = OutputParser.for_prompt(prompt, tiny).parse(tiny.encode("Yes."))
    assert parsed.as_message() == {"role": "assistant", "content": "Yes."}
    following = render([HI, parsed.as_message(), HI], tiny, tools=[TOOL], thinking=False)
    assert following.text.startswith(f"{prompt.text}Yes.{EOS}")


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("prefix")])
def test_parser_of_a_continued_prompt_starts_where_it_ends(name: str, tokenizer: Tokenizer) -> None:
    prompt = regenerate.render_case(CASES[name], tokenizer)
    parsed = OutputParser.for_prompt(prompt, tokenizer).parse(tokenizer.encode("\nmore"))
    shown = parsed.reasoning if prompt.continues == "reasoning" else parsed.content
    # A new message loses its leading line ends, and so does the library's continuation when thinking is off.
    assert shown == ("\nmore" if prompt.thinking else "more")


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "Empty input messages"),
        (["Hi"], r"messages\[0\] must be an object with role and content, not str"),
        ([HI, {"content": "a"}], r"messages\[1\].role must be one of system, user, .*, not None"),
        ([{"role": ["user"], "content": "a"}], r"messages\[0\].role must be one of"),
        ([{"role": "developer", "content": "a"}], "not 'developer'"),
        ([{"role": "user", "content": "a", "name": "Bo"}], r"messages\[0\].name is not one of the fields of a user"),
        ([{"role": "user"}], r"messages\[0\].content must be text, not NoneType"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], r"messages\[0\].content must be text, not list"),
        ([{"role": "user", "content": "a\ud83d"}], "cannot be rendered: .*surrogates"),
        ([HI, CALL], "cannot be rendered: .*missing field `arguments`"),
        ([HI, {"role": "tool", "content": "r", "tool_call_id": "c"}], "must be a response to a preceding message"),
        (
            [{"role": "assistant", "content": "a", "prefix": True}, HI],
            "prefix set true with message which is not final",
        ),
    ],
)
def test_bad_messages(messages: Any, message: str, tiny: Tokenizer) -> None:
    with pytest.raises(UsageError, match=message):
        render(messages, tiny)


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("f", r"tools\[0\] must be"),
        ({"name": "f"}, r"tools\[0\] must be"),
        ({"type": "function", "function": {"name": "f f"}}, r"tools\[0\].function.name"),
        ({"type": "function", "function": {"name": "f", "parameters": {"x": float("nan")}}}, "not JSON compliant"),
        ({"type": "function", "function": {"name": "f", "parameters": {"x": {1, 2}}}}, "not JSON serializable"),
        ({"type": "function", "function": {"name": "f", "parameters": nested(200)}}, "recursion limit"),
        ({"type": "function", "function": {"name": "f", "parameters": nested(100_000)}}, "recursion"),
    ],
)
def test_bad_tools(tool: Any, message: str, tiny: Tokenizer) -> None:
    with pytest.raises(UsageError, match=message):
        render([HI], tiny, tools=[tool])


def test_vocabulary_without_a_mark(edited_file: Callable[[Callable[[dict[str, Any]], object]], Path]) -> None:
    def drop_user(data: dict[str, Any]) -> None:
        data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] != USER]

    tokenizer = Tokenizer.from_file(edited_file(drop_user))
    with pytest.raises(TokenizerError, match="<｜User｜>"):
        render([HI], tokenizer)


def test_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tiny_file: Path) -> None:
    monkeypatch.setitem(sys.modules, "deepseek_recipe", None)
    tokenizer = Tokenizer.from_file(tiny_file)
    assert tokenizer.decode(tokenizer.encode("a")) == "a"
    for use in (lambda: render([HI], tokenizer), lambda: OutputParser(tokenizer, thinking=True, tools=False)):
        with pytest.raises(ResourceError, match=r"pip install 'deepseek-recipe>=0.2,<0.3'.*inside WSL.*without --chat"):
            use()


def test_file_that_only_one_library_reads(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"t.json cannot be read by deepseek-recipe"):
        adapter.load_tokenizer(tmp_path / "t.json")


def test_import_is_cheap() -> None:
    code = "import sys, pelagos.chat.parse; print([m for m in ('torch', 'deepseek_recipe') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
