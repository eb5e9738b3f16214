"""Cards of generators: one JSON file says what a generator is, where its weights are and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from robustgen import durable
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.fields import TEXT, Fits, Rule, check_fields, count, each, one_of, or_none, read_section, text
from robustgen.generator.denoiser import Denoiser
from robustgen.generator.network import NetworkSettings, Unet, prepare_for
from robustgen.generator.objective import DdpmObjective, EdmObjective
from robustgen.weights import read_weights

__all__ = ["GeneratorCard", "bundled_generators"]

_ZOO = Path(__file__).resolve().parent.parent / "zoo" / "generators"
_OBJECTIVES: dict[str, Any] = {"edm": EdmObjective, "ddpm": DdpmObjective}


@dataclass(frozen=True, kw_only=True)
class GeneratorCard:
    """All that is known of one generator except its weights.

    Args:
        name: what it is called on the command line.
        description: as many sentences as it takes.
        kind: "edm" or "ddpm".
        objective: keyword arguments of `EdmObjective` or `DdpmObjective`.
        network: keyword arguments of `NetworkSettings`; or `kind` = song-unet and those of `SongUnetSettings`.
        shape: (C, H, W) of its images.
        classes: number of classes; 0 where it knows none.
        augmented: whether the network takes augmentation parameters.
        weights: file name, relative to the card.
        sha256: of that file; None when it is not to be checked.
        class_names: one a class, or empty.
        data: name of the data that it was trained on.
        licence: of the weights.
        source: the command that made them.
        figures: what was measured; each holds `metric`, `value`, `n` and `protocol`.

    Raises:
        SpecError: a field is not what it should be.
    """

    name: str
    description: str
    kind: str
    objective: dict[str, Any]
    network: dict[str, Any]
    shape: tuple[int, ...]
    classes: int
    weights: str
    augmented: bool = False
    sha256: str | None = None
    class_names: tuple[str, ...] = ()
    data: str | None = None
    licence: str | None = None
    source: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    figures: tuple[dict[str, Any], ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)

    @property
    def trained_on(self) -> dict[str, Any] | None:
        """Which real images the weights have seen: data, split, images, held_out; None where that is not known."""
        training = self.training
        if self.data is None or not {"split", "training_images", "held_out_images"} <= training.keys():
            return None
        return {
            "data": self.data,
            "split": training["split"],
            "images": training["training_images"],
            "held_out": training["held_out_images"],
        }

    @classmethod
    def load(cls, path: Path) -> GeneratorCard:
        """Read and check a card file.

        Raises:
            ArtifactError: the file is missing or is not JSON.
            SpecError: it is JSON, but not a generator's card.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ArtifactError(f"generator card {path}: there is no such file.") from None
        except (OSError, ValueError) as error:
            raise ArtifactError(f"generator card {path} cannot be read: {error}.") from error
        if not isinstance(content, Mapping):
            raise SpecError(f"generator card {path} must be one JSON object, got {type(content).__name__}.")
        if "architecture" in content:
            raise SpecError(
                f"{path} is the card of a classifier, a generator's is wanted; see `robustgen list generators`."
            )
        known = [entry.name for entry in fields(cls)]
        for key in content:
            if key not in known:
                raise unknown_name(f"field in generator card {path}:", key, known)
        for key in ("name", "description", "kind", "objective", "network", "shape", "classes", "weights"):
            if key not in content:
                raise SpecError(f"generator card {path} lacks the field '{key}'.")
        try:
            return cls(**content)
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the card as sorted, indented JSON."""
        content = json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        durable.replace(path, (content + "\n").encode())

    def make_objective(self) -> EdmObjective | DdpmObjective:
        """The loss that it was trained with, which knows how to denoise with its network.

        Raises:
            SpecError: unknown parameters.
        """
        try:
            given = {key: tuple(value) if isinstance(value, list) else value for key, value in self.objective.items()}
            objective: EdmObjective | DdpmObjective = _OBJECTIVES[self.kind](**given)
        except TypeError as error:
            raise SpecError(f"generator card '{self.name}': objective: {error}.") from error
        return objective

    def build_network(self) -> torch.nn.Module:
        """The network, not yet with its weights: a `Unet`, or a `SongUnet` where `network.kind` says so."""
        from robustgen.generator.song_unet import KIND, build_song_unet

        channels, height, width = self.shape
        if self.network.get("kind") == KIND:
            return build_song_unet(self.network, (channels, height, width), self.classes)
        settings = read_section(NetworkSettings, "network", self.network)
        return Unet(
            settings,
            (channels, height, width),
            self.classes,
            augmented=self.augmented,
            noise_scale=self.make_objective().noise_scale,
        )

    def load_denoiser(self, folder: Path, device: torch.device) -> Denoiser:
        """The generator itself: eval mode, parameters frozen, float32.

        Raises:
            ArtifactError: the weights are missing, damaged, or not those of the card.
        """
        held = read_weights(folder / self.weights)
        if self.sha256 is not None and held.sha256 != self.sha256:
            raise ArtifactError(
                f"{held.path}: sha256 is {held.sha256[:12]}…, the card of '{self.name}' says {self.sha256[:12]}…."
            )
        network = self.build_network()
        held.load_into(network, f"the network of generator '{self.name}'")
        network.eval().requires_grad_(False)
        channels, height, width = self.shape
        denoiser = self.make_objective().denoiser(network, (channels, height, width), self.classes)
        prepare_for(network, device)
        return denoiser.to(device).eval()


def bundled_generators() -> dict[str, Path]:
    """Names and card files of the generators that come with robustgen, sorted by name."""
    return {path.stem: path for path in sorted(_ZOO.glob("*.json"))}


_is_object: Fits = lambda value: isinstance(value, dict)  # noqa: E731 -- a rule, like those beside it
_RULES: dict[str, Rule] = {
    "name": TEXT,
    "description": (lambda value: isinstance(value, str), "a text"),
    "kind": one_of("edm", "ddpm"),
    "objective": (_is_object, "an object"),
    "network": (_is_object, "an object"),
    "shape": (lambda value: each(count)(value) and len(value) == 3, "[channels, height, width]"),
    "classes": (lambda value: value == 0 or count(value), "a whole number >= 0"),
    "weights": TEXT,
    "augmented": (lambda value: isinstance(value, bool), "true or false"),
    "sha256": (or_none(text), "64 hexadecimal digits or null"),
    "class_names": (each(text), "a list of texts, one a class"),
    "figures": (each(_is_object), "a list of objects"),
}
