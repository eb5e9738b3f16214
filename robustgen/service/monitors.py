"""Defences that watch queries: each says how suspicious a query is beside earlier ones, and remembers it."""

from __future__ import annotations

import json
import math
import secrets
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.fields import WHOLE, check_value

__all__ = ["MONITORS", "Blacklight", "Monitor", "Stateful", "make_monitor", "read_monitor"]

_ACCOUNTS = 200  # remembered; the one that has been silent longest is forgotten first


@dataclass(kw_only=True)
class Monitor(ABC):
    """Sees every query in its order; an alarm is a suspicion at or above the threshold."""

    threshold: float = math.inf
    kind: ClassVar[str]

    @abstractmethod
    def look(self, account: str, x: Tensor) -> float:
        """How suspicious the image x (C, H, W) in [0, 1] is; -inf while there is too little to say. Remembers it."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Its parameters but the threshold."""

    @abstractmethod
    def fresh(self) -> Self:
        """The same monitor, which has seen nothing."""

    def see(self, account: str, x: Tensor) -> bool:
        """Whether this query raises an alarm."""
        return self.look(account, x) >= self.threshold


@dataclass(kw_only=True)
class Stateful(Monitor):
    """Minus the mean distance of a query to its k nearest earlier queries of the same account.

    Source: Chen et al. 2020, arXiv:1907.05587, section 3.
    Differs: the embedding is the image averaged over squares of `pool` pixels, not a trained encoder; the oldest of
    `history` queries is forgotten, where the paper forgets all after an alarm.
    """

    k: int = 50
    pool: int = 4
    history: int = 500
    kind: ClassVar[str] = "stateful"
    seen: OrderedDict[str, tuple[Tensor, int]] = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        for name in ("k", "pool", "history"):
            check_value(f"stateful: {name}", getattr(self, name), WHOLE)
        if self.history < self.k:
            raise SpecError(f"stateful: history must hold k = {self.k} queries, got {self.history}.")

    def look(self, account: str, x: Tensor) -> float:
        height, width = (math.ceil(side / self.pool) for side in x.shape[1:])
        point = F.adaptive_avg_pool2d(x.cpu(), (height, width)).flatten()
        held, count = self.seen.get(account, (torch.empty(0, len(point)), 0))
        held = held if len(held) else torch.empty(self.history, len(point))
        kept = min(count, self.history)
        suspicion = -math.inf
        if kept >= self.k:
            distances = (held[:kept] - point).square().sum(1).sqrt()
            suspicion = -float(distances.topk(self.k, largest=False).values.mean())
        held[count % self.history] = point
        self.seen[account] = (held, count + 1)
        self.seen.move_to_end(account)
        if len(self.seen) > _ACCOUNTS:
            self.seen.popitem(last=False)
        return suspicion

    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "pool": self.pool, "history": self.history}

    def fresh(self) -> Stateful:
        return replace(self, seen=OrderedDict())


@dataclass(kw_only=True)
class Blacklight(Monitor):
    """The most of a query's fingerprint that an earlier query shares, whoever sent it.

    Pixels are quantised, every window of them is hashed, and the `keep` largest hashes are the fingerprint.

    Source: Li et al. 2022, arXiv:2006.14042, section 4.
    Differs: a keyed multilinear hash of 64 bits in place of SHA-256; the oldest of `history` fingerprints is forgotten.
    """

    window: int = 20
    step: int = 1
    levels: int = 50  # of 255, that are told apart as one
    keep: int = 50
    history: int = 10_000
    kind: ClassVar[str] = "blacklight"
    key: int = field(default_factory=lambda: secrets.randbits(64), repr=False)
    prints: np.ndarray[Any, np.dtype[np.uint64]] = field(init=False, repr=False)
    count: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("window", "step", "levels", "keep", "history"):
            check_value(f"blacklight: {name}", getattr(self, name), WHOLE)
        draws = np.random.default_rng(self.key)
        self._factors = draws.integers(0, 2**64, self.window, np.uint64) | np.uint64(1)
        self.prints = np.zeros((0, self.keep), np.uint64)

    def fingerprint(self, x: Tensor) -> np.ndarray[Any, np.dtype[np.uint64]]:
        """(keep,) the largest hashes of the image's windows, each once, sorted; 0 where there are fewer."""
        levels = (255 * x.cpu().numpy().astype(np.float64)).round() // self.levels
        flat = levels.astype(np.uint64).ravel() + np.uint64(1)
        if len(flat) < self.window:
            raise SpecError(f"blacklight: an image of {len(flat)} values has no window of {self.window}.")
        windows = np.lib.stride_tricks.sliding_window_view(flat, self.window)[:: self.step]
        hashes = (windows * self._factors).sum(1, dtype=np.uint64)
        hashes ^= hashes >> np.uint64(31)  # the finaliser of SplitMix64: neighbours come apart
        hashes *= np.uint64(0xBF58476D1CE4E5B9)
        hashes ^= hashes >> np.uint64(27)
        largest = np.unique(hashes)[-self.keep :]
        return np.concatenate([np.zeros(self.keep - len(largest), np.uint64), largest])

    def look(self, account: str, x: Tensor) -> float:
        mine = self.fingerprint(x)
        held = self.prints[: min(self.count, self.history)]
        suspicion = -math.inf
        if len(held):
            place = np.searchsorted(mine, held).clip(max=self.keep - 1)
            suspicion = float(((mine[place] == held) & (held != 0)).sum(1).max())
        if self.count == len(self.prints) < self.history:  # grows by doubling up to its bound
            rows = min(self.history, max(256, 2 * len(self.prints)))
            self.prints = np.concatenate([self.prints, np.zeros((rows - len(self.prints), self.keep), np.uint64)])
        self.prints[self.count % self.history] = mine
        self.count += 1
        return suspicion

    def settings(self) -> dict[str, Any]:
        return {
            "window": self.window, "step": self.step, "levels": self.levels, "keep": self.keep, "history": self.history,
        }  # fmt: skip

    def fresh(self) -> Blacklight:
        return replace(self)


MONITORS: dict[str, type[Monitor]] = {"blacklight": Blacklight, "stateful": Stateful}


def make_monitor(kind: str, **settings: Any) -> Monitor:
    """A monitor by name.

    Raises:
        SpecError: nothing of that name, or a parameter that it has not.
    """
    if kind not in MONITORS:
        raise unknown_name("monitor", kind, MONITORS, hint="Or give a file of `robustgen serve-calibrate`.")
    known = {*MONITORS[kind]().settings(), "threshold", "key"}
    for name in settings:
        if name not in known:
            raise unknown_name(f"parameter of {kind}", name, known)
    return MONITORS[kind](**settings)


def read_monitor(path: Path) -> Monitor:
    """The monitor that `robustgen serve-calibrate` wrote.

    Raises:
        ArtifactError: the file cannot be read, or holds none.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))["monitor"]
        kind, threshold = table["kind"], float(table["threshold"])
        return make_monitor(kind, threshold=threshold, **table["settings"])
    except OSError as error:
        raise ArtifactError(f"--monitor: {path} cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, SpecError) as error:
        raise ArtifactError(f"--monitor: {path} holds no monitor ({error}); make one with serve-calibrate.") from None
