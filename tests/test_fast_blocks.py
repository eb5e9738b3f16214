"""The fast blocks against diffusers' own, and the group norm against PyTorch's in float64."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from robustgen.generator.fast_blocks import GroupNorm, ResnetBlock, Upsample, use_fast_blocks
from robustgen.generator.network import NetworkSettings, Unet


def relative(a: Tensor | None, b: Tensor | None) -> float:
    """Norm of the difference over the norm of b."""
    assert a is not None
    assert b is not None
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def norms(channels: int, groups: int) -> tuple[nn.GroupNorm, GroupNorm]:
    """PyTorch's in float64 and ours in bfloat16, with the same parameters."""
    torch.manual_seed(0)
    exact = nn.GroupNorm(groups, channels).bfloat16()
    nn.init.normal_(exact.weight)
    nn.init.normal_(exact.bias)
    ours = copy.deepcopy(exact)
    ours.__class__ = GroupNorm
    return exact.double(), ours


@pytest.mark.parametrize("shape", [(5, 32, 28, 28), (3, 64, 7, 7), (2, 8, 4, 12), (1, 96, 2, 2)])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_group_norm_and_its_gradients_equal_pytorch_in_float64(shape: tuple[int, ...], offset: float) -> None:
    """Offset 5: values far from 0, where a variance as a difference of means loses digits."""
    exact, ours = norms(shape[1], 8)
    x = (torch.randn(shape) + offset).bfloat16().contiguous(memory_format=torch.channels_last).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    out, out64 = ours(x), exact(x64)
    assert out.is_contiguous(memory_format=torch.channels_last)
    dy = torch.randn(shape).bfloat16()
    out.backward(dy)
    out64.backward(dy.double())
    assert relative(out, out64) < 0.01 * (1 + offset / 2)
    assert relative(x.grad, x64.grad) < 0.01 * (1 + offset / 2)
    for mine, theirs in zip(ours.parameters(), exact.parameters(), strict=True):
        assert relative(mine.grad, theirs.grad) < 0.01 * (1 + offset / 2)


def test_other_layouts_and_dtypes_take_pytorchs_norm() -> None:
    """Bit for bit."""
    _, ours = norms(16, 4)
    plain = torch.randn(2, 16, 6, 6).bfloat16()
    assert torch.equal(ours(plain), F.group_norm(plain, 4, ours.weight, ours.bias, ours.eps))
    sequence = torch.randn(2, 16, 9).bfloat16()  # as attention has it
    assert torch.equal(ours(sequence), F.group_norm(sequence, 4, ours.weight, ours.bias, ours.eps))


def test_a_unet_computes_the_same_with_fast_blocks() -> None:
    """In float64, so that nothing but rounding may differ; 70 rows, because diffusers has a case for 64 and more."""
    torch.manual_seed(1)
    unet = Unet(NetworkSettings(channels=(16, 32), attention=(0, 1), head=16, groups=4), (3, 8, 12), classes=3).double()
    nn.init.normal_(unet.unet.conv_out.weight)
    fast = use_fast_blocks(copy.deepcopy(unet)).to(memory_format=torch.channels_last)
    kinds = {type(module) for module in fast.modules()}
    assert kinds >= {GroupNorm, ResnetBlock, Upsample}
    assert not {nn.GroupNorm, ResnetBlock2D, Upsample2D} & kinds
    x, noise, label = torch.randn(70, 3, 8, 12).double(), torch.rand(70).double(), torch.arange(70) % 4 - 1
    torch.testing.assert_close(fast(x, noise, label), unet(x, noise, label), rtol=1e-10, atol=1e-10)
    assert fast.state_dict().keys() == unet.state_dict().keys()


def test_blocks_set_up_otherwise_are_left_alone() -> None:
    """Scaled outputs, scale and shift, transposed convolutions."""
    scaled = ResnetBlock2D(in_channels=8, temb_channels=16, groups=4, output_scale_factor=2.0)
    shifted = ResnetBlock2D(in_channels=8, temb_channels=16, groups=4, time_embedding_norm="scale_shift")
    transposed = Upsample2D(8, use_conv_transpose=True)
    network = nn.ModuleList([scaled, shifted, transposed])
    use_fast_blocks(network)
    assert [type(block) for block in network] == [ResnetBlock2D, ResnetBlock2D, Upsample2D]
