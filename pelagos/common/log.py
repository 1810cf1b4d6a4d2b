"""Logging: the standard library's, set up once by a command and never by an import.

Modules write ``logging.getLogger(__name__).info("filed %d pages", n)``. What is logged inside ``request_scope(id)``
carries that id, also across ``await``.
"""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from json import dumps
from typing import TextIO

from pelagos.common import env
from pelagos.common.errors import UsageError

_HANDLER = "pelagos"
_STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


@contextmanager
def request_scope(request_id: str) -> Iterator[None]:
    """Put ``request_id`` on every message logged in this block."""
    token = _request_id.set(request_id)
    try:
        yield
    finally:
        _request_id.reset(token)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message; request and error where there are any; and what
    the caller gave as ``extra``. Always ASCII, so no message can forge a second line."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := _request_id.get():
            entry["request"] = request_id
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        for name, value in vars(record).items():
            if name not in _STANDARD_FIELDS:
                entry.setdefault(name, _plain(value))
        return dumps(entry)


class TextFormatter(logging.Formatter):
    """For people: the format it is made with, and the request id before the message."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the base class's name
        if request_id := _request_id.get():
            record.message = f"[{request_id}] {record.message}"
        return super().formatMessage(record)


def configure(level: str | None = None, json: bool = False, stream: TextIO | None = None) -> None:
    """Send log messages to ``stream`` (default: standard error). A second call replaces the first.

    Pelagos logs from ``level`` on (default: what the environment says), other libraries from "warning" on.
    Coloured on a terminal, plain text elsewhere, JSON lines with ``json``. Raises UsageError for an unknown level.
    """
    level = env.LOG.get() if level is None else level
    if level not in env.LOG_LEVELS:
        raise UsageError(f"log level must be one of {', '.join(env.LOG_LEVELS)}, got {level!r}")
    stream = sys.stderr if stream is None else stream
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(old)
    handler = _handler(stream, json)
    handler.name = _HANDLER
    root.addHandler(handler)
    logging.getLogger("pelagos").setLevel(level.upper())


def _handler(stream: TextIO, json: bool) -> logging.Handler:
    handler: logging.Handler
    if stream.isatty() and not json:
        from rich.console import Console
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        handler = RichHandler(console=Console(file=stream), highlighter=NullHighlighter(), show_path=False)
        handler.setFormatter(TextFormatter("%(message)s"))
        return handler
    handler = logging.StreamHandler(stream)
    layout = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    handler.setFormatter(JsonFormatter() if json else TextFormatter(layout))
    return handler


def _plain(value: object) -> str | int | float | None:
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
