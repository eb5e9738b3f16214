"""Network architectures that a card can name."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError, unknown_name
from robustgen.registry import Registry

__all__ = [
    "ARCHITECTURES", "TORCHVISION", "SmallResNet", "WideResNet", "build_network", "input_layer", "outline",
    "spatial_mean",
]  # fmt: skip

ARCHITECTURES: Registry[Callable[..., nn.Module]] = Registry(
    "architecture", modules=("robustgen.ablation", "robustgen.decoys", "robustgen.published_nets")
)
TORCHVISION = "torchvision:"  # prefix of the architectures that torchvision builds


@torch.fx.wrap
def spatial_mean(h: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C); in channels_last the gradient comes back in channels_last, with the same values.

    Autograd spreads the gradient of a mean in the plain layout, and the layer before, which meets both, takes many
    times as long.
    """
    if h.requires_grad and h.is_contiguous(memory_format=torch.channels_last):
        h.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
    return h.mean((2, 3))


class ResidualBlock(nn.Module):
    """Post-activation residual block; each batch norm directly follows its convolution, so that it can be folded.

    Source: He et al. 2016, "Deep residual learning", arXiv:1512.03385, fig. 2, option B for the shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()  # the identity
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) float to (B, outputs, H / stride, W / stride)."""
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A residual network small enough to be attacked on two processor cores.

    Works in any memory format and can be traced by torch.fx.

    Args:
        widths: channels of each stage.
        depths: residual blocks of each stage; the first block of every stage but the first has stride 2.
        stem_stride: stride of the first convolution.
        channels: channels of the images.
        classes: number of logits.

    Raises:
        SpecError: `widths` and `depths` differ in length, or a number is below 1.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        stem_stride: int = 2,
        channels: int = 1,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if not widths or len(widths) != len(depths):
            raise SpecError(
                "small-resnet: widths and depths need one number a stage each, "
                f"got {len(widths)} widths and {len(depths)} depths."
            )
        for field, values in (
            ("widths", widths),
            ("depths", depths),
            ("stem_stride", [stem_stride]),
            ("channels", [channels]),
            ("classes", [classes]),
        ):
            if min(values) < 1:
                raise SpecError(f"small-resnet: {field} must be >= 1, got {min(values)}.")
        self.stem = nn.Sequential(
            nn.Conv2d(channels, widths[0], 3, stem_stride, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        )
        blocks: list[nn.Module] = [ResidualBlock(widths[0], widths[0], 1) for _ in range(depths[0])]
        for (before, width), depth in zip(pairwise(widths), depths[1:], strict=True):
            blocks.append(ResidualBlock(before, width, 2))
            blocks += [ResidualBlock(width, width, 1) for _ in range(depth - 1)]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) float, normalised, to logits (B, classes)."""
        h = self.body(self.stem(x))
        return self.head(spatial_mean(h))  # type: ignore[no-any-return]


class PreActivationBlock(nn.Module):
    """Residual block with batch norm and ReLU before each convolution.

    Where the shape changes, the shortcut branches off behind the first ReLU.

    Source: Zagoruyko & Komodakis 2016, "Wide residual networks", arXiv:1605.07146, fig. 1 (c) without dropout; He et
    al. 2016, "Identity mappings", arXiv:1603.05027, fig. 4 (e).
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) float to (B, outputs, H / stride, W / stride)."""
        h = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(h))))
        return residual + (x if self.shortcut is None else self.shortcut(h))  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """A wide residual network WRN-depth-width, the architecture of most published robust classifiers.

    Source: Zagoruyko & Komodakis 2016, arXiv:1605.07146, table 1.

    Args:
        depth: 6 n + 4 for n blocks in each of the three stages: 10, 16, 28, 34, ...
        width: factor on 16, 32 and 64 channels.
        channels: channels of the images.
        classes: number of logits.

    Raises:
        SpecError: no such depth, or a number below 1.
    """

    def __init__(self, *, depth: int = 28, width: int = 10, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise SpecError(f"wide-resnet: depth must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}.")
        least = min(width, channels, classes)
        if least < 1:
            raise SpecError(f"wide-resnet: width, channels and classes must be >= 1, got {least}.")
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        blocks: list[nn.Module] = []
        for stride, (before, after) in zip((1, 2, 2), pairwise(widths), strict=True):
            blocks.append(PreActivationBlock(before, after, stride))
            blocks += [PreActivationBlock(after, after, 1) for _ in range((depth - 4) // 6 - 1)]
        self.body = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) float, normalised, to logits (B, classes)."""
        h = F.relu(self.bn(self.body(self.stem(x))))
        return self.head(spatial_mean(h))  # type: ignore[no-any-return]


ARCHITECTURES.register("small-resnet")(SmallResNet)
ARCHITECTURES.register("wide-resnet")(WideResNet)


def outline(architecture: str, **options: Any) -> nn.Module:
    """The network as `build_network` makes it, where possible without memory: tells names and sizes of its tensors."""
    try:
        with torch.device("meta"):
            return build_network(architecture, **options)
    except NotImplementedError:  # the regnets compute with their own tensors while they are built
        return build_network(architecture, **options)


def build_network(architecture: str, **options: Any) -> nn.Module:
    """A new network with fresh weights, drawn from torch's global generator.

    Args:
        architecture: a name in `ARCHITECTURES`, or `torchvision:NAME` for any classifier of torchvision.
        options: what that architecture takes; for torchvision `classes` (default 1000) and `channels` (default 3).

    Returns:
        A network in training mode on the CPU, float32.

    Raises:
        SpecError: unknown architecture or option, or a value that the architecture refuses.
    """
    build: Callable[..., nn.Module]
    if architecture.startswith(TORCHVISION):
        name = architecture.removeprefix(TORCHVISION)

        def build(*, classes: int = 1000, channels: int = 3) -> nn.Module:
            return _torchvision_network(name, classes, channels)

    elif architecture in ARCHITECTURES:
        build = ARCHITECTURES[architecture]
    else:
        raise unknown_name("architecture", architecture, ARCHITECTURES, hint="Or torchvision:NAME.")
    takes = inspect.signature(build).parameters
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    for option in options:
        if option not in takes and not variadic:
            raise unknown_name(f"option of {architecture}", option, takes)
    try:
        return build(**options)
    except (TypeError, ValueError) as error:
        raise SpecError(f"{architecture} cannot be built with {options}: {error}.") from error


def input_layer(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and module of the first convolution, in the order in which the network declares its layers."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise SpecError(f"{type(network).__name__} has no convolution whose input channels could be told.")


def _torchvision_network(name: str, classes: int, channels: int) -> nn.Module:
    import torchvision  # here, not above: slow to import, and seldom needed

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # two old models announce a later change of their initial weights
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    layer, conv = input_layer(network)
    if channels != conv.in_channels:
        parent, _, attribute = layer.rpartition(".")
        first = nn.Conv2d(
            channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            bias=conv.bias is not None,
        )
        setattr(network.get_submodule(parent), attribute, first.to(conv.weight.device))
    return network
