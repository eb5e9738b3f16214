"""CERTIFY and PREDICT of randomized smoothing, for many examples at once.

Source: Cohen et al. 2019, arXiv:1902.02918, algorithms of section 3.2: a first set of draws selects the class, another
one, never the same, estimates its probability.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from robustgen.certify.design import Design
from robustgen.certify.votes import Voter, Wanted
from robustgen.fields import NOT_NEGATIVE, SEED, WHOLE, Rule, check_value, number, or_none

__all__ = ["Certificate", "certify", "predict", "predict_votes", "verdict"]

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
        seconds: its share, by draws, of the time that voting took; None where nobody knows. No part of equality.
    """

    id: int
    label: int
    predict: int
    radius: float
    selected: int
    counts: list[int]
    samples: int
    seconds: float | None = field(default=None, compare=False)

    def line(self) -> str:
        """One line of certificates.jsonl, without the newline; floats keep every digit."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_line(cls, text: str) -> Certificate:
        """The inverse of `line`.

        Raises:
            ValueError, TypeError: no JSON, or other fields.
            SpecError: a value that none can have.
        """
        table = json.loads(text)
        found = cls(**table)
        for name, rule in _RULES.items():
            check_value(name, table.get(name), rule)
        return found


def _counts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(SEED[0](k) and isinstance(k, int) for k in value)


_RULES: dict[str, Rule] = {
    "id": SEED, "label": SEED, "selected": SEED, "samples": WHOLE, "radius": NOT_NEGATIVE,
    "predict": (lambda value: value == ABSTAIN or SEED[0](value), "a class, or -1"),
    "counts": (_counts, "a list of whole numbers >= 0"),
    "seconds": (or_none(number(0, math.inf)), "a number >= 0, or null"),
}  # fmt: skip


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
    seconds: float = 0.0


def certify(
    voter: Voter,
    examples: Iterable[tuple[int, int, npt.NDArray[np.float64]]],
    design: Design,
    *,
    selection: int,
    finish: Callable[[Certificate], None],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Certify examples, many in the works at once; each leaves when its design has decided.

    Args:
        voter: of the classifier and the noise.
        examples: id, label and image (C, H, W) in [0, 1].
        design: looks, levels, radii.
        selection: draws that choose the class.
        finish: called once an example.
        clock: seconds, of which each example is told its share.
    """
    waiting, rows = deque(examples), list[_Row]()
    while waiting or rows:
        while waiting and len(rows) < _ROWS:
            id_, label, image = waiting.popleft()
            rows.append(_Row(id_, label, voter.noise.on_grid(image)))
        wanted = [_next(row, design, selection) for row in rows]
        begun = clock()
        counted = voter.count(wanted)
        a_draw = (clock() - begun) / sum(one.last - one.first for one in wanted)
        for row, one, votes in zip(rows, wanted, counted, strict=True):
            row.seconds += a_draw * (one.last - one.first)
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
        seconds=round(row.seconds, 6),
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
    return verdict(predict_votes(voter, id_, image, samples=samples), alpha)


def predict_votes(voter: Voter, id_: int, image: npt.NDArray[np.float64], *, samples: int) -> npt.NDArray[np.int64]:
    """(K,) the votes that `predict` decides by; their noise is never that of a certificate."""
    votes: npt.NDArray[np.int64] = voter.count([Wanted(id_, voter.noise.on_grid(image), "predict", 0, samples)])[0]
    return votes


def verdict(votes: npt.NDArray[np.int64], alpha: float) -> int:
    """The most frequent class of (K,) votes; -1 where a binomial test at alpha does not tell it from the next one."""
    from scipy.stats import binomtest

    second, first = np.sort(votes)[-2:] if len(votes) > 1 else (0, votes[0])
    sure = binomtest(int(first), int(first + second), 0.5).pvalue <= alpha
    return int(votes.argmax()) if sure else ABSTAIN
