"""The bar appears after two seconds on a terminal, and never elsewhere."""

import sys

import pytest

from pelagos.cli import progress
from pelagos.cli.progress import PatientBar


@pytest.mark.parametrize(
    ("terminal", "patience", "shown"), [(True, 0.0, True), (True, 60.0, False), (False, 0.0, False)]
)
def test_bar(
    terminal: bool,
    patience: float,
    shown: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", patience)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    bar = PatientBar("reading the prompt")
    bar.show(1, 3)
    bar.show(2, 3)
    bar.stop()
    bar.stop()
    output = capsys.readouterr()
    assert ("reading the prompt" in output.err) == shown
    assert output.out == ""
    assert shown or output.err == ""
