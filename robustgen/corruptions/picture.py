"""A picture of all corruptions: one row a type, the clean image and every severity."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.durable import disk_errors, replace

__all__ = ["draw_corruptions"]

_NAMES, _GAP = 130, 4  # pixels: column of names, space between images


def draw_corruptions(
    source: Sequence[tuple[str, Sequence[str]]], clean: str | None, severities: Sequence[int], ids: Sequence[int],
    path: Path, data_dir: Path | None = None,
) -> None:  # fmt: skip
    """Save a PNG.

    Args:
        source: type and the names of its data sets, one a severity.
        clean: name of the uncorrupted data, or None.
        severities: as they are called above their columns.
        ids: examples; row k shows the k-th, beginning again where they end.
        path: of the picture.
        data_dir: where full data sets lie.

    Raises:
        SpecError, ArtifactError: the data cannot be had.
    """
    first = None if clean is None else load_data(clean, data_dir=data_dir)
    rows = []
    for k, (_, names) in enumerate(source):
        sets = [*([first] if first else []), *(load_data(name, data_dir=data_dir) for name in names)]
        rows.append([_pixels(dataset, ids[k % len(ids)]) for dataset in sets])
    edge = max(rows[0][0].size)
    zoom = max(1, 96 // edge)
    width, height = (zoom * side + _GAP for side in rows[0][0].size)
    canvas = Image.new("RGB", (_NAMES + width * len(rows[0]), 18 + height * len(rows)), "white")
    pen = ImageDraw.Draw(canvas)
    titles = [*(["clean"] if first else []), *(f"severity {k}" for k in severities)]
    for column, title in enumerate(titles):
        pen.text((_NAMES + column * width, 3), title, "black")
    for line, ((name, _), images) in enumerate(zip(source, rows, strict=True)):
        pen.text((4, 18 + line * height + height // 2 - 6), name, "black")
        for column, image in enumerate(images):
            shown = image.resize((width - _GAP, height - _GAP), Image.Resampling.NEAREST)
            canvas.paste(shown, (_NAMES + column * width, 18 + line * height))
    held = io.BytesIO()
    canvas.save(held, "PNG")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, held.getvalue())


def _pixels(dataset: Dataset, index: int) -> Image.Image:
    """One image, grey or in colour."""
    raw = np.asarray(dataset.read(index))
    image = raw if raw.dtype == np.uint8 else np.rint(raw * 255).astype(np.uint8)
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).convert("RGB")
