"""Messages to token ids: the official V4 prompt, to the byte, for generation, serving, training and RL alike.

Messages are plain dicts in the shape of DeepSeek's Chat Completions API:

    {"role": "system" | "user" | "latest_reminder", "content": "..."}
    {"role": "tool", "content": "...", "tool_call_id": "..."}
    {"role": "assistant", "content": "...", "reasoning_content": "...", "prefix": true,
     "tool_calls": [{"id": "...", "type": "function", "function": {"name": "...", "arguments": "<JSON object>"}}]}

The official rules apply: reasoning of earlier turns is kept with tools and dropped without; system messages move to the
front; ``prefix`` on the last, assistant message leaves it open to be continued.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from pelagos.chat import adapter
from pelagos.chat.effort import JULY_2026, EffortLevels
from pelagos.chat.tokenizer import Tokenizer
from pelagos.common.errors import UsageError

Message: TypeAlias = Mapping[str, Any]
Tool: TypeAlias = Mapping[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}

# The library ignores keys that it does not know; here every key acts or is refused.
FIELDS = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content", "reasoning_content", "tool_calls", "prefix"),
    "tool": ("role", "content", "tool_call_id"),
    "latest_reminder": ("role", "content"),
}


@dataclass(frozen=True, kw_only=True)
class RenderedPrompt:
    """A prompt and what a parser must know about the answer that follows it.

    ``text`` spells the special tokens out: only ``token_ids`` may go to a model, because encoding the text again would
    lose the difference between a turn mark and a user who typed one. ``thinking`` and ``tools``: whether the answer may
    hold reasoning, tool calls. ``continues``: the part of the last message that the answer goes on with, None for a new
    message.
    """

    token_ids: list[int]
    text: str
    thinking: bool
    tools: bool
    continues: adapter.Continues | None


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[Tool] | None = None,
    thinking: bool = True,
    effort: str = "high",
    levels: EffortLevels = JULY_2026,
) -> RenderedPrompt:
    """The prompt for the next assistant message.

    ``effort`` is a user's word, looked up in the checkpoint's ``levels``; "none" turns thinking off like ``thinking``.
    Raises UsageError for messages, tools or words that cannot be used, TokenizerError if the vocabulary lacks a mark.
    """
    level = levels.resolve(effort)
    for position, message in enumerate(messages):
        _check_message(f"messages[{position}]", message)
    for position, tool in enumerate(tools or ()):
        _check_tool(f"tools[{position}]", tool)
    body: dict[str, Any] = {"messages": [dict(message) for message in messages]}
    if tools:
        body["tools"] = [dict(tool) for tool in tools]
    if thinking and level != "none":
        body |= {"thinking": {"type": "enabled"}, "reasoning_effort": level}
    else:
        body["thinking"] = {"type": "disabled"}
    request = adapter.convert(body)
    token_ids, text = adapter.encode(request, tokenizer.official)
    return RenderedPrompt(
        token_ids=token_ids,
        text=text,
        thinking=request.conversation.thinking_mode,
        tools=request.parsing_options.parse_tool_calls,
        continues=adapter.continues(request),
    )


def _check_message(place: str, message: object) -> None:
    if not isinstance(message, Mapping):
        raise UsageError(f"{place} must be an object with role and content, not {type(message).__name__}")
    role = message.get("role")
    if not isinstance(role, str) or role not in FIELDS:
        raise UsageError(f"{place}.role must be one of {', '.join(FIELDS)}, not {role!r}")
    if unknown := sorted(map(str, message.keys() - set(FIELDS[role]))):
        raise UsageError(
            f"{place}.{unknown[0]} is not one of the fields of a {role} message: {', '.join(FIELDS[role])}"
        )
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and role == "assistant"):
        raise UsageError(f"{place}.content must be text, not {type(content).__name__}")


def _check_tool(place: str, tool: object) -> None:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or not isinstance(tool.get("function"), Mapping):
        raise UsageError(f'{place} must be {{"type": "function", "function": {{"name", "description", "parameters"}}}}')
