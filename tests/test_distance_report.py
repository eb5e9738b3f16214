"""`robustgen eval --report distance`: figures against the closed form, JSON, verify, resume, curves, bad input."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

import robustgen
from robustgen import engine
from robustgen.cli import _run
from robustgen.distances import DistanceSummary, accuracy_curve, nearest_of, summarise_distances
from robustgen.errors import SpecError
from robustgen.example import ExampleRecord
from robustgen.plot_distances import draw_distances, plot_distances
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.verify import verify_run
from robustgen.witnesses import read_found_by, read_witnesses, save_packed
from tests.nearest_helpers import FarLinear

ATTACKS = "deepfool,ddn:steps=60,fmn:steps=30"
N = 20


def task() -> tuple[FarLinear, tuple[torch.Tensor, torch.Tensor]]:
    """A linear classifier of two classes and images of which two have the wrong label."""
    model = FarLinear((1, 8, 8), classes=2).eval()
    x, y = model.images(N)
    y[:2] = 1 - y[:2]
    return model, (x, y)


def evaluate(out: Path, **options: Any) -> RunRecord:
    """The run that most tests begin with."""
    model, data = task()
    asked = {"attacks": ATTACKS, "batch_size": 7, **options}
    return robustgen.evaluate(model, data, "l2", report="distance", out=out, **asked)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that no test changes."""
    return Path(evaluate(tmp_path_factory.mktemp("distance") / "run").run)


def check(run: Path) -> tuple[str, ...]:
    """What verify finds wrong; the data lie in memory, so it is given what it would load."""
    return verify_run(run, classifier=f"python:{run.parent}/net.py:make").wrong


@pytest.fixture
def named(tmp_path: Path) -> Path:
    """A finished run by names that verify can load again."""
    model, (x, y) = task()
    (tmp_path / "net.py").write_text(
        "from tests.nearest_helpers import FarLinear\ndef make(): return FarLinear((1, 8, 8), classes=2).eval()\n"
    )
    images = (x.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    grey = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = torch.where(torch.arange(N) < 2, y, model(grey).argmax(1))
    np.savez(tmp_path / "data.npz", image=images, label=labels.numpy())
    robustgen.evaluate(
        f"python:{tmp_path}/net.py:make", f"npz:{tmp_path}/data.npz", "l2", report="distance", attacks=ATTACKS,
        out=tmp_path / "run",
    )  # fmt: skip
    return tmp_path / "run"


def test_distances_are_those_of_the_closed_form(finished: Path) -> None:
    """Each attack within 1.05 of the optimum; best of all, quartiles and curve from the same distances."""
    model, (x, y) = task()
    record, rows = RunRecord.load(finished), read_examples(finished)
    exact = model.exact(x[2:], y[2:], "l2")
    assert record.nearest is not None
    assert record.distances is not None
    assert (N - 2, 2) == (record.nearest.attacked, record.nearest.misclassified)
    assert set(record.distances) == {"deepfool", "ddn", "fmn"}
    for name, row in record.distances.items():
        found = np.array([(e.distances or {})[name] for e in rows[2:]])
        assert 1 - 1e-5 < (found / exact).min() <= (found / exact).max() <= 1.05
        assert row.success == 1
        assert row.median == np.sort(found)[math.ceil(0.5 * 18) - 1]
    best = [nearest_of(e) for e in rows]
    assert [0.0, 0.0] == best[:2]
    assert best[2:] == [min((e.distances or {}).values()) for e in rows[2:]]
    middle = float(np.median(best))
    curve = record.nearest.curve
    assert (0.0, 0.9) == (curve[0].eps, curve[0].value)
    assert 0.0 == curve[-1].value
    value = next(p.value for p in reversed(curve) if p.eps <= middle)
    assert value == np.mean([d > middle for d in best])
    assert 0 == record.robust_accuracy.value
    assert record.spec["precision"].startswith("float32")


def test_witnesses_of_every_attack_are_kept(finished: Path) -> None:
    """The nearest of all in adversarials, what the others found under their own names, at the distances recorded."""
    _, (x, _) = task()
    rows = {e.id: e for e in read_examples(finished)}
    held = [("", id_, image) for id_, image in read_witnesses(finished)]
    held += [(name, id_, image) for name in ("deepfool", "ddn", "fmn") for id_, image in read_found_by(finished, name)]
    assert 18 * 3 == len(held)
    for name, id_, image in held:
        said = (rows[id_].distances or {})[name or str(rows[id_].broken_by)]
        assert said == pytest.approx(float((image.double() - x[id_].double()).norm()), rel=1e-12)


def test_json_obeys_its_schema(finished: Path) -> None:
    """`distances` is attack -> success, median, q25, q75."""
    table = RunRecord.load(finished).to_json()
    assert {"success", "median", "q25", "q75"} == set(table["distances"]["ddn"])
    schemas = Path(robustgen.__file__).parent / "schemas"
    jsonschema.validate(
        json.loads((finished / "record.json").read_text()), json.loads((schemas / "record.schema.json").read_text())
    )
    for line in (finished / "examples.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line), json.loads((schemas / "example.schema.json").read_text()))


def test_batch_size_and_crashes_change_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other batches, and a run that dies in the middle of its second attack, leave the same distances and witnesses.

    To the rounding of float32, whose last bit may depend on the batch, and which no point of a boundary walk forgives.
    """
    evaluate(tmp_path / "other", batch_size=3)
    real, calls = engine.run, []

    def dies(*args: Any, finish: Any, **options: Any) -> None:
        def settle(outcome: engine.Outcome) -> None:
            calls.append(outcome.id)
            if len(calls) == 25:
                raise KeyboardInterrupt
            finish(outcome)

        real(*args, finish=settle, **options)

    monkeypatch.setattr(engine, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "crashed")
    monkeypatch.setattr(engine, "run", real)
    evaluate(tmp_path / "crashed")
    assert 25 == len(calls)
    names = {p.relative_to(finished) for p in finished.rglob("*")}
    for other in (tmp_path / "other", tmp_path / "crashed"):
        assert names == {p.relative_to(other) for p in other.rglob("*")}
        for mine, theirs in zip(read_examples(finished), read_examples(other), strict=True):
            assert (mine.cost, mine.broken_by_all) == (theirs.cost, theirs.broken_by_all)
            assert mine.distances is None or mine.distances == pytest.approx(theirs.distances, rel=1e-4)
        held = sum(1 for name in ("deepfool", "ddn", "fmn") for _ in read_found_by(other, name))
        assert 18 * 3 == held + sum(1 for _ in read_witnesses(other))


def _worst_distance(run: Path) -> None:
    """Enlarge one attack's distance in a row."""
    rows = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    other = next(name for name in rows[5]["distances"] if name != rows[5]["broken_by"])
    rows[5]["distances"][other] += 1e-6
    (run / "examples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def _median(run: Path) -> None:
    """Enlarge a median in the record."""
    table = json.loads((run / "record.json").read_text())
    table["distances"]["ddn"]["median"] *= 1.01
    (run / "record.json").write_text(json.dumps(table))


def _swap(run: Path) -> None:
    """Put the clean image in the place of one attack's witness."""
    path = next((run / "witnesses").glob("by-*.safetensors"))
    label = path.name.removeprefix("by-").partition("-0")[0]
    held = list(read_found_by(run, label))
    save_packed(torch.stack([torch.full_like(image, 0.5) for _, image in held]), [id_ for id_, _ in held], path)


def _drop(run: Path) -> None:
    """Remove one attack's witnesses."""
    next((run / "witnesses").glob("by-*.safetensors")).unlink()


def _not_least(run: Path) -> None:
    """File an attack as the nearest that is not."""
    rows = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    rows[5]["broken_by"] = next(name for name in rows[5]["distances"] if name != rows[5]["broken_by"])
    (run / "examples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (_median, "distances was edited"), (_worst_distance, "was edited"), (_swap, "its distance was edited"),
        (_drop, "but no witness of it"), (_not_least, "was edited"),
    ],
)  # fmt: skip
def test_verify(named: Path, tamper: Any, says: str) -> None:
    """An honest run holds; a distance, a median, a witness that was tampered with is found."""
    assert check(named) == ()
    tamper(named)
    assert any(says in line for line in check(named)), check(named)


def test_edited_distances_without_edited_totals_are_found_by_the_witness(named: Path) -> None:
    """Even where every figure of the record follows from the rows, the stored image says how far away it is."""
    _worst_distance(named)
    record, rows = RunRecord.load(named), read_examples(named)
    each, nearest = summarise_distances(rows, [a.name for a in record.attacks])
    table = json.loads((named / "record.json").read_text())
    table["distances"], table["nearest"] = {k: asdict(v) for k, v in each.items()}, asdict(nearest)
    (named / "record.json").write_text(json.dumps(table))
    assert ["example 5"] == [line.partition(":")[0] for line in check(named)]


def example(id_: int, distances: dict[str, float] | None) -> ExampleRecord:
    """A row with these distances; none at all for a misclassified image."""
    broken = "clean" if distances is None else min(distances, key=lambda k: distances[k]) if distances else None
    return ExampleRecord(
        id=id_, label=0, clean_prediction=int(distances is None), robust=broken is None, broken_by=broken,
        distances=distances,
    )  # fmt: skip


def test_summary_counts_what_was_not_found_as_infinitely_far() -> None:
    """Quartiles of four attacked examples, of which one has no image by `b`, two by `a`; one is misclassified."""
    rows = [example(0, {"a": 1.0, "b": 2.0}), example(1, {"a": 3.0, "b": 1.0}), example(2, {"b": 4.0}), example(3, {}),
            example(4, None)]  # fmt: skip
    each, nearest = summarise_distances(rows, ["a", "b"])
    assert each["a"] == DistanceSummary(success=0.5, median=3.0, q25=1.0, q75=None)
    assert each["b"] == DistanceSummary(success=0.75, median=2.0, q25=1.0, q75=4.0)
    assert nearest.distance == DistanceSummary(success=0.75, median=1.0, q25=1.0, q75=4.0)
    assert (4, 1) == (nearest.attacked, nearest.misclassified)
    assert [(p.eps, p.value) for p in nearest.curve] == [(0.0, 0.8), (1.0, 0.4), (4.0, 0.2)]


def test_curve_has_the_band_of_dkw_and_at_most_so_many_points() -> None:
    """sqrt(ln 40 / 2n) on both sides; the band holds the true curve of a uniform distribution as often as it says."""
    g = np.random.default_rng(0)
    curve = accuracy_curve(g.random(1000).tolist())
    assert 150 < len(curve) <= 201
    margin = math.sqrt(math.log(40) / 2000)
    assert all(p.high - p.value == pytest.approx(min(margin, 1 - p.value)) for p in curve)
    missed = 0
    for _ in range(400):
        points = accuracy_curve(g.random(100).tolist())
        ends = [*[p.eps for p in points[1:]], 1.0]
        missed += any(p.high < 1 - p.eps or p.low > 1 - end for p, end in zip(points, ends, strict=True))
    assert 1 <= missed <= 32  # 5 % are 20


def test_picture(finished: Path, tmp_path: Path) -> None:
    """One curve a run through the share further away than eps; of a single run the attacks' own beside it."""
    record, rows = RunRecord.load(finished), read_examples(finished)
    lines = draw_distances([record], [rows]).axes[0].get_lines()
    assert 4 == len(lines)
    eps, value = (np.asarray(part, dtype=float) for part in lines[0].get_data())
    best = np.array([nearest_of(e) for e in rows])
    assert value == pytest.approx([(best > e).mean() for e in eps])
    assert 2 == len(draw_distances([record, record], [rows, rows]).axes[0].get_lines())
    assert [tmp_path / "accuracy-eps.png"] == plot_distances([finished, finished], out=tmp_path)
    assert (tmp_path / "accuracy-eps.png").read_bytes().startswith(b"\x89PNG")
    assert 0 == _run(["plot", str(finished), "--out", str(tmp_path / "cli")])


def test_commands_that_need_an_eps_say_so(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """compare and plot with a run inside an eps: exit code 2, one sentence."""
    assert 2 == _run(["compare", str(finished), str(finished)])
    assert "holds distances and no verdicts inside an eps" in capsys.readouterr().err
    model, data = task()
    inside = robustgen.evaluate(model, data, "l2:0.1", attacks="pgd:steps=2", out=tmp_path / "inside")
    assert 2 == _run(["plot", str(finished), inside.run])
    assert "was made inside an eps" in capsys.readouterr().err
    shorter = evaluate(tmp_path / "shorter", n=5, attacks="fmn:steps=2")
    with pytest.raises(SpecError, match="cannot share a picture: data_sha256"):
        plot_distances([finished, Path(shorter.run)], out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--threat l2:1 --report distance", "--report distance looks for the nearest adversarial image"),
        ("--threat l2 --attacks fmn", "expected l2:EPS such as l2:0.5"),
        ("--threat l0:9 --report distance", "l0 is measured, not bounded"),
        ("--threat l2 --report distance --plan rapid", "needs an eps, and threat l2 has none"),
        ("--threat l2:1 --attacks ddn", "takes no eps, got l2:1; type --threat l2 --report distance"),
        ("--threat l1 --report distance --attacks cw", "'cw' finds the nearest image in l2, not in l1"),
        ("--threat l2 --report disance", "did you mean 'distance'"),
        ("--report distance --suite fmnist-linf", "--report distance looks for the nearest"),
        ("--threat l2 --report distance --attacks deepfool:overshoot=2", "overshoot is a share"),
    ],
)
def test_bad_requests(arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, exit code 2, nothing written."""
    assert 2 == _run(["eval", "fmnist-at", *arguments.split(), "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The norm is that of the classifier; --json prints one object, a table otherwise."""
    command = ["eval", "fmnist-at-l2", "--report", "distance", "-n", "3", "--out", str(tmp_path / "run")]
    assert 0 == _run([*command, "--attacks", "fmn:steps=10,ddn:steps=10", "--json"])
    table = json.loads(capsys.readouterr().out)
    assert ("l2", {"fmn", "ddn"}) == (table["threat"], set(table["distances"]))
    assert 0 == _run([*command, "--attacks", "fmn:steps=10,ddn:steps=10"])
    told = capsys.readouterr().out
    assert "nearest of all" in told
    assert "robust accuracy" not in told
    assert 0 == _run(["verify", str(tmp_path / "run")])
    assert 0 == _run(["show", "nearest"])
    assert "l0    nearest/1: fmn" in capsys.readouterr().out


def test_randomised_classifiers_are_refused(tmp_path: Path) -> None:
    """A point that is misclassified now and then has no distance."""

    class Noisy(FarLinear):
        """Other logits each time."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.1 * torch.randn(len(x), 2)

    model, data = task()
    with pytest.raises(SpecError, match="gives the same answer each time"):
        robustgen.evaluate(Noisy((1, 8, 8), classes=2).eval(), data, "l2", report="distance", out=tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    assert model is not None
