"""`robustgen patch train`: one patch for all images, by gradient steps through drawn transformations."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from robustgen.attacks.losses import LOSSES
from robustgen.judge import strict_float32
from robustgen.patch.ascent import Ascent, run_ascent
from robustgen.patch.design import PatchDesign, PatchRequest, PatchSpec, design_patch
from robustgen.patch.files import CARD, PICTURE, WEIGHTS, TrainedPatch, save_patch
from robustgen.patch.paste import lit, paste, random_centres
from robustgen.patch.transforms import Draws, Transforms
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.rng import ExampleRng, child_stream
from robustgen.training.folder import open_folder

__all__ = ["PatchTrainer", "centres_for", "train_patch"]

_SEARCH = 0.25  # share of the steps after which an optimised location is chosen
_SEARCH_IMAGES = 64  # on which it is


def train_patch(
    request: PatchRequest, *, out: Path, device: str = "auto", progress: Progress | None = None
) -> TrainedPatch:
    """Train a patch, or go on with one that was interrupted.

    Guarantee: the same call after an interruption, kill -9 included, ends with the same patch, bit for bit, as one that
    was not interrupted, on the same machine with the same number of threads.

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
    recorded = _recorded_form(out) if request.precision == "auto" else None
    design = design_patch(request, device=device, form=recorded)
    opened = open_folder(out, design.spec, PatchSpec.read, progress or Silent(), (WEIGHTS, CARD, PICTURE), Ranks())
    with opened as folder, strict_float32():
        trainer = PatchTrainer(design)
        aim = "any wrong class" if design.spec.target is None else str(design.spec.target)
        run_ascent(trainer, folder, f"{len(design.ids)} images, target {aim}, in {design.spec.precision}")
        with folder.disk_errors():
            return save_patch(folder.path, design, trainer.patch, trainer.place, trainer.history)


def _recorded_form(out: Path) -> str | None:
    """The form that an earlier process chose for the training in this folder."""
    try:
        return str(json.loads((out / "recipe.json").read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a folder that is no training is refused later, with a reason


class PatchTrainer(Ascent):
    """A patch against a classifier in the middle of its training.

    Source: Brown et al. 2017, arXiv:1712.09665, eq. (1): the expectation over images, places and transformations.
    Differs: the patch is clipped to [0, 1] after each step.
    """

    def __init__(self, design: PatchDesign) -> None:
        where = design.classifier.mean.device
        super().__init__(design.spec, design.dataset.shape[0], design.mask, design.colours, where)
        self.design, self.place = design, design.place
        self.loss = LOSSES[design.spec.loss]

    def objective(self, patch: Tensor) -> Tensor:
        """The mean loss over the images of this step."""
        spec, where = self.design.spec, patch.device
        if self.place is None and spec.location == "optimised" and self.at == int(_SEARCH * spec.steps):
            self.place = self._best_place()
        ids = [self.design.ids[row] for row in self.rows(len(self.design.ids), spec.batch_size)]
        x, y = (part.to(where) for part in self.design.dataset.batch(ids))
        rng = child_stream(ExampleRng.of(spec.seed, ids), "patch training")
        draws = self.design.transforms.draw(rng, self.at, where)
        shown = lit(patch, draws, rng, self.at)
        logits = self.design.search(paste(x, shown, self.mask, centres_for(self.place, draws, shown, x), draws))
        return -self._gain(logits, y).mean()

    def _gain(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) what rises with success."""
        target = self.design.spec.target
        return self.loss(logits, y) if target is None else self.loss.towards(logits, torch.full_like(y, target))

    def _best_place(self) -> tuple[int, int]:
        """The place of a grid, half a patch apart, at which the upright patch gains most on a few training images."""
        ids = list(self.design.ids[:_SEARCH_IMAGES])
        x, y = (part.to(self.patch.device) for part in self.design.dataset.batch(ids))
        (h, w), (height, width) = self.design.size, x.shape[2:]
        draws = Transforms.none().draw(ExampleRng.of(self.design.spec.seed, ids), 0, x.device)
        found: dict[tuple[int, int], float] = {}
        with torch.no_grad():
            shown = lit(self.patch, draws)
            for row in range(0, height - h + 1, max(1, h // 2)):
                for column in range(0, width - w + 1, max(1, w // 2)):
                    centres = centres_for((row, column), draws, shown, x)
                    logits = self.design.search(paste(x, shown, self.mask, centres, draws))
                    found[row, column] = float(self._gain(logits, y).mean())
        return max(found, key=lambda place: found[place])


def centres_for(place: tuple[int, int] | None, draws: Draws, patch: Tensor, x: Tensor) -> Tensor:
    """(B, 2) (x, y) middles of patches (B, C, h, w) in images (B, C, H, W): at one place, or where the draws say."""
    h, w = patch.shape[2:]
    if place is None:
        return random_centres(draws.place, (h, w), (x.shape[2], x.shape[3]))
    return x.new_tensor([place[1] + w / 2, place[0] + h / 2]).expand(len(x), 2)
