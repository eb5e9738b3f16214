"""Targeted APGD on the classes that are nearest in the first-order sense: MALT's order of targets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from robustgen.attacks.apgd import APGDT
from robustgen.attacks.base import QueryModel
from robustgen.attacks.losses import Loss, TargetedMargin, ranked_classes
from robustgen.registry import register_attack
from robustgen.threat import ThreatModel

__all__ = ["MALT"]

_TINY = 1e-12


@register_attack("malt")
@dataclass(frozen=True, slots=True, kw_only=True)
class MALT(APGDT):
    """Targeted APGD with targets in the order of their normalised margin (z_y - z_t) / ||grad(z_y - z_t)||.

    The norm is the dual of the threat model's, so the ratio is the distance to the boundary of t if the classifier were
    linear. It costs one backward for each of `candidates` classes, the nearest by logits, at every restart.

    Source: Melamed et al. 2024, arXiv:2407.02240, Algorithm 1.
    Differs: the loss is the margin z_t - z_y by default; the paper runs targeted APGD on DLR.
    """

    loss: Loss = TargetedMargin()
    candidates: int = 9
    takes_goal: ClassVar[bool] = False  # its order of classes is all that it adds to APGD-T

    def order(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        ranked = ranked_classes(oracle.logits(x), y)[:, : self.candidates]
        if ranked.shape[1] == 0:
            return ranked
        order = {"linf": 1.0, "l2": 2.0, "l1": torch.inf}[threat.norm]
        distances = []
        for target in ranked.T:
            query = oracle.grad(x, y, partial(TargetedMargin(), target=target))
            slope = torch.linalg.vector_norm(query.grad.flatten(1), ord=order, dim=1)
            distances.append(-query.loss / (slope + _TINY))
        return ranked.gather(1, torch.stack(distances, 1).argsort(dim=1, stable=True))
