"""What a classifier is: a network that takes images in [0, 1], with its card, always in eval mode and frozen."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor, nn

from robustgen.cards import Card
from robustgen.errors import SpecError
from robustgen.usercode import PYTHON, first_line
from robustgen.weights import state_sha256

__all__ = ["UNCOPYABLE", "Classifier", "check_classifier", "check_shape"]

UNCOPYABLE = (AttributeError, RuntimeError, TypeError, pickle.PickleError)  # what copy.deepcopy raises


class Classifier(nn.Module):
    """A network with its normalisation and its card.

    Guarantee: always in eval mode, no parameter asks for a gradient.

    Args:
        network: (B, C, H, W) float32, normalised as the card says, to logits (B, K). It is set to eval and frozen.
        card: what is known of it.
        weights_sha256: of the weights file; by default computed over names and bytes of the network's state.

    Attributes:
        stochastic: True for subclasses whose `forward` takes a second argument `rng`, their only source of chance.
        training_modules: names of the sub-modules that were in training mode when the network was handed over.
    """

    stochastic: bool = False
    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: Card, *, weights_sha256: str | None = None) -> None:
        super().__init__()
        self.card = card
        self.training_modules = frozenset(name for name, module in network.named_modules() if module.training)
        self.network = network.eval().requires_grad_(False)
        self.weights_sha256 = weights_sha256 or state_sha256(network.state_dict())
        self.normalises = bool(card.mean)
        self.register_buffer("mean", torch.tensor(card.mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card.std).reshape(1, -1, 1, 1), persistent=False)
        self.train(False)

    @property
    def was_training(self) -> bool:
        """Whether any part of the network was in training mode when it was handed over."""
        return bool(self.training_modules)

    def train(self, mode: bool = True) -> Classifier:
        """Stay in eval mode, whatever is asked."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 in [0, 1] to logits (B, K)."""
        if self.normalises:
            x = (x - self.mean) / self.std
        return self.network(x)  # type: ignore[no-any-return]


def check_classifier(
    classifier: Classifier, x: Tensor, y: Tensor | None = None, *, rng: object | None = None
) -> list[str]:
    """Refuse a classifier that cannot be evaluated, before any work is done.

    Torch's global generator, and the classifier's weights and buffers are left as found.

    Args:
        classifier: what is to be evaluated.
        x: (B, C, H, W) float32 in [0, 1], a small batch.
        y: (N,) int64 labels, of this batch or of all the examples that are to be evaluated.
        rng: given to the classifier as second argument, for stochastic ones.

    Returns:
        Health flags: "probabilities" when the outputs are probabilities, not logits.

    Raises:
        SpecError: wrong images, a forward pass that raises, an output that is not finite (B, K) logits, a label that is
            not in 0 .. K - 1, or a network handed over in training mode where that changes what it says.
    """
    card = classifier.card
    check_shape(card, tuple(x.shape[1:]))
    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        logits = _forward(classifier, x, rng)
        _check_logits(card, logits, len(x), y)
        if classifier.was_training:
            _check_mode(classifier, x, rng, logits)
    sums = logits.double().sum(1)
    in_range = bool(((logits >= -1e-5) & (logits <= 1 + 1e-5)).all())
    probabilities = in_range and logits.shape[1] >= 2 and bool(((sums - 1).abs() <= 1e-5).all())
    return ["probabilities"] if probabilities else []


def _forward(classifier: nn.Module, x: Tensor, rng: object | None) -> Tensor:
    try:
        return classifier(x) if rng is None else classifier(x, rng)  # type: ignore[no-any-return]
    except Exception as error:  # a user's network may raise anything
        card: Card = classifier.card  # type: ignore[assignment]
        raise SpecError(
            f"{card.name} raised {type(error).__name__} on a batch of shape {tuple(x.shape)}, values in [0, 1]: "
            f"{first_line(error)}."
        ) from error


def _check_logits(card: Card, logits: object, batch: int, y: Tensor | None) -> None:
    expected = f"{card.name} must return logits of shape ({batch}, K) for {batch} images"
    if not isinstance(logits, Tensor):
        raise SpecError(f"{expected}, got a {type(logits).__name__}; return the tensor of logits only.")
    if logits.ndim != 2 or len(logits) != batch or not logits.is_floating_point():
        raise SpecError(f"{expected}, floating point, got shape {tuple(logits.shape)} of {logits.dtype}.")
    classes = logits.shape[1]
    if classes == 0 or (classes == 1 and y is not None and bool((y > 0).any())):
        raise SpecError(
            f"{expected}, one for each class of the data, got shape {tuple(logits.shape)}; "
            "for two classes return (B, 2) logits, such as torch.cat([-z, z], 1) / 2."
        )
    if card.classes is not None and classes != card.classes:
        raise SpecError(f"{card.name} returned {classes} logits an image, its card says {card.classes} classes.")
    if not bool(logits.isfinite().all()):
        row = int((~logits.isfinite()).any(1).nonzero()[0])
        raise SpecError(f"{card.name} returned NaN or infinite logits, first in row {row} of the batch.")
    if y is not None and len(y) and (int(y.min()) < 0 or int(y.max()) >= classes):
        place = int(((y < 0) | (y >= classes)).nonzero()[0])
        raise SpecError(
            f"label {int(y[place])} of example {place} is not in 0 .. {classes - 1}: {card.name} has {classes} classes."
        )


def _check_mode(classifier: Classifier, x: Tensor, rng: object | None, logits: Tensor) -> None:
    """Refuse a network that says something else in the mode in which it was handed over than in eval mode."""
    name, source = classifier.card.name, classifier.card.source or ""
    advice = "call .eval() on it first"
    if source.startswith(PYTHON):
        advice = f"call .eval() in {source.rpartition(':')[2]} before returning it"
    try:
        as_given = copy.deepcopy(classifier)
    except UNCOPYABLE as error:
        raise SpecError(f"{name} is in training mode, and no copy can be made to try it in: {advice}.") from error
    for module_name, module in as_given.network.named_modules():
        module.training = module_name in classifier.training_modules
    try:
        first, second = (_forward(as_given, x, rng) for _ in range(2))
    except SpecError as error:
        raise SpecError(f"{name} is in training mode, and fails in it: {advice} ({error})") from error
    if not all(torch.allclose(answer, logits, rtol=1e-4, atol=1e-5) for answer in (first, second)):
        raise SpecError(f"{name} is in training mode, in which its answers differ: {advice}.")


def check_shape(card: Card, shape: tuple[int, ...]) -> None:
    """Refuse images (C, H, W) of another size than the card names.

    Raises:
        SpecError: what it takes, and what came.
    """
    channels, size = shape[0], tuple(shape[1:])
    if card.channels is not None and channels != card.channels:
        raise SpecError(f"{card.name} takes images of {card.channels} channels, the data has {channels}.")
    if card.size is not None and size != card.size:
        raise SpecError(
            f"{card.name} takes images of {card.size[0]} x {card.size[1]} pixels, the data has {size[0]} x {size[1]}."
        )
