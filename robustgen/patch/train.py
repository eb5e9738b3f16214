"""`robustgen patch train`: one patch for all images, by gradient steps through drawn transformations."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen.attacks.losses import LOSSES
from robustgen.errors import RobustgenError
from robustgen.judge import strict_float32
from robustgen.patch.design import PatchDesign, PatchRequest, PatchSpec, design_patch
from robustgen.patch.files import CARD, PICTURE, WEIGHTS, TrainedPatch, save_patch
from robustgen.patch.paste import lit, paste, random_centres
from robustgen.patch.physical import non_printability, total_variation
from robustgen.patch.transforms import Draws, Transforms
from robustgen.progress import Progress, Silent
from robustgen.ranks import Ranks
from robustgen.rng import ExampleRng, child_stream, generator_for
from robustgen.training.folder import CHECKPOINT_SECONDS, TrainingFolder, open_folder

__all__ = ["PatchTrainer", "centres_for", "train_patch"]

_SEARCH = 0.25  # share of the steps after which an optimised location is chosen
_SEARCH_IMAGES = 64  # on which it is
_LINES = 20  # of metrics.jsonl, about


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
        trainer, saved = PatchTrainer(design), time.monotonic()
        checkpoint = folder.read_checkpoint()
        if checkpoint is not None:
            trainer.load_state(checkpoint)
        begins = f"goes on after step {trainer.at}" if trainer.at else "begins"
        folder.note(
            f"training {begins}: {design.spec.steps} steps, {len(design.ids)} images, target {_aim(design)}, "
            f"in {design.spec.precision}."
        )
        folder.progress.start("patch", design.spec.steps)
        while trainer.at < design.spec.steps:
            loss = trainer.step()
            if trainer.at == design.spec.steps or time.monotonic() - saved >= CHECKPOINT_SECONDS:
                _save(trainer, folder)
                saved = time.monotonic()
            folder.progress.advance(trainer.at, f"loss {loss:.3f}")
        _save(trainer, folder)
        with folder.disk_errors():
            return save_patch(folder.path, design, trainer.patch, trainer.place, trainer.history)


def _recorded_form(out: Path) -> str | None:
    """The form that an earlier process chose for the training in this folder."""
    try:
        return str(json.loads((out / "recipe.json").read_text(encoding="utf-8"))["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a folder that is no training is refused later, with a reason


def _save(trainer: PatchTrainer, folder: TrainingFolder) -> None:
    folder.write_metrics(trainer.history)
    folder.write_checkpoint(trainer.state())


def _aim(design: PatchDesign) -> str:
    return "any wrong class" if design.spec.target is None else str(design.spec.target)


@dataclass
class PatchTrainer:
    """A patch in the middle of its training.

    Attributes:
        patch: (C, h, w) in [0, 1].
        at: steps done.
        place: (row, column) of the upper left pixel, once it is known; None while it is random.
        history: lines for metrics.jsonl.
    """

    design: PatchDesign
    at: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        spec, where = self.design.spec, self.design.classifier.mean.device
        shape = (self.design.dataset.shape[0], *self.design.size)
        start = torch.rand(shape, generator=generator_for(spec.seed, "patch start"))
        self.patch, self.place = start.to(where), self.design.place
        self.mask, self.colours = self.design.mask.to(where), self.design.colours.to(where)
        self.loss = LOSSES[spec.loss]
        self.leaf = torch.nn.Parameter(self.patch)
        self.adam = torch.optim.Adam([self.leaf], lr=spec.lr)

    def step(self) -> float:
        """One step on one batch; returns its loss, which falls.

        Source: Brown et al. 2017, arXiv:1712.09665, eq. (1): the expectation over images, places and transformations.
        Differs: the patch is clipped to [0, 1] after each step.

        Raises:
            RobustgenError: the loss is not finite.
        """
        spec = self.design.spec
        if self.place is None and spec.location == "optimised" and self.at == int(_SEARCH * spec.steps):
            self.place = self._best_place()
        ids = self._batch(self.at)
        loss = self._objective(ids, self.leaf)
        (grad,) = torch.autograd.grad(loss, self.leaf)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RobustgenError(f"the loss is {value} at step {self.at}; lower --lr, or look at the classifier.")
        self._update(grad)
        self.at += 1
        if self.at % max(1, spec.steps // _LINES) == 0 or self.at == spec.steps:
            self.history.append({"step": self.at, "loss": value})
        return value

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "at": self.at, "patch": self.patch, "place": self.place, "history": self.history,
            "adam": self.adam.state_dict(),
        }  # fmt: skip

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.at, self.history = state["at"], state["history"]
        self.place = None if state["place"] is None else tuple(state["place"])
        with torch.no_grad():
            self.leaf.copy_(state["patch"])
        self.adam.load_state_dict(state["adam"])

    def _batch(self, step: int) -> list[int]:
        """The ids of one step: each epoch all images in an order of its own, a rest left out."""
        size, ids = self.design.spec.batch_size, self.design.ids
        epoch, k = divmod(step, len(ids) // size)
        order = torch.randperm(len(ids), generator=generator_for(self.design.spec.seed, "patch order", epoch))
        return [ids[row] for row in order[k * size : (k + 1) * size].tolist()]

    def _objective(self, ids: list[int], patch: Tensor) -> Tensor:
        """The mean loss over a batch, with its weights for smoothness and print."""
        spec, where = self.design.spec, patch.device
        x, y = (part.to(where) for part in self.design.dataset.batch(ids))
        rng = child_stream(ExampleRng.of(spec.seed, ids), "patch training")
        draws = self.design.transforms.draw(rng, self.at, where)
        shown = lit(patch, draws, rng, self.at)
        logits = self.design.search(paste(x, shown, self.mask, centres_for(self.place, draws, shown, x), draws))
        loss = -self._gain(logits, y).mean()
        if spec.tv:
            loss = loss + spec.tv * total_variation(patch, self.mask)
        if spec.nps:
            loss = loss + spec.nps * non_printability(patch, self.mask, self.colours)
        return loss

    def _gain(self, logits: Tensor, y: Tensor) -> Tensor:
        """(B,) what rises with success."""
        target = self.design.spec.target
        return self.loss(logits, y) if target is None else self.loss.towards(logits, torch.full_like(y, target))

    def _update(self, grad: Tensor) -> None:
        """One step of the rule that was asked for, then back into [0, 1]."""
        spec = self.design.spec
        lr = spec.lr * (0.5 * (1 + math.cos(math.pi * self.at / spec.steps)) if spec.schedule == "cosine" else 1.0)
        with torch.no_grad():
            if spec.optimizer == "sign":
                self.leaf.sub_(lr * grad.sign())
            else:
                self.adam.param_groups[0]["lr"], self.leaf.grad = lr, grad
                self.adam.step()
            self.leaf.clamp_(0, 1)

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
