"""What went wrong, in the shape that the caller's library knows.

OpenAI and DeepSeek: ``{"error": {"message", "type", "param", "code"}}``. Anthropic: ``{"type": "error", "error":
{"type", "message"}, "request_id"}``. Nothing else of an error leaves the server: traces go to the log.
"""

import logging
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from pelagos.common.errors import OverloadedError, PelagosError, ResourceError

Dialect = Literal["openai", "anthropic"]

OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
ANTHROPIC_TYPES = {
    **OPENAI_TYPES,
    413: "request_too_large",
    503: "overloaded_error",
    504: "timeout_error",
}
# Anthropic's clients know an overloaded server by this status.
ANTHROPIC_OVERLOADED = 529


class ApiError(PelagosError):
    """An error with its HTTP status. ``param``: the field it is about. ``retry_after``: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True, kw_only=True)
class ErrorReply:
    """An error as it goes out."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def as_api_error(error: BaseException) -> ApiError:
    """Whatever a request ended in, as an error that may be shown."""
    match error:
        case ApiError():
            return error
        case OverloadedError():
            return ApiError(503, str(error), code="overloaded", retry_after=error.retry_after)
        case ResourceError():
            return ApiError(503, str(error), code="overloaded", retry_after=1.0)
        case PelagosError():
            return ApiError(400, str(error), param=_field(str(error)))
    logging.getLogger(__name__).error("a request failed", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why", code="internal_error")


def reply(error: BaseException, dialect: Dialect, request_id: str) -> ErrorReply:
    """The status, body and headers for an error."""
    shown = as_api_error(error)
    headers = {}
    if shown.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(shown.retry_after)))
    status = shown.status
    if dialect == "anthropic" and status == 503:
        status = ANTHROPIC_OVERLOADED
    return ErrorReply(status=status, body=body(shown, dialect, request_id), headers=headers)


def body(error: ApiError, dialect: Dialect, request_id: str) -> dict[str, Any]:
    """The JSON of an error, for a response or for an event of a stream that had begun."""
    message = str(error)
    if dialect == "anthropic":
        kind = ANTHROPIC_TYPES.get(error.status, "api_error")
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    kind = OPENAI_TYPES.get(error.status, "server_error")
    code = error.code or ("invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": error.param, "code": code}}


def _field(message: str) -> str | None:
    """The field that a message begins with, such as ``messages[3].content``."""
    found = re.match(r"([a-z][a-z0-9_]*(?:\[\d+\]|\.[a-zA-Z_]\w*)*) (?:must|is|has|cannot|needs|may)\b", message)
    return found[1] if found else None
