"""Honest traffic, made from a data set, and the threshold at which a monitor leaves it in peace.

An account sends images one after the other. Some are sent as bursts of near-duplicates, as frames of a video or
augmented copies are: shifted, brightened, with noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.fields import WHOLE, check_value
from robustgen.service.monitors import Monitor
from robustgen.statistics import proportion

__all__ = ["Traffic", "calibrate", "honest_traffic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What honest accounts do.

    Attributes:
        accounts: how many.
        queries: of each.
        share: of the images that are sent as a burst.
        frames: images of a burst.
        shift: pixels by which a frame is off, at most.
        brightness: part by which it is brighter or darker, at most.
        noise: standard deviation, in pixels of [0, 1].
    """

    accounts: int = 10
    queries: int = 150
    share: float = 0.3
    frames: int = 10
    shift: int = 1
    brightness: float = 0.1
    noise: float = 0.02

    def __post_init__(self) -> None:
        for name in ("accounts", "queries", "frames"):
            check_value(name, getattr(self, name), WHOLE)
        for entry in fields(self)[2:]:
            if entry.name != "frames" and not 0 <= getattr(self, entry.name) < math.inf:
                raise SpecError(f"traffic: {entry.name} must be >= 0, got {getattr(self, entry.name)}.")


def honest_traffic(
    dataset: Dataset, ids: Sequence[int], traffic: Traffic, seed: int
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Account and image (C, H, W) of every query; accounts take turns, as they do at a service.

    No image is sent a second time but as a frame of its burst; the traffic ends early where there are too few.
    """
    draws = np.random.default_rng(seed)
    unsent = draws.permutation(np.asarray(ids)).tolist()
    waiting: list[list[Tensor]] = [[] for _ in range(traffic.accounts)]
    for _ in range(traffic.queries):
        for account, queue in enumerate(waiting):
            if not queue and not unsent:
                return
            if not queue:
                image = dataset.batch([unsent.pop()])[0][0]
                burst = draws.random() < traffic.share
                queue += [_frame(image, traffic, draws) for _ in range(traffic.frames)] if burst else [image]
            yield f"honest {account}", queue.pop(0)


def _frame(image: Tensor, traffic: Traffic, draws: np.random.Generator) -> Tensor:
    """A near-duplicate."""
    down, right = (int(draws.integers(-traffic.shift, traffic.shift + 1)) for _ in range(2))
    moved = torch.roll(image, (down, right), (1, 2))
    bright = 1 + traffic.brightness * (2 * draws.random() - 1)
    noise = torch.from_numpy(draws.standard_normal(tuple(image.shape), np.float32))
    return (bright * moved + traffic.noise * noise).clamp(0, 1)


def calibrate(
    monitor: Monitor, dataset: Dataset, ids: Sequence[int], *, rate: float, traffic: Traffic, seed: int = 0
) -> tuple[Monitor, dict[str, Any]]:
    """The monitor with the lowest threshold that alarms on at most this share of honest queries; and what it does.

    The threshold is set on one half of the images, and measured on the other, with other accounts.

    Args:
        monitor: whose threshold is set.
        dataset, ids: what honest accounts send.
        rate: of false alarms among queries, in (0, 1).
        traffic: what they do.
        seed: of the traffic.

    Returns:
        The monitor, fresh, and a table that JSON holds: settings, threshold, and the measured rate with its interval.
    """
    check_value("--false-alarms", rate, (lambda v: 0 < v < 1, "a number above 0 and below 1"))
    if len(ids) < 4:
        raise SpecError(f"honest traffic needs four images or more, got {len(ids)}.")
    halves = (ids[0::2], ids[1::2])
    found = [_suspicions(monitor.fresh(), dataset, half, traffic, 2 * seed + k) for k, half in enumerate(halves)]
    ordered = sorted((value for _, value in found[0]), reverse=True)
    allowed = math.floor(rate * len(ordered))
    threshold = float(np.nextafter(ordered[allowed], math.inf))  # those above it are the allowed ones at most
    chosen = monitor.fresh()
    chosen.threshold = threshold
    alarmed = [account for account, value in found[1] if value >= threshold]
    accounts = {account for account, _ in found[1]}
    return chosen, {
        "monitor": {"kind": monitor.kind, "settings": monitor.settings(), "threshold": threshold},
        "asked": rate, "data": dataset.name, "seed": seed, "traffic": asdict(traffic), "set_on": len(ordered),
        "held_out": {
            "queries": len(found[1]), "alarms": len(alarmed),
            "rate": asdict(proportion(len(alarmed), len(found[1]))),
            "accounts": len(accounts), "alarmed": len(set(alarmed)),
            "accounts_rate": asdict(proportion(len(set(alarmed)), len(accounts))),
        },
    }  # fmt: skip


def _suspicions(
    monitor: Monitor, dataset: Dataset, ids: Sequence[int], traffic: Traffic, seed: int
) -> list[tuple[str, float]]:
    return [(account, monitor.look(account, x)) for account, x in honest_traffic(dataset, ids, traffic, seed)]
