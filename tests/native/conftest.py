"""The compiled module, as it was before each test when the test is over."""

from collections.abc import Iterator
from types import ModuleType

import pytest

from pelagos.ops.cpu.module import native, native_reason


@pytest.fixture
def module() -> Iterator[ModuleType]:
    compiled = native()
    if compiled is None:
        pytest.skip(str(native_reason()))
    isa, num_threads = compiled.isa(), compiled.num_threads()
    yield compiled
    compiled.use_isa(isa)
    compiled.set_num_threads(num_threads)
