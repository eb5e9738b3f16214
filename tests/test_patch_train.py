"""Training a universal patch: the closed form on linear classifiers, kill -9 and resume, determinism, bad requests."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from robustgen.data import load_data
from robustgen.errors import ArtifactError, RecordError, RobustgenError, SpecError
from robustgen.patch import ascent as ascent_module
from robustgen.patch import design as design_module
from robustgen.patch.design import PatchRequest, PatchSpec, design_patch, image_marks
from robustgen.patch.files import TrainedPatch, load_patch
from robustgen.patch.train import PatchTrainer, train_patch
from robustgen.progress import Silent
from tests.helpers import make_linear, write_linear_task

QUICK = {"classifier": "python:net.py:make", "data": "npz:data.npz", "size": "3", "steps": 12, "batch_size": 8,
         "precision": "float32"}  # fmt: skip


@pytest.fixture(autouse=True)
def _task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear network of 4 classes on 40 images of 8 x 8, in the working folder; `two` tells only 2 classes apart."""
    monkeypatch.chdir(tmp_path)
    write_linear_task(tmp_path, 40)
    with Path("net.py").open("a") as file:
        file.write("def two(): return make_linear((1, 8, 8), classes=2, seed=5)\n")
    images = np.load("data.npz")["image"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    np.savez("two.npz", image=images, label=make_linear((1, 8, 8), classes=2, seed=5)(x).argmax(1).numpy())


def train(out: str = "out", **options: object) -> TrainedPatch:
    """A quick one."""
    return train_patch(PatchRequest(**{**QUICK, **options}), out=Path(out), device="cpu")  # type: ignore[arg-type]


def slope(row: int, column: int) -> Tensor:
    """(1, 3, 3): what each pixel of a patch at that place adds to the logit of class 1 over that of class 0."""
    model = make_linear((1, 8, 8), classes=2, seed=5)
    difference: Tensor = (model.weight[1] - model.weight[0]).reshape(1, 8, 8)
    return difference[:, row : row + 3, column : column + 3]


@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_optimal_on_a_linear_classifier(optimizer: str) -> None:
    """At a given place the best patch is 1 where the weight towards the target is positive, else 0, for all images."""
    trained = train(
        classifier="python:net.py:two", data="npz:two.npz", target="1", location="fixed:4,2", transforms="none",
        loss="margin", optimizer=optimizer, lr=0.2, schedule="constant",
    )  # fmt: skip
    assert torch.equal((slope(4, 2) > 0).float(), trained.patch)


def test_an_optimised_location_is_the_best_of_the_grid() -> None:
    """With the patch as it was then, no other place of the grid would have gained more; a random one has none."""
    request = PatchRequest(
        **{**QUICK, "classifier": "python:net.py:two", "data": "npz:two.npz"}, target="1", location="optimised",
        transforms="none", loss="margin",
    )  # type: ignore[arg-type]  # fmt: skip
    design = design_patch(request, device="cpu")
    trainer = PatchTrainer(design)
    for _ in range(3):
        trainer.step()
        assert trainer.place is None
    patch = trainer.leaf.detach().clone()
    trainer.step()
    x, _ = design.dataset.batch(design.ids)
    places, held = [(row, column) for row in range(6) for column in range(6)], x.mean(0)
    change = {(r, c): patch - held[:, r : r + 3, c : c + 3] for r, c in places}
    gains = {place: float((slope(*place) * change[place]).sum()) for place in places}
    assert max(gains, key=lambda place: gains[place]) == trainer.place
    assert train(transforms="none").place is None


class Killer(Silent):
    """Ends its process, as kill -9 does, after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, info: str) -> None:
        if done == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_kill_and_resume(optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed twice, between and beside checkpoints, it ends with the very same files as without interruption."""
    options = {"location": "optimised", "tv": 0.1, "nps": 0.1, "shape": "circle", "optimizer": optimizer}
    whole = train("whole", **options)
    for after, seconds in ((2, 0.0), (7, 0.0), (9, 120.0)):
        monkeypatch.setattr(ascent_module, "CHECKPOINT_SECONDS", seconds)
        child = os.fork()
        if child == 0:
            request = PatchRequest(**{**QUICK, **options})  # type: ignore[arg-type]
            train_patch(request, out=Path("killed"), device="cpu", progress=Killer(after))
            os._exit(0)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with pytest.raises(ArtifactError, match="its training is not finished"):
            load_patch(Path("killed"))
    assert 6 <= torch.load("killed/checkpoint.pt", weights_only=True)["at"] <= 7
    resumed = train("killed", **options)
    for name in ("patch.safetensors", "patch.png", "metrics.jsonl", "recipe.json"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes()
    assert (whole.place, whole.card["history"]) == (resumed.place, resumed.card["history"])
    again = train("killed", **options)  # finished: nothing changes
    assert torch.equal(resumed.patch, again.patch)


def test_a_chosen_form_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What "auto" came to is recorded, and a training that goes on does not choose again."""
    first = train(precision="auto")
    other = "float32" if first.spec.precision != "float32" else "float32+channels_last"
    choose = design_module.choose_form
    chosen = lambda net, x, y, form: choose(net, x, y, other if form == "auto" else form)  # noqa: E731
    monkeypatch.setattr(design_module, "choose_form", chosen)
    assert first.spec == train(precision="auto").spec
    assert other == train("fresh", precision="auto").spec.precision
    with pytest.raises(SpecError, match="--precision must be auto, float32"):
        train(precision="float8")


def test_another_training_is_refused() -> None:
    """A folder of one design takes no other; the difference is named."""
    train()
    with pytest.raises(RecordError, match="another training: seed: 1 / 0"):
        train(seed=1)


def test_the_card_speaks_of_the_files() -> None:
    """Identity, hash, marks of exactly the training images, which are the second half; a touched file is refused."""
    trained = train(target="2")
    data = load_data("npz:data.npz")
    ids = [k for k in range(20, 40) if data.labels[k] != 2]
    assert set(image_marks(data, ids).tolist()) == set(trained.seen.tolist())
    assert len(ids) == trained.card["trained_on"] < 20
    assert PatchSpec.read(json.loads(Path("out/recipe.json").read_text())).identity() == trained.card["identity"]
    path = Path("out/patch.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match="is not the file that"):
        load_patch(Path("out"))


def test_smoothness_and_print_weigh_in() -> None:
    """A large weight of total variation makes a smoother patch; of printability one nearer to the colours."""
    Path("black.txt").write_text("0 0 0\n")
    plain = train("plain", steps=40, optimizer="sign")
    smooth = train("smooth", steps=40, optimizer="sign", tv=50.0)
    dark = train("dark", steps=40, optimizer="sign", nps=50.0, colours=Path("black.txt"))
    assert float(smooth.patch.diff().abs().mean()) < 0.5 * float(plain.patch.diff().abs().mean())
    assert float(dark.patch.mean()) < 0.5 * float(plain.patch.mean())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"size": "9"}, "does not fit into images of 8 x 8"),
        ({"size": "7", "transforms": "scale=1:1.2"}, "up to 1.2 times as large, does not fit"),
        ({"target": "4"}, "class 4 is none of the 4 classes"),
        ({"location": "fixed:6,0"}, "at most at fixed:5,5"),
        ({"location": "somewhere"}, "random, optimised, fixed or fixed:ROW,COLUMN"),
        ({"optimizer": "sgd"}, "one of adam, sign"),
        ({"loss": "cee"}, "did you mean 'ce'"),
        ({"images": 21}, "20 images to train on"),
        ({"lr": 0.0}, "--lr must be a number above 0"),
        ({"batch_size": 0}, "--batch-size must be a whole number"),
        ({"shape": "none.png"}, "there is no such file"),
    ],
)
def test_bad_requests(options: dict[str, object], says: str) -> None:
    """One sentence each, and no folder is made."""
    with pytest.raises(SpecError, match=says):
        train(**options)
    assert not Path("out").exists()


def test_a_target_that_all_images_have_is_refused() -> None:
    """There would be nothing to train on."""
    held = np.load("data.npz")
    np.savez("same.npz", image=held["image"], label=np.full(40, 1))
    with pytest.raises(SpecError, match="every training image is of that class"):
        train(data="npz:same.npz", target="1")


def test_a_loss_that_is_no_number_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step at which it happened."""
    trainer = PatchTrainer(design_patch(PatchRequest(**QUICK), device="cpu"))  # type: ignore[arg-type]
    with torch.no_grad():
        trainer.leaf.fill_(torch.nan)
    with pytest.raises(RobustgenError, match="the loss is nan at step 0"):
        trainer.step()
