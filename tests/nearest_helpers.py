"""Classifiers whose nearest adversarial image is known exactly, and what a minimum-norm attack finds on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor, nn

from robustgen.attacks.plans import parse_attack
from robustgen.engine import Outcome, run
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.threat import Norm, ThreatModel

Array = npt.NDArray[np.float64]
DUAL = {"linf": 1.0, "l2": 2.0}


def nearest(
    text: str, model: nn.Module, x: Tensor, y: Tensor, norm: Norm, *, batch_size: int = 64, seed: int = 0
) -> list[Outcome]:
    """What the attack leaves of each example, through the engine and the judge."""
    threat, found = ThreatModel.unbounded(norm), {}
    run(
        parse_attack(text), Oracle(model), Judge(model, threat), lambda ids: (x[list(ids)], y[list(ids)]),
        range(len(x)), threat, seed=seed, batch_size=batch_size, finish=lambda o: found.__setitem__(o.id, o),
    )  # fmt: skip
    return [found[id_] for id_ in range(len(x))]


def ratios(outcomes: list[Outcome], exact: Array) -> Array:
    """Distance found over the smallest one, by example; infinite where nothing was found."""
    found = np.array([np.inf if o.distance is None else o.distance for o in outcomes])
    ratio: Array = found / exact
    return ratio


class FarLinear(nn.Module):
    """Logits `scale` (W x + b) for grey images, each class a score of its own there: boundaries 0.2 to 0.6 away in L2.

    Args:
        shape: (C, H, W).
        classes: K; class 0 wins on grey images.
        scale: of the logits, which moves no boundary.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, scale: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        weight = torch.randn(classes, int(np.prod(shape)), generator=g)
        self.weight, self.scale, self.shape = weight / weight.norm(dim=1, keepdim=True), scale, shape
        behind = torch.cat([torch.zeros(1), torch.rand(classes - 1, generator=g) * 0.3 + 0.4])
        self.bias = -0.5 * self.weight.sum(1) - behind

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        z: Tensor = x.flatten(1) @ self.weight.to(x).T + self.bias.to(x)
        return self.scale * z

    def images(self, n: int, seed: int = 1) -> tuple[Tensor, Tensor]:
        """Images near grey (n, C, H, W), far from the walls, and their labels."""
        x = 0.5 + 0.06 * (torch.rand(n, *self.shape, generator=torch.Generator().manual_seed(seed)) - 0.5)
        return x, self(x).argmax(1)

    def exact(self, x: Tensor, y: Tensor, norm: Norm) -> Array:
        """Distance to the nearest other class in float64: margin over dual norm, in l1 and l0 with the walls."""
        w, z = self.weight.double(), x.double().flatten(1) @ self.weight.double().T + self.bias.double()
        best = np.full(len(x), np.inf)
        for k, label in enumerate(y.tolist()):
            for other in range(len(w)):
                if other != label:
                    gap = float(z[k, label] - z[k, other])
                    slope = (w[other] - w[label]).reshape(self.shape)
                    best[k] = min(best[k], _to_plane(gap, slope, x[k].double(), norm))
        return best


def _to_plane(gap: float, slope: Tensor, x: Tensor, norm: Norm) -> float:
    if norm in ("linf", "l2"):
        return gap / float(torch.linalg.vector_norm(slope.flatten(), ord=DUAL[norm]))
    room = torch.where(slope > 0, 1 - x, x)
    if norm == "l1":  # the steepest values go to the wall, one after the other
        order = slope.abs().flatten().argsort(descending=True)
        length = 0.0
        for steep, far in zip(slope.abs().flatten()[order].tolist(), room.flatten()[order].tolist(), strict=True):
            length += min(far, gap / steep)
            gap -= steep * far
            if gap <= 0:
                return length
        return np.inf
    gains = (slope.abs() * room).sum(0).flatten().sort(descending=True).values.cumsum(0)
    return float((gains < gap).sum()) + 1 if float(gains[-1]) >= gap else np.inf


class ReluNet(nn.Module):
    """One hidden layer: V relu(W x + b) + c, with `exact` by enumeration of the activation patterns."""

    def __init__(
        self, shape: tuple[int, int, int] = (1, 2, 3), hidden: int = 5, classes: int = 3, seed: int = 0
    ) -> None:
        super().__init__()
        g, size = torch.Generator().manual_seed(seed), int(np.prod(shape))
        self.shape = shape
        self.w, self.v = torch.randn(hidden, size, generator=g), 2 * torch.randn(classes, hidden, generator=g)
        self.b, self.c = (
            0.3 * torch.randn(hidden, generator=g) - 0.5 * self.w.sum(1),
            0.1 * torch.randn(classes, generator=g),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        hidden = torch.relu(x.flatten(1) @ self.w.to(x).T + self.b.to(x))
        z: Tensor = hidden @ self.v.to(x).T + self.c.to(x)
        return z

    def exact(self, x: Tensor, label: int, norm: Norm) -> float:
        """The smallest distance from x (C, H, W) to another class inside [0, 1], in float64.

        Where the pattern of active units is fixed the network is affine, so that the points of another class are
        polyhedra: the nearest point of each is a linear programme (Linf, L1), a least-distance problem (L2, Lawson &
        Hanson 1974, chapter 23, by non-negative least squares) or the first feasible choice of pixels (L0).
        """
        flat = x.double().flatten().numpy()
        if norm == "l0":
            return _fewest(list(self._polyhedra(label)), flat)
        return min((_distance(a, u, flat, norm) for a, u in self._polyhedra(label)), default=np.inf)

    def _polyhedra(self, label: int) -> Iterator[tuple[Array, Array]]:
        """(A, u) with A z <= u: the points of one activation pattern in [0, 1] where another class is not behind."""
        w, b, v, c = (t.double().numpy() for t in (self.w, self.b, self.v, self.c))
        size = w.shape[1]
        for pattern in product((0.0, 1.0), repeat=len(w)):
            on = np.array(pattern)
            side = 1 - 2 * on  # (W z + b) side <= 0
            slope, shift = (v * on) @ w, (v * on) @ b + c
            for other in set(range(len(v))) - {label}:
                a = np.vstack([side[:, None] * w, slope[label] - slope[other], np.eye(size), -np.eye(size)])
                u = np.concatenate([-side * b, [shift[other] - shift[label]], np.ones(size), np.zeros(size)])
                yield a, u


def _distance(a: Array, u: Array, x: Array, norm: Norm) -> float:
    """The distance from x to {z: A z <= u}; infinite where it is empty."""
    room = u - a @ x  # A d <= room
    if norm == "l2":
        return _least_distance(a, room)
    size = len(x)
    if norm == "linf":  # min t with |d_j| <= t
        one, column = np.eye(size), -np.ones((size, 1))
        rows = np.block([[a, np.zeros((len(a), 1))], [one, column], [-one, column]])
        bound, cost = np.concatenate([room, np.zeros(2 * size)]), np.append(np.zeros(size), 1.0)
    else:  # d = p - q
        rows, bound, cost = np.hstack([a, -a]), room, np.ones(2 * size)
    free = [(None, None)] * size + [(0, None)] if norm == "linf" else [(0, None)] * (2 * size)
    solved = linprog(cost, A_ub=rows, b_ub=bound, bounds=free)
    return float(solved.fun) if solved.status == 0 else np.inf


def _least_distance(a: Array, room: Array) -> float:
    """min |d| with A d <= room."""
    e = np.vstack([-a.T, -room[None]])
    f = np.append(np.zeros(a.shape[1]), 1.0)
    u, _ = nnls(e, f, maxiter=1000)
    r = e @ u - f
    if abs(r[-1]) < 1e-9:
        return np.inf
    d = -r[:-1] / r[-1]
    return float(np.linalg.norm(d)) if (a @ d <= room + 1e-7).all() else np.inf


def _fewest(polyhedra: Sequence[tuple[Array, Array]], x: Array) -> float:
    """The fewest coordinates, each a pixel of one channel, that lead into one of {z: A z <= u}; infinite for none."""
    for count in range(len(x) + 1):
        for chosen in map(list, combinations(range(len(x)), count)):
            fixed = [j for j in range(len(x)) if j not in chosen]
            for a, u in polyhedra:
                left, free = u - a[:, fixed] @ x[fixed], a[:, chosen]
                if (np.minimum(free, 0).sum(1) > left).any():
                    continue  # a row out of reach of every value in [0, 1]
                if not count or linprog(np.zeros(count), A_ub=free, b_ub=left, bounds=[(0, 1)] * count).status == 0:
                    return float(count)
    return np.inf
