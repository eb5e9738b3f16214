"""Training behind a denoiser: on what one evaluation of a generator makes of noised images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.fields import POSITIVE, TEXT, check_value
from robustgen.generator.denoiser import Denoiser
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.method import Attacked, register_method
from robustgen.training.methods.noise import MeasuredUnderNoise, noised

__all__ = ["Denoised"]


@register_method("denoised")
@dataclass(frozen=True, slots=True, kw_only=True)
class Denoised(MeasuredUnderNoise):
    """Cross-entropy on images that were noised and denoised in one shot, as denoised smoothing shows them.

    With `start` in the recipe's [network] it fine-tunes a classifier for its denoiser.

    Source: Carlini et al. 2023, arXiv:2206.10550, section 5.2 (the classifier fine-tuned on denoised images).

    Args:
        sigma: of the noise, in pixels of [0, 1].
        generator: as for `load_generator`.
    """

    threat: ThreatModel | None = None
    label_smoothing: float = 0.0
    sigma: float = 0.25
    generator: str = "fmnist-edm"
    guarded: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_value("training.sigma", self.sigma, POSITIVE)
        check_value("training.generator", self.generator, TEXT)

    @property
    def steps(self) -> int:
        return 0

    def measured_on(self, x: Tensor, rng: ExampleRng) -> Tensor:
        from robustgen.certify.smoothed import denoise_once  # it stands on classifiers, which training is used by

        denoiser = _denoiser(self.generator, x.device)
        if denoiser.shape != tuple(x.shape[1:]):
            raise SpecError(
                f"training.generator: {self.generator} makes images {denoiser.shape}, these are {tuple(x.shape[1:])}."
            )
        with torch.no_grad():
            parts = noised(x, self.sigma, 1, rng).split(_ROWS)
            return torch.cat([denoise_once(denoiser, part, self.sigma) for part in parts])

    def attack(self, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Attacked:
        return Attacked(self.measured_on(x, rng))

    def loss(self, model: nn.Module, x: Tensor, y: Tensor, attacked: Attacked) -> Tensor:
        return F.cross_entropy(model(attacked.x), y, label_smoothing=self.label_smoothing)

    def stronger(self) -> Self:
        return self


_ROWS = 256  # images in one pass through the denoiser


@lru_cache(maxsize=2)
def _denoiser(name: str, device: torch.device) -> Denoiser:
    from robustgen.generator.load import load_generator

    return load_generator(name, device=device).denoiser
