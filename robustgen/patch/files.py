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
from robustgen.errors import ArtifactError
from robustgen.patch.design import PatchDesign, PatchSpec, image_marks
from robustgen.patch.transforms import Transforms

__all__ = ["CARD", "PICTURE", "WEIGHTS", "TrainedPatch", "load_patch", "save_patch", "to_picture"]

WEIGHTS, CARD, PICTURE = "patch.safetensors", "patch.json", "patch.png"
_SHOWN = 256  # pixels that the shorter edge of the picture has at least


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedPatch:
    """What a folder holds.

    Attributes:
        folder: where.
        spec: what it was trained for.
        patch: (C, h, w) float32 in [0, 1], on the CPU.
        mask: (1, h, w) of 0 and 1.
        seen: (N,) int64, the marks of the images that it was trained on.
        place: (row, column) of its upper left pixel, for a location that is not random.
        image_size: (H, W) of the images that it was trained on.
        card: all of patch.json.
    """

    folder: Path
    spec: PatchSpec
    patch: Tensor
    mask: Tensor
    seen: Tensor
    place: tuple[int, int] | None
    image_size: tuple[int, int]
    card: dict[str, Any]

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
    held = {
        "patch": patch.detach().cpu().contiguous().clone(), "mask": design.mask,
        "seen": image_marks(design.dataset, design.ids),
    }  # fmt: skip
    content = save(held)
    replace(folder / WEIGHTS, content)
    replace(folder / PICTURE, _png(to_picture(held["patch"], held["mask"])))
    card = {
        "schema": 1, "kind": "patch", "spec": design.spec.to_json(), "identity": design.spec.identity(),
        "weights": WEIGHTS, "sha256": hashlib.sha256(content).hexdigest(), "place": place,
        "classifier": design.asked, "image_size": list(design.dataset.shape[1:]), "trained_on": len(design.ids),
        "history": history,
        "environment": {**describe_environment(), "device": str(patch.device)},
    }  # fmt: skip
    write_json(folder / CARD, card)
    return load_patch(folder)


def load_patch(folder: Path) -> TrainedPatch:
    """Read and check a folder that `patch train` has finished.

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
        place = None if card["place"] is None else (int(card["place"][0]), int(card["place"][1]))
        return TrainedPatch(
            folder=path.parent, spec=PatchSpec.from_json(card["spec"], str(path)), patch=held["patch"],
            mask=held["mask"], seen=held["seen"], place=place, card=card,
            image_size=(int(card["image_size"][0]), int(card["image_size"][1])),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ArtifactError(f"{path} cannot be read ({type(error).__name__}: {error}); train again.") from None


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
