from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.generator.network import low_precision_copy
from robustgen.generator.network_denoiser import EdmDenoiser
from robustgen.generator.song_unet import (
    Convolution,
    FourierEmbedding,
    PositionalEmbedding,
    ResidualBlock,
    SongUnet,
    SongUnetSettings,
    build_song_unet,
    downsample,
    upsample,
)

SMALL: dict[str, Any] = {
    "img_resolution": 8,
    "in_channels": 2,
    "out_channels": 2,
    "label_dim": 3,
    "augment_dim": 9,
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "dropout": 0.13,
}
DDPMPP: dict[str, Any] = {"embedding_type": "positional", "encoder_type": "standard", "resample_filter": [1, 1]}
NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
CIFAR10: dict[str, Any] = {
    "img_resolution": 32,
    "in_channels": 3,
    "out_channels": 3,
    "label_dim": 10,
    "augment_dim": 9,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


M = TypeVar("M", bound=nn.Module)


def fill(layer: M) -> M:
    """Random weights from a seed, frozen, in eval mode."""
    for i, parameter in enumerate(layer.requires_grad_(False).parameters()):
        parameter.copy_(0.2 * random(*parameter.shape, seed=i))
    return layer.eval()


def waves(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by a formula, as large as weights usually are, so that two implementations can have the same ones."""
    filled = {}
    for i, (key, value) in enumerate(sorted(state.items())):
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.37 + i).reshape(value.shape)
        if key.endswith("resample_filter"):
            wave = value.double()
        elif value.ndim > 1:
            wave = wave * math.sqrt(2 / value[0].numel())
        else:
            wave = 0.3 * wave + ("norm" in key and key.endswith("weight"))
        filled[key] = wave.float()
    return filled


def make_net(**changes: Any) -> SongUnet:
    """A small network with the weights of `waves`, in eval mode."""
    net = SongUnet(**{**SMALL, **changes})
    net.load_state_dict(waves(net.state_dict()))
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("variant", "points", "deviation"),
    [
        (DDPMPP, [-0.15066, -0.88665, 0.36483, -0.93844, 0.38328, -0.60781], 0.5009),
        (NCSNPP, [0.02418, -0.25009, -0.07536, -0.203, 0.14353, -0.31755], 0.48059),
    ],
    ids=["ddpmpp", "ncsnpp"],
)
def test_equals_nvidias_own_network(variant: dict[str, Any], points: list[float], deviation: float) -> None:
    """Values of `SongUNet` of NVIDIA's PhysicsNeMo 2.2.2 (Apache 2.0) for the same weights and arguments."""
    net = make_net(**variant)
    x = torch.cos(torch.arange(384, dtype=torch.float64) * 0.61).reshape(3, 2, 8, 8).float()
    out = net(x, torch.tensor([-1.2, 0.1, 1.0]), torch.tensor([2, -1, 0]), torch.linspace(-1, 1, 27).reshape(3, 9))
    places = ((0, 0, 0, 0), (0, 1, 3, 5), (1, 0, 7, 7), (1, 1, 0, 4), (2, 0, 2, 6), (2, 1, 5, 1))
    assert points == pytest.approx([float(out[place]) for place in places], abs=5e-5)
    assert deviation == pytest.approx(float(out.std()), abs=5e-5)


def test_has_the_size_of_the_paper() -> None:
    """The CIFAR-10 network has about 55.7 million parameters; the paper says 56 million."""
    with torch.device("meta"):
        net = SongUnet(**CIFAR10, **DDPMPP)
    total = sum(parameter.numel() for parameter in net.parameters())
    assert total == pytest.approx(55.7e6, rel=0.01)


def test_parameters_have_the_names_of_the_published_files() -> None:
    """Names and shapes as the format has them, one of each kind of layer."""
    with torch.device("meta"):
        state = SongUnet(**CIFAR10, **DDPMPP).state_dict()
    expected = {
        "map_label.weight": (128, 10),
        "map_label.bias": (128,),
        "map_augment.weight": (128, 9),
        "map_layer0.weight": (512, 128),
        "map_layer1.bias": (512,),
        "enc.32x32_conv.weight": (128, 3, 3, 3),
        "enc.32x32_block0.skip.weight": (256, 128, 1, 1),
        "enc.32x32_block3.conv1.bias": (256,),
        "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2),
        "enc.16x16_down.skip.resample_filter": (1, 1, 2, 2),
        "enc.16x16_block0.qkv.weight": (768, 256, 1, 1),
        "enc.16x16_block3.proj.bias": (256,),
        "enc.8x8_block3.affine.weight": (256, 512),
        "dec.8x8_in0.norm2.weight": (256,),
        "dec.8x8_in1.norm1.bias": (256,),
        "dec.8x8_block4.skip.weight": (256, 512, 1, 1),
        "dec.16x16_up.conv0.resample_filter": (1, 1, 2, 2),
        "dec.16x16_block4.qkv.bias": (768,),
        "dec.32x32_block4.conv0.weight": (256, 384, 3, 3),
        "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    }
    assert expected == {key: tuple(state[key].shape) for key in expected if key in state}
    absent = {
        "map_augment.bias": "the layer of augmentation has no bias",
        "map_noise.freqs": "sinusoids are not stored",
        "enc.32x32_block1.skip.weight": "equal widths need no projection",
        "enc.8x8_block0.qkv.weight": "attention at 16 x 16 only",
        "dec.8x8_in1.qkv.weight": "only the first of the two middle blocks attends",
        "dec.16x16_block3.qkv.weight": "only the last block of the decoder attends",
        "enc.32x32_conv.resample_filter": "nothing is resampled there",
    }
    assert not absent.keys() & state.keys()


def test_ncsnpp_has_its_own_parameters() -> None:
    """Frequencies, twice as wide an embedding, and the residual path of the encoder."""
    with torch.device("meta"):
        state = SongUnet(**CIFAR10, **NCSNPP).state_dict()
    expected = {
        "map_noise.freqs": (128,),
        "map_layer0.weight": (512, 256),
        "enc.16x16_aux_residual.weight": (256, 3, 3, 3),
        "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4),
        "enc.8x8_aux_residual.weight": (256, 256, 3, 3),
    }
    assert expected == {key: tuple(state[key].shape) for key in expected if key in state}


def test_positional_embedding_is_the_closed_form() -> None:
    """Sines come first, frequencies fall from 1 to 1/10000 with both ends included."""
    out = PositionalEmbedding(8)(torch.tensor([0.7, -1.3]))
    frequencies = [1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1e-4]
    for row, c in zip(out.tolist(), (0.7, -1.3), strict=True):
        expected = [math.sin(w * c) for w in frequencies] + [math.cos(w * c) for w in frequencies]
        assert expected == pytest.approx(row, abs=1e-6)


def test_fourier_embedding_is_the_closed_form_in_any_precision() -> None:
    """Its frequencies survive a change to bfloat16, in which 16.3 would be 16.25."""
    embedding = FourierEmbedding(6)
    embedding.freqs = torch.tensor([0.3, -16.3, 5.1])
    for network in (embedding, low_precision_copy(embedding), embedding.double()):
        out = network(torch.tensor([0.9]))[0].tolist()
        angles = [2 * math.pi * f * 0.9 for f in (0.3, -16.3, 5.1)]
        assert [math.sin(a) for a in angles] + [math.cos(a) for a in angles] == pytest.approx(out, abs=1e-4)


def test_box_resampling_is_nearest_and_average() -> None:
    """[1, 1] repeats pixels on the way up and takes means of 2 x 2 on the way down."""
    x, kernel = random(2, 3, 6, 4), torch.full((1, 1, 2, 2), 0.25)
    torch.testing.assert_close(F.interpolate(x, scale_factor=2, mode="nearest"), upsample(x, kernel))
    torch.testing.assert_close(F.avg_pool2d(x, 2), downsample(x, kernel, padding=0))


def test_smooth_resampling_is_bilinear_and_its_adjoint() -> None:
    """[1, 3, 3, 1] interpolates linearly away from the border; halving is the transposed map, divided by 4."""
    x, y = random(2, 3, 6, 6), random(2, 3, 12, 12, seed=1)
    line = torch.tensor([1.0, 3, 3, 1]) / 8
    kernel = torch.outer(line, line)[None, None]
    up = upsample(x, kernel)
    linear = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(linear[:, :, 2:-2, 2:-2], up[:, :, 2:-2, 2:-2])
    assert float((up * y).sum()) / 4 == pytest.approx(float((x * downsample(y, kernel, padding=1)).sum()), rel=1e-4)


def test_convolution_resamples_before_it_convolves() -> None:
    """The image is doubled or halved first, by the box filter."""
    x = random(2, 4, 6, 6)
    up, down = fill(Convolution(4, 5, 3, resample="up")), fill(Convolution(4, 5, 1, resample="down"))
    large = F.interpolate(x, scale_factor=2, mode="nearest")
    torch.testing.assert_close(F.conv2d(large, up.weight, up.bias, padding=1), up(x))
    torch.testing.assert_close(F.conv2d(F.avg_pool2d(x, 2), down.weight, down.bias), down(x))


def test_residual_path_filters_after_it_convolves() -> None:
    """Written out as sums: a convolution of the image inside zeros, then every second weighted mean of 4 x 4."""
    layer = fill(Convolution(1, 1, 3, resample="down", taps=(1, 3, 3, 1), filter_last=True))
    image = random(1, 1, 6, 6)
    padded = np.pad(image[0, 0].numpy(), 2)
    assert layer.bias is not None
    weight, bias = layer.weight[0, 0].numpy(), float(layer.bias[0])
    full = np.array([[(padded[i : i + 3, j : j + 3] * weight).sum() + bias for j in range(8)] for i in range(8)])
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    half = [[(full[2 * i : 2 * i + 4, 2 * j : 2 * j + 4] * taps).sum() for j in range(3)] for i in range(3)]
    np.testing.assert_allclose(half, layer(image)[0, 0].numpy(), atol=1e-5)


def test_attention_is_scaled_dot_product() -> None:
    """One head over all channels; q, k and v of a channel are neighbours in the projection."""
    block = fill(ResidualBlock(SongUnetSettings(**SMALL), 16, 16, attention=True))
    x = random(2, 16, 4, 4)
    h = F.group_norm(x, 4, block.norm2.weight, block.norm2.bias, eps=1e-6)
    assert block.qkv.bias is not None
    q, k, v = (F.conv2d(h, block.qkv.weight[i::3], block.qkv.bias[i::3]).flatten(2).mT for i in range(3))
    attended = F.scaled_dot_product_attention(q, k, v).mT.reshape(x.shape)
    torch.testing.assert_close(F.conv2d(attended, block.proj.weight, block.proj.bias), block.attend(x))


@pytest.mark.parametrize("attention", [False, True])
def test_residual_block_is_its_formula(attention: bool) -> None:
    """Norm, SiLU, convolution, plus the embedding, the same again, then the sums, each times sqrt(1/2)."""
    block = fill(ResidualBlock(SongUnetSettings(**SMALL), 16, 32, resample="down", attention=attention))
    x, embedding = 1e-3 * random(2, 16, 8, 8), random(2, 64, seed=1)  # so faint that the eps of the norm matters
    p = dict(block.named_parameters())
    h = F.avg_pool2d(F.silu(F.group_norm(x, 4, p["norm0.weight"], p["norm0.bias"], eps=1e-6)), 2)
    h = F.conv2d(h, p["conv0.weight"], p["conv0.bias"], padding=1)
    h = h + F.linear(embedding, p["affine.weight"], p["affine.bias"])[:, :, None, None]
    h = F.silu(F.group_norm(h, 8, p["norm1.weight"], p["norm1.bias"], eps=1e-6))
    h = F.conv2d(h, p["conv1.weight"], p["conv1.bias"], padding=1)
    expected = (h + F.conv2d(F.avg_pool2d(x, 2), p["skip.weight"], p["skip.bias"])) / math.sqrt(2)
    if attention:
        expected = (expected + block.attend(expected)) / math.sqrt(2)
    torch.testing.assert_close(expected, block(x, embedding))


def test_class_enters_as_a_scaled_column() -> None:
    """Class k adds sqrt(K) times column k of the layer and its bias; no class adds the bias alone."""
    net = make_net()
    c = torch.tensor([0.4, 0.4])
    assert net.map_label is not None
    table = torch.cat([math.sqrt(3) * net.map_label.weight.T, torch.zeros(1, 16)]) + net.map_label.bias
    first = net.map_noise(c) + table[[1, -1]]
    expected = F.silu(net.map_layer1(F.silu(net.map_layer0(first))))
    torch.testing.assert_close(expected, net.embed(c, torch.tensor([1, -1]), None, torch.float32))
    torch.testing.assert_close(expected[[1, 1]], net.embed(c, None, None, torch.float32))


def test_no_class_is_minus_one_and_rows_are_independent() -> None:
    """None equals -1 for all rows, a row's result does not depend on its neighbours, and each condition matters."""
    net = make_net(**DDPMPP)
    x, c, label = random(3, 2, 8, 8), torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([0, -1, 2])
    out = net(x, c, label)
    torch.testing.assert_close(net(x, c, torch.full((3,), -1)), net(x, c))
    torch.testing.assert_close(out[1:2], net(x[1:2], c[1:2]))
    assert not torch.allclose(out[:1], net(x[:1], c[:1]), atol=1e-3)
    assert not torch.allclose(out, net(x, c, label, torch.ones(3, 9)), atol=1e-3)


def test_dropout_is_for_training_only() -> None:
    """In eval mode the same call gives the same result, in training mode it does not."""
    net = make_net()
    x, c = random(1, 2, 8, 8), torch.tensor([0.5])
    torch.testing.assert_close(net(x, c), net(x, c))
    net.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert not torch.allclose(net(x, c), net(x, c))


@pytest.mark.parametrize("variant", [DDPMPP, NCSNPP], ids=["ddpmpp", "ncsnpp"])
def test_denoiser_has_the_gradient_of_its_values(variant: dict[str, Any]) -> None:
    """Backpropagation through EDM's preconditioning agrees with a central difference in float64."""
    denoiser = EdmDenoiser(make_net(**variant).double(), (2, 8, 8), 3, sigma_data=0.5, mean=(0.0, 0.0))
    x, direction = random(1, 2, 8, 8).double(), random(1, 2, 8, 8, seed=1).double()

    def value(step: float) -> Tensor:
        out: Tensor = denoiser(x + step * direction, 0.6, 1)
        return (out * torch.linspace(0, 1, 128, dtype=torch.float64).reshape(1, 2, 8, 8)).sum()

    x.requires_grad_()
    (gradient,) = torch.autograd.grad(value(0.0), x)
    numeric = (value(1e-5) - value(-1e-5)).item() / 2e-5
    assert numeric == pytest.approx(float((gradient * direction).sum()), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"img_resolution": 7}, "7 is not a multiple of 2"),
        ({"encoder_type": "skip"}, "network.encoder_type must be one of standard, residual, got 'skip'"),
        ({"decoder_type": "skip"}, "network.decoder_type must be one of standard, got 'skip'"),
        ({"resample_filter": [1, 2, 1]}, "network.resample_filter must be an even number of taps"),
        ({"resample_filter": [1, 2]}, "network.resample_filter must be an even number of taps"),
        ({"model_channels": 100}, "200 channels do not divide into 32 groups"),
        ({"num_block": 2}, "did you mean 'network.num_blocks'"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    """One sentence that names the setting."""
    with pytest.raises(SpecError, match=message):
        SongUnet(**{**SMALL, **changes})


def test_builder_takes_sizes_from_the_card() -> None:
    """Shape and classes come from the card; images that are not square, and sizes given twice, are refused."""
    network = {"kind": "song-unet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
    net = build_song_unet(network, (2, 8, 8), 3)
    assert (8, 2, 2, 3) == (
        net.settings.img_resolution,
        net.settings.in_channels,
        net.settings.out_channels,
        net.settings.label_dim,
    )
    with pytest.raises(SpecError, match="makes square images, got 8 x 6"):
        build_song_unet(network, (2, 8, 6), 3)
    with pytest.raises(SpecError, match=r"network\.label_dim follows from the card's shape and classes"):
        build_song_unet({**network, "label_dim": 3}, (2, 8, 8), 3)
