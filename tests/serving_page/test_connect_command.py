"""``pelagos connect``: what clients are told, and that nothing of theirs is lost when it is written."""

import json
import re
import socket
import stat
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer

from pelagos.cli import connect_files
from pelagos.cli.connect_clients import CLIENTS, Server
from pelagos.cli.main import main

FILES = {
    "claude-code": [".claude/settings.json"],
    "codex": [".codex/pelagos.config.toml"],
    "opencode": [".config/opencode/opencode.json"],
    "aider": [".aider.conf.yml", ".aider.model.metadata.json"],
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("CLAUDE_CONFIG_DIR", "CODEX_HOME", "XDG_CONFIG_HOME", "ANTHROPIC_API_KEY"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer(models={"flash": 1_048_576, "nano": 8192}) as server:
        yield server


@pytest.fixture(scope="module")
def locked() -> Iterator[FakeServer]:
    with FakeServer(locked=True) as server:
        yield server


def setup(client: str, **fields: Any) -> Any:
    server = {"url": "http://127.0.0.1:8000", "model": "flash", "context_length": 1_048_576, "key": None}
    return CLIENTS[client](Server(**{**server, **fields}))


@pytest.mark.parametrize("client", CLIENTS)
def test_settings_are_shown(client: str, server: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", client, "--url", server.url]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(f"# {server.url} answers: model flash, 1,048,576 tokens of context\n")
    assert server.url in shown.out.split("\n", 1)[1]
    assert list(home.iterdir()) == []
    assert main(["connect", client, "--url", server.url + "/v1/", "--model", "nano", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["client"] == client
    assert "nano" in json.dumps(value)
    assert "/v1/v1" not in json.dumps(value)
    assert bool(value["notes"]) == (
        client in ("claude-code", "codex", "opencode")
    )  # 8192 tokens are too few for agents


def test_claude_code_knows_the_real_context(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = setup("claude-code").files[0].values["env"]
    assert env["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:8000"
    assert env["ANTHROPIC_MODEL"] == "flash[1m]"
    assert env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "786432"
    assert all(isinstance(value, str) for value in env.values())
    short = setup("claude-code", context_length=65_536, key="k").files[0].values["env"]
    assert short["ANTHROPIC_MODEL"] == "flash"
    assert short["ANTHROPIC_AUTH_TOKEN"] == "k"
    assert short["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "16384"
    assert setup("claude-code").notes == ()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    assert "unset ANTHROPIC_API_KEY" in setup("claude-code").notes[0]


def test_codex_has_a_profile_of_its_own(home: Path) -> None:
    value = tomllib.loads(setup("codex", key='a"b\\').files[0].text)
    assert value["model"] == "flash"
    assert value["model_context_window"] == 1_048_576
    provider = value["model_providers"]["pelagos"]
    assert provider["base_url"] == "http://127.0.0.1:8000/v1"
    assert provider["wire_api"] == "responses"
    assert provider["http_headers"] == {"Authorization": 'Bearer a"b\\'}
    assert "http_headers" not in tomllib.loads(setup("codex").files[0].text)["model_providers"]["pelagos"]


@pytest.mark.parametrize("client", FILES)
def test_written_into_an_empty_home(
    client: str, server: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["connect", client, "--url", server.url, "--write"]) == 0
    written = [home / name for name in FILES[client]]
    assert sorted(path for path in home.rglob("*") if path.is_file()) == sorted(written)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in written)
    assert capsys.readouterr().out.splitlines()[: len(written)] == [f"wrote {path.resolve()}" for path in written]
    assert main(["connect", client, "--url", server.url, "--write"]) == 0
    assert capsys.readouterr().out.count("has these settings already") == len(written)
    assert sorted(path for path in home.rglob("*") if path.is_file()) == sorted(written)


def test_other_settings_stay_and_a_backup_is_kept(
    server: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    claude = {"permissions": {"allow": ["x"]}, "env": {"FOO": "é", "ANTHROPIC_BASE_URL": "old"}, "model": "opus"}
    opencode = {"model": "other/model", "provider": {"mine": {"name": "m"}, "pelagos": {"extra": 1}}, "theme": "t"}
    aider = "# mine\nmodel: gpt\nread:\n  - a.md\n\n# openai-api-base: commented\ndark-mode: true"
    olds = {
        ".claude/settings.json": json.dumps(claude, ensure_ascii=False),
        ".config/opencode/opencode.json": json.dumps(opencode),
        ".aider.conf.yml": aider,
        ".codex/config.toml": "model = 'x'\n",
    }
    for name, text in olds.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
        (home / name).chmod(0o640)
    for client in FILES:
        assert main(["connect", client, "--url", server.url, "--write"]) == 0
    assert capsys.readouterr().out.count("kept ") == 3
    new = json.loads((home / ".claude/settings.json").read_text())
    assert new["permissions"] == claude["permissions"]
    assert new["model"] == "opus"
    assert new["env"]["FOO"] == "é"
    assert new["env"]["ANTHROPIC_BASE_URL"] == server.url
    new = json.loads((home / ".config/opencode/opencode.json").read_text())
    assert new["model"] == "other/model"  # the user's default stays
    assert new["provider"]["mine"] == {"name": "m"}
    assert new["provider"]["pelagos"]["extra"] == 1
    assert new["provider"]["pelagos"]["models"]["flash"]["limit"] == {"context": 1_048_576, "output": 131_072}
    lines = (home / ".aider.conf.yml").read_text().splitlines()
    assert lines[:3] == ["# mine", 'model: "openai/flash"', "read:"]
    assert lines[3:7] == ["  - a.md", "", "# openai-api-base: commented", "dark-mode: true"]
    assert f'openai-api-base: "{server.url}/v1"' in lines
    assert (home / ".codex/config.toml").read_text() == olds[".codex/config.toml"]
    for name in list(olds)[:3]:
        [backup] = (home / name).parent.glob(f"{Path(name).name}.*.bak")
        assert backup.read_text() == olds[name]
        assert stat.S_IMODE(backup.stat().st_mode) == stat.S_IMODE((home / name).stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("client", "name", "text", "words"),
    [
        ("claude-code", ".claude/settings.json", '{"a": 1, // mine\n}', "must be JSON"),
        ("claude-code", ".claude/settings.json", "[]", "must hold a JSON object"),
        ("claude-code", ".claude/settings.json", '{"env": "x"}', "something else than an object as 'env'"),
        ("opencode", ".config/opencode/opencode.jsonc", "{}", "opencode.jsonc has the settings"),
        ("opencode", ".config/opencode/opencode.json", '{"provider": {"pelagos": 7}}', "as 'pelagos'"),
        ("aider", ".aider.conf.yml", "model:\n  - a\n", "has model over several lines"),
        ("aider", ".aider.conf.yml", "model: a\nmodel: b\n", "has model twice"),
        ("aider", ".aider.model.metadata.json", "{", "must be JSON"),
    ],
)
def test_files_that_cannot_be_changed_stay(
    client: str, name: str, text: str, words: str, server: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_text(text)
    assert main(["connect", client, "--url", server.url, "--write"]) == 2
    assert words in capsys.readouterr().err
    assert [path for path in home.rglob("*") if path.is_file()] == [home / name]
    assert (home / name).read_text() == text


def test_a_link_stays_a_link(server: FakeServer, home: Path) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles" / "settings.json").write_text("{}")
    (home / ".claude").mkdir()
    (home / ".claude" / "settings.json").symlink_to(home / "dotfiles" / "settings.json")
    assert main(["connect", "claude-code", "--url", server.url, "--write"]) == 0
    assert (home / ".claude" / "settings.json").is_symlink()
    assert "env" in json.loads((home / "dotfiles" / "settings.json").read_text())


def test_backups_never_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect_files.time, "strftime", lambda _: "now")
    for text in ("one", "two", "three"):
        list(connect_files._write(tmp_path / "x", text))
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"x": "three", "x.now.bak": "one", "x.now-1.bak": "two"}


def test_folders_of_the_clients_own_variables(server: FakeServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEX_HOME", str(home / "elsewhere"))
    assert main(["connect", "codex", "--url", server.url, "--write"]) == 0
    assert (home / "elsewhere" / "pelagos.config.toml").is_file()
    monkeypatch.setenv("CODEX_HOME", "relative")
    assert main(["connect", "codex", "--url", server.url]) == 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (
            ["codex", "--url", "http://127.0.0.1:{free}"],
            r"no server answers at http://127.0.0.1:\d+ \(.*\): start one",
            1,
        ),
        (["codex", "--url", "{locked}"], r"wants an API key: give it with --key", 2),
        (["codex", "--url", "{locked}", "--key", "wrong"], r"does not take this --key", 2),
        (["codex", "--url", "{locked}", "--key", "a b"], r"--key must be printable", 2),
        (["codex", "--url", "{server}", "--model", "pro"], r"--model must be one of flash, nano, .* not 'pro'", 2),
        (["codex", "--url", "{server}/elsewhere"], r"has no /v1/models \(status 404\)", 2),
        (["codex", "--url", "ftp://x"], r"--url must be like", 2),
        (["codex", "--url", "127.0.0.1:8000"], r"--url must be like", 2),
        (["codex", "--url", "http://x:99999"], r"--url must be like", 2),
        (["emacs", "--url", "{server}"], r"CLIENT must be one of claude-code, ", 2),
        (["openai", "--url", "{server}", "--write"], r"openai reads its settings from variables", 2),
        (["codex", "--url", "{server}", "--write", "--json"], r"give one of the two", 2),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    words: str,
    code: int,
    server: FakeServer,
    locked: FakeServer,
    home: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"server": server.url, "locked": locked.url, "free": free_port()}
    assert main(["connect", *(argument.format(**places) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error)
    assert list(home.iterdir()) == []


def test_the_right_key(locked: FakeServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", "openai", "--url", locked.url, "--key", "right"]) == 0
    assert "export OPENAI_API_KEY=right\n" in capsys.readouterr().out


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"data": 7}', b'{"data": [{}]}', b'{"data": [{"id": 7}]}'])
def test_something_else_answers(
    body: bytes, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer() as other:

        def answer(handler: Any) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.wfile.write(body)

        monkeypatch.setattr(other.RequestHandlerClass, "do_GET", answer)
        assert main(["connect", "codex", "--url", other.url]) == 2
    assert "is no list of models" in capsys.readouterr().err
