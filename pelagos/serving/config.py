"""What a server is told at its start."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from pelagos.common.errors import ConfigError
from pelagos.common.fields import check_fields, setting

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one request, checked before work is done for it."""

    max_body_bytes: int = setting(64 * MIB, help="bytes of a request body", low=1024, high=1 << 30)
    max_messages: int = setting(20_000, help="messages, or input items, of one request", low=1, high=1 << 20)
    max_tools: int = setting(512, help="tools of one request", low=1, high=512)
    max_choices: int = setting(16, help="answers to one prompt (n)", low=1, high=128)
    max_prompts: int = setting(64, help="prompts of one completion request", low=1, high=4096)
    max_buffered_tokens: int = setting(
        1 << 17, help="generated tokens that wait for a slow reader before its request is ended", low=16, high=1 << 24
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """One server. ``aliases``: further names that requests may give the model, shown in the list of models."""

    host: str = setting("127.0.0.1", help="address to listen on; beyond this machine only with API keys")
    port: int = setting(8000, help="port to listen on; 0 takes a free one", low=0, high=65535)
    model_name: str = setting("pelagos", help="name of the model in answers and in the list of models")
    aliases: tuple[str, ...] = setting((), help="further names of the model")
    api_key_file: Path | None = setting(None, help="file of keys, one `name:sha256` a line, read again when it changes")
    cors_origins: tuple[str, ...] = setting((), help="web origins that may call the server, such as https://a.example")
    trace: bool = setting(False, help="one OpenTelemetry span for each request")
    vllm_metrics: bool = setting(False, help="vLLM's names too on /metrics, for dashboards made for it")
    store_dir: Path | None = setting(None, help="folder of stored responses; None keeps them in memory alone")
    max_stored: int = setting(10_000, help="stored responses to keep, oldest dropped first", low=1, high=1 << 24)
    max_stored_bytes: int = setting(1024 * MIB, help="bytes of stored responses to keep", low=1024, high=1 << 50)
    max_turns: int = setting(20_000, help="answers of agents to remember to the token", low=1, high=1 << 24)
    max_turn_bytes: int = setting(256 * MIB, help="bytes of remembered answers to keep", low=1024, high=1 << 50)
    max_context: int | None = setting(None, help="tokens of prompt and answer; None: what the model takes", low=2)
    default_temperature: float = setting(1.0, help="temperature of requests that name none", low=0.0, high=2.0)
    default_top_p: float = setting(1.0, help="top_p of requests that name none", low=0.0, high=1.0)
    pieces_per_second: float = setting(
        250.0, help="pieces sent by all streams together; tokens that come faster share pieces", low=1.0, high=1e6
    )
    keep_alive_seconds: float = setting(10.0, help="longest silence of a stream", low=0.01, high=60.0)
    request_timeout: float | None = setting(None, help="seconds that one request may take", low=1.0, high=1e9)
    drain_seconds: float = setting(30.0, help="time that running requests have at shutdown", low=0.0, high=86400.0)
    num_preparers: int = setting(2, help="threads that render and check requests", low=1, high=64)
    limits: Limits = setting(Limits(), help="bounds on one request")

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("aliases", "cors_origins"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
                raise ConfigError(f"{name} must be texts that are not empty")
        for origin in self.cors_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ConfigError(f"cors_origins must be origins such as https://a.example, or *, got {origin!r}")
        if self.default_top_p == 0:
            raise ConfigError("default_top_p must be above 0, got 0")
        if self.api_key_file is None and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host} can be reached from other machines: give an api_key_file too, or listen on 127.0.0.1"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every name of the model, its own first."""
        return (self.model_name, *(name for name in self.aliases if name != self.model_name))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
