from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from robustgen.errors import SpecError
from robustgen.nets import ARCHITECTURES, SmallResNet, build_network, input_layer, spatial_mean


def small(**changes: object) -> SmallResNet:
    """A trained-looking network of two stages: running statistics are neither 0 nor 1."""
    torch.manual_seed(0)
    net = build_network("small-resnet", **{"widths": [8, 12], "depths": [1, 2], "classes": 5, **changes})
    assert isinstance(net, SmallResNet)
    for _ in range(3):
        net(torch.rand(16, net.stem[0].in_channels, 12, 12))
    return net.eval()


@pytest.mark.parametrize(("stem_stride", "channels", "height"), [(1, 1, 28), (2, 1, 28), (2, 3, 33)])
def test_maps_images_to_logits(stem_stride: int, channels: int, height: int) -> None:
    """Any channels, stride and image size give (B, K) logits."""
    net = small(stem_stride=stem_stride, channels=channels)
    assert net(torch.rand(2, channels, height, height + 1)).shape == (2, 5)


def test_strides_and_parameters_are_as_described() -> None:
    """The first stage keeps its size, later ones halve it; the parameters add up to the count worked out by hand."""
    net = small()
    assert net.body(net.stem(torch.rand(1, 1, 28, 28))).shape == (1, 12, 7, 7)
    stem = 9 * 8 + 2 * 8
    first = 2 * (9 * 8 * 8 + 2 * 8)
    second = (9 * 8 * 12 + 2 * 12) + (9 * 12 * 12 + 2 * 12) + (8 * 12 + 2 * 12)
    third = 2 * (9 * 12 * 12 + 2 * 12)
    head = 12 * 5 + 5
    assert stem + first + second + third + head == sum(p.numel() for p in net.parameters())


def test_same_logits_in_channels_last() -> None:
    """The memory format changes nothing but the last bits."""
    net, x = small(channels=3), torch.rand(4, 3, 20, 20)
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last)), expected)


def test_every_batch_norm_can_be_folded() -> None:
    """torch.fx folds each batch norm into the convolution before it, with the same logits."""
    net, x = small(), torch.rand(4, 1, 28, 28)
    folded = fuse(net)
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    torch.testing.assert_close(folded(x), net(x), rtol=1e-4, atol=1e-5)


def test_every_architecture_is_a_constructor() -> None:
    """The registry holds the network under the name that cards use."""
    assert ARCHITECTURES["small-resnet"] is SmallResNet


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": [8, 16], "depths": [1]}, "got 2 widths and 1 depths"),
        ({"widths": [], "depths": []}, "got 0 widths"),
        ({"widths": [8, 0], "depths": [1, 1]}, "widths must be >= 1, got 0"),
        ({"widths": [8], "depths": [1], "stem_stride": 0}, "stem_stride must be >= 1, got 0"),
        ({"widths": [8], "depths": [1], "class": 3}, "unknown option of small-resnet 'class'; did you mean 'classes'"),
        ({"widths": [8]}, "small-resnet cannot be built with .*depths"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    """An option that the network cannot take is named."""
    with pytest.raises(SpecError, match=message):
        build_network("small-resnet", **options)


def test_unknown_architectures_are_refused() -> None:
    """The nearest name is suggested, among ours and among torchvision's."""
    with pytest.raises(SpecError, match="unknown architecture 'small-resnt'; did you mean 'small-resnet'"):
        build_network("small-resnt")
    with pytest.raises(SpecError, match="unknown torchvision model 'resnet81'; did you mean 'resnet1"):
        build_network("torchvision:resnet81")


def test_torchvision_takes_channels_and_classes() -> None:
    """The first convolution is replaced only where the images have other channels."""
    net = build_network("torchvision:squeezenet1_1", channels=1, classes=7).eval()
    assert input_layer(net)[1].weight.shape == (64, 1, 3, 3)
    assert net(torch.rand(2, 1, 32, 32)).shape == (2, 7)
    assert input_layer(build_network("torchvision:squeezenet1_1"))[1].weight.shape == (64, 3, 3, 3)


def test_network_without_convolution_has_no_input_layer() -> None:
    """A network whose channels cannot be told is named."""
    with pytest.raises(SpecError, match="Linear has no convolution"):
        input_layer(nn.Linear(2, 2))


def test_wide_resnet_has_the_published_size() -> None:
    """WRN-28-10 has 36.5 million parameters (Zagoruyko & Komodakis 2016, table 4), and halves the image twice."""
    with torch.device("meta"):
        net = build_network("wide-resnet", depth=28, width=10)
        assert sum(p.numel() for p in net.parameters()) == 36_479_194
    small_one = build_network("wide-resnet", depth=10, width=1, channels=1, classes=3).eval()
    assert small_one.body(small_one.stem(torch.rand(2, 1, 28, 20))).shape == (2, 64, 7, 5)  # type: ignore[operator]
    assert small_one(torch.rand(2, 1, 28, 20)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "says"), [({"depth": 12}, "6 n \\+ 4"), ({"width": 0}, "got 0"), ({"depth": 4}, "6 n \\+ 4")]
)
def test_wide_resnet_refuses_other_shapes(options: dict[str, int], says: str) -> None:
    """Only depths that the paper's three stages can have."""
    with pytest.raises(SpecError, match=says):
        build_network("wide-resnet", **options)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_gradients_of_the_mean_keep_the_layout(layout: torch.memory_format) -> None:
    """The layer before meets one layout, and the values are those of the plain mean."""
    seen: list[Tensor] = []
    h = torch.randn(2, 3, 4, 5, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    x = h * 1
    mean = spatial_mean(x)
    x.register_hook(seen.append)  # after the function's own
    mean.square().sum().backward()
    assert h.grad is not None
    torch.testing.assert_close(h.grad, 2 * h.detach().mean((2, 3), keepdim=True).expand_as(h) / 20, rtol=0, atol=1e-15)
    assert seen[0].is_contiguous(memory_format=layout)
