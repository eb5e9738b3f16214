"""An attack on a defence against patches that knows the defence: to be held against its certificates, one image a time.

Source: attacks by gradients through what the defence does (Athalye et al. 2018, arXiv:1802.00420, section 4; Chiang
et al. 2020, arXiv:2003.06693, for patches), by Patch-PGD in the windows that gain most to first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from robustgen import engine
from robustgen.attacks.losses import Margin
from robustgen.attacks.patch_pgd import PatchPGD
from robustgen.certify.patch_views import Aim, Votes, votes_of
from robustgen.fields import WHOLE, check_value
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.patch_threat import PatchThreat

__all__ = ["PatchAttack", "Target"]


class Target(Protocol):
    """A defence as it is attacked, for patches of one side."""

    def answer(self, x: Tensor) -> Tensor:
        """(B,) int64: the class that it gives to images (B, C, H, W)."""

    def aims(self, x: Tensor, y: Tensor) -> list[Aim]:
        """What to try against the image x (1, C, H, W) with the label y (1,), the most promising first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAttack:
    """Patch-PGD on the votes of the defence's views, in several windows, judged by the defence itself.

    For each aim the gradient at the image says what each window could gain; the best ones, half a window apart, are
    tried one after the other. In each, only the views that show a pixel of it are asked, since no other can change.

    Args:
        places: windows for each aim.
        steps: of the ascent in each window.

    Raises:
        SpecError: a number below 1.
    """

    places: int = 4
    steps: int = 20

    def __post_init__(self) -> None:
        for name in ("places", "steps"):
            check_value(f"--{name}", getattr(self, name), WHOLE)

    def attack(
        self, target: Target, classifier: nn.Module, x: Tensor, y: Tensor, side: int, *, id_: int, seed: int
    ) -> engine.Outcome | None:  # fmt: skip
        """The first image inside the threat model that the defence gets wrong, or None.

        Args:
            target: the defence, which judges.
            classifier: what it asks.
            x, y: one image (1, C, H, W) in [0, 1] and its label (1,).
            side: of the patch, in pixels.
            id_, seed: of the example, and of its random stream.
        """
        found: list[engine.Outcome] = []
        for aim in target.aims(x, y):
            everywhere = torch.ones(len(aim.keep), dtype=torch.bool, device=x.device)
            whole = Votes(classifier, aim, everywhere, torch.zeros(()))
            with torch.no_grad():
                leads = whole.leads(x)
            for row, column in self._places(whole, aim, x, y, side):
                threat = PatchThreat.of(f"{side}x{side}@{row},{column}")
                touched = aim.touched(threat, x)
                if not bool(touched.any()):
                    continue
                rest = votes_of(leads[:, ~touched])[0] if bool((~touched).any()) else torch.zeros(())
                engine.run(
                    PatchPGD(places=1, keep=1, steps=self.steps), Oracle(Votes(classifier, aim, touched, rest)),
                    Judge(_Answers(target, leads.shape[2]), threat), lambda _: (x, y), [id_], threat, seed=seed,
                    batch_size=1, finish=found.append,
                )  # fmt: skip
                if found[-1].broken:
                    return found[-1]
        return None

    def _places(self, votes: Votes, aim: Aim, x: Tensor, y: Tensor, side: int) -> list[tuple[int, int]]:
        """Upper left pixels of the windows to try: the open ones that gain most, or of all where none is open."""
        grad = Oracle(votes).grad(x, y, Margin()).grad
        best = (grad > 0).to(x)
        gains = PatchThreat.of(f"{side}x{side}").window_sums((grad * (best - x)).sum(1).double())[0]
        left = gains.masked_fill(~aim.open, -torch.inf) if bool(aim.open.any()) else gains
        apart, chosen = -(-side // 2), list[tuple[int, int]]()
        while len(chosen) < self.places and bool(left.isfinite().any()):
            row, column = divmod(int(left.argmax()), left.shape[1])
            chosen.append((row, column))
            near = (slice(max(0, at - apart + 1), at + apart) for at in (row, column))
            left[tuple(near)] = -torch.inf
        return chosen


class _Answers(nn.Module):
    """The defence as the judge asks it: logits that are 1 at its answer and 0 elsewhere."""

    def __init__(self, target: Target, classes: int) -> None:
        super().__init__()
        self.target, self.classes = target, classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return nn.functional.one_hot(self.target.answer(x), self.classes).to(x)
