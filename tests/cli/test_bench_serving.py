"""``pelagos bench serving``: its figures add up, and bad servers are named in a sentence."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pelagos.cli.main import main

SMALL = ["--requests", "6", "--at-once", "3", "--prompt-tokens", "300", "--max-tokens", "8", "--threads", "1"]


def test_figures_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", "tiny", *SMALL, "--seed", "7", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["num_requests"], report["at_once"]) == ("tiny", 6, 3)
    for phase, tokens in (("cold", 300), ("warm", 300), ("restored", 375)):
        one = report[phase]
        assert one["num_generated"] == 48
        assert one["tokens_per_second"] == pytest.approx(6 * (tokens + 8) / one["seconds"])
        for name in ("seconds_to_first_byte", "seconds_to_first_token", "seconds_per_request"):
            assert 0 < one[name]["median"] <= one[name]["p90"] <= one[name]["p99"] <= one[name]["max"]
        assert one["seconds_to_first_token"]["max"] <= one["seconds_per_request"]["max"] <= one["seconds"]
        assert report["serving_cost"][phase] == pytest.approx(one["seconds"] / report["engine_alone"][phase])
    assert report["cold"]["cached_share"] == 0
    assert report["warm"]["cached_share"] == pytest.approx(256 / 300)  # whole pages
    assert report["restored"]["cached_share"] == pytest.approx(256 / 375)
    assert report["idle"]["seconds_to_first_byte"]["median"] < 1


class Refusing(BaseHTTPRequestHandler):
    """Has a model, and refuses to use it."""

    def do_GET(self) -> None:
        self._reply(200, {"data": [{"id": "some-model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._reply(429, {"error": {"message": "not today"}})

    def _reply(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def refusing() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_what_a_server_refuses_is_said(refusing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", "--url", refusing, *SMALL]) == 1
    assert "refused with 429: not today" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("url", "status", "message"),
    [
        ("http://127.0.0.1:9", 1, "no server answers at http://127.0.0.1:9"),
        ("127.0.0.1:9", 2, "url must be that of a server, such as http://127.0.0.1:8000"),
    ],
)
def test_bad_addresses(url: str, status: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serving", "--url", url, *SMALL]) == status
    assert message in capsys.readouterr().err
