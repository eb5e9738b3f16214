"""What an attack is: hyper-parameters, `init`, `step`. Everything else belongs to the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar, cast, runtime_checkable

import torch
from torch import Tensor

from robustgen.attacks.losses import Loss, LossFn, goal_margin, margin
from robustgen.fields import WHOLE, check_value
from robustgen.rng import ExampleRng
from robustgen.threat import BALLS, Norm, ThreatModel, per_row

__all__ = [
    "SILENT_BY_DEFAULT", "AnswersOnly", "Attack", "Budgeted", "MinimumNorm", "Query", "QueryModel", "Rows", "Sees",
    "State", "Targetable", "early_rounds", "sees", "serves", "start_again", "stay_close",
]  # fmt: skip

T = TypeVar("T")

SILENT_BY_DEFAULT = {"silent": True}
"""Metadata of a hyper-parameter that came later: at its default no protocol string names it, so that those of old runs
stay what they were."""

Sees = Literal["gradients", "scores", "labels"]
"""What an attack is shown of the classifier: all, logits, or the predicted class; each holds what comes after it."""


@dataclass(frozen=True, slots=True)
class Query:
    """The answer of one white-box query: loss (B,), grad (B, C, H, W), logits (B, K), all float32."""

    loss: Tensor
    grad: Tensor
    logits: Tensor


class QueryModel(Protocol):
    """All that an attack may ask of a classifier (robustgen.oracle.Oracle is the one the engine passes in)."""

    def logits(self, x: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """x (B, C, H, W) -> logits (B, K), float32, without gradients.

        `known` is (B,) bool and (B, K): rows whose logits the attack has already. They are not computed again, yet
        count as queries, since whether two points are equal to the last bit must not change what an attack costs.
        """

    def grad(self, x: Tensor, y: Tensor, loss: LossFn) -> Query:
        """Loss of each row and its gradient with respect to x."""


class Rows:
    """A dataclass of tensors with the batch first, random streams, and other such dataclasses; rows can come and go.

    What has no rows, such as a threat model, is passed on as it is.
    """

    def take(self, index: Tensor) -> Self:
        """The rows of this index (M,) int64."""
        return replace(self, **{f.name: _take(getattr(self, f.name), index) for f in fields(self)})  # type: ignore[type-var, arg-type]

    def join(self, other: Self) -> Self:
        """These rows, then those of `other`."""
        columns = [(f.name, getattr(self, f.name), getattr(other, f.name)) for f in fields(self)]  # type: ignore[arg-type]
        return replace(self, **{name: _join(mine, theirs) for name, mine, theirs in columns})  # type: ignore[type-var]


def _take(value: T, index: Tensor) -> T:
    if isinstance(value, Tensor):
        return cast(T, value[index.to(value.device)])
    return cast(T, value.take(index)) if isinstance(value, Rows | ExampleRng) else value


def _join(a: T, b: T) -> T:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        fresh = b.expand(len(b), a.shape[1]) if a.dim() == 2 and a.shape[1] != b.shape[1] else b
        return cast(T, torch.cat([a, fresh]))  # logits of rows not queried yet have one column: expanded
    return cast(T, a.join(cast(Any, b))) if isinstance(a, Rows | ExampleRng) else a


@dataclass(kw_only=True)
class State(Rows):
    """A batch in the middle of an attack: tensors with the batch first, so that rows can come and go.

    Attributes:
        x: (B, C, H, W) clean images.
        y: (B,) int64 labels.
        threat: the threat model, the same for all rows.
        rng: one random stream a row.
        i: (B,) int64, rounds each row has done.
        x_adv: (B, C, H, W), the point that the last round queried.
        logits: (B, K) float32, what the oracle answered there; zeros before the first round.
        goal: (B,) int64, the one class that counts as success; None where every class but y does.
    """

    x: Tensor
    y: Tensor
    threat: ThreatModel
    rng: ExampleRng
    i: Tensor
    x_adv: Tensor
    logits: Tensor
    goal: Tensor | None = None

    @classmethod
    def start(cls, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng, **own: Any) -> Self:
        """Rows that nobody has queried yet, with the attack's `own` fields, and `goal` where there is one."""
        idle = torch.zeros_like(y)
        return cls(x=x, y=y, threat=threat, rng=rng, i=idle, x_adv=x, logits=x.new_zeros(len(x), 1), **own)

    def reached(self, logits: Tensor) -> Tensor:
        """(B,) bool: these logits (B, K) are a success: the goal is predicted, or without one anything but y."""
        return logits.argmax(1) != self.y if self.goal is None else logits.argmax(1) == self.goal

    def gap(self, logits: Tensor) -> Tensor:
        """(B,) how far these logits (B, K) are from a success: positive until then; z_y - max z_i without a goal."""
        return margin(logits, self.y) if self.goal is None else goal_margin(logits, self.goal)

    def aimed(self, loss: Loss, target: Tensor | None = None) -> LossFn:
        """The loss as the rows ascend it: towards their goal; without one away from y, or towards `target` (B,)."""
        goal = self.goal
        if goal is not None:
            return lambda logits, _y: loss.towards(logits, goal)
        return loss if target is None else lambda logits, y: loss(logits, y, target)

    def ended(self, rounds: int) -> Tensor:
        """(B,) bool: rows whose restart is over, of so many rounds at most; an attack may end one sooner."""
        return self.i >= rounds

    def begin_at(self, points: Tensor, known: Tensor) -> Self:
        """The same rows with these points (B, C, H, W) as the first ones, where they are known (B,) bool.

        An attack whose state has no `x_next` begins where it would.
        """
        names = [f.name for f in fields(self) if f.name in ("x_next", "x_prev", "x_max")]
        here = known.reshape(-1, 1, 1, 1)
        begun: dict[str, Any] = {name: torch.where(here, points, getattr(self, name)) for name in names}
        return replace(self, **begun) if "x_next" in names else self


@runtime_checkable
class Attack(Protocol):
    """A frozen dataclass of hyper-parameters with two methods, in the manner of an optax transformation.

    `init` prepares rows; it may query, and `step` does exactly one round of queries for every row. No loop, batching,
    early stopping, counting or printing: the engine does these, and judges the points that `State.x_adv` shows it.
    """

    @property
    def rounds(self) -> int:
        """How many steps a row takes at most."""

    @property
    def restarts(self) -> int:
        """How many times a row that was not broken starts again; `rng.restart` tells which one it is."""

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> State:
        """x (B, C, H, W) in [0, 1] and y (B,) -> the state before the first step."""

    def step(self, oracle: QueryModel, s: State) -> State:
        """One round of queries for every row; returns the state with `x_adv`, `logits` and `i` brought up to date."""


@runtime_checkable
class MinimumNorm(Attack, Protocol):
    """An attack that can look for the nearest adversarial image under a threat model without an eps.

    It never stops at a success: it shows the engine points on both sides of the boundary, which keeps the nearest that
    the judge calls broken. Its state need not remember that point, unless the algorithm uses it. One that says `early`,
    a share of its rounds, lets a coarser form of the network answer in these (`early_rounds`).
    """

    @property
    def nearest_in(self) -> tuple[Norm, ...]:
        """The norms in which it does."""

    @property
    def takes_eps(self) -> bool:
        """Whether it also attacks inside an eps, where the first success ends it."""


@runtime_checkable
class Targetable(Attack, Protocol):
    """An attack that can be told which class the prediction must become.

    Its `init` takes one argument more, `goal` (B,) int64 or None, hands it to `State.start`, and the attack asks
    `State.reached`, `State.gap` and `State.aimed` in place of argmax, margin and loss. One that sees labels alone is
    given an image of that class to begin at, inside eps or not.
    """

    @property
    def takes_goal(self) -> bool:
        """Whether it does; False where an attack derived from one that does chooses its classes itself."""

    def init(
        self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng,
        goal: Tensor | None = None,
    ) -> State:  # fmt: skip
        """As of any attack."""


def stay_close(query: Query, x: Tensor, start: Tensor, weight: float) -> Query:
    """The query at x (B, C, H, W) for the loss minus weight * ||x - start||^2, so that it pays to stay near the start.

    Args:
        query: for the loss alone.
        x, start: (B, C, H, W) in [0, 1].
        weight: lambda >= 0, per squared pixel of [0, 1]; 0 gives the query back as it is.

    Source: Szegedy et al. 2014, arXiv:1312.6199, section 4.1 (a distance and a class term, weighed against each other).
    """
    if weight == 0:
        return query
    away = x - start
    loss = query.loss - weight * away.square().flatten(1).sum(1)
    return Query(loss, query.grad - 2 * weight * away, query.logits)


@runtime_checkable
class AnswersOnly(Attack, Protocol):
    """An attack that asks for no gradient and sends one image a round, so many for an example at most.

    The engine shows it no more than it says it sees.
    """

    @property
    def sees(self) -> Sees:
        """Either "scores", the logits of each image, or "labels", its predicted class alone."""

    def limited(self, queries: int) -> Attack:
        """The same attack, which sends at most so many images for an example.

        Raises:
            SpecError: so few that it cannot begin.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgeted:
    """What attacks by answers share: the most images that are sent for one example, one a round."""

    queries: int = 1000
    restarts: ClassVar[int] = 1
    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_value(f"{self.name}: queries", self.queries, WHOLE)

    @property
    def rounds(self) -> int:
        return self.queries

    def limited(self, queries: int) -> Self:
        """The same attack with another budget."""
        return replace(self, queries=queries)


def sees(attack: Attack) -> Sees:
    """What an attack must be shown."""
    return attack.sees if isinstance(attack, AnswersOnly) else "gradients"


def early_rounds(attack: Attack, norm: Norm) -> float:
    """How many rounds of a search for the nearest image may be in a coarser form of the network; -1 for none.

    An attack says so by `early`, a share of its rounds, if it ends at the boundary wherever they have brought it. Never
    in L0: a count of pixels does not lie a little beside the right one.
    """
    share: float = getattr(attack, "early", 0.0)
    return share * attack.rounds if share > 0 and norm != "l0" else -1.0


def serves(attack: Attack) -> tuple[Norm, ...]:
    """The norms of the threat models that an attack knows its way in: `serves`, or every ball where it says nothing."""
    known: tuple[Norm, ...] = getattr(attack, "serves", BALLS)
    return known


def start_again(x: Tensor, rng: ExampleRng) -> Tensor:
    """x (B, C, H, W) in the first restart; in the others a random point, up to a tenth away in every value."""
    again = rng.restart.to(x.device) > 0
    if not again.any():
        return x
    return torch.where(per_row(again, x), ThreatModel("linf", 0.1).random_start(x, rng), x)
