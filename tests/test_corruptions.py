"""Common corruptions: what each does to images, where they come from, and the suite over all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor

import robustgen
from robustgen.cli import _run
from robustgen.compat import benchmark
from robustgen.corruptions import suite
from robustgen.corruptions.blur import _disc
from robustgen.corruptions.draw import box, enlarge, sample
from robustgen.corruptions.kinds import CORRUPTIONS, corrupt
from robustgen.corruptions.noise import shot_noise
from robustgen.corruptions.suite import CorruptionRequest, mce, measure_corruptions
from robustgen.data import load_data
from robustgen.errors import ArtifactError, SpecError
from robustgen.rng import ExampleRng
from tests.helpers import ROOT, assert_global_rng_untouched, make_linear, write_linear_task


def pictures(channels: int, edge: int, count: int = 4) -> Tensor:
    """Soft shapes (count, channels, edge, edge) in [0, 1], as photographs are: what is near is alike."""
    coarse = torch.rand((count, channels, 4, 4), generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(coarse, (edge, edge), mode="bilinear", align_corners=True)
    for k in range(count):
        x[k, :, edge // 5 + k : edge // 2 + 2 * k, edge // 4 + k : edge // 2 + k] = 0.9  # and edges, each elsewhere
    return (x * 255).round() / 255


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("channels", "edge"), [(1, 28), (3, 32)])
def test_severities_are_in_order(name: str, channels: int, edge: int) -> None:
    """Each severity is farther away than the one before; shape and range stay; pixels are multiples of 1/255."""
    x, rng = pictures(channels, edge), ExampleRng.of(0, range(4))
    before, distances = x.clone(), [0.0]
    with assert_global_rng_untouched():
        for severity in range(1, 6):
            out = corrupt(x, name, severity, rng)
            assert (out.shape, out.dtype) == (x.shape, torch.float32)
            assert 0 <= float(out.min()) <= float(out.max()) <= 1
            assert torch.equal((out * 255).round() / 255, out)
            distances.append(float((out - x).flatten(1).norm(dim=1).mean()))
    assert distances == sorted(set(distances))
    assert torch.equal(before, x)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_examples_do_not_depend_on_their_batch(name: str) -> None:
    """An example gets the same pixels alone, in another order and beside others; another id or seed gets others."""
    x = pictures(3, 16)
    whole = corrupt(x, name, 3, ExampleRng.of(5, range(4)))
    assert torch.equal(whole[2:3], corrupt(x[2:3], name, 3, ExampleRng.of(5, [2])))
    order = [3, 0, 1]
    assert torch.equal(whole[order], corrupt(x[order], name, 3, ExampleRng.of(5, order)))
    chance = not torch.equal(whole, corrupt(x, name, 3, ExampleRng.of(6, range(4))))
    fixed = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}
    assert chance == (name not in fixed)


def test_shot_noise_is_poisson() -> None:
    """Its counts are the inverse of the distribution function that scipy has, and its mean is the image."""
    x = np.full((1, 1, 40, 40), 0.3)
    out = shot_noise(x, (50,), ExampleRng.of(0, [0]), 1.0)
    u = ExampleRng.of(0, [0]).uniform((1, 40, 40), "corruption/shot_noise").double().numpy() + 2.0**-25
    assert np.array_equal(stats.poisson.ppf(u, 15), np.rint(out * 50))
    assert abs(out.mean() - 0.3) < 4 * np.sqrt(15 / 1600) / 50


def test_noise_has_its_size() -> None:
    """Gaussian noise has its sigma, impulses their share, half of them white, by the constants of the table."""
    x, rng = torch.full((4, 1, 64, 64), 0.5), ExampleRng.of(0, range(4))
    sigma = float((corrupt(x, "gaussian_noise", 3, rng) - x).std())
    assert abs(sigma - 0.08) < 0.002
    hit = corrupt(x, "impulse_noise", 5, rng)
    white, black = float((hit == 1).float().mean()), float((hit == 0).float().mean())
    assert abs(white - 0.035) < 0.006
    assert abs(black - 0.035) < 0.006


def test_closed_forms() -> None:
    """Brightness keeps hue, contrast its mean; blurs keep a grey image; a disc adds to 1 and covers its area."""
    rng, x = ExampleRng.of(0, range(4)), pictures(3, 32) * 0.5
    bright = corrupt(x, "brightness", 2, rng)
    expected = x.amax(1) + 0.1
    assert float((bright.amax(1) - expected).abs().max()) <= 0.5 / 255 + 1e-6
    ratio = bright / bright.amax(1, keepdim=True) - x / x.amax(1, keepdim=True)
    assert float(ratio[(x.amax(1, keepdim=True) > 0.2).expand_as(x)].abs().max()) < 0.02
    flat = corrupt(x, "contrast", 5, rng)
    assert float((flat.mean((2, 3)) - x.mean((2, 3))).abs().max()) < 1 / 255
    grey = torch.full((4, 1, 20, 30), 51 / 255)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        assert torch.equal(corrupt(grey, name, 5, rng), grey), name
    disc = _disc(2.3)
    assert disc.shape == (5, 5)
    assert abs(1 / disc[2, 2] - np.pi * 2.3**2) < 0.2
    assert abs(disc.sum() - 1) < 1e-12


@pytest.mark.parametrize("name", ["defocus_blur", "zoom_blur", "motion_blur"])
def test_lengths_grow_with_the_image(name: str) -> None:
    """An edge is blurred over about twice as many pixels where the image is twice as large."""
    widths = []
    for edge in (32, 64):
        x = torch.zeros((1, 1, edge, edge))
        x[..., edge // 4 :] = 1
        row = corrupt(x, name, 5, ExampleRng.of(0, [0]))[0, 0, edge // 2, : edge // 2]
        widths.append(int(((row > 0.02) & (row < 0.98)).sum()))
    assert 1.4 < widths[1] / widths[0] < 2.5  # whole pixels are counted


def test_drawing_is_what_others_draw() -> None:
    """Boxes average what they cover, enlarging is torch's, and sampling at the pixels gives the image."""
    pixels = (pictures(1, 30)[:1] * 255).round()
    fine = np.repeat(np.repeat(pixels[0, 0].double().numpy(), 20, 0), 12, 1)  # each pixel as 20 x 12 of its own colour
    assert np.abs(box(pixels.double().numpy(), 20, 12)[0, 0] - fine.reshape(20, 30, 12, 30).mean((1, 3))).max() < 1e-9
    grid = torch.rand((2, 3, 5), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = torch.nn.functional.interpolate(grid[:, None], (7, 11), mode="bilinear", align_corners=True)[:, 0]
    assert np.abs(enlarge(grid.numpy(), 7, 11) - wide.numpy()).max() < 1e-12
    rows, columns = np.mgrid[0:30, 0:30].astype(float)
    x = pixels.double().numpy()
    assert np.array_equal(sample(x, rows, columns), x)
    assert np.array_equal(sample(x, -rows, columns), x)
    assert np.allclose(sample(x, rows + 0.5, columns)[0, 0, :-1], (x[0, 0, :-1] + x[0, 0, 1:]) / 2)


def test_documents_list_the_constants() -> None:
    """docs/corruptions.md has a row for each type with what the code says."""
    lines = (ROOT / "docs" / "corruptions.md").read_text(encoding="utf-8").splitlines()
    for name, kind in CORRUPTIONS.items():
        shown = "; ".join(", ".join(f"{value:g}" for value in row) for row in kind.constants)
        whose = "CIFAR-10-C" if kind.published else "here"
        assert f"| `{name}` | {kind.description} | {shown} | {whose} |" in lines


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with net.py and data.npz: 12 images, of which `make` gets ten right."""
    write_linear_task(tmp_path, 12)
    monkeypatch.chdir(tmp_path)
    return tmp_path


NET, DATA = "python:net.py:make", "npz:data.npz"


def measured(**options: Any) -> dict[str, Any]:
    """A small suite."""
    request = {"classifier": NET, "data": DATA, "types": ("gaussian_noise", "contrast"), "severities": (1, 5)}
    out = options.pop("out", Path("out"))
    return measure_corruptions(CorruptionRequest(**(request | options)), out=out)[0]


def test_suite_counts_and_is_verified(task: Path) -> None:
    """Each figure is the share of right answers on the images of that cell; each cell verifies, a tampered one not."""
    found = measured()
    net, (x, y) = make_linear(), robustgen.load_data(DATA).batch(range(12))
    assert found["clean"]["value"] == 10 / 12
    for cell in found["cells"]:
        noisy = corrupt(x, cell["type"], cell["severity"], ExampleRng.of(0, range(12)))
        assert cell["accuracy"]["value"] == float((net(noisy).argmax(1) == y).double().mean())
    assert found["mean"]["value"] == pytest.approx(np.mean([cell["accuracy"]["value"] for cell in found["cells"]]))
    assert found["mean"]["low"] < found["mean"]["value"] < found["mean"]["high"]
    assert json.loads((task / "out" / "corruptions.json").read_text()) == found
    verify = ["verify", "out/gaussian_noise-5", "--classifier", NET]
    assert _run(verify) == 0
    rows = (task / "out" / "gaussian_noise-5" / "examples.jsonl").read_text()
    edited = rows.replace('"label": 0', '"label": 1', 1)
    assert edited != rows
    (task / "out" / "gaussian_noise-5" / "examples.jsonl").write_text(edited)
    assert _run(verify) == 1


def test_suite_goes_on(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after two cells, the same call runs the others only; another request is refused in that folder."""
    real, ran = suite.run_job, []

    def stopping(job: Any, progress: Any) -> Any:
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(job.folder.name)
        return real(job, progress)

    monkeypatch.setattr(suite, "run_job", stopping)
    with pytest.raises(KeyboardInterrupt):
        measured()
    assert not (task / "out" / "corruptions.json").exists()
    stamp = (task / "out" / "clean" / "record.json").stat().st_mtime_ns
    monkeypatch.setattr(suite, "run_job", real)
    found = measured()
    assert len(found["cells"]) == 4
    assert (task / "out" / "clean" / "record.json").stat().st_mtime_ns == stamp
    with pytest.raises(robustgen.RobustgenError, match="seed"):
        measured(seed=1)


def test_mean_corruption_error(task: Path) -> None:
    """100 against itself; against another classifier the mean of ratios of summed errors, of the same cells only."""
    one, two = measured(), measured(classifier="python:net.py:other", out=Path("two"))
    assert mce(one, one) == pytest.approx(100)
    ratios = []
    for name in one["types"]:
        mine, theirs = (sum(1 - c["accuracy"]["value"] for c in t["cells"] if c["type"] == name) for t in (one, two))
        ratios.append(mine / theirs)
    assert mce(one, two) == pytest.approx(100 * np.mean(ratios))
    assert measured(baseline=Path("two"))["mce"] == pytest.approx(100 * np.mean(ratios))
    with pytest.raises(SpecError, match=r"was measured with types \['gaussian_noise', 'contrast'\], this is with"):
        measured(baseline=Path("two"), types=("contrast",), out=Path("three"))


def table(**errors: tuple[float, float]) -> dict[str, Any]:
    """A summary with these errors of severities 1 and 5, by type."""
    cells = [
        {"type": name, "severity": severity, "accuracy": {"value": 1 - error}}
        for name, pair in errors.items()
        for severity, error in zip((1, 5), pair, strict=True)
    ]
    return {"classifier": "a", "types": list(errors), "cells": cells} | dict.fromkeys(
        ("data", "ids", "n", "seed", "severities"), 0
    )


def test_mean_corruption_error_by_hand() -> None:
    """0.3 / 0.6 and 0.9 / 1.0 make 70 %, not the 75 % of all errors together; a type without errors is refused."""
    base = table(fog=(0.2, 0.4), snow=(0.3, 0.7))
    assert mce(table(fog=(0.1, 0.2), snow=(0.4, 0.5)), base) == pytest.approx(70)
    with pytest.raises(SpecError, match="a makes no error on snow: nothing to divide by"):
        mce(base, table(fog=(0.2, 0.4), snow=(0, 0)))


def test_command_prints_and_draws(task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row a type, a column a severity; a picture; the same command reads what is there; --json is one object."""
    typed = ["corruptions", NET, "--data", DATA, "--types", "fog,jpeg_compression", "--severities", "1,3", "-n", "5"]
    assert _run([*typed, "--out", "here"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == ["accuracy", "in", "%", "severity", "1", "severity", "3", "mean"]
    assert "jpeg_compression" in said
    with Image.open(task / "here" / "corruptions.png") as picture:
        assert picture.size == (130 + 3 * 100, 18 + 2 * 100)
        assert len(picture.getcolors(100_000) or []) > 20
    assert _run([*typed, "--out", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 5


def published(folder: Path, rows: int = 4) -> None:
    """Files as CIFAR-10-C has them: five severities of the same images, darker and darker."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    labels = make_linear((3, 32, 32), 10)(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", np.concatenate([pixels // k for k in range(1, 6)]))
    np.save(folder / "labels.npy", np.tile(labels, 5))
    (folder.parent / "cifar10").mkdir()
    np.savez(folder.parent / "cifar10" / "test.npz", image=pixels, label=labels)


def test_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of each severity, found in the folder or beneath it; `benchmark` gives clean accuracy and the mean."""
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "data" / "CIFAR-10-C")
    clean = np.load(tmp_path / "data" / "cifar10" / "test.npz")["image"]
    for place in (tmp_path / "data", tmp_path / "data" / "CIFAR-10-C"):
        held = load_data("cifar10-c:fog:3", data_dir=place)
        assert (len(held), held.classes) == (4, 10)
        assert np.array_equal(held.read(2), clean[2] // 3)
    net = make_linear((3, 32, 32), 10)
    request = CorruptionRequest(
        classifier=robustgen.load_classifier(net), data="cifar10-c", types=("fog", "snow"), data_dir=tmp_path / "data"
    )
    found, _ = measure_corruptions(request, out=tmp_path / "out")
    assert found["clean"] is None
    assert found["cells"][0]["accuracy"]["value"] == 1
    both = benchmark(net, 4, threat_model="corruptions", data_dir="data", to_disk=True, model_name="Mine")
    assert both == (1.0, pytest.approx(found["mean"]["value"]))
    info = json.loads((tmp_path / "model_info" / "cifar10" / "corruptions" / "Mine.json").read_text())
    assert (info["eps"], info["clean_acc"]) == (None, "100.00")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """A missing file says where to get it; one of another shape, or labels that are none, what was expected."""
    with pytest.raises(ArtifactError, match=r"no .*CIFAR-10-C/fog\.npy; get CIFAR-10-C\.tar from https://zenodo"):
        load_data("cifar10-c:fog:1", data_dir=tmp_path)
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.zeros(10, np.int64))
    np.save(folder / "fog.npy", np.zeros((9, 32, 32, 3), np.uint8))
    with pytest.raises(ArtifactError, match=r"expected \(5 n, 32, 32, 3\) uint8 .* got \(9, 32, 32, 3\)"):
        load_data("cifar10-c:fog:1", data_dir=tmp_path)
    (folder / "fog.npy").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="cannot be read as a plain array"):
        load_data("cifar10-c:fog:1", data_dir=tmp_path)
    np.save(folder / "fog.npy", np.zeros((10, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.full(10, 10))
    with pytest.raises(ArtifactError, match="labels are 0 to 9, got 10 to 10"):
        load_data("cifar10-c:fog:1", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (("--types", "fogg"), "unknown corruption 'fogg'; did you mean 'fog'"),
        (("--types", "fog,fog"), "--types must name one or more, each once, got fog, fog"),
        (("--severities", "6"), "a severity is 1 to 5, got 6"),
        (("--severities", "one"), "--severities must be numbers with commas"),
        (("--data", "corrupted:fog:1@fmnist-test-1k"), "is corrupted already"),
        (("--baseline", "none"), "--baseline: none cannot be read"),
        (("--data", "cifar10-c", "--data-dir", "."), "get CIFAR-10-C.tar from"),
    ],
)
def test_bad_requests(task: Path, capsys: pytest.CaptureFixture[str], typed: tuple[str, ...], says: str) -> None:
    """Exit code 2, a sentence, and no folder."""
    assert _run(["corruptions", NET, "--data", DATA, *typed]) == 2
    assert says in capsys.readouterr().err
    assert not (task / "runs").exists()


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("corrupted:fog@fmnist-test-1k", "must be corrupted:TYPE:SEVERITY@DATA"),
        ("corrupted:fog:0@fmnist-test-1k", "a severity is 1 to 5, got 0"),
        ("corrupted:fig:1@fmnist-test-1k", "did you mean 'fog'"),
        ("cifar10-c:fog", "must be cifar10-c:TYPE:SEVERITY"),
        ("corrupted:fog:1@nothing", "unknown data 'nothing'"),
    ],
)
def test_bad_names_of_data(spec: str, says: str) -> None:
    """Refused by `load_data`, with what to write."""
    with pytest.raises(SpecError, match=says):
        robustgen.load_data(spec)
