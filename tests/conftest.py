"""What every test runs under: one torch thread, and property tests without a time limit, the same examples in CI."""

import logging
import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("pelagos", deadline=None, derandomize=os.environ.get("CI") == "true")
settings.load_profile("pelagos")
torch.set_num_threads(1)


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """For tests of ``main``, which sets logging up: it must not leave that to the next one."""
    root, ours = logging.getLogger(), logging.getLogger("pelagos")
    handlers, level = list(root.handlers), ours.level
    yield
    for handler in [handler for handler in root.handlers if handler not in handlers]:
        root.removeHandler(handler)
    ours.setLevel(level)
