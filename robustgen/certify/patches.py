"""Certificates against square patches, by double masking or by votes over ablations: what is asked, and one image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from robustgen.ablation import UNKNOWN, Ablation, AblationNet
from robustgen.certify.derandomized import VoteTarget, ablated_votes, certified_by_votes, check_theta, winner
from robustgen.certify.patch_attack import Target
from robustgen.certify.patchcleanser import MaskTarget, certify_patches, double_masking, mask_set
from robustgen.classifier import Classifier
from robustgen.errors import SpecError, unknown_name

__all__ = [
    "METHODS",
    "Answer",
    "Defence",
    "PatchRequest",
    "ablated_value",
    "check_patches",
    "make_defence",
    "patch_lines",
]

METHODS = ("masks", "band", "block")
_MASKED = 64  # masked images sent at once: many of an image that cannot be certified are never sent
Answer = tuple[int, bool]  # class, and whether the image is certified to keep its label


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRequest:
    """What `robustgen certify-patches` was asked for; see its help for the meaning of each field."""

    classifier: str
    patches: tuple[int, ...]
    method: str = "masks"
    per_axis: int = 6
    axis: str = "columns"
    size: int = 4
    theta: float = 0.3
    fill: float | None = None
    data: str = "fmnist-test-1k"
    n: int = 200
    weights: Path | None = None
    data_dir: Path | None = None

    def ablation(self) -> Ablation:
        """What is kept.

        Raises:
            SpecError: no such axis, or a size below 1.
        """
        if self.axis not in ("columns", "rows"):
            raise unknown_name("--axis", self.axis, ("columns", "rows"))
        return Ablation(kind="block" if self.method == "block" else self.axis, size=self.size)


def patch_lines(found: dict[str, Any]) -> list[str]:
    """What `certify_against_patches` found, a line a side, for reading."""
    lines = [
        f"{found['classifier']}, {found['n']} images, right on whole images: {100 * found['clean']['value']:.1f} %"
    ]
    if "fill" in found:
        kept = (
            f"a {found['size']} x {found['size']} block"
            if found["ablation"] == "block"
            else f"{found['size']} {found['ablation']}"
        )
        known = "unknown to the network" if found["fill"] == UNKNOWN else f"of value {found['fill']:g}"
        lines.append(f"votes over all ablations that keep {kept}, threshold {found['theta']:g}; ablated pixels {known}")
    for row in found["rows"]:
        told = ", ".join(
            f"{key} {100 * row[key]['value']:.1f} % [{100 * row[key]['low']:.1f}, {100 * row[key]['high']:.1f}]"
            for key in ("clean", "certified")
        )
        how = f"{row['masks']} masks" if "masks" in row else f"touches {row['touched']} of {row['ablations']} ablations"
        lines.append(f"patch {row['patch']} x {row['patch']}, {how}: {told}")
    return lines


def ablated_value(classifier: Classifier, fill: float | None) -> float:
    """What stands in an ablated pixel: `fill` where it is given, else what the network knows as unknown, else 0.

    Raises:
        SpecError: the network knows unknown pixels, but its images are normalised before they reach it.
    """
    if fill is not None:
        return fill
    if not isinstance(classifier.network, AblationNet):
        return 0.0
    if classifier.normalises:
        raise SpecError(
            f"{classifier.card.name}: ablation-resnet tells unknown pixels by their value, which mean and std of the "
            "card change; train it without data.mean and data.std, or pass --fill."
        )
    return UNKNOWN


def check_patches(request: PatchRequest) -> None:
    """Refuse what can be seen to be wrong without data or network.

    Raises:
        SpecError: another method or axis, a size, threshold or fill that cannot be.
    """
    if request.method not in METHODS:
        raise unknown_name("method", request.method, METHODS)
    if request.fill is not None and not math.isfinite(request.fill):
        raise SpecError(f"--fill must be a number, such as 0 or the mean of the data, got {request.fill}.")
    check_theta(request.theta)
    request.ablation()


class Defence(Protocol):
    """A way to classify and certify, for patches of several sides.

    Attributes:
        rows: for each side, what is to be told of it.
    """

    rows: list[dict[str, Any]]

    def settings(self, model: Classifier) -> dict[str, Any]:
        """What the answers depend on; asked before `answers`."""

    def answers(self, model: Classifier, x: Tensor, y: Tensor) -> list[Answer]:
        """For each side, of one image x (1, C, H, W) with the label y (1,)."""

    def targets(self, model: Classifier) -> list[Target]:
        """For each side, the defence as it is attacked; `settings` was asked before."""


def make_defence(request: PatchRequest, shape: tuple[int, int, int]) -> Defence:
    """The one that was asked for, for images (C, H, W).

    Raises:
        SpecError: sides, masks or ablations that do not fit the images.
    """
    return (_Masks if request.method == "masks" else _Votes)(request, shape)


class _Masks:
    """Double masking, one set of masks a side."""

    def __init__(self, request: PatchRequest, shape: tuple[int, int, int]) -> None:
        self.per_axis = request.per_axis
        self.sets = [mask_set(*shape[1:], patch, request.per_axis) for patch in request.patches]
        self.rows: list[dict[str, Any]] = [{"masks": len(masks.keep)} for masks in self.sets]

    def settings(self, model: Classifier) -> dict[str, Any]:
        return {"per_axis": self.per_axis}

    def answers(self, model: Classifier, x: Tensor, y: Tensor) -> list[Answer]:
        return [
            (int(double_masking(model, x, one)), bool(certify_patches(model, x, y, one, batch_size=_MASKED)))
            for one in self.sets
        ]

    def targets(self, model: Classifier) -> list[Target]:
        return [MaskTarget(model, one) for one in self.sets]


class _Votes:
    """Votes over ablations; the same for every side."""

    def __init__(self, request: PatchRequest, shape: tuple[int, int, int]) -> None:
        self.ablation, self.theta, self.fill = request.ablation(), request.theta, request.fill
        self.patches = request.patches
        count = self.ablation.positions(*shape[1:])
        self.touched = [self.ablation.touched(patch, *shape[1:]) for patch in request.patches]
        self.rows: list[dict[str, Any]] = [{"ablations": count, "touched": touched} for touched in self.touched]

    def settings(self, model: Classifier) -> dict[str, Any]:
        fill = self.fill = ablated_value(model, self.fill)
        return {"ablation": self.ablation.kind, "size": self.ablation.size, "theta": self.theta, "fill": fill}

    def answers(self, model: Classifier, x: Tensor, y: Tensor) -> list[Answer]:
        assert self.fill is not None  # `settings` was asked before
        votes = ablated_votes(model, x, self.ablation, theta=self.theta, fill=self.fill)
        answer = winner(votes)
        right = bool(answer == y)
        return [(int(answer), right and bool(certified_by_votes(votes, touched))) for touched in self.touched]

    def targets(self, model: Classifier) -> list[Target]:
        assert self.fill is not None
        return [VoteTarget(model, self.ablation, self.theta, self.fill, patch) for patch in self.patches]
