"""How long work reports on itself: three methods, three voices (rich bars, plain lines, silence)."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from rich.progress import TaskID

__all__ = ["Lines", "Progress", "RichBars", "Silent", "for_terminal"]


class Progress(Protocol):
    """What a run needs of the outside world while it works."""

    def start(self, label: str, total: int) -> None:
        """A new stage of `total` examples begins."""

    def advance(self, done: int, info: str) -> None:
        """`done` examples of the stage are settled; `info` is a few words such as "31 broken"."""

    def note(self, text: str) -> None:
        """A sentence that the user should read."""


class Silent:
    """Says nothing."""

    def start(self, label: str, total: int) -> None: ...

    def advance(self, done: int, info: str) -> None: ...

    def note(self, text: str) -> None: ...


class Lines:
    """Plain lines on stderr, at most one every two seconds and one at the end of each stage."""

    def __init__(self, every_seconds: float = 2.0) -> None:
        self._every = every_seconds
        self._label, self._total, self._last, self._begun = "", 0, 0.0, 0.0

    def start(self, label: str, total: int) -> None:
        self._label, self._total = label, total
        self._begun = self._last = time.monotonic()

    def advance(self, done: int, info: str) -> None:
        now = time.monotonic()
        if done < self._total and now - self._last < self._every:
            return
        self._last = now
        print(f"{self._label}: {done}/{self._total}, {info}, {now - self._begun:.1f} s", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(f"note: {text}", file=sys.stderr, flush=True)


class RichBars:
    """One rich progress bar a stage, on stderr; a context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        self._bars = Bars(
            TextColumn("{task.description:<14}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, label: str, total: int) -> None:
        self._task = self._bars.add_task(label, total=total, info="")

    def advance(self, done: int, info: str) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done, info=info)

    def note(self, text: str) -> None:
        self._bars.console.print(f"note: {text}", highlight=False, markup=False)


def for_terminal() -> RichBars | Lines:
    """Bars where somebody watches, lines where stderr is a file or a pipe."""
    return RichBars() if sys.stderr.isatty() else Lines()
