"""A patch against detectors: where it lies, the optimum on a known detector, kill -9, counts made again by hand."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustgen.cli import _run
from robustgen.detectors.average_precision import average_precision, match
from robustgen.detectors.source import load_scenes
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.patch import ascent as ascent_module
from robustgen.patch import vanish_measure as measure_module
from robustgen.patch.files import read_patch
from robustgen.patch.onto import paste_on_objects
from robustgen.patch.transforms import Transforms
from robustgen.patch.vanish import VanishingPatch, load_vanishing, seen_scores, train_vanishing
from robustgen.patch.vanish_design import VanishRequest, of_label
from robustgen.patch.vanish_measure import VanishMeasureRequest, figures, measure_vanishing, vanish_lines
from robustgen.progress import Silent
from robustgen.rng import ExampleRng
from tests.detector_helpers import Bright
from tests.test_detector_scenes import write_coco

QUICK = {"detector": "python:net.py:make", "scenes": "coco:coco", "size": "3", "steps": 12, "transforms": "none",
         "share": 0.5, "tv": 0.0, "nps": 0.0}  # fmt: skip
BUNDLED = {"detector": "fmnist-detector", "scenes": "fmnist-test-1k", "size": "4", "steps": 8, "batch_size": 2,
           "count": 6, "transforms": "default", "share": 0.5}  # fmt: skip
PLAIN = Transforms.none()
CODE = """
import torch
from tests.detector_helpers import Bright

def make(): return Bright((2, 3, 12, 11))  # the box of every scene

class Blind(Bright):
    def forward(self, images, targets=None):
        with torch.no_grad(): return super().forward(images)

def blind(): return Blind((2, 3, 12, 11))

def wrong(): return torch.nn.Identity()
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of one object each, detectors of brightness in net.py, and a patch against one in `out`."""
    folder = tmp_path_factory.mktemp("vanish")
    (folder / "net.py").write_text(CODE)
    write_coco(folder / "coco")
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        train()
    return folder


@pytest.fixture(autouse=True)
def _there(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task)
    monkeypatch.setattr(measure_module, "_RESAMPLED", 20)


def train(out: str = "out", **options: object) -> VanishingPatch:
    """A quick one."""
    return train_vanishing(VanishRequest(**{**QUICK, **options}), out=Path(out), device="cpu")  # type: ignore[arg-type]


def measure(folder: str = "out", **options: Any) -> dict[str, Any]:
    """Of the patch in a folder."""
    return measure_vanishing(VanishMeasureRequest(folder=Path(folder), **options), device="cpu", progress=Silent())


def pasted(images: list[Tensor], boxes: list[Tensor], patch: Tensor | None, **options: Any) -> list[Tensor]:
    """The patch, or noise of 4 x 4, on the boxes."""
    given = {"share": 0.5, "transforms": PLAIN, "rng": ExampleRng.of(0, range(len(images))), **options}
    mask = torch.ones(1, 4, 4) if patch is None else torch.ones_like(patch[:1])
    return paste_on_objects(images, boxes, patch, mask, **given)


def test_it_lies_in_the_middle_and_covers_its_share() -> None:
    """Half the edge of boxes of 16 x 16 is 8 x 8 in their middle; all else is untouched; images of any sizes."""
    images = [torch.zeros(1, 40, 40), torch.zeros(1, 24, 60), torch.zeros(1, 40, 40)]
    boxes = [torch.tensor([[2.0, 4, 18, 20], [20, 20, 36, 36]]), torch.tensor([[40.0, 4, 56, 20]]), torch.zeros(0, 4)]
    first, second, third = pasted(images, boxes, torch.ones(1, 8, 8))
    expected = torch.zeros(1, 40, 40)
    expected[:, 8:16, 6:14] = expected[:, 24:32, 24:32] = 1
    assert torch.allclose(expected, first, atol=1e-6)
    assert float(second[:, 8:16, 44:52].min()) == pytest.approx(1)
    assert float(second.sum()) == pytest.approx(64)
    assert 0 == float(third.abs().sum())


def test_its_area_is_a_share_of_the_box() -> None:
    """Of a box of 32 x 8 too: a square of 8 x 8, a quarter of it; with scale 2 four times as much."""
    image, box = torch.zeros(1, 40, 40), [torch.tensor([[4.0, 16, 36, 24]])]
    (once,) = pasted([image], box, torch.ones(1, 4, 4))
    assert float(once.sum()) == pytest.approx(64)
    (twice,) = pasted([image], box, torch.ones(1, 4, 4), transforms=Transforms.parse("scale=2:2"))
    assert float(twice.sum()) == pytest.approx(256)


def test_each_object_has_its_own_draw() -> None:
    """Noise and angle differ between objects and images, and are the same in any batch."""
    images = [torch.zeros(1, 40, 40)] * 2
    boxes = [torch.tensor([[0.0, 0, 16, 16], [20, 20, 36, 36]])] * 2
    first, second = pasted(images, boxes, None)
    cuts = [image[0, a + 4 : a + 12, a + 4 : a + 12] for image in (first, second) for a in (0, 20)]
    assert all(not torch.equal(cuts[i], cuts[j]) for i in range(4) for j in range(i))
    (alone,) = pasted(images[:1], boxes[:1], None, rng=ExampleRng.of(0, [1]))
    assert torch.equal(second, alone)
    turned = pasted(images, boxes, torch.ones(1, 4, 4), transforms=Transforms.parse("rotation=45"))
    assert not torch.equal(turned[0], turned[1])
    assert not torch.equal(turned[0][0, :20, :20], turned[0][0, 20:, 20:])


def test_jpeg_goes_over_each_image_once() -> None:
    """An image without an object is compressed as well; the gradient goes straight through."""
    images, patch = [torch.rand(1, 24, 24), torch.rand(1, 24, 24)], torch.rand(1, 4, 4, requires_grad=True)
    boxes = [torch.tensor([[4.0, 4, 20, 20]]), torch.zeros(0, 4)]
    out = pasted(images, boxes, patch, transforms=Transforms.parse("jpeg=50"))
    assert not torch.equal(images[1], out[1])
    (grad,) = torch.autograd.grad(out[0].sum(), patch)
    assert bool((grad > 0).all())


@pytest.mark.parametrize("optimizer", ["adam", "sign"])
def test_optimal_on_a_detector_of_brightness(optimizer: str) -> None:
    """Its one box scores the mean brightness inside: whatever the image is, the best patch is black."""
    trained = train(optimizer, optimizer=optimizer, lr=0.2, schedule="constant", steps=20)
    assert (3, 3, 3) == tuple(trained.patch.shape)
    assert 0 == float(trained.patch.abs().max())
    history = [line["loss"] for line in trained.card["history"]]
    inside, covered = 120 / 255, 20 / 80  # the middle 4.47 x 4.47 of 10 x 8 pixels, at half the edge
    assert history[-1] == pytest.approx(inside * (1 - covered), abs=0.02)
    assert history[0] > history[-1]


def test_smoothness_and_print_weigh_in() -> None:
    """A weight of printability on white alone makes the patch white, against the detector."""
    Path("white.txt").write_text("255 255 255\n")
    assert float(train("white", nps=5.0, colours=Path("white.txt"), optimizer="sign", lr=0.2).patch.min()) > 0.8


class Killer(Silent):
    """Ends its process, as kill -9 does, after so many steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, info: str) -> None:
        if done == self.after:
            os.kill(os.getpid(), signal.SIGKILL)


def test_kill_and_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed twice, it ends with the very same files as without interruption; another training is refused."""
    whole = train("whole", **BUNDLED, tv=0.1, nps=0.1)
    monkeypatch.setattr(ascent_module, "CHECKPOINT_SECONDS", 0.0)
    for after in (2, 5):
        child = os.fork()
        if child == 0:
            request = VanishRequest(**{**BUNDLED, "tv": 0.1, "nps": 0.1})  # type: ignore[arg-type]
            train_vanishing(request, out=Path("killed"), device="cpu", progress=Killer(after))
            os._exit(0)
        assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with pytest.raises(ArtifactError, match="its training is not finished"):
            load_vanishing(Path("killed"))
    resumed = train("killed", **BUNDLED, tv=0.1, nps=0.1)
    for name in ("patch.safetensors", "patch.png", "metrics.jsonl", "recipe.json"):
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes()
    assert whole.card["history"] == resumed.card["history"]
    with pytest.raises(RecordError, match=r"another training: share: 0\.4 / 0\.5"):
        train("killed", **{**BUNDLED, "share": 0.4}, tv=0.1, nps=0.1)
    assert not set(load_scenes("fmnist-test-1k", "train").marks().tolist()) ^ set(whole.seen.tolist())


def test_measured_is_what_is_counted_by_hand() -> None:
    """The two scenes that training did not see: AP of the answers to images pasted here, and the same working point."""
    found, patch = measure(), load_vanishing(Path("out"))
    assert (2, 2) == (found["n"], found["objects"])
    scenes = load_scenes("coco:coco", "test", seen=patch.seen).take([0, 1])
    truths = [scene.target() for scene in scenes]
    for name, own in (("none", None), ("trained", patch.patch), ("grey", torch.full((3, 3, 3), 0.5))):
        images = [scene.image for scene in scenes]
        if own is not None:
            images = paste_on_objects(
                images, [scene.boxes for scene in scenes], own, torch.ones(1, 3, 3), share=0.5, transforms=PLAIN,
                rng=ExampleRng.of(0, range(2)),
            )  # fmt: skip
        matched = match(Bright((2, 3, 12, 11))(images), truths)
        assert found["conditions"][name]["ap50"]["value"] == pytest.approx(float(average_precision(matched)[0]))
    # Image 0 is black, labelled 1 and found as 1; image 1 is grey, labelled 2 and found as 1: one false alarm above it.
    assert 0.25 == found["conditions"]["none"]["ap50"]["value"]
    assert (0.5, 1.0) == tuple(found["conditions"]["none"][key]["value"] for key in ("recall", "found"))
    assert found["threshold"] == 0
    held = json.loads(Path("out", found["file"]).read_text())
    assert {k: v for k, v in found.items() if k != "picture"} == held
    with Image.open(Path("out", found["picture"])) as picture:
        assert picture.size[0] > 3 * 192
    assert "uniform noise" in "\n".join(vanish_lines(found, Path("out")))


def test_figures_and_their_difference() -> None:
    """Perfect without a patch, blind with it: recall 1 and 0, the difference -1, all with intervals of no width."""
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    seen = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    weak, other = {**seen, "scores": torch.tensor([0.1])}, {**seen, "labels": torch.tensor([2])}
    truths = [{"boxes": boxes, "labels": torch.tensor([1])}] * 5
    found = {"none": [seen] * 5, "noise": [seen] * 5, "grey": [other] * 5, "trained": [weak] * 5}
    result = figures(found, truths, None, 0)
    assert (pytest.approx(0.9), 5) == (result["threshold"], result["objects"])
    rows = {name: {key: cell["value"] for key, cell in row.items()} for name, row in result["conditions"].items()}
    assert {"ap50": 1.0, "ap": 1.0, "recall": 1.0, "found": 1.0} == rows["none"]
    assert {"ap50": 0.0, "ap": 0.0, "recall": 0.0, "found": 1.0} == rows["grey"]
    assert {"ap50": 1.0, "ap": 1.0, "recall": 0.0, "found": 0.0} == rows["trained"]
    assert {"value": -1.0, "low": -1.0, "high": -1.0} == result["trained_minus_noise"]["recall"]
    assert 5 == figures({**found}, truths, 1, 0)["objects"]
    with pytest.raises(SpecError, match="hold no object that should vanish"):
        figures(found, truths, 2, 0)


def test_intervals_are_over_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the scenes right: recall 1/2 with an interval around it; the same seed gives the same."""
    monkeypatch.setattr(measure_module, "_RESAMPLED", 200)
    boxes = torch.tensor([[0.0, 0, 10, 10]])
    seen = {"boxes": boxes, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    found = dict.fromkeys(("none", "noise", "grey", "trained"), [seen, nothing] * 20)
    cells = [
        figures(found, [{"boxes": boxes, "labels": torch.tensor([1])}] * 40, None, 3)["conditions"]["none"]["recall"]
        for _ in range(2)
    ]
    assert cells[0] == cells[1]
    assert (cells[0]["low"], cells[0]["value"], cells[0]["high"]) == pytest.approx((0.35, 0.5, 0.65), abs=0.05)


def test_only_one_class_vanishes() -> None:
    """With a label, by name, the patch lies on objects of that class only, and of the others none counts."""
    boxes = [{"image_id": k, "category_id": 1 + j, "bbox": [2 + 13 * j, 3, 10, 8]} for k in range(3) for j in range(2)]
    write_coco(Path("street"), annotations=boxes)
    whole = train("people", scenes="coco:street", label="person", lr=0.2, schedule="constant", steps=20)
    assert (1, 0) == (whole.spec.label, float(whole.patch.max()))
    found = measure("people")
    assert (1, 2, 2) == (found["label"], found["n"], found["objects"])
    assert 1 == found["conditions"]["none"]["ap50"]["value"]
    scene = load_scenes("coco:street", "test").take([2])[0]
    assert [[15, 3, 25, 11]] == of_label(scene, 2).tolist()
    assert 2 == len(of_label(scene, None))


def test_scenes_without_the_class_are_refused() -> None:
    """To train on: the one training scene has class 3 alone; and to measure on, where the others have it not."""
    with pytest.raises(SpecError, match="no object of class 1 to train on"):
        train("people2", label="person")
    train("cars", label="car", steps=2)
    with pytest.raises(SpecError, match="hold no object that should vanish"):
        measure("cars")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": 1.5}, "--share must be a number above 0, at most 1"),
        ({"share": 0.9, "transforms": "scale=1:1.2"}, "larger than the object"),
        ({"size": "x"}, "--size must be a side"),
        ({"label": "dog"}, "--label 'dog' is no class"),
        ({"label": "0"}, "--label '0' is no class"),
        ({"steps": 0}, "--steps must be a whole number"),
        ({"count": 0}, "--scenes-count must be a whole number"),
        ({"optimizer": "sgd"}, "one of adam, sign"),
        ({"scenes": "coco:nowhere"}, "there is no such folder"),
        ({"scenes": "nowhere"}, "unknown data 'nowhere'"),
        ({"detector": "python:net.py:wrong"}, "must return a list with a dict"),
        ({"detector": "python:net.py:blind"}, "its scores have no gradient"),
        ({"detector": "fmnist-detector"}, "takes images of 1 channels, the scenes of coco:coco have 3"),
        ({"detector": "fmnist-at"}, "unknown detector 'fmnist-at'"),
    ],
)
def test_bad_requests(options: dict[str, object], says: str) -> None:
    """One sentence each."""
    with pytest.raises((SpecError, ArtifactError), match=says):
        train("bad", **options)


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each subcommand does its work on the bundled detector, says what is wrong, exit code 2."""
    vanish = ["patch", "vanish", "--steps", "2", "--batch-size", "2", "--scenes-count", "4", "--out", "own"]
    assert 0 == _run([*vanish, "--json"]), capsys.readouterr().err
    assert "vanishing-patch" == json.loads(capsys.readouterr().out)["kind"] == read_patch(Path("own")).card["kind"]
    evaluate = ["patch", "eval", "own", "-n", "6"]
    assert 0 == _run([*evaluate, "--json"]), capsys.readouterr().err
    assert {"none", "noise", "grey", "trained"} == set(json.loads(capsys.readouterr().out)["conditions"])
    assert 0 == _run(["patch", "export", "own", "--width-mm", "20"])
    assert "patch-20mm.pdf" in capsys.readouterr().out
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("black.png")
    for arguments, says in (
        ([*evaluate, "--grid"], "for patches against classifiers"),
        ([*evaluate[:3], "--data", "coco:coco"], "a patch of 1 channels"),
        (["patch", "eval", "own", "--n", "0"], "--n must be >= 1"),
        ([*evaluate, "fmnist-detectr"], "did you mean 'fmnist-detector'"),
        (["patch", "apply", "own", "black.png"], "holds a patch against detectors"),
        ([*vanish, "--share", "2"], "--share must be"),
        (["show", "fmnist-detector", "extra"], "unexpected extra argument"),
    ):
        assert 2 == _run(arguments)
        assert says in capsys.readouterr().err
    assert 0 == _run(["show", "fmnist-detector"])
    shown = capsys.readouterr().out
    assert "robustgen detector train fmnist-detector" in shown
    assert "tiny-detector" in shown


def test_only_boxes_about_an_object_count() -> None:
    """A box that overlaps it by less than 0.3 of the union, or lies elsewhere, says nothing of an object."""
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [30.0, 30.0, 40.0, 40.0]])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 2.9], [0.0, 0.0, 10.0, 3.1], [50.0, 50.0, 60.0, 60.0]])
    found = {"boxes": boxes, "labels": torch.tensor([1, 1, 1]), "scores": torch.tensor([0.9, 0.4, 0.8])}
    torch.testing.assert_close(seen_scores([found], [objects], None), torch.tensor([0.4, 0.0]))
