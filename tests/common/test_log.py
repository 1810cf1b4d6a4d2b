import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from pelagos.common import log
from pelagos.common.errors import UsageError

LOGGER = logging.getLogger("pelagos.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("pelagos")
    handlers, level = list(root.handlers), ours.level
    yield
    root.handlers[:] = handlers
    ours.setLevel(level)


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_has_one_object_per_message() -> None:
    stream = io.StringIO()
    log.configure("info", json=True, stream=stream)
    LOGGER.info("filed %d pages", 3, extra={"tier": "disk", "seconds": 0.5, "rate": float("nan"), "path": ["a"]})
    [first] = json_lines(stream)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "pelagos.test",
        "message": "filed 3 pages",
        "tier": "disk",
        "seconds": 0.5,
        "rate": "nan",
        "path": "['a']",
    }


def test_json_keeps_any_message_on_one_ascii_line() -> None:
    message = 'line 1\nline 2\u2028"é" \udcff'
    line = log.JsonFormatter().format(logging.makeLogRecord({"msg": message}))
    assert line.isascii()
    assert "\n" not in line
    assert json.loads(line)["message"] == message


def test_json_carries_the_traceback() -> None:
    stream = io.StringIO()
    log.configure("info", json=True, stream=stream)
    try:
        raise ValueError("broken page")
    except ValueError:
        LOGGER.exception("dropped")
    [entry] = json_lines(stream)
    assert (entry["level"], entry["message"]) == ("error", "dropped")
    assert entry["error"].endswith("ValueError: broken page")


def test_extra_fields_cannot_replace_the_standard_ones() -> None:
    stream = io.StringIO()
    log.configure("info", json=True, stream=stream)
    LOGGER.info("real", extra={"level": "forged", "time": "never"})
    [entry] = json_lines(stream)
    assert entry["level"] == "info"
    assert entry["time"] != "never"


def test_request_ids_stay_with_their_task() -> None:
    stream = io.StringIO()
    log.configure("info", json=True, stream=stream)

    async def serve(name: str) -> None:
        with log.request_scope(name):
            for step in range(3):
                await asyncio.sleep(0)
                LOGGER.info("%s %d", name, step)
        LOGGER.info("after")

    async def both() -> None:
        await asyncio.gather(serve("a"), serve("b"))

    asyncio.run(both())
    entries = json_lines(stream)
    inside = [entry for entry in entries if entry["message"] != "after"]
    assert len(inside) == 6
    assert all(entry["request"] == entry["message"][0] for entry in inside)
    assert all("request" not in entry for entry in entries if entry["message"] == "after")


def test_request_scopes_nest() -> None:
    stream = io.StringIO()
    log.configure("info", stream=stream)
    with log.request_scope("outer"):
        with log.request_scope("inner"):
            LOGGER.info("one")
        LOGGER.info("two")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("INFO    pelagos.test: [inner] one")
    assert second.endswith("INFO    pelagos.test: [outer] two")


@pytest.mark.parametrize(("level", "expected"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_level_is_for_our_messages(level: str, expected: int) -> None:
    stream = io.StringIO()
    log.configure(level, json=True, stream=stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(LOGGER, name)("ours")
        getattr(logging.getLogger("other.library"), name)("theirs")
    messages = [entry["message"] for entry in json_lines(stream)]
    assert messages.count("ours") == expected
    assert messages.count("theirs") == 2


def test_a_second_call_replaces_the_first() -> None:
    old, new = io.StringIO(), io.StringIO()
    others = list(logging.getLogger().handlers)
    log.configure("info", stream=old)
    log.configure("info", json=True, stream=new)
    LOGGER.info("once")
    assert old.getvalue() == ""
    assert len(json_lines(new)) == 1
    assert logging.getLogger().handlers[:-1] == others


def test_a_terminal_gets_rich_output_and_json_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    log.configure("info", stream=terminal)
    with log.request_scope("r1"):
        LOGGER.info("[bold]filed[/bold]")
    assert "[r1] [bold]filed[/bold]" in terminal.getvalue()  # what a user typed is text, never markup
    assert "\x1b[" in terminal.getvalue()

    terminal = Terminal()
    log.configure("info", json=True, stream=terminal)
    LOGGER.info("filed")
    assert json_lines(terminal)[0]["message"] == "filed"


def test_level_comes_from_the_environment_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("PELAGOS_LOG", "error")
    log.configure(stream=stream)
    LOGGER.warning("not shown")
    assert stream.getvalue() == ""
    monkeypatch.setenv("PELAGOS_LOG", "loud")
    with pytest.raises(UsageError, match="PELAGOS_LOG"):
        log.configure(stream=stream)


def test_an_unknown_level_is_refused_and_changes_nothing() -> None:
    before = list(logging.getLogger().handlers)
    with pytest.raises(UsageError, match=r"log level must be one of debug, info, warning, error, got 'LOUD'"):
        log.configure("LOUD")
    assert logging.getLogger().handlers == before


def test_default_stream_is_standard_error_and_rich_stays_unloaded() -> None:
    code = (
        "import logging, sys; from pelagos.common import log; log.configure('info');"
        "logging.getLogger('pelagos.x').info('hello'); sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.endswith("INFO    pelagos.x: hello\n")
