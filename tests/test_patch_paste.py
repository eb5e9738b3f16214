"""A patch into images: whole places, quarter turns and known homographies by index; gradients; the physical losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robustgen.errors import ArtifactError, SpecError
from robustgen.files import read_image
from robustgen.patch.camera import PrintAndCamera
from robustgen.patch.paste import blurred, homography, lit, paste, random_centres, through_jpeg
from robustgen.patch.physical import default_colours, load_colours, non_printability, total_variation
from robustgen.patch.shape import make_mask, parse_size
from robustgen.patch.transforms import Draws, Transforms
from robustgen.rng import ExampleRng

ALL = "rotation=30,scale=0.8:1.2,perspective=0.2,brightness=0.1,contrast=0.2,blur=0.8,noise=0.1,jpeg=50"


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1]."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def neutral(count: int) -> Draws:
    """Nothing happens."""
    return Transforms.none().draw(ExampleRng.of(0, range(count)), 0, torch.device("cpu"))


def middles(count: int, row: int, column: int, h: int, w: int) -> Tensor:
    """(count, 2) for an upper left pixel."""
    return torch.tensor([[column + w / 2, row + h / 2]]).expand(count, 2)


def test_a_whole_place_is_a_copy() -> None:
    """Without transformations the patch is copied pixel by pixel, where the mask is, and nothing else moves."""
    x, patch, mask = rand(3, 3, 9, 11), rand(3, 4, 3, seed=1), make_mask("circle", (4, 3))
    for row, column in ((0, 0), (5, 8), (2, 3)):
        out = paste(x, lit(patch, neutral(3)), mask, middles(3, row, column, 4, 3), neutral(3))
        expected = x.clone()
        window = expected[:, :, row : row + 4, column : column + 3]
        window[:] = torch.where(mask > 0, patch, window)
        torch.testing.assert_close(expected, out, atol=1e-5, rtol=0)
        untouched = torch.ones(9, 11, dtype=torch.bool)
        untouched[row : row + 4, column : column + 3] = mask[0] == 0
        assert torch.equal(x[:, :, untouched], out[:, :, untouched])


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_quarter_turns_are_those_of_an_array(turns: int) -> None:
    """Counter-clockwise as seen, as torch.rot90 turns."""
    x, patch = torch.zeros(1, 1, 8, 8), rand(1, 4, 4)
    draws = replace(neutral(1), angle=torch.tensor([90.0 * turns]))
    out = paste(x, lit(patch, draws), torch.ones(1, 4, 4), middles(1, 2, 3, 4, 4), draws)
    torch.testing.assert_close(patch.rot90(turns, (1, 2)), out[0, :, 2:6, 3:7], atol=1e-4, rtol=0)


def test_scale_is_of_the_side() -> None:
    """Twice as large a white patch covers twice the rows and columns; half as large a quarter of the area."""
    for scale, side in ((2.0, 8), (0.5, 2)):
        draws = replace(neutral(1), scale=torch.tensor([scale]))
        out = paste(
            torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 4, 4), torch.ones(1, 4, 4), middles(1, 4, 4, 4, 4), draws
        )
        low = 6 - side // 2
        assert 1.0 == float(out[0, 0, low + 1 : low + side - 1, low + 1 : low + side - 1].amin() if side > 2 else 1.0)
        assert side**2 == pytest.approx(float(out.sum()), abs=0.15 * side**2)
        assert 0.0 == float(out[0, 0, : low - 1].sum() + out[0, 0, :, low + side + 1 :].sum())


def test_homography_takes_corners_where_they_go() -> None:
    """The four corners, and a point of each edge, which stays on the edge; no movement is the identity."""
    corners = 0.4 * (2 * rand(5, 4, 2) - 1)
    maps = homography(corners)
    square = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    moved = torch.cat([square, torch.ones(4, 1)], 1) @ maps.transpose(1, 2)
    torch.testing.assert_close(square + corners, moved[..., :2] / moved[..., 2:], atol=1e-5, rtol=0)
    middle = torch.tensor([0.3, -1.0, 1.0]) @ maps.transpose(1, 2)
    middle = middle[:, :2] / middle[:, 2:]
    a, b = (square + corners)[:, 0], (square + corners)[:, 1]
    cross = (b - a)[:, 0] * (middle - a)[:, 1] - (b - a)[:, 1] * (middle - a)[:, 0]
    torch.testing.assert_close(torch.zeros(5), cross, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.eye(3).expand(2, 3, 3), homography(torch.zeros(2, 4, 2)), atol=1e-6, rtol=0)


def test_perspective_moves_the_patch_by_its_homography() -> None:
    """A corner drawn outwards is covered out there; one drawn inwards is not covered any more."""
    draws, far = neutral(2), torch.zeros(2, 4, 2)
    far[0, 2], far[1, 2] = torch.tensor([0.4, 0.4]), torch.tensor([-0.4, -0.4])  # the lower right one
    out = paste(torch.zeros(2, 1, 20, 20), torch.ones(2, 1, 10, 10), torch.ones(1, 10, 10), middles(2, 5, 5, 10, 10),
                replace(draws, corners=far))  # fmt: skip
    assert 1.0 == float(out[0, 0, 15, 15])
    assert 0.0 == float(out[1, 0, 14, 14])
    assert 1.0 == float(out[1, 0, 6, 6])


def test_gradients_are_those_of_differences() -> None:
    """In float64 through lighting, homography and blur; and a straight-through one of JPEG is as without it."""
    transforms = Transforms.parse("rotation=30,scale=0.8:1.2,perspective=0.2,brightness=0.05,contrast=0.1,blur=0.8")
    rng = ExampleRng.of(0, range(2))
    draws = transforms.draw(rng, 0, torch.device("cpu"))
    draws = Draws(**{k: v.double() if v.is_floating_point() else v for k, v in _fields(draws).items()})
    patch = (0.3 + 0.4 * rand(1, 3, 3)).double().requires_grad_()
    centres = middles(2, 2, 2, 3, 3).double()
    x, mask = rand(2, 1, 7, 7).double(), torch.ones(1, 3, 3).double()
    assert torch.autograd.gradcheck(lambda p: paste(x, lit(p, draws), mask, centres, draws), patch)
    jpeg = replace(draws, quality=torch.tensor([30, 90]))
    grads = [
        torch.autograd.grad((paste(x, lit(patch, d), mask, centres, d) * x).sum(), patch)[0] for d in (draws, jpeg)
    ]
    torch.testing.assert_close(*grads)


def _fields(draws: Draws) -> dict[str, Tensor]:
    return {name: getattr(draws, name) for name in Draws.__dataclass_fields__}


@pytest.mark.parametrize("moved", [False, True])
def test_black_and_white_pixels_have_a_gradient(moved: bool) -> None:
    """A patch of nothing but 0 and 1 can leave them; what lies beyond has none, and all stays in [0, 1]."""
    patch = (rand(1, 4, 4) > 0.5).float().requires_grad_()
    draws = replace(neutral(2), angle=torch.tensor([90.0, 0.0])) if moved else neutral(2)
    out = paste(torch.zeros(2, 1, 8, 8), lit(patch, draws), torch.ones(1, 4, 4), middles(2, 2, 3, 4, 4), draws)
    assert out.min() >= 0
    assert out.max() <= 1
    (grad,) = torch.autograd.grad(out.sum(), patch)
    torch.testing.assert_close(grad, torch.full_like(grad, 2.0), atol=1e-3, rtol=0)
    bright = replace(neutral(1), brightness=torch.tensor([0.3]))
    (grad,) = torch.autograd.grad(lit(patch, bright).sum(), patch)
    assert torch.equal(grad[0], (patch[0] == 0).float())


def test_draws_belong_to_image_and_step() -> None:
    """The same whatever the batch; others at another step; each inside its range, and spread over it."""
    transforms, cpu = Transforms.parse(ALL), torch.device("cpu")
    many = transforms.draw(ExampleRng.of(3, range(400)), 7, cpu)
    few = transforms.draw(ExampleRng.of(3, [5, 399]), 7, cpu)
    other = transforms.draw(ExampleRng.of(3, [5, 399]), 8, cpu)
    for name, values in _fields(many).items():
        assert torch.equal(values[[5, 399]], getattr(few, name))
        assert not torch.equal(getattr(other, name), getattr(few, name))
    limits = {
        "angle": (-30, 30), "scale": (0.8, 1.2), "corners": (-0.2, 0.2), "brightness": (-0.1, 0.1),
        "contrast": (0.8, 1.2), "blur": (0, 0.8), "noise": (0, 0.1), "quality": (50, 95), "place": (0, 1),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        values = getattr(many, name).double()
        assert low - 1e-6 <= float(values.min()) < low + 0.1 * (high - low)
        assert high - 0.1 * (high - low) < float(values.max()) <= high + 1e-6
    places = random_centres(many.place, (3, 4), (5, 9)) - torch.tensor([2.0, 1.5])
    assert {(r, c) for r in range(3) for c in range(6)} == {(int(y), int(x)) for x, y in places.tolist()}


def test_lighting_noise_and_blur() -> None:
    """Contrast about grey, then brightness, clipped; noise of the deviation drawn; a blur keeps a constant image."""
    patch = torch.full((1, 40, 40), 0.7)
    draws = replace(neutral(1), contrast=torch.tensor([1.5]), brightness=torch.tensor([-0.2]))
    torch.testing.assert_close(torch.full((1, 1, 40, 40), 0.6), lit(patch, draws))
    noisy = lit(patch, replace(neutral(1), noise=torch.tensor([0.05])), ExampleRng.of(0, [0]))
    assert 0.05 == pytest.approx(float((noisy - 0.7).std()), rel=0.1)
    torch.testing.assert_close(
        torch.full((2, 3, 6, 6), 0.4), blurred(torch.full((2, 3, 6, 6), 0.4), torch.tensor([1.0, 0.2]))
    )
    dot = torch.zeros(1, 1, 13, 13)
    dot[0, 0, 6, 6] = 1
    spread = blurred(dot, torch.tensor([1.2]))[0, 0]
    offsets = torch.arange(13) - 6.0
    assert 1.2**2 == pytest.approx(float((spread.sum(0) * offsets.square()).sum()), rel=0.05)
    assert torch.equal(rand(2, 1, 8, 8), through_jpeg(rand(2, 1, 8, 8), torch.tensor([0, 0])))


def test_physical_losses_in_closed_form() -> None:
    """A ramp's total variation is its slope; printed colours cost nothing, others their distance; outside nothing."""
    ramp, full = torch.arange(5).float().expand(1, 5, 5) * 0.1, torch.ones(1, 5, 5)
    assert 0.1 * 20 / 25 == pytest.approx(float(total_variation(ramp, full)), abs=1e-3)
    only = torch.zeros(1, 5, 5)
    only[0, 2, 1:3] = 1
    assert 0.05 == pytest.approx(float(total_variation(ramp, only)), abs=1e-3)
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    patch = torch.tensor([0.0, 0.3, 0.4]).reshape(3, 1, 1).expand(3, 2, 2).clone()
    assert 0.5 == pytest.approx(float(non_printability(patch, torch.ones(1, 2, 2), colours)), abs=1e-4)
    patch[:, 0] = torch.tensor([1.0, 0.0, 0.0])[:, None]
    assert 0.25 == pytest.approx(float(non_printability(patch, torch.ones(1, 2, 2), colours)), abs=1e-3)
    assert (30, 3) == default_colours().shape
    assert 30 == len(default_colours().unique(dim=0))


def test_colours_from_a_file(tmp_path: Path) -> None:
    """Commas, comments and grey; a colour beyond 255, a line that is none, an empty file: one sentence."""
    path = tmp_path / "colours.txt"
    path.write_text("# a printer\n255, 0,0\n0 51 0  # green\n")
    torch.testing.assert_close(torch.tensor([[1.0, 0, 0], [0, 0.2, 0]]), load_colours(path, 3))
    torch.testing.assert_close(torch.tensor([[0.299], [0.1174]]), load_colours(path, 1))
    for text, says in (("1 2 3\n0 0 256\n", "line 2: colours go from 0 to 255"), ("1 2\n", "line 1: expected three"),
                       ("red\n", "expected three"), ("#\n", "holds no colour")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(SpecError, match=says):
            load_colours(path, 3)
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_colours(tmp_path / "none.txt", 3)


def test_masks(tmp_path: Path) -> None:
    """A circle has the area of one; an image's bright half is the patch; a dark one is refused."""
    from PIL import Image

    assert 0.785 == pytest.approx(float(make_mask("circle", (40, 40)).mean()), abs=0.01)
    half = torch.zeros(20, 20, dtype=torch.uint8)
    half[:, 10:] = 255
    Image.fromarray(half.numpy()).save(tmp_path / "half.png")
    assert torch.equal(
        torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 6, 4), make_mask(str(tmp_path / "half.png"), (6, 4))
    )
    Image.fromarray((half * 0).numpy()).save(tmp_path / "dark.png")
    (tmp_path / "text.png").write_text("no image")
    for name, says in (
        ("dark.png", "the patch would be empty"),
        ("none.png", "no such file"),
        ("text.png", "as an image"),
    ):
        with pytest.raises((SpecError, ArtifactError), match=says):
            make_mask(str(tmp_path / name), (4, 4))
    assert ((8, 8), (6, 10)) == (parse_size("8"), parse_size("6x10"))
    for text in ("0", "8x", "a", "-3", "8x0"):
        with pytest.raises(SpecError, match="--size must be a side in pixels"):
            parse_size(text)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of more pixels than Pillow thinks sane is an error in words, before it is decoded."""
    from PIL import Image

    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    for limit in (1000, 500):  # Pillow warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ArtifactError, match="cannot be read as an image"):
            read_image(tmp_path / "bomb.png", 1)


@pytest.mark.parametrize("text", ["none", "default", ALL, "rotation=5", "scale=1.5", "jpeg=20,blur=1"])
def test_transforms_round_trip(text: str) -> None:
    """What is printed reads back as the same."""
    assert Transforms.parse(text) == Transforms.parse(str(Transforms.parse(text)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rotate=5", "did you mean 'rotation'"), ("rotation=far", "rotation must be a number"),
        ("rotation=200", "degrees from 0 to 180"), ("scale=1.2:0.8", "runs backwards"), ("scale=a", "LOW:HIGH"),
        ("scale=0:1", "number above 0"), ("jpeg=3.5", "a quality such as 60"), ("jpeg=99", "1 to 95"),
        ("perspective=0.5", r"\[0, 0.5\)"), ("noise=-1", ">= 0"), ("blur=nan", ">= 0"), ("", "unknown transformation"),
    ],
)  # fmt: skip
def test_bad_transforms_say_what_to_type(text: str, says: str) -> None:
    """One sentence each."""
    with pytest.raises(SpecError, match=says):
        Transforms.parse(text)


def test_print_and_camera() -> None:
    """Tones between ink and paper, in order; photographs within [0, 1], the same for the same stream in any batch."""
    camera, tones = PrintAndCamera(), torch.linspace(0, 1, 9)
    printed = camera.printed(tones)
    assert (0.08, 0.92) == (pytest.approx(float(printed[0])), pytest.approx(float(printed[-1])))
    assert (printed.diff() > 0).all()
    x = rand(4, 3, 16, 16)
    seen = camera.photographed(x, ExampleRng.of(0, range(4)))
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
    torch.testing.assert_close(seen[2:3], camera.photographed(x[2:3], ExampleRng.of(0, [2])), atol=1e-5, rtol=0)
    assert not torch.allclose(seen, camera.photographed(x, ExampleRng.of(1, range(4))), atol=0.02)
    assert "simulation" in camera.to_json()["kind"]
    with pytest.raises(SpecError, match="camera: quality must be 1 to 100"):
        PrintAndCamera(quality=0)
