"""A classifier behind a purifier: a classifier itself, and what gets attacked."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from robustgen.attacks.plans import Plan
from robustgen.classifier import Classifier
from robustgen.errors import SpecError
from robustgen.fields import check_value, one_of
from robustgen.generator.load import load_generator, with_precision
from robustgen.precision import SearchForm, SearchModel
from robustgen.purify.base import PURIFIERS, Chain, Purifier
from robustgen.purify.gradients import EXACT, GRADIENTS, Gradient, cross
from robustgen.purify.parse import describe, parse_purifier
from robustgen.rng import ExampleRng

__all__ = ["Defended", "crossed_by", "crossing_of", "defence_flags", "defend", "has_generator", "split_name"]

_SEPARATOR = "@"


def split_name(spec: str) -> tuple[str, str] | None:
    """Purifier and classifier of "diffpure:t=0.1@fmnist-at"; None where no purifier stands in front."""
    purifier, separator, classifier = spec.partition(_SEPARATOR)
    return (purifier, classifier) if separator and purifier.partition(":")[0] in PURIFIERS else None


class Defended(Classifier):
    """f(P(x)) with a purifier P; draws everything from the streams it is given, or from torch's global generator.

    Args:
        purifier: hyper-parameters.
        classifier: f.
        denoiser: of the purifier's generator, or None.
        gradient: how a gradient crosses P; the answers are the same in each mode.
        surrogate: steps of the shorter purifier that the mode of that name differentiates.
        generator_sha256: of the generator's weights.
        form: in which f is searched; None for f as it is.
    """

    def __init__(
        self,
        purifier: Purifier,
        classifier: Classifier,
        denoiser: Any = None,
        *,
        gradient: str = "full",
        surrogate: int = 5,
        generator_sha256: str = "",
        form: SearchForm | None = None,
    ) -> None:
        check_value("--gradient", gradient, one_of(*GRADIENTS))
        name = f"{describe(purifier)}{_SEPARATOR}{classifier.card.name}"
        digest = hashlib.sha256(f"{describe(purifier)} {generator_sha256} {classifier.weights_sha256}".encode())
        card = replace(classifier.card, name=name, title=name, figures=(), weights=None, sha256=None, kind="user")
        super().__init__(classifier, card, weights_sha256=digest.hexdigest())
        self.purifier, self.undefended, self.denoiser = purifier, classifier, denoiser
        self.searched: torch.nn.Module = classifier if form is None else SearchModel(classifier, form)
        if denoiser is not None:
            denoiser.eval().requires_grad_(False)
        self.gradient: Gradient = cast(Gradient, gradient)
        self.surrogate = surrogate
        self.stochastic = purifier.stochastic

    def purify(self, x: Tensor, rng: ExampleRng | None = None) -> Tensor:
        """Images (B, C, H, W) in [0, 1] through the purifier, by the streams of each row."""
        rng = rng or _from_global(len(x))
        chain = self.purifier.chain(self.denoiser, rng)
        return cross(chain, x, self.gradient, shorter=lambda: self._shorter(rng))

    def forward(self, x: Tensor, rng: ExampleRng | None = None) -> Tensor:
        """Images (B, C, H, W) float32 in [0, 1] to logits (B, K)."""
        logits: Tensor = self.searched(self.purify(x, rng))
        return logits

    def crossed_by(self, gradient: str) -> Classifier:
        """The same classifier with another gradient, sharing every weight; "transfer" is the one without purifier."""
        if gradient == "transfer":
            return self.undefended
        other = copy.copy(self)
        check_value("--gradient", gradient, one_of(*GRADIENTS))
        other.gradient = cast(Gradient, gradient)
        return other

    def in_form(self, form: SearchForm) -> Defended:
        """The same classifier with its networks in a search form; the image between them stays float32."""
        low = self.denoiser is not None and form.dtype is torch.bfloat16
        return Defended(
            self.purifier, self.undefended, with_precision(self.denoiser, "bfloat16") if low else self.denoiser,
            gradient=self.gradient, surrogate=self.surrogate, form=form,
        )  # fmt: skip

    def _shorter(self, rng: ExampleRng) -> Chain:
        steps = getattr(self.purifier, "steps", None)
        if steps is None:
            raise SpecError(
                f"gradient 'surrogate' needs a purifier with steps, {self.card.name} has none; type --gradient full."
            )
        quick: Any = replace(self.purifier, steps=min(self.surrogate, steps or self.surrogate))  # type: ignore[type-var]
        chain: Chain = quick.chain(self.denoiser, rng)
        return chain


def defend(classifier: Classifier, purifier: str | Purifier, *, gradient: str = "full", surrogate: int = 5) -> Defended:
    """A classifier behind a purifier, with its generator loaded, in float32.

    Raises:
        SpecError: nothing of that name, or generator and classifier see images of different shape.
        ArtifactError: the generator's files are missing or damaged.
    """
    chosen = parse_purifier(purifier) if isinstance(purifier, str) else purifier
    if classifier.card.architecture == "remote":
        raise SpecError(f"{classifier.card.name} answers as it is; a purifier in front of it is the server's business.")
    if chosen.generator is None:
        return Defended(chosen, classifier, gradient=gradient, surrogate=surrogate)
    generator = load_generator(chosen.generator, precision="float32")
    card, shape = classifier.card, generator.denoiser.shape
    if (card.channels or shape[0]) != shape[0] or (card.size or shape[1:]) != shape[1:]:
        size = "any size" if card.size is None else f"{card.size[0]} x {card.size[1]} pixels"
        raise SpecError(
            f"{card.name} takes images of {card.channels} channels and {size}, the generator "
            f"{chosen.generator} makes images {shape}; name one that fits with generator=NAME."
        )
    chosen.chain(generator.denoiser, ExampleRng.of(0, [0]))  # refuses a level that this generator has not
    return Defended(
        chosen, classifier, generator.denoiser, gradient=gradient, surrogate=surrogate,
        generator_sha256=generator.sha256,
    )  # fmt: skip


def crossed_by(search: SearchModel, classifier: Classifier, gradient: str) -> SearchModel:
    """The search form of a defended classifier with another gradient."""
    assert isinstance(classifier, Defended)  # a plan that crosses is refused for others
    return SearchModel(classifier.crossed_by(gradient), search.form)


def has_generator(classifier: Classifier) -> bool:
    """Whether each pass asks a generator."""
    return isinstance(classifier, Defended) and classifier.denoiser is not None


def crossing_of(classifier: Classifier, plan: Plan) -> str:
    """What a protocol says of gradients that cross a purifier, beside what its rungs say; empty without one."""
    if not isinstance(classifier, Defended) or plan.crosses:
        return ""
    return f"; gradient={classifier.gradient}"


def defence_flags(classifier: Classifier, plan: Plan) -> list[str]:
    """Flags that follow from how a purifier is attacked."""
    if not isinstance(classifier, Defended):
        return []
    exact = classifier.gradient in EXACT or any(getattr(rung, "crossing", "") in EXACT for rung in plan.attacks)
    one_draw = classifier.stochastic and plan.eot == 1 and not plan.crosses
    return ["gradient-weaker-than-full"] * (not exact) + ["single-draw"] * one_draw


def _from_global(rows: int) -> ExampleRng:
    """Streams for a call from outside, seeded by torch's global generator, as any random layer is."""
    return ExampleRng.of(int(torch.randint(2**62, ())), range(rows))
