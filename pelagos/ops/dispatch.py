"""Which implementation runs for each op, and why: for the log and for ``pelagos doctor``."""

from dataclasses import dataclass

from pelagos.ops.contract import OPS


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The implementation chosen for one op."""

    op: str
    implementation: str
    reason: str


def choices() -> list[Choice]:
    """One entry per op. This version has the reference alone, on every device."""
    reason = "the only implementation in this version: plain PyTorch, exact, not tuned for speed"
    return [Choice(op=name, implementation=op.reference.__module__, reason=reason) for name, op in OPS.items()]
