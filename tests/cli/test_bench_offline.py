"""``pelagos bench offline``: its figures add up."""

import json

import pytest
from typer.testing import CliRunner

from pelagos.cli.main import app

runner = CliRunner()
SMALL = ["bench", "offline", "tiny", "--requests", "5", "--prompt-tokens", "300", "--max-tokens", "6", "--threads", "1"]


def test_figures_add_up() -> None:
    result = runner.invoke(app, [*SMALL, "--shared", "0.9", "--running", "2", "--json"])
    report = json.loads(result.stdout)
    engine = report["engine"]
    assert report["num_requests"] == sum(engine["finished"].values()) == 5
    assert engine["num_generated"] == 30
    assert engine["num_prompt_tokens"] == 1500
    assert report["cached_share"] == pytest.approx(4 * 256 / 1500)
    assert 0 < report["seconds_to_first_token"]["median"] <= report["seconds"]


def test_it_says_so_in_words() -> None:
    result = runner.invoke(app, SMALL)
    assert result.exit_code == 0
    assert "5 requests to tiny: " in result.stdout
    assert "0% of the prompts' tokens were found in the cache" in result.stdout


def test_requests_that_do_not_fit_are_refused_in_a_sentence() -> None:
    result = runner.invoke(app, ["bench", "offline", "tiny", "--cache-mib", "1", "--prompt-tokens", "60000"])
    assert "the prompt has 60000 tokens, the model takes at most 4095" in str(result.exception)
