"""The network of a training with what stands in front of it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.nets import build_network, input_layer
from robustgen.training.data import TrainingData
from robustgen.training.measure import measuring
from robustgen.training.recipe import NetworkSettings
from robustgen.usercode import first_line

__all__ = ["TrainingModel", "check_network", "make_network"]


class TrainingModel(nn.Module):
    """A network with its normalisation, its memory layout and autocast: images in [0, 1] to float32 logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], precision: str) -> None:
        super().__init__()
        self.network = network
        self.normalises = bool(mean)
        self.precision = precision
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 in [0, 1] to (B, K) float32."""
        if self.normalises:
            x = (x - self.mean) / self.std
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: Tensor = self.network(x.contiguous(memory_format=torch.channels_last))
        return logits.float()


def make_network(settings: NetworkSettings) -> nn.Module:
    """The network of a recipe, with the weights that it starts from.

    Raises:
        SpecError: `start` is a classifier of another architecture.
    """
    network = build_network(settings.architecture, **settings.options)
    if settings.start is not None:
        from robustgen.classifiers import load_classifier  # it is not needed to train from nothing

        try:
            network.load_state_dict(load_classifier(settings.start).network.state_dict())
        except RuntimeError as error:
            raise SpecError(
                f"network.start: the weights of {settings.start} do not fit {settings.architecture} "
                f"{settings.options}; give the architecture and options of its card ({first_line(error)})."
            ) from None
    return network


def check_network(model: TrainingModel, data: TrainingData) -> None:
    """Refuse a network that does not fit the data."""
    channels, classes = data.dataset.shape[0], data.dataset.classes
    expected = input_layer(model.network)[1].in_channels
    if channels != expected:
        raise SpecError(f"network: takes {expected} channels, {data.dataset.name} has {channels}; set channels.")
    if model.normalises and model.mean.numel() != channels:
        raise SpecError(f"data.mean has {model.mean.numel()} numbers, {data.dataset.name} has {channels} channels.")
    with measuring(model), torch.no_grad():
        try:
            logits = model(data.x_validation[:1].to(next(model.parameters()).device))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise SpecError(
                f"network: cannot take images {data.dataset.shape} of {data.dataset.name}: {reason}."
            ) from error
    if tuple(logits.shape) != (1, classes):
        raise SpecError(
            f"network: gives {logits.shape[-1]} logits, {data.dataset.name} has {classes} classes; set classes."
        )
