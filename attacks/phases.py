"""Attacks whose rows stand at different places of their algorithm, and send one image a round all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from robustgen.attacks.base import State

__all__ = ["route", "where"]

S = TypeVar("S", bound=State)


def route(s: S, phase: Tensor, acts: Sequence[Callable[[S], S]]) -> S:
    """Each row through the function of its phase (B,) int64; the rows come back in the order in which they came."""
    rows = [(phase == k).nonzero().flatten() for k in range(len(acts))]
    met = [(index, act) for index, act in zip(rows, acts, strict=True) if len(index)]
    if len(met) == 1:
        return met[0][1](s)
    parts = [act(s.take(index)) for index, act in met]
    return reduce(lambda a, b: a.join(b), parts).take(torch.cat([index for index, _ in met]).argsort())


def where(s: S, rows: Tensor, act: Callable[[S], S]) -> S:
    """The rows that are marked (B,) bool through a function, the others as they are."""
    return route(s, rows.long(), (lambda part: part, act))
