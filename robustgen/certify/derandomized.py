"""Derandomized smoothing: votes over all ablations of an image, and how many of them a patch can change.

Source: Levine & Feizi 2020, arXiv:2002.10733, section 3, theorem 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustgen.ablation import Ablation
from robustgen.certify.patch_views import Aim, lead_over
from robustgen.errors import SpecError
from robustgen.fields import check_value, number
from robustgen.patch_threat import PatchThreat

__all__ = ["VoteTarget", "ablated_votes", "certified_by_votes", "check_theta", "winner"]


def check_theta(theta: float) -> None:
    """Refuse a threshold that no probability is held against.

    Raises:
        SpecError: it is not in (0, 1].
    """
    check_value("theta", theta, (lambda value: value == 1 or number(0, 1, open_low=True)(value), "a number in (0, 1]"))


@torch.no_grad()
def ablated_votes(
    classifier: nn.Module, x: Tensor, ablation: Ablation, *, theta: float = 0.3, fill: float, batch_size: int = 1000
) -> Tensor:
    """(B, K) int64 votes: n_c = how many ablations of the image give class c a probability of at least theta.

    One ablation may vote for several classes, or for none.

    Args:
        classifier: (B, C, H, W) float32 -> logits (B, K), for images in which ablated pixels have the value `fill`.
        x: images (B, C, H, W) in [0, 1].
        ablation: what is kept.
        theta: in (0, 1].
        fill: `robustgen.ablation.UNKNOWN`, or any constant; a value that depends on the image would void certificates.
        batch_size: ablated images sent at once; it changes votes only by rounding inside the classifier.

    Raises:
        SpecError: theta is no threshold, what is kept is larger than the image, or the output is not finite.
    """
    check_theta(theta)
    positions = torch.arange(ablation.positions(*x.shape[2:]), device=x.device)
    pairs = torch.cartesian_prod(torch.arange(len(x), device=x.device), positions)
    votes: Tensor | None = None
    for image, position in (part.unbind(1) for part in pairs.split(batch_size)):
        logits = classifier(ablation.apply(x[image], position, fill))
        if not bool(logits.isfinite().all()):
            raise SpecError("the classifier returned NaN or infinity on an ablated image; nothing can be certified.")
        if votes is None:
            votes = torch.zeros(len(x), logits.shape[1], dtype=torch.int64, device=x.device)
        votes.index_add_(0, image, (logits.float().softmax(1) >= theta).long())
    assert votes is not None  # an image has at least one position
    return votes


def winner(votes: Tensor) -> Tensor:
    """(B,) int64: the class with most votes of (B, K), the lowest index among equals."""
    classes = torch.arange(votes.shape[1], device=votes.device)
    first = torch.where(votes == votes.amax(1, keepdim=True), classes, votes.shape[1])
    return first.amin(1)


def certified_by_votes(votes: Tensor, touched: int) -> Tensor:
    """(B,) bool: no change of so many ablations changes the winner.

    n_c >= max over c' != c of (n_c' + [c > c']) + 2 Delta: each ablation that a patch touches can take a vote from the
    winner c and give one to another class, and of equals the lower index wins.

    Args:
        votes: (B, K) int64.
        touched: Delta, see `Ablation.touched`.
    """
    best = winner(votes)[:, None]
    classes = torch.arange(votes.shape[1], device=votes.device)
    rivals = votes + (classes < best).long()
    rivals = rivals.scatter(1, best, -2 * touched - 1)  # the winner is no rival of itself
    return votes.gather(1, best)[:, 0] >= rivals.amax(1) + 2 * touched


@dataclass(frozen=True, slots=True)
class VoteTarget:
    """Votes over ablations as they are attacked, by patches of `side` pixels: every window is open."""

    classifier: nn.Module
    ablation: Ablation
    theta: float
    fill: float
    side: int

    def answer(self, x: Tensor) -> Tensor:
        """(B,) int64 for images (B, C, H, W)."""
        return winner(ablated_votes(self.classifier, x, self.ablation, theta=self.theta, fill=self.fill))

    def aims(self, x: Tensor, y: Tensor) -> list[Aim]:
        """One: all ablations."""
        height, width = x.shape[2:]
        positions = torch.arange(self.ablation.positions(height, width), device=x.device)
        rows, columns = PatchThreat.of(f"{self.side}x{self.side}").places(x)
        everywhere = torch.ones(rows, columns, dtype=torch.bool, device=x.device)
        return [Aim(self.ablation.kept(positions, height, width), self.fill, lead_over(self.theta), everywhere)]
