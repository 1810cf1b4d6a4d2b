import pytest

from pelagos.training.tasks import item


@pytest.fixture
def plain_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training, too, words facts and questions as the phrases of a task do; things may stand before and behind them."""
    monkeypatch.setattr(item, "REWORDED", 0.0)
    monkeypatch.setattr(item, "INTRODUCED", 0.0)
