"""Images of a class for attacks that see labels alone: towards a class they begin at one of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from robustgen.engine import Fetch
from robustgen.judge import Judge, clean_streams

__all__ = ["starts_in_class"]

_MOST = 10  # images of a class that an attacker has


def starts_in_class(
    fetch: Fetch, labels: npt.NDArray[np.int64], judge: Judge, targets: Mapping[int, int], *, seed: int
) -> Callable[[int], Tensor | None]:
    """Where an example begins: at the nearest of what an attacker has collected of its target.

    That is the first ten images of each class of the data, as far as they are predicted so. Whether they are is asked
    once for a class, and is no query of any attack.

    Args:
        fetch: reads images of the data, examples or not.
        labels: of the data.
        judge: says what images are predicted as, and measures distance.
        targets: id of an example -> the class that its prediction must become.
        seed: of the noise of a randomised classifier.

    Returns:
        Id -> (C, H, W); None where no image is predicted as the target.
    """

    @cache
    def collected(target: int) -> Tensor:
        ids = np.flatnonzero(labels == target)[:_MOST].tolist()
        if not ids:
            return torch.empty(0)
        images, _ = fetch(ids)
        return images[judge.see(images, clean_streams(seed, ids))[0] == target]

    def start(id_: int) -> Tensor | None:
        held, (x, _) = collected(targets[id_]), fetch([id_])
        return held[judge.threat.distance(x.expand_as(held), held).argmin()] if len(held) else None

    return start
