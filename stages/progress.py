"""Progress of a long loop: a bar with rate and time left, or a line every ten seconds.

The bar is for a terminal, the lines for a log.

Use: `with Progress("distill", total=n, unit="pictures") as progress:`.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts work done and says how fast it goes and when it will end.

    `start` is the amount that an earlier, stopped run already did: it fills the bar but does not
    enter the rate. With `show=False` (ranks other than the first) nothing is printed.
    """

    def __init__(
        self, title: str, *, total: int, unit: str, start: int = 0, show: bool = True
    ) -> None:
        self.title, self.total, self.unit, self.done, self.start = title, total, unit, start, start
        self._show = show
        self._console = Console(highlight=False)
        self._bar: RichProgress | None = None
        if show and self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=total, completed=start, figures="")
        self._began = self._last_line = time.monotonic()

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._show and error is None and self.done > self.start:
            self._print_line("")

    def advance(self, amount: int = 1, **figures: float) -> None:
        """Add `amount` units done; `figures` (such as a loss) are shown beside the count."""
        self.done += amount
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        if self._bar:
            self._bar.update(
                self._task, advance=amount, figures=f"{self._rate():.4g} {self.unit}/s  {text}"
            )
        elif self._show and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._print_line(text)

    def log(self, text: str) -> None:
        """Print a line that stays, above the bar."""
        if self._show:
            self._console.print(text, markup=False, soft_wrap=True)

    def _rate(self) -> float:
        return (self.done - self.start) / max(time.monotonic() - self._began, 1e-9)

    def _print_line(self, figures: str) -> None:
        self._last_line = time.monotonic()
        left_seconds = (self.total - self.done) / max(self._rate(), 1e-9)
        print(
            f"{self.title}: {self.done}/{self.total} {self.unit}  {self._rate():.4g}/s  "
            f"{left_seconds:.0f} s left  {figures}".rstrip(),
            flush=True,
            file=sys.stdout,
        )
