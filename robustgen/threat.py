"""Threat models: what an adversary may do to an image, and the geometry every attack needs.

Images are (B, C, H, W) float32 in [0, 1]; eps and distances are in the same unit. Only `l0` counts instead: pixels,
that is places of the image at which any channel differs. A threat model without an eps, written `l2` alone, holds all
of [0, 1]: its norm says how far away an adversarial image is, which is what minimum-norm attacks make small. `patch`
is a window of pixels instead of a ball: `robustgen.patch_threat` holds its geometry.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from robustgen.eps import parse_eps
from robustgen.errors import SpecError, unknown_name
from robustgen.rng import ExampleRng

__all__ = ["BALLS", "Norm", "ThreatModel", "norm_of", "per_row"]

Norm = Literal["linf", "l2", "l1", "l0", "patch"]
BALLS: tuple[Norm, ...] = ("linf", "l2", "l1")  # the norms with an eps

_TINY = 1e-12
_BISECTIONS = 26  # leaves 2^-26 of the largest coordinate: less than float32 tells apart
_SLIDE_FRACTION = 0.01  # Tramèr & Boneh 2019 move the 1 % of coordinates with the largest gradient


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), to scale whole images of `like` (B, C, H, W)."""
    return values.reshape(-1, *([1] * (like.dim() - 1)))


@dataclass(frozen=True, slots=True)
class ThreatModel:
    """A ball of radius `eps` in `norm` around each image, intersected with the box [0, 1].

    Args:
        norm: "linf", "l2", "l1"; "l0", the number of pixels that differ in any channel, only without an eps; "patch"
            where the class is `PatchThreat`.
        eps: radius in pixel units of [0, 1]; positive and finite, or infinite with no text: no eps at all.
        text: eps as it was written ("8/255"), kept for printing.
    """

    norm: Norm
    eps: float
    text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise unknown_name("norm", str(self.norm), get_args(Norm))
        if self.norm == "patch":
            raise SpecError("threat: a patch has a size, not an eps; type ThreatModel.parse('patch:6x6').")
        if math.isinf(self.eps) and self.eps > 0 and not self.text:
            return
        shown = self.text or repr(self.eps)
        if self.norm == "l0":
            raise SpecError(
                f"threat: l0 is measured, not bounded, got l0:{shown}; type --threat l0 --report distance, or an eps "
                "in another norm, for example l1:12."
            )
        if not math.isfinite(self.eps) or self.eps <= 0:
            raise SpecError(
                f"threat: eps must be a positive number, got {self.norm}:{shown}; type for example linf:8/255."
            )
        if self.norm == "linf" and self.eps > 1:
            hint = f"; did you mean linf:{shown}/255?" if "/" not in shown and self.eps <= 255 else "."
            raise SpecError(f"threat: images lie in [0, 1], so a linf eps above 1 means nothing, got {shown}{hint}")
        if not self.text:
            object.__setattr__(self, "text", repr(self.eps))

    @classmethod
    def unbounded(cls, norm: Norm) -> ThreatModel:
        """No eps: all of [0, 1], with distances in this norm."""
        return cls(norm, math.inf)

    @classmethod
    def parse(cls, text: str | ThreatModel, *, bare: bool = False) -> ThreatModel:
        """Read "linf:8/255", "L2:0.5", "l1:12", "patch:6x6"; `str()` gives the same back.

        Args:
            text: what was typed.
            bare: whether a norm alone, "l2", will do; it stands for no eps.

        Raises:
            SpecError: not of that form, an unknown norm, or an eps that is no positive number.
        """
        if isinstance(text, ThreatModel):
            return text
        norm, colon, eps = text.strip().partition(":")
        norm, eps = norm.strip().lower(), eps.strip()
        if norm not in get_args(Norm):
            raise unknown_name(
                "norm", norm, get_args(Norm), hint="A threat model reads like linf:8/255, l2:0.5, l1:12 or patch:6x6."
            )
        if norm == "patch":
            from robustgen.patch_threat import PatchThreat  # it stands on this module

            return PatchThreat.of(eps)
        if bare and not colon:
            return cls.unbounded(cast(Norm, norm))
        if not colon or not eps:
            raise SpecError(f"threat: expected {norm}:EPS such as {_example(cast(Norm, norm))}, got '{text}'.")
        return cls(cast(Norm, norm), parse_eps(eps), eps)

    @classmethod
    def parse_all(cls, text: str | ThreatModel, *, bare: bool = False) -> tuple[ThreatModel, ...]:
        """Read one threat model or several with commas: "linf:8/255,l2:0.5" is the union of the two."""
        if isinstance(text, ThreatModel):
            return (text,)
        parts = re.split(r",(?=\s*[A-Za-z])", text)  # a patch holds a comma of its own: patch:6x6@2,3
        parsed = tuple(cls.parse(part, bare=bare) for part in parts)
        if len({str(threat) for threat in parsed}) < len(parsed):
            raise SpecError(f"threat: '{text}' names one of its threat models twice.")
        return parsed

    def __str__(self) -> str:
        return f"{self.norm}:{self.text}" if self.bounded else self.norm

    @property
    def bounded(self) -> bool:
        """Whether there is an eps."""
        return math.isfinite(self.eps)

    def scaled(self, factor: float) -> ThreatModel:
        """The same norm with eps multiplied by `factor`."""
        return ThreatModel(self.norm, self.eps * factor)

    def check_images(self, shape: Sequence[int]) -> None:
        """Refuse images (C, H, W) that this threat model cannot be about; a ball is about any.

        Raises:
            SpecError: they are too small for it.
        """

    @property
    def tolerance(self) -> float:
        """How far float32 rounding may carry an image beyond eps: one part in 100,000, plus 1e-7."""
        return 1e-5 * self.eps + 1e-7

    def distance(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """Distance of each pair of images in this norm, summed in float64; in l0 the number of pixels that differ.

        Args:
            x, x_adv: (B, C, H, W) in [0, 1].

        Returns:
            (B,) float64.
        """
        return norm_of(x_adv.double() - x.double(), self.norm)

    def contains(self, x: Tensor, x_adv: Tensor) -> Tensor:
        """(B,) bool: finite, in [0, 1], and within eps of x up to `tolerance`."""
        flat = x_adv.flatten(1)
        in_box = ((flat >= 0) & (flat <= 1)).all(1)  # NaN and inf fail both comparisons
        return in_box & (self.distance(x, x_adv) <= self.eps + self.tolerance)

    def project(self, x: Tensor, z: Tensor, radius: Tensor | None = None) -> Tensor:
        """Bring z (B, C, H, W) back into the ball around x and into [0, 1].

        Linf and L1: the exact projection on ball and box. L2: radial scaling, then clipping, as AutoAttack does;
        that lies in both sets but is not the nearest such point. L0: the pixels that moved most (in L2 over their
        channels, within the box) keep their values, as many as the radius allows; the nearest such point in L2.

        Args:
            x, z: (B, C, H, W).
            radius: (B,) of each row's ball; eps for all where it is left out.
        """
        size: Tensor | float = self.eps if radius is None else per_row(radius, x)
        if self.norm == "linf":
            return z.clamp(x - size, x + size).clamp(0, 1)
        if self.norm == "l2":
            delta = z - x
            length = per_row(torch.linalg.vector_norm(delta.flatten(1), dim=1), x)
            return (x + delta * (size / length.clamp(min=size))).clamp(0, 1)
        if self.norm == "l0":
            return _keep_pixels(x, z.clamp(0, 1), size)
        return _project_l1_box(x, z, size if isinstance(size, float) else size.flatten(1))

    def random_start(
        self, x: Tensor, rng: ExampleRng, purpose: str = "start", step: Tensor | int = 0, *, surface: bool = False
    ) -> Tensor:
        """A random point of the ball around x, clipped to [0, 1].

        Args:
            x: (B, C, H, W) in [0, 1].
            rng: one stream an example; `purpose` and `step` choose the numbers in it.
            surface: scale the perturbation to length eps before clipping, as APGD and AutoAttack do.
        """
        if not self.bounded:
            example = _example(self.norm if self.norm in BALLS else "l1")
            raise SpecError(f"threat {self}: this attack starts inside an eps; type --threat {example}.")
        shape = x.shape[1:]
        if self.norm == "linf":
            noise = 2 * rng.uniform(shape, purpose, step, x.device) - 1
            scale = 1 / _length(noise, math.inf) if surface else 1.0
            return self.project(x, x + self.eps * scale * noise)
        if self.norm == "l2":
            noise = rng.normal(shape, purpose, step, x.device)
            radius = (
                1.0 if surface else rng.uniform((1, 1, 1), purpose + "-radius", step, x.device) ** (1 / x[0].numel())
            )
            return self.project(x, x + self.eps * radius / _length(noise, 2) * noise)
        noise = rng.normal(shape, purpose, step, x.device)
        return self.project(x, x + noise if surface else x + self.eps * noise / _length(noise, 1))

    def steepest(self, grad: Tensor) -> Tensor:
        """The unit step of this norm that raises a linear function with gradient `grad` (B, C, H, W) most.

        L1 moves along the signs of the 1 % largest coordinates (SLIDE; Tramèr & Boneh 2019, arXiv:1904.13000,
        section 4.2): a single coordinate, the exact answer, makes steps too sparse to be useful.

        Raises:
            SpecError: in L0, whose unit step has no length.
        """
        if self.norm == "l0":
            raise SpecError(f"threat {self}: this attack follows the steepest direction, and l0 has none; type l1:12.")
        if self.norm == "linf":
            return grad.sign()
        if self.norm == "l2":
            return grad / (_length(grad, 2) + _TINY)
        flat = grad.abs().flatten(1)
        kth = flat.topk(max(1, round(_SLIDE_FRACTION * flat.shape[1])), dim=1).values[:, -1]
        direction = grad.sign() * (grad.abs() >= per_row(kth, grad))
        return direction / (_length(direction, 1) + _TINY)


def norm_of(z: Tensor, norm: Norm) -> Tensor:
    """(B,) norm of each row of z (B, C, H, W), of its dtype; in l0 the number of pixels at which a channel is not 0."""
    if norm == "l0":
        return (z != 0).any(1).flatten(1).sum(1).to(z.dtype)
    order = {"linf": math.inf, "l2": 2, "l1": 1}[norm]
    length: Tensor = torch.linalg.vector_norm(z.flatten(1), ord=order, dim=1)
    return length


def _example(norm: Norm) -> str:
    return f"{norm}:{'8/255' if norm == 'linf' else '0.5'}"


def _keep_pixels(x: Tensor, z: Tensor, count: float | Tensor) -> Tensor:
    """z where it moved the `count` (B, 1, 1, 1) pixels of x that moved most, x elsewhere; equals in order of place."""
    moved = (z - x).square().sum(1).flatten(1)
    rank = moved.argsort(dim=1, descending=True, stable=True).argsort(dim=1).reshape(len(x), 1, *x.shape[2:])
    return torch.where(rank < count, z, x)


def _length(z: Tensor, order: float) -> Tensor:
    """(B, 1, 1, 1) norm of each row of z (B, C, H, W), never zero."""
    return per_row(torch.linalg.vector_norm(z.flatten(1), ord=order, dim=1).clamp(min=_TINY), z)


def _project_l1_box(x: Tensor, z: Tensor, eps: float | Tensor) -> Tensor:
    """Nearest point to z in {u : ||u - x||_1 <= eps} and in [0, 1].

    With delta = z - x and b_i the room to the wall of the box in the direction of delta_i, the optimum is
    sign(delta_i) * clip(|delta_i| - lam, 0, b_i) with the least lam >= 0 that meets the budget (the KKT conditions;
    Croce & Hein 2021, arXiv:2103.01208, Proposition 2.1). The budget spent falls with lam and is piecewise linear, so
    bisection brings lam between two neighbouring kinks, where one linear interpolation makes it exact. Sorting the
    kinks gives the same and takes ten times as long.
    """
    delta = (z - x).flatten(1)
    size, x_flat = delta.abs(), x.flatten(1)
    room = torch.minimum(torch.where(delta > 0, 1 - x_flat, x_flat), size)

    def spent(lam: Tensor) -> Tensor:
        return torch.minimum((size - lam).clamp(min=0), room).sum(1, keepdim=True)

    low, high = (
        torch.zeros_like(size[:, :1]),
        size.amax(1, keepdim=True),
    )  # spent(low) >= eps >= spent(high) where it binds
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        over = spent(middle) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    above, below = spent(low), spent(high)
    lam = low + (high - low) * ((above - eps) / (above - below).clamp(min=_TINY)).clamp(0, 1)
    lam = torch.where(room.sum(1, keepdim=True) <= eps, torch.zeros_like(lam), lam)
    kept = torch.minimum((size - lam).clamp(min=0), room)
    return (x_flat + delta.sign() * kept).clamp(0, 1).reshape(x.shape)
