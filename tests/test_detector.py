"""Detectors: torchvision's interface to the letter, targets and decoding in closed form, loading, what is refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustgen.cards import Card
from robustgen.detectors.detector import TINY, ask, bundled_detectors, detect, load_detector
from robustgen.detectors.measure import measure_detections
from robustgen.detectors.network import NetworkSettings, TinyDetector, owner, points
from robustgen.errors import ArtifactError, SpecError
from robustgen.patch.vanish import seen_scores
from tests.detector_helpers import Bright
from tests.helpers import assert_global_rng_untouched

SMALL = NetworkSettings(channels=1, classes=3, widths=(4, 4, 8), head=8)


def tiny(**settings: Any) -> TinyDetector:
    """With random weights, and scores well above the threshold."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = TinyDetector(NetworkSettings(**{**vars(SMALL), **settings}))
        nn.init.normal_(net.class_logits.weight, std=0.5)
        nn.init.zeros_(net.class_logits.bias)  # type: ignore[arg-type]
    return net


IMAGES = [torch.rand(1, 30, 21, generator=torch.Generator().manual_seed(k)) for k in range(2)]


def test_eval_mode_answers_as_torchvision() -> None:
    """A dict an image: clipped boxes, labels from 1, scores that fall and carry gradients; no more than asked for."""
    net = tiny(most=7).eval()
    x = [image.clone().requires_grad_() for image in IMAGES]
    found = net(x)
    assert 2 == len(found)
    for row in found:
        assert {"boxes", "labels", "scores"} == set(row)
        assert 7 == len(row["boxes"])
        assert bool((row["boxes"] >= 0).all() and (row["boxes"] <= torch.tensor([21, 30, 21, 30])).all())
        assert set(row["labels"].tolist()) <= {1, 2, 3}
        assert bool((row["scores"].diff() <= 0).all() and (row["scores"] > 0.05).all())
    (grad,) = torch.autograd.grad(found[0]["scores"].sum(), x[0])
    assert float(grad.abs().sum()) > 0


def test_images_of_several_sizes_do_not_disturb_each_other() -> None:
    """In a batch with a larger image, a small one is padded with black, as it is alone at that size."""
    net = tiny().eval()
    large, padded = torch.rand(1, 40, 40), torch.zeros(1, 40, 40)
    padded[:, :30, :21] = IMAGES[0]
    together, alone = net([IMAGES[0], large])[0], net([padded])[0]
    assert torch.allclose(together["scores"][:1], alone["scores"][:1])
    assert torch.allclose(net([large])[0]["boxes"][:3], net([IMAGES[0], large])[1]["boxes"][:3], atol=1e-3)


def test_training_mode_gives_losses() -> None:
    """Two, positive, with gradients for every parameter; without an object only that of the classes; no targets: no."""
    net = tiny().train()
    targets = [{"boxes": torch.tensor([[3.0, 4, 15, 18]]), "labels": torch.tensor([2])},
               {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}]  # fmt: skip
    losses = net(IMAGES, targets)
    assert {"classification", "bbox_regression"} == set(losses)
    sum(losses.values()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for name, p in net.named_parameters() if "bn" not in name)
    assert 0 == float(net(IMAGES, [targets[1]] * 2)["bbox_regression"].detach())
    with pytest.raises(SpecError, match="needs targets"):
        net(IMAGES)


def test_owners_in_closed_form() -> None:
    """Points less than 6 pixels from an object's middle in x and y answer for it, the smaller of two that are near."""
    where = points((4, 4), torch.device("cpu"))
    assert ([2.0, 2.0], [6.0, 2.0], [14.0, 14.0]) == (where[0].tolist(), where[1].tolist(), where[-1].tolist())
    boxes = torch.tensor([[0.0, 0, 12, 12], [0, 5, 16, 7]])  # middles (6, 6) and (8, 6); areas 144 and 32
    expected = torch.full((4, 4), -1)
    expected[0:3, 0] = 0  # x = 2 is exactly 6 from the second's middle
    expected[0:3, 1:4] = 1
    expected[0:3, 3] = -1  # x = 14 is exactly 6 from 8
    assert expected.flatten().tolist() == owner(where, boxes).tolist()
    assert {-1} == set(owner(where, boxes[:0]).tolist())


def test_losses_in_closed_form() -> None:
    """With perfect boxes GIoU costs nothing; equal logits cost alpha (1 - p)^2 ln(1 / p) a point that answers."""
    net, boxes = tiny(), torch.tensor([[0.0, 0, 16, 16]])
    target = [{"boxes": boxes, "labels": torch.tensor([1])}]
    mine = owner(points((4, 4), torch.device("cpu")), boxes) >= 0
    losses = net.losses(torch.zeros(1, 16, 3), boxes.expand(1, 16, 4).clone(), target, (4, 4))
    each = 0.25 * math.log(2)
    total = 0.25 * each * int(mine.sum()) + 0.75 * each * (48 - int(mine.sum()))
    assert float(losses["classification"]) == pytest.approx(total / int(mine.sum()), rel=1e-5)
    assert float(losses["bbox_regression"]) == pytest.approx(0, abs=1e-5)


def test_boxes_are_decoded_around_their_points() -> None:
    """Where the network says 0, a box of 4 x 4 pixels about each point; ln 2 more makes it twice as large."""
    net = tiny().eval()
    for parameter in (net.box_numbers.weight, net.box_numbers.bias):
        nn.init.zeros_(parameter)  # type: ignore[arg-type]
    with torch.no_grad():
        net.box_numbers.bias += torch.tensor([0.5, 0.0, math.log(2), 0.0])  # type: ignore[operator]
        _, boxes = net.predict(torch.zeros(1, 1, 16, 16))
    assert boxes[0, 5].tolist() == pytest.approx([6 + 2 - 4, 6 - 2, 6 + 2 + 4, 6 + 2])


def answering(answer: object) -> nn.Module:
    """A module that always answers so."""

    class Answering(nn.Module):
        def forward(self, images: list[Tensor]) -> object:
            return answer

    return Answering()


GOOD = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (torch.zeros(1, 6), "must return a list with a dict.*got a Tensor"),
        ([GOOD, GOOD], "got 2 for 1 images"),
        ([torch.zeros(1, 6)], "got a Tensor for an image"),
        ([{"boxes": GOOD["boxes"], "labels": GOOD["labels"]}], "'scores' must be a tensor, got only boxes, labels"),
        ([{**GOOD, "boxes": [[0, 0, 4, 4]]}], "'boxes' must be a tensor, got a list"),
        ([{**GOOD, "boxes": torch.zeros(1, 5)}], r"got \(1, 5\), \(1,\), \(1,\)"),
        ([{**GOOD, "labels": torch.tensor([1, 2])}], r"got \(1, 4\), \(2,\), \(1,\)"),
        ([{**GOOD, "scores": torch.tensor([torch.nan])}], "NaN or infinite"),
        ([{**GOOD, "boxes": torch.full((1, 4), torch.inf)}], "NaN or infinite"),
        ([{**GOOD, "scores": torch.tensor([3.0])}], r"scores must lie in \[0, 1\], got 3"),
        ([{**GOOD, "boxes": torch.tensor([[8.0, 8, 4, 4]])}], "x1 y1 x2 y2"),
    ],
)
def test_other_formats_are_refused(answer: object, says: str) -> None:
    """One sentence each, which says what torchvision's detectors return."""
    with pytest.raises(SpecError, match=says):
        ask(answering(answer), [torch.zeros(1, 8, 8)], "mine")


def test_what_a_network_raises_is_told() -> None:
    """With the shape that it was given; a good answer passes as it is."""
    with pytest.raises(
        SpecError, match=r"mine raised RuntimeError on a list of 1 images, the first of shape \(3, 8, 8\)"
    ):
        ask(tiny().eval(), [torch.zeros(3, 8, 8)], "mine")
    assert [GOOD] == ask(answering([GOOD]), [torch.zeros(1, 8, 8)])


def test_detection_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into batches of one image it finds the same."""
    images = [torch.rand(1, 24, 24) for _ in range(3)]
    whole = detect(tiny().eval(), images)
    monkeypatch.setattr("robustgen.detectors.detector._PIXELS", 1)
    for a, b in zip(whole, detect(tiny().eval(), images), strict=True):
        assert torch.allclose(a["scores"], b["scores"], atol=1e-6)
        assert not a["scores"].requires_grad


def test_cards_and_weights(tmp_path: Path) -> None:
    """A card beside its weights in float16; a changed file, a classifier's card and an unknown name are refused."""
    net = tiny()
    save_file(
        {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}, tmp_path / "a.safetensors"
    )
    options = {**vars(SMALL), "widths": [4, 4, 8]}
    card = Card(
        name="a", title="A", architecture=TINY, options=options, weights="a.safetensors", channels=1, classes=4
    )  # fmt: skip
    card.save(tmp_path / "a.json")
    held = load_detector(str(tmp_path / "a.json"))
    assert torch.equal(held.network.class_logits.weight, net.class_logits.weight.half().float())  # type: ignore[union-attr]
    assert not held.network.training
    assert not any(p.requires_grad for p in held.network.parameters())
    Card(**{**vars(card), "sha256": "0" * 64}).save(tmp_path / "b.json")
    with pytest.raises(ArtifactError, match="the card of a says 0000"):
        load_detector(str(tmp_path / "b.json"))
    Card(**{**vars(card), "architecture": "small-resnet"}).save(tmp_path / "c.json")
    with pytest.raises(SpecError, match="is no card of a detector"):
        load_detector(str(tmp_path / "c.json"))
    with pytest.raises(SpecError, match="unknown detector 'fmnist-detectr'; did you mean 'fmnist-detector'"):
        load_detector("fmnist-detectr")
    with pytest.raises(SpecError, match="did you mean 'fcos_resnet50_fpn'"):
        load_detector("torchvision-detection:fcos_resnet50_fp")
    (tmp_path / "net.py").write_text("def make(): return 'net'\n")
    with pytest.raises(SpecError, match=re.escape("must return a torch.nn.Module, got str")):
        load_detector(f"python:{tmp_path}/net.py:make")


def test_the_bundled_detector_is_small_and_detects() -> None:
    """At most 1 MB; on unseen scenes it reaches about what its card says of held-out ones."""
    path = bundled_detectors()["fmnist-detector"]
    assert path.with_suffix(".safetensors").stat().st_size < 1_000_000
    card = json.loads(path.read_text())
    with assert_global_rng_untouched():
        found = measure_detections(
            "fmnist-detector", "fmnist-test-1k", n=60, picture=None, seed=1, weights=None, data_dir=None, device="cpu"
        )
    claimed = {figure["metric"]: figure["value"] for figure in card["figures"]}
    assert abs(found["ap50"] - claimed["ap50"]) < 0.15
    assert found["recall"] > 0.5


class Backbone(nn.Conv2d):
    """One convolution that torchvision's detectors take for a backbone."""

    out_channels = 32  # FCOS normalises in groups of so many

    def __init__(self) -> None:
        super().__init__(3, 32, 3, 8, 1)


@pytest.mark.parametrize("name", ["FCOS", "FasterRCNN", "RetinaNet"])
def test_gradients_cross_torchvisions_detectors(name: str) -> None:
    """At random weights, a few pixels wide: what is seen of an object has a gradient in every channel of the image."""
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    options = {"min_size": 48, "max_size": 48}
    if name == "FasterRCNN":
        options |= {"rpn_anchor_generator": AnchorGenerator(((16,),), ((1.0,),)), "box_score_thresh": 0.0}
    else:
        options |= {"anchor_generator": AnchorGenerator(((16,),), ((1.0,),)), "score_thresh": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        held = load_detector(getattr(detection, name)(Backbone(), num_classes=3, **options))
    x = torch.rand(3, 48, 48, requires_grad=True)
    (found,) = ask(held.network, [x])
    scores = seen_scores([found], [found["boxes"].detach()], None)
    assert 0 < float(scores.detach().max()) < 1
    (grad,) = torch.autograd.grad(scores.sum(), x)
    assert bool((grad.abs().sum((1, 2)) > 0).all())


def test_torchvision_with_a_file(tmp_path: Path) -> None:
    """How many classes it tells apart is read from the file, or stands in a card with further options."""
    import torchvision

    spec, options = "torchvision-detection:ssdlite320_mobilenet_v3_large", {"score_thresh": 0.0, "topk_candidates": 9}
    with torch.random.fork_rng(devices=[]):
        net = torchvision.models.get_model(
            spec.partition(":")[2], weights=None, weights_backbone=None, num_classes=3, **options
        ).eval()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    assert 3 == load_detector(spec, weights=tmp_path / "mine.pth").card.classes
    card = Card(
        name="mine", title="Mine", architecture=spec, options=options, weights="mine.pth", channels=3, classes=3
    )
    card.save(tmp_path / "mine.json")
    image = torch.rand(3, 64, 64)
    (found,), (expected,) = (detect(n, [image]) for n in (load_detector(str(tmp_path / "mine.json")).network, net))
    assert len(found["boxes"]) > 0
    assert torch.equal(expected["boxes"], found["boxes"])
    assert torch.equal(expected["scores"], found["scores"])


def test_missing_weights_are_told_where_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own folder of checkpoints and the name of the file, or --weights."""
    import torchvision

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    place = tmp_path / "checkpoints" / "fcos_resnet50_fpn_coco-99b0c9b7.pth"
    with pytest.raises(ArtifactError, match=rf"no network\); put them to {re.escape(str(place))}, or pass --weights"):
        load_detector("torchvision-detection:fcos_resnet50_fpn")


def test_seen_scores_in_closed_form() -> None:
    """The highest score of a box about each object, IoU 0.3 or more, of the class that counts; else 0."""
    objects = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    scores = torch.tensor([0.9, 0.6, 0.8, 0.7], requires_grad=True)
    boxes = torch.tensor([[0.0, 0, 2, 10], [0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30]])  # IoU 0.2, 1, 0.5, 0
    found = [{"boxes": boxes, "labels": torch.tensor([1, 1, 2, 1]), "scores": scores}]
    assert seen_scores(found, [objects], None).tolist() == pytest.approx([0.8, 0.0])
    assert seen_scores(found, [objects], 1).tolist() == pytest.approx([0.6, 0.0])
    (grad,) = torch.autograd.grad(seen_scores(found, [objects], None).sum(), scores)
    assert [0, 0, 1, 0] == grad.tolist()
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    assert [0.0, 0.0] == seen_scores([nothing], [objects], None).tolist()


def test_a_toy_detector_is_one() -> None:
    """What other tests use keeps to the interface."""
    assert 1 == len(ask(Bright(), [torch.rand(1, 24, 24)]))
