"""A progress bar for people who wait."""

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE_SECONDS = 2.0


class PatientBar:
    """A bar on standard error that appears when work takes longer than two seconds, and only on a terminal."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._started = time.monotonic()
        self._bar: Progress | None = None

    def show(self, num_done: int, num_total: int) -> None:
        """Tell how far the work is."""
        if not sys.stderr.isatty() or time.monotonic() - self._started < PATIENCE_SECONDS:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task(self._text)
        self._bar.update(self._task, completed=num_done, total=num_total)

    def stop(self) -> None:
        """Take the bar away, if it is there. Must be called at the end of the work, however it ends."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
