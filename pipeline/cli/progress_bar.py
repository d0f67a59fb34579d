"""A progress bar for functions that call back with the numbers done and in all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from stages.progress import Progress


@contextlib.contextmanager
def progress_bar(
    title: str, unit: str, *, show: bool = True
) -> Iterator[Callable[[int, int], None]]:
    """A callback for (number done, number of all) that shows progress and the time left."""
    with contextlib.ExitStack() as stack:
        shown: list[Progress] = []

        def on_done(num_done: int, num_all: int) -> None:
            if not shown:
                progress = Progress(title, total=num_all, unit=unit, show=show)
                shown.append(stack.enter_context(progress))
            shown[0].advance(num_done - shown[0].done)

        yield on_done
