"""`robustgen patch vanish`: one patch that, on any object, keeps a detector from seeing the object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from robustgen.detectors.detector import ask
from robustgen.errors import ArtifactError, SpecError
from robustgen.judge import strict_float32
from robustgen.patch.ascent import Ascent, run_ascent
from robustgen.patch.files import CARD, PICTURE, WEIGHTS, AnyPatch, read_patch, write_patch
from robustgen.patch.onto import paste_on_objects
from robustgen.patch.transforms import Transforms
from robustgen.patch.vanish_design import VanishDesign, VanishRequest, VanishSpec, design_vanishing, of_label
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.rng import ExampleRng, child_stream
from robustgen.training.folder import open_folder

__all__ = ["KIND", "VanishTrainer", "VanishingPatch", "load_vanishing", "seen_scores", "train_vanishing"]

KIND = "vanishing-patch"  # of the card
_NEAR = 0.3  # IoU from which on a box is about an object


@dataclass(frozen=True, slots=True, kw_only=True)
class VanishingPatch(AnyPatch):
    """A patch against a detector; `spec` is what it was trained for."""

    spec: VanishSpec

    @property
    def transforms(self) -> Transforms:
        """Those of the training."""
        return Transforms.parse(self.spec.transforms)


def train_vanishing(
    request: VanishRequest, *, out: Path, device: str = "auto", progress: Progress | None = None
) -> VanishingPatch:
    """Train a patch, or go on with one that was interrupted.

    Guarantee: as `train_patch`, kill -9 included.

    Args:
        request: what is asked for.
        out: folder for patch.safetensors, patch.json, patch.png, recipe.json, metrics.jsonl, train.log, checkpoint.pt.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told of every step.

    Raises:
        SpecError, ArtifactError: the request cannot be met.
        RecordError: `out` holds another training.
        RobustgenError: the loss is not finite, or the disk is full.
    """
    design = design_vanishing(request, device=device)
    opened = open_folder(out, design.spec, VanishSpec.read, progress or Silent(), (WEIGHTS, CARD, PICTURE), Ranks())
    with opened as folder, strict_float32():
        trainer = VanishTrainer(design)
        run_ascent(trainer, folder, f"{len(design.scenes)} scenes of {design.scenes.name}, {design.spec.detector}")
        told = {
            "kind": KIND, "detector": design.asked, "trained_on": len(design.scenes), "history": trainer.history,
        }  # fmt: skip
        with folder.disk_errors():
            write_patch(folder.path, design.spec, trainer.patch, design.mask, design.scenes.marks(), told)
    return load_vanishing(out)


def load_vanishing(folder: Path) -> VanishingPatch:
    """Read and check a folder that `patch vanish` has finished.

    Raises:
        ArtifactError: as `read_patch`.
        SpecError: it holds a patch against classifiers.
    """
    held = read_patch(folder)
    if held.card.get("kind") != KIND:
        raise SpecError(f"{folder} holds a patch against classifiers; this needs one of robustgen patch vanish.")
    if "spec" not in held.card:
        raise ArtifactError(f"{folder / CARD} lacks 'spec'; train again.")
    return VanishingPatch(
        folder=held.folder, patch=held.patch, mask=held.mask, seen=held.seen, card=held.card,
        spec=VanishSpec.from_json(held.card["spec"], str(held.folder / CARD)),
    )  # fmt: skip


class VanishTrainer(Ascent):
    """A patch against a detector in the middle of its training.

    Source: Thys et al. 2019, arXiv:1904.08653, section 3: objectness, total variation and non-printability.
    Differs: the mean over the objects of what is seen of each, not one maximum over the image; scores as the detector
    gives them, which with torchvision's interface are all that there is.
    """

    def __init__(self, design: VanishDesign) -> None:
        super().__init__(design.spec, design.scenes.channels, design.mask, design.colours, design.device)
        self.design = design

    def objective(self, patch: Tensor) -> Tensor:
        """The mean over the objects of this step of the highest score with which each is seen.

        Raises:
            SpecError: the detector's scores have no gradient.
        """
        spec, design = self.design.spec, self.design
        rows = self.rows(len(design.scenes), spec.batch_size)
        scenes = design.scenes.take(rows)
        boxes = [of_label(scene, spec.label).to(patch.device) for scene in scenes]
        images = paste_on_objects(
            [scene.image.to(patch.device) for scene in scenes], boxes, patch, self.mask, share=spec.share,
            transforms=design.transforms, rng=child_stream(ExampleRng.of(spec.seed, rows), "vanishing"), step=self.at,
        )  # fmt: skip
        found = ask(design.detector.network, images, design.detector.card.name)
        if any(len(row["scores"]) and not row["scores"].requires_grad for row in found):
            raise SpecError(
                f"{design.detector.card.name}: its scores have no gradient, so no patch can be trained on it; take out "
                "torch.no_grad() and .detach()."
            )
        scores = seen_scores(found, boxes, spec.label)
        return (scores.sum() + 0.0 * patch.sum()) / max(1, len(scores))  # no box anywhere: a gradient of zero


def seen_scores(found: Sequence[dict[str, Tensor]], boxes: Sequence[Tensor], label: int | None) -> Tensor:
    """(N,) for each object of all images the highest score of a box about it, IoU 0.3 or more; 0 where there is none.

    Suppression takes no gradient away: the highest box of its class always survives. What scores too little to be
    given has vanished.

    Args:
        found: boxes (M, 4), labels (M,), scores (M,) of each image.
        boxes: (N, 4) the objects of each image.
        label: only boxes of this class count; None for all.
    """
    best = []
    for row, there in zip(found, boxes, strict=True):
        about = box_iou(there, row["boxes"].detach().to(there)) >= _NEAR
        if label is not None:
            about &= row["labels"] == label
        scores = torch.where(about, row["scores"], 0.0)
        best.append(torch.cat([scores, scores.new_zeros(len(there), 1)], 1).amax(1))
    return torch.cat(best)
