"""Commands set logging up; a test must not leave that to the next one."""

import pytest


@pytest.fixture(autouse=True)
def _logging(restored_logging: None) -> None:
    """See ``restored_logging``."""
