"""One exercise of a synthetic task, in a form that pre-training, SFT, RL and evaluation read alike."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from pelagos.common.errors import UsageError

Kind: TypeAlias = Literal["text", "chat"]
Role: TypeAlias = Literal["user", "assistant", "tool"]


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A piece of text. ``weight``: loss weight of its tokens. ``answer``: whether a model is to write it."""

    text: str
    weight: float
    answer: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A tool call with its arguments by name, each a JSON value."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation; ``reasoning`` and ``calls`` are for the assistant, ``call_id`` for a tool."""

    role: Role
    segments: tuple[Segment, ...] = ()
    reasoning: str | None = None
    calls: tuple[Call, ...] = ()
    call_ids: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments)

    def as_message(self) -> dict[str, Any]:
        """The message that ``pelagos.chat.render`` takes."""
        message: dict[str, Any] = {"role": self.role, "content": self.text}
        if self.role == "tool":
            message["tool_call_id"] = self.call_ids[0]
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": c.name, "arguments": json.dumps(c.arguments)}}
                for c, call_id in zip(self.calls, self.call_ids, strict=True)
            ]
        return message


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A text of ``segments`` or a conversation of ``turns``, and what its grader needs.

    ``tools``: names of the tools the conversation has. ``quick``: spelling of a quick-instruction token that ends the
    prompt in place of an assistant's turn; the answer follows it. ``answer``: the last thing the model is to write,
    without spaces around it. ``metadata``: the grader's input, and under ``keys`` what was drawn from the split.
    """

    task: str
    kind: Kind
    held_out: bool
    segments: tuple[Segment, ...] = ()
    turns: tuple[Turn, ...] = ()
    tools: tuple[str, ...] = ()
    thinking: bool = False
    quick: str | None = None
    answer: str
    grader: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation as ``pelagos.chat.render`` takes it, with the assistant's turns."""
        return [turn.as_message() for turn in self.turns]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; ``from_json`` makes an equal sample of them, also after a trip through a file."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Sample":
        """Raises UsageError if ``data`` is not what ``to_json`` gives."""
        try:
            fields = {**data}
            fields["segments"] = tuple(Segment(**segment) for segment in fields["segments"])
            fields["turns"] = tuple(_turn(turn) for turn in fields["turns"])
            fields["tools"] = tuple(fields["tools"])
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"this is not a sample of a synthetic task as Sample.to_json writes it: {error}"
            ) from error


def _turn(data: Mapping[str, Any]) -> Turn:
    fields = {**data}
    fields["segments"] = tuple(Segment(**segment) for segment in fields["segments"])
    fields["calls"] = tuple(Call(**call) for call in fields["calls"])
    fields["call_ids"] = tuple(fields["call_ids"])
    return Turn(**fields)
