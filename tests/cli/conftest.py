"""``main`` sets logging up; a test must not leave that to the next one."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("pelagos")
    handlers, level = list(root.handlers), ours.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    ours.setLevel(level)
