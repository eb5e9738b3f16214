"""Forged images: the closed form on a linear classifier, what is reported, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from robustgen.cards import Card
from robustgen.classifier import Classifier
from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.forge import Forged, ForgeRequest, forge
from robustgen.forge_report import forge_lines, save_picture
from robustgen.plot import amplification
from robustgen.progress import Silent
from tests.helpers import make_linear


class Told(Silent):
    """Remembers how far the work was said to be."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def advance(self, done: int, info: str) -> None:
        self.done.append(done)


def made(monkeypatch: pytest.MonkeyPatch, network: nn.Module, size: tuple[int, int, int], names: int = 4) -> None:
    """Let every request get this network."""
    card = Card(
        name="net", title="net", architecture="net", channels=size[0], size=size[1:], classes=names,
        class_names=tuple(f"class {k}" for k in range(names)),
    )  # fmt: skip
    monkeypatch.setattr("robustgen.forge.load_classifier", lambda name, weights=None: Classifier(network, card))


def run(**asked: Any) -> Forged:
    """On the CPU, silently."""
    return forge(ForgeRequest(**asked), device="cpu", progress=Silent())


@pytest.mark.parametrize("shape", [(1, 6, 9), (3, 5, 4)], ids=str)
def test_two_linear_classes(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Along the slope the margin is known: sure at the first point with log odds beyond those asked for."""
    model = make_linear(shape, classes=2)
    made(monkeypatch, model, shape, 2)
    found = run(target="1", closeness=0.0, step=0.01, sure=0.8, steps=2000)
    slope = float((model.weight[1] - model.weight[0]).norm())
    odds = float(found.before[1].log() - found.before[0].log())
    distance = max(0.0, (math.log(0.8 / 0.2) - odds) / slope)
    assert found.sure
    assert float(found.after[1]) >= 0.8
    assert ((found.result >= 0) & (found.result <= 1)).all()
    reached = found.to_json()["l2"]
    assert distance - 1e-4 <= reached
    assert found.steps == pytest.approx(math.ceil(distance / 0.01), abs=3) or reached < 1.2 * distance
    torch.testing.assert_close(found.after, model(found.result[None])[0].softmax(0))
    torch.testing.assert_close(found.before, model(found.start[None])[0].softmax(0))


def test_closeness_holds_the_image_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The heavier the weight, the nearer to the start; one that is too heavy leaves the classifier unsure."""
    made(monkeypatch, make_linear((1, 6, 6)), (1, 6, 6))
    ends = [run(target="2", closeness=weight, sure=0.999, step=0.02, steps=300) for weight in (0.0, 0.5, 50.0)]
    lengths = [found.to_json()["l2"] for found in ends]
    assert lengths[0] > lengths[1] > lengths[2]
    assert [float(f.after[2]) for f in ends] == sorted((float(f.after[2]) for f in ends), reverse=True)
    assert not ends[2].sure
    assert 300 == ends[2].steps
    assert any("lower --closeness" in line for line in forge_lines(ForgeRequest(target="2"), ends[2]))


def test_an_image_that_is_the_class_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step is taken."""
    model = make_linear((1, 6, 6))
    with torch.no_grad():
        model.bias[3] += 50
    made(monkeypatch, model, (1, 6, 6))
    found = run(target="class 3")
    assert found.sure
    assert 0 == found.steps
    assert torch.equal(found.start, found.result)


def test_seed_chooses_the_noise_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same image, another seed another; progress counts the steps."""
    made(monkeypatch, make_linear((1, 6, 6)), (1, 6, 6))
    told = Told()
    a = forge(ForgeRequest(target="2", seed=5), device="cpu", progress=told)
    assert torch.equal(a.result, run(target="2", seed=5).result)
    assert not torch.equal(a.start, run(target="2", seed=6).start)
    assert told.done == sorted(told.done)
    assert told.done[-1] == a.steps


def test_defences_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes next to nothing lets it through; what drowns the image does not."""
    made(monkeypatch, make_linear((1, 8, 8)), (1, 8, 8))
    same = run(target="2", start="noise", purify="bit-depth:bits=8", smooth=0.001, sure=0.99)
    assert same.purified is not None
    assert same.smoothed is not None
    assert same.purified["draws"] == 1, "nothing random is asked twice"
    assert same.purified["survives"]
    assert same.smoothed["survives"]
    assert same.smoothed["votes"][2] == 1000
    lost = run(target="2", purify="median:size=7", smooth=50.0, sure=0.6)
    assert lost.purified is not None
    assert lost.smoothed is not None
    assert lost.smoothed["prediction"] != 2
    assert max(lost.smoothed["votes"]) < 900
    assert sum(lost.smoothed["votes"]) == 1000
    lines = "\n".join(forge_lines(ForgeRequest(target="2"), lost))
    assert "smoothed with sigma 50" in lines
    assert ("it survives" in lines) == (lost.purified["survives"] or lost.smoothed["survives"])


@pytest.mark.parametrize("shape", [(1, 6, 9), (3, 5, 4)], ids=str)
def test_picture(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three images beside each other, each pixel a square: start, result, amplified difference around grey."""
    made(monkeypatch, make_linear(shape), shape)
    found = run(target="1", sure=0.7)
    factor = save_picture(found, tmp_path / "p.png")
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(float) / 255
    scale = -(-224 // min(shape[1:]))
    height, width = shape[1] * scale, shape[2] * scale
    assert pixels.shape == (height + 2, 3 * width + 4, 3)
    change = found.result - found.start
    assert factor == amplification(float(change.abs().max()))
    for k, image in enumerate((found.start, found.result, (0.5 + factor * change).clamp(0, 1))):
        part = pixels[1 : 1 + height, 1 + k * (width + 1) : 1 + k * (width + 1) + width]
        expected = image.expand(3, -1, -1).permute(1, 2, 0).numpy()
        assert np.abs(part[scale // 2 :: scale, scale // 2 :: scale] - expected).max() < 1 / 255


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bundled classifier becomes sure of noise, and of a picture of something else."""
    out = tmp_path / "dress.png"
    assert _run(["forge", "dress", "--out", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["sure"]
    assert shown["after"][3] >= 0.9 > shown["before"][3]
    assert shown["name"] == "Dress"
    assert out.is_file()
    typed = ["forge", "3", "--from", "0", "--purify", "median", "--smooth", "0.25", "--samples", "100"]
    assert _run([*typed, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "towards Dress (3): sure after" in text
    assert "behind median" in text
    assert "PREDICT" in text
    assert f"picture: {out}" in text
    assert _run(["forge", "Dress", "--steps", "1", "--out", str(out)]) == 1
    assert "not sure after 1 steps" in capsys.readouterr().out


def test_bad_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence each, exit code 2, no picture."""
    Image.new("L", (20, 32)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no image")
    out = ["--out", str(tmp_path / "never.png")]
    for typed, says in (
        (["forge", "Dres"], "unknown class 'Dres'; did you mean 'Dress'? Or a number from 0 to 9."),
        (["forge", "10"], "class 10 is none of the 10 classes, 0 to 9"),
        (["forge", "3", "--closeness", "-0.1"], "--closeness must be a number >= 0, got -0.1"),
        (["forge", "3", "--sure", "1"], "--sure must be a number in [0, 1), got 1"),
        (["forge", "3", "--steps", "0"], "--steps must be a whole number >= 1"),
        (
            ["forge", "3", "--from", str(tmp_path / "wide.png")],
            "is 32 pixels high and 20 wide, fmnist-standard takes images of 28 x 28",
        ),
        (["forge", "3", "--from", str(tmp_path / "text.png")], "cannot be read as an image"),
        (["forge", "3", "--from", "1000"], "fmnist-test-1k has the examples 0 to 999"),
        (["forge", "3", "--from", "nowhere.png"], "--from must be noise, an image file or the number of an example"),
        (["forge", "3", "--purify", "medain"], "did you mean 'median'"),
        (["forge", "3", "--smooth", "0"], "--smooth must be a number above 0"),
        (["forge", "3", "--classifier", "fmnist-standrd"], "did you mean 'fmnist-standard'"),
    ):
        assert _run([*typed, *out]) == 2, typed
        assert says in capsys.readouterr().err
    assert _run(["forge", "3", "--out", str(tmp_path / "no" / "p.png")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert _run(["forge", "3", "--out", str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
    assert not (tmp_path / "never.png").exists()


def test_noise_needs_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's own does not say what it takes."""
    card = Card(name="net", title="net", architecture="net")
    network = Classifier(make_linear((1, 6, 6)), card)
    monkeypatch.setattr("robustgen.forge.load_classifier", lambda name, weights=None: network)
    with pytest.raises(SpecError, match=r"net does not say what size its images have; give --from IMAGE"):
        run(target="1")
