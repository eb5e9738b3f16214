"""The network that NVIDIA's EDM weights belong to: DDPM++ and NCSN++ of Song et al., in the form of Karras et al.

Names of settings, parameters and buffers are those of the published files, so that their weights load strictly; the
code is written from the papers.

Source: Song et al. 2021, arXiv:2011.13456, appendix H; Karras et al. 2022, arXiv:2206.00364, appendix F, tables 7, 8.
Differs: initial values are PyTorch's, as the network is only made to receive weights; the encoder and decoder types
"skip", which no published EDM file has, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.fields import SHARE, WHOLE, Rule, check_fields, count, each, number, one_of, read_section

__all__ = ["KIND", "SongUnet", "SongUnetSettings", "build_song_unet"]

KIND = "song-unet"  # of the field `network.kind` of a card
Resampling = Literal["up", "down"] | None  # double or halve the image
_HALF = math.sqrt(0.5)  # keeps the variance of a sum of two equals


@dataclass(frozen=True, kw_only=True)
class SongUnetSettings:
    """The size and the variant of a `SongUnet`; names and defaults are those of the published files.

    Args:
        img_resolution: H = W of the images, a multiple of 2^(levels - 1).
        in_channels, out_channels: of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: number of augmentation parameters, 0 for none.
        model_channels: channels of the first layer.
        channel_mult: channels of each level, in units of `model_channels`; the image is halved between levels.
        channel_mult_emb: channels of the embedding, in units of `model_channels`.
        num_blocks: residual blocks a level.
        attn_resolutions: heights at which blocks attend.
        dropout: in [0, 1), in the residual blocks; without effect in eval mode.
        embedding_type: of the noise level: "positional" in DDPM++, "fourier" in NCSN++.
        channel_mult_noise: channels of that embedding, in units of `model_channels`: 1 in DDPM++, 2 in NCSN++.
        encoder_type: "standard" in DDPM++, "residual" in NCSN++.
        decoder_type: "standard".
        resample_filter: taps of the filter before halving and after doubling, an even number, symmetric: [1, 1] in
            DDPM++, [1, 3, 3, 1] in NCSN++.

    Raises:
        SpecError: a value that cannot be, or values that do not fit each other.
    """

    img_resolution: int
    in_channels: int
    out_channels: int
    label_dim: int = 0
    augment_dim: int = 0
    model_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 2, 2, 2)
    channel_mult_emb: int = 4
    num_blocks: int = 4
    attn_resolutions: tuple[int, ...] = (16,)
    dropout: float = 0.10
    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: int = 1
    encoder_type: Literal["standard", "residual"] = "standard"
    decoder_type: Literal["standard"] = "standard"
    resample_filter: tuple[float, ...] = (1, 1)

    def __post_init__(self) -> None:
        check_fields(self, "network", _RULES)
        factor = 2 ** (len(self.channel_mult) - 1)
        if self.img_resolution % factor:
            raise SpecError(
                f"network.channel_mult: {len(self.channel_mult)} levels halve the image to 1/{factor}, but "
                f"{self.img_resolution} is not a multiple of {factor}."
            )


_taps = each(number(0, math.inf, open_low=True))
_COUNT_OR_0: Rule = (lambda value: value is not False and (value == 0 or count(value)), "a whole number >= 0")
_RULES: dict[str, Rule] = {
    "network.img_resolution": WHOLE,
    "network.in_channels": WHOLE,
    "network.out_channels": WHOLE,
    "network.label_dim": _COUNT_OR_0,
    "network.augment_dim": _COUNT_OR_0,
    "network.model_channels": (lambda value: count(value) and value % 4 == 0, "a multiple of 4"),
    "network.channel_mult": (lambda value: bool(value) and each(count)(value), "a list of whole numbers, one a level"),
    "network.channel_mult_emb": WHOLE,
    "network.num_blocks": WHOLE,
    "network.attn_resolutions": (each(count), "a list of whole numbers"),
    "network.dropout": SHARE,
    "network.embedding_type": one_of("positional", "fourier"),
    "network.channel_mult_noise": WHOLE,
    "network.encoder_type": one_of("standard", "residual"),
    "network.decoder_type": one_of("standard"),
    "network.resample_filter": (
        lambda value: _taps(value) and len(value) >= 2 and len(value) % 2 == 0 and value == value[::-1],
        "an even number of taps above 0, symmetric, such as [1, 1] or [1, 3, 3, 1]",
    ),
}


def build_song_unet(network: Mapping[str, Any], shape: tuple[int, int, int], classes: int) -> SongUnet:
    """The network of a card.

    Args:
        network: the field `network` of the card: `kind`, and settings that do not follow from the rest of the card.
        shape: (C, H, W) of the images.
        classes: number of classes, 0 for none.

    Raises:
        SpecError: images that are not square, or settings that are unknown, impossible or given twice.
    """
    channels, height, width = shape
    if height != width:
        raise SpecError(f"a {KIND} makes square images, got {height} x {width}.")
    derived = {"img_resolution": height, "in_channels": channels, "out_channels": channels, "label_dim": classes}
    for key in derived:
        if key in network:
            raise SpecError(f"network.{key} follows from the card's shape and classes; take it out.")
    return SongUnet(**derived, **{key: value for key, value in network.items() if key != "kind"})


class SongUnet(nn.Module):
    """F(x, c_noise, class, augmentation): the same shape out as in.

    Args:
        settings: the keyword arguments of `SongUnetSettings`.

    Raises:
        SpecError: see there; also a setting that is unknown or missing.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        s = self.settings = read_section(SongUnetSettings, "network", settings)
        noise, embedding = s.model_channels * s.channel_mult_noise, s.model_channels * s.channel_mult_emb
        self.map_noise = PositionalEmbedding(noise) if s.embedding_type == "positional" else FourierEmbedding(noise)
        self.map_label = nn.Linear(s.label_dim, noise) if s.label_dim else None
        self.map_augment = nn.Linear(s.augment_dim, noise, bias=False) if s.augment_dim else None
        self.map_layer0 = nn.Linear(noise, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.enc, widths = _make_encoder(s)
        self.dec = _make_decoder(s, widths)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, augmentation: Tensor | None = None
    ) -> Tensor:
        """F.

        Args:
            x: (B, C, H, H) of the dtype of the weights.
            c_noise: (B,) ln(sigma) / 4, not scaled.
            label: (B,) int64; -1, or None for all rows, for no class.
            augmentation: (B, augment_dim) as the weights were trained with, or None for none.
        """
        embedding = self.embed(c_noise, label, augmentation, x.dtype)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_residual" in name:
                aux = (x + layer(aux)) * _HALF
                x = skips[-1] = aux
            else:
                x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if "aux_norm" in name:
                x = F.silu(layer(x))
            elif "aux_conv" in name:
                x = layer(x)
            else:
                x = layer(torch.cat([x, skips.pop()], 1) if "block" in name else x, embedding)
        return x

    def embed(self, c_noise: Tensor, label: Tensor | None, augmentation: Tensor | None, dtype: torch.dtype) -> Tensor:
        """(B, channels) of noise level, class and augmentation.

        A class enters as a one-hot vector times sqrt(classes), no class as zeros, so that the bias stays.
        """
        embedding: Tensor = self.map_noise(c_noise).to(dtype)
        if self.map_label is not None:
            classes = self.map_label.in_features
            if label is None:
                label = torch.full_like(c_noise, -1, dtype=torch.long)
            one_hot = label[:, None] == torch.arange(classes, device=label.device)
            embedding = embedding + self.map_label(one_hot.to(dtype) * math.sqrt(classes))
        if self.map_augment is not None and augmentation is not None:
            embedding = embedding + self.map_augment(augmentation.to(dtype))
        embedding = F.silu(self.map_layer0(embedding))
        return F.silu(self.map_layer1(embedding))


def _make_encoder(s: SongUnetSettings) -> tuple[nn.ModuleDict, list[int]]:
    """The layers from the image to the lowest level, and the channels of what each leaves for the decoder."""
    layers = nn.ModuleDict()
    width, aux = s.model_channels, s.in_channels
    widths = []
    for level, mult in enumerate(s.channel_mult):
        size = s.img_resolution >> level
        if level == 0:
            layers[f"{size}x{size}_conv"] = Convolution(s.in_channels, width, 3)
        else:
            layers[f"{size}x{size}_down"] = ResidualBlock(s, width, width, resample="down")
        widths.append(width)
        if level > 0 and s.encoder_type == "residual":
            layers[f"{size}x{size}_aux_residual"] = Convolution(
                aux, width, 3, resample="down", taps=s.resample_filter, filter_last=True
            )
            aux = width
        for i in range(s.num_blocks):
            target = s.model_channels * mult
            attends = size in s.attn_resolutions
            layers[f"{size}x{size}_block{i}"] = ResidualBlock(s, width, target, attention=attends)
            width = target
            widths.append(width)
    return layers, widths


def _make_decoder(s: SongUnetSettings, widths: list[int]) -> nn.ModuleDict:
    """The layers from the lowest level back to the image; each `block` also takes what the encoder left."""
    layers = nn.ModuleDict()
    left, width = list(widths), widths[-1]
    for level in reversed(range(len(s.channel_mult))):
        size = s.img_resolution >> level
        if level == len(s.channel_mult) - 1:
            layers[f"{size}x{size}_in0"] = ResidualBlock(s, width, width, attention=True)
            layers[f"{size}x{size}_in1"] = ResidualBlock(s, width, width)
        else:
            layers[f"{size}x{size}_up"] = ResidualBlock(s, width, width, resample="up")
        target = s.model_channels * s.channel_mult[level]
        for i in range(s.num_blocks + 1):
            attends = i == s.num_blocks and size in s.attn_resolutions  # the last block of a level only
            layers[f"{size}x{size}_block{i}"] = ResidualBlock(s, width + left.pop(), target, attention=attends)
            width = target
    size = s.img_resolution
    layers[f"{size}x{size}_aux_norm"] = _norm(width)
    layers[f"{size}x{size}_aux_conv"] = Convolution(width, s.out_channels, 3)
    return layers


class ResidualBlock(nn.Module):
    """Two convolutions with the embedding added between them, then attention where asked; sums are times sqrt(1/2).

    Source: the residual block of BigGAN as in Song et al., appendix H; Karras et al., figure 8, without adaptive scale.
    """

    def __init__(
        self, s: SongUnetSettings, into: int, out: int, *, resample: Resampling = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.dropout, self.attention, taps = s.dropout, attention, s.resample_filter
        self.norm0 = _norm(into)
        self.conv0 = Convolution(into, out, 3, resample=resample, taps=taps)
        self.affine = nn.Linear(s.model_channels * s.channel_mult_emb, out)
        self.norm1 = _norm(out)
        self.conv1 = Convolution(out, out, 3)
        changed = into != out or resample is not None
        self.skip = Convolution(into, out, 1, resample=resample, taps=taps) if changed else None
        if attention:
            self.norm2 = _norm(out)
            self.qkv = Convolution(out, 3 * out, 1)
            self.proj = Convolution(out, out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B, into, H, W) and (B, embedding) to (B, out, H', W')."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = h + self.affine(embedding)[:, :, None, None]
        h = self.conv1(F.dropout(F.silu(self.norm1(h)), self.dropout, self.training))
        x = (h + (x if self.skip is None else self.skip(x))) * _HALF
        return (x + self.attend(x)) * _HALF if self.attention else x

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention over positions, one head over all channels; the softmax is in float32.

        Query, key and value of a channel are neighbours among the 3 C channels of `qkv`, not three blocks of C.
        """
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3)).unbind(2)  # (B, C, H W) each
        scores = q.transpose(1, 2) @ (k / math.sqrt(k.shape[1]))  # (B, queries, keys)
        share = scores.softmax(2, dtype=torch.promote_types(scores.dtype, torch.float32)).to(v.dtype)
        out: Tensor = self.proj((v @ share.transpose(1, 2)).reshape(x.shape))
        return out


class Convolution(nn.Conv2d):
    """A convolution that keeps the size, with the image doubled before it, or halved before or after it.

    Args:
        into, out: channels.
        size: of the kernel, odd.
        resample: "up" doubles, "down" halves, None does neither.
        taps: of the separable low-pass filter of resampling.
        filter_last: halve after the convolution, which then also reads the zeros beyond the border that the filter
            needs: the residual path of NCSN++.
    """

    resample_filter: Tensor

    def __init__(
        self,
        into: int,
        out: int,
        size: int,
        *,
        resample: Resampling = None,
        taps: tuple[float, ...] = (1, 1),
        filter_last: bool = False,
    ) -> None:
        reach = (len(taps) - 1) // 2 if filter_last else 0
        super().__init__(into, out, size, padding=size // 2 + reach)
        self.resample, self.filter_last = resample, filter_last
        if resample is not None:
            line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
            self.register_buffer("resample_filter", torch.outer(line, line)[None, None])

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 -- the name in `nn.Conv2d`
        """(B, into, H, W) to (B, out, H', W')."""
        if self.resample is None:
            return super().forward(input)
        if self.resample == "up":
            return super().forward(upsample(input, self.resample_filter))
        if self.filter_last:
            return downsample(super().forward(input), self.resample_filter, padding=0)
        reach = (self.resample_filter.shape[-1] - 1) // 2
        return super().forward(downsample(input, self.resample_filter, padding=reach))


def upsample(x: Tensor, kernel: Tensor) -> Tensor:
    """Double H and W: zeros between the pixels, then the low-pass filter (1, 1, n, n), which sums to 1, times 4."""
    channels, reach = x.shape[1], (kernel.shape[-1] - 1) // 2
    weight = (4 * kernel).expand(channels, -1, -1, -1)
    return F.conv_transpose2d(x, weight, stride=2, padding=reach, groups=channels)


def downsample(x: Tensor, kernel: Tensor, *, padding: int) -> Tensor:
    """The low-pass filter (1, 1, n, n), then every second pixel; with n / 2 - 1 zeros of padding half H and W."""
    channels = x.shape[1]
    return F.conv2d(x, kernel.expand(channels, -1, -1, -1), stride=2, padding=padding, groups=channels)


class PositionalEmbedding(nn.Module):
    """(B,) -> (B, channels) float32: sin(w_i c), then cos(w_i c), with w_i = 10000^(-i / (channels / 2 - 1)).

    Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, with the end point included, as Ho et al. 2020 do.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.channels // 2
        power = torch.arange(half, device=c_noise.device, dtype=torch.float32) / (half - 1)
        return _waves(c_noise, 10000.0**-power)


class FourierEmbedding(nn.Module):
    """(B,) -> (B, channels) float32: sin(2 pi f_i c), then cos(2 pi f_i c), with fixed random frequencies.

    Source: Tancik et al. 2020, arXiv:2006.10739, as in Song et al., appendix C.1 (frequencies ~ N(0, 16^2)).
    """

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.ones(channels // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        return _waves(c_noise, 2 * math.pi * self.freqs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierEmbedding:
        """Move, but stay in float32: rounded to bfloat16, a frequency is another one."""
        kept = self.freqs
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch gives it no types
        if self.freqs.dtype != kept.dtype:
            self.freqs = kept.to(self.freqs.device)
        return self


def _waves(c_noise: Tensor, frequencies: Tensor) -> Tensor:
    angles = torch.outer(c_noise.float(), frequencies)
    return torch.cat([angles.sin(), angles.cos()], 1)


def _norm(channels: int) -> nn.GroupNorm:
    groups = min(32, channels // 4)
    if channels % groups:
        raise SpecError(f"network.model_channels: {channels} channels do not divide into {groups} groups.")
    return nn.GroupNorm(groups, channels, eps=1e-6)
