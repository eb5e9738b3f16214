"""What makes a patch printable: smoothness, colours that a printer has, and the set of those colours."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from robustgen.errors import ArtifactError, SpecError

__all__ = ["default_colours", "load_colours", "non_printability", "total_variation"]

_TINY = 1e-8  # under the roots, whose slope at 0 is infinite
_PAPER, _INK = 0.95, 0.10  # reflectance of bare paper, and of paper under solid black
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def total_variation(patch: Tensor, mask: Tensor) -> Tensor:
    """The mean over the patch of the root of the squared differences to the right and below; (C, h, w) -> scalar.

    Only pairs of pixels that are both on the mask (1, h, w) count; each channel is summed.

    Source: Sharif et al. 2016, section 4.3.1 (TV of Mahendran & Vedaldi). Differs: the mean, not the sum, so that its
    weight means the same for every size.
    """
    down, right = torch.zeros_like(patch), torch.zeros_like(patch)
    on = mask > 0
    down[:, :-1] = (patch[:, 1:] - patch[:, :-1]) * (on[:, 1:] & on[:, :-1])
    right[:, :, :-1] = (patch[:, :, 1:] - patch[:, :, :-1]) * (on[:, :, 1:] & on[:, :, :-1])
    return ((down.square() + right.square() + _TINY).sqrt() * on).sum() / on.sum()


def non_printability(patch: Tensor, mask: Tensor, colours: Tensor) -> Tensor:
    """The mean over the patch of the distance in L2 to the nearest printable colour; (C, h, w) -> scalar.

    Args:
        patch: (C, h, w) in [0, 1].
        mask: (1, h, w), 1 on the patch.
        colours: (N, C) in [0, 1].

    Source: Thys et al. 2019, arXiv:1904.08653, eq. (1). Differs: the mean, not the sum.
    """
    gaps = (patch.flatten(1).T[:, None] - colours.to(patch)[None]).square().sum(2)  # (h * w, N)
    on = (mask > 0).flatten()
    return ((gaps.amin(1) + _TINY).sqrt() * on).sum() / on.sum()


def default_colours() -> Tensor:
    """(30, 3) float32: 27 mixtures of three inks at 0, 50 and 100 %, and three greys of black ink.

    Computed, not measured: each ink lets a tenth of its complement through, inks multiply, paper reflects 95 %. For a
    patch that will be printed, photograph a printed palette and give its colours by --colours.
    """
    pass_ = _INK / _PAPER
    mixtures = [[_PAPER * (1 - share * (1 - pass_)) for share in inks] for inks in product((0.0, 0.5, 1.0), repeat=3)]
    greys = [[_PAPER * (1 - share * (1 - pass_))] * 3 for share in (0.25, 0.75, 0.9)]
    return torch.tensor(mixtures + greys)


def load_colours(path: Path | None, channels: int) -> Tensor:
    """(N, channels) printable colours in [0, 1]: one a line, "r g b" from 0 to 255, commas allowed, # for comments.

    For grey images each becomes its luma (ITU-R BT.601).

    Raises:
        ArtifactError: no such file.
        SpecError: a line that is no colour, one outside 0 .. 255, or no colour at all.
    """
    colours = default_colours() if path is None else _read(path)
    return colours if channels == 3 else (colours @ torch.tensor(_LUMA))[:, None]


def _read(path: Path) -> Tensor:
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"--colours: {path} cannot be read ({error}).") from None
    found = []
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].replace(",", " ").split()
        if not text:
            continue
        try:
            colour = [float(part) for part in text]
        except ValueError:
            colour = []
        if len(colour) != 3:
            raise SpecError(
                f"--colours: {path}, line {number}: expected three numbers such as 230 20 20, got '{line}'."
            )
        if not all(0 <= part <= 255 for part in colour):
            raise SpecError(f"--colours: {path}, line {number}: colours go from 0 to 255, got '{line}'.")
        found.append([part / 255 for part in colour])
    if not found:
        raise SpecError(f"--colours: {path} holds no colour; write one a line, such as 230 20 20.")
    return torch.tensor(found)
