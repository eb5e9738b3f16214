"""Scripts for AutoAttack and RobustBench run by changing one import, and get the verdicts of `robustgen eval`."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import robustgen
from robustgen import engine
from robustgen.attacks.apgd import APGDCE, APGDT
from robustgen.attacks.fab import FABT
from robustgen.attacks.plans import Plan
from robustgen.attacks.square import Square
from robustgen.compat import AutoAttack, benchmark
from robustgen.compat.settings import VERSIONS, Settings, plan_of
from robustgen.errors import ArtifactError, RobustgenError, SpecError
from robustgen.registry import PLANS
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses
from tests.helpers import assert_global_rng_untouched, make_convnet, make_linear, write_linear_task

EPS = 4 / 255


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier file and a data file of 12 images, two of them misclassified."""
    folder = tmp_path_factory.mktemp("compat")
    write_linear_task(folder, 12)
    return folder


@pytest.fixture(scope="module")
def images(work: Path) -> tuple[Tensor, Tensor]:
    """The same images as tensors."""
    return robustgen.load_data(f"npz:{work}/data.npz").batch(range(12))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan `standard` with few steps; that its real numbers are the shim's is a test of its own."""
    attacks = (APGDCE(steps=10), APGDT(steps=10, restarts=3), FABT(steps=5, restarts=3), Square(steps=30))
    monkeypatch.setitem(PLANS._entries, "standard", lambda threat: Plan("standard", 1, attacks))


def shorten(shim: AutoAttack) -> AutoAttack:
    """The same numbers set on the shim, as a script would."""
    shim.apgd.n_iter = shim.apgd_targeted.n_iter = 10
    shim.apgd_targeted.n_target_classes = shim.fab.n_target_classes = 3
    shim.fab.n_iter, shim.square.n_queries = 5, 30
    return shim


def test_verdicts_are_those_of_eval(work: Path, images: tuple[Tensor, Tensor], short: None) -> None:
    """The same seed finds the same images as `robustgen eval --plan standard`; the global RNG is left alone."""
    x, y = images
    record = robustgen.evaluate(
        f"python:{work}/net.py:make", f"npz:{work}/data.npz", ThreatModel("linf", EPS), plan="standard", seed=3,
        precision="float32", out=work / "run",
    )  # fmt: skip
    with assert_global_rng_untouched():
        shim = shorten(AutoAttack(make_linear(), norm="Linf", eps=EPS, seed=3, verbose=False))
        x_adv, labels = shim.run_standard_evaluation(x, y, bs=5, return_labels=True)
    expected = x.clone()
    for id_, image in read_witnesses(work / "run"):
        expected[id_] = image
    assert torch.equal(expected, x_adv)
    robust = [e.robust for e in read_examples(work / "run")]
    assert (labels == y).tolist() == robust
    assert 0 < sum(robust) < 10
    assert make_linear()(x_adv).argmax(1).tolist() == labels.tolist()
    assert shim.record is not None
    assert shim.record.spec["protocol"] == record.spec["protocol"]
    assert shim.record.spec["plan"] == "standard"
    assert shim.record.robust_accuracy == record.robust_accuracy
    assert float((x_adv - x).abs().max()) <= EPS + 1e-6


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_versions_are_the_plans(version: str, norm: Any) -> None:
    """What a version sets is the plan of that name, so that its record says so; one changed number makes it custom."""
    threat = ThreatModel(norm, 0.1)
    settings = Settings(version, norm)
    assert plan_of(settings, list(VERSIONS[version]), version, threat) == PLANS[version](threat)
    settings.apgd.n_iter = 7
    changed = plan_of(settings, list(VERSIONS[version]), version, threat)
    assert changed.name == "custom"
    assert changed.unconditional()[0].rounds == 8


def test_custom_attacks_in_their_order(images: tuple[Tensor, Tensor], capsys: pytest.CaptureFixture[str]) -> None:
    """Names, order and numbers of the script are what is run; the log has AutoAttack's lines."""
    shim = AutoAttack(make_linear(), eps=EPS, version="custom", attacks_to_run=["square", "apgd-ce"])
    shim.square.n_queries, shim.apgd.n_restarts = 20, 2
    shim.run_standard_evaluation(*images)
    assert shim.record is not None
    protocol = shim.record.spec["protocol"]
    assert protocol.startswith("custom/1: square(steps=20")
    assert "> apgd-ce(steps=100, restarts=2" in protocol
    said = capsys.readouterr().out
    assert "using custom version including square, apgd-ce." in said
    assert "initial accuracy: 83.33%" in said
    assert f"robust accuracy after APGD-CE: {shim.record.robust_accuracy.value:.2%}" in said


def test_other_spelling_is_understood(images: tuple[Tensor, Tensor]) -> None:
    """`attacks` and `batch_size`, as pyautoattack calls them, and a function in place of a module."""
    net = make_linear()
    one = AutoAttack(net, eps=EPS, version="custom", attacks=["apgd-ce"], verbose=False)
    two = AutoAttack(net.forward, eps=EPS, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
    one.apgd.n_iter = two.apgd.n_iter = 5
    assert torch.equal(one.run_standard_evaluation(*images, batch_size=3), two.run_standard_evaluation(*images, 250))


def test_individual_runs_each_alone(work: Path, images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """Each attack sees every correct image, and breaks what it breaks in the plan `individual` of the same seed."""
    shim = AutoAttack(make_linear(), eps=EPS, version="custom", attacks_to_run=["apgd-ce", "square"], verbose=False)
    shorten(shim)
    found = shim.run_standard_evaluation_individual(*images, return_labels=True)
    assert list(found) == ["apgd-ce", "square"]
    for name, typed in (("apgd-ce", "apgd-ce:steps=10:restarts=5"), ("square", "square:steps=30")):
        robustgen.evaluate(
            f"python:{work}/net.py:make", f"npz:{work}/data.npz", ThreatModel("linf", EPS), attacks=typed,
            precision="float32", out=tmp_path / name,
        )  # fmt: skip
        assert (found[name][1] == images[1]).tolist() == [e.robust for e in read_examples(tmp_path / name)]


def test_clean_accuracy_and_log(images: tuple[Tensor, Tensor], tmp_path: Path) -> None:
    """The share of right answers for any batch size, in the log file too; nothing is drawn."""
    log = tmp_path / "log.txt"
    with assert_global_rng_untouched():
        shim = AutoAttack(make_linear(), eps=EPS, verbose=False, log_path=log)
        assert shim.clean_accuracy(*images, bs=5) == shim.clean_accuracy(*images) == 10 / 12
    assert log.read_text() == 2 * "clean accuracy: 83.33%\n"


def test_model_and_images_are_left_alone(images: tuple[Tensor, Tensor]) -> None:
    """Mode, gradients and pixels are as before; the result has the type of what came in."""
    net, x = make_convnet().requires_grad_(requires_grad=True), images[0].double()
    before = x.clone()
    y = net(images[0]).argmax(1)
    shim = AutoAttack(net, eps=0.5, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
    shim.apgd.n_iter, shim.apgd.n_restarts = 5, 1
    x_adv = shim.run_standard_evaluation(x, y)
    assert torch.equal(before, x)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert (x_adv.dtype, x_adv.shape) == (torch.float64, x.shape)


def test_state_path_goes_on(
    images: tuple[Tensor, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """A stopped call goes on in its folder and returns all images; a finished one is read."""

    def shim() -> AutoAttack:
        attacks = ["apgd-ce", "apgd-t"]
        return shorten(AutoAttack(make_linear(), eps=EPS, version="custom", attacks_to_run=attacks, verbose=False))

    whole = shim().run_standard_evaluation(*images)
    real, calls = engine.run, []

    def stopped(*args: Any, **options: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*args, **options)

    monkeypatch.setattr(engine, "run", stopped)
    with pytest.raises(KeyboardInterrupt):
        shim().run_standard_evaluation(*images, state_path=tmp_path / "state")
    monkeypatch.setattr(engine, "run", real)
    assert torch.equal(whole, shim().run_standard_evaluation(*images, state_path=tmp_path / "state"))
    monkeypatch.setattr(engine, "run", None)
    assert torch.equal(whole, shim().run_standard_evaluation(*images, state_path=str(tmp_path / "state")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"norm": "L3"}, "unknown norm 'L3'; did you mean 'L"),
        ({"version": "standart"}, "did you mean 'standard'"),
        ({"attacks_to_run": ["apgd-ce"]}, "attacks_to_run is for version='custom'"),
        ({"version": "custom"}, "attacks_to_run is empty"),
        ({"version": "custom", "attacks_to_run": ["apgd"]}, "did you mean 'apgd-"),
        ({"is_tf_model": True}, "attacks PyTorch models"),
        ({"eps": -1}, "eps must be a positive number"),
        ({"device": "tpu9"}, "device must be such as 'cpu'"),
        ({"version": "rand"}, "averages 20 draws of a stochastic classifier"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    images: tuple[Tensor, Tensor], options: dict[str, Any], says: str
) -> None:  # fmt: skip
    """In a sentence, before any attack."""
    with pytest.raises(SpecError, match=says):
        AutoAttack(make_linear(), verbose=False, **options).run_standard_evaluation(*images)


def test_settings_refuse_what_they_do_not_know() -> None:
    """A misspelt or unknown hyper-parameter, and a value that is none."""
    shim = AutoAttack(make_linear(), verbose=False)
    with pytest.raises(SpecError, match="unknown setting of APGDSettings 'n_restart'; did you mean 'n_restarts'"):
        shim.apgd.n_restart = 2  # type: ignore[attr-defined]
    with pytest.raises(SpecError, match=r"SquareSettings\.n_queries must be a whole number >= 1, got 0"):
        shim.square.n_queries = 0
    with pytest.raises(SpecError, match=r"model must be a torch\.nn\.Module or a function"):
        AutoAttack("net")


class Data(enum.Enum):
    """As RobustBench's enumeration."""

    cifar_10 = "cifar10"


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 12 images in data/cifar10 of which a linear classifier gets ten right."""
    net = make_linear((3, 32, 32), 10)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    labels = net(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    labels[:2] = (labels[:2] + 1) % 10
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    np.savez(tmp_path / "data" / "cifar10" / "test.npz", image=pixels, label=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_benchmark_is_eval_on_the_test_set(cifar: Path, short: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Both figures are those of `robustgen.evaluate`; to_disk writes RobustBench's file; nothing is drawn."""
    net = make_linear((3, 32, 32), 10)
    with assert_global_rng_untouched():
        clean, robust = benchmark(
            net, n_examples=9, dataset=Data.cifar_10, threat_model="Linf", eps=0.2 / 255, to_disk=True,
            model_name="Mine2026", aa_state_path=cifar / "run",
        )  # fmt: skip
    record = robustgen.evaluate(
        net, "cifar10", ThreatModel("linf", 0.2 / 255), plan="standard", n=9, precision="float32", data_dir="data",
        device="cpu", out="other",
    )  # fmt: skip
    assert (clean, robust) == (record.clean_accuracy.value, record.robust_accuracy.value)
    assert 0 < robust < clean == 7 / 9
    held = json.loads((cifar / "model_info" / "cifar10" / "Linf" / "Mine2026.json").read_text())
    assert (held["name"], held["dataset"], held["clean_acc"]) == ("Mine2026", "cifar10", "77.78")
    assert held["autoattack_acc"] == f"{100 * robust:.2f}"
    assert "Clean accuracy: 77.78%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dataset": "cifar11"}, "did you mean 'cifar10"),
        ({"dataset": "imagenet"}, "no list of RobustBench's 5,000 images"),
        ({"threat_model": "corruptions_3d"}, "15 common corruptions only"),
        ({"threat_model": "L1"}, "unknown threat_model 'L1'"),
        ({}, "threat_model Linf needs an eps"),
        ({"threat_model": "corruptions", "eps": 0.1}, "has no eps"),
        ({"threat_model": "corruptions"}, "get CIFAR-10-C.tar from"),
        ({"eps": 0.1, "to_disk": True}, "needs a model_name"),
        ({"eps": 0.1, "preprocessing": "Res256Crop224"}, "taken as they are"),
        ({"eps": 0.1, "n_examples": 13}, "cifar10 has 12 examples"),
        ({"eps": 0.1, "aa_state_path": "data/cifar10/test.npz"}, "is a file, and robustgen keeps a run in a folder"),
    ],
)
def test_benchmark_refuses_before_any_work(cifar: Path, options: dict[str, Any], says: str) -> None:
    """In a sentence that says what to write."""
    with pytest.raises(RobustgenError, match=says):
        benchmark(make_linear((3, 32, 32), 10), **options)
    with pytest.raises(SpecError, match=r"must be one torch\.nn\.Module, got a list"):
        benchmark([], eps=0.1)  # type: ignore[arg-type]


def test_benchmark_without_data_says_where(cifar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing images are an error that names the files."""
    import torchvision

    def fail(*args: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", fail)
    with pytest.raises(ArtifactError, match=r"expected cifar100/test\.npz or cifar-100-python/"):
        benchmark(make_linear((3, 32, 32), 10), dataset="cifar100", eps=0.1)
