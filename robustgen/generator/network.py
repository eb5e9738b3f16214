"""The network F of a generator: diffusers' U-Net behind one signature, F(x, c_noise, class).

The blocks are diffusers' `UNet2DModel` (Ho et al. 2020, appendix B); here stand the class embedding with a null class,
the embedding of augmentation parameters (Karras et al. 2022, appendix F.2), and in which form it runs fastest.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.fields import SHARE, WHOLE, Rule, check_fields, count, each

__all__ = ["AUGMENT_PARAMETERS", "NetworkSettings", "Unet", "low_precision_copy", "prepare_for"]

AUGMENT_PARAMETERS = 9  # see `robustgen.generator.augment`


@dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """The size of a U-Net.

    Args:
        channels: of each level; the image is halved between levels.
        blocks: residual blocks a level.
        attention: a 1 for each level with self-attention, else a 0.
        head: channels of one attention head.
        groups: of the group norm.
        dropout: in [0, 1), in the residual blocks.

    Raises:
        SpecError: a value that cannot be, or values that do not fit each other.
    """

    channels: tuple[int, ...]
    blocks: int = 1
    attention: tuple[int, ...] = ()
    head: int = 64
    groups: int = 8
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "network", _RULES)
        if not self.attention:
            object.__setattr__(self, "attention", (0,) * len(self.channels))
        if len(self.attention) != len(self.channels):
            raise SpecError(
                f"network.attention needs one number a level, got {len(self.attention)} for "
                f"{len(self.channels)} levels."
            )
        for width, attends in zip(self.channels, self.attention, strict=True):
            if width % self.groups:
                raise SpecError(f"network.channels: {width} is not a multiple of network.groups = {self.groups}.")
            if attends and width % self.head:
                raise SpecError(f"network.channels: {width} is not a multiple of network.head = {self.head}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


_RULES: dict[str, Rule] = {
    "network.channels": (lambda value: bool(value) and each(count)(value), "a list of whole numbers, one a level"),
    "network.blocks": WHOLE,
    "network.attention": (each(lambda item: item in (0, 1)), "a list of 0 and 1, one a level"),
    "network.head": WHOLE,
    "network.groups": WHOLE,
    "network.dropout": SHARE,
}


class Unet(nn.Module):
    """F(x, c_noise, class, augmentation): the same shape out as in.

    Args:
        settings: its size.
        shape: (C, H, W) of the images; H and W are multiples of 2^(levels - 1).
        classes: number of classes, embedded as Karras et al. do: one row each, nothing added for "no class".
        augmented: whether it also sees augmentation parameters.
        noise_scale: multiplies c_noise before the sinusoids, which expect a range of some hundreds, as of DDPM's t.

    Raises:
        SpecError: the image cannot be halved often enough.
    """

    def __init__(
        self,
        settings: NetworkSettings,
        shape: tuple[int, int, int],
        classes: int = 0,
        *,
        augmented: bool = False,
        noise_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.settings, self.shape, self.classes, self.noise_scale = settings, shape, classes, noise_scale
        _, height, width = shape
        factor = 2 ** (len(settings.channels) - 1)
        if height % factor or width % factor:
            raise SpecError(
                f"network.channels: {len(settings.channels)} levels halve the image to 1/{factor}, but "
                f"{height} x {width} is not a multiple of {factor}."
            )
        self.unet = _make_unet(settings, shape, class_embed_type="identity" if classes or augmented else None)
        width_ = 4 * settings.channels[0]  # of diffusers' time embedding
        self.embed_class = nn.Embedding(classes, width_) if classes else None
        self.embed_augmentation = nn.Linear(AUGMENT_PARAMETERS, width_, bias=False) if augmented else None
        nn.init.zeros_(self.unet.conv_out.weight)  # the first D is c_skip x, which is right at both ends of sigma
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """F.

        Args:
            x: (B, C, H, W) of the dtype of the weights.
            c_noise: (B,) the noise level, ln(sigma) / 4 or t, as the denoiser around it has it.
            label: (B,) int64; -1, or None for all rows, for no class.
            augmentation: (B, 9), or None for none.
        """
        embedding = torch.zeros(len(x), 4 * self.settings.channels[0], dtype=x.dtype, device=x.device)
        if self.embed_class is not None and label is not None:
            row = self.embed_class(label.clamp(min=0))
            embedding = embedding + torch.where((label >= 0)[:, None], row, 0)
        if self.embed_augmentation is not None and augmentation is not None:
            embedding = embedding + self.embed_augmentation(augmentation.to(x.dtype))
        conditions = embedding if self.unet.class_embedding is not None else None
        out: Tensor = self.unet(x, c_noise * self.noise_scale, class_labels=conditions, return_dict=False)[0]
        return out


def _make_unet(settings: NetworkSettings, shape: tuple[int, int, int], class_embed_type: str | None) -> Any:
    from diffusers import UNet2DModel  # here, not above: slow to import

    levels = settings.attention
    return UNet2DModel(
        sample_size=shape[1:],
        in_channels=shape[0],
        out_channels=shape[0],
        layers_per_block=settings.blocks,
        block_out_channels=settings.channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in levels),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(levels)),
        attention_head_dim=settings.head,
        norm_num_groups=settings.groups,
        dropout=settings.dropout,
        class_embed_type=class_embed_type,
    )


def prepare_for(network: nn.Module, device: torch.device) -> nn.Module:
    """The network on a device, with the blocks and the attention that are fast there; changes no weight.

    PyTorch's fused attention is made for long sequences: on a CPU its backward in bfloat16 took 15 % of a training step
    of the small network (49 positions), written out it takes next to nothing.
    """
    from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0

    from robustgen.generator.fast_blocks import use_fast_blocks  # here, not above: diffusers is slow to import

    processor: Any = AttnProcessor() if device.type == "cpu" else AttnProcessor2_0()
    for module in network.modules():
        if isinstance(module, Attention):
            module.set_processor(processor)
    return use_fast_blocks(network).to(device)


def low_precision_copy(network: nn.Module) -> nn.Module:
    """A bfloat16 copy to compute with, on a CPU channels last; the original keeps the weights that count."""
    on_cpu = all(parameter.device.type == "cpu" for parameter in network.parameters())
    layout = torch.channels_last if on_cpu else torch.preserve_format
    return copy.deepcopy(network).to(torch.bfloat16).to(memory_format=layout)
