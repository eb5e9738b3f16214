"""Scenes by name: composed of a data set's pictures, or from a folder in COCO's format."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from robustgen.data import load_data
from robustgen.detectors.annotated import COCO, AnnotatedScenes
from robustgen.detectors.scenes import ComposedScenes, Scenes, SceneSettings
from robustgen.errors import SpecError
from robustgen.rng import stage_seed
from robustgen.training.data import split_validation

__all__ = ["DEFAULT_SCENES", "load_scenes"]

DEFAULT_SCENES = "fmnist-test-1k"
_SPLIT = ("fashion-mnist",)  # grey data with training pictures of its own
_COUNT = {"train": 2000, "test": 500}  # composed scenes, unless somebody asks for another number


def load_scenes(
    name: str,
    part: Literal["train", "test"],
    *,
    count: int | None = None,
    seed: int = 0,
    data_dir: Path | None = None,
    seen: Tensor | None = None,
) -> Scenes:
    """Scenes to train a patch on, or to measure on.

    Data in one part, such as the embedded pictures, is halved: scenes to train on are made of its second half.

    Args:
        name: of data whose pictures are grey on black; or "coco:FOLDER".
        part: "train" or "test"; to measure on data in one part is all of it but what is `seen`.
        count: how many; None for 2,000 and 500 composed ones, for all of a folder.
        seed: of composed ones.
        data_dir: as for `load_data`.
        seen: marks of pictures that must not be used.

    Raises:
        SpecError: data that no scenes can be made of, nothing left, or fewer images than asked for.
        ArtifactError: a file is missing.
    """
    known = set() if seen is None else set(seen.tolist())
    if name.startswith(COCO):
        held = AnnotatedScenes.read(Path(name.removeprefix(COCO)))
        kept = _half(np.zeros(len(held), np.int64), part)
        kept = [k for k in kept if not known or int(held.only([k]).marks()[0]) not in known]
        if not kept or (count or 1) > len(kept):
            raise SpecError(f"{name} has {len(kept)} images for this (half of it trains); got --scenes {count or 1}.")
        return held.only(kept[:count])
    dataset = load_data(name, data_dir=data_dir, split=part if name in _SPLIT else "test")
    ids = list(range(len(dataset))) if name in _SPLIT else _half(dataset.labels, part)
    whole = ComposedScenes(
        dataset=dataset, pool=tuple(ids), settings=SceneSettings(), count=count or _COUNT[part],
        seed=stage_seed(seed, f"{part} scenes"),
    )  # fmt: skip
    if not known:
        return whole
    unseen = tuple(id_ for id_, mark in zip(ids, whole.marks().tolist(), strict=True) if mark not in known)
    return ComposedScenes(
        dataset=dataset, pool=unseen, settings=whole.settings, count=whole.count, seed=whole.seed
    )  # fmt: skip


def _half(labels: np.ndarray[tuple[int, ...], np.dtype[np.int64]], part: str) -> list[int]:
    """To measure on all; to train on the second half, or every other one where the data is sorted by class."""
    if part == "test":
        return list(range(len(labels)))
    measured = set(split_validation(labels, (len(labels) + 1) // 2))
    return [k for k in range(len(labels)) if k not in measured]
