"""Work that several processes share: each takes what no other one is at, and ends with all results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from robustgen.errors import BusyError

__all__ = ["in_turn"]

_PATIENCE = (2.0, 32.0)  # seconds between two looks at what other processes are doing: at first, at most


_T = TypeVar("_T")
_R = TypeVar("_R")


def in_turn(
    tasks: Iterable[_T], work: Callable[[_T], _R | None], announce: Callable[[_T], None]
) -> Iterator[tuple[_T, _R]]:
    """Tasks with their results, in their order but for those that another process is at: they are asked for again.

    Args:
        tasks: what there is to do.
        work: does one, or finds it done; None where time is over, which ends all. It raises `BusyError` where another
            process writes the folder of that task.
        announce: told of each task once, before the first attempt.
    """
    waiting, told, patience = list(tasks), 0, _PATIENCE[0]
    while waiting:
        for place, task in enumerate(waiting):
            if place >= told:
                announce(task)
                told = place + 1
            try:
                result = work(task)
            except BusyError:
                continue
            if result is None:
                return
            del waiting[place]
            told, patience = told - 1, _PATIENCE[0]
            yield task, result
            break
        else:
            time.sleep(patience)
            patience = min(2 * patience, _PATIENCE[1])  # a look may read data, so that a long wait would cost a core
