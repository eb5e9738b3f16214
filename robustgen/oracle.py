"""The oracle: all that an attack may ask of a classifier, and the place where queries are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustgen.attacks.base import Query, Sees
from robustgen.attacks.losses import LossFn
from robustgen.errors import AttackError
from robustgen.rng import ExampleRng, child_stream, streams_at, streams_of_draws

__all__ = ["Cost", "Oracle", "split_draws"]

_ROWS = 256  # of several draws at once


@dataclass(frozen=True, slots=True)
class Cost:
    """Images sent forward and backward through the classifier."""

    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.forwards + other.forwards, self.backwards + other.backwards)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.forwards - other.forwards, self.backwards - other.backwards)


class Oracle:
    """Answers queries in the search form of a classifier.

    Args:
        model: (B, C, H, W) float32 in [0, 1] -> (B, K) float32, eval mode, parameters frozen. One that says
            `stochastic` is given streams as second argument, once `look_at` has told whose rows they are.
        eot: draws averaged in each query of a stochastic model (expectation over transformation; Athalye et al.
            2018, arXiv:1802.00420, section 4.2); 1 for deterministic models. A deterministic one that has an `early`
            answers with that at the first places of an attack.
        rows: of several draws that are sent at once, one draw of every image at least.
    """

    def __init__(self, model: nn.Module, *, eot: int = 1, rows: int = _ROWS) -> None:
        self.model = model
        self.eot = eot
        self.rows = rows
        self.cost = Cost()
        self.shows: Sees = "gradients"
        self._streams: ExampleRng | None = None
        self._queries = 0
        self._early_until = -1.0
        self._is_early: Tensor | None = None

    @contextmanager
    def showing(self, shows: Sees, *, early_until: float = -1.0) -> Iterator[None]:
        """Show an attack no more than this: "scores" without gradients, "labels" as logits 1 and 0.

        Up to the place `early_until` of a row, included, the model may answer in its form of the first rounds.
        """
        before, self.shows = (self.shows, self._early_until), shows
        self._early_until = early_until if getattr(self.model, "early", None) is not None else -1.0
        try:
            yield
        finally:
            (self.shows, self._early_until), self._is_early = before, None

    def look_at(self, rng: ExampleRng, place: Tensor) -> None:
        """Say whose rows the queries are about from now on, each at its place (B,) int64 in the attack.

        Noise then belongs to (example, restart, place, query, draw), whatever the batch that an example is in.
        """
        if getattr(self.model, "stochastic", False):
            self._streams = streams_at(rng, "query", place)
            self._queries = 0
        self._is_early = place <= self._early_until if self._early_until >= 0 else None

    def logits(self, x: Tensor, known: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, K) float32, averaged over `eot` draws, without gradients; rows that are `known` are taken from there.

        Where only labels are shown, 1 at the class of the largest mean, 0 elsewhere; NaN where a logit is not finite.
        """
        self.cost += Cost(forwards=len(x) * self.eot)
        if known is None or not known[0].any():
            return self._shown(self._forward(x))
        rows, logits = (~known[0]).nonzero().flatten(), known[1].clone()
        if len(rows):
            logits[rows] = self._shown(self._forward(x[rows], rows))
        return logits

    def _shown(self, logits: Tensor) -> Tensor:
        if self.shows != "labels":
            return logits
        label = one_hot(logits.argmax(1), logits.shape[1]).to(logits)
        return torch.where(logits.isfinite().all(1, keepdim=True), label, torch.nan)

    def _forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        total = torch.zeros(())
        with torch.no_grad():
            for copies, streams in self._draws(len(x), rows):
                total = total + self._ask(x.repeat(copies, 1, 1, 1), streams, rows).unflatten(0, (copies, -1)).sum(0)
        return total / self.eot

    def _ask(self, x: Tensor, streams: tuple[ExampleRng, ...], rows: Tensor | None = None) -> Tensor:
        """Logits (B, K) of the model, row by row in the form that its place in the attack allows."""
        early = self._is_early
        if early is not None and rows is not None:
            early = early[rows.to(early.device)]
        if early is None or not early.any():
            logits: Tensor = self.model(x, *streams)
            return logits
        low = cast(nn.Module, self.model.early)
        if early.all():
            return cast(Tensor, low(x))
        here = early.to(x.device)
        parts = [model(x[which]) for model, which in ((low, here), (self.model, ~here))]
        order = torch.cat([here.nonzero(), (~here).nonzero()]).flatten().argsort()
        return torch.cat(parts)[order]

    def _draws(self, size: int, rows: Tensor | None = None) -> Iterator[tuple[int, tuple[ExampleRng, ...]]]:
        """How often the images go into the model at once, and what goes with them, until every draw is done.

        Few rows with streams of their own are sent several times in one batch, which costs less than one by one.
        """
        self._queries += 1
        if self._streams is None:  # chance that is drawn for a batch, by a model of the user, is drawn for each draw
            yield from ((1, ()) for _ in range(self.eot))
            return
        own = self._streams if rows is None else self._streams.take(rows)
        own = child_stream(own, f"query {self._queries}")
        for draws in split_draws(range(self.eot), size, self.rows):
            yield len(draws), (streams_of_draws(own, draws),)

    def grad(self, x: Tensor, y: Tensor, loss: LossFn) -> Query:
        """Loss (B,), its gradient (B, C, H, W) and logits (B, K) at x, each the mean of `eot` draws.

        Where the loss does not depend on x the gradient is zero.

        Raises:
            AttackError: gradients are not shown.
        """
        if self.shows != "gradients":
            raise AttackError(f"an attack that says it sees {self.shows} asked for a gradient.")
        losses, grads, outputs = torch.zeros(()), torch.zeros_like(x), torch.zeros(())
        for copies, streams in self._draws(len(x)):
            leaf = x.detach().requires_grad_()
            logits = self._ask(leaf.repeat(copies, 1, 1, 1) if copies > 1 else leaf, streams)
            value = torch.stack([loss(part, y) for part in logits.split(len(x))])
            if value.requires_grad:
                (grad,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True, materialize_grads=True)
                grads = grads + grad
            losses = losses + value.detach().sum(0)
            outputs = outputs + logits.detach().unflatten(0, (copies, -1)).sum(0)
        self.cost += Cost(len(x) * self.eot, len(x) * self.eot)
        return Query(losses / self.eot, grads / self.eot, outputs / self.eot)


def split_draws(draws: range, rows: int, most: int = _ROWS) -> Iterator[range]:
    """Draws of so many rows in groups that make a batch of at most `most` rows, one draw at least."""
    size = max(1, most // max(rows, 1))
    yield from (draws[first : first + size] for first in range(0, len(draws), size))
