from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustgen.data import load_data
from robustgen.errors import ArtifactError, SpecError
from robustgen.files import impatient

RGB = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)


def write_images(root: Path, images: dict[str, np.ndarray]) -> Path:
    """The root, after writing arrays (H, W) or (H, W, 3) uint8 as image files below it."""
    for name, image in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name)
    return root


def test_folder_is_sorted_by_class_and_name(tmp_path: Path) -> None:
    """Classes are the sub-folders in order; other files and hidden folders are passed over."""
    root = write_images(
        tmp_path, {"dog/b.png": RGB[0], "cat/z.png": RGB[1], "dog/a.PNG": RGB[2], "cat/x/y.bmp": RGB[3]}
    )
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / ".cache").mkdir()
    data = load_data(f"folder:{root}")
    assert (data.class_names, data.shape, data.labels.tolist()) == (("cat", "dog"), (3, 5, 6), [0, 0, 1, 1])
    assert all((data.read(k) == RGB[image]).all() for k, image in enumerate((3, 1, 2, 0)))
    assert data.batch([0, 3])[0].shape == (2, 3, 5, 6)


def test_grey_images_keep_one_channel(tmp_path: Path) -> None:
    """Only when all files are grey; one in colour makes all of them RGB."""
    root = write_images(tmp_path, {"a/0.png": RGB[0, ..., 0], "b/0.png": RGB[1, ..., 0]})
    assert load_data(f"folder:{root}").shape == (1, 5, 6)
    assert (load_data(f"folder:{root}").read(1)[..., 0] == RGB[1, ..., 0]).all()
    write_images(root, {"b/1.png": RGB[2]})
    data = load_data(f"folder:{root}")
    assert data.shape == (3, 5, 6)
    assert (data.read(0) == RGB[0, ..., :1]).all()


def test_images_are_read_only_when_needed(tmp_path: Path) -> None:
    """A file that cannot be decoded fails when it is read, and not before."""
    root = write_images(tmp_path, {"a/0.png": RGB[0], "a/1.png": RGB[1]})
    content = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_bytes(content[:-30])
    data = load_data(f"folder:{root}")
    assert (data.read(0) == RGB[0]).all()
    with pytest.raises(ArtifactError, match=r"1\.png: cannot be read as an image"):
        data.read(1)


def test_wrong_folders(tmp_path: Path) -> None:
    """A missing folder, one without classes, and a class without images are refused."""
    with pytest.raises(ArtifactError, match=r"folder:.*none: there is no such folder"):
        load_data(f"folder:{tmp_path / 'none'}")
    with pytest.raises(SpecError, match="expected one sub-folder a class, found none"):
        load_data(f"folder:{tmp_path}")
    write_images(tmp_path, {"a/0.png": RGB[0]})
    (tmp_path / "b").mkdir()
    with pytest.raises(SpecError, match="the class 'b' has no images; remove the sub-folder"):
        load_data(f"folder:{tmp_path}")


def test_wrong_images(tmp_path: Path) -> None:
    """Another size, another depth and a file that is no image are named."""
    root = write_images(tmp_path, {"a/0.png": RGB[0], "a/1.png": RGB[1, :4]})
    with pytest.raises(SpecError, match=r"1\.png has 6 x 4 pixels, .*0\.png has 6 x 5: all images must share one size"):
        load_data(f"folder:{root}")
    write_images(root, {"a/1.png": RGB[1, ..., 0].astype(np.uint16) * 256})
    with pytest.raises(SpecError, match=r"1\.png has more than 8 bits a pixel \(mode I;16\)"):
        load_data(f"folder:{root}")
    (root / "a" / "1.png").write_text("not an image")
    with pytest.raises(ArtifactError, match=r"1\.png: cannot be read as an image"):
        load_data(f"folder:{root}")


def test_patience_is_restored() -> None:
    """The timeout of sockets holds inside the block only."""
    before = socket.getdefaulttimeout()
    with impatient():
        assert socket.getdefaulttimeout() == 10.0
    assert socket.getdefaulttimeout() == before
