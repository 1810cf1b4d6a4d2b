"""The exceptions that a user of Pelagos may see.

Whatever input does, it ends in one of these: the message is one sentence that names the field or file and what to
change. Programming mistakes stay AssertionError, TypeError and the like. This module imports nothing of ours.
"""

from collections.abc import Sequence


class PelagosError(Exception):
    """Base of everything a user can cause. ``exit_code`` is what a command ends with: 2 bad input, 1 other failures."""

    exit_code: int = 2


class UsageError(PelagosError, ValueError):
    """An argument, option, prompt or request that cannot be used as given."""


class ConfigError(PelagosError, ValueError):
    """A config field that is missing, of the wrong type or out of range; the message names the field and the range."""


class TokenizerError(PelagosError, ValueError):
    """A tokenizer file that is missing or broken, or text and ids it cannot convert."""


class CheckpointError(PelagosError, ValueError):
    """A checkpoint folder that cannot be used. ``problems`` holds every problem found, one sentence each."""

    def __init__(self, place: str, problems: Sequence[str]) -> None:
        self.place = place
        self.problems = list(problems)
        if len(self.problems) == 1:
            message = f"{place}: {self.problems[0]}"
        else:
            message = f"{place}: {len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)
        super().__init__(message)


class ResourceError(PelagosError, RuntimeError):
    """The machine lacks what the work needs (memory, disk space, a device); nothing was changed."""

    exit_code = 1


class OverloadedError(ResourceError):
    """There is no room for a request now; the same request may succeed after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
