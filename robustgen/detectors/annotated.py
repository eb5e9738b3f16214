"""Scenes of a folder in COCO's format: image files and an annotations.json with images, annotations and categories."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen.data import pixel_marks
from robustgen.detectors.scenes import Scene
from robustgen.errors import ArtifactError, SpecError
from robustgen.files import read_image

__all__ = ["ANNOTATIONS", "COCO", "AnnotatedScenes"]

COCO = "coco:"  # prefix of such scenes
ANNOTATIONS = "annotations.json"
_FORMAT = 'COCO\'s format, {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id", "bbox"}]}'


@dataclass(frozen=True, kw_only=True, eq=False)
class AnnotatedScenes:
    """Colour images with boxes; crowds and images without a box are left out.

    Attributes:
        folder: with annotations.json; file names are relative to it.
        files: of each image.
        boxes: [left, top, width, height] of each object of each image, in pixels.
        labels: category ids.
        class_names: by label.
    """

    folder: Path
    files: tuple[str, ...]
    boxes: tuple[tuple[tuple[float, ...], ...], ...]
    labels: tuple[tuple[int, ...], ...]
    class_names: tuple[str, ...]

    @classmethod
    def read(cls, folder: Path) -> AnnotatedScenes:
        """Read and check the annotations; images are read when they are needed.

        Raises:
            ArtifactError: no such folder, no annotations, or an image that is not there.
            SpecError: annotations in another format, a box without area, or none at all.
        """
        folder = folder.expanduser()
        if not folder.is_dir():
            raise ArtifactError(f"{COCO}{folder}: there is no such folder.")
        path = folder / ANNOTATIONS
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"{COCO}{folder}: expected {ANNOTATIONS} in it, in {_FORMAT}.") from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}.") from error
        try:
            return cls(folder=folder, **_parse(table, path))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SpecError(f"{path} is not in {_FORMAT} ({type(error).__name__}: {error}).") from error

    @property
    def name(self) -> str:
        """As it is typed."""
        return f"{COCO}{self.folder}"

    @property
    def channels(self) -> int:
        """Colour."""
        return 3

    def __len__(self) -> int:
        return len(self.files)

    def only(self, numbers: Sequence[int]) -> AnnotatedScenes:
        """Some of them."""
        return AnnotatedScenes(
            folder=self.folder, files=tuple(self.files[k] for k in numbers),
            boxes=tuple(self.boxes[k] for k in numbers), labels=tuple(self.labels[k] for k in numbers),
            class_names=self.class_names,
        )  # fmt: skip

    def take(self, numbers: Sequence[int]) -> list[Scene]:
        """Scenes by number, in the order given."""
        return [self._scene(k) for k in numbers]

    def holds(self, label: int) -> bool:
        """Whether an object is of that class."""
        return any(label in row for row in self.labels)

    def digest(self) -> str:
        """SHA-256 over image files, boxes and labels."""
        digest = hashlib.sha256(repr((self.boxes, self.labels)).encode())
        for file in self.files:
            digest.update((self.folder / file).read_bytes())
        return digest.hexdigest()

    def marks(self) -> Tensor:
        """(N,) int64, of the image files."""
        return pixel_marks(np.frombuffer((self.folder / file).read_bytes(), np.uint8) for file in self.files)

    def _scene(self, k: int) -> Scene:
        image = torch.from_numpy(read_image(self.folder / self.files[k], self.channels))
        boxes = torch.tensor(self.boxes[k], dtype=torch.float32)
        limits = torch.tensor([image.shape[2], image.shape[1]] * 2, dtype=torch.float32)
        corners = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        if bool((corners < 0).any() or (corners > limits + 1).any()):
            raise SpecError(f"{self.folder / self.files[k]}: a box lies outside of its image; bbox is x, y, w, h.")
        return Scene(image, corners.minimum(limits), torch.tensor(self.labels[k], dtype=torch.int64))


def _parse(table: Any, path: Path) -> dict[str, Any]:
    """The fields of `AnnotatedScenes`; images in the order of the file."""
    held: dict[Any, list[tuple[tuple[float, ...], int]]] = defaultdict(list)
    for entry in table["annotations"]:
        if entry.get("iscrowd"):
            continue
        left, top, width, height = map(float, entry["bbox"])
        if not (width > 0 and height > 0):
            raise SpecError(f"{path}: a box of image {entry['image_id']} has no area: {entry['bbox']}.")
        if int(entry["category_id"]) < 1:
            raise SpecError(f"{path}: category ids count from 1, got {entry['category_id']}; 0 is the background.")
        held[entry["image_id"]].append(((left, top, width, height), int(entry["category_id"])))
    images = [image for image in table["images"] if held[image["id"]]]
    if not images:
        raise SpecError(f"{path} has no image with a box.")
    for image in images:
        if not (path.parent / image["file_name"]).is_file():
            raise ArtifactError(f"{path}: the image {image['file_name']} is not in {path.parent}.")
    labels = tuple(tuple(label for _, label in held[image["id"]]) for image in images)
    names = {int(entry["id"]): str(entry["name"]) for entry in table.get("categories", [])}
    most = max(max(row) for row in labels)
    return {
        "files": tuple(str(image["file_name"]) for image in images),
        "boxes": tuple(tuple(box for box, _ in held[image["id"]]) for image in images),
        "labels": labels,
        "class_names": ("background", *(names.get(k, str(k)) for k in range(1, max(most, *names, 0) + 1))),
    }
