"""API keys: a file of names and hashes, read again when it changes. Keys themselves are nowhere, also not in the log.

One key a line, ``name:hash``, where the hash is the SHA-256 of the key in hex; ``#`` begins a comment. A name may stand
on several lines, so that an old key lives on beside its successor for a while.
"""

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from pelagos.common.errors import ConfigError
from pelagos.serving.errors import ApiError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1 << 20
LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-fA-F]{64})")


class Keys:
    """The keys of a file. A file that becomes unreadable or wrong while the server runs leaves the last good ones in
    force, and the log says so."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if the file cannot be used."""
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._names: dict[str, str] = {}
        self._load()

    def name_of(self, key: str | None) -> str:
        """The name of a key. Raises ApiError 401 if it is missing or not one of them."""
        self._reload()
        if not key:
            raise ApiError(
                401,
                "an API key is needed: send the header `Authorization: Bearer KEY` or `x-api-key: KEY`",
                code="no_key",
            )
        digest = hashlib.sha256(key.encode()).hexdigest()
        found = None
        for known, name in self._names.items():  # all of them, so that time tells nothing
            if hmac.compare_digest(known, digest):
                found = name
        if found is None:
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return found

    def _reload(self) -> None:
        try:
            if self._stamp() != self._seen:
                self._load()
        except (ConfigError, OSError) as error:
            stamp = self._stamp_or_none()
            if stamp != self._seen:
                self._seen = stamp
                logger.error("the API keys are not read again, the old ones stay: %s", error)

    def _load(self) -> None:
        try:
            stamp = self._stamp()
            if stamp[1] > MAX_FILE_BYTES:
                raise ConfigError(f"{self._path} must have at most {MAX_FILE_BYTES:,} bytes")
            text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"the API key file {self._path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"the API key file {self._path} is not UTF-8 text") from error
        names = {}
        for number, line in enumerate(text.splitlines(), 1):
            entry = line.split("#")[0].strip()
            if not entry:
                continue
            match = LINE.fullmatch(entry)
            if match is None:
                raise ConfigError(
                    f"{self._path}, line {number}: must be `name:hash`, the hash 64 hex digits of SHA-256"
                )
            names[match[2].lower()] = match[1]
        if not names:
            raise ConfigError(
                f"{self._path} has no key: add a line `name:hash`, the hash that of `printf %s KEY | sha256sum`"
            )
        self._names, self._seen = names, stamp

    def _stamp(self) -> tuple[int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size

    def _stamp_or_none(self) -> tuple[int, int] | None:
        try:
            return self._stamp()
        except OSError:
            return None


def bearer_of(headers: Mapping[str, str]) -> str | None:
    """The key that a request shows, in OpenAI's header or in Anthropic's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key", "").strip() or None
