"""Networks with the parameter names of published checkpoints, so that these load as they are.

The checkpoints of Gowal et al. 2020 and 2021, Rebuffi et al. 2021 and Wang et al. 2023 on RobustBench share two
architectures: strided convolutions are padded on the right and below only, as TensorFlow's "SAME" does.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError, unknown_name
from robustgen.nets import ARCHITECTURES, spatial_mean

__all__ = ["SamePreActResNet", "SameWideResNet"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU}


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def _same_pad(x: Tensor, stride: int) -> Tensor:
    """What a 3 x 3 convolution without padding needs to halve an even image, or to keep its size."""
    return F.pad(x, (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1))


class _WideBlock(nn.Module):
    """Pre-activation block; where the width changes, the shortcut branches off behind the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.relu_0 = _activation(activation)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.relu_1 = _activation(activation)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        h = self.relu_0(self.batchnorm_0(x))
        residual: Tensor = self.conv_0(_same_pad(h, self.stride))
        residual = self.conv_1(self.relu_1(self.batchnorm_1(residual)))
        return residual + (x if self.shortcut is None else self.shortcut(h))


class _Group(nn.Module):
    """Blocks under the name `block`."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        """Through all blocks."""
        out: Tensor = self.block(x)
        return out


@ARCHITECTURES.register("same-wide-resnet")
class SameWideResNet(nn.Module):
    """WRN-depth-width of the DeepMind line of robust classifiers: RobustBench's `DMWideResNet`, by its parameter names.

    Its normalisation is no part of the state dict: the card's `mean` and `std` do it.

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146; with SiLU Gowal et al. 2020, arXiv:2010.03593, section 4.4.

    Args:
        depth: 6 n + 4: 28, 34, 70.
        width: factor on 16, 32 and 64 channels.
        activation: "silu" or "relu".
        channels: channels of the images.
        classes: number of logits.

    Raises:
        SpecError: no such depth or activation, or a number below 1.
    """

    def __init__(
        self, *, depth: int = 28, width: int = 10, activation: str = "silu", channels: int = 3, classes: int = 10
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise SpecError(f"same-wide-resnet: depth must be 6 n + 4 (10, 16, 28, 34, 70, ...), got {depth}.")
        _check_counts("same-wide-resnet", width=width, channels=channels, classes=classes)
        widths, blocks = (16, 16 * width, 32 * width, 64 * width), (depth - 4) // 6
        self.init_conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            *(
                _Group(
                    _WideBlock(before, after, stride, activation),
                    *(_WideBlock(after, after, 1, activation) for _ in range(blocks - 1)),
                )
                for stride, (before, after) in zip((1, 2, 2), pairwise(widths), strict=True)
            )
        )
        self.batchnorm = nn.BatchNorm2d(widths[-1])
        self.relu = _activation(activation)
        self.logits = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) float, normalised, H and W multiples of 4, to logits (B, classes)."""
        h = self.relu(self.batchnorm(self.layer(self.init_conv(x))))
        out: Tensor = self.logits(spatial_mean(h))
        return out


class _PreActBlock(nn.Module):
    """Pre-activation block with a 3 x 3 convolution as its shortcut, on what comes in, where shapes change."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str) -> None:
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.relu_0 = _activation(activation)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs)
        self.relu_1 = _activation(activation)
        self.conv_2d_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 3, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        h = self.relu_0(self.batchnorm_0(x))
        residual: Tensor = self.conv_2d_1(_same_pad(h, self.stride))
        residual = self.conv_2d_2(self.relu_1(self.batchnorm_1(residual)))
        return residual + (x if self.shortcut is None else self.shortcut(_same_pad(x, self.stride)))


@ARCHITECTURES.register("same-preact-resnet")
class SamePreActResNet(nn.Module):
    """Pre-activation ResNet-18 of the same line: RobustBench's `DMPreActResNet`, by its parameter names.

    Source: He et al. 2016, "Identity mappings", arXiv:1603.05027; sizes of Rebuffi et al. 2021, arXiv:2103.01946.

    Args:
        blocks: residual blocks of each of the four stages; (2, 2, 2, 2) is ResNet-18.
        widths: channels of the stages.
        activation: "silu" or "relu".
        channels: channels of the images.
        classes: number of logits.

    Raises:
        SpecError: no such activation, or a number below 1.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        activation: str = "silu",
        channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if len(blocks) != 4 or len(widths) != 4:
            raise SpecError(
                f"same-preact-resnet: blocks and widths need four numbers each, got {len(blocks)} and {len(widths)}."
            )
        _check_counts("same-preact-resnet", blocks=min(blocks), widths=min(widths), channels=channels, classes=classes)
        self.conv_2d = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        before = widths[0]
        for stage, (count, after) in enumerate(zip(blocks, widths, strict=True)):
            first = _PreActBlock(before, after, 2 if stage else 1, activation)
            rest = (_PreActBlock(after, after, 1, activation) for _ in range(count - 1))
            self.add_module(f"layer_{stage}", nn.Sequential(first, *rest))
            before = after
        self.batchnorm = nn.BatchNorm2d(before)
        self.relu = _activation(activation)
        self.logits = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) float, normalised, H and W multiples of 8, to logits (B, classes)."""
        h = self.conv_2d(x)
        for stage in range(4):
            h = self.get_submodule(f"layer_{stage}")(h)
        out: Tensor = self.logits(spatial_mean(self.relu(self.batchnorm(h))))
        return out


def _check_counts(architecture: str, **counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise SpecError(f"{architecture}: {name} must be >= 1, got {value}.")
