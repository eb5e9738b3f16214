"""CERTIFY and PREDICT of randomized smoothing, for many examples at once.

Source: Cohen et al. 2019, arXiv:1902.02918, algorithms of section 3.2: a first set of draws selects the class, another
one, never the same, estimates its probability.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from robustgen.certify.design import Design
from robustgen.certify.votes import Voter, Wanted

__all__ = ["Certificate", "certify", "predict"]

ABSTAIN = -1
_ROWS = 64  # examples in the works at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """What was found for one example.

    Attributes:
        id, label: which.
        predict: the certified class, -1 where it abstains.
        radius: within which no image changes the class, with probability 1 - alpha; 0 where it abstains.
        selected: the class that the first draws chose.
        counts: how often it was voted for, at each look of the design so far.
        samples: all draws, those for selection included.
    """

    id: int
    label: int
    predict: int
    radius: float
    selected: int
    counts: list[int]
    samples: int


@dataclass
class _Row:
    """An example in the works."""

    id: int
    label: int
    image: npt.NDArray[np.int32]
    selected: int | None = None
    counts: list[int] = field(default_factory=list)
    right: int = 0
    reached: int = 0


def certify(
    voter: Voter,
    examples: Iterable[tuple[int, int, npt.NDArray[np.float64]]],
    design: Design,
    *,
    selection: int,
    finish: Callable[[Certificate], None],
) -> None:
    """Certify examples, many in the works at once; each leaves when its design has decided.

    Args:
        voter: of the classifier and the noise.
        examples: id, label and image (C, H, W) in [0, 1].
        design: looks, levels, radii.
        selection: draws that choose the class.
        finish: called once an example.
    """
    waiting, rows = deque(examples), list[_Row]()
    while waiting or rows:
        while waiting and len(rows) < _ROWS:
            id_, label, image = waiting.popleft()
            rows.append(_Row(id_, label, voter.noise.on_grid(image)))
        wanted = [_next(row, design, selection) for row in rows]
        for row, votes in zip(rows, voter.count(wanted), strict=True):
            _take(row, votes, design)
        staying = []
        for row in rows:
            look = len(row.counts) - 1
            if look >= 0 and design.decided(row.right, look, row.reached):
                finish(_certificate(row, design, voter, selection))
            else:
                staying.append(row)
        rows = staying


def _next(row: _Row, design: Design, selection: int) -> Wanted:
    if row.selected is None:
        return Wanted(row.id, row.image, "select", 0, selection)
    look = len(row.counts)
    return Wanted(row.id, row.image, "estimate", design.looks[look - 1] if look else 0, design.looks[look])


def _take(row: _Row, votes: npt.NDArray[np.int64], design: Design) -> None:
    if row.selected is None:
        row.selected = int(votes.argmax())
        return
    row.right += int(votes[row.selected])
    row.counts.append(row.right)
    row.reached = max(row.reached, design.reached(row.right, len(row.counts) - 1))


def _certificate(row: _Row, design: Design, voter: Voter, selection: int) -> Certificate:
    assert row.selected is not None  # decided only after a look
    radius = design.radius(row.right, row.reached, voter.noise, row.image.size)
    return Certificate(
        id=row.id, label=row.label, predict=ABSTAIN if radius is None else row.selected, radius=radius or 0.0,
        selected=row.selected, counts=row.counts, samples=selection + design.looks[len(row.counts) - 1],
    )  # fmt: skip


def predict(voter: Voter, id_: int, image: npt.NDArray[np.float64], *, samples: int, alpha: float) -> int:
    """PREDICT: the class of the smoothed classifier, or -1 where the votes do not tell it with probability 1 - alpha.

    Args:
        voter: of the classifier and the noise.
        id_: whose noise it is.
        image: (C, H, W) in [0, 1].
        samples: draws.
        alpha: probability of an answer that is not the smoothed classifier's.
    """
    from scipy.stats import binomtest

    (votes,) = voter.count([Wanted(id_, voter.noise.on_grid(image), "predict", 0, samples)])
    second, first = np.sort(votes)[-2:] if len(votes) > 1 else (0, votes[0])
    sure = binomtest(int(first), int(first + second), 0.5).pvalue <= alpha
    return int(votes.argmax()) if sure else ABSTAIN
