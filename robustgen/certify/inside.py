"""An attack on a smoothed classifier, to be held against its certificates: inside the radius it must never succeed.

The smoothed classifier counts classes, which has no gradient; the attack climbs on the mean of the softmax instead.

Source: Salman et al. 2019, arXiv:1906.04584, section 2.2: ascent on J(x') = -log(1/m sum_i F(x' + d_i)_y), d_i normal,
with the plug-in gradient of eq. (6) (SmoothAdv-PGD). For radii in L1 d_i is the noise that certifies them, and steps
are those of SLIDE, see `ThreatModel.steepest`.
Differs: J has the same logarithm of the most probable other class added, without which it heads for the mean of all
others where the softmax is flat; new noise in every step, so that the point does not fit one set of draws; steps that
shrink to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.certify.bounds import NOISES
from robustgen.certify.spec import certified_norm
from robustgen.errors import AttackError
from robustgen.fields import POSITIVE, WHOLE, check_value, one_of
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel, norm_of

__all__ = ["SmoothedPGD", "distance_within", "smoothed_gradient"]

_INSIDE, _ROUNDING = 1 - 1e-5, 2.0**-23  # of the radius, and a pixel: float32 must not carry a point beyond it
_BALLS: dict[Norm, ThreatModel] = {"l2": ThreatModel("l2", 1.0), "l1": ThreatModel("l1", 1.0)}


def smoothed_gradient(base: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    """(B, C, H, W) gradient for x of max_{c != y} log G_c - log G_y, G = 1/m sum_i softmax(base(x + noise_i)).

    Args:
        base: (B, C, H, W) -> logits (B, K), parameters frozen.
        x, y: points (B, C, H, W) and classes (B,).
        noise: (m, B, C, H, W).
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        log_p = base((leaf + noise).flatten(0, 1)).log_softmax(1).unflatten(0, (len(noise), -1))
        log_mean = log_p.logsumexp(0)  # but for log m, which cancels
        other = log_mean.scatter(1, y[:, None], -torch.inf).amax(1)
        loss = other - log_mean.gather(1, y[:, None])[:, 0]
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
    return grad


@dataclass(frozen=True, slots=True, kw_only=True)
class SmoothedPGD:
    """Steepest ascent on the loss of the smoothed classifier, in the norm of its radii and within them.

    Args:
        sigma: of the noise, in pixels of [0, 1]; see `GridNoise` for the other kinds.
        noise: "normal" for radii in L2, "uniform" or "laplace" for radii in L1.
        draws: m, noises an image and step.
        steps: of the ascent.
        rel_step: length of the first step as a fraction of the radius; steps shrink linearly to 0.

    Raises:
        SpecError: a number that cannot be.
    """

    sigma: float
    noise: str = "normal"
    draws: int = 16
    steps: int = 20
    rel_step: float = 0.25

    def __post_init__(self) -> None:
        check_value("noise", self.noise, one_of(*NOISES))
        for name, rule in (("sigma", POSITIVE), ("draws", WHOLE), ("steps", WHOLE), ("rel_step", POSITIVE)):
            check_value(f"--{name.replace('_', '-')}", getattr(self, name), rule)

    def attack(self, base: nn.Module, x: Tensor, y: Tensor, radius: Tensor, rng: ExampleRng) -> Tensor:
        """Points (B, C, H, W) in [0, 1] that the smoothed classifier shall take for another class than y.

        Args:
            base: what is smoothed, see `smoothed_gradient`.
            x: images (B, C, H, W) in [0, 1].
            y: (B,) the class to get away from.
            radius: (B,) in pixels of [0, 1], in the norm that the noise certifies, which no point leaves.
            rng: one stream an example.
        """
        ball = _BALLS[certified_norm(self.noise)]
        rounding = float(norm_of(torch.full_like(x[:1], _ROUNDING), ball.norm))
        size = (radius * _INSIDE - rounding).to(x).clamp(min=1e-12)
        x_adv = x
        for k in range(self.steps):
            grad = smoothed_gradient(base, x_adv, y, self.sigma * self._draw(x, k, rng))
            grad = grad.masked_fill(torch.where(grad > 0, x_adv >= 1, x_adv <= 0), 0)  # the walls of [0, 1]
            grad = grad / grad.abs().flatten(1).amax(1).clamp(min=1e-38)[:, None, None, None]  # however sure it is
            length = (self.rel_step * (1 - k / self.steps) * size)[:, None, None, None]
            x_adv = ball.project(x, x_adv + length * ball.steepest(grad), size)
        return x_adv.detach()

    def _draw(self, x: Tensor, k: int, rng: ExampleRng) -> Tensor:
        """(m, B, C, H, W) noise of sigma 1 for step k."""
        draw = rng.normal if self.noise == "normal" else rng.uniform
        drawn = torch.stack([draw(x.shape[1:], f"inside-{d}", k, x.device) for d in range(self.draws)])
        if self.noise == "normal":
            return drawn
        drawn = 2 * drawn - 1
        return drawn if self.noise == "uniform" else -drawn.sign() * (1 - drawn.abs()).clamp(min=2.0**-24).log()


def distance_within(x: Tensor, x_adv: Tensor, radius: float, norm: Norm = "l2") -> float:
    """Distance in float64 of two images (C, H, W), measured by whoever does not trust the attack.

    Raises:
        AttackError: x_adv is not finite, not in [0, 1], or further away than the radius.
    """
    distance = float(_BALLS[norm].distance(x[None], x_adv[None]))
    if not bool(((x_adv >= 0) & (x_adv <= 1)).all()) or not distance <= radius:
        low, high = float(x_adv.min()), float(x_adv.max())
        raise AttackError(
            f"the attack left the certified radius {radius:g} in {norm} or [0, 1]: distance {distance:g}, "
            f"pixels {low:g} to {high:g}."
        )
    return distance
