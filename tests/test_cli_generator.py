"""`robustgen generator` from the command line: a tiny training, its samples, its pictures, and bad requests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robustgen.cli import _run
from tests.generator_helpers import write_images

TOML = """
name = "tiny"
description = "A generator for tests."
[data]
name = "npz:{data}"
validation = 8
[network]
channels = [8, 8]
head = 8
groups = 4
[objective]
kind = "edm"
[training]
images = 64
batch_size = 8
lr = 1e-3
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    code = _run(["generator", *map(str, arguments)])
    text = capsys.readouterr()
    return code, text.out, text.err


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generator trained by the command line, in a second."""
    folder = tmp_path_factory.mktemp("generator")
    data = write_images(folder)
    (folder / "tiny.toml").write_text(TOML.format(data=data), encoding="utf-8")
    assert _run(["generator", "train", str(folder / "tiny.toml"), "--out", str(folder / "out")]) == 0
    return folder / "out" / "tiny.json"


def test_train_says_what_comes_next(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Typed again, a finished training writes its files again and prints how to draw from it."""
    code, out, _ = run(capsys, "train", card.parent.parent / "tiny.toml", "--out", card.parent)
    assert code == 0
    assert f"robustgen generator sample {card}" in out


def test_sample_writes_a_file_and_a_picture(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The npz and the PNG that were asked for; a second time the file is refused."""
    command = ("sample", card, "--n", 12, "--out", tmp_path / "x.npz", "--grid", tmp_path / "x.png")
    code, out, _ = run(capsys, *command, "--sampler", "heun:steps=3")
    assert code == 0
    assert str(tmp_path / "x.npz") in out
    with np.load(tmp_path / "x.npz") as file:
        assert file["image"].shape == (12, 8, 8, 1)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    code, _, err = run(capsys, *command)
    assert code == 2
    assert "exists; name another file" in err


def test_info_prints_costs(card: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights, MFLOPs and images a second of a card; a recipe without its speed, at the size of the paper's network."""
    code, out, _ = run(capsys, "info", card, "edm-cifar10", "--json")
    assert code == 0
    tiny, paper = json.loads(out)
    assert tiny["images_per_second"] > 0
    assert tiny["weights"] > 100
    assert 45e6 < paper["weights"] < 70e6
    assert paper["images_per_second"] is None
    assert paper["mflops"] > 5_000


def test_info_of_the_bundled_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Without arguments everything that comes with robustgen is listed."""
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert all(name in out for name in ("fmnist-edm", "fmnist-ddpm", "edm-cifar10"))


def test_pictures_of_edits(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Inpainting takes images from a file; interpolation draws a row a class."""
    data = f"npz:{card.parent.parent / 'bars.npz'}"
    code, _, _ = run(
        capsys, "inpaint", card, "--image", data, "--ids", "0-3", "--box", "0:4,0:8", "--out", tmp_path / "i.png",
        "--sampler", "heun:steps=3",
    )  # fmt: skip
    assert code == 0
    code, _, _ = run(
        capsys, "interpolate", card, "--count", 4, "--out", tmp_path / "w.png", "--sampler", "heun:steps=3"
    )
    assert code == 0
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("i.png", "w.png"))


def test_judge_prints_figures_beside_their_floors(
    card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Distances named after the network, copies found and left out of the second file, JSON on request."""
    bars = card.parent.parent / "bars.npz"
    with np.load(bars) as file:
        image, label = file["image"], file["label"]
    generated = tmp_path / "x.npz"  # 40 images, of which the last ten repeat the first ten
    images = np.concatenate([255 - image[:30], 255 - image[:10]])
    np.savez(generated, image=images, label=np.concatenate([label[:30], label[:10]]))
    (tmp_path / "net.py").write_text(
        "from tests.helpers import make_convnet\n\n\ndef make():\n    return make_convnet()\n"
    )
    command = ("judge", generated, "--against", f"npz:{bars}", "--features", f"python:{tmp_path / 'net.py'}:make")
    code, out, err = run(
        capsys, *command, "--without-duplicates", tmp_path / "y.npz", "--pairs", tmp_path / "p.png", "--n", 30
    )
    assert (code, err.count("error")) == (0, 0)
    assert "FID" not in out
    assert "FD(" in out
    with np.load(tmp_path / "y.npz") as file:
        assert len(file["image"]) <= 30
    assert (tmp_path / "p.png").is_file()
    code, out, _ = run(capsys, *command, "--json")
    assert code == 0
    assert json.loads(out)["exact_duplicates"] >= 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample fmnist-emd", "unknown generator 'fmnist-emd'"),
        ("sample CARD --n 0", "--n must be >= 1"),
        ("sample CARD --class 2 --out x.npz", "has the classes 0 to 1"),
        ("sample CARD --sampler huen", "did you mean 'heun'"),
        ("sample CARD --batch-size 0", "--batch-size must be >= 1"),
        ("sample CARD --out x.png", "must end in .npz"),
        ("sample CARD --precision half", "--precision must be"),
        ("sample CARD --device tpu", "--device must be"),
        ("sample CARD --seed -1 --out x.npz", "seed must be an integer from 0"),
        ("train edm-cifar", "did you mean 'edm-cifar10'"),
        ("train none.toml", "there is no such file"),
        ("train fmnist-edm --budget soon", "a duration reads like"),
        ("info nothing", "unknown generator 'nothing'"),
        ("inpaint CARD --ids 0-3", "this generator makes"),
        ("inpaint CARD --image npz:BARS --box 0:9,0:8", "inside 8 x 8 pixels"),
        ("inpaint CARD --image npz:BARS --ids 99", "example 99 does not exist"),
        ("inpaint CARD --image npz:BARS --rounds 0 --box 0:4,0:8", "rounds must be >= 1"),
        ("interpolate CARD --count 1", "two images or more"),
        ("interpolate CARD --class 7", "classes 0 to 1"),
        ("import-edm none.pkl", "no such file"),
        ("judge none.npz", "no such file"),
        ("judge BARS --against npz:BARS", "name one with --features"),
        ("judge BARS --without-duplicates BARS", "exists; name another file"),
        ("judge BARS --pairs x.jpg", "must end in .png"),
    ],
)
def test_bad_requests_are_one_sentence(
    card: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    message: str,
) -> None:
    """Exit 2, one line, no traceback, nothing left on the disk."""
    monkeypatch.chdir(tmp_path)
    typed = command.replace("CARD", str(card)).replace("BARS", str(card.parent.parent / "bars.npz"))
    code, out, err = run(capsys, *typed.split())
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []
