"""``pelagos serve`` as a process: what it prints, what it says against bad options, how a signal ends it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from pelagos.chat.tokenizer import Tokenizer
from pelagos.cli.main import main


@pytest.mark.parametrize("http_server", ["uvicorn", "granian"])
def test_a_whole_life(http_server: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Starts, says where it is, answers, and at SIGTERM gives a running stream its last event and ends well."""
    command = [sys.executable, "-m", "pelagos", "serve", "tiny", "--tokenizer", str(tokenizer.path), "--port", "0"]
    if http_server == "granian":
        pytest.importorskip("granian", reason="granian is missing: pip install -e '.[granian]' brings it")
    command += [
        "--server",
        http_server,
        "--name",
        "small",
        "--json-logs",
        "--ram-cache",
        "0.05",
        "--store-dir",
        str(tmp_path),
        "--threads",
        "1",
    ]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(3)]
        url = re.fullmatch(r"Chat: (http://127\.0\.0\.1:\d+)/\n", said[0])
        assert url is not None, process.stderr.read() if process.stderr else said
        assert said[1].startswith(f"curl {url[1]}/v1/chat/completions -H 'Content-Type: application/json'")
        assert f'OpenAI(base_url="{url[1]}/v1"' in said[2]
        asked = json.loads(re.search(r"-d '(.*)'", said[1])[1])  # type: ignore[index]
        with httpx2.Client(base_url=url[1], timeout=20) as client:
            reply = client.post("/v1/chat/completions", json=asked | {"max_tokens": 3})
            assert (reply.status_code, reply.json()["model"]) == (200, "small")
            endless = asked | {"stream": True, "max_tokens": 10_000, "logit_bias": {"1": -100}}
            with client.stream("POST", "/v1/chat/completions", json=endless) as stream:
                lines = stream.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                assert [line for line in lines if line][-1] == "data: [DONE]"
        _, log = process.communicate(timeout=20)
        assert process.returncode == 0, log
    finally:
        process.kill()
        process.wait()
    entries = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"POST /v1/chat/completions 200"} <= {entry["message"] for entry in entries}
    assert all(entry["request"].startswith("req_") for entry in entries if entry["message"].startswith("POST"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["nothing-there"], "model must be a checkpoint folder, owner/name on the hub, or one of"),
        (["tiny", "--port", "0"], "tiny has no tokenizer.json: name a folder that has one with --tokenizer"),
        (["tiny", "--host", "0.0.0.0"], "host 0.0.0.0 can be reached from other machines: give an api_key_file"),
        (["tiny", "--api-key-file", "/nothing/there"], "the API key file /nothing/there cannot be read"),
        (["tiny", "--cors-origin", "example.org"], "cors_origins must be origins such as https://a.example"),
        (
            ["tiny", "--host", "no.such.host.invalid", "--api-key-file", "KEYS"],
            "host no.such.host.invalid is not an address",
        ),
        (["tiny", "--port", "70000"], "'--port'"),
        (["tiny", "--drain-seconds", "-1"], "'--drain-seconds'"),
    ],
)
def test_bad_options(options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a:" + "0" * 64)
    given = [str(tmp_path / "keys") if option == "KEYS" else option for option in options]
    if "--port" not in given:
        given += ["--port", "0"]
    assert main(["serve", *given]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_granian_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "granian.server.embed", None)
    assert main(["serve", "tiny", "--port", "0", "--server", "granian"]) == 2
    assert "--server granian needs granian" in capsys.readouterr().err


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "tiny", "--port", str(taken.getsockname()[1])]) == 1
    assert "is taken: stop what listens there, or give another --port" in capsys.readouterr().err


def test_a_tokenizer_of_another_model(tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    data = json.loads(tokenizer.path.read_text(encoding="utf-8"))
    for token in data["added_tokens"]:
        token["id"] += 1000
    for content in [token["content"] for token in data["added_tokens"]]:
        data["model"]["vocab"][content] += 1000
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert main(["serve", "tiny", "--port", "0", "--tokenizer", str(tmp_path)]) == 2
    assert "they do not belong together" in capsys.readouterr().err
