"""Diffusers' blocks in the form that is fast on a CPU: the same parameters and names, the same functions.

In bfloat16 convolutions are a third faster with channels last, but PyTorch's own group norm is ten times slower in that
layout when a group has few channels, and diffusers' blocks copy, divide by 1 and change the layout on the way. So three
modules are swapped in place, each only where it is set up as the small networks are; `tests/test_fast_blocks.py` holds
them to the originals.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

__all__ = ["GroupNorm", "ResnetBlock", "Upsample", "use_fast_blocks"]


def use_fast_blocks(network: nn.Module) -> nn.Module:
    """Swap what can be swapped, in place; changes no weight and no name."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = GroupNorm
        elif type(module) is ResnetBlock2D and _is_plain_resnet(module):
            module.__class__ = ResnetBlock
        elif type(module) is Upsample2D and _is_plain_upsample(module):
            module.__class__ = Upsample
    return network


def _is_plain_resnet(block: Any) -> bool:
    return bool(
        block.time_embedding_norm == "default"
        and block.time_emb_proj is not None
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
    )


def _is_plain_upsample(block: Any) -> bool:
    return bool(block.use_conv and not block.use_conv_transpose and block.norm is None and block.name == "conv")


class ResnetBlock(ResnetBlock2D):
    """x + conv(silu(norm(conv(silu(norm(x))) + embedding))), Ho et al. 2020, appendix B."""

    def forward(self, input_tensor: Tensor, temb: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, H, W), (B, E) -> (B, C', H, W)."""
        assert self.time_emb_proj is not None  # checked before the block was swapped
        hidden: Tensor = self.conv1(F.silu(self.norm1(input_tensor)))
        hidden = hidden + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        hidden = self.conv2(self.dropout(F.silu(self.norm2(hidden))))
        if self.conv_shortcut is not None:
            input_tensor = self.conv_shortcut(input_tensor)
        return input_tensor + hidden


class Upsample(Upsample2D):
    """Nearest neighbour to twice the size, then a convolution; without the detour over float32 and the plain layout."""

    def forward(self, hidden_states: Tensor, output_size: int | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """(B, C, H, W) -> (B, C', 2 H, 2 W), or `output_size`."""
        size = {"scale_factor": 2.0} if output_size is None else {"size": output_size}
        assert self.conv is not None  # checked before the module was swapped
        out: Tensor = self.conv(F.interpolate(hidden_states, mode="nearest", **size))
        return out


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm`; for channels last in bfloat16 by sums over the positions, which PyTorch does fast."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> the same shape."""
        if (
            x.dim() != 4
            or x.dtype != torch.bfloat16
            or x.is_contiguous()
            or not x.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(x)
        out: Tensor = _ChannelsLastNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return out


class _ChannelsLastNorm(torch.autograd.Function):
    """Group norm of (B, C, H, W), channels last: y = a x + b with a and b one number a row and channel.

    Statistics are float32; only images are bfloat16. With m values in a group, w the weight, s = 1 / std, and sums over
    the group, the gradient of x is

        a dy + c2 x + c3,   c2 = s^3 (mean sum(w dy) - sum(w dy x)) / m,   c3 = -c2 mean - s sum(w dy) / m.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, c, h, w = x.shape
        per_group = weight.float().view(groups, c // groups)
        first, second = _line_sums(x, groups).mean(3, keepdim=True).div_(h * w)
        scale = (second - first * first).clamp_min_(0).add_(eps).rsqrt_()
        a = scale * per_group
        b = torch.addcmul(bias.float().view(groups, -1), first, a, value=-1)
        ab = torch.stack((a, b)).to(x.dtype).view(2, n, c, 1, 1)
        ctx.save_for_backward(x, per_group, first, scale, ab)
        out: Tensor = torch.addcmul(ab[1], x, ab[0])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, per_group, mean, scale, ab = ctx.saved_tensors
        (dy,) = gradients
        n, c, h, w = x.shape
        groups = len(per_group)
        sums = torch.stack((_flat(dy).sum(1), (_flat(dy) * _flat(x)).sum(1))).float().unflatten(2, (groups, -1))
        over_group = (sums * per_group).sum(3, keepdim=True).div_(h * w * (c // groups))
        c2 = (over_group[0] * mean - over_group[1]) * scale**3
        c3 = -c2 * mean - over_group[0] * scale
        c23 = torch.stack((c2, c3)).to(x.dtype).expand(2, n, groups, c // groups).reshape(2, n, c, 1, 1)
        dx = torch.addcmul(c23[1], x, c23[0]).addcmul_(dy, ab[0])
        d_weight = ((sums[1] - sums[0] * mean) * scale).sum(0).view(c)
        return dx, d_weight.to(x.dtype), sums[0].sum(0).view(c).to(x.dtype), None, None


def _flat(x: Tensor) -> Tensor:
    """(B, C, H, W) as (B, H W, C), a view where it is channels last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _line_sums(x: Tensor, groups: int) -> Tensor:
    """Sums over the positions of x and of x^2, (2, B, G, C / G) float32.

    First along each line of the image, then over the lines in float32: a sum in bfloat16 is off by up to 2^-9, which
    would spoil the variance of values far from 0; over many lines that averages out.
    """
    x = x.permute(0, 2, 3, 1)
    lines = torch.stack((x.sum(2), (x * x).sum(2)))
    sums: Tensor = lines.sum(2, dtype=torch.float32).unflatten(2, (groups, -1))
    return sums
