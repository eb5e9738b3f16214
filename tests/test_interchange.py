"""Out to RobustBench's files and in from anybody's: what was exported comes back with the same verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import robustgen
from robustgen.cli import _run
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses
from tests.helpers import make_linear, write_linear_task


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier file, a data file of 30 images, and a finished run."""
    folder = tmp_path_factory.mktemp("interchange")
    write_linear_task(folder, 30)
    evaluate(folder, "run")
    return folder


def names(folder: Path) -> tuple[str, str]:
    """Classifier and data as they are typed."""
    return f"python:{folder}/net.py:make", f"npz:{folder}/data.npz"


def evaluate(folder: Path, out: str, **options: Any) -> RunRecord:
    """A run under PGD."""
    return robustgen.evaluate(
        *names(folder), "linf:2/255", attacks="pgd:steps=20", precision="float32", out=folder / out, **options
    )


def bring_in(work: Path, file: Path, out: Path, *extra: str) -> int:
    """`robustgen import` of a file."""
    classifier, data = names(work)
    typed = ["import", "--adversarials", str(file), "--classifier", classifier, "--data", data, "--threat"]
    return _run([*typed, "linf:2/255", "--out", str(out), "--json", *extra])


def export(work: Path, out: Path) -> tuple[Tensor, dict[str, Any]]:
    """What `robustgen export` writes."""
    assert 0 == _run(["export", str(work / "run"), "--format", "robustbench", "--out", str(out)])
    return torch.load(out / "adversarials.pt", weights_only=True), json.loads((out / "model_info.json").read_text())


def test_there_and_back(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tensor has one image for each example; imported, it breaks exactly what the run broke, and verifies."""
    images, info = export(work, tmp_path / "out")
    record = RunRecord.load(work / "run")
    assert (30, 1, 8, 8) == tuple(images.shape)
    assert images.dtype == torch.float32
    for id_, witness in read_witnesses(work / "run"):
        assert torch.equal(witness, images[id_])
    assert ("2/255", "Linf") == (info["eps"], info["norm"])
    assert f"{100 * record.robust_accuracy.value:.2f}" == info["external"]
    assert info["autoattack_acc"] == ""
    capsys.readouterr()
    assert 0 == bring_in(work, tmp_path / "out" / "adversarials.pt", tmp_path / "back")
    back = json.loads(capsys.readouterr().out)
    assert back["robust_accuracy"]["value"] == record.robust_accuracy.value
    assert [e.robust for e in read_examples(work / "run")] == [e.robust for e in read_examples(tmp_path / "back")]
    assert 0 == _run(["verify", str(tmp_path / "back"), "--classifier", names(work)[0]])


def test_attacks_have_no_log(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The format of certifications is refused for a run of attacks, with the one that fits."""
    assert 2 == _run(["export", str(work / "run"), "--format", "tsv"])
    assert "is no certification; use --format robustbench" in capsys.readouterr().err


def test_images_that_cannot_count(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outside the ball, beyond the box or not finite: counted, said, and no break."""
    images, _ = export(work, tmp_path / "out")
    broken = [e.id for e in read_examples(work / "run") if e.broken_by == "pgd"]
    images[broken[0]] += 0.1
    images[broken[1], 0, 0, 0] = -0.001
    images[broken[2], 0, 3, 3] = torch.nan
    torch.save({"adv": images}, tmp_path / "adv.pt")
    capsys.readouterr()
    assert 0 == bring_in(work, tmp_path / "adv.pt", tmp_path / "back")
    back = json.loads(capsys.readouterr().out)
    assert any("2 of 30 images lie outside linf:2/255" in note for note in back["notes"])
    assert any("1 of 30 images hold NaN" in note for note in back["notes"])
    fates = {e.id: e.robust for e in read_examples(tmp_path / "back")}
    assert [True] * 3 == [fates[id_] for id_ in broken[:3]]
    assert not any(fates[id_] for id_ in broken[3:])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
def test_kinds_of_files(suffix: str, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any of the three, also for some of the examples only; bytes are divided by 255."""
    images, _ = export(work, tmp_path / "out")
    part = images[5:15].contiguous()
    part = (part * 255).round().byte() if suffix == ".npy" else part
    file = tmp_path / f"adv{suffix}"
    if suffix == ".npy":
        np.save(file, part.numpy())
    elif suffix == ".pt":
        torch.save(part, file)
    else:
        save_file({"x": part}, file)
    capsys.readouterr()
    assert 0 == bring_in(work, file, tmp_path / "back", "--ids", "5-14")
    back = json.loads(capsys.readouterr().out)
    expected = part.float() / 255 if part.dtype == torch.uint8 else part
    data = np.load(work / "data.npz")
    x = torch.from_numpy(data["image"][5:15]).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(data["label"][5:15])
    inside = ThreatModel.parse("linf:2/255").contains(x, expected)
    model = make_linear((1, 8, 8))
    robust = (model(x).argmax(1) == y) & ~(inside & (model(expected).argmax(1) != y))
    assert int(robust.sum()) == round(10 * back["robust_accuracy"]["value"])


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


def test_files_that_are_refused(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong number or shape of images, no tensor, code, nothing there: exit 2, one sentence, no folder."""
    cases: list[tuple[str, Any, str]] = [
        ("few.pt", torch.zeros(7, 1, 8, 8), "expected 30 images of shape (1, 8, 8)"),
        ("wide.pt", torch.zeros(30, 3, 8, 8), "holds (30, 3, 8, 8)"),
        ("flat.pt", torch.zeros(30, 64), "holds no tensor (N, C, H, W)"),
        ("evil.pt", _Evil(), "cannot be read as tensors"),
        ("text.pt", None, "cannot be read as tensors"),
        ("gone.pt", None, "there is no file"),
    ]
    for name, content, says in cases:
        if name == "text.pt":
            (tmp_path / name).write_text("no tensors here")
        elif content is not None:
            torch.save(content, tmp_path / name)
        assert 2 == bring_in(work, tmp_path / name, tmp_path / "refused")
        said = capsys.readouterr()
        assert says in said.err
        assert "code was run" not in said.out
        assert 1 == len(said.err.strip().splitlines())
        assert not (tmp_path / "refused").exists()
    assert 2 == _run(["export", str(work / "run"), "--format", "robutsbench"])
    assert "did you mean 'robustbench'" in capsys.readouterr().err


def test_a_run_starts_from_another(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Witnesses of one run are tried first in the next; the protocol names them by their hash."""
    classifier, data = names(work)
    typed = ["eval", classifier, "--data", data, "--threat", "linf:2/255", "--attacks", "pgd:steps=2", "--precision"]
    begun = ["float32", "--start-from", str(work / "run"), "--json", "--out", str(tmp_path / "run")]
    assert 0 == _run([*typed, *begun])
    record = json.loads(capsys.readouterr().out)
    assert "replay(source=" in record["protocol"]
    before = RunRecord.load(work / "run")
    assert sum(a.broken for a in before.attacks) == record["attacks"][0]["broken"]
    assert 0 == _run(["verify", str(tmp_path / "run"), "--classifier", classifier])
    other = robustgen.evaluate(
        f"python:{work}/net.py:other", data, "linf:2/255", attacks=f"replay:source={work}/run", precision="float32",
        out=tmp_path / "transfer",
    )  # fmt: skip
    assert other.attacks[0].forwards > 0
    assert 2 == _run([*typed, "float32", "--start-from", str(tmp_path)])
    assert "is not a finished run" in capsys.readouterr().err
    assert 2 == _run([*typed[:-2], "replay", "--precision", "float32"])
    assert "name where the images are" in capsys.readouterr().err
