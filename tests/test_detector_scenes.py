"""Scenes: the same in any batch, boxes tight to the pixel, halves that share no picture, bad folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from robustgen.data import load_data
from robustgen.detectors.annotated import AnnotatedScenes
from robustgen.detectors.scenes import ComposedScenes, SceneSettings
from robustgen.detectors.source import load_scenes
from robustgen.errors import ArtifactError, RobustgenError, SpecError


def composed(**settings: object) -> ComposedScenes:
    """Of the embedded pictures."""
    data = load_data("fmnist-test-1k")
    return ComposedScenes(
        dataset=data, pool=tuple(range(50)), settings=SceneSettings(**settings), count=100, seed=1  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_scene_is_a_function_of_its_number() -> None:
    """Alone, in a batch or in another order it is the same; another number and another seed give another."""
    scenes = composed()
    first, batch = scenes.take([7])[0], scenes.take([3, 7, 9])[1]
    for key in ("image", "boxes", "labels"):
        assert torch.equal(getattr(first, key), getattr(batch, key))
    assert not torch.equal(first.image, scenes.take([8])[0].image)
    other = ComposedScenes(**{**{k: getattr(scenes, k) for k in ("dataset", "pool", "settings", "count")}, "seed": 2})
    assert not torch.equal(first.image, other.take([7])[0].image)


@pytest.mark.parametrize("seed", range(2))
def test_boxes_are_tight(seed: int) -> None:
    """Without clutter and alone, an object's covered pixels touch all four edges of its box and none lies outside."""
    scenes = composed(clutter=0.0, most=1)
    for scene in scenes.take(range(20 * seed, 20 * seed + 20)):
        ((left, top, right, bottom),) = scene.boxes.int().tolist()
        covered = scene.image[0] >= 0.5 / 6 * 0.5  # brightness times cover, both at the border of what counts
        rows, columns = (covered.any(axis).nonzero()[:, 0] for axis in (1, 0))
        assert [top, bottom, left, right] == [int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1]
        assert 12 <= max(right - left, bottom - top) <= 28


def test_scenes_hold_what_they_promise() -> None:
    """One to four objects of both sides in range, inside the scene, hiding little of each other; values in [0, 1]."""
    held = composed().take(range(60))
    counts = {len(scene.labels) for scene in held}
    assert {1, 4} <= counts <= {1, 2, 3, 4}
    for scene in held:
        assert (1, 64, 64) == tuple(scene.image.shape)
        assert 0 <= float(scene.image.min()) < float(scene.image.max()) <= 1
        assert bool((scene.boxes >= 0).all() and (scene.boxes <= 64).all())
        edges = scene.boxes[:, 2:] - scene.boxes[:, :2]
        assert bool((edges >= 1).all() and (edges <= 28).all())
        assert set(scene.labels.tolist()) <= set(range(1, 11))
        for k, a in enumerate(scene.boxes):
            for b in scene.boxes[:k]:
                shared = (torch.minimum(a[2:], b[2:]) - torch.maximum(a[:2], b[:2])).clamp(min=0).prod()
                assert float(shared) <= 0.2 * min(float((c[2:] - c[:2]).prod()) for c in (a, b)) + 1e-4
    assert 0.01 < float(torch.stack([scene.image for scene in held]).std())


def test_labels_are_those_of_the_pictures(tmp_path: Path) -> None:
    """Wide blocks are of class 1, high ones of class 2, and a solid block fills its box."""
    images = np.zeros((2, 12, 12, 1), np.uint8)
    images[0, 3:7, 2:10], images[1, 1:9, 3:7] = 200, 200
    np.savez(tmp_path / "two.npz", image=images, label=np.array([0, 1]))
    data = load_data(f"npz:{tmp_path}/two.npz")
    settings = SceneSettings(size=32, most=3, smallest=8, largest=8, clutter=0.0)
    scenes = ComposedScenes(dataset=data, pool=(0, 1), settings=settings, count=30, seed=0)
    for scene in scenes.take(range(30)):
        for (left, top, right, bottom), label in zip(scene.boxes.int().tolist(), scene.labels.tolist(), strict=True):
            assert ((8, 4) if label == 1 else (4, 8)) == (right - left, bottom - top)
            assert bool((scene.image[0, top:bottom, left:right] > 0.7).all())


def test_halves_share_no_picture() -> None:
    """To train on is the second half; to measure on, whatever has another mark."""
    train = load_scenes("fmnist-test-1k", "train")
    test = load_scenes("fmnist-test-1k", "test", seen=train.marks())
    assert (500, 500) == (len(train.marks()), len(test.marks()))
    assert not set(train.marks().tolist()) & set(test.marks().tolist())
    assert (2000, 500) == (len(train), len(test))
    with pytest.raises(SpecError, match="no picture left"):
        load_scenes("fmnist-test-1k", "test", seen=load_scenes("fmnist-test-1k", "test").marks())


def test_colour_pictures_are_refused(tmp_path: Path) -> None:
    """Scenes are composed of grey ones."""
    np.savez(tmp_path / "colour.npz", image=np.zeros((4, 8, 8, 3), np.uint8), label=np.array([0, 1, 0, 1]))
    with pytest.raises(SpecError, match="give scenes of your own as coco:FOLDER"):
        load_scenes(f"npz:{tmp_path}/colour.npz", "train")


def write_coco(folder: Path, **changes: object) -> Path:
    """Three images of 20 x 30 with a box each, and one without."""
    folder.mkdir(exist_ok=True)
    for k in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * k, np.uint8)).save(folder / f"{k}.png")
    table = {
        "images": [{"id": k, "file_name": f"{k}.png"} for k in range(4)],
        "annotations": [{"image_id": k, "category_id": 1 + k, "bbox": [2, 3, 10, 8]} for k in range(3)]
        + [{"image_id": 3, "category_id": 1, "bbox": [0, 0, 5, 5], "iscrowd": 1}],
        "categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}],
        **changes,
    }
    (folder / "annotations.json").write_text(json.dumps(table))
    return folder


def test_a_folder_in_cocos_format(tmp_path: Path) -> None:
    """Boxes become corners, category ids are labels, crowds are left out; one half trains, the other measures."""
    folder = write_coco(tmp_path / "coco")
    held = AnnotatedScenes.read(folder)
    assert (3, ("background", "person", "2", "car")) == (len(held), held.class_names)
    scene = held.take([2])[0]
    assert ([[2, 3, 12, 11]], [3]) == (scene.boxes.tolist(), scene.labels.tolist())
    assert torch.full((3, 20, 30), 120 / 255).equal(scene.image)
    train = load_scenes(f"coco:{folder}", "train")
    test = load_scenes(f"coco:{folder}", "test", seen=train.marks())
    assert (1, 2) == (len(train), len(test))
    assert not set(train.marks().tolist()) & set(test.marks().tolist())


BOX = {"image_id": 0, "category_id": 1}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"annotations": [{"image_id": 0, "category_id": 1}]}, "is not in COCO's format"),
        ({"annotations": [{**BOX, "bbox": [2, 3, 0, 8]}]}, "has no area"),
        ({"annotations": [{**BOX, "bbox": [2, 3, 40, 8]}]}, "lies outside of its image"),
        ({"annotations": [{**BOX, "category_id": 0, "bbox": [2, 3, 4, 8]}]}, "count from 1"),
        ({"annotations": []}, "no image with a box"),
        ({"images": [{"id": 0, "file_name": "none.png"}]}, "none.png is not in"),
        ({"images": 3}, "is not in COCO's format"),
    ],
)
def test_bad_annotations(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    """One sentence each."""
    with pytest.raises(RobustgenError, match=says):
        AnnotatedScenes.read(write_coco(tmp_path / "coco", **changes)).take([0])


def test_missing_folders(tmp_path: Path) -> None:
    """No folder, no annotations, or no JSON."""
    with pytest.raises(ArtifactError, match="there is no such folder"):
        load_scenes(f"coco:{tmp_path}/nowhere", "train")
    with pytest.raises(ArtifactError, match=r"expected annotations\.json in it"):
        load_scenes(f"coco:{tmp_path}", "train")
    (tmp_path / "annotations.json").write_text("{")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_scenes(f"coco:{tmp_path}", "train")
    with pytest.raises(SpecError, match="3 images for this"):
        load_scenes(f"coco:{write_coco(tmp_path / 'coco')}", "test", count=9)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"size": 10}, "scenes.size"), ({"most": 0}, "scenes.most"), ({"clutter": -1.0}, "scenes.clutter"),
     ({"smallest": 30}, "smallest <= largest")],
)  # fmt: skip
def test_impossible_settings(settings: dict[str, object], says: str) -> None:
    """The field is named."""
    with pytest.raises(SpecError, match=says):
        SceneSettings(**settings)  # type: ignore[arg-type]
