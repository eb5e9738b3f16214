"""A whole evaluation: figures against brute force, the record, resume after a kill, and the Python API."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen import prepare
from robustgen.cards import bundled_cards
from robustgen.engine import Outcome
from robustgen.errors import RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.journal import Journal
from robustgen.record import RunRecord
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses
from tests.helpers import ROOT, make_convnet, make_images, make_linear

SAME = ("spec.json", "examples.jsonl", "witnesses/adversarials-00000.safetensors")


@pytest.fixture
def task() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A linear classifier of two classes, images of which it gets some wrong."""
    model = make_linear(classes=2)
    x, y = make_images(model, 60)
    x = 0.5 + 0.2 * (x - 0.5)
    y = model(x).argmax(1)
    y[::7] = 1 - y[::7]
    return model, (x, y)


def examples(run: str | Path) -> list[ExampleRecord]:
    """All lines of a finished run."""
    return [ExampleRecord.from_line(line) for line in (Path(run) / "examples.jsonl").read_text().splitlines()]


def test_figures_are_those_of_the_closed_form(task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """Clean and robust accuracy equal what the exact distances to the boundary say."""
    model, (x, y) = task
    distance = model.distance(x, y, "linf")  # type: ignore[operator]
    eps = float(distance[distance > 0].median()) * 1.001
    record = robustgen.evaluate(model, (x, y), ThreatModel("linf", eps), out=tmp_path / "run", batch_size=16)
    assert float((distance > 0).float().mean()) == pytest.approx(record.clean_accuracy.value)
    assert float((distance > eps).float().mean()) == pytest.approx(record.robust_accuracy.value)
    assert record.clean_accuracy.low < record.clean_accuracy.value < record.clean_accuracy.high


def test_record_and_witnesses_prove_the_figures(task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """From the folder alone: every broken example has its image, inside the ball, misclassified."""
    model, (x, y) = task
    record = robustgen.evaluate(model, (x, y), "linf:0.05", out=tmp_path / "run")
    rows = examples(record.run)
    assert list(range(60)) == [row.id for row in rows]
    witnesses = dict(read_witnesses(Path(record.run)))
    broken = [row for row in rows if row.broken_by not in (None, "clean")]
    assert broken
    assert {row.id for row in broken} == set(witnesses)
    threat = ThreatModel.parse("linf:0.05")
    for row in broken:
        image = witnesses[row.id][None]
        assert threat.contains(x[row.id : row.id + 1], image).all()
        assert float(threat.distance(x[row.id : row.id + 1], image)) == row.distance
        assert int(model(image).argmax(1)) == row.prediction != row.label == int(y[row.id])
    assert sum(row.robust for row in rows) / 60 == record.robust_accuracy.value
    assert sum(a.broken for a in record.attacks) == len(broken)
    assert record.forwards == 60 + sum(sum(c[0] for c in row.cost.values()) for row in rows)
    loaded = RunRecord.load(tmp_path / "run")
    assert loaded == record
    assert json.loads((tmp_path / "run" / "record.json").read_text())["plan"] == "rapid"


def test_batch_size_and_order_change_no_figure(task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """Same verdicts for batches of 60 and of 7."""
    model, data = task
    fates = []
    for batch_size in (60, 7):
        record = robustgen.evaluate(model, data, "linf:0.03", out=tmp_path / str(batch_size), batch_size=batch_size)
        fates.append([(row.robust, row.broken_by, row.round) for row in examples(record.run)])
    assert fates[0] == fates[1]


def test_a_finished_run_is_read_not_run(
    task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same call answers from the record, and says so."""
    model, data = task
    first = robustgen.evaluate(model, data, "linf:0.03", out=tmp_path / "run")
    monkeypatch.setattr("robustgen.engine.run", lambda *a, **k: pytest.fail("attacked again"))
    assert first == robustgen.evaluate(model, data, "linf:0.03", out=tmp_path / "run")


def test_an_interrupted_run_goes_on(
    task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished is kept, and the verdicts are those of a run without interruption."""
    model, data = task
    whole = robustgen.evaluate(model, data, "linf:0.05", out=tmp_path / "whole", batch_size=10)
    add, filed = Journal.add, []

    def add_then_stop(self: Journal, record: ExampleRecord, x_adv: Tensor | None) -> None:
        add(self, record, x_adv)
        filed.append(record.id)
        if len(filed) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_then_stop)
    with pytest.raises(KeyboardInterrupt):
        robustgen.evaluate(model, data, "linf:0.05", out=tmp_path / "cut", batch_size=10)
    monkeypatch.setattr(Journal, "add", add)
    assert 20 == len((tmp_path / "cut" / "examples.jsonl").read_text().splitlines())
    with pytest.raises(RecordError, match="unfinished"):
        RunRecord.load(tmp_path / "cut")
    resumed = robustgen.evaluate(model, data, "linf:0.05", out=tmp_path / "cut", batch_size=10)
    assert whole.robust_accuracy == resumed.robust_accuracy
    fates = [[(row.id, row.robust, row.broken_by) for row in examples(record.run)] for record in (whole, resumed)]
    assert fates[0] == fates[1]
    assert dict(read_witnesses(tmp_path / "whole")).keys() == dict(read_witnesses(tmp_path / "cut")).keys()


@pytest.mark.slow
def test_kill_9_loses_nothing_finished(tmp_path: Path) -> None:
    """A killed process leaves whole lines with their witnesses; the same command completes the same folder."""
    (tmp_path / "model.py").write_text(
        "import torch\nfrom tests.helpers import make_convnet\n\n\ndef make():\n    return make_convnet(classes=10)\n",
        encoding="utf-8",
    )
    command = [
        sys.executable, "-m", "robustgen", "eval", "python:model.py:make", "--threat", "linf:0.02",
        "--attacks", "apgd-ce,square:steps=400", "--n", "300", "--precision", "float32", "--batch-size", "32", "--out",
    ]  # fmt: skip
    paths = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kept = 0
    for _ in range(2):
        process = subprocess.Popen([*command, "cut"], cwd=tmp_path, env=paths, stderr=subprocess.DEVNULL)
        lines = tmp_path / "cut" / "examples.jsonl"
        while process.poll() is None and not (lines.is_file() and len(lines.read_bytes().splitlines()) > kept):
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = len(lines.read_bytes().splitlines())
    for out in ("cut", "whole"):
        subprocess.run([*command, out], cwd=tmp_path, env=paths, check=True, capture_output=True)
    assert kept > 0
    for name in SAME:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_torn_last_line_is_dropped(task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """A line that was being written at the kill is run again; a bad one in the middle is refused."""
    model, data = task
    whole = robustgen.evaluate(model, data, "linf:0.05", out=tmp_path / "whole")
    run = Path(whole.run)
    text = (run / "examples.jsonl").read_text()
    (run / "record.json").unlink()
    (run / "examples.jsonl").write_text(text[: len(text) // 2])
    again = robustgen.evaluate(model, data, "linf:0.05", out=run)
    assert whole.robust_accuracy == again.robust_accuracy
    assert text == (run / "examples.jsonl").read_text()
    (run / "record.json").unlink()
    (run / "examples.jsonl").write_text("{broken\n" + text)
    with pytest.raises(RecordError, match="line 1, cannot be read"):
        robustgen.evaluate(model, data, "linf:0.05", out=run)


def test_another_run_in_the_folder_is_refused(task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    """The fields that differ are named, and the folder stays as it was."""
    model, data = task
    robustgen.evaluate(model, data, "linf:0.05", out=tmp_path / "run")
    before = (tmp_path / "run" / "record.json").read_bytes()
    with pytest.raises(RecordError, match=r"threat: linf:0.03 / linf:0.05.*seed: 1 / 0"):
        robustgen.evaluate(model, data, "linf:0.03", out=tmp_path / "run", seed=1)
    assert before == (tmp_path / "run" / "record.json").read_bytes()


def test_model_is_left_as_found_and_its_form_falls_back(tmp_path: Path) -> None:
    """A model that can only view is evaluated in plain float32, with a note, and keeps its own mode and gradients."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)
            self.head = nn.Linear(128, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            if not h.is_contiguous():
                raise RuntimeError("view size is not compatible")
            logits: Tensor = self.head(h.view(len(x), -1))
            return logits

    model = Views()
    x, y = make_images(model, 12, (1, 8, 8))
    record = robustgen.evaluate(model, (x, y), "l2:0.3", out=tmp_path / "run")
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert record.n == 12
    assert str(record.spec["precision"]).startswith("float32")


def test_sick_models_are_counted_and_flagged(tmp_path: Path) -> None:
    """Non-finite logits in mid-attack: the example is reported, not broken, and the run is flagged."""

    class SickWhereBright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            level = x.flatten(1).mean(1)
            z = torch.stack([0.9 - level, level - 0.9], 1)
            return torch.where((level > 0.7)[:, None], torch.nan, z)

    x = torch.tensor([0.5, 0.55, 0.69]).reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4).clone()
    record = robustgen.evaluate(
        SickWhereBright().eval(),
        (x, torch.zeros(3, dtype=torch.int64)),
        "linf:0.1",
        out=tmp_path / "r",
        attacks="pgd:steps=20",
    )
    assert "not-finite" in record.flags
    assert [None, None] == [row.error for row in examples(record.run)][:2]
    assert "not finite" in str(examples(record.run)[2].error)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threat": None}, "--threat linf:8/255"),
        ({"precision": "bfloat17"}, "auto, float32 or"),
        ({"batch_size": 0}, "--batch-size"),
        ({"device": "tpu"}, "--device must be"),
        ({"seed": -1}, "seed must be"),
        ({"n": 61}, "60"),
        ({"ids": [3, 99]}, "99"),
    ],
)
def test_bad_requests(
    task: tuple[nn.Module, tuple[Tensor, Tensor]], tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    """Refused before anything is written."""
    model, data = task
    with pytest.raises(SpecError, match=says):
        robustgen.evaluate(model, data, **{"threat": "linf:0.1", "out": tmp_path / "run", **options})
    assert not (tmp_path / "run").exists()


def test_outcomes_are_frozen() -> None:
    """Nobody edits a verdict after the judge."""
    outcome = Outcome(0, False, None, None, None, None, None, 1, 0, 0.5)
    with pytest.raises(AttributeError):
        outcome.broken = True  # type: ignore[misc]


def test_a_convnet_in_every_norm(tmp_path: Path) -> None:
    """Quick runs in every norm, on rectangular colour images."""
    model = make_convnet(channels=3, classes=6)
    x, y = make_images(model, 20, (3, 9, 14))
    for threat in ("linf:16/255", "l2:1", "l1:9"):
        record = robustgen.evaluate(model, (x, y), threat, out=tmp_path / threat[:4].strip(":"))
        assert record.clean_accuracy.value == 1.0
        assert 0 <= record.robust_accuracy.value < 1


@pytest.mark.parametrize(
    ("classifier", "data"),
    [("fmnist-at-l2", "fmnist-test-1k"), ("cifar10-at", "cifar10"), ("decoy-cold", "fmnist-test-1k"), ("other", None)],
)
def test_a_card_names_the_data(classifier: str, data: str | None, tmp_path: Path) -> None:
    """A classifier is evaluated on its own data unless told otherwise; whoever has no card gets the embedded images."""
    assert (data or "fmnist-test-1k") == prepare.default_data(classifier)
    if data is not None:
        card = tmp_path / "mine.json"
        shutil.copy2(bundled_cards()[classifier], card)
        assert data == prepare.default_data(str(card))
