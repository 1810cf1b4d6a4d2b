"""What holds an answer to a grammar: tool calls, forced or free, and the format of the content."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pelagos.chat.adapter import Conversion
from pelagos.chat.grammar import Constraint, JsonObject, JsonSchema, Regex, ToolCalls, compile_grammar
from pelagos.chat.grammar_state import ConstraintState
from pelagos.chat.tokenizer import ASSISTANT, THINK_END, THINK_START, Tokenizer
from pelagos.common.errors import UsageError
from pelagos.serving.errors import ApiError

Mode = Literal["auto", "none", "required", "named"]


@dataclass(frozen=True, kw_only=True)
class ToolChoice:
    """``name``: the tool to call, with mode "named"."""

    mode: Mode = "auto"
    name: str | None = None
    parallel: bool = True

    @property
    def is_forced(self) -> bool:
        return self.mode in ("required", "named")


def check_choice(choice: ToolChoice, names: Sequence[str]) -> None:
    """Raise ApiError unless there are tools to choose from, and the named one among them."""
    if choice.is_forced and not names:
        raise ApiError(400, "tool_choice needs tools to choose from, and tools has none", param="tool_choice")
    if choice.mode == "named" and choice.name not in names:
        raise ApiError(400, f"tool_choice names {choice.name!r}, which is not one of the tools", param="tool_choice")


def constraint_state(
    conversion: Conversion,
    choice: ToolChoice,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    schema: Mapping[str, Any] | bool | None = None,
) -> ConstraintState | None:
    """The state before the first token of the answer, None if the answer is free.

    ``schema``: what the content must meet, where the protocol's converter does not know of it. Raises UsageError that
    names the tool or the schema for what a grammar cannot enforce.
    """
    constraint = _constraint(conversion, choice, schema)
    if constraint is None:
        return None
    thinking, prefix = _answer_so_far(prompt_ids, tokenizer)
    try:
        return ConstraintState(compile_grammar(constraint, tokenizer), thinking=thinking, prefix=prefix)
    except UsageError as error:
        field = "tools" if isinstance(constraint, ToolCalls) else "response_format"
        raise ApiError(400, str(error), param=field) from error


def _constraint(
    conversion: Conversion, choice: ToolChoice, schema: Mapping[str, Any] | bool | None
) -> Constraint | None:
    if conversion.has_tools and conversion.tools and choice.mode != "none":
        return ToolCalls(tools=conversion.tools, mode=choice.mode, name=choice.name, parallel=choice.parallel)
    if schema is not None:
        return JsonSchema(schema=schema)
    match conversion.output_format:
        case ("json_object", _):
            return JsonObject()
        case ("json_schema", found):
            return JsonSchema(schema=found)
        case ("regex", pattern):
            return Regex(pattern=pattern)
    return None


def _answer_so_far(prompt_ids: Sequence[int], tokenizer: Tokenizer) -> tuple[bool, list[int]]:
    """Whether the prompt leaves the answer in reasoning, and the ids of the answer that it holds already."""
    assistant = tokenizer.encode_special(ASSISTANT)
    start = next(place for place in range(len(prompt_ids) - 1, -1, -1) if prompt_ids[place] == assistant)
    answer = list(prompt_ids[start + 1 :])
    marks = (tokenizer.encode_special(THINK_START), tokenizer.encode_special(THINK_END))
    opened = bool(answer) and answer[0] == marks[0]
    return opened, answer[1:] if answer and answer[0] in marks else answer
