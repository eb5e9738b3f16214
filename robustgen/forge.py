"""An image that a classifier is sure to be some class: ascent on that class, held near its start by a weight.

The classical example of a lecture: noise, or a picture of something else, becomes "surely a dress" without looking like
one. Whether it survives a purifier or smoothing is asked afterwards; the ascent knows of neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen import engine
from robustgen.attacks.base import Query
from robustgen.attacks.losses import LossFn
from robustgen.attacks.pgd import PGD
from robustgen.cards import Card
from robustgen.certify.certify import predict_votes, verdict
from robustgen.certify.noise import GridNoise
from robustgen.certify.smoothed import check_base
from robustgen.certify.votes import Voter
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.defended import defend
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.fields import NOT_NEGATIVE, POSITIVE, SEED, SHARE, WHOLE, Rule, check_value, or_none
from robustgen.files import read_image
from robustgen.goals import find_class
from robustgen.judge import Judge, strict_float32
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel
from robustgen.prepare import default_data
from robustgen.progress import Progress
from robustgen.purify.parse import parse_purifier
from robustgen.rng import ExampleRng, child_stream
from robustgen.threat import ThreatModel

__all__ = ["ForgeRequest", "Forged", "forge"]

NOISE = "noise"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgeRequest:
    """What is to be forged, as typed.

    Attributes:
        target: class by number or by the name in the classifier's card.
        start: "noise" (uniform), an image file, or the number of an example of the classifier's data.
        closeness: lambda, the weight of the squared L2 distance to the start, in pixels of [0, 1].
        sure: probability of the class at which the ascent ends.
        steps, step: how many, and the L2 length of each.
        purify, draws: a purifier to send the result through, so often where it is random.
        smooth, samples, alpha: sigma, votes and error of PREDICT of the smoothed classifier.
    """

    target: str
    start: str = NOISE
    closeness: float = 0.1
    classifier: str = "fmnist-standard"
    sure: float = 0.9
    steps: int = 500
    step: float = 0.05
    seed: int = 0
    purify: str | None = None
    draws: int = 21
    smooth: float | None = None
    samples: int = 1000
    alpha: float = 0.001
    weights: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            check_value(f"--{name}", getattr(self, name), rule)
        if self.purify is not None:
            parse_purifier(self.purify)


_RULES: dict[str, Rule] = {
    "closeness": NOT_NEGATIVE, "sure": SHARE, "steps": WHOLE, "step": POSITIVE, "seed": SEED, "draws": WHOLE,
    "samples": WHOLE, "smooth": (or_none(POSITIVE[0]), POSITIVE[1]),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Forged:
    """What came of it.

    Attributes:
        target: class.
        names: of the classes.
        start, result: (C, H, W) float32 in [0, 1].
        before, after: (K,) probabilities of the two.
        steps: taken until the classifier was sure, or all.
        sure: whether it became so.
        purified, smoothed: what the defences say of the result; None where nobody asked.
    """

    target: int
    names: tuple[str, ...]
    start: Tensor
    result: Tensor
    before: Tensor
    after: Tensor
    steps: int
    sure: bool
    purified: dict[str, Any] | None = None
    smoothed: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """All but the images."""
        change = (self.result - self.start).double()
        return {
            "target": self.target, "name": self.names[self.target], "sure": self.sure, "steps": self.steps,
            "before": self.before.tolist(), "after": self.after.tolist(), "names": list(self.names),
            "l2": float(change.norm()), "linf": float(change.abs().max()),
            "purified": self.purified, "smoothed": self.smoothed,
        }  # fmt: skip


def forge(request: ForgeRequest, *, device: str, progress: Progress) -> Forged:
    """Make the image, and ask the defences.

    Raises:
        SpecError, ArtifactError: no such class, an image of another size, or nothing that can be loaded; no work is
            done before.
    """
    where = pick_device(device)
    classifier = load_classifier(request.classifier, weights=request.weights).to(where)
    start = _start(request, classifier.card).to(where)
    check_classifier(classifier, start[None])
    with strict_float32():
        before = _probabilities(classifier, start, request.seed)
        names = classifier.card.class_names or tuple(map(str, range(len(before))))
        target = find_class(request.target, names)
        defended = None if request.purify is None else defend(classifier, request.purify).to(where)
        if request.smooth is not None:
            check_base(classifier, start[None])
        outcome = _ascend(request, classifier, start, target, progress)
        held = outcome.x_adv if outcome.x_adv is not None else outcome.nearest
        result = start if held is None else held.to(where)
        return Forged(
            target=target, names=names, start=start.cpu(), result=result.cpu(), before=before,
            after=_probabilities(classifier, result, request.seed),
            steps=request.steps if outcome.round is None else outcome.round, sure=outcome.broken,
            purified=None if defended is None else _ask_purified(request, defended, result, target),
            smoothed=None if request.smooth is None else _ask_smoothed(request, classifier, result, target, len(names)),
        )  # fmt: skip


def _start(request: ForgeRequest, card: Card) -> Tensor:
    """(C, H, W): noise, a file or an example."""
    path = Path(request.start).expanduser()
    if request.start == NOISE:
        if card.channels is None or card.size is None:
            raise SpecError(f"--from noise: {card.name} does not say what size its images have; give --from IMAGE.")
        shape = (card.channels, *card.size)
        return ExampleRng.of(request.seed, [0]).uniform(shape, "forge")[0]
    if path.is_file():
        image = torch.from_numpy(read_image(path, card.channels or 3))
    elif request.start.isdecimal():
        data = load_data(default_data(request.classifier), data_dir=request.data_dir)
        if int(request.start) >= len(data):
            raise SpecError(f"--from {request.start}: {data.name} has the examples 0 to {len(data) - 1}.")
        image = data.batch([int(request.start)])[0][0]
    else:
        raise SpecError(f"--from must be noise, an image file or the number of an example, got '{request.start}'.")
    if card.size is not None and tuple(image.shape[1:]) != tuple(card.size):
        raise SpecError(
            f"--from {request.start} is {image.shape[1]} pixels high and {image.shape[2]} wide, {card.name} takes "
            f"images of {card.size[0]} x {card.size[1]}; resize it first."
        )
    return image


class _Told(Oracle):
    """Says at each step how probable the class is."""

    def __init__(self, model: SearchModel, target: int, progress: Progress) -> None:
        super().__init__(model)
        self._target, self._progress, self._step = target, progress, 0

    def look_at(self, rng: ExampleRng, place: Tensor) -> None:
        super().look_at(rng, place)
        self._step = int(place.max())

    def grad(self, x: Tensor, y: Tensor, loss: LossFn) -> Query:
        query = super().grad(x, y, loss)
        share = float(query.logits.softmax(1)[0, self._target])
        self._progress.advance(self._step - 1, f"probability {share:.2f}")  # the start is looked at before any step
        return query


def _ascend(
    request: ForgeRequest, classifier: Classifier, start: Tensor, target: int, progress: Progress
) -> engine.Outcome:
    """PGD on log p_t - lambda ||x - start||^2 over all of [0, 1], until the judge finds the class sure."""
    anywhere = ThreatModel("l2", math.sqrt(start.numel()))
    ascent = PGD(steps=request.steps, rel_step=request.step / anywhere.eps, closeness=request.closeness)
    oracle, found = _Told(SearchModel(classifier, SearchForm()), target, progress), list[engine.Outcome]()
    progress.start("forge", request.steps)
    label = torch.zeros(1, dtype=torch.int64, device=start.device)
    engine.run(
        ascent, oracle, Judge(classifier, anywhere, sure=request.sure), lambda _ids: (start[None], label), [0],
        anywhere, seed=request.seed, batch_size=1, finish=found.append, keep_nearest=True, starts=lambda _id: start,
        goals=lambda _ids: label + target,
    )  # fmt: skip
    return found[0]


def _streams(request: ForgeRequest, use: str) -> ExampleRng:
    return child_stream(ExampleRng.of(request.seed, [0]), use)


def _probabilities(classifier: Classifier, image: Tensor, seed: int) -> Tensor:
    """(K,) softmax on the CPU."""
    judge = Judge(classifier, ThreatModel("linf", 1.0))
    _, mean = judge.see(image[None], child_stream(ExampleRng.of(seed, [0]), "forge probabilities"))
    return mean[0].softmax(0).cpu()


def _ask_purified(request: ForgeRequest, defended: Classifier, image: Tensor, target: int) -> dict[str, Any]:
    """Votes of the classifier behind the purifier over fresh draws; of one draw where nothing is random."""
    draws = request.draws if defended.stochastic else 1
    judge = Judge(defended, ThreatModel("linf", 1.0))
    passes = judge.passes(image[None], range(draws), _streams(request, "forge purified"))
    votes = torch.bincount(passes.argmax(2).flatten().cpu(), minlength=passes.shape[2])
    return {
        "purifier": request.purify, "draws": draws, "votes": votes.tolist(), "prediction": int(votes.argmax()),
        "survives": int(votes.argmax()) == target,
    }  # fmt: skip


def _ask_smoothed(
    request: ForgeRequest, classifier: Classifier, image: Tensor, target: int, classes: int
) -> dict[str, Any]:
    """PREDICT of Cohen et al. 2019, arXiv:1902.02918, section 3.2; -1 where it abstains."""
    assert request.smooth is not None
    noise, device = GridNoise(request.smooth), image.device
    voter = Voter(classifier, noise, seed=request.seed, classes=classes, batch_size=250, device=device)
    votes = predict_votes(voter, 0, image.cpu().double().numpy(), samples=request.samples)
    said = verdict(votes, request.alpha)
    return {
        "sigma": request.smooth, "samples": request.samples, "alpha": request.alpha, "votes": votes.tolist(),
        "prediction": said, "survives": said == target,
    }  # fmt: skip
