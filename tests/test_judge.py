from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.errors import ArtifactError, SpecError
from robustgen.generator import features
from robustgen.generator.cas import CasSettings
from robustgen.generator.features import INCEPTION_FILE, Extractor, classifier_features, inception_features
from robustgen.generator.generated import read_generated, read_images
from robustgen.generator.judge import Judgement, JudgeOptions, judge
from tests.helpers import make_convnet, make_linear

SMALL = CasSettings(steps=20, batch_size=16, widths=(8,), depths=(1,), stem_stride=1)


def scene(n: int, seed: int, channels: int = 1, height: int = 8, width: int = 10) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) uint8 of four classes, told apart by which quarter is bright, and their labels (n,)."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 120, (n, channels, height, width), generator=g)
    y = torch.randint(0, 4, (n,), generator=g)
    for k in range(4):
        top, left = (k // 2) * height // 2, (k % 2) * width // 2
        x[y == k, :, top : top + height // 2, left : left + width // 2] += 100
    return x.to(torch.uint8), y


def data(n: int, seed: int, channels: int = 1) -> Dataset:
    """`scene` as a data set."""
    return load_data(scene(n, seed, channels))


def generated(n: int, seed: int, channels: int = 1) -> tuple[Tensor, Tensor]:
    """`scene` as a file of generated images holds it: (n, H, W, C) uint8."""
    x, y = scene(n, seed, channels)
    return x.permute(0, 2, 3, 1).contiguous(), y


def network(channels: int = 1) -> Extractor:
    """The features of a random network."""
    return classifier_features(load_classifier(make_convnet(channels)))


def judged(images: Tensor, labels: Tensor | None, **options: Any) -> Judgement:
    """A judgement beside 400 training and 100 test images."""
    return judge(images, labels, data(400, 1), data(100, 2), [network()], JudgeOptions(**options))


def test_good_images_are_like_the_floors() -> None:
    """Fresh images of the same distribution are as near as other training images and test images."""
    rows = judged(*generated(150, 3)).tables[0].rows
    assert ["generated", "other training images", "test images"] == [row.name for row in rows]
    best, floors = rows[0], rows[1:]
    for floor in floors:
        assert abs(best.fd.value - floor.fd.value) < 4 * (best.fd.error + floor.fd.error)
        assert abs(best.kd.value - floor.kd.value) < 4 * (best.kd.error + floor.kd.error)
        assert floor.neighbours.coverage.low < best.neighbours.coverage.high


def test_noise_is_far_from_the_floors() -> None:
    """Images of noise fail in every figure that a good generator passes."""
    noise = torch.randint(0, 256, (150, 8, 10, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = judged(noise, torch.arange(150) % 4)
    bad, floor = found.tables[0].rows[:2]
    assert bad.fd.value > 10 * floor.fd.value
    assert bad.kd.value > floor.kd.value + 10 * floor.kd.error
    assert bad.neighbours.precision.high < floor.neighbours.precision.low
    assert found.memorisation.ratio is not None
    assert found.memorisation.ratio[1] > 1.2


def test_copies_and_repeats_are_counted(tmp_path: Path) -> None:
    """Training images given as generated ones show in the audit, their repeats as duplicates, both in a picture."""
    train = read_images(data(400, 1))
    images = torch.cat([train[:90], train[:10]])
    found = judged(images, None, pairs=tmp_path / "pairs.png")
    assert 1 == found.memorisation.flagged.value
    assert 0 == found.memorisation.generated
    assert (10, 10, 0) == (found.exact_duplicates, found.near_duplicates, found.near_duplicates_real)
    assert (tmp_path / "pairs.png").is_file()


def test_everything_has_the_same_size_and_an_honest_name() -> None:
    """N is that of the smallest set, stands in every name, and no name says FID or KID."""
    found = judged(*generated(150, 3))
    assert (100, 150) == (found.n, found.n_given)
    assert found.tables[0].names == {
        "FD": "FD(Sequential, penultimate, 64, N=100)",
        "KD": "KD(Sequential, penultimate, 64, N=100)",
        "IS": "IS(Sequential, N=100)",
    }
    text = "\n".join(found.lines()) + json.dumps(found.to_json(), allow_nan=False)
    assert "FID" not in text
    assert "KID" not in text
    assert 100 == sum(found.class_counts or ())


def test_floors_without_enough_images_are_left_out() -> None:
    """More images than floors allow are possible when asked for, and it is noted."""
    found = judged(*generated(300, 3), n=250)
    assert ["generated"] == [row.name for row in found.tables[0].rows]
    assert any("fewer than 500" in note for note in found.notes)
    assert any("fewer than 250" in note for note in found.notes)


def test_unlabelled_images_are_judged_without_labels() -> None:
    """No class balance, no agreement and no CAS, even if asked for."""
    found = judged(generated(100, 3)[0], None, cas=True)
    assert found.class_counts is None
    assert found.cas is None
    assert found.tables[0].rows[0].agreement is None
    assert any("no labels" in note for note in found.notes)


def test_cas_stands_beside_that_of_real_images() -> None:
    """Images with wrong labels score lower than as many real ones with the same budget."""
    images, labels = generated(100, 3)
    settings = replace(SMALL, steps=60, lr=1e-2, augment=())
    found = judged(images, 3 - labels, cas=True, cas_settings=settings)
    assert found.cas is not None
    assert found.cas.generated.accuracy.high < found.cas.real.accuracy.low
    assert found.cas.generated.n_train == found.cas.real.n_train == 100
    assert any(line.startswith("CAS") for line in found.lines())


def test_images_of_three_channels() -> None:
    """Colour images are judged like grey ones."""
    found = judge(*generated(60, 3, 3), data(200, 1, 3), data(60, 2, 3), [network(3)])
    assert 3 == len(found.tables[0].rows)


def test_the_same_seed_judges_the_same() -> None:
    """Nothing depends on chance outside the seed."""
    images, labels = generated(150, 3)
    assert judged(images, labels).to_json() == judged(images, labels).to_json()


def test_test_images_that_are_training_images_are_noted() -> None:
    """A control that is no control is said to be none."""
    train = data(400, 1)
    found = judge(*generated(100, 3), train, train, [network()])
    assert found.memorisation.ratio is None
    assert any("test images are training images" in note for note in found.notes)


def test_features_are_the_input_of_the_last_linear_layer() -> None:
    """They equal what the layers before it give, in whatever batches, and no hook stays behind."""
    net = make_convnet()
    assert isinstance(net, nn.Sequential)
    images = generated(30, 0)[0]
    classifier = load_classifier(net)
    found = replace(classifier_features(classifier), batch_size=7)(images)
    x = images.permute(0, 3, 1, 2).float() / 255
    torch.testing.assert_close(net[:-1](x), found.values)
    torch.testing.assert_close(net(x).softmax(1), found.probabilities)
    assert not any(module._forward_pre_hooks for module in classifier.modules())


def test_networks_without_features_are_refused() -> None:
    """A network that draws random numbers, has no linear layer, or does not take the images."""
    with pytest.raises(SpecError, match=r"no torch\.nn\.Linear"):
        classifier_features(load_classifier(make_linear()))
    with pytest.raises(SpecError, match="stochastic"):
        classifier_features(type("Noisy", (Classifier,), {"stochastic": True})(make_convnet(), _card()))
    with pytest.raises(SpecError, match=r"fails on images .*\(8, 10, 3\)"):
        network(1)(generated(4, 0, 3)[0])
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(80, 4), nn.Flatten())
    with pytest.raises(SpecError, match=r"\(B, d\).*\(4, 1, 80\)"):
        classifier_features(load_classifier(tokens.eval()))(generated(4, 0)[0])


def _card() -> Any:
    return load_classifier(make_convnet()).card


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for torch-fidelity: features are the means of channels, logits their negatives."""

    class FeatureExtractorInceptionV3(nn.Module):
        def __init__(self, name: str, layers: list[str], feature_extractor_weights_path: str) -> None:
            super().__init__()
            assert ["2048", "logits_unbiased"] == layers
            self.weight = nn.Parameter(torch.load(feature_extractor_weights_path, weights_only=True)["weight"])

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            assert x.dtype == torch.uint8
            assert 3 == x.shape[1]
            means = x.float().mean((2, 3)) * self.weight
            return means, -means

    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(
        sys.modules,
        module,
        SimpleNamespace(FeatureExtractorInceptionV3=FeatureExtractorInceptionV3),  # type: ignore[arg-type]
    )


@pytest.mark.usefixtures("fidelity")
def test_only_inception_is_called_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With weights of the right sum the figures are called FID and KID, and grey images become three channels."""
    path = tmp_path / INCEPTION_FILE
    torch.save({"weight": torch.ones(3)}, path)
    with pytest.raises(ArtifactError, match=r"expected 6726825d.*leave --inception out"):
        inception_features(path)
    monkeypatch.setattr(features, "_INCEPTION_SHA256", "")
    extractor = inception_features(path)
    found = judge(*generated(60, 3), data(200, 1), data(60, 2), [extractor])
    assert {"FD": "FID(N=60)", "KD": "KID(N=60)", "IS": "IS(N=60)"} == found.tables[0].names
    images = generated(5, 0)[0]
    torch.testing.assert_close(images.float().mean((1, 2)).expand(5, 3), extractor(images).values)


def test_what_fid_needs_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch-fidelity one sentence says what to install, and which file to give where."""
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ArtifactError, match=f"pip install torch-fidelity.*--inception FILE.*{INCEPTION_FILE}"):
        inception_features(tmp_path / INCEPTION_FILE)


@pytest.mark.usefixtures("fidelity")
def test_missing_inception_weights_are_named(tmp_path: Path) -> None:
    """The file that is not there is named, and how to get it."""
    with pytest.raises(ArtifactError, match=rf"no file .*nothing\.pth.*{INCEPTION_FILE}"):
        inception_features(tmp_path / "nothing.pth")


def test_generated_images_are_read_as_written(tmp_path: Path) -> None:
    """Labels of -1 everywhere, as of generators without classes, and no labels are both None."""
    images, labels = generated(6, 0)
    path = tmp_path / "x.npz"
    np.savez(path, image=images.numpy(), label=labels.numpy().astype(np.uint8), provenance="{}")
    x, y = read_generated(path)
    assert torch.equal(images, x)
    assert y is not None
    assert torch.equal(labels, y)
    np.savez(path, image=images[..., 0].numpy(), label=np.full(6, -1))
    x, y = read_generated(path)
    assert torch.equal(images, x)
    assert y is None
    np.savez(path, image=images.numpy())
    assert read_generated(path)[1] is None


IMAGE = np.zeros((6, 8, 10, 1), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGE}, "lacks the array 'image'; it holds images"),
        ({"image": IMAGE / 255}, r"uint8 in 0 \.\. 255, got float64: save round\(255 x\)"),
        ({"image": IMAGE.astype(np.int32)}, "uint8 .* got int32"),
        ({"image": np.zeros((6, 3, 8, 10), np.uint8)}, r"transpose\(0, 2, 3, 1\), got \(6, 3, 8, 10\)"),
        ({"image": np.zeros((6, 8, 10, 4), np.uint8)}, r"1 or 3 channels, last, got \(6, 8, 10, 4\)"),
        ({"image": IMAGE[0, :, :, 0]}, r"shape \(N, H, W, C\)"),
        ({"image": IMAGE[:0]}, "N >= 1"),
        ({"image": IMAGE, "label": np.zeros(5, int)}, "6 images, but 5 labels"),
        ({"image": IMAGE, "label": np.zeros(6)}, "whole numbers"),
        ({"image": IMAGE, "label": np.eye(6, dtype=int)}, r"argmax\(1\)"),
        ({"image": IMAGE, "label": np.array([0, 1, -1, 0, 0, 0])}, "label -1 of image 2 is negative"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """One sentence says what was expected, what came, and what to type."""
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(SpecError, match=message):
        read_generated(tmp_path / "x.npz")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, of another kind, one bare array, or cut off."""
    with pytest.raises(ArtifactError, match="no such file"):
        read_generated(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_text("text")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_generated(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", image=IMAGE)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_generated(tmp_path / "x.npz")
    np.save(tmp_path / "x.npy", IMAGE)
    with pytest.raises(SpecError, match="bare array"):
        read_generated(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[:, :6], y, {}), r"uint8 \(N, 8, 10, 1\) .*got \(100, 6, 10, 1\)"),
        (lambda x, y: (x.float(), y, {}), "torch.float32"),
        (lambda x, y: (x, y + 1, {}), r"0 \.\. 3, .*from 1 to 4"),
        (lambda x, y: (x, y[:5], {}), "100 generated images need as many labels"),
        (lambda x, y: (x, y, {"n": 101}), "between 20 and 100.*got 101"),
        (lambda x, y: (x, y, {"n": 0}), "got 0"),
        (lambda x, y: (x[:9], y[:9], {}), "between 20 and 9"),
        (lambda x, y: (x, y, {"near": 1.5}), "near"),
        (lambda x, y: (x, y, {"pairs": Path("pairs.jpg")}), r"end in \.png"),
    ],
)
def test_images_that_do_not_fit_are_refused(change: Callable[[Tensor, Tensor], Any], message: str) -> None:
    """Before the first feature is computed."""
    images, labels, options = change(*generated(100, 3))
    with pytest.raises(SpecError, match=message):
        judged(images, labels, **options)


def test_training_and_test_images_of_two_kinds_are_refused() -> None:
    """Both are named with their shapes."""
    with pytest.raises(SpecError, match=r"\(1, 8, 10\) .*\(3, 8, 10\)"):
        judge(*generated(100, 3), data(400, 1), data(100, 2, 3), [network()])
