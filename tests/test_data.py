from __future__ import annotations

import gzip
import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from robustgen.data import DATA, load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.errors import ArtifactError, SpecError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 1, 0, 2])


def npz(path: Path, **arrays: Any) -> Path:
    """The path, after writing image and label there, some of them changed; None leaves an array out."""
    content = {"image": IMAGES, "label": LABELS, **arrays}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{key: value for key, value in content.items() if value is not None})
    return path


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the idx format, written from its description."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def test_embedded_images_are_the_published_ones() -> None:
    """Hash, class counts and first labels of the first 1,000 test images of Fashion-MNIST are as known."""
    data = load_data("fmnist-test-1k")
    raw = b"".join(data.read(k).tobytes() for k in range(1000))
    assert hashlib.sha256(raw).hexdigest() == "8d46efb2efae7259de048298adb99140d06082b91c430833a54d7ce30f21c9c9"
    assert data.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert np.bincount(data.labels).tolist() == [107, 105, 111, 93, 115, 87, 97, 95, 95, 95]
    assert (len(data), data.shape, data.classes, data.class_names[9]) == (1000, (1, 28, 28), 10, "Ankle boot")
    assert data.digest(range(1000)) == "f194a4d7cacae10e49ee61eed96fb1a083d73b65a1745a6154fde5f08b545b80"


def test_embedded_images_are_not_for_training() -> None:
    """Test images are refused where training images are asked for."""
    with pytest.raises(SpecError, match="fmnist-test-1k holds test images only; for training use fashion-mnist"):
        load_data("fmnist-test-1k", split="train")


def test_batch_keeps_order_and_values(tmp_path: Path) -> None:
    """Images come as float32 (B, C, H, W) in [0, 1], with every pixel where it was."""
    data = load_data(f"npz:{npz(tmp_path / 'a.npz')}")
    x, y = data.batch([4, 1])
    assert (x.shape, x.dtype, y.dtype) == ((2, 3, 5, 4), torch.float32, torch.int64)
    assert y.tolist() == [0, 2]
    expected = torch.stack([torchvision.transforms.functional.to_tensor(IMAGES[k]) for k in (4, 1)])
    assert torch.equal(expected, x)
    assert (data.name, data.shape, data.classes) == (f"npz:{tmp_path / 'a.npz'}", (3, 5, 4), 3)


def test_digest_covers_id_label_pixels_and_order(tmp_path: Path) -> None:
    """The digest is the one worked out by hand, and changes with any part of the examples."""
    data = load_data(f"npz:{npz(tmp_path / 'a.npz')}")
    expected = hashlib.sha256(
        b"".join(struct.pack("<qq", k, LABELS[k]) + IMAGES[k].tobytes() for k in (4, 1))
    ).hexdigest()
    assert expected == data.digest([4, 1])
    assert expected != data.digest([1, 4])
    labels, images = LABELS.copy(), IMAGES.copy()
    labels[4], images[1, 2, 2, 2] = 1, images[1, 2, 2, 2] ^ 1
    assert expected != load_data(f"npz:{npz(tmp_path / 'b.npz', label=labels)}").digest([4, 1])
    assert expected != load_data(f"npz:{npz(tmp_path / 'c.npz', image=images)}").digest([4, 1])


def test_digest_is_the_same_from_file_and_tensors(tmp_path: Path) -> None:
    """The way in which the same bytes came does not matter."""
    tensors = load_data((torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)))
    assert load_data(f"npz:{npz(tmp_path / 'a.npz')}").digest(range(6)) == tensors.digest(range(6))


def test_grey_npz(tmp_path: Path) -> None:
    """Images (N, H, W) have one channel."""
    assert load_data(f"npz:{npz(tmp_path / 'a.npz', image=IMAGES[..., 0])}").shape == (1, 5, 4)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"label": None}, "lacks the array 'label'; it holds image"),
        ({"image": None}, "lacks the array 'image'; it holds label"),
        ({"image": IMAGES / 255}, r"image must be uint8 in 0 \.\. 255, got float64"),
        ({"image": IMAGES[0, 0]}, r"image must have the shape \(N, H, W, C\) or \(N, H, W\), got \(4, 3\)"),
        ({"image": IMAGES.transpose(0, 3, 1, 2)}, r"looks like \(N, C, H, W\), .*transpose\(0, 2, 3, 1\)"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "holds no images"),
        ({"label": LABELS[:4]}, "6 images, but 4 labels"),
        ({"label": LABELS - 1}, "label -1 of example 0 is negative"),
        ({"label": LABELS / 2}, r"labels must be whole numbers \(N,\), got \(6,\) of float64"),
        ({"label": np.eye(3, dtype=int)[LABELS]}, r"got \(6, 3\) of int64; for one-hot rows use argmax\(1\)"),
    ],
)
def test_wrong_npz_files(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """The array, what was expected of it and what came are said."""
    with pytest.raises(SpecError, match=message):
        load_data(f"npz:{npz(tmp_path / 'a.npz', **arrays)}")


def test_unreadable_npz_files(tmp_path: Path) -> None:
    """A missing file, a truncated one, text, and arrays that hold objects (pickles) are refused."""
    path = tmp_path / "a.npz"
    with pytest.raises(ArtifactError, match=r"a\.npz: there is no such file"):
        load_data(f"npz:{path}")
    npz(path, image=np.array([{}, {}], dtype=object))
    with pytest.raises(ArtifactError, match=r"cannot be read as an \.npz of plain arrays: Object arrays"):
        load_data(f"npz:{path}")
    for content in (npz(path).read_bytes()[:200], b"some text", b""):
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"cannot be read as an \.npz of plain arrays"):
            load_data(f"npz:{path}")
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(SpecError, match=r"one bare array; save it with np\.savez"):
        load_data(f"npz:{path}")


def test_tensors_are_read_back() -> None:
    """Floating-point images keep their values, and later changes by the caller are not seen."""
    x = torch.rand(3, 2, 4, 5, dtype=torch.float64)
    data = load_data((x, torch.tensor([1, 0, 1], dtype=torch.int32)))
    kept = x.float().clone()
    x.zero_()
    images, labels = data.batch([2, 0])
    assert torch.equal(kept[[2, 0]], images)
    assert labels.tolist() == [1, 1]
    assert (data.name, data.shape, data.classes) == ("tensors", (2, 4, 5), 2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.full((2, 1, 2, 2), 255.0), torch.zeros(2).long(), r"got values from 255 to 255: divide by 255\?"),
        (torch.full((2, 1, 2, 2), -0.5), torch.zeros(2).long(), r"in \[0, 1\], got values from -0.5 .*normalisation"),
        (torch.full((2, 1, 2, 2), torch.nan), torch.zeros(2).long(), "got NaN or infinite pixels"),
        (torch.zeros(2, 1, 2, 2).int(), torch.zeros(2).long(), r"floating point in \[0, 1\] or uint8, got torch.int32"),
        (torch.zeros(2, 2, 2), torch.zeros(2).long(), r"got \(2, 2, 2\); for grey images give x\[:, None\]"),
        (torch.zeros(2, 4), torch.zeros(2).long(), r"shape \(N, C, H, W\), got \(2, 4\)"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(3).long(), "tensors: 2 images, but 3 labels"),
        (torch.zeros(2, 1, 2, 2), torch.zeros(2), r"labels must be whole numbers \(N,\), got \(2,\) of float32"),
        (torch.zeros(2, 1, 2, 2), torch.tensor([0, -3]), "label -3 of example 1 is negative"),
        (torch.zeros(0, 1, 2, 2), torch.zeros(0).long(), "tensors: holds no images"),
    ],
)
def test_wrong_tensors(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    """Images outside [0, 1], NaN, wrong shapes and wrong labels are refused."""
    with pytest.raises(SpecError, match=message):
        load_data((x, y))


def fashion_files(folder: Path, suffix: str, **changes: bytes) -> None:
    """Write the two files of the test split as idx, compressed for .gz."""
    folder.mkdir(parents=True)
    contents = {"t10k-images-idx3-ubyte": idx(IMAGES[..., 0]), "t10k-labels-idx1-ubyte": idx(LABELS)}
    for name, content in {**contents, **changes}.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(content) if suffix else content)


@pytest.mark.parametrize(
    ("folder", "suffix"), [("fashion-mnist", ".gz"), ("fashion-mnist", ""), ("FashionMNIST/raw", "")]
)
def test_fashion_mnist_layouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, suffix: str) -> None:
    """Compressed and raw files are found, by argument and by environment variable."""
    fashion_files(tmp_path / folder, suffix)
    data = load_data("fashion-mnist", data_dir=tmp_path)
    assert (data.name, data.shape, data.classes) == ("fashion-mnist", (1, 5, 4), 10)
    assert data.labels.tolist() == LABELS.tolist()
    assert all((data.read(k)[..., 0] == IMAGES[k, ..., 0]).all() for k in range(6))
    monkeypatch.setenv("ROBUSTGEN_DATA", str(tmp_path))
    assert data.digest(range(6)) == load_data("fashion-mnist").digest(range(6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t10k-images-idx3-ubyte": idx(IMAGES[..., 0])[:-1]}, "truncated: the header announces 120 bytes, 119 follow"),
        ({"t10k-images-idx3-ubyte": idx(LABELS)}, "not an idx file of unsigned bytes with 3 dimensions"),
        ({"t10k-labels-idx1-ubyte": b""}, "not an idx file of unsigned bytes with 1 dimensions"),
    ],
)
def test_damaged_idx_files(tmp_path: Path, changes: dict[str, bytes], message: str) -> None:
    """A file that is not what its header says is refused."""
    fashion_files(tmp_path / "fashion-mnist", ".gz", **changes)
    with pytest.raises(ArtifactError, match=message):
        load_data("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize("damage", [lambda content: content[:-12], lambda content: b"text", lambda content: b""])
def test_damaged_compressed_files(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    """A compressed file that was cut, or never was one, is refused."""
    fashion_files(tmp_path / "fashion-mnist", ".gz")
    path = tmp_path / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"t10k-images-idx3-ubyte\.gz: (cannot be read|not an idx file)"):
        load_data("fashion-mnist", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10_npz(tmp_path: Path, split: Any) -> None:
    """Each split has its file; the training split says so in its name."""
    npz(tmp_path / "cifar10" / f"{split}.npz")
    data = load_data("cifar10", data_dir=tmp_path, split=split)
    assert (data.name, data.class_names[2]) == ("cifar10" if split == "test" else "cifar10-train", "bird")
    npz(tmp_path / "cifar10" / f"{split}.npz", label=LABELS + 8)
    with pytest.raises(SpecError, match=r"label 10 of example 1 is not in 0 \.\. 9"):
        load_data("cifar10", data_dir=tmp_path, split=split)


def test_cifar10_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torchvision's own folder is read by torchvision, which refuses one that is damaged."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ArtifactError, match=r"cifar-10-batches-py: damaged: .*; remove it"):
        load_data("cifar10", data_dir=tmp_path)

    class Fake:
        def __init__(self, root: str, *, train: bool) -> None:
            assert not train
            self.data, self.targets = IMAGES, LABELS.tolist()

        classes = tuple("abcdefghijkl")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    data = load_data("cifar10", data_dir=tmp_path)
    assert torch.equal(torchvision.transforms.functional.to_tensor(IMAGES[3]), data.batch([3])[0][0])
    (tmp_path / "cifar-100-python").mkdir()
    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Fake)
    assert load_data("cifar100", data_dir=tmp_path).class_names == tuple("abcdefghijkl")


@pytest.mark.parametrize(
    ("name", "dataset", "files"),
    [
        ("fashion-mnist", "FashionMNIST", "fashion-mnist/t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz"),
        ("cifar10", "CIFAR10", "cifar10/test.npz or cifar-10-batches-py/"),
        ("cifar100", "CIFAR100", "cifar100/test.npz or cifar-100-python/"),
    ],
)
def test_missing_data_says_what_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dataset: str, files: str
) -> None:
    """Where the download fails too, the folder, the files and the command are named, and nothing is written."""

    def fail(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(torchvision.datasets, dataset, fail)
    message = (
        rf"no {dataset} in {tmp_path}/d: expected {files}, .*not known.*datasets.{dataset}\('DIR', .*--data-dir DIR"
    )
    with pytest.raises(ArtifactError, match=message):
        load_data(name, data_dir=tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_download_lands_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What torchvision downloads is kept for the next time, and its chatter stays off stdout."""
    calls = []

    def download(root: str, *, download: bool) -> None:
        calls.append(download)
        print("Downloading")
        fashion_files(Path(root) / "FashionMNIST" / "raw", "")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    assert len(load_data("fashion-mnist", data_dir=tmp_path / "d")) == 6
    assert len(load_data("fashion-mnist", data_dir=tmp_path / "d")) == 6
    assert calls == [True]
    assert capsys.readouterr().out == ""


def test_unknown_data() -> None:
    """The nearest name is suggested, and every listed name has a description."""
    with pytest.raises(SpecError, match="unknown data 'fashon-mnist'; did you mean 'fashion-mnist'"):
        load_data("fashon-mnist")
    assert list(DATA) == [
        "fmnist-test-1k",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "corrupted:TYPE:SEVERITY@DATA",
        "cifar10-c:TYPE:SEVERITY",
        "folder:PATH",
        "npz:PATH",
    ]
    assert all(DATA.values())


def test_data_is_a_plain_dataclass() -> None:
    """A data set can be made from any function that reads an image."""
    data = Dataset(name="own", labels=LABELS, shape=(3, 5, 4), class_names=("a", "b", "c"), read=IMAGES.__getitem__)
    assert data.batch([5])[1].tolist() == [2]


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        (None, None, list(range(300))),
        (None, 3, [0, 1, 2]),
        ("0-2,205", None, [0, 1, 2, 205]),
        ("205, 7 , 3-4,", None, [205, 7, 3, 4]),
        ("9-12", 2, [9, 10]),
        ("299", 1, [299]),
    ],
)
def test_ids_are_chosen(text: str | None, n: int | None, expected: list[int]) -> None:
    """Order is kept, ends are included, and n takes the first."""
    assert expected == parse_ids(text, n, 300, "toy")


def test_ids_from_a_file(tmp_path: Path) -> None:
    """A file holds one id or range a line."""
    (tmp_path / "ids.txt").write_text("7\n\n 3-5 \n0\n")
    assert parse_ids(str(tmp_path / "ids.txt"), None, 10, "toy") == [7, 3, 4, 5, 0]


@pytest.mark.parametrize(
    ("text", "n", "message"),
    [
        (None, 0, "--n must be >= 1, got 0"),
        ("3", -2, "--n must be >= 1, got -2"),
        (None, 2000, "toy has 1000 examples; --n 2000 asks for more"),
        ("0-4", 6, "--ids selects 5 examples; --n 6 asks for more"),
        ("", None, "--ids '' selects nothing"),
        (" , ", None, "selects nothing; write for example --ids 0-99,205"),
        ("1,5,3-6", None, "--ids names example 5 twice"),
        ("1000", None, "example 1000 does not exist; toy has the ids 0 to 999"),
        ("5-99999999999999", None, "example 99999999999999 does not exist"),
        ("9-3", None, "the range 9-3 runs backwards; write 3-9"),
        ("-3", None, "'-3' is neither an id such as 205 nor a range"),
        ("1-2-3", None, "'1-2-3' is neither an id"),
        ("none.txt", None, "'none.txt' is neither a list such as 0-99,205 nor a file"),
    ],
)
def test_wrong_ids(text: str | None, n: int | None, message: str) -> None:
    """What cannot be chosen is named."""
    with pytest.raises(SpecError, match=message):
        parse_ids(text, n, 1000, "toy")


def test_wrong_id_files(tmp_path: Path) -> None:
    """A file with something else in it, or that is no text, is refused."""
    (tmp_path / "a.txt").write_text("3\nseven\n")
    with pytest.raises(SpecError, match="'seven' is neither an id"):
        parse_ids(str(tmp_path / "a.txt"), None, 10, "toy")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match=r"the file '.*a\.txt' cannot be read"):
        parse_ids(str(tmp_path / "a.txt"), None, 10, "toy")
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(SpecError, match="selects nothing"):
        parse_ids(str(tmp_path / "a.txt"), None, 10, "toy")
