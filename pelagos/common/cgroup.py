"""What a Linux control group (a container, a batch job) lets this process use, for cgroup versions 1 and 2.

A limit on any group from the process's own up to the root holds, so the smallest one counts. Inside a container the
path in /proc/self/cgroup may be one of the host that is not there; the root, always looked at, is then the container.
Where a file is missing or says "no limit" the answer is None, as it is on systems without control groups.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_NO_LIMIT = 1 << 62  # version 1 writes the largest multiple of a memory page that fits 63 bits


def cpu_quota(root: Path = Path("/")) -> float | None:
    """CPU time per time, in cores: 1.5 means one core and a half."""
    quotas = []
    for folder in _groups(root, "cpu"):
        words = _read(folder / "cpu.max").split() or [
            *_read(folder / "cpu.cfs_quota_us").split(),
            *_read(folder / "cpu.cfs_period_us").split(),
        ]
        if len(words) == 2 and words[0].isdecimal():  # not "max" (version 2) and not -1 (version 1)
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Bytes of RAM that this process and its group may use."""
    return min((limit for _, limit in _limited_groups(root)), default=None)


def memory_left(root: Path = Path("/")) -> int | None:
    """Bytes of RAM until the limit. File cache that can be dropped counts as free."""
    left = []
    for folder, limit in _limited_groups(root):
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        statistics = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
        droppable = int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
        left.append(max(0, limit - int(used or 0) + droppable))
    return min(left, default=None)


def _limited_groups(root: Path) -> Iterator[tuple[Path, int]]:
    for folder in _groups(root, "memory"):
        text = (_read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")).strip()
        if text.isdecimal() and int(text) < _NO_LIMIT:
            yield folder, int(text)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's group and of every group around it, in both versions' places."""
    mount = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            base = mount
        elif controller in controllers.split(","):
            base = mount / controller
        else:
            continue
        group = PurePosixPath(path)
        for place in (group, *group.parents):
            yield base / place.relative_to("/")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
