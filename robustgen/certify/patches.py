"""Accuracy certified against square patches, by double masking or by votes over ablations: from names to figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.ablation import UNKNOWN, Ablation, AblationNet
from robustgen.certify.derandomized import ablated_votes, certified_by_votes, check_theta, winner
from robustgen.certify.patchcleanser import certify_patches, double_masking, mask_set
from robustgen.classifiers import Classifier, check_classifier, load_classifier
from robustgen.data import load_data, parse_ids
from robustgen.environment import pick_device
from robustgen.errors import SpecError, unknown_name
from robustgen.progress import Progress
from robustgen.statistics import proportion

__all__ = ["METHODS", "PatchRequest", "ablated_value", "measure_patches", "patch_lines"]

METHODS = ("masks", "band", "block")
_ROWS = 50  # images in one part


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


def measure_patches(request: PatchRequest, *, device: str, progress: Progress) -> dict[str, Any]:
    """Certified accuracy against the side of the patch, beside the accuracy of the defended classifier without one.

    Args:
        request: what is asked.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told how the work goes.

    Raises:
        SpecError, ArtifactError: a wrong request; nothing has been computed.
    """
    _check_values(request)
    where, dataset = pick_device(device), load_data(request.data, data_dir=request.data_dir)
    ids = parse_ids(None, request.n, len(dataset), dataset.name)
    defence: _Masks | _Votes = (_Masks if request.method == "masks" else _Votes)(request, dataset.shape)
    model = load_classifier(request.classifier, weights=request.weights, shape=dataset.shape).to(where)
    check_classifier(model, dataset.batch(ids[:64])[0].to(where), torch.as_tensor(dataset.labels[ids]))
    settings = defence.settings(model)
    plain, sums = 0, [(0, 0)] * len(request.patches)
    progress.start("certify", len(ids))
    for at in range(0, len(ids), _ROWS):
        x, y = (part.to(where) for part in dataset.batch(ids[at : at + _ROWS]))
        with torch.no_grad():
            plain += int((model(x).argmax(1) == y).sum())
        found = defence.scores(model, x, y)
        sums = [(a + int(b.sum()), c + int(d.sum())) for (a, c), (b, d) in zip(sums, found, strict=True)]
        progress.advance(min(at + _ROWS, len(ids)), ", ".join(f"{certified} certified" for _, certified in sums))
    rows = []
    for patch, told, counts in zip(request.patches, defence.rows, sums, strict=True):
        clean, certified = (asdict(proportion(count, len(ids))) for count in counts)
        rows.append({"patch": patch, **told, "clean": clean, "certified": certified})
    return {
        "classifier": model.card.name, "method": request.method, **settings, "n": len(ids),
        "clean": asdict(proportion(plain, len(ids))), "rows": rows,
    }  # fmt: skip


def patch_lines(found: dict[str, Any]) -> list[str]:
    """What `measure_patches` found, a line a side, for reading."""
    lines = [
        f"{found['classifier']}, {found['n']} images, right on whole images: {100 * found['clean']['value']:.1f} %"
    ]
    if "fill" in found:
        kept = (
            f"a {found['size']} x {found['size']} block"
            if found["kind"] == "block"
            else f"{found['size']} {found['kind']}"
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


def _check_values(request: PatchRequest) -> None:
    if request.method not in METHODS:
        raise unknown_name("method", request.method, METHODS)
    if request.fill is not None and not math.isfinite(request.fill):
        raise SpecError(f"--fill must be a number, such as 0 or the mean of the data, got {request.fill}.")
    check_theta(request.theta)
    request.ablation()


class _Masks:
    """Double masking, one set of masks a side."""

    def __init__(self, request: PatchRequest, shape: tuple[int, int, int]) -> None:
        self.per_axis = request.per_axis
        self.sets = [mask_set(*shape[1:], patch, request.per_axis) for patch in request.patches]
        self.rows: list[dict[str, Any]] = [{"masks": len(masks.keep)} for masks in self.sets]

    def settings(self, model: Classifier) -> dict[str, Any]:
        """What the figures depend on."""
        return {"per_axis": self.per_axis}

    def scores(self, model: Classifier, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each side (B,) bool whether the answer is right, and whether it is certified to stay so."""
        return [(double_masking(model, x, one) == y, certify_patches(model, x, y, one)) for one in self.sets]


class _Votes:
    """Votes over ablations; the same for every side."""

    def __init__(self, request: PatchRequest, shape: tuple[int, int, int]) -> None:
        self.ablation, self.theta, self.fill = request.ablation(), request.theta, request.fill
        count = self.ablation.positions(*shape[1:])
        self.touched = [self.ablation.touched(patch, *shape[1:]) for patch in request.patches]
        self.rows: list[dict[str, Any]] = [{"ablations": count, "touched": touched} for touched in self.touched]

    def settings(self, model: Classifier) -> dict[str, Any]:
        """What the figures depend on."""
        fill = self.fill = ablated_value(model, self.fill)
        return {"kind": self.ablation.kind, "size": self.ablation.size, "theta": self.theta, "fill": fill}

    def scores(self, model: Classifier, x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each side (B,) bool whether the answer is right, and whether it is certified to stay so."""
        assert self.fill is not None  # `settings` was asked before
        votes = ablated_votes(model, x, self.ablation, theta=self.theta, fill=self.fill)
        right = winner(votes) == y
        return [(right, right & certified_by_votes(votes, touched)) for touched in self.touched]
