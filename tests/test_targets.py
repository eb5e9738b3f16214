"""Runs with a goal: what counts, the matrix, what verify says, and that runs without one stay as they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import robustgen
from robustgen.attacks.plans import describe, parse_plan
from robustgen.cli import _run
from robustgen.errors import RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.record import RunRecord
from robustgen.registry import ATTACKS
from robustgen.runs import read_examples
from robustgen.spec import RunSpec
from robustgen.threat import ThreatModel
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses
from tests.helpers import make_convnet, make_images, make_linear, write_linear_task
from tests.test_schemas import schema

# What was printed before goals, plans of one's own with budgets, and closeness existed.
LINE = "2a1ab947b56322461dd4dc5f0f947f881ab8334bf9874c759fd4f979d7fa1a22"
PLANS = "263882aacb58120146d5cd82866c7ccd0257b8d6cebddd6d78af9aa38ed9a492"
DESCRIBED = "eb384ed598d177d2653d5f359238a8b1b440b7987fa6d803d724675e5cb68d85"
OLD_ATTACKS = [
    "apgd-ce", "apgd-dlr", "apgd-t", "clean", "cw", "ddn", "deepfool", "fab", "fab-t", "fgsm", "fmn", "fmn-t", "malt",
    "noise", "pgd", "replay", "square",
]  # sigma-zero is left out: it steps by Adam since  # fmt: skip
OLD_DEFAULTS = {"deepfool": {"overshoot": 0.02}}  # another one now, and a protocol says so

ATTACKED = {"attacks": "pgd:steps=10,square:steps=20", "precision": "float32"}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of four classes with 24 images, two of them misclassified."""
    folder = tmp_path_factory.mktemp("targets")
    write_linear_task(folder, 24)
    return folder


def evaluate(task: Path, out: Path, goal: str | None, **options: Any) -> RunRecord:
    """A run of that classifier."""
    asked = {"threat": "linf:8/255", "goal": goal, "out": out, **ATTACKED, **options}
    return robustgen.evaluate(f"python:{task}/net.py:make", f"npz:{task}/data.npz", **asked)


def wrong(run: Path, task: Path) -> tuple[str, ...]:
    """What verify finds."""
    return verify_run(run, classifier=f"python:{task}/net.py:make").wrong


@pytest.fixture(scope="module")
def everywhere(task: Path) -> Path:
    """A run with --goal all."""
    evaluate(task, task / "all", "all")
    return task / "all"


# ------------------------------------------------------------------------------------- without a goal nothing changed


def test_identity_of_an_old_spec_is_the_same() -> None:
    """As computed before goals existed."""
    spec = RunSpec(
        classifier="fmnist-at", weights_sha256="ab" * 32, data="fmnist-test-1k", data_sha256="cd" * 32, ids="0-999",
        threat="linf:0.1", plan="rapid", protocol="rapid/1: pgd(steps=40)", seed=0, precision="float32",
    )  # fmt: skip
    assert spec.identity() == "11424cb9a3cd436710132ff920416fbca4ebe0bc93165254f29e20c05d0cb94a"
    old = json.loads(json.dumps(spec.to_json()))
    assert {"goal", "plan_sha256"}.isdisjoint(old)
    assert spec == RunSpec.from_json(old, "here")
    aimed = RunSpec.from_json({**old, "goal": "next"}, "here")
    assert aimed.identity() != spec.identity()
    assert aimed == RunSpec.from_json(aimed.table(), "here")
    with pytest.raises(RecordError, match="expected the fields"):
        RunSpec.from_json({key: value for key, value in old.items() if key != "seed"}, "here")


def test_line_of_an_old_example_is_the_same() -> None:
    """Byte for byte."""
    example = ExampleRecord(
        id=3, label=1, clean_prediction=1, robust=False, broken_by="pgd", threat="linf:0.1", restart=0, round=2,
        distance=0.1, prediction=4, cost={"pgd": [3, 3]}, missed=True,
    )  # fmt: skip
    assert hashlib.sha256(example.line().encode()).hexdigest() == LINE
    assert example == ExampleRecord.from_line(example.line())


def test_protocols_of_old_plans_and_attacks_are_the_same() -> None:
    """Plans in three norms, attacks with their defaults: from before goals; adaptive, rapid and strong are newer."""
    norms = (ThreatModel("linf", 0.1), ThreatModel("l2", 0.5), ThreatModel("l1", 10.0))
    plans = ["individual", "nearest", "plus", "rand", "standard"]
    said = "".join(parse_plan(name, None, threat).protocol(10) + "\n" for name in plans for threat in norms)
    assert hashlib.sha256(said.encode()).hexdigest() == PLANS
    shown = "".join(describe(ATTACKS[name](**OLD_DEFAULTS.get(name, {})), 10) + "\n" for name in OLD_ATTACKS)
    assert hashlib.sha256(shown.encode()).hexdigest() == DESCRIBED


def test_record_without_a_goal_has_no_word_of_it(task: Path, tmp_path: Path) -> None:
    """Neither spec, nor lines, nor record."""
    record = evaluate(task, tmp_path / "run", None)
    held = "".join((tmp_path / "run" / name).read_text() for name in ("spec.json", "examples.jsonl", "record.json"))
    assert '"target' not in held
    assert '"goal' not in held
    assert record.targets is None
    assert record.identity == evaluate(task, tmp_path / "same", "untargeted").identity


# ------------------------------------------------------------------------------------- one goal


@pytest.mark.parametrize("goal", ["targeted:1", "next", "least-likely"])
def test_success_is_the_target_and_nothing_else(task: Path, tmp_path: Path, goal: str) -> None:
    """Witnesses are classified as their target; the matrix, the accuracies and the schema follow from the rows."""
    record, run = evaluate(task, tmp_path / "run", goal), tmp_path / "run"
    model, rows, images = make_linear((1, 8, 8)), read_examples(run), dict(read_witnesses(run))
    x = torch.from_numpy(np.load(task / "data.npz")["image"]).permute(0, 3, 1, 2).float() / 255
    z = model(x)
    for e in rows:
        others = z[e.id].clone()
        others[e.label] = torch.inf
        expected = {"targeted:1": 1, "next": (e.label + 1) % 4, "least-likely": int(others.argmin())}[goal]
        assert expected == e.target
        if e.broken_by not in (None, "clean"):
            assert e.target == e.prediction == int(model(images[e.id][None]).argmax(1))
            assert not e.skipped
    skipped = [e for e in rows if e.label == e.target]
    kept = [e for e in rows if e.label != e.target]
    assert record.targets is not None
    assert len(skipped) == record.targets.skipped == (0 if goal != "targeted:1" else len(skipped))
    assert (goal == "targeted:1") == bool(skipped)
    assert not any(e.cost for e in skipped)
    assert sum(e.robust for e in kept) / len(kept) == record.robust_accuracy.value
    for row, label in enumerate(record.targets.labels):
        for target in range(4):
            cell = [e for e in kept if (e.label, e.target) == (label, target) and e.broken_by != "clean"]
            assert len(cell) == record.targets.attacked[row][target]
            assert sum(not e.robust for e in cell) == record.targets.reached[row][target]
    assert f"goal={goal}" in record.spec["protocol"]
    assert wrong(run, task) == ()
    assert RunRecord.load(run) == record
    for name in ("spec", "record"):
        jsonschema.validate(json.loads((run / f"{name}.json").read_text()), schema(name))
    for line in (run / "examples.jsonl").read_text().splitlines():
        jsonschema.validate(json.loads(line), schema("example"))


def test_a_goal_is_harder_than_any_class(task: Path, tmp_path: Path) -> None:
    """What an attack with a goal breaks is broken without one too, and the other way round seldom."""
    goal, free = evaluate(task, tmp_path / "a", "least-likely"), evaluate(task, tmp_path / "b", None)
    assert goal.robust_accuracy.value > free.robust_accuracy.value
    assert goal.identity != free.identity


def test_witness_of_another_class_is_found_out(task: Path, tmp_path: Path) -> None:
    """A run whose goal is edited, or a row's target, no longer agrees with its images."""
    evaluate(task, tmp_path / "run", "next")
    run = tmp_path / "run"
    lines = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    row = next(line for line in lines if line["broken_by"] not in (None, "clean"))
    held = row["target"]
    row["target"] = (held + 1) % 4 if (held + 1) % 4 != row["label"] else (held + 2) % 4
    (run / "examples.jsonl").write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    assert any("targets was edited" in line for line in wrong(run, task))
    table = json.loads((run / "record.json").read_text())
    label = table["targets"]["labels"].index(row["label"])
    for name in ("attacked", "reached"):
        table["targets"][name][label][held] -= 1
        table["targets"][name][label][row["target"]] += 1
    (run / "record.json").write_text(json.dumps(table))
    said = wrong(run, task)
    assert any(f"its target was edited: {row['target']}, next says {held}" in line for line in said)
    assert any(f"classified {held}, and its target is {row['target']}: it does not reach it" in line for line in said)


def test_distance_to_a_goal(task: Path, tmp_path: Path) -> None:
    """Minimum-norm attacks look for the nearest image of the target; verify measures it again."""
    record = evaluate(
        task, tmp_path / "run", "next", threat="l2", report="distance", attacks="fmn:steps=40,ddn:steps=40"
    )
    assert record.nearest is not None
    assert record.nearest.distance.success == 1.0
    assert all(e.prediction == e.target for e in read_examples(tmp_path / "run") if e.distance)
    assert wrong(tmp_path / "run", task) == ()
    free = evaluate(task, tmp_path / "free", None, threat="l2", report="distance", attacks="fmn:steps=40,ddn:steps=40")
    assert free.nearest is not None
    assert record.nearest.distance.median > free.nearest.distance.median  # type: ignore[operator]


def test_default_plan_serves_a_goal(tmp_path: Path) -> None:
    """`rapid`, with its conditions on margins, escalates nothing and reaches what a longer attack reaches."""
    model = make_convnet(channels=3, classes=5)
    data = make_images(model, 12, (3, 9, 7))
    record = robustgen.evaluate(model, data, "linf:0.05", goal="next", out=tmp_path / "run", batch_size=5)
    again = robustgen.evaluate(model, data, "linf:0.05", goal="next", out=tmp_path / "again", batch_size=12)
    assert (tmp_path / "run" / "examples.jsonl").read_bytes() == (tmp_path / "again" / "examples.jsonl").read_bytes()
    assert record.targets == again.targets
    assert record.spec["plan"] == "rapid"


# ------------------------------------------------------------------------------------- all classes


def test_all_is_one_run_a_class(task: Path, everywhere: Path) -> None:
    """The matrix is made of the runs towards each class, which are the runs that the user could have made himself."""
    record = RunRecord.load(everywhere)
    assert record.targets is not None
    robust = []
    for target in range(4):
        alone = evaluate(task, task / f"alone-{target}", f"targeted:{target}")
        part = RunRecord.load(everywhere / f"target-{target}")
        assert alone.identity == part.identity
        assert alone.targets == part.targets
        for name in ("examples.jsonl", "spec.json", "record.json"):
            assert (task / f"alone-{target}" / name).read_bytes() == (
                everywhere / f"target-{target}" / name
            ).read_bytes()
        assert alone.targets is not None
        assert [row[target] for row in alone.targets.reached] == [row[target] for row in record.targets.reached]
        robust.append({e.id for e in read_examples(everywhere / f"target-{target}") if e.robust})
    assert len(set.intersection(*robust)) / 24 == record.robust_accuracy.value
    assert record.targets.skipped == 24
    assert [0] * 4 == [record.targets.attacked[row][label] for row, label in enumerate(record.targets.labels)]
    assert sum(map(sum, record.targets.attacked)) == 22 * 3
    assert record.clean_accuracy.value == 22 / 24
    jsonschema.validate(json.loads((everywhere / "record.json").read_text()), schema("record"))
    jsonschema.validate(json.loads((everywhere / "spec.json").read_text()), schema("spec"))


def test_all_is_verified_part_by_part(task: Path, everywhere: Path, tmp_path: Path) -> None:
    """An honest run holds; an edited matrix, a spoilt part and a missing one are found out."""
    assert wrong(everywhere, task) == ()
    run = Path(shutil.copytree(everywhere, tmp_path / "matrix"))
    table = json.loads((run / "record.json").read_text())
    table["targets"]["reached"][0][1] += 1
    (run / "record.json").write_text(json.dumps(table))
    assert any("targets was edited" in line for line in wrong(run, task))
    run = Path(shutil.copytree(everywhere, tmp_path / "part"))
    lines = (run / "target-2" / "examples.jsonl").read_text().replace('"pgd"', '"square"')
    (run / "target-2" / "examples.jsonl").write_text(lines)
    assert any("towards 2" in line for line in wrong(run, task))
    run = Path(shutil.copytree(everywhere, tmp_path / "foreign"))
    shutil.rmtree(run / "target-1")
    shutil.copytree(run / "target-2", run / "target-1")
    assert any("is not the part of this run towards class 1" in line for line in wrong(run, task))
    shutil.rmtree(run / "target-1")
    with pytest.raises(RecordError, match="target-1 is not a run folder"):
        wrong(run, task)


def test_all_goes_on_where_it_was_stopped(
    task: Path, everywhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third class, the same command ends with the same record; a finished one attacks nothing."""
    from robustgen import evaluation

    real, calls = evaluation.engine.run, 0

    def stop(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.engine, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(task, tmp_path / "run", "all")
    assert not (tmp_path / "run" / "record.json").exists()
    evaluate(task, tmp_path / "run", "all")
    assert (tmp_path / "run" / "record.json").read_bytes() == (everywhere / "record.json").read_bytes()
    monkeypatch.setattr(evaluation.engine, "run", None)
    assert evaluate(task, tmp_path / "run", "all").targets == RunRecord.load(everywhere).targets
    with pytest.raises(RecordError, match="holds another run"):
        evaluate(task, tmp_path / "run", "all", seed=1)


def test_pictures_of_the_matrix(
    task: Path, everywhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plot` draws the matrix; of one target the examples too."""
    assert _run(["plot", str(everywhere), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "targets.png")]
    assert _run(["plot", str(everywhere / "target-1"), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("targets.png", "examples.png")]
    assert (tmp_path / "targets.png").read_bytes().startswith(b"\x89PNG")


def test_picture_says_what_the_record_says(everywhere: Path) -> None:
    """Each cell holds its percentage; the diagonal a dash."""
    from robustgen.plot_targets import draw_targets

    record = RunRecord.load(everywhere)
    assert record.targets is not None
    (axes, _) = draw_targets(record, ("a", "b", "c", "d")).axes
    shown = [text.get_text() for text in axes.texts]
    expected = [record.targets.rate(row, k) for row in range(len(record.targets.labels)) for k in range(4)]
    assert shown == ["–" if rate is None else f"{100 * rate:.0f}" for rate in expected]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c", "d"]


def test_command_line(task: Path, everywhere: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows the matrix, --json the counts; commands for untargeted runs say why they do not take it."""
    typed = ["eval", f"python:{task}/net.py:make", "--data", f"npz:{task}/data.npz", "--threat", "linf:8/255",
             "--attacks", ATTACKED["attacks"], "--precision", "float32", "--goal", "all",
             "--out", str(everywhere)]  # fmt: skip
    assert _run(typed) == 0
    out = capsys.readouterr().out
    assert "target reached" in out
    assert out.count("  label ") == 5
    assert _run([*typed, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["targets"]["reached"] == [list(row) for row in RunRecord.load(everywhere).targets.reached]  # type: ignore[union-attr]
    for command in (
        ["compare", str(everywhere), str(everywhere)],
        ["export", str(everywhere), "--format", "robustbench"],
        ["score", str(everywhere)],
    ):
        assert _run(command) == 2
        assert "was made with --goal all" in capsys.readouterr().err
    with pytest.raises(RecordError, match="name one of them"):
        read_examples(everywhere)


@pytest.mark.parametrize(
    ("goal", "more", "says"),
    [
        ("targeted:4", {}, "the classifier has 4 classes, 0 to 3; class 4 is none"),
        ("nxt", {}, "did you mean 'next'"),
        ("next", {"attacks": "fab"}, "attack 'fab' cannot be told a class"),
        ("next", {"plan": "plus", "attacks": None}, "attack 'fab' cannot be told a class"),
        ("all", {"report": "distance", "threat": "l2", "attacks": "fmn"}, "type --goal targeted:CLASS"),
    ],
)
def test_bad_goals_are_refused_before_any_work(
    task: Path, tmp_path: Path, goal: str, more: dict[str, Any], says: str
) -> None:
    """One sentence, exit 2, no folder."""
    with pytest.raises(SpecError, match=says) as caught:
        evaluate(task, tmp_path / "run", goal, **more)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_one_class_and_one_label(tmp_path: Path) -> None:
    """Nothing to attack is said at once; `all` leaves out a class that every example has."""
    one = make_linear((1, 4, 4), classes=1)
    x = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    with pytest.raises(SpecError, match="needs two classes or more"):
        robustgen.evaluate(one, (x, torch.zeros(4, dtype=torch.int64)), "linf:0.1", goal="next", out=tmp_path / "one")
    model = make_linear((1, 4, 4), classes=3)
    x, y = make_images(model, 40, (1, 4, 4))
    label = int(y.mode().values)
    x, y = x[y == label][:4], y[y == label][:4]
    with pytest.raises(SpecError, match="examples have that label"):
        robustgen.evaluate(model, (x, y), "linf:0.1", goal=f"targeted:{label}", out=tmp_path / "same")
    record = robustgen.evaluate(model, (x, y), "linf:0.3", goal="all", attacks="pgd:steps=5", out=tmp_path / "all")
    assert record.targets is not None
    assert (label,) == record.targets.labels
    assert not (tmp_path / "all" / f"target-{label}").exists()


def test_randomised_classifiers_are_judged_by_majority(tmp_path: Path) -> None:
    """The figures about labels are left out, the verdicts hold up in verify's own draws."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_linear((1, 6, 6), classes=3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z: torch.Tensor = self.inner(x)
            return z + 0.02 * torch.randn_like(z)

    x = torch.rand(10, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = make_linear((1, 6, 6), classes=3)(x).argmax(1)
    record = robustgen.evaluate(
        Noisy().eval(), (x, y), "linf:0.2", goal="next", attacks="pgd:steps=5", out=tmp_path / "r"
    )
    assert "randomised" in record.flags
    assert record.stochastic is None
    assert record.targets is not None
    assert record.targets.success is not None
