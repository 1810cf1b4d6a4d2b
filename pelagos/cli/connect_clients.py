"""What each client must be told to use a server: one function per client, from the server's real context length.

The words that count for a cache and for long prompts: clients give up early, send changing headers into the prompt, and
take a model they do not know for a short one. Each setting below is there for one of these.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pelagos.common.errors import UsageError

NO_KEY = "none"  # clients want some key, servers without keys take any
LONG_CONTEXT = 1_000_000
COMPACT_SHARE = 0.75  # of the context, where a client sums the chat up: the answer must still fit
PATIENCE_MS = 30 * 60_000  # reading a long prompt for the first time may take minutes
AGENT_PROMPT = 32_768  # what agents send before the first word of the user


@dataclass(frozen=True, kw_only=True)
class Server:
    """``url`` has no slash and no /v1 at its end."""

    url: str
    model: str
    context_length: int
    key: str | None

    @property
    def compact_at(self) -> int:
        return int(self.context_length * COMPACT_SHARE)

    @property
    def max_output(self) -> int:
        return min(131_072, max(1, self.context_length // 4))


@dataclass(frozen=True, kw_only=True)
class JsonFile:
    """Values that belong in a JSON file. ``optional``: those that yield to what is there already."""

    path: Path
    values: Mapping[str, Any]
    optional: Mapping[str, Any] = field(default_factory=dict)

    def shown(self) -> str:
        return json.dumps({**self.optional, **self.values}, indent=2, ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class YamlFile:
    """Plain ``key: value`` lines at the top level of a YAML file."""

    path: Path
    values: Mapping[str, str]

    def shown(self) -> str:
        return "\n".join(f"{key}: {json.dumps(value)}" for key, value in self.values.items())


@dataclass(frozen=True, kw_only=True)
class OwnFile:
    """A whole file that nobody else writes to."""

    path: Path
    text: str

    def shown(self) -> str:
        return self.text.rstrip("\n")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Files to write, variables for a client that reads no file, code to start from, the command to start with."""

    client: str
    files: tuple[JsonFile | YamlFile | OwnFile, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    example: str = ""
    start: str = ""
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {
            "client": self.client,
            "files": [{"path": str(file.path), "content": file.shown()} for file in self.files],
            "variables": dict(self.variables),
            "example": self.example,
            "start": self.start,
            "notes": list(self.notes),
        }


def claude_code(server: Server) -> Setup:
    """Claude Code: the variables of ``env`` in its user settings."""
    name = server.model + ("[1m]" if server.context_length >= LONG_CONTEXT else "")
    values = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.key or NO_KEY,
        "ANTHROPIC_MODEL": name,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": name,
        "ANTHROPIC_DEFAULT_SONNET_MODEL": name,
        "ANTHROPIC_DEFAULT_HAIKU_MODEL": name,
        "CLAUDE_CODE_SUBAGENT_MODEL": name,
        "CLAUDE_CODE_EFFORT_LEVEL": "max",
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(server.compact_at),
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(min(32_000, server.max_output)),
        # a line that changes with each request, at the front of the prompt, would make every prompt new
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": str(PATIENCE_MS),
    }
    folder = _folder("CLAUDE_CONFIG_DIR", ".claude")
    notes = (
        ["an ANTHROPIC_API_KEY in your shell goes before these settings: `unset ANTHROPIC_API_KEY`"]
        if os.environ.get("ANTHROPIC_API_KEY")
        else []
    )
    return Setup(
        client="claude-code",
        files=(JsonFile(path=folder / "settings.json", values={"env": values}),),
        start="claude",
        notes=(*notes, *_too_short(server, "Claude Code")),
    )


def codex(server: Server) -> Setup:
    """Codex: a profile in a file of its own, so that the user's config.toml stays as it is."""
    header = f"http_headers = {{ Authorization = {_toml(f'Bearer {server.key}')} }}\n" if server.key else ""
    text = (
        f"model = {_toml(server.model)}\n"
        'model_provider = "pelagos"\n'
        f"model_context_window = {server.context_length}\n"
        f"model_auto_compact_token_limit = {server.compact_at}\n"
        'model_reasoning_effort = "high"\n'
        "\n"
        "[model_providers.pelagos]\n"
        'name = "Pelagos"\n'
        f"base_url = {_toml(server.url + '/v1')}\n"
        'wire_api = "responses"\n'
        f"{header}"
        f"stream_idle_timeout_ms = {PATIENCE_MS}\n"
    )
    return Setup(
        client="codex",
        files=(OwnFile(path=_folder("CODEX_HOME", ".codex") / "pelagos.config.toml", text=text),),
        start="codex --profile pelagos",
        notes=_too_short(server, "Codex"),
    )


def opencode(server: Server) -> Setup:
    """OpenCode: a provider of its own; it becomes the default model only if there is none."""
    model = {
        "name": server.model,
        "reasoning": True,
        "tool_call": True,
        "interleaved": {"field": "reasoning_content"},  # thinking goes back with tool calls, as the prompt has it
        "limit": {"context": server.context_length, "output": server.max_output},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Pelagos",
        "options": {"baseURL": f"{server.url}/v1", "apiKey": server.key or NO_KEY, "timeout": PATIENCE_MS},
        "models": {server.model: model},
    }
    name = f"pelagos/{server.model}"
    return Setup(
        client="opencode",
        files=(
            JsonFile(
                path=_folder("XDG_CONFIG_HOME", ".config") / "opencode" / "opencode.json",
                values={"provider": {"pelagos": provider}},
                optional={"$schema": "https://opencode.ai/config.json", "model": name},
            ),
        ),
        start=f"opencode --model {name}",
        notes=_too_short(server, "OpenCode"),
    )


def aider(server: Server) -> Setup:
    """aider: three lines of its settings, and what the model can do."""
    name = f"openai/{server.model}"
    about = {
        "max_tokens": server.max_output,
        "max_input_tokens": server.context_length,
        "max_output_tokens": server.max_output,
        "litellm_provider": "openai",
        "mode": "chat",
    }
    home = Path.home()
    return Setup(
        client="aider",
        files=(
            YamlFile(
                path=home / ".aider.conf.yml",
                values={
                    "model": name,
                    "openai-api-base": f"{server.url}/v1",
                    "openai-api-key": server.key or NO_KEY,
                    "timeout": str(PATIENCE_MS // 1000),
                },
            ),
            JsonFile(path=home / ".aider.model.metadata.json", values={name: about}),
        ),
        start="aider",
    )


def openai(server: Server) -> Setup:
    """The openai packages: variables of the shell, which they read, and a first program."""
    example = (
        "from openai import OpenAI\n\n"
        "client = OpenAI()  # reads the two variables\n"
        f"stream = client.chat.completions.create(model={json.dumps(server.model)}, stream=True,\n"
        '    messages=[{"role": "user", "content": "Hello"}])\n'
        "for chunk in stream:\n"
        '    print(chunk.choices[0].delta.content or "", end="")'
    )
    return Setup(
        client="openai",
        variables={"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": server.key or NO_KEY},
        example=example,
    )


def _folder(variable: str, name: str) -> Path:
    """Where another program keeps its settings: the folder in its own variable, else one in the user's home."""
    given = os.environ.get(variable, "")
    if given and not Path(given).is_absolute():
        raise UsageError(f"{variable} must be an absolute path, got {given[:200]!r}")
    return Path(given) if given else Path.home() / name


def _toml(text: str) -> str:
    """A TOML basic string, which for printable text is a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def _too_short(server: Server, client: str) -> tuple[str, ...]:
    if server.context_length >= AGENT_PROMPT:
        return ()
    return (
        f"{client} sends a prompt of some 20,000 tokens of its own, and {server.model} reads at most "
        f"{server.context_length:,}: use a model with a longer context",
    )


CLIENTS: dict[str, Callable[[Server], Setup]] = {
    "claude-code": claude_code,
    "codex": codex,
    "opencode": opencode,
    "aider": aider,
    "openai": openai,
}
