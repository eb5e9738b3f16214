"""`robustgen doctor`: what it says of a machine that is well, and of ones that are not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from robustgen import doctor
from robustgen.cli import _run
from robustgen.doctor import Finding, examine
from robustgen.weights import Weights


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    """Name -> finding."""
    return {finding.name: finding for finding in findings}


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and one JSON object; data that lies there is found, what does not is said with the place."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(doctor, "_conflicts", list)
    (tmp_path / "cifar10").mkdir()
    np.savez(tmp_path / "cifar10" / "test.npz", image=np.zeros((1, 2, 2, 3), np.uint8), label=[0])
    assert _run(["doctor", "--json", "--data-dir", str(tmp_path)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"]
    seen = {finding["name"]: finding for finding in said["findings"]}
    assert seen["data cifar10"]["value"] == str(tmp_path / "cifar10" / "test.npz")
    assert (seen["data cifar100"]["value"], seen["data cifar100"]["level"]) == (f"not in {tmp_path}", "note")
    assert seen["data fmnist-test-1k"]["level"] == "ok"
    assert re.match(r"auto takes (b?float\d\d)\S* for fmnist-at: timed in \d+\.\d s; this", seen["precision"]["value"])
    assert "OMP_NUM_THREADS=1 is respected" in seen["threads"]["advice"]
    assert re.search(r"robustgen \d.*torch \d.*Python 3", seen["versions"]["value"])


@pytest.mark.parametrize(
    ("versions", "overwritten", "levels"),
    [
        ({}, False, {}),
        ({"torchattacks": "3.5.1"}, True, {"torchattacks": "note"}),
        ({"torchattacks": "3.5.1", "robustbench": "1.1.1", "pyautoattack": "0.2"}, True, {"torchattacks": "wrong"}),
        ({"robustbench": "1.1.1", "pyautoattack": "0.2", "setuptools": "80.9"}, False, {}),
        ({"robustbench": "1.1.1", "pyautoattack": "0.2", "setuptools": "81.0"}, False, {"setuptools": "note"}),
        ({"robustbench": "1.1.1"}, False, {"autoattack": "wrong"}),
    ],
)
def test_conflicts(
    monkeypatch: pytest.MonkeyPatch, versions: dict[str, str], overwritten: bool, levels: dict[str, str]
) -> None:
    """Packages that do not agree are named with what to type, and no others are."""
    monkeypatch.setattr(doctor, "_version", versions.get)
    monkeypatch.setattr(doctor, "torchattacks_overwrites", lambda: overwritten)
    found = list(doctor._conflicts())
    assert {finding.name: finding.level for finding in found} == levels
    assert all("pip" in finding.advice for finding in found)


def test_damage_is_wrong(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Damaged weights, and a check that fails itself, give exit code 1; the rest is still looked at."""
    real = doctor.read_weights

    def damaged(path: Path) -> Weights:
        held = real(path)
        digest = "0" * 64 if path.name == "fmnist-at-l2.safetensors" else held.sha256
        return Weights(path=path, sha256=digest, tensors=held.tensors)

    monkeypatch.setattr(doctor, "read_weights", damaged)
    monkeypatch.setattr(doctor, "_precision", lambda: 1 / 0)
    assert _run(["doctor"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"wrong  weights .*damaged: fmnist-at-l2\n", said)
    assert "ZeroDivisionError: division by zero" in said
    assert "2 of " in said.splitlines()[-1]
    assert "disk" in said


def test_little_memory_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the container leaves counts, not what the machine has."""
    for free, limit, level in ((64, None, "ok"), (64, 1, "note"), (1, None, "note")):
        sizes = (free * 2**30, None if limit is None else limit * 2**30)
        monkeypatch.setattr(doctor, "_free_memory", lambda sizes=sizes: sizes)
        assert by_name(list(doctor._memory()))["memory"].level == level


def test_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look leaves no file and no folder behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(doctor, "_precision", list)
    monkeypatch.setattr(doctor, "_weights", list)
    examine(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
