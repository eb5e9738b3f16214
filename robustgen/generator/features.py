"""What a network sees in images: the features that distances compare, and their honest name.

The name says which network and layer the features come from: FD(fmnist-standard, penultimate, 64, N=10000). "FID" and
"KID" are kept for the Inception network of 2015-12-05, because only in its features are figures comparable with those
of papers, and then only at the same N.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.classifier import Classifier
from robustgen.errors import ArtifactError, SpecError
from robustgen.progress import Progress, Silent
from robustgen.usercode import first_line
from robustgen.weights import read_weights

__all__ = ["INCEPTION_FILE", "Extractor", "Features", "classifier_features", "inception_features"]

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_SHA256 = "6726825d"  # its first digits, as the file name has them
_STANDARD_NAMES = {"FD": "FID", "KD": "KID", "IS": "IS"}


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """What a network says of N images: features (N, d) and probabilities (N, K), float32 on the CPU."""

    values: Tensor
    probabilities: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extractor:
    """A network, and which of its layers features are taken from.

    Args:
        network: its name.
        layer: the layer's name.
        compute: images (B, C, H, W) uint8 to features (B, d) and logits (B, K).
        standard: the Inception network that FID and KID are defined with.
        batch_size: images at a time; changes the result by rounding only.
    """

    network: str
    layer: str
    compute: Callable[[Tensor], tuple[Tensor, Tensor]]
    standard: bool = False
    batch_size: int = 500

    def label(self, metric: str, d: int, n: int) -> str:
        """The name of a figure, such as "FD(fmnist-standard, penultimate, 64, N=10000)".

        Args:
            metric: "FD", "KD" (kernel distance) or "IS"; called FID and KID for the standard network only.
            d: width of the features.
            n: images a set.
        """
        if self.standard:
            return f"{_STANDARD_NAMES[metric]}(N={n})"
        return f"IS({self.network}, N={n})" if metric == "IS" else f"{metric}({self.network}, {self.layer}, {d}, N={n})"

    @torch.no_grad()
    def __call__(self, images: Tensor, progress: Progress | None = None) -> Features:
        """Features of images (N, H, W, C) uint8.

        Raises:
            SpecError: the network refuses these images, or answers with numbers that are not finite.
        """
        progress = progress or Silent()
        progress.start(f"features of {self.network}", len(images))
        values, probabilities = [], []
        for part in images.split(self.batch_size):
            try:
                features, logits = self.compute(part.permute(0, 3, 1, 2).contiguous())
            except RuntimeError as error:
                shape = tuple(images.shape[1:])
                raise SpecError(f"{self.network} fails on images (H, W, C) = {shape}: {first_line(error)}.") from error
            values.append(features.float().cpu())
            probabilities.append(logits.double().softmax(1).float().cpu())
            progress.advance(sum(map(len, values)), f"{features.shape[1]} features an image")
        joined = Features(torch.cat(values), torch.cat(probabilities))
        if not bool(joined.values.isfinite().all()) or not bool(joined.probabilities.isfinite().all()):
            raise SpecError(f"{self.network} gives features or logits that are not finite.")
        return joined


def classifier_features(classifier: Classifier, device: torch.device | None = None) -> Extractor:
    """The input of a classifier's last linear layer, whatever the architecture.

    Args:
        classifier: its weights are moved to `device` for good.
        device: where to compute; None for the CPU.

    Raises:
        SpecError: it draws random numbers, or has no linear layer.
    """
    name = classifier.card.name
    if classifier.stochastic:
        raise SpecError(f"{name} is stochastic; features need a network that gives the same answer twice.")
    linears = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
    if not linears:
        raise SpecError(f"{name} has no torch.nn.Linear whose input could serve as features; name another classifier.")
    device = device or torch.device("cpu")
    classifier.to(device)

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen.append(inputs[0])

        hooks = [module.register_forward_pre_hook(keep) for module in linears]
        try:
            logits = classifier(x.to(device).float() / 255)
        finally:
            for hook in hooks:
                hook.remove()
        if not seen or seen[-1].ndim != 2:
            got = "ran none" if not seen else f"gave it {tuple(seen[-1].shape)}"
            raise SpecError(f"{name}: the last linear layer must see features (B, d); the network {got}.")
        return seen[-1], logits

    return Extractor(network=name, layer="penultimate", compute=compute)


def inception_features(weights: Path, device: torch.device | None = None) -> Extractor:
    """The 2048 features (pool3) of the Inception network of 2015-12-05, which FID and KID are defined with.

    torch-fidelity has the network with TensorFlow's way to resize, on which the figure depends. Grey images are given
    as three equal channels. The file is read as tensors only, never run, and checked by its sum before it is used.

    Args:
        weights: the file `pt_inception-2015-12-05-6726825d.pth`, the TensorFlow weights converted to torch.
        device: where to compute; None for the CPU.

    Raises:
        ArtifactError: torch-fidelity is not installed, or the file is missing, damaged or another one.

    Source: Heusel et al. 2017, arXiv:1706.08500; Obukhov et al. 2020, torch-fidelity.
    """
    how = f"`pip install torch-fidelity`, then pass --inception FILE with the weights {INCEPTION_FILE} (pytorch-fid)"
    try:
        network = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ArtifactError(f"FID needs torch-fidelity and the Inception weights of 2015-12-05: {how}.") from error
    if not weights.is_file():
        raise ArtifactError(f"FID: there is no file {weights}; it needs the Inception weights of 2015-12-05: {how}.")
    file = read_weights(weights)
    if not file.sha256.startswith(_INCEPTION_SHA256):
        raise ArtifactError(
            f"FID: the sha256 of {weights} starts with {file.sha256[:8]}, expected {_INCEPTION_SHA256}: these are not "
            f"the Inception weights of 2015-12-05; get {INCEPTION_FILE}, or leave --inception out for FD(classifier)."
        )
    device = device or torch.device("cpu")
    layers = ["2048", "logits_unbiased"]  # the inception score is defined without the bias of the last layer
    extractor: Any = network.FeatureExtractorInceptionV3(
        "inception", layers, feature_extractor_weights_path=str(weights)
    )
    extractor.to(device)

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(device)
        features, logits = extractor(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)
        return features, logits

    return Extractor(network="Inception 2015-12-05", layer="pool3", compute=compute, standard=True, batch_size=50)
