"""POST /v1/responses and what follows from it: read, cancel, delete, go on from an earlier one."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from pelagos.chat.adapter import Conversion, convert_as
from pelagos.common.fields import show
from pelagos.engine.request import Request
from pelagos.serving import fields
from pelagos.serving.answer import Counts, Frame
from pelagos.serving.chat import effort_fields, engine_request, tool_choice
from pelagos.serving.chat_messages import check_parts
from pelagos.serving.constraints import check_choice
from pelagos.serving.errors import ApiError
from pelagos.serving.fields import FieldTable
from pelagos.serving.limits import check_counts, parse_body, read_body
from pelagos.serving.respond import Prepared, Run, collect, respond
from pelagos.serving.sampling import FIELDS as SAMPLING
from pelagos.serving.single import SingleAnswer
from pelagos.serving.state import Call, Server

logger = logging.getLogger(__name__)

TABLE = FieldTable(
    acts=(
        *("model", "input", "instructions", "tools", "tool_choice", "parallel_tool_calls", "text", "reasoning"),
        *("max_output_tokens", "stream", "stream_options", "top_logprobs", "include", "previous_response_id", "store"),
        *("background", "metadata", "user", "user_id", "safety_identifier", "prompt_cache_key"),
        *SAMPLING,
    ),
    only={"truncation": ("disabled",), "service_tier": ("auto", "default")},
    hints=("prompt_cache_retention", "client_metadata"),
    refused={
        "conversation": "give previous_response_id instead",
        "prompt": "there are no stored prompts; give instructions and input",
        "max_tool_calls": "the server runs no tools",
        "context_management": "the server compacts nothing",
    },
)
REASONING = FieldTable(
    acts=("effort",), only={"summary": ("auto", "concise", "detailed"), "generate_summary": ("auto",)}
)
TEXT = FieldTable(acts=("format",), only={"verbosity": ("low", "medium", "high")})
STREAM_OPTIONS = FieldTable(acts=(), only={"include_obfuscation": (False,)})
INCLUDES = ("reasoning.encrypted_content", "message.output_text.logprobs")
CONVERTED = ("instructions", "tools", "stream", "temperature", "top_p", "top_logprobs", "include")
# Shown in a response as they were asked for; the converter does not know them.
SHOWN = ("previous_response_id", "store", "background", "metadata", "user", "safety_identifier", "prompt_cache_key")
CALL_ITEMS = ("function_call", "custom_tool_call")
CLIENT_TOOLS = ("function", "custom", "namespace")
MAX_CHAIN = 10_000


def prepare_response(server: Server, call: Call, given: dict[str, Any]) -> Prepared:
    """Check and render a body. Raises ApiError or a PelagosError that names the field."""
    asked = TABLE.checked(given)
    fields.check_types(asked)
    check_counts(asked, server.config.limits, "input")
    server.resolve_model(asked.get("model"))
    shown = _shown(asked)
    if shown["background"] and (fields.boolean(asked, "stream") or not shown["store"]):
        raise ApiError(400, "background must be false with stream, or with store off", param="background")
    choice = tool_choice(asked)
    items = _items(asked.get("input"))
    previous = asked.get("previous_response_id")
    history = _history(server, call, previous)
    converted = {name: asked[name] for name in CONVERTED if name in asked}
    converted["input"] = history + items
    if len(converted["input"]) > server.config.limits.max_messages:
        raise ApiError(400, f"input and what came before must have at most {server.config.limits.max_messages} items")
    converted["reasoning"] = _reasoning(server, asked)
    converted["text"] = _text(asked)
    _check_includes(asked)
    STREAM_OPTIONS.checked(fields.obj(asked, "stream_options"), "stream_options")
    most = fields.whole(asked, "max_output_tokens", 1, 1 << 40)
    if most is not None:
        converted["max_output_tokens"] = most
    is_thinking = converted["reasoning"]["effort"] != "none"
    if "tool_choice" in asked and asked.get("tools"):
        converted["tool_choice"] = "auto" if choice.is_forced and is_thinking else asked["tool_choice"]
    dropped = _dropped_tools(asked)
    conversion = convert_as("responses", converted)
    check_choice(choice, [tool["function"]["name"] for tool in conversion.tools])
    wants_logprobs = INCLUDES[1] in asked.get("include", ()) or bool(asked.get("top_logprobs"))
    logprobs = fields.whole(asked, "top_logprobs", 0, 20, 0) if wants_logprobs else None
    request = engine_request(server, call, asked, conversion, choice, logprobs=logprobs, user_id=asked.get("user_id"))
    answer = ResponseAnswer(server, conversion, request, logprobs is not None, shown, call.key, items, dropped)
    headers = {"x-pelagos-dropped-tools": ",".join(dropped)} if dropped else {}
    stream = fields.boolean(asked, "stream")
    return Prepared(requests=[request], answer=answer, stream=stream, protocol="responses", headers=headers)


class CreateResponse:
    """The endpoint: like any other that generates, and in the background if asked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        http = HttpRequest(scope, receive, send)
        server: Server = http.app.state.server
        call: Call = scope["call"]
        server.check_ready()
        data = await read_body(http, server.config.limits.max_body_bytes)
        prepared = await server.in_thread(lambda: prepare_response(server, call, parse_body(data)))
        assert isinstance(prepared.answer, ResponseAnswer)
        if prepared.answer.shown["background"]:
            app: Any = JSONResponse(await _start_in_background(server, call, prepared))
        else:
            app = await respond(server, call, http, prepared)
        await app(scope, receive, send)


async def _start_in_background(server: Server, call: Call, prepared: Prepared) -> dict[str, Any]:
    run = Run(server, call, prepared)
    answer = prepared.answer
    assert isinstance(answer, ResponseAnswer)
    await run.start()
    run.begin()
    await server.store_in_thread(answer.store)
    first = answer.result()

    async def finish() -> None:
        try:
            await collect(run)
        except Exception as error:
            logger.info("background response %s ended early: %s", answer.id, error)
        finally:
            server.background.pop(answer.id, None)

    server.background[answer.id] = (run.flow, asyncio.create_task(finish()))
    return first


async def get_response(http: HttpRequest) -> Response:
    record = await _record(http)
    return JSONResponse(record["response"])


async def response_input(http: HttpRequest) -> Response:
    record = await _record(http)
    data = list(reversed(record["input"])) if http.query_params.get("order", "desc") == "desc" else record["input"]
    return JSONResponse({"object": "list", "data": data, "has_more": False})


async def delete_response(http: HttpRequest) -> Response:
    record = await _record(http)
    server: Server = http.app.state.server
    response_id = record["response"]["id"]
    if response_id in server.background:
        raise ApiError(409, f"response {response_id} is still running: cancel it first")
    await server.in_thread(lambda: server.store.delete(response_id, record["key"]))
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


async def cancel_response(http: HttpRequest) -> Response:
    """End a background response; what it has written so far stays."""
    record = await _record(http)
    server: Server = http.app.state.server
    response_id = record["response"]["id"]
    if not record["response"]["background"]:
        raise ApiError(400, f"response {response_id} was not made in the background: only such can be cancelled")
    running = server.background.get(response_id)
    if running is not None:
        flow, task = running
        flow.abort()
        await asyncio.wait({task}, timeout=10.0)
    return JSONResponse((await _record(http))["response"])


async def _record(http: HttpRequest) -> dict[str, Any]:
    server: Server = http.app.state.server
    call: Call = http.scope["call"]
    response_id = http.path_params["id"]
    record = await server.in_thread(lambda: server.store.get(response_id, call.key))
    if record is None:
        raise ApiError(404, f"there is no stored response {response_id[:100]!r}", param="id")
    response = record["response"]
    if response["status"] in ("queued", "in_progress") and response_id not in server.background:
        response["status"] = "failed"
        response["error"] = {"code": "server_error", "message": "the server stopped before the answer was whole"}
    return record


def _shown(asked: Mapping[str, Any]) -> dict[str, Any]:
    metadata = fields.obj(asked, "metadata")
    if len(metadata) > 16 or not all(isinstance(value, str) and len(value) <= 512 for value in metadata.values()):
        raise ApiError(400, "metadata must be at most 16 texts of at most 512 characters", param="metadata")
    for name in ("user", "safety_identifier", "prompt_cache_key"):
        fields.text(asked, name, 512)
    shown = {name: asked.get(name) for name in SHOWN}
    return shown | {
        "metadata": metadata,
        "store": fields.boolean(asked, "store", True),
        "background": fields.boolean(asked, "background"),
        "parallel_tool_calls": fields.boolean(asked, "parallel_tool_calls", True),
    }


def _items(given: object) -> list[dict[str, Any]]:
    """The input as a list of items."""
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not isinstance(given, list) or not all(isinstance(item, dict) for item in given):
        raise ApiError(400, f"input must be a text or a list of items, got {show(given)}", param="input")
    for place, item in enumerate(given):
        if item.get("type") == "item_reference":
            raise ApiError(
                400, f"input[{place}] must be a whole item: references are not followed", param=f"input[{place}]"
            )
        if item.get("type") in (None, "message"):
            check_parts(f"input[{place}].content", item.get("content"))
    return given


def _history(server: Server, call: Call, previous: object) -> list[dict[str, Any]]:
    """The items of the responses that lead to ``previous``, that one included, oldest first."""
    parts: list[list[dict[str, Any]]] = []
    while previous is not None:
        record = server.store.get(previous, call.key) if isinstance(previous, str) else None
        if record is None or len(parts) >= MAX_CHAIN:
            raise ApiError(
                400,
                f"previous_response_id {show(previous)} is not stored here (or no longer)",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        if record["response"]["status"] in ("queued", "in_progress"):
            raise ApiError(409, f"response {previous} is not finished", param="previous_response_id")
        parts.append(record["input"] + record["response"]["output"])
        previous = record["previous"]
    return [item for part in reversed(parts) for item in part]


def _reasoning(server: Server, asked: Mapping[str, Any]) -> dict[str, Any]:
    given = REASONING.checked(fields.obj(asked, "reasoning"), "reasoning")
    effort = effort_fields(server, given.get("effort"), None)
    return {"effort": effort.get("reasoning_effort", "none")}


def _text(asked: Mapping[str, Any]) -> dict[str, Any]:
    return TEXT.checked(fields.obj(asked, "text"), "text")


def _check_includes(asked: Mapping[str, Any]) -> None:
    include = asked.get("include", [])
    if not isinstance(include, list) or not all(name in INCLUDES for name in include):
        raise ApiError(400, f"include must be a list of {' and '.join(INCLUDES)}, got {show(include)}", param="include")


def _dropped_tools(asked: Mapping[str, Any]) -> list[str]:
    """Kinds of tools that only OpenAI's service runs. Agents declare them to every server, so they are left out, and
    the response says so."""
    tools = asked.get("tools", [])
    kinds = [tool.get("type") for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else []
    return sorted(
        {str(kind)[:40] for kind in kinds if kind not in CLIENT_TOOLS and isinstance(kind, str) and kind.isascii()}
    )


class ResponseAnswer(SingleAnswer):
    """A response, or its events. It is stored before its last event goes out."""

    id_prefix = "resp_"
    last_events = frozenset({"response.completed", "response.incomplete"})

    def __init__(
        self,
        server: Server,
        conversion: Conversion,
        request: Request,
        logprobs: bool,
        shown: dict[str, Any],
        key: str,
        items: list[dict[str, Any]],
        dropped: list[str],
    ) -> None:
        super().__init__(server, conversion, request, logprobs=logprobs)
        self.shown = shown
        self._store = server.store
        self._key = key
        self._items = items
        self._dropped = dropped
        self._sequence = 0
        self._response: dict[str, Any] = {}

    def result(self) -> dict[str, Any]:
        return self._response

    def store(self) -> None:
        """Put the response where it can be asked for again, as it is now."""
        if self.shown["store"]:
            previous = self.shown["previous_response_id"]
            self._store.put({"key": self._key, "previous": previous, "input": self._items, "response": self._response})

    def keep(self) -> None:
        super().keep()
        if "output" in self._response:
            self.store()

    def failure(self, error: ApiError, request_id: str) -> list[Frame]:
        return self._failed(error)

    def _call_ids(self, collected: dict[str, Any]) -> list[str]:
        return [item["call_id"] for item in collected["output"] if item["type"] in CALL_ITEMS]

    def _end(self, counts: Counts, trouble: ApiError | None) -> list[Frame]:
        [last] = self._last
        response = last["response"]
        self._patched(last)
        response["usage"] = {
            "input_tokens": counts.num_prompt,
            "input_tokens_details": {"cached_tokens": counts.num_cached},
            "output_tokens": counts.num_generated,
            "output_tokens_details": {"reasoning_tokens": counts.num_reasoning},
            "total_tokens": counts.num_prompt + counts.num_generated,
            "pelagos": counts.extra | ({"dropped_tools": self._dropped} if self._dropped else {}),
        }
        self._response = response
        if trouble is not None:
            return self._failed(trouble)
        return [(last["type"], last)]

    def _failed(self, error: ApiError) -> list[Frame]:
        is_cancelled = error.code == "cancelled" and self.shown["background"]
        self._response["status"] = "cancelled" if is_cancelled else "failed"
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self._response["error"] = None if is_cancelled else {"code": code, "message": str(error)}
        self._response.setdefault("id", self.id)
        event = {"type": "response.failed", "response": self._response, "sequence_number": self._sequence}
        return [("response.failed", event)]

    def _patched(self, event: dict[str, Any]) -> dict[str, Any]:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        if "response" in event:
            event["response"] |= self.shown
            self._response = event["response"]
        return event
