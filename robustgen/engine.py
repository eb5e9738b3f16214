"""The engine: keeps a batch full, one example a row, each at its own step of the attack.

A row leaves the moment the judge calls it broken or its attack has run out, and the next waiting example takes its
place, as inference servers do with requests. No query goes to a point already broken, nobody waits for the slowest.

Where the threat model has no eps, a row stays: each point nearer than those before is judged, and the nearest that the
judge calls broken is the row's outcome.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from robustgen.attacks.base import Attack, Rows, State, early_rounds, sees
from robustgen.judge import Judge, judging_streams
from robustgen.memory import is_memory_error
from robustgen.oracle import Cost, Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

__all__ = ["Fetch", "Goals", "Outcome", "run"]

log = logging.getLogger(__name__)

Fetch = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Example ids -> images (B, C, H, W) float32 in [0, 1] and labels (B,) int64, on the device of the oracle."""

Goals = Callable[[Sequence[int]], Tensor]
"""Example ids -> (B,) int64, the class that each prediction must become."""

_MUCH_NEARER = 0.7  # of the nearest distance; what early rounds find is seldom the nearest in the end
_REFILL_SHARE = 8  # rows are refilled when an eighth of the batch stands empty: small refills cost more than they save


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one example left an attack.

    Attributes:
        id: example id.
        broken: the judge's verdict.
        x_adv: (C, H, W) float32 on the CPU when broken, else None.
        distance, prediction: as the judge measured them; None when not broken.
        round, restart: when it was broken, both from 0; None when not broken. Without an eps, of the nearest point.
        forwards, backwards: what was spent on this example.
        margin: the smallest margin z_y - max z_other that the oracle showed inside the threat model: how near it came;
            with a goal t that of max z_other - z_t.
        missed: whether the oracle ever called a point inside a success, whatever the judge said of it.
        error: why the row was given up ("the model's output is not finite"), else None.
        nearest: (C, H, W) float32 on the CPU, the point of the smallest margin, where it was asked for; else None.
    """

    id: int
    broken: bool
    x_adv: Tensor | None
    distance: float | None
    prediction: int | None
    round: int | None
    restart: int | None
    forwards: int
    backwards: int
    margin: float
    missed: bool = False
    error: str | None = None
    nearest: Tensor | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it, without id and images; null stands for an infinite margin."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("id", "x_adv", "nearest")}
        return {**values, "x_adv": None, "margin": self.margin if math.isfinite(self.margin) else None}

    @classmethod
    def from_json(cls, id_: int, held: dict[str, Any]) -> Self:
        """Back, without images."""
        return cls(id_, **{**held, "margin": math.inf if held["margin"] is None else held["margin"]})


class _Entry(NamedTuple):
    """An example that waits, with what its earlier restarts left."""

    id: int
    restart: int = 0
    forwards: int = 0
    backwards: int = 0
    margin: float = math.inf
    missed: bool = False
    nearest: Tensor | None = None


@dataclass
class _Batch(Rows):
    """The batch: the attack's state beside the engine's own columns, all with the same number of rows."""

    state: State
    ids: Tensor
    forwards: Tensor
    backwards: Tensor
    margin: Tensor
    missed: Tensor
    nearest: Tensor | None  # (B, C, H, W) where it is asked for

    def __len__(self) -> int:
        return len(self.ids)

    def charge(self, spent: Cost) -> None:
        """Share a round's cost among the rows: a round queries every row alike."""
        self.forwards += spent.forwards // len(self)
        self.backwards += spent.backwards // len(self)


def run(
    attack: Attack,
    oracle: Oracle,
    judge: Judge,
    fetch: Fetch,
    ids: Sequence[int],
    threat: ThreatModel,
    *,
    seed: int,
    batch_size: int,
    finish: Callable[[Outcome], None],
    keep_nearest: bool = False,
    starts: Callable[[int], Tensor | None] | None = None,
    only_last: bool = False,
    unasked: bool = False,
    goals: Goals | None = None,
    queries: int | None = None,
) -> None:
    """Attack each example until it is broken or every restart has been spent.

    Under a threat model without an eps every restart is spent, and the outcome is the nearest judged point.

    Args:
        attack: hyper-parameters with `init` and `step`.
        oracle: answers the attack's queries.
        judge: decides what is broken.
        fetch: reads examples.
        ids: example ids, in the order in which they enter.
        threat: the threat model handed to the attack.
        seed: of every example's random stream.
        batch_size: rows held at once.
        finish: called once for each id, as soon as its outcome is known.
        keep_nearest: fill in `Outcome.nearest` of those that were not broken.
        starts: where an example begins, (C, H, W), instead of where the attack would; None for there. It is brought
            into the threat model, but not for an attack that sees labels, which comes from outside.
        only_last: only the last point of a row is judged: the oracle speaks for another classifier than the judge.
        unasked: with `only_last`, that point is judged whatever the oracle says of it.
        goals: the class that each prediction must become, for an attack that can be told one; None for any wrong one.
        queries: an example is given up after the round in which it has been sent forward so often, restarts included.
    """
    waiting = deque(_Entry(id_) for id_ in ids)
    found: dict[int, Outcome] | None = None if judge.threat.bounded else {}
    rows: _Batch | None = None
    early_until = -1.0 if found is None else early_rounds(attack, threat.norm)
    with oracle.showing(sees(attack), early_until=early_until):
        while waiting or rows is not None:
            vacant = batch_size - (0 if rows is None else len(rows))
            if waiting and (rows is None or vacant * _REFILL_SHARE >= batch_size or vacant >= len(waiting)):
                entering = [waiting.popleft() for _ in range(min(vacant, len(waiting)))]
                fresh = _enter(attack, oracle, fetch, threat, seed, entering, keep_nearest, starts, goals)
                rows = fresh if rows is None else rows.join(fresh)
            assert rows is not None
            largest = _round(rows, attack, oracle)
            if largest < min(len(rows), batch_size):
                batch_size = largest
                log.warning(
                    "memory is exhausted by a larger batch: going on with %d rows at once, same results", largest
                )
            rows = _settle(rows, attack, judge, waiting, finish, only_last, unasked, found, queries, early_until)


def _enter(
    attack: Attack,
    oracle: Oracle,
    fetch: Fetch,
    threat: ThreatModel,
    seed: int,
    entering: Sequence[_Entry],
    keep_nearest: bool,
    starts: Callable[[int], Tensor | None] | None,
    goals: Goals | None,
) -> _Batch:
    ids, restarts, forwards, backwards, near, missed = (
        torch.tensor(column) for column in zip(*(entry[:6] for entry in entering), strict=True)
    )
    x, y = fetch(ids.tolist())
    before, rng = oracle.cost, ExampleRng.of(seed, ids, restarts)
    oracle.look_at(rng, torch.zeros_like(ids))
    aims = {} if goals is None else {"goal": goals(ids.tolist()).to(y)}
    state = attack.init(oracle, x, y, threat, rng, **aims)
    if starts is not None:
        given = [starts(id_) for id_ in ids.tolist()]
        known = torch.tensor([start is not None for start in given], device=x.device)
        first = torch.stack([image if start is None else start.to(x) for start, image in zip(given, x, strict=True)])
        state = state.begin_at(first if sees(attack) == "labels" else threat.project(x, first), known)
    nearest = None
    if keep_nearest:
        points = [image if entry.nearest is None else entry.nearest for entry, image in zip(entering, x, strict=True)]
        nearest = torch.stack([point.to(x) for point in points])
    rows = _Batch(state, ids, forwards, backwards, near, missed, nearest)
    rows.charge(oracle.cost - before)
    return rows


def _round(rows: _Batch, attack: Attack, oracle: Oracle) -> int:
    """One step for every row; where memory runs out, in halves. Returns the largest batch that went through."""
    before = oracle.cost
    oracle.look_at(rows.state.rng, rows.state.i + 1)
    try:
        state = attack.step(oracle, rows.state)
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises the plain kind
        if len(rows) == 1 or not is_memory_error(error):
            raise
    else:
        rows.state = state
        rows.charge(oracle.cost - before)
        return len(rows)
    oracle.cost = before  # queries of the failed attempt gave no answer
    index = torch.arange(len(rows))
    halves = [rows.take(part) for part in index.tensor_split(2)]
    largest = min(_round(half, attack, oracle) for half in halves)
    joined = halves[0].join(halves[1])
    rows.state, rows.forwards, rows.backwards = joined.state, joined.forwards, joined.backwards
    return largest


def _settle(
    rows: _Batch,
    attack: Attack,
    judge: Judge,
    waiting: deque[_Entry],
    finish: Callable[[Outcome], None],
    only_last: bool,
    unasked: bool,
    found: dict[int, Outcome] | None,
    queries: int | None,
    early_until: float,
) -> _Batch | None:
    """Let out the rows that are broken, ill or done; returns those that stay, or None.

    `found` holds the nearest judged point of each example where rows stay until they are done, else it is None.
    """
    s = rows.state
    ill = ~s.logits.isfinite().all(1)
    silent = ill | ~s.ended(attack.rounds) if only_last else ill
    hit = _measure(rows, judge.threat, silent, unasked)
    broken = _judge_candidates(rows, judge, hit, finish, found, early_until)
    spent = torch.zeros_like(broken) if queries is None else rows.forwards >= queries
    done = (s.ended(attack.rounds).cpu() | spent) & ~broken & ~ill.cpu()
    for row in ill.nonzero().flatten().tolist():
        finish(_last(rows, row, found, "the model's output is not finite (NaN or infinity)"))
    for row in done.nonzero().flatten().tolist():
        restart = int(s.rng.restart[row]) + 1
        if restart < attack.restarts and not spent[row]:
            waiting.append(_Entry(int(rows.ids[row]), restart, *_spent(rows, row), _nearest(rows, row)))
        else:
            finish(_last(rows, row, found))
    stay = ~(broken | done | ill.cpu())
    if not stay.any():
        return None
    return rows if stay.all() else rows.take(stay.nonzero().flatten())


def _measure(rows: _Batch, threat: ThreatModel, silent: Tensor, unasked: bool) -> Tensor:
    """Keep each row's smallest margin inside the threat model; (B,) bool: the search form errs on a point inside.

    All points inside are taken for such where it is `unasked`, but those of silent rows.
    Where a point lies is asked only where it matters, since most rounds bring most rows nothing new.
    """
    s = rows.state
    gap = s.gap(s.logits)
    missed = s.reached(s.logits) | unasked
    candidates = ((missed | (gap < rows.margin.to(gap.device))) & ~silent).nonzero().flatten()
    hit = torch.zeros_like(silent)
    if len(candidates):
        inside = candidates[threat.contains(s.x[candidates], s.x_adv[candidates])]
        hit[inside] = missed[inside]
        _remember(rows, inside, gap, hit)
    return hit


def _remember(rows: _Batch, inside: Tensor, gap: Tensor, hit: Tensor) -> None:
    """Smallest margin, whether there was a miss, and the nearest point, for rows whose point lies inside."""
    here, gaps = inside.cpu(), gap[inside].to("cpu", rows.margin.dtype)
    nearer = gaps < rows.margin[here]
    rows.margin[here] = torch.minimum(rows.margin[here], gaps)
    rows.missed |= hit.cpu()
    if rows.nearest is not None:
        rows.nearest[inside[nearer.to(inside.device)]] = rows.state.x_adv[inside[nearer.to(inside.device)]]


def _judge_candidates(
    rows: _Batch, judge: Judge, hit: Tensor, finish: Callable[[Outcome], None], found: dict[int, Outcome] | None,
    early_until: float,
) -> Tensor:  # fmt: skip
    """Judge the rows that the search form saw misclassified inside; (B,) bool on the CPU: those that leave as broken.

    Where there is no eps only a point nearer than the nearest before is judged, in early rounds much nearer, and nobody
    leaves.
    """
    s = rows.state
    broken = torch.zeros(len(rows), dtype=torch.bool)
    candidates = hit.nonzero().flatten()
    if found is not None and len(candidates):
        reached = [found[id_].distance if id_ in found else math.inf for id_ in rows.ids[candidates.cpu()].tolist()]
        distance = judge.threat.distance(s.x[candidates], s.x_adv[candidates])
        share = torch.where(s.i[candidates] > early_until, 1.0, _MUCH_NEARER).to(distance)
        candidates = candidates[distance < share * torch.tensor(reached).to(distance)]
    if not len(candidates):
        return broken
    rng = judging_streams(s.rng.take(candidates), s.i[candidates])
    goal = None if s.goal is None else s.goal[candidates]
    verdict = judge(s.x[candidates], s.y[candidates], s.x_adv[candidates], rng, goal)
    for k in verdict.broken.nonzero().flatten().tolist():
        row = int(candidates[k])
        outcome = _broken(rows, row, float(verdict.distance[k]), int(verdict.prediction[k]))
        if found is not None:
            found[outcome.id] = outcome
            continue
        broken[row] = True
        finish(outcome)
    return broken


def _broken(rows: _Batch, row: int, distance: float, prediction: int) -> Outcome:
    s = rows.state
    return Outcome(
        id=int(rows.ids[row]),
        broken=True,
        x_adv=s.x_adv[row].detach().to("cpu", copy=True),
        distance=distance,
        prediction=prediction,
        round=int(s.i[row]) - 1,
        restart=int(s.rng.restart[row]),
        forwards=int(rows.forwards[row]),
        backwards=int(rows.backwards[row]),
        margin=float(rows.margin[row]),
        missed=True,
    )


def _last(rows: _Batch, row: int, found: dict[int, Outcome] | None, error: str | None = None) -> Outcome:
    """What a row that runs out leaves: its nearest judged point, with all that was spent, or nothing broken."""
    nearest = None if found is None else found.pop(int(rows.ids[row]), None)
    if nearest is None:
        return _unbroken(rows, row, error)
    forwards, backwards, gap, missed = _spent(rows, row)
    return replace(nearest, forwards=forwards, backwards=backwards, margin=gap, missed=missed, error=error)


def _spent(rows: _Batch, row: int) -> tuple[int, int, float, bool]:
    """Forwards, backwards, smallest margin, and whether there was a miss, so far."""
    return int(rows.forwards[row]), int(rows.backwards[row]), float(rows.margin[row]), bool(rows.missed[row])


def _nearest(rows: _Batch, row: int) -> Tensor | None:
    return None if rows.nearest is None else rows.nearest[row].detach().to("cpu", copy=True)


def _unbroken(rows: _Batch, row: int, error: str | None = None) -> Outcome:
    unknown = (None, None, None, None, None)
    return Outcome(int(rows.ids[row]), False, *unknown, *_spent(rows, row), error, _nearest(rows, row))
