"""The judge: the only part that may call an image broken. It trusts neither the attack nor the search form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from robustgen.memory import is_memory_error
from robustgen.oracle import split_draws
from robustgen.precision import standard_layout
from robustgen.rng import ExampleRng, child_stream, streams_at, streams_of_draws
from robustgen.threat import ThreatModel

__all__ = ["VOTES", "Judge", "Verdict", "clean_streams", "judging_streams", "strict_float32"]

VOTES = (21, 63, 255)
"""Passes of a randomised classifier whose majority is its prediction; then those that must say of a break the same.

An attack shows the judge hundreds of points. Of as many that are right by a little more than half one has an unlucky
majority of 21; with 55 % each one in three has; one in 270 gets through all three votes, with 60 % one in 170,000.
"""


def clean_streams(seed: int, ids: Sequence[int]) -> ExampleRng:
    """Where the noise comes from when clean images are judged."""
    return child_stream(ExampleRng.of(seed, ids), "clean")


def judging_streams(rng: ExampleRng, rounds: Tensor) -> ExampleRng:
    """Where the noise comes from when points of an attack are judged, its streams `rng` at these `rounds` (B,)."""
    return streams_at(rng, "judge", rounds)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was measured, row by row.

    Attributes:
        broken: (B,) bool: inside the threat model and misclassified; where there is a goal, classified as that.
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
        votes: passes whose majority is the prediction, then those of each further vote, with chance of its own, that a
            success must win as well: one pass for deterministic classifiers, `VOTES` for random ones, so that neither
            a lucky miss nor a lucky majority is ever counted as broken.
        sure: the probability that the class must have, beside being predicted; for forged images.
    """

    def __init__(
        self, classifier: nn.Module, threat: ThreatModel, *, votes: Sequence[int] = (1,), sure: float = 0.0
    ) -> None:
        self.classifier = classifier
        self.threat = threat
        self.votes = votes
        self.sure = sure

    @property
    def stochastic(self) -> bool:
        """Whether the classifier takes the streams that its noise comes from."""
        return bool(getattr(self.classifier, "stochastic", False))

    def see(self, x: Tensor, rng: ExampleRng | None = None) -> tuple[Tensor, Tensor]:
        """Prediction (B,) int64 of each image x (B, C, H, W), -1 where a logit is not finite; mean logits (B, K).

        Args:
            x: images.
            rng: one stream a row for classifiers that take them; None for torch's global generator.
        """
        return self._vote(x, range(self.votes[0]), rng)

    def decide(
        self, x: Tensor, y: Tensor, rng: ExampleRng | None = None, goal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `see`, but a success, another class than y (B,) or the goals (B,), must win every vote.

        Prediction and mean logits are those of the last vote that was taken about a row: of the first that says
        otherwise, or of the largest one.
        """
        prediction, mean = self.see(x, rng)
        first = self.votes[0]
        for passes in self.votes[1:]:
            due = _success(prediction, y, goal).nonzero().flatten()
            if not len(due):
                break
            streams = None if rng is None else rng.take(due)
            prediction[due], mean[due] = self._vote(x[due], range(first, first + passes), streams)
            first += passes
        return prediction, mean

    def _vote(self, x: Tensor, draws: range, rng: ExampleRng | None) -> tuple[Tensor, Tensor]:
        passes = self.passes(x, draws, rng)
        mean = passes.mean(0)
        sick = ~mean.isfinite().all(1)
        # The mode by counting; torch.mode would call ties for the smallest class as well.
        prediction = one_hot(passes.argmax(2), mean.shape[1]).sum(0).argmax(1)
        return torch.where(sick, -1, prediction), mean

    def passes(self, x: Tensor, draws: range, rng: ExampleRng | None = None) -> Tensor:
        """(D, B, K) float32 logits of the images x (B, C, H, W), each of the D draws with chance of its own."""
        if rng is None or not self.stochastic:
            return torch.stack([self._logits(x, ()) for _ in draws])
        parts = [
            self._logits(x.repeat(len(part), 1, 1, 1), (streams_of_draws(rng, part),)).unflatten(0, (len(part), -1))
            for part in split_draws(draws, len(x))
        ]
        return torch.cat(parts)

    def predict(self, x: Tensor, rng: ExampleRng | None = None) -> Tensor:
        """(B,) int64: the class of each image x (B, C, H, W); -1 where a logit is not finite."""
        return self.see(x, rng)[0]

    def _logits(self, x: Tensor, streams: tuple[ExampleRng, ...]) -> Tensor:
        """Logits (B, K) in float32; in halves where memory runs out."""
        try:
            with torch.no_grad():
                logits: Tensor = self.classifier(standard_layout(x), *streams)
        except RuntimeError as error:
            if len(x) == 1 or not is_memory_error(error):
                raise
            halves = torch.arange(len(x)).tensor_split(2)
            return torch.cat([self._logits(x[half], tuple(s.take(half) for s in streams)) for half in halves])
        return logits

    def __call__(
        self, x: Tensor, y: Tensor, x_adv: Tensor, rng: ExampleRng | None = None, goal: Tensor | None = None
    ) -> Verdict:
        """Judge x_adv (B, C, H, W) against the clean x and the labels y (B,), or the goals (B,) where there are some.

        Logits that are not finite are a failure of the model, not a success of the attack: never broken.
        """
        prediction, mean = self.decide(x_adv, y, rng, goal)
        inside = self.threat.contains(x, x_adv)
        broken = inside & _success(prediction, y, goal)
        if self.sure > 0:
            broken &= mean.softmax(1).amax(1) >= self.sure
        return Verdict(broken, inside, prediction, self.threat.distance(x, x_adv))


def _success(prediction: Tensor, y: Tensor, goal: Tensor | None) -> Tensor:
    """(B,) bool: what an attack wants; never of logits that are not finite."""
    return (prediction != y if goal is None else prediction == goal) & (prediction >= 0)


class strict_float32:  # noqa: N801 -- used as a function: `with strict_float32():`
    """Context in which float32 means float32: TF32 and cudnn.benchmark off, restored afterwards."""

    def __enter__(self) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        self._held = (cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32)
        cudnn.allow_tf32 = cudnn.benchmark = cuda.matmul.allow_tf32 = False

    def __exit__(self, *_: object) -> None:
        cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
        cudnn.allow_tf32, cudnn.benchmark, cuda.matmul.allow_tf32 = self._held
