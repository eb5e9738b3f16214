"""RobustBench as the registry has it: run by `nox -s interop`, in an environment of its own."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack import AutoAttack
from torch import Tensor, nn

from robustgen import compat
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.errors import ArtifactError, SpecError
from robustgen.leaderboard.published import load_published
from robustgen.robustbench_zoo import ZooName, _entry, robustbench
from tests.helpers import ROOT

pytestmark = [pytest.mark.interop, pytest.mark.filterwarnings("ignore")]  # theirs are not ours to mend

SMALL, WIDE = "Rebuffi2021Fixing_R18_ddpm", "Wang2023Better_WRN-28-10"
SCRIPTS = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "scripts").glob("*.py")}


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The package, imported as robustgen imports it, that can download nothing."""
    found = robustbench()

    def refuse(*_: object) -> None:
        raise OSError("no network in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(found.utils, "download_gdrive_new", refuse)
        yield found


@pytest.fixture(scope="module")
def work(package: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of the small network, random ones, and four images that it classifies as labelled."""
    folder = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    network = put_weights(package, SMALL, folder / "models")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = network(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    (folder / "data" / "cifar10").mkdir(parents=True)
    np.savez(folder / "data" / "cifar10" / "test.npz", image=pixels, label=labels)
    return folder


def put_weights(package: ModuleType, name: str, models: Path) -> nn.Module:
    """Weights of a network of the zoo as its authors would have saved them, behind DataParallel."""
    network: nn.Module = _entry(package, ZooName.parse(f"robustbench:{name}"))["model"]().eval()
    place = models / "cifar10" / "Linf" / f"{name}.pt"
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, place)
    return network


def on_robustgen(script: str) -> str:
    """The script with its imports of AutoAttack and RobustBench changed, and nothing else."""
    imports = re.compile(r"^from (?:autoattack|robustbench)[\w.]* import", flags=re.MULTILINE)
    assert imports.search(script)
    return imports.sub("from robustgen.compat import", script)


def run_script(name: str) -> dict[str, Any]:
    """What a script leaves in its variables."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(on_robustgen(SCRIPTS[name]), f"{name}.py", "exec"), names)
    return names


def test_package_cannot_be_imported_as_it_is_installed(package: ModuleType) -> None:
    """It lacks two modules in a fresh Python, works here, and leaves nothing behind that was lent to it."""
    lent = "import sys, types; sys.modules['pkg_resources'] = types.ModuleType('pkg_resources'); "
    for before, missing in (("", "pkg_resources"), (lent, "autoattack")):
        command = [sys.executable, "-c", f"{before}import robustbench"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"No module named '{missing}'" in done.stderr
    assert version("robustbench") == "1.1.1"
    assert Path(str(package.__file__)).is_relative_to(sys.prefix)
    assert not {"autoattack", "pkg_resources"} & set(sys.modules)


def test_zoo_model_by_name(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published network of full size, with weights in its place, answers as RobustBench's own does."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = put_weights(package, WIDE, tmp_path / "models")
    classifier = load_classifier(f"robustbench:{WIDE}")
    x = torch.rand((2, 3, 32, 32))
    with torch.no_grad():
        expected: Tensor = network(x)
        assert torch.equal(expected, classifier(x))
        assert torch.equal(expected, compat.load_model(WIDE, threat_model=package.model_zoo.enums.ThreatModel.Linf)(x))
    assert (classifier.card.threat, classifier.card.classes) == ("linf:8/255", 10)


def test_missing_weights(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The place and the address are named, for the command line and for a script."""
    monkeypatch.chdir(tmp_path)
    says = rf"no weights in models/cifar10/Linf/{WIDE}\.pt, .*no network in tests.*id=1-6MYKJdECDVGaWjj6GgqvaT95BGKhUvI"
    with pytest.raises(ArtifactError, match=says):
        load_classifier(f"robustbench:{WIDE}")
    with pytest.raises(ArtifactError, match=r"no weights in elsewhere/cifar10/L2/Standard\.pt"):
        compat.load_model("Standard", model_dir="elsewhere", threat_model="L2")
    with pytest.raises(SpecError, match=f"did you mean '{WIDE}'"):
        load_classifier("robustbench:Wang2023Better_WRN-28-1")


def test_run_and_verify(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`eval` and `verify` take the model by name from the command line."""
    monkeypatch.chdir(work)
    command = ["eval", f"robustbench:{SMALL}", "--attacks", "fgsm", "--data-dir", "data", "--out", "run"]
    assert _run([*command, "--precision", "float32"]) == 0
    assert _run(["verify", "run", "--data-dir", "data"]) == 0


def test_listed_entries_are_in_the_zoo(package: ModuleType) -> None:
    """Each published entry that our board calls loadable is in the zoo of the package, but for later ones."""
    missing = []
    for held in load_published():
        for entry in held.entries:
            threat = "Linf" if entry.threat == "linf" else "L2" if entry.threat == "l2" else "corruptions"
            if entry.zoo:
                try:
                    _entry(package, ZooName(held.data, threat, entry.key))
                except SpecError:
                    missing.append(f"{held.data}/{threat}/{entry.key}")
    assert missing == []


def test_benchmark_takes_the_same_arguments(package: ModuleType) -> None:
    """Names, order and defaults of `benchmark`, `load_model` and `load_cifar10` are those of the package."""

    def told(function: Any) -> list[tuple[str, Any]]:
        parameters = inspect.signature(function).parameters.values()
        return [(p.name, getattr(p.default, "value", p.default)) for p in parameters]

    assert told(package.benchmark) == told(compat.benchmark)
    assert told(package.load_model) == told(compat.load_model)
    assert told(package.load_cifar10)[:2] == told(compat.load_cifar10)[:2]
    assert [name for name, _ in told(package.load_cifar10)] == [name for name, _ in told(compat.load_cifar10)]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_script_runs_by_changing_the_import(name: str, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script for AutoAttack or RobustBench does its work on robustgen."""
    monkeypatch.chdir(work)
    left = run_script(name)
    if name == "own_model":
        assert 0 < left["robust"] < 8
        assert 0 < left["farthest"] <= 0.2 + 1e-6
    elif name == "quick_tour":
        changed = left["model"](left["x_adv"]).argmax(1) != left["y_test"]
        assert (left["x_adv"] - left["x_test"]).abs().amax((1, 2, 3)).le(8 / 255 + 1e-6).all()
        assert changed.any()
    else:
        assert left["robust"] < left["clean"] == 1
        assert (work / "model_info" / "cifar10" / "Linf" / "Mine2026.json").is_file()


class Noisy(nn.Module):
    """A linear classifier whose logits come with noise."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 4, 4) to (B, K)."""
        logits: Tensor = self.net(x)
        return logits + 0.05 * torch.randn_like(logits)


def test_reference_class_does_not_fit_the_published_benchmark() -> None:
    """docs/peers.md: RobustBench calls AutoAttack by an argument that the package it requires does not take."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(TypeError, match="log_path"):
        AutoAttack(net, norm="Linf", eps=0.1, version="standard", device="cpu", log_path=None)


def test_reference_needs_many_classes() -> None:
    """docs/peers.md: `standard` ends in an IndexError with three classes."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x = torch.rand(8, 1, 4, 4)
    with pytest.raises(IndexError):
        AutoAttack(net, eps=1e-4, seed=0).run_standard_evaluation(x, net(x).argmax(1))


def test_reference_does_not_go_on_from_its_state(tmp_path: Path) -> None:
    """docs/peers.md: the second call with the state file of the first one is refused."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    x = torch.rand(4, 1, 4, 4)
    attack = AutoAttack(net, eps=1e-4, seed=0, version="custom", attacks=["apgd-ce"])
    attack.run_standard_evaluation(x, net(x).argmax(1), state_path=tmp_path / "state.json")
    with pytest.raises(ValueError, match="wrong state file"):
        attack.run_standard_evaluation(x, net(x).argmax(1), state_path=tmp_path / "state.json")


def test_reference_counts_a_lucky_miss_as_broken() -> None:
    """docs/peers.md: under `rand`, at an eps that changes nothing, a noisy classifier loses what it has anew."""
    model = Noisy(10).eval()
    x = torch.rand(200, 1, 4, 4)
    y = model.net(x).argmax(1)
    attack = AutoAttack(model, eps=1e-7, seed=0, version="rand")
    x_adv, y_adv = attack.run_standard_evaluation(x, y)
    with torch.no_grad():
        anew = torch.stack([model(x_adv).argmax(1) == y for _ in range(20)]).float().mean()
    assert float((y_adv == y).float().mean()) < float(anew) - 0.03
