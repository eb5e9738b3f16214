"""The model zoo of RobustBench: `robustbench:Wang2023Better_WRN-28-10`, where the package is installed.

RobustBench 1.1.1 cannot be imported as it is installed: it imports `autoattack`, which its requirement `pyautoattack`
calls by another name, and `pkg_resources`, which setuptools 81 took away. Both are lent to it while it is imported.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from robustgen.cards import Card
from robustgen.errors import ArtifactError, SpecError, unknown_name
from robustgen.files import impatient
from robustgen.usercode import first_line

__all__ = ["ROBUSTBENCH", "ZooName", "build_zoo", "load_zoo", "models_folder", "robustbench", "torchattacks_overwrites"]

ROBUSTBENCH = "robustbench:"
_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}
_THREATS = ("Linf", "L2", "corruptions")
_EPS = {"Linf": "linf:8/255", "L2": "l2:0.5"}
_INSTALL = "pip install 'robustgen[robustbench]'"


@dataclass(frozen=True, slots=True)
class ZooName:
    """A model by data set, threat model and RobustBench's own name."""

    data: str
    threat: str
    name: str

    @classmethod
    def parse(cls, spec: str) -> ZooName:
        """Read `robustbench:[DATA/][THREAT/]NAME`; CIFAR-10 and Linf where nothing is said.

        Raises:
            SpecError: not of that form.
        """
        *places, name = spec.removeprefix(ROBUSTBENCH).split("/")
        data = next((place for place in places if place in _CLASSES), "cifar10")
        threat = next((place for place in places if place in _THREATS), "Linf")
        for place in places:
            if place not in (data, threat):
                raise unknown_name(f"part of {spec}:", place, (*_CLASSES, *_THREATS))
        if not name or len(places) > 2:
            raise SpecError(f"'{spec}' must be {ROBUSTBENCH}[DATA/][THREAT/]NAME, such as {ROBUSTBENCH}L2/Standard.")
        return cls(data, threat, name)

    def __str__(self) -> str:
        places = [*([self.data] if self.data != "cifar10" else []), *([self.threat] if self.threat != "Linf" else [])]
        return ROBUSTBENCH + "/".join([*places, self.name])

    def card(self, network: nn.Module) -> Card:
        """What is known of it without its weights."""
        threat = "linf:4/255" if (self.data, self.threat) == ("imagenet", "Linf") else _EPS.get(self.threat)
        return Card(
            name=str(self), title=f"{self.name} of RobustBench ({self.data}, {self.threat})",
            architecture=type(network).__name__, channels=3, classes=_CLASSES[self.data],
            size=None if self.data == "imagenet" else (32, 32), source="RobustBench's model zoo", threat=threat,
            data=self.data, kind="standard" if self.name.startswith("Standard") else "robust",
        )  # fmt: skip


def models_folder() -> Path:
    """Where checkpoints lie: $ROBUSTGEN_MODELS, else `models` in the current folder, as RobustBench has it."""
    return Path(os.environ.get("ROBUSTGEN_MODELS") or "models").expanduser()


def load_zoo(spec: str, folder: Path | None = None) -> tuple[ZooName, nn.Module]:
    """A model of the zoo with its published weights, from a folder or downloaded to there.

    Args:
        spec: `robustbench:[DATA/][THREAT/]NAME`.
        folder: of checkpoints; by default `models_folder()`.

    Raises:
        SpecError: RobustBench is not installed or cannot be imported, or has no such model.
        ArtifactError: the weights are not there and cannot be downloaded, or cannot be read; says where they belong.
    """
    zoo, package = ZooName.parse(spec), robustbench()
    entry, ids = _entry(package, zoo), []
    if entry["gdrive_id"] is not None:
        ids = entry["gdrive_id"] if isinstance(entry["gdrive_id"], list) else [entry["gdrive_id"]]
    models = folder or models_folder()
    home = models / zoo.data / zoo.threat
    single = home / f"{zoo.name}.pt"
    several = isinstance(entry["gdrive_id"], list)
    places = [home / f"{zoo.name}.pt_m{k}.pt" for k in range(len(ids))] if several else [single] * len(ids)
    for place, gdrive in zip(places, ids, strict=True):
        if not place.is_file():
            _download(package, spec, str(gdrive), place)
    try:
        with impatient(), contextlib.redirect_stdout(sys.stderr):
            network = package.utils.load_model(
                zoo.name, model_dir=str(models), dataset=zoo.data, threat_model=zoo.threat
            )
    except Exception as error:  # a pickle with code, an HTML page, other keys: for the user it is all the same
        reason = f"{type(error).__name__}: {first_line(error)}"
        if not places:  # those of timm, which looks for itself
            raise ArtifactError(
                f"{spec}: RobustBench gets its weights by timm, which failed ({reason}); put the file that it names "
                "above into that folder, or type the same again where there is a network."
            ) from error
        raise ArtifactError(
            f"{spec}: the weights in {', '.join(map(str, places))} cannot be loaded ({reason}); remove the file and "
            "get it again."
        ) from error
    return zoo, network


def build_zoo(spec: str) -> tuple[ZooName, nn.Module]:
    """The network alone, for weights from a file of the user's own.

    Raises:
        SpecError: RobustBench is not installed or cannot be imported, or has no such model.
    """
    zoo, package = ZooName.parse(spec), robustbench()
    network: nn.Module = _entry(package, zoo)["model"]()
    return zoo, network


def robustbench() -> ModuleType:
    """The package, imported whatever its requirements are called.

    Raises:
        SpecError: it is not installed, or its import fails.
    """
    try:
        with warnings.catch_warnings(), _lent():
            warnings.simplefilter("ignore")  # about its own imports
            package = importlib.import_module("robustbench")
            for part in ("utils", "model_zoo.enums"):
                importlib.import_module(f"robustbench.{part}")
    except Exception as error:
        if find_spec("robustbench") is None:
            raise SpecError(f"{ROBUSTBENCH}NAME needs the package robustbench; type {_INSTALL}.") from error
        advice = "pip uninstall torchattacks robustbench, then " if torchattacks_overwrites() else ""
        raise SpecError(
            f"the package robustbench cannot be imported ({type(error).__name__}: {first_line(error)}); type "
            f"{advice}{_INSTALL}."
        ) from error
    return package


def torchattacks_overwrites() -> bool:
    """Whether torchattacks is installed, whose wheel brings an old copy of RobustBench under the same name."""
    try:
        held = distribution("torchattacks").files or []
    except PackageNotFoundError:
        return False
    return any(path.parts[0] == "robustbench" for path in held)


@contextlib.contextmanager
def _lent() -> Iterator[None]:
    """`autoattack` and `pkg_resources` for the time of an import, where they are missing."""
    before = set(sys.modules)
    if _missing("autoattack") and not _missing("pyautoattack"):
        sys.modules["autoattack"] = importlib.import_module("pyautoattack")
    if _missing("pkg_resources"):
        stand_in = ModuleType("pkg_resources")
        stand_in.resource_filename = lambda package, name: str(  # type: ignore[attr-defined]
            files(package.partition(".")[0]) / name
        )
        sys.modules["pkg_resources"] = stand_in
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] in ("autoattack", "pkg_resources"):
                del sys.modules[name]


def _missing(module: str) -> bool:
    return module not in sys.modules and find_spec(module) is None


def _entry(package: ModuleType, zoo: ZooName) -> Mapping[str, Any]:
    """What the zoo holds of a model."""
    enums, held = package.model_zoo.enums, package.model_zoo.model_dicts
    tables: dict[tuple[str, str], Mapping[str, Any]] = {
        (data.value, threat.value): table for data, parts in held.items() for threat, table in parts.items()
    }
    models = tables.get((enums.BenchmarkDataset(zoo.data).value, enums.ThreatModel(zoo.threat).value), {})
    if zoo.name in models:
        entry: Mapping[str, Any] = models[zoo.name]
        return entry
    elsewhere = [ZooName(data, threat, zoo.name) for (data, threat), table in tables.items() if zoo.name in table]
    hint = f"It is there as {', '.join(map(str, elsewhere))}." if elsewhere else ""
    raise unknown_name(f"RobustBench model of {zoo.data} and {zoo.threat}", zoo.name, models, hint=hint)


def _download(package: ModuleType, spec: str, gdrive: str, place: Path) -> None:
    """Fetch a checkpoint as RobustBench does, and put it into its place only when it is one."""
    draft = place.with_name(f".{place.name}.part")
    reason = "it brought a page of HTML"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with impatient(), contextlib.redirect_stdout(sys.stderr):
            package.utils.download_gdrive_new(gdrive, draft)
        with draft.open("rb") as file:
            whole = not file.read(64).lstrip().startswith(b"<")
        if whole:
            draft.replace(place)
            return
    except Exception as error:  # noqa: BLE001 -- no network, no permission, too many downloads that day
        reason = f"{type(error).__name__}: {first_line(error)}"
    draft.unlink(missing_ok=True)
    raise ArtifactError(
        f"{spec}: no weights in {place}, and the download failed ({reason}). Where there is a network get "
        f"https://drive.google.com/uc?id={gdrive} with a browser or `gdown {gdrive}`, put it to {place}, and type the "
        "same again; $ROBUSTGEN_MODELS names another folder than models/."
    )
