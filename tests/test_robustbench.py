"""RobustBench's zoo by name, on a package of the same shape that needs what the real one needs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import Compose, Resize, ToTensor

import robustgen
from robustgen import compat, robustbench_zoo
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.errors import ArtifactError, SpecError
from robustgen.prepare import default_data
from robustgen.robustbench_zoo import ZooName
from tests.helpers import make_linear

PACKAGE = {
    "pyautoattack/__init__.py": "class AutoAttack: pass\n",
    "pyautoattack/state.py": "class EvaluationState: pass\n",
    "robustbench/__init__.py": "from .eval import benchmark\nfrom .utils import load_model\n",
    "robustbench/eval.py": (
        "import pkg_resources\nfrom autoattack import AutoAttack\nfrom autoattack.state import EvaluationState\n"
        "names = pkg_resources.resource_filename(__name__, 'ids.txt')\ndef benchmark(): pass\n"
    ),
    "robustbench/ids.txt": "one\n",
    "robustbench/model_zoo/enums.py": (
        "from enum import Enum\n"
        "class BenchmarkDataset(Enum):\n    cifar_10, cifar_100, imagenet = 'cifar10', 'cifar100', 'imagenet'\n"
        "class ThreatModel(Enum):\n    Linf, L2, corruptions = 'Linf', 'L2', 'corruptions'\n"
    ),
    "robustbench/model_zoo/__init__.py": (
        "from tests.helpers import make_linear\nfrom .enums import BenchmarkDataset as D, ThreatModel as T\n"
        "def net(): return make_linear((3, 32, 32), 10, seed=9)\n"
        "model_dicts = {D.cifar_10: {T.Linf: {'Ada2020Robust': {'model': net, 'gdrive_id': 'id-1'},\n"
        "    'Two': {'model': net, 'gdrive_id': ['a', 'b']}},\n"
        "    T.L2: {'Ada2020Round': {'model': net, 'gdrive_id': 'x'}}}}\n"
    ),
    "robustbench/utils.py": (
        "import torch\nfrom pathlib import Path\nfrom .model_zoo import net\n"
        "def download_gdrive_new(gid, place): raise OSError('Name or service not known')\n"
        "def load_model(name, model_dir, dataset, threat_model):\n"
        "    place = Path(model_dir) / dataset / threat_model / f'{name}.pt'\n"
        "    model = net()\n    model.load_state_dict(torch.load(place, weights_only=True))\n    return model.eval()\n"
    ),
}
OURS = ("robustbench", "pyautoattack", "autoattack", "pkg_resources")


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a package robustbench on the path that has three models and no weights."""
    for name, text in PACKAGE.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in OURS}
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]
    sys.modules.update(held)


def put_weights(place: Path) -> None:
    """A checkpoint of another linear classifier than the one that the zoo builds."""
    place.parent.mkdir(parents=True)
    torch.save(make_linear((3, 32, 32), 10, seed=1).state_dict(), place)


def test_model_is_loaded_from_its_place(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, with the weights in models/cifar10/Linf or the folder that is named; nothing lent stays behind."""
    put_weights(zoo / "models" / "cifar10" / "Linf" / "Ada2020Robust.pt")
    x = torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    classifier = load_classifier("robustbench:Ada2020Robust")
    assert torch.equal(make_linear((3, 32, 32), 10, seed=1)(x), classifier(x))
    card = classifier.card
    assert (card.name, card.threat, card.data) == ("robustbench:Ada2020Robust", "linf:8/255", "cifar10")
    assert sys.modules["robustbench.eval"].names == str(zoo / "site" / "robustbench" / "ids.txt")
    assert not {"autoattack", "autoattack.state", "pkg_resources"} & set(sys.modules)
    (zoo / "models").rename(zoo / "elsewhere")
    monkeypatch.setenv("ROBUSTGEN_MODELS", str(zoo / "elsewhere"))
    assert load_classifier("robustbench:cifar10/Linf/Ada2020Robust").weights_sha256 == classifier.weights_sha256


def test_run_is_verified_by_name(zoo: Path) -> None:
    """`eval` and `verify` find the model by the name in the record, and `--weights` replaces its weights."""
    put_weights(zoo / "models" / "cifar10" / "L2" / "Ada2020Round.pt")
    x = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels, labels = x.permute(0, 2, 3, 1).numpy(), make_linear((3, 32, 32), 10, seed=1)(x / 255).argmax(1).numpy()
    (zoo / "data" / "cifar10").mkdir(parents=True)
    np.savez(zoo / "data" / "cifar10" / "test.npz", image=pixels, label=labels)
    record = robustgen.evaluate(
        "robustbench:L2/Ada2020Round", attacks="fgsm", data_dir="data", precision="float32", out="run"
    )
    assert record.clean_accuracy.value == 1
    assert record.spec["threat"] == "l2:0.5"
    assert _run(["verify", "run", "--data-dir", "data"]) == 0
    torch.save(make_linear((3, 32, 32), 10, seed=2).state_dict(), zoo / "mine.pt")
    other = load_classifier("robustbench:L2/Ada2020Round", weights="mine.pt")
    assert other.card.name == "robustbench:L2/Ada2020Round+mine"


def test_scripts_load_models_and_images(zoo: Path) -> None:
    """`load_model` takes its folder and the older name of the threat; `load_cifar10` gives the first images."""
    put_weights(zoo / "mine" / "cifar10" / "L2" / "Ada2020Round.pt")
    pixels = np.arange(4 * 32 * 32 * 3, dtype=np.uint8).reshape(4, 32, 32, 3)
    (zoo / "data" / "cifar10").mkdir(parents=True)
    np.savez(zoo / "data" / "cifar10" / "test.npz", image=pixels, label=np.arange(4))
    x, y = compat.load_cifar10(n_examples=3)
    assert torch.equal(torch.from_numpy(pixels[:3]).permute(0, 3, 1, 2) / 255, x)
    assert y.tolist() == [0, 1, 2]
    smaller, _ = compat.load_cifar10(2, "data", Compose([Resize(8), ToTensor()]))
    assert smaller.shape == (2, 3, 8, 8)
    same, _ = compat.load_cifar10(n_examples=3, transforms_test=ToTensor())
    assert torch.equal(x, same)
    model = compat.load_model("Ada2020Round", model_dir=zoo / "mine", norm="L2")
    assert torch.equal(make_linear((3, 32, 32), 10, seed=1)(x), model(x))
    with pytest.raises(SpecError, match="n_examples must be from 1 to 4, got 5"):
        compat.load_cifar10(n_examples=5)
    with pytest.raises(SpecError, match=r"custom_checkpoint: .* weights=FILE"):
        compat.load_model("Ada2020Round", custom_checkpoint="x.pt")
    with pytest.raises(ArtifactError, match=r"no weights in models/cifar10/L2/Ada2020Round\.pt"):
        compat.load_model("Ada2020Round", threat_model="L2")


def test_missing_weights_say_where_they_belong(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a network: the place, the address and what to type; no draft is left."""
    assert _run(["eval", "robustbench:Ada2020Robust"]) == 2
    with pytest.raises(ArtifactError, match=r"no weights in models/cifar10/Linf/Ada2020Robust\.pt, .*not known.*id-1"):
        load_classifier("robustbench:Ada2020Robust")
    with pytest.raises(ArtifactError, match=r"no weights in models/cifar10/Linf/Two\.pt_m0\.pt"):
        load_classifier("robustbench:Two")
    assert [path for path in (zoo / "models").rglob("*") if path.is_file()] == []


def test_page_of_html_is_no_checkpoint(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Google Drive sends instead of a file is refused and not kept; a damaged file is named."""
    package = robustbench_zoo.robustbench()
    monkeypatch.setattr(package.utils, "download_gdrive_new", lambda _, place: place.write_text("<!DOCTYPE html>"))
    with pytest.raises(ArtifactError, match="it brought a page of HTML"):
        load_classifier("robustbench:Ada2020Robust")
    place = zoo / "models" / "cifar10" / "Linf" / "Ada2020Robust.pt"
    assert not place.exists()
    place.write_text("nothing")
    with pytest.raises(ArtifactError, match=r"weights in models/.*Ada2020Robust\.pt cannot be loaded .*get it again"):
        load_classifier("robustbench:Ada2020Robust")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("robustbench:Ada2020Robus", "did you mean 'Ada2020Robust'"),
        ("robustbench:Ada2020Round", "It is there as robustbench:L2/Ada2020Round"),
        ("robustbench:L3/Ada2020Robust", "unknown part of robustbench:L3/Ada2020Robust: 'L3'; did you mean 'L2'"),
        ("robustbench:", r"must be robustbench:\[DATA/\]\[THREAT/\]NAME"),
    ],
)
def test_wrong_names(zoo: Path, spec: str, says: str) -> None:
    """The nearest is named, or where else the model is."""
    with pytest.raises(SpecError, match=says):
        load_classifier(spec)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not installed, the command to install it; overwritten by torchattacks, what to remove first."""
    monkeypatch.setattr(robustbench_zoo.importlib, "import_module", lambda name: 1 / 0)
    monkeypatch.setattr(robustbench_zoo, "_missing", lambda name: False)
    monkeypatch.setattr(robustbench_zoo, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"needs the package robustbench; type pip install 'robustgen\[robustbench\]'"):
        load_classifier("robustbench:Standard")
    monkeypatch.setattr(robustbench_zoo, "find_spec", lambda name: object())
    monkeypatch.setattr(robustbench_zoo, "torchattacks_overwrites", lambda: True)
    with pytest.raises(SpecError, match=r"ZeroDivisionError: .*pip uninstall torchattacks robustbench, then"):
        load_classifier("robustbench:Standard")


@pytest.mark.parametrize("spec", ["robustbench:A", "robustbench:L2/A", "robustbench:cifar100/A"])
def test_names_round_trip(spec: str) -> None:
    """What the record holds is what was typed, without what goes without saying."""
    assert str(ZooName.parse(spec)) == spec
    assert default_data(spec) == ("cifar100" if "100" in spec else "cifar10")
