"""The judge: the only part that may call an image broken. It trusts neither the attack nor the search form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustgen.attacks.losses import margin
from robustgen.memory import is_memory_error
from robustgen.precision import standard_layout
from robustgen.threat import ThreatModel

__all__ = ["Judge", "Verdict", "strict_float32"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, row by row.

    Attributes:
        broken: (B,) bool: inside the threat model and misclassified.
        inside: (B,) bool: finite, in [0, 1], within eps.
        prediction: (B,) int64; -1 where the logits are not finite.
        distance: (B,) float64 in the norm of the threat model.
    """

    broken: Tensor
    inside: Tensor
    prediction: Tensor
    distance: Tensor


class Judge:
    """Measures distance, range and prediction of exactly the images that get stored.

    Args:
        classifier: the untouched reference, float32, eval mode.
        threat: what the adversary may do.
        votes: passes whose majority is the prediction: 1 for deterministic classifiers, more for stochastic ones, so
            that one lucky miss is never counted as broken.
    """

    def __init__(self, classifier: nn.Module, threat: ThreatModel, *, votes: int = 1) -> None:
        self.classifier = classifier
        self.threat = threat
        self.votes = votes

    def look(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Prediction (B,) int64 of each image x (B, C, H, W), -1 where a logit is not finite; and its margin (B,)."""
        passes = [self._logits(x) for _ in range(self.votes)]
        mean = torch.stack(passes).mean(0)
        sick = ~mean.isfinite().all(1)
        if self.votes == 1:
            prediction = mean.argmax(1)
        else:  # the mode by counting; torch.mode would call ties for the smallest class as well
            prediction = sum(one_hot(z.argmax(1), z.shape[1]) for z in passes).argmax(1)  # type: ignore[union-attr]
        return torch.where(sick, -1, prediction), margin(mean, y)

    def predict(self, x: Tensor) -> Tensor:
        """(B,) int64: the class of each image x (B, C, H, W); -1 where a logit is not finite."""
        return self.look(x, torch.zeros(len(x), dtype=torch.int64, device=x.device))[0]

    def _logits(self, x: Tensor) -> Tensor:
        """Logits (B, K) in float32; in halves where memory runs out."""
        try:
            with torch.no_grad():
                logits: Tensor = self.classifier(standard_layout(x))
        except RuntimeError as error:
            if len(x) == 1 or not is_memory_error(error):
                raise
            return torch.cat([self._logits(half) for half in x.tensor_split(2)])
        return logits

    def __call__(self, x: Tensor, y: Tensor, x_adv: Tensor) -> Verdict:
        """Judge x_adv (B, C, H, W) against the clean x and the labels y (B,).

        Logits that are not finite are a failure of the model, not a success of the attack: never broken.
        """
        prediction = self.predict(x_adv)
        inside = self.threat.contains(x, x_adv)
        broken = inside & (prediction != y) & (prediction >= 0)
        return Verdict(broken, inside, prediction, self.threat.distance(x, x_adv))


class strict_float32:  # noqa: N801 -- used as a function: `with strict_float32():`
    """Context in which float32 means float32: TF32 and cudnn.benchmark off, restored afterwards."""

    def __enter__(self) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        self._held = (cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32)
        cudnn.allow_tf32 = cudnn.benchmark = cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32 = self._held
