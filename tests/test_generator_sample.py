"""Drawing images into files: one image a (seed, i), resumed after a kill, shared by ranks, with its provenance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustgen.data import load_data
from robustgen.durable import FolderLock
from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.generator import sample as sample_module
from robustgen.generator.analytic import GaussianDenoiser, MixtureDenoiser
from robustgen.generator.denoiser import to_uint8
from robustgen.generator.draw import draw
from robustgen.generator.edit import inpaint, interpolate, slerp
from robustgen.generator.edit_files import parse_box
from robustgen.generator.load import Generator
from robustgen.generator.sample import SampleSpec, sample_to_file
from robustgen.generator.samplers import Heun, parse_sampler
from robustgen.ranks import Ranks
from tests.generator_helpers import make_ddpm, make_edm

HEUN = "heun:steps=3"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four images."""
    monkeypatch.setattr(sample_module, "BLOCK", 4)


def generator(classes: int = 3, shape: tuple[int, int, int] = (1, 4, 4)) -> Generator:
    """A random network."""
    return Generator(
        name="/some/where/g", denoiser=make_edm(classes, shape), sha256="a" * 64, card=None, precision="float32"
    )


def make(out: Path, n: int = 10, ranks: Ranks | None = None, **spec: Any) -> Path:
    """A file of n images."""
    return sample_to_file(generator(), parse_sampler(HEUN), SampleSpec(n=n, **spec), out, batch_size=3, ranks=ranks)


def arrays(path: Path) -> dict[str, Any]:
    """What a file holds."""
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def test_layout_and_provenance(tmp_path: Path) -> None:
    """uint8 NHWC, classes in turn, and a JSON text that says where the images come from; `load_data` reads it."""
    held = arrays(make(tmp_path / "x.npz", seed=5))
    assert held["image"].shape == (10, 4, 4, 1)
    assert held["image"].dtype == np.uint8
    assert held["label"].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    provenance = json.loads(str(held["provenance"]))
    assert provenance["generator"] == "g"  # and no path of this machine
    assert provenance["weights_sha256"] == "a" * 64
    assert provenance["sampler"]["steps"] == 3
    assert provenance["seed"] == 5
    assert provenance["command"] == f"robustgen generator sample g --n 10 --sampler {HEUN} --seed 5"
    assert len(load_data(f"npz:{tmp_path / 'x.npz'}")) == 10
    assert not (tmp_path / "x.npz.part").exists()


def test_each_image_is_what_draw_gives_for_its_id(tmp_path: Path) -> None:
    """Whatever the blocks and batches."""
    held = arrays(make(tmp_path / "x.npz", seed=2))
    x = draw(make_edm(), Heun(steps=3), [7, 3], torch.tensor([1, 0]), seed=2)
    assert np.abs(held["image"][[7, 3]].astype(int) - to_uint8(x).numpy()).max() <= 1


@pytest.mark.parametrize("crash", [1, 2])
def test_a_crash_loses_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    """What was drawn before is not drawn again, and the file is the same as without the crash."""
    whole = arrays(make(tmp_path / "whole.npz"))
    drawn, true_draw = list[int](), sample_module.draw

    def crashing(denoiser: Any, sampler: Any, ids: list[int], *rest: Any, **more: Any) -> Any:
        if len(drawn) == crash:
            raise KeyboardInterrupt
        drawn.append(ids[0])
        return true_draw(denoiser, sampler, ids, *rest, **more)

    monkeypatch.setattr(sample_module, "draw", crashing)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "x.npz")
    first = drawn.copy()
    drawn.clear()
    monkeypatch.setattr(
        sample_module, "draw", lambda d, s, ids, *r, **m: (drawn.append(ids[0]), true_draw(d, s, ids, *r, **m))[1]
    )
    held = arrays(make(tmp_path / "x.npz"))
    assert len(first) == crash
    assert sorted(first + drawn) == [0, 4, 8]
    assert all(np.array_equal(held[key], whole[key]) for key in whole)


def test_a_line_cut_by_a_crash_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's last line without its end is a block that is drawn again."""
    monkeypatch.setattr(sample_module, "_pack", lambda *_: None)
    make(tmp_path / "x.npz")
    folder = tmp_path / "x.npz.part"
    (folder / "done-0").write_text("0\n1\n2", encoding="ascii")
    assert sample_module._Parts(folder, 10).finished() == {0, 1}


def test_ranks_share_the_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1 of 2 draws block 1 only; rank 0 then draws the others, and the file is that of one process."""
    whole = arrays(make(tmp_path / "whole.npz"))
    monkeypatch.setattr(Ranks, "gather", lambda self, value: [value])
    with pytest.raises(RobustgenError):
        make(tmp_path / "x.npz", ranks=Ranks(1, 2))  # only rank 0 makes the folder
    monkeypatch.setattr(sample_module, "_pack", lambda *_: None)
    make(tmp_path / "x.npz", ranks=Ranks(0, 2))
    make(tmp_path / "x.npz", ranks=Ranks(1, 2))
    assert (tmp_path / "x.npz.part" / "done-1").read_text() == "1\n"
    monkeypatch.undo()
    monkeypatch.setattr(sample_module, "BLOCK", 4)
    held = arrays(make(tmp_path / "x.npz"))
    assert all(np.array_equal(held[key], whole[key]) for key in whole)


def test_another_request_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished file is not overwritten, and an unfinished one belongs to its request."""
    make(tmp_path / "x.npz")
    with pytest.raises(RecordError, match=r"x.npz exists; name another file"):
        make(tmp_path / "x.npz")
    monkeypatch.setattr(sample_module, "_pack", lambda *_: None)
    make(tmp_path / "y.npz")
    with pytest.raises(RecordError, match="seed: 1 here, 0 there"):
        make(tmp_path / "y.npz", seed=1)


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    """While one process draws, another one on the same file is told so, and the first one's lock stays."""
    (tmp_path / "x.npz.part").mkdir()
    lock = FolderLock(tmp_path / "x.npz.part")
    with pytest.raises(SpecError, match="is being written by another process"):
        make(tmp_path / "x.npz")
    lock.release()
    make(tmp_path / "x.npz")
    assert not (tmp_path / "x.npz.part").exists()


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was drawn is kept."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_module, "_pack", full)
    with pytest.raises(RobustgenError, match=r"no space left .* what was written is kept"):
        make(tmp_path / "x.npz")


def test_one_class_guided(tmp_path: Path) -> None:
    """All images of one class, under guidance, differ from those without."""
    held = arrays(make(tmp_path / "x.npz", label=2, guidance=3.0))
    plain = arrays(make(tmp_path / "y.npz", label=2))
    assert set(held["label"].tolist()) == {2}
    assert not np.array_equal(held["image"], plain["image"])


def test_a_generator_without_classes_labels_minus_one(tmp_path: Path) -> None:
    """And works in colour, on rectangles, from a discrete schedule."""
    one = Generator(name="g", denoiser=make_ddpm(shape=(3, 4, 6)), sha256="a" * 64, card=None, precision="float32")
    path = sample_to_file(one, parse_sampler("ancestral:steps=5"), SampleSpec(n=5), tmp_path / "x.npz")
    held = arrays(path)
    assert held["image"].shape == (5, 4, 6, 3)
    assert held["label"].tolist() == [-1] * 5


@pytest.mark.parametrize(
    ("spec", "name", "message"),
    [
        ({"n": 0}, "x.npz", "--n must be >= 1"),
        ({"label": 3}, "x.npz", "classes 0 to 2"),
        ({"label": -1}, "x.npz", "--class -1"),
        ({}, "x.npy", "must end in .npz"),
    ],
)
def test_impossible_requests_are_refused(tmp_path: Path, spec: dict[str, Any], name: str, message: str) -> None:
    """Before any work, and nothing is left on the disk."""
    with pytest.raises(SpecError, match=message):
        make(tmp_path / name, **spec)
    assert list(tmp_path.iterdir()) == []


def test_inpainting_keeps_what_is_kept() -> None:
    """Outside the box the image is exactly the given one; inside it changes, and depends on the row's id alone."""
    denoiser, x = make_edm(), torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    keep = parse_box("0:2,0:4", 4, 4)
    label = torch.tensor([0, 1, 2])
    filled = inpaint(denoiser, Heun(steps=4), x, keep, label, seed=1)
    assert torch.equal(filled[:, :, 2:], x[:, :, 2:])
    assert float((filled[:, :, :2] - x[:, :, :2]).abs().min()) > 0
    alone = inpaint(denoiser, Heun(steps=4), x[2:], keep, label[2:], seed=1, ids=[2])
    torch.testing.assert_close(alone, filled[2:], rtol=0, atol=1e-6)


def test_inpainting_shows_the_kept_region_at_each_level_of_noise() -> None:
    """What the denoiser is asked about is the given image plus noise of that level, also where it is kept."""
    denoiser, asked = GaussianDenoiser(torch.zeros(1, 20, 20), 0.5), list[tuple[float, torch.Tensor]]()
    true = denoiser._denoise

    def recording(x: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor | None) -> torch.Tensor:
        asked.append((float(sigma[0]), x))
        return true(x, sigma, label)

    denoiser._denoise = recording  # type: ignore[method-assign]
    x = torch.full((4, 1, 20, 20), 0.5)
    inpaint(denoiser, Heun(steps=6), x, parse_box("0:10,0:20", 20, 20), rounds=2)
    assert len(asked) > 6
    for sigma, state in asked[1:]:
        assert float((state - 0.5)[:, :, 10:].std()) == pytest.approx(sigma, rel=0.1)


def test_inpainting_follows_the_data() -> None:
    """Points that agree on the kept half decide the other half: the mixture's own completion comes out."""
    points = torch.tensor([[0.9, -0.9], [-0.9, 0.9]]).reshape(2, 1, 1, 2)
    x = torch.tensor([[0.9, 0.0], [-0.9, 0.0]]).reshape(2, 1, 1, 2)
    keep = parse_box("0:1,1:2", 1, 2)
    filled = inpaint(MixtureDenoiser(points), Heun(steps=12), x, keep, rounds=6)
    torch.testing.assert_close(filled, points, rtol=0, atol=0.05)


def test_interpolation_ends_where_draw_does() -> None:
    """Its ends are the images of their ids, and noises in between keep their norm."""
    denoiser = make_edm()
    x = interpolate(denoiser, Heun(steps=4), 3, 8, 5, 1, seed=2)
    ends = draw(denoiser, Heun(steps=4), [3, 8], torch.tensor([1, 1]), seed=2)
    torch.testing.assert_close(x[[0, -1]], ends, rtol=0, atol=1e-5)
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    norms = slerp(a, b, torch.linspace(0, 1, 7, dtype=torch.float64)).norm(dim=1)
    assert float(norms.min()) > 0.9 * float(torch.minimum(a.norm(), b.norm()))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.5], dtype=torch.float64))[0], a)


def test_impossible_edits_are_refused() -> None:
    """A mask of another size, no rounds, too few images, an impossible box."""
    x = torch.zeros(2, 1, 4, 4)
    for call, message in (
        (lambda: inpaint(make_edm(), Heun(), x, torch.ones(1, 1, 3, 4)), "the mask must be"),
        (lambda: inpaint(make_edm(), Heun(), x, torch.ones(1, 1, 4, 4), rounds=0), "rounds must be >= 1"),
        (lambda: interpolate(make_edm(), Heun(), 0, 1, 1), "two images or more"),
        (lambda: parse_box("0-3,0-3", 4, 4), "top:bottom,left:right"),
        (lambda: parse_box("0:5,0:3", 4, 4), "inside 4 x 4 pixels"),
        (lambda: parse_box("2:2,0:3", 4, 4), "inside 4 x 4 pixels"),
    ):
        with pytest.raises(SpecError, match=message):
            call()
