"""What gets smoothed: a classifier, or a denoiser before one; each a deterministic function of the noised image."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from robustgen.classifier import Classifier
from robustgen.defended import Defended
from robustgen.errors import SpecError
from robustgen.generator.denoiser import Denoiser, generator_sigma, to_generator_range, to_pixel_range
from robustgen.generator.load import Generator, with_precision
from robustgen.health import is_stochastic
from robustgen.precision import SearchForm, SearchModel

__all__ = ["Denoised", "base_sha256", "check_base", "denoise_once", "smoothing_base"]


def denoise_once(denoiser: Denoiser, x: Tensor, sigma: float) -> Tensor:
    """clip(D(2 x - 1; 2 sigma)) of images x (B, C, H, W), clean in [0, 1], with normal noise of `sigma` in pixels."""
    return to_pixel_range(denoiser(to_generator_range(x), generator_sigma(sigma)))


class Denoised(nn.Module):
    """f(x0) with x0 = clip(D(2 x - 1; 2 sigma)) of the noised image x: one shot, sigma exact.

    Source: Carlini et al. 2023, arXiv:2206.10550, algorithm 1; the generator works in [-1, 1], so its sigma is twice
    that in pixels, and in EDM's coordinates nothing is scaled.

    Args:
        denoiser: D, in the precision it is to be asked in.
        classifier: f.
        sigma: of the noise that will be added, in pixels of [0, 1].

    Raises:
        SpecError: shapes that do not fit, or a sigma that the denoiser was not trained for.
    """

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        level = generator_sigma(sigma)
        if not denoiser.sigma_min <= level <= denoiser.sigma_max:
            low, high = denoiser.sigma_min / 2, denoiser.sigma_max / 2
            raise SpecError(f"--sigma {sigma:g} is outside {low:g} .. {high:g}, for which this generator was trained.")
        self.denoiser, self.classifier, self.sigma = denoiser, classifier, sigma

    def forward(self, x: Tensor) -> Tensor:
        """Noised images (B, C, H, W), clean ones in [0, 1], to logits (B, K)."""
        logits: Tensor = self.classifier(denoise_once(self.denoiser, x, self.sigma))
        return logits


def smoothing_base(classifier: Classifier, generator: Generator | None, sigma: float, form: SearchForm) -> nn.Module:
    """The function that is certified, in the form that it is asked in."""
    searched = SearchModel(classifier, form)
    if generator is None:
        return searched
    precision = "bfloat16" if form.dtype is torch.bfloat16 else "float32"
    return Denoised(with_precision(generator.denoiser, precision), searched, sigma)


def base_sha256(classifier: Classifier, generator: Generator | None) -> str:
    """sha256 of the weights of what is certified: the classifier's, or of the two hashes behind a generator."""
    weights = classifier.weights_sha256
    return weights if generator is None else hashlib.sha256(f"{generator.sha256} {weights}".encode()).hexdigest()


def check_base(classifier: Classifier, x: Tensor) -> None:
    """Refuse what would void a certificate and can be seen.

    Raises:
        SpecError: a classifier that answers the same image in two ways: it has no fixed smoothed self.
    """
    name = classifier.card.name
    if isinstance(classifier, Defended) and classifier.stochastic:
        raise SpecError(f"{name} draws noise of its own; certify the classifier alone, with --denoise GENERATOR.")
    if is_stochastic(classifier, x):
        raise SpecError(
            f"{name} answers the same image in two ways; a certificate needs one answer for each noised image. Remove "
            "the randomness, or fix its seed inside."
        )
