"""`load_model` and `load_cifar10` with the arguments of the functions of these names in RobustBench."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from robustgen.data import load_data
from robustgen.errors import SpecError
from robustgen.robustbench_zoo import ROBUSTBENCH, load_zoo

__all__ = ["load_cifar10", "load_model"]


def load_model(
    model_name: str, model_dir: str | Path = "./models", dataset: object = "cifar10", threat_model: object = "Linf",
    custom_checkpoint: str = "", norm: str | None = None,
) -> nn.Module:  # fmt: skip
    """A model of RobustBench's zoo, by its own code, with the import of that package made to work.

    Differs: a page of HTML that comes in place of a checkpoint is not kept.

    Args:
        model_name: as in the zoo.
        model_dir: where checkpoints lie, or are downloaded to: MODEL_DIR/cifar10/Linf/NAME.pt.
        dataset: "cifar10", "cifar100", "imagenet", or a member of RobustBench's enumeration.
        threat_model: "Linf", "L2", "corruptions", or a member of RobustBench's enumeration.
        custom_checkpoint: only "": for weights of your own type `robustgen eval robustbench:NAME --weights FILE`.
        norm: older name of `threat_model`.

    Returns:
        The network in eval mode: (B, C, H, W) float32 in [0, 1] to logits (B, K).

    Raises:
        SpecError: RobustBench is not installed or cannot be imported, or has no such model.
        ArtifactError: the weights are not there and cannot be downloaded, or cannot be read.
    """
    if custom_checkpoint:
        raise SpecError(f"custom_checkpoint: robustgen.load_classifier('{ROBUSTBENCH}NAME', weights=FILE) takes one.")
    data, threat = (str(getattr(given, "value", given)) for given in (dataset, norm or threat_model))
    threat = threat.removesuffix("_3d")  # the zoo has one folder for both boards of corruptions
    return load_zoo(f"{ROBUSTBENCH}{data}/{threat}/{model_name}", Path(model_dir))[1]


def load_cifar10(
    n_examples: int | None = None, data_dir: str | Path = "./data",
    transforms_test: Callable[[Any], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The first test images of CIFAR-10.

    Args:
        n_examples: how many; None for all 10,000.
        data_dir: folder of cifar-10-batches-py.
        transforms_test: from a PIL image to a tensor, as torchvision's are, applied to each; None for pixels / 255.

    Returns:
        Images (N, 3, 32, 32) float32 in [0, 1], or as the transform made them, and labels (N,) int64.

    Raises:
        SpecError: more than there are.
        ArtifactError: the data is not there.
    """
    data = load_data("cifar10", data_dir=Path(data_dir))
    n = len(data) if n_examples is None else n_examples
    if not 0 < n <= len(data):
        raise SpecError(f"n_examples must be from 1 to {len(data)}, got {n}.")
    x, y = data.batch(range(n))
    if transforms_test is None:
        return x, y
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return torch.stack([transforms_test(Image.fromarray(one)) for one in pixels]), y
