"""Universal patches beside ART's AdversarialPatchPyTorch: images x steps per second, and success on unseen images.

Same classifier, images, batch, patch in pixels, rotation and scale, places anywhere in the image, Adam with the same
step length, the same number of steps; in turn in one process. Needs `pip install 'robustgen[peers]'`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.benchmarks.harness import compare, store
from robustgen.environment import tune_process
from robustgen.judge import strict_float32
from robustgen.patch.design import PatchDesign, PatchRequest, design_patch
from robustgen.patch.files import TrainedPatch, save_patch
from robustgen.patch.measure import Measured, MeasureRequest, hold_out
from robustgen.patch.train import PatchTrainer
from robustgen.statistics import proportion

SIZE, TARGET, ROTATION, SCALES, LR = 12, 8, 22.5, (0.8, 1.2), 0.05
CLASSIFIER, IMAGES = "fmnist-standard", 256


def design_for(batch: int, epochs: int) -> PatchDesign:
    """Ours, with those transformations of ART's that both have, on as many images as fill whole batches."""
    request = PatchRequest(
        classifier=CLASSIFIER, size=str(SIZE), target=str(TARGET), location="random", images=IMAGES, batch_size=batch,
        transforms=f"rotation={ROTATION},scale={SCALES[0]}:{SCALES[1]}", optimizer="adam", lr=LR, schedule="constant",
    )  # fmt: skip
    design = design_patch(request, device="cpu")
    batches = len(design.ids) // batch
    return replace(design, ids=design.ids[: batches * batch], spec=replace(design.spec, steps=epochs * batches))


def our_side(design: PatchDesign) -> Callable[[], Tensor]:
    """The patch (C, h, w) after all steps."""

    def run() -> Tensor:
        trainer = PatchTrainer(design)
        with strict_float32():
            for _ in range(design.spec.steps):
                trainer.step()
        return trainer.leaf.detach().clone()

    return run


def art_side(design: PatchDesign, epochs: int) -> Callable[[], Tensor]:
    """The patch (C, h, w) by ART, called as its documentation says; its scale is a share of the image's edge."""
    from art.attacks.evasion import AdversarialPatchPyTorch
    from art.estimators.classification import PyTorchClassifier

    channels, edge, _ = design.dataset.shape
    x, _ = design.dataset.batch(design.ids)
    estimator = PyTorchClassifier(
        design.classifier, loss=nn.CrossEntropyLoss(), input_shape=(channels, edge, edge), nb_classes=10,
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    goal = torch.eye(10)[TARGET].expand(len(x), 10).numpy()

    def run() -> Tensor:
        attack = AdversarialPatchPyTorch(
            estimator, rotation_max=ROTATION, scale_min=SCALES[0] * SIZE / edge, scale_max=SCALES[1] * SIZE / edge,
            learning_rate=LR, max_iter=epochs, batch_size=design.spec.batch_size, patch_shape=(channels, SIZE, SIZE),
            patch_type="square", optimizer="Adam", targeted=True, verbose=False,
        )  # fmt: skip
        patch, _ = attack.generate(x.numpy(), goal)
        return torch.as_tensor(patch).float().clamp(0, 1)

    return run


def success(design: PatchDesign, patch: Tensor, folder: Path) -> dict[str, float]:
    """Share of unseen images that become the target, under the same transformations drawn anew."""
    trained: TrainedPatch = save_patch(folder, design, patch, None, [])
    held = replace(hold_out(MeasureRequest(folder=folder), device="cpu"), trained=trained)
    with strict_float32():
        share = proportion(held.successes(Measured(trained.transforms), noise=False), len(held.ids))
    return {"value": share.value, "low": share.low, "high": share.high, "n": len(held.ids)}


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20, help="passes over the images for the success of each side")
    parser.add_argument("--timed", type=int, default=2, help="passes that are timed, five times each side")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 64])
    options = parser.parse_args()
    tune_process()
    rows: list[dict[str, Any]] = []
    for batch in options.batches:
        timed = design_for(batch, options.timed)
        images = timed.spec.steps * batch
        row = compare(our_side(timed), art_side(timed, options.timed)).summary()
        full = design_for(batch, options.epochs)
        found: dict[str, Any] = {}
        for name, side in (("ours", our_side(full)), ("theirs", art_side(full, options.epochs))):
            with TemporaryDirectory() as folder:
                found[name] = success(full, side(), Path(folder))
        rates = {name: [images / seconds for seconds in row[name]] for name in ("ours", "theirs")}
        rows.append(
            {
                "batch": batch,
                "form": timed.spec.precision,
                "image_steps": images,
                "per_second": rates,
                "success": found,
                **row,
            }
        )
        print({key: rows[-1][key] for key in ("batch", "per_second", "success", "ratio")}, flush=True)
    peer = f"ART {version('adversarial-robustness-toolbox')}"
    what = (
        f"{SIZE} x {SIZE} patch towards class {TARGET} of {CLASSIFIER}, {peer}; success after {options.epochs} epochs"
    )
    print(store("speed-patches", {"what": what, "rows": rows}, module="speed.patches"))


if __name__ == "__main__":
    main()
