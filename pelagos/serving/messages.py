"""POST /v1/messages and /v1/messages/count_tokens: the API of Anthropic."""

from collections.abc import Mapping
from typing import Any

from pelagos.chat.adapter import Conversion, convert_as
from pelagos.common.fields import show
from pelagos.engine.request import Request
from pelagos.serving import fields
from pelagos.serving.answer import Counts, Frame
from pelagos.serving.chat import effort_fields, engine_request, prompt_of
from pelagos.serving.constraints import Mode, ToolChoice, check_choice
from pelagos.serving.errors import ApiError, body
from pelagos.serving.fields import FieldTable
from pelagos.serving.limits import check_counts
from pelagos.serving.respond import Prepared
from pelagos.serving.sampling import FIELDS as SAMPLING
from pelagos.serving.single import SingleAnswer
from pelagos.serving.state import Call, Server, namespace

COUNTED = (
    *("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config", "output_format", "metadata"),
)
ONLY: dict[str, list[Any]] = {
    "service_tier": ["auto", "standard_only"],
    "mcp_servers": [[]],
    "container": [],
    "context_management": [{}, {"edits": []}],
    "cache_control": [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "5m"}, {"type": "ephemeral", "ttl": "1h"}],
}
HINTS = ("inference_geo", "speed")
TABLE = FieldTable(acts=(*COUNTED, "max_tokens", "stop_sequences", "stream", *SAMPLING), only=ONLY, hints=HINTS)
COUNT_TABLE = FieldTable(acts=COUNTED, only=ONLY, hints=HINTS)
METADATA = FieldTable(acts=("user_id",))
OUTPUT_CONFIG = FieldTable(acts=("effort", "format"), refused={"task_budget": "the model is told no budget"})
CHOICE = FieldTable(acts=("type", "name", "disable_parallel_tool_use"))
MODES: dict[str, Mode] = {"auto": "auto", "any": "required", "tool": "named", "none": "none"}
# What the converter checks and renders as it came.
CONVERTED = ("system", "tools", "stop_sequences", "stream", "temperature", "top_p")
# Blocks that another model's service encrypted: there is nothing in them that this one could read.
UNREADABLE = ("redacted_thinking",)
PICTURES = ("image", "document", "container_upload", "search_result")


def prepare_messages(server: Server, call: Call, given: dict[str, Any]) -> Prepared:
    """Check and render a body. Raises ApiError or a PelagosError that names the field."""
    asked = TABLE.checked(without_clearing(given))
    if asked.get("max_tokens") is None:
        raise ApiError(400, "max_tokens must be given: a whole number of at least 1", param="max_tokens")
    fields.whole(asked, "max_tokens", 1, 1 << 40)
    conversion, choice, schema = _converted(server, asked)
    request = engine_request(server, call, asked, conversion, choice, user_id=_user_id(asked), schema=schema)
    answer = MessagesAnswer(server, conversion, request)
    return Prepared(requests=[request], answer=answer, stream=fields.boolean(asked, "stream"), protocol="messages")


def count_tokens(server: Server, call: Call, given: dict[str, Any]) -> dict[str, Any]:
    """The tokens that the same body has as a request: rendered and encoded alike."""
    asked = COUNT_TABLE.checked(without_clearing(given))
    conversion, _, _ = _converted(server, asked)
    return {"input_tokens": len(prompt_of(server, namespace(call, _user_id(asked)), conversion))}


def _user_id(asked: Mapping[str, Any]) -> str | None:
    return fields.text(METADATA.checked(fields.obj(asked, "metadata"), "metadata"), "user_id", 512)


def _converted(server: Server, asked: dict[str, Any]) -> tuple[Conversion, ToolChoice, Mapping[str, Any] | bool | None]:
    fields.check_types(asked)
    check_counts(asked, server.config.limits, "messages")
    server.resolve_model(asked.get("model"), claude=True)
    choice = _tool_choice(asked)
    config = OUTPUT_CONFIG.checked(fields.obj(asked, "output_config"), "output_config")
    schema = _schema(config.get("format", asked.get("output_format")))
    converted = {name: asked[name] for name in CONVERTED if name in asked}
    if isinstance(asked.get("tools"), list):
        converted["tools"] = [_plain_tool(tool) for tool in asked["tools"]]
    effort = effort_fields(server, config.get("effort"), asked.get("thinking"))
    converted["thinking"] = effort["thinking"]
    if "reasoning_effort" in effort:
        converted["output_config"] = {"effort": effort["reasoning_effort"]}
    converted["messages"] = [
        _checked_message(f"messages[{place}]", message) for place, message in enumerate(_list(asked, "messages"))
    ]
    converted["max_tokens"] = asked.get("max_tokens", 1)
    if "tools" in asked and choice.mode == "none":
        converted["tool_choice"] = {"type": "none"}
    elif "tools" in asked and choice.mode == "named" and effort["thinking"].get("type") == "disabled":
        converted["tool_choice"] = {"type": "tool", "name": choice.name}
    conversion = convert_as("messages", converted)
    check_choice(choice, [tool["function"]["name"] for tool in conversion.tools])
    if schema is not None and conversion.tools and choice.mode != "none":
        raise ApiError(400, "output_config.format cannot be used with tools", param="output_config.format")
    return conversion, choice, schema


def _plain_tool(tool: object) -> object:
    """A client's own tool may say that it is one, which the converter takes for a tool of Anthropic's service."""
    if isinstance(tool, dict) and tool.get("type") in (None, "custom"):
        return {name: value for name, value in tool.items() if name != "type"}
    return tool


def _tool_choice(asked: Mapping[str, Any]) -> ToolChoice:
    given = CHOICE.checked(fields.obj(asked, "tool_choice"), "tool_choice")
    kind = given.get("type", "auto")
    if not isinstance(kind, str) or kind not in MODES or (kind == "tool") != isinstance(given.get("name"), str):
        raise ApiError(
            400,
            f"tool_choice must have the type auto, any, none, or tool with a name, got {show(asked['tool_choice'])}",
            param="tool_choice",
        )
    parallel = not fields.boolean(given, "disable_parallel_tool_use")
    return ToolChoice(mode=MODES[kind], name=given.get("name"), parallel=parallel)


def _schema(value: object) -> Mapping[str, Any] | bool | None:
    """The schema of ``output_config.format``."""
    if value is None:
        return None
    if isinstance(value, dict) and value.get("type") == "json_schema" and isinstance(value.get("schema"), dict):
        return dict(value["schema"])
    raise ApiError(
        400, 'output_config.format must be {"type": "json_schema", "schema": {...}}', param="output_config.format"
    )


def _list(asked: Mapping[str, Any], name: str) -> list[Any]:
    value = asked.get(name)
    if not isinstance(value, list):
        raise ApiError(400, f"{name} must be a list, got {show(value)}", param=name)
    return value


def _checked_message(place: str, message: object) -> dict[str, Any]:
    """The message without blocks that this model cannot read but may ignore; ApiError for those it may not."""
    if not isinstance(message, dict):
        raise ApiError(400, f"{place} must be an object with role and content, got {show(message)}", param=place)
    content = message.get("content")
    if not isinstance(content, list):
        return message
    kept = []
    for number, block in enumerate(content):
        kind = block.get("type") if isinstance(block, dict) else None
        where = f"{place}.content[{number}]"
        if kind in UNREADABLE:
            continue
        if kind == "tool_result" and isinstance(block.get("content"), list):
            for inner, part in enumerate(block["content"]):
                _check_readable(f"{where}.content[{inner}]", part)
        _check_readable(where, block)
        kept.append(block)
    return {**message, "content": kept}


def _check_readable(where: str, block: object) -> None:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind in PICTURES:
        raise ApiError(400, f"{where} must be text, got {kind}: this model reads text alone", param=where)


def without_clearing(given: dict[str, Any]) -> dict[str, Any]:
    """The body without requests to keep or drop old thinking: which of it is rendered is the model's own rule."""
    management = given.get("context_management")
    if isinstance(management, dict) and isinstance(management.get("edits"), list):
        edits = [
            edit
            for edit in management["edits"]
            if not (isinstance(edit, dict) and str(edit.get("type", "")).startswith("clear_thinking_"))
        ]
        return {**given, "context_management": {**management, "edits": edits}}
    return given


class MessagesAnswer(SingleAnswer):
    """A message, or its events."""

    dialect = "anthropic"
    id_prefix = "msg_"
    last_events = frozenset({"message_delta", "message_stop"})

    def __init__(self, server: Server, conversion: Conversion, request: Request) -> None:
        super().__init__(server, conversion, request)
        self._usage: dict[str, Any] = {}

    def alive(self) -> list[Frame]:
        return [("ping", {"type": "ping"})]

    def result(self) -> dict[str, Any]:
        return {**self._choice.stream.collected, "usage": self._usage}

    def _call_ids(self, collected: dict[str, Any]) -> list[str]:
        return [block["id"] for block in collected["content"] if block["type"] == "tool_use"]

    def _end(self, counts: Counts, trouble: ApiError | None) -> list[Frame]:
        self._usage = {
            "input_tokens": counts.num_prompt - counts.num_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": counts.num_cached,
            "output_tokens": counts.num_generated,
            "service_tier": "standard",
            "pelagos": {**counts.extra, "reasoning_tokens": counts.num_reasoning},
        }
        if trouble is not None:
            return [("error", body(trouble, "anthropic", self.id))]
        for event in self._last:
            if event["type"] == "message_delta":
                event["usage"] = self._usage
        return [(event["type"], event) for event in self._last]
