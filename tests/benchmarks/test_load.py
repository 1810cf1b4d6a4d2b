"""The load that runs for minutes, for some seconds: it holds, and its checks notice what they are there for."""

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import load
import pytest

from pelagos.engine.request import Answer, Finished, Times, Usage


def test_it_holds() -> None:
    options = Namespace(model="tiny", minutes=10 / 60, streams=64, slow=8, leave=0.2, seed=1, threads=1)
    report = load.run(options)
    assert report["checks"] == dict.fromkeys(report["checks"], True), {**report, "memory": None}
    assert report["clients"]["whole"] > 20
    assert report["clients"]["left"] > 0
    assert report["reasons"]["cancelled"] > 0
    assert "memory is flat" not in report["checks"]  # too short to tell
    assert all(value > 0 for _, value in report["memory"]["samples"])


def test_a_second_end_is_noticed() -> None:
    listeners: list[Any] = []
    engine = SimpleNamespace(add=lambda request, on_event: listeners.append(on_event) or "id")
    names = ("model", "start", "abort", "stats", "drain", "close")
    counted = load.Counted(SimpleNamespace(**vars(engine), **dict.fromkeys(names)))  # type: ignore[arg-type]
    counted.add(None)  # type: ignore[arg-type]
    end = Finished(
        request_id="id",
        answers=(Answer(tokens=(), text=None, finish_reason="stop"),),
        usage=Usage(num_prompt_tokens=3, num_cached=1, num_computed=2, num_generated=4),
        times=Times(started=0.0, first_token=0.0, finished=0.0),
        seed=0,
    )
    listeners[0](end)
    assert +counted.num_ends == {1: 1}
    assert counted.sums == {"num_prompt_tokens": 3, "num_cached": 1, "num_generated": 4}
    listeners[0](end)
    assert +counted.num_ends == {2: 1}


@pytest.mark.parametrize(("values", "expected"), [([1, 5, 5, 5, 5, 5, 9, 9], (5, 9)), ([7], (7, 7))])
def test_growth(values: list[int], expected: tuple[int, int]) -> None:
    assert load.growth([(float(place), value) for place, value in enumerate(values)]) == expected


def test_a_kill_under_load(tmp_path: Path) -> None:
    import kill

    report = kill.run(1, 4, 5, tmp_path)
    assert report["problems"] == []
    assert report["kills"] == 1
    assert report["responses"] > 0


def test_a_lost_or_changed_response_is_noticed(tmp_path: Path) -> None:
    import kill

    log = tmp_path / "log"
    log.write_text("")
    stored = {"a": {"id": "a", "status": "completed"}, "c": {"id": "c", "status": "in_progress"}}

    def ask(method: str, path: str) -> tuple[int, Any]:
        found = stored.get(path.rsplit("/", 1)[1])
        return (404, None) if found is None else (200, found)

    served: Any = SimpleNamespace(ask=ask, log=log)
    assert kill.check(served, {"a": stored["a"]}, {"a"}) == []
    assert "another one now" in kill.check(served, {"a": {"id": "a"}}, set())[0]
    assert "is gone" in kill.check(served, {"b": {}}, set())[0]
    assert "was begun in the background" in kill.check(served, {}, {"c"})[0]
    log.write_text("Traceback (most recent call last)")
    assert "the log has an error" in kill.check(served, {}, set())[0]
