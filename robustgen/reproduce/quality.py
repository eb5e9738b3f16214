"""How far the generated images of an arm are from real ones, for tables whose paper says it too."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from robustgen import durable
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.errors import SpecError
from robustgen.generator.distances import frechet_with_error
from robustgen.generator.features import classifier_features
from robustgen.generator.generated import map_generated, read_images
from robustgen.generator.judge_files import classifier_for

__all__ = ["ImageDistance", "image_distance"]

_MOST = 10_000  # images of either side: the distance depends on how many there are


@dataclass(frozen=True, kw_only=True)
class ImageDistance:
    """Fréchet distance from as many test images, with its standard error.

    Attributes:
        value, error: in units of the features, which are those of `network`; not the FID of papers.
        n: images of either side.
    """

    value: float
    error: float
    n: int
    network: str


def image_distance(images: Path, data: str, *, data_dir: Path | None, device: torch.device) -> ImageDistance | None:
    """Of the first images of a file from the first test images of `data`; kept beside the file once it is known.

    None where the file is not there yet, or no bundled classifier knows such images.
    """
    held = images.with_suffix(".frechet.json")
    if held.is_file():
        return ImageDistance(**json.loads(held.read_text(encoding="utf-8")))
    try:
        network = classifier_for(data)
    except SpecError:
        return None
    if not images.is_file():
        return None
    features = classifier_features(load_classifier(network), device)
    real = read_images(load_data(data, data_dir=data_dir))
    made = map_generated(images)[0]
    n = min(len(real), len(made), _MOST)
    drawn = torch.from_numpy(made[:n].copy())
    measured = frechet_with_error(features(drawn).values, features(real[:n]).values)
    result = ImageDistance(value=measured.value, error=measured.error, n=n, network=network)
    durable.write_json(held, asdict(result))
    return result
