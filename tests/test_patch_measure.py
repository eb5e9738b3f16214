"""A patch measured, pasted and printed: counts made again by hand, unseen images by content, sheets in millimetres."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.errors import ArtifactError, SpecError
from robustgen.patch.camera import PrintAndCamera
from robustgen.patch.design import PatchRequest
from robustgen.patch.files import TrainedPatch, load_patch
from robustgen.patch.heat import measure_grid, parse_axis
from robustgen.patch.measure import Measured, MeasureRequest, eval_lines, hold_out, measure_patch
from robustgen.patch.output import apply_patch, export_patch
from robustgen.patch.train import train_patch
from robustgen.patch.transforms import Transforms
from robustgen.progress import Silent
from robustgen.rng import ExampleRng, child_stream
from tests.helpers import make_linear, write_linear_task

OUT = Path("out")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a linear network, 60 images of 8 x 8 and a patch at row 1, column 4 of the network, in `out`."""
    folder = tmp_path_factory.mktemp("patch")
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        write_linear_task(folder, 60)
        request = PatchRequest(
            classifier="python:net.py:make", data="npz:data.npz", size="4x3", steps=25, batch_size=16, target="2",
            location="fixed:1,4", transforms="none", lr=0.2,
            precision="float32",
        )  # fmt: skip
        train_patch(request, out=OUT, device="cpu")
    return folder


@pytest.fixture(autouse=True)
def _there(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(task)


def measure(**options: Any) -> dict[str, Any]:
    """Of the patch in `out`."""
    return measure_patch(MeasureRequest(folder=OUT, **options), device="cpu", progress=Silent())


def pasted(x: Tensor, patch: TrainedPatch) -> Tensor:
    """By index."""
    out = x.clone()
    out[:, :, 1:5, 4:7] = patch.patch
    return out


@pytest.mark.parametrize("seed", [0, 1])
def test_success_is_what_a_loop_counts(seed: int) -> None:
    """Of the first half, which training did not see, right and not of the target: how many become the target."""
    model, patch = make_linear((1, 8, 8), seed=seed), load_patch(OUT)
    x, y = load_data("npz:data.npz").batch(range(30))
    kept = (model(x).argmax(1) == y) & (y != 2)
    won = int((model(pasted(x, patch)).argmax(1) == 2)[kept].sum())
    found = measure(classifier=f"python:net.py:{'other' if seed else 'make'}")
    assert (int(kept.sum()), won / int(kept.sum())) == (found["n"], found["success"]["value"])
    same = int((load_data("npz:data.npz").batch(range(30, 60))[1] == 2).sum())  # of the target: not trained on
    assert (30 + same, 30 - same) == (found["looked_at"], found["seen"])
    assert 30 + same == found["n"] + found["misclassified"] + found["of_the_target"]
    assert found["success"]["low"] <= found["success"]["value"] <= found["success"]["high"]
    assert 0.1 < found["success"]["high"] - found["success"]["low"] < 0.6
    assert found["random_success"]["value"] < found["success"]["value"] or seed
    assert json.loads((OUT / found["file"]).read_text()) == found
    assert "success" in "\n".join(eval_lines(found))


def test_the_camera_sees_print_and_clean_image() -> None:
    """Counted again by hand: only images right through the camera, and the printed patch photographed with them."""
    model, patch, camera = make_linear((1, 8, 8)), load_patch(OUT), PrintAndCamera()
    x, y = load_data("npz:data.npz").batch(range(30))
    rng = child_stream(ExampleRng.of(0, range(30)), "patch camera")
    printed = pasted(x, replace(patch, patch=camera.printed(patch.patch)))
    kept = (model(camera.photographed(x, rng)).argmax(1) == y) & (y != 2)
    won = int((model(camera.photographed(printed, rng)).argmax(1) == 2)[kept].sum())
    found = measure(camera=True, n=30)
    assert (int(kept.sum()), won / int(kept.sum())) == (found["n"], found["success"]["value"])
    grey = PrintAndCamera(ink=0.5, paper=0.5)  # a printer without tones: the patch comes out all grey
    held = replace(hold_out(MeasureRequest(folder=OUT, camera=True, n=30), device="cpu"), camera=grey)
    x, ids = x[list(held.ids)], held.ids
    printed = pasted(x, replace(patch, patch=torch.full_like(patch.patch, 0.5)))
    seen = grey.photographed(printed, child_stream(ExampleRng.of(0, ids), "patch camera"))
    won = int((model(seen).argmax(1) == 2).sum())
    assert won == held.successes(Measured(Transforms.none()), noise=False) < len(ids)


def test_images_are_known_by_their_pixels(task: Path) -> None:
    """Under another name, in another order and with other labels a training image is still one."""
    held, patch = np.load("data.npz"), load_patch(OUT)
    order = np.random.default_rng(0).permutation(60)
    np.savez("shuffled.npz", image=held["image"][order], label=held["label"][order])
    again, plain = measure(data="npz:shuffled.npz", transforms="none"), measure(transforms="none")
    assert (plain["n"], plain["success"]) == (again["n"], again["success"])
    trained = held["image"][30:][held["label"][30:] != 2]
    assert len(trained) == len(patch.seen)
    np.savez("trained.npz", image=trained, label=np.zeros(len(trained), dtype=int))
    with pytest.raises(SpecError, match="no image that the training did not see"):
        measure(data="npz:trained.npz")
    assert task.is_dir()


def test_the_same_call_gives_the_same_and_another_seed_another() -> None:
    """Draws of transformations follow the seed; a camera is another question, and has a file of its own."""
    wild = "rotation=180,scale=0.5:1.5"
    a, b, c = (measure(transforms=wild, seed=seed) for seed in (0, 0, 1))
    assert a == b
    assert a["random_success"] != c["random_success"] or a["success"] != c["success"]
    camera = measure(camera=True)
    assert "simulation" in camera["camera"]["kind"]
    assert {a["file"], c["file"], camera["file"]} <= {path.name for path in OUT.glob("eval-*.json")}
    assert 3 == len({a["file"], c["file"], camera["file"]})


def test_the_grid_holds_the_upright_patch() -> None:
    """At 0 degrees and scale 1 it says what the plain measure says; JSON and picture hold every cell."""
    request = MeasureRequest(folder=OUT)
    found = measure_grid(request, (-90.0, 0.0), (0.5, 1.0, 1.5), device="cpu", progress=Silent())
    cells = {(cell["angle"], cell["scale"]): cell["success"] for cell in found["cells"]}
    assert {(a, s) for a in (-90.0, 0.0) for s in (0.5, 1.0, 1.5)} == set(cells)
    assert measure(transforms="none")["success"] == cells[0.0, 1.0]
    assert cells[0.0, 0.5]["value"] < cells[0.0, 1.0]["value"]
    with Image.open(OUT / found["picture"]) as picture:
        assert min(picture.size) > 200
    with pytest.raises(SpecError, match="at 3 the patch is larger than the image"):
        measure_grid(request, (0.0,), (1.0, 3.0), device="cpu", progress=Silent())
    for text in ("1,1", "a", "0,1", "2,1", "inf"):
        with pytest.raises(SpecError, match="--scales must be rising positive numbers"):
            parse_axis("scales", text, positive=True)


def test_apply_keeps_place_and_proportion(tmp_path: Path) -> None:
    """In an image three times as large the patch covers three times the rows and columns, and nothing else moves."""
    patch, before = load_patch(OUT), np.random.default_rng(0).integers(0, 256, (24, 30), dtype=np.uint8)
    Image.fromarray(before).save(tmp_path / "in.png")
    box = apply_patch(patch, tmp_path / "in.png", tmp_path / "out.png")
    assert (3, 12, 12, 9) == box
    with Image.open(tmp_path / "out.png") as picture:
        after = np.asarray(picture).copy()
    large = (255 * patch.patch[0]).round().numpy().astype(np.uint8).repeat(3, 0).repeat(3, 1)
    assert np.abs(after[3:15, 12:21].astype(int) - large).max() <= 1
    after[3:15, 12:21] = before[3:15, 12:21]
    assert np.array_equal(before, after)
    (tmp_path / "text.png").write_text("no image")
    for image, options, says in (
        ("text.png", {}, "as an image"), ("none.png", {}, "there is no image"),
        ("in.png", {"scale": 3.0}, "larger than"),
        ("in.png", {"scale": float("nan")}, "--scale must be a number above 0"),
    ):  # fmt: skip
        with pytest.raises((SpecError, ArtifactError), match=says):
            apply_patch(patch, tmp_path / image, tmp_path / "x.png", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("dpi", "width"), [(300, 40.0), (150, 25.4)])
def test_sheets_have_their_size_in_millimetres(dpi: int, width: float, tmp_path: Path) -> None:
    """Between the outer edges of the crop marks lies the width that was asked for; both files say their resolution."""
    patch = load_patch(OUT)
    png, pdf = export_patch(patch, tmp_path, dpi=dpi, width_mm=width)
    with Image.open(png) as picture:
        sheet, resolution = np.asarray(picture.convert("L")), picture.info["dpi"]
    assert dpi == pytest.approx(resolution[0], abs=0.05)
    marks = np.flatnonzero((sheet < 128)[int(0.24 * dpi)])  # a row through the upright marks above the patch
    assert width == pytest.approx((marks[-1] + 1 - marks[0]) / dpi * 25.4, abs=25.4 / dpi)
    marks = np.flatnonzero((sheet < 128)[:, int(0.24 * dpi)])
    assert width * 4 / 3 == pytest.approx((marks[-1] + 1 - marks[0]) / dpi * 25.4, abs=25.4 / dpi)
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+)", pdf.read_bytes())
    assert box is not None
    points = [float(edge) for edge in box.groups()]
    assert [sheet.shape[1] * 72 / dpi, sheet.shape[0] * 72 / dpi] == pytest.approx(points, abs=0.01)
    first = [path.read_bytes() for path in (png, pdf)]
    assert first == [path.read_bytes() for path in export_patch(patch, tmp_path, dpi=dpi, width_mm=width)]
    for options, says in (
        ({"dpi": 0, "width_mm": 40.0}, "--dpi must be"), ({"dpi": 30, "width_mm": 2.0}, "raise one"),
        ({"dpi": 2400, "width_mm": 900.0}, "lower one"), ({"dpi": 300, "width_mm": -1.0}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            export_patch(patch, tmp_path, **options)  # type: ignore[arg-type]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each subcommand does its work, prints one JSON object where asked, says what is wrong, exit code 2."""
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save("black.png")
    train = ["patch", "train", "python:net.py:make", "--data", "npz:data.npz", "--size", "3", "--steps", "4"]
    evaluate = ["patch", "eval", "second"]
    grid = ["python:net.py:other", "--grid", "--scales", "1,2", "--angles", "0"]
    for arguments, key in (
        ([*train, "--out", "second"], "identity"), (["patch", "apply", "second", "black.png"], "top"),
        (evaluate, "random_success"), ([*evaluate, *grid], "cells"),
    ):  # fmt: skip
        assert 0 == _run([*arguments, "--json"]), capsys.readouterr().err
        assert key in json.loads(capsys.readouterr().out)
    assert 0 == _run(["patch", "export", "second", "--width-mm", "20"])
    assert "patch-20mm.pdf" in capsys.readouterr().out
    for arguments, says in (
        (["patch", "eval", "nowhere"], "holds no trained patch"),
        ([*train[:3], "--size", "x"], "--size must be a side"),
        ([*evaluate, "fmnist-standard"], "takes images of 28 x 28"),
        ([*evaluate, "--grid", "--transforms", "none"], "drop --transforms"),
        ([*evaluate, "--n", "900"], "asks for more"),
    ):
        assert 2 == _run(arguments)
        assert says in capsys.readouterr().err
