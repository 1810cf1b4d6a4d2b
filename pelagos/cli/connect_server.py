"""The server that a client is to be connected to: is it there, and what does it have?"""

import http.client
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from pelagos.cli.connect_clients import Server
from pelagos.common.errors import PelagosError, ResourceError, UsageError
from pelagos.common.files import parse_json

SECONDS = 10
MAX_BYTES = 1 << 20
ASSUMED_CONTEXT = 131_072  # for servers that do not say


def find_server(url: str, model: str | None, key: str | None) -> Server:
    """Ask the server at ``url`` for its models and choose one.

    Raises ResourceError if no server answers, UsageError for an address that is none, a key that the server does not
    take, a model that it does not have, and an answer that is no list of models.
    """
    base = _base(url)
    if key is not None and not (key.isascii() and key.isprintable() and key and " " not in key):
        raise UsageError("--key must be printable ASCII characters without spaces")
    models = _models(base, key)
    chosen = next(iter(models)) if model is None else model
    if chosen not in models:
        raise UsageError(f"--model must be one of {', '.join(models)}, which {base} has, not {chosen!r}")
    return Server(url=base, model=chosen, context_length=models[chosen] or ASSUMED_CONTEXT, key=key)


def _base(url: str) -> str:
    parts = urlsplit(url)
    try:
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise UsageError(f"--url must be like http://127.0.0.1:8000, not {url[:200]!r}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _models(base: str, key: str | None) -> dict[str, int | None]:
    """The context length of each model, None where the server does not say."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = Request(f"{base}/v1/models", headers=headers)
    local = urlsplit(base).hostname in ("127.0.0.1", "localhost", "::1")
    opener = build_opener(*([ProxyHandler({})] if local else []))  # a proxy cannot reach this machine's own server
    try:
        with opener.open(request, timeout=SECONDS) as response:
            data = response.read(MAX_BYTES)
    except HTTPError as error:
        if error.code in (401, 403):
            wants = "wants an API key: give it with --key" if key is None else "does not take this --key"
            raise UsageError(f"the server at {base} {wants}") from None
        raise UsageError(f"what answers at {base} has no /v1/models (status {error.code}): is --url right?") from None
    except (URLError, OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ResourceError(
            f"no server answers at {base} ({reason}): start one with `pelagos serve`, or give its address with --url"
        ) from None
    return _listed(base, data)


def _listed(base: str, data: bytes) -> dict[str, int | None]:
    try:
        value = parse_json(data, base)
        entries = {entry["id"]: entry.get("context_length", entry.get("max_model_len")) for entry in value["data"]}
    except (PelagosError, KeyError, TypeError, AttributeError):
        entries = {}
    good = {
        name: length if type(length) is int and length > 0 else None
        for name, length in entries.items()
        if isinstance(name, str) and name and name.isprintable()
    }
    if not good:
        raise UsageError(f"what answers at {base}/v1/models is no list of models: is --url right?")
    return good
