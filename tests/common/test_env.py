from typing import Any

import pytest

from pelagos.common import env
from pelagos.common.errors import UsageError


@pytest.mark.parametrize("variable", env.ALL, ids=lambda v: v.name)
def test_unset_or_empty_is_the_default(variable: env.Variable[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(variable.name, raising=False)
    assert variable.get() == variable.default
    monkeypatch.setenv(variable.name, "  ")
    assert variable.get() == variable.default


def test_values_are_read_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELAGOS_THREADS", " 12 ")
    assert env.THREADS.get() == 12
    monkeypatch.setenv("PELAGOS_THREADS", "1")
    assert env.THREADS.get() == 1
    monkeypatch.setenv("PELAGOS_LOG", "Debug")
    assert env.LOG.get() == "debug"
    monkeypatch.setenv("PELAGOS_OPS", "Native")
    assert env.OPS.get() == "native"


@pytest.mark.parametrize("text", ["0", "-1", "1025", "two", "1.5", "1e3", "9" * 5000, "\udcff"])
def test_bad_thread_counts_name_the_variable_and_the_range(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELAGOS_THREADS", text)
    with pytest.raises(UsageError, match=r"^PELAGOS_THREADS must be a whole number from 1 to 1024, got ") as caught:
        env.THREADS.get()
    assert len(str(caught.value)) < 200


def test_a_bad_level_names_the_variable_and_the_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PELAGOS_LOG", "loud")
    with pytest.raises(UsageError, match=r"^PELAGOS_LOG must be one of debug, info, warning, error, got 'loud'$"):
        env.LOG.get()


def test_all_lists_every_declared_variable() -> None:
    declared = [value for value in vars(env).values() if isinstance(value, env.Variable)]
    assert list(env.ALL) == declared
    assert all(variable.name.startswith("PELAGOS_") and variable.help and variable.accepts for variable in env.ALL)
