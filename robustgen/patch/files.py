"""A trained patch on disk: patch.safetensors (pixels, mask, marks of the training images), patch.json and patch.png."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robustgen.durable import replace, write_json
from robustgen.environment import describe_environment
from robustgen.errors import ArtifactError, SpecError
from robustgen.patch.design import PatchDesign, PatchSpec, image_marks
from robustgen.patch.transforms import Transforms
from robustgen.spec import Spec

__all__ = [
    "CARD",
    "PICTURE",
    "WEIGHTS",
    "AnyPatch",
    "TrainedPatch",
    "load_patch",
    "read_patch",
    "save_patch",
    "to_picture",
    "write_patch",
]

WEIGHTS, CARD, PICTURE = "patch.safetensors", "patch.json", "patch.png"
_SHOWN = 256  # pixels that the shorter edge of the picture has at least


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyPatch:
    """What the folder of any trained patch holds.

    Attributes:
        folder: where.
        patch: (C, h, w) float32 in [0, 1], on the CPU.
        mask: (1, h, w) of 0 and 1.
        seen: (N,) int64, the marks of the pictures that it was trained on.
        card: all of patch.json; its `kind` is "patch" or "vanishing-patch".
    """

    folder: Path
    patch: Tensor
    mask: Tensor
    seen: Tensor
    card: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPatch(AnyPatch):
    """A patch against classifiers.

    Attributes:
        spec: what it was trained for.
        place: (row, column) of its upper left pixel, for a location that is not random.
        image_size: (H, W) of the images that it was trained on.
    """

    spec: PatchSpec
    place: tuple[int, int] | None
    image_size: tuple[int, int]

    @property
    def transforms(self) -> Transforms:
        """Those of the training."""
        return Transforms.parse(self.spec.transforms)


def save_patch(
    folder: Path, design: PatchDesign, patch: Tensor, place: tuple[int, int] | None, history: list[dict[str, Any]]
) -> TrainedPatch:
    """Write the three files, the card last.

    Args:
        folder: where; it exists.
        design: what was trained.
        patch: (C, h, w) in [0, 1].
        place: of its upper left pixel, or None where it is random.
        history: losses on the way.
    """
    told = {
        "kind": "patch", "place": place, "classifier": design.asked, "image_size": list(design.dataset.shape[1:]),
        "trained_on": len(design.ids), "history": history,
    }  # fmt: skip
    write_patch(folder, design.spec, patch, design.mask, image_marks(design.dataset, design.ids), told)
    return load_patch(folder)


def write_patch(folder: Path, spec: Spec, patch: Tensor, mask: Tensor, seen: Tensor, told: dict[str, Any]) -> None:
    """Write patch.safetensors, patch.png and last patch.json, which holds `told` beside spec, hash and environment."""
    held = {"patch": patch.detach().cpu().contiguous().clone(), "mask": mask, "seen": seen}
    content = save(held)
    replace(folder / WEIGHTS, content)
    replace(folder / PICTURE, _png(to_picture(held["patch"], held["mask"])))
    card = {
        "schema": 1, "spec": spec.to_json(), "identity": spec.identity(), "weights": WEIGHTS,
        "sha256": hashlib.sha256(content).hexdigest(), **told,
        "environment": {**describe_environment(), "device": str(patch.device)},
    }  # fmt: skip
    write_json(folder / CARD, card)


def read_patch(folder: Path) -> AnyPatch:
    """Read and check the folder of any finished patch.

    Raises:
        ArtifactError: no such patch, one whose training is not finished, or a file that is not what the card says.
    """
    path = folder.expanduser() / CARD
    if not path.is_file():
        unfinished = (folder / "recipe.json").is_file()
        advice = "its training is not finished; repeat the command" if unfinished else "type robustgen patch train"
        raise ArtifactError(f"{folder} holds no trained patch ({CARD}): {advice}.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        content = (path.parent / WEIGHTS).read_bytes()
        if hashlib.sha256(content).hexdigest() != card["sha256"]:
            raise ArtifactError(f"{path.parent / WEIGHTS} is not the file that {CARD} speaks of; train again.")
        held = load(content)
        return AnyPatch(folder=path.parent, patch=held["patch"], mask=held["mask"], seen=held["seen"], card=card)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}: {error}); train again.") from None


def load_patch(folder: Path) -> TrainedPatch:
    """Read and check a folder that `patch train` has finished.

    Raises:
        ArtifactError: as `read_patch`.
        SpecError: it holds a patch against detectors.
    """
    held = read_patch(folder)
    try:
        if held.card["kind"] != "patch":
            raise SpecError(f"{folder} holds a patch against detectors; this needs one of robustgen patch train.")
        place, size = held.card["place"], held.card["image_size"]
        return TrainedPatch(
            folder=held.folder, patch=held.patch, mask=held.mask, seen=held.seen, card=held.card,
            spec=PatchSpec.from_json(held.card["spec"], str(held.folder / CARD)),
            place=None if place is None else (int(place[0]), int(place[1])), image_size=(int(size[0]), int(size[1])),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{folder / CARD} cannot be read ({type(error).__name__}: {error}).") from None


def to_picture(patch: Tensor, mask: Tensor) -> Image.Image:
    """The patch in whole multiples of its pixels, transparent where the mask is 0."""
    pixels = torch.cat([patch.expand(3, -1, -1) if len(patch) == 1 else patch, mask])
    bytes_ = (255 * pixels).round().to(torch.uint8).permute(1, 2, 0).numpy()
    factor = -(-_SHOWN // min(bytes_.shape[:2]))
    return Image.fromarray(np.ascontiguousarray(bytes_.repeat(factor, 0).repeat(factor, 1)), "RGBA")


def _png(picture: Image.Image) -> bytes:
    held = io.BytesIO()
    picture.save(held, "PNG")
    return held.getvalue()
