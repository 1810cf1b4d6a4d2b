"""Reading a request's body within bounds, before anything is done for it."""

from typing import Any

from starlette.requests import ClientDisconnect, Request

from pelagos.common.errors import UsageError
from pelagos.common.files import parse_json
from pelagos.serving.config import Limits
from pelagos.serving.errors import ApiError


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body. Raises ApiError 413 as soon as they are known to be too many."""
    too_large = ApiError(413, f"the body may have at most {max_bytes:,} bytes", code="request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise too_large
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
            if len(data) > max_bytes:
                raise too_large
    except ClientDisconnect:
        raise ApiError(400, "the client left before the body was complete") from None
    return bytes(data)


def parse_body(data: bytes) -> dict[str, Any]:
    """The object that a body holds. Raises ApiError 400: not JSON, too deep, a key twice, not an object."""
    try:
        body = parse_json(data, "the body")
    except UsageError as error:
        raise ApiError(400, str(error)) from error
    if not isinstance(body, dict):
        raise ApiError(400, f"the body must be a JSON object, not {_kind(body)}")
    return body


def check_counts(body: dict[str, Any], limits: Limits, messages: str) -> None:
    """Bound the lists of a body; ``messages`` is the name of its list of messages. Shapes are checked elsewhere."""
    for name, most in ((messages, limits.max_messages), ("tools", limits.max_tools)):
        value = body.get(name)
        if isinstance(value, list) and len(value) > most:
            raise ApiError(400, f"{name} must have at most {most} entries, got {len(value)}", param=name)


def _kind(value: object) -> str:
    kinds = {list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
