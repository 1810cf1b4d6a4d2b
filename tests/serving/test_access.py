"""Who may ask: keys, hosts, web origins; what the page may do; what the log may say."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
from live_server import Live, wait_for

from pelagos.common.errors import ConfigError
from pelagos.serving import page
from pelagos.serving.auth import Keys
from pelagos.serving.config import ServingConfig

KEY = "sk-secret-of-anna"


def line(name: str, key: str) -> str:
    return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# who may ask\n\n" + line("anna", KEY) + line("bert", "sk-bert"))
    return path


@pytest.fixture(scope="module")
def guarded(launch: Callable[..., Live], key_file: Path) -> Live:
    live = launch(api_key_file=key_file, host="0.0.0.0")
    live.say("</think>x")
    return live


def test_without_a_key_nothing_is_done(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": "wrong"}, {"authorization": "Basic abc"}):
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("GET", "/metrics")):
            reply = guarded.http.request(method, path, headers=headers, json={})
            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "authentication_error"
            assert "wrong" not in reply.text
    reply = guarded.http.post("/anthropic/v1/messages", json={})
    assert (reply.status_code, reply.json()["type"]) == (401, "error")
    assert guarded.http.get("/health").status_code == guarded.http.get("/").status_code == 200
    assert not guarded.engine.requests


def test_each_key_has_its_own_world(guarded: Live) -> None:
    def ask(key: str, **fields: Any) -> str:
        with openai.OpenAI(base_url=f"{guarded.url}/v1", api_key=key) as client:
            return client.responses.create(model="pelagos", input="hi", **fields).id

    annas = ask(KEY)
    first = guarded.last.namespace
    ask("sk-bert")
    assert guarded.last.namespace not in ("", first)
    headers = {"x-api-key": "sk-bert"}
    assert guarded.http.get(f"/v1/responses/{annas}", headers=headers).status_code == 404
    assert guarded.http.get(f"/v1/responses/{annas}", headers={"x-api-key": KEY}).status_code == 200
    with pytest.raises(openai.BadRequestError, match="is not stored here"):
        ask("sk-bert", previous_response_id=annas)


def test_keys_never_reach_the_log(guarded: Live, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        guarded.http.post("/v1/chat/completions", headers={"authorization": f"Bearer {KEY}"}, json={})
        guarded.http.get(f"/v1/models?key={KEY}", headers={"x-api-key": "sk-also-secret"})
    # The clients' own logs do not count. uvicorn's log of URLs is off; pytest turns it on to listen to it.
    assert not logging.getLogger("uvicorn.access").propagate
    others = ("httpx", "httpcore", "openai", "uvicorn.access")
    ours = [record for record in caplog.records if not record.name.startswith(others)]
    assert ours
    text = "".join(record.getMessage() + str(vars(record)) for record in ours)
    assert KEY not in text
    assert "sk-also-secret" not in text


def test_the_file_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    path.write_text(line("anna", "old"))
    keys = Keys(path)
    assert keys.name_of("old") == "anna"
    path.write_text(line("anna", "old") + line("anna", "new"))
    assert (keys.name_of("new"), keys.name_of("old")) == ("anna", "anna")
    path.write_text(line("anna", "new2"))
    with pytest.raises(Exception, match="not known here"):
        keys.name_of("old")
    time.sleep(0.01)
    path.write_text("what is this?")
    assert keys.name_of("new2") == "anna"
    assert "are not read again" in caplog.text
    assert keys.name_of("new2") == "anna"
    assert caplog.text.count("are not read again") == 1
    path.unlink()
    assert keys.name_of("new2") == "anna"


@pytest.mark.parametrize("text", ["", "# nothing\n", "anna\n", "anna:1234\n", "an na:" + "0" * 64, "\xff"])
def test_a_file_that_is_no_list_of_keys(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        Keys(path)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_only_this_machine_without_keys(host: str) -> None:
    with pytest.raises(ConfigError, match="give an api_key_file"):
        ServingConfig(host=host)
    assert ServingConfig(host="127.0.0.2").host == "127.0.0.2"


def test_foreign_pages_cannot_use_the_server(live: Live) -> None:
    """Neither by asking from their own origin, nor with a name of theirs that leads to this machine."""
    live.say("</think>x")
    body = {"model": "pelagos", "messages": [{"role": "user", "content": "hi"}]}
    path = "/v1/chat/completions"
    assert live.http.post(path, json=body, headers={"origin": "https://evil.example"}).status_code == 403
    assert live.http.post(path, json=body, headers={"host": "evil.example"}).status_code == 403
    assert live.http.post(path, json=body, headers={"origin": "null"}).status_code == 403
    assert live.http.post(path, json=body, headers={"origin": live.url}).status_code == 200
    assert live.http.post(path, json=body, headers={"host": f"localhost:{live.port}"}).status_code == 200
    assert "access-control-allow-origin" not in live.http.get("/health").headers


def test_an_origin_may_be_let_in(launch: Callable[..., Live]) -> None:
    live = launch(cors_origins=("https://good.example",))
    live.say("</think>x")
    good, bad = {"origin": "https://good.example"}, {"origin": "https://evil.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    reply = live.http.options("/v1/chat/completions", headers=good | asked)
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://good.example")
    assert live.http.options("/v1/chat/completions", headers=bad | asked).status_code == 400
    body = {"model": "pelagos", "messages": [{"role": "user", "content": "hi"}]}
    reply = live.http.post("/v1/chat/completions", json=body, headers=good)
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://good.example")
    assert live.http.post("/v1/chat/completions", json=body, headers=bad).status_code == 403


def test_the_page(tmp_path: Path, launch: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text("<!doctype html><script src=/assets/a.js></script>")
    (tmp_path / "assets" / "a.js").write_text("console.log(1)")
    (tmp_path / "assets" / "notes.md").write_text("not for browsers")
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    monkeypatch.setattr(page.load_page, "__defaults__", (tmp_path,))
    live = launch()
    reply = live.http.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    again = live.http.get("/", headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert live.http.head("/").status_code == 200
    script = live.http.get("/assets/a.js")
    assert (script.headers["content-type"], script.text) == ("text/javascript; charset=utf-8", "console.log(1)")
    for path in ("/assets/notes.md", "/assets/../app.py", "/assets/%2e%2e/app.py", "/static/index.html"):
        assert live.http.get(path).status_code == 404


def test_the_page_of_this_installation(live: Live) -> None:
    reply = live.http.get("/")
    assert reply.text.startswith("<!doctype html>")
    for name in re.findall(r'(?:href|src)="([^"#]+)"', reply.text):
        assert live.http.get(f"/{name}").status_code == 200


def test_no_page_is_no_error(launch: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page.load_page, "__defaults__", (tmp_path / "nothing",))
    assert launch().http.get("/").json()["api"] == "/v1"


def test_the_log_of_a_request(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.say("</think>x")
    with caplog.at_level(logging.INFO, logger="pelagos.serving"):
        live.chat("what I say is mine")
        name = "pelagos.serving.middleware"
        wait_for(lambda: any(record.name == name for record in caplog.records))  # written after the answer went out
    [record] = [record for record in caplog.records if record.name == name]
    assert record.getMessage() == "POST /v1/chat/completions 200"
    assert (record.seconds >= 0, record.prompt_tokens) == (True, len(live.last.prompt_ids))
    assert (record.generated_tokens, record.finish_reason) == (3, "stop")
    assert "mine" not in json.dumps(vars(record), default=str)
