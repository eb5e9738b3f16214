"""Classifiers that are attacked in place of the target, which only judges: loaded, averaged, and told apart from it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.defended import Defended
from robustgen.errors import SpecError
from robustgen.health import is_stochastic
from robustgen.precision import SearchForm, SearchModel

__all__ = ["Ensemble", "check_apart", "load_surrogates", "split_names"]


class Ensemble(nn.Module):
    """The mean of the logits of several classifiers.

    Source: Dong et al. 2018, arXiv:1710.06081, section 3.3 (ensemble in logits, equal weights); after Liu et al. 2017,
    arXiv:1611.02770, who average probabilities.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] -> mean logits (B, K)."""
        return torch.stack([member(x) for member in self.members]).mean(0)

    def in_form(self, form: SearchForm) -> Ensemble:
        """The same with each member in a search form."""
        return Ensemble([SearchModel(member, form) for member in self.members])

    @property
    def names(self) -> str:
        """Of the members, with commas."""
        return ", ".join(member.card.name for member in self._classifiers())

    @property
    def identity(self) -> tuple[str, ...]:
        """A text a member: its name and the sha256 of its weights."""
        return tuple(f"{m.card.name} sha256:{m.weights_sha256}" for m in self._classifiers())

    def _classifiers(self) -> list[Classifier]:
        """The members of an ensemble that is in no search form."""
        return [member for member in self.members if isinstance(member, Classifier)]

    @property
    def protocol(self) -> str:
        """What a protocol string says of it."""
        whose = f"the mean of the logits of {self.names}" if len(self.members) > 1 else self.names
        return f"; on {whose}, judged where each attack ends"


def split_names(text: str, option: str = "--surrogates") -> list[str]:
    """Names separated by commas, none twice; `option` is where they were typed.

    Raises:
        SpecError: no name, or one twice.
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise SpecError(f"{option}: expected names separated by commas, got none; see `robustgen list classifiers`.")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SpecError(f"{option} names {twice[0]} twice; drop one of the two.")
    return names


def load_surrogates(text: str, target: Classifier, x: Tensor) -> Ensemble:
    """The surrogates of a target.

    Args:
        text: their names with commas, each as `load_classifier` takes it.
        target: the classifier that judges.
        x: (B, C, H, W) in [0, 1], some real images on its device.

    Raises:
        SpecError: the target is among them, or its weights are; one that does not suit its images or classes; one
            that gives other answers each time.
        ArtifactError: a file is missing or damaged.
    """
    with torch.no_grad():
        classes = int(target(x[:1]).shape[1])
    members = [load_classifier(name, shape=tuple(x.shape[1:])).to(x.device) for name in split_names(text)]  # type: ignore[arg-type]
    for member in members:
        name = member.card.name
        check_apart([member, target])
        check_classifier(member, x)
        with torch.no_grad():
            told = int(member(x[:1]).shape[1])
        if told != classes:
            raise SpecError(f"--surrogates: {name} tells {told} classes apart, {target.card.name} {classes}.")
        if is_stochastic(member, x):
            raise SpecError(
                f"--surrogates: {name} gives other answers each time; name classifiers that answer alike each time."
            )
    return Ensemble(members)


def check_apart(classifiers: Sequence[Classifier]) -> None:
    """Whether no two of them answer by the same weights, with or without a purifier in front.

    Raises:
        SpecError: two do; they are named.
    """
    for a, b in combinations(classifiers, 2):
        if _weights(a) & _weights(b):
            raise SpecError(
                f"surrogates: {a.card.name} has the weights of {b.card.name}, and an attack from one on the other is "
                "none by transfer; name other classifiers, or type --plan rapid."
            )


def _weights(classifier: Classifier) -> set[str]:
    """Hashes of the weights that it answers by, with and without a purifier in front."""
    own = {classifier.weights_sha256}
    return own | _weights(classifier.undefended) if isinstance(classifier, Defended) else own
