"""The messages of a chat request: every field acts or is refused by name."""

from typing import Any

from pelagos.common.fields import show
from pelagos.serving.errors import ApiError
from pelagos.serving.fields import FieldTable

NO_NAME = {"name": "the prompt of this model has no place for it; put it into content"}
FIELDS = {
    "system": FieldTable(acts=("role", "content"), refused=NO_NAME),
    "user": FieldTable(acts=("role", "content"), refused=NO_NAME),
    "latest_reminder": FieldTable(acts=("role", "content"), refused=NO_NAME),
    "assistant": FieldTable(
        acts=("role", "content", "reasoning_content", "tool_calls", "prefix"),
        only={"annotations": ([],)},
        hints=("refusal",),
        refused={**NO_NAME, "audio": "the model reads text alone", "function_call": "use tool_calls instead"},
    ),
    # A tool's name is known from the call that tool_call_id names.
    "tool": FieldTable(acts=("role", "content", "tool_call_id"), hints=("name",)),
}
# OpenAI's newer name for the system's role.
ROLES = {"developer": "system"}
TEXT_PARTS = ("text", "input_text", "output_text")


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """The messages for the converter. Raises ApiError that names the message and the field."""
    if not isinstance(messages, list):
        raise ApiError(400, f"messages must be a list, got {show(messages)}", param="messages")
    return [_checked(f"messages[{place}]", message) for place, message in enumerate(messages)]


def _checked(place: str, message: object) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise ApiError(400, f"{place} must be an object with role and content, got {show(message)}", param=place)
    role = message.get("role")
    role = ROLES.get(role, role) if isinstance(role, str) else role
    if not isinstance(role, str) or role not in FIELDS:
        raise ApiError(400, f"{place}.role must be one of {', '.join(FIELDS)}, got {show(role)}", param=f"{place}.role")
    taken = FIELDS[role].checked(message, place)
    taken["role"] = role
    check_parts(f"{place}.content", taken.get("content"))
    return taken


def check_parts(place: str, content: object) -> None:
    """Raise ApiError for parts of a content that are not text: the model reads nothing else."""
    if not isinstance(content, list):
        return
    for number, part in enumerate(content):
        where = f"{place}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in TEXT_PARTS:
            raise ApiError(
                400, f"{where} must be a part of type text, got {show(kind)}: this model reads text alone", param=where
            )
