"""Plans of one's own: what a TOML file may say, its hash in the identity, its budget, and the copy in the run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import robustgen
from robustgen import engine
from robustgen.attacks.plan_files import read_plan
from robustgen.cli import _run
from robustgen.errors import RecordError, SpecError
from robustgen.plot import _plan_of
from robustgen.record import RunRecord
from robustgen.runs import open_run, read_examples
from robustgen.verify import verify_run
from tests.helpers import ROOT, write_linear_task

TEXT = """
version = 3
goal = "next"

[[attacks]]
name = "pgd"
steps = 4
closeness = 0.5

[[attacks]]
name = "square"
steps = 200
queries = 17
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A linear task, and mine.toml beside it."""
    write_linear_task(tmp_path, 20)
    (tmp_path / "mine.toml").write_text(TEXT, encoding="utf-8")
    return tmp_path


def evaluate(work: Path, out: str, plan: str = "mine.toml", **options: Any) -> RunRecord:
    """A run by a plan in that folder."""
    return robustgen.evaluate(
        f"python:{work}/net.py:make", f"npz:{work}/data.npz", "linf:2/255", plan=str(work / plan), precision="float32",
        out=work / out, **options,
    )  # fmt: skip


def wrong(work: Path, out: str) -> tuple[str, ...]:
    """What verify finds."""
    return verify_run(work / out, classifier=f"python:{work}/net.py:make").wrong


def test_what_the_file_says_is_what_runs(work: Path) -> None:
    """Goal, parameters, order and budget stand in the protocol, the hash of the file in the specification."""
    record = evaluate(work, "run")
    assert record.spec["protocol"] == (
        "mine/3: pgd(steps=4, rel_step=0.1, restarts=1, loss=ce, closeness=0.5)"
        " > square(steps=200, p_init=0.8, restarts=1) within 17 queries; goal=next"
    )
    assert record.spec["goal"] == "next"
    assert record.spec["plan_sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()
    assert (work / "run" / "plan.toml").read_text(encoding="utf-8") == TEXT
    spent = [e.cost["square"][0] for e in read_examples(work / "run") if "square" in e.cost]
    standing = [e.cost["square"][0] for e in read_examples(work / "run") if e.robust]
    assert standing
    assert {17} == set(standing)
    assert max(spent) == 17
    assert wrong(work, "run") == ()


@pytest.mark.parametrize(("restarts", "queries"), [(1, 3), (4, 13)])
def test_budget_covers_restarts(work: Path, restarts: int, queries: int) -> None:
    """Given up after the round that reaches it, in whichever restart that is; another example takes the place."""
    (work / "mine.toml").write_text(
        f'individual = true\n[[attacks]]\nname = "pgd"\nsteps = 4\nrestarts = {restarts}\nqueries = {queries}\n'
    )
    evaluate(work, "run", batch_size=3)
    for e in read_examples(work / "run"):
        if e.robust:
            assert queries == e.cost["pgd"][0]
            assert e.broken_by_all == []


def test_a_comment_is_another_identity(work: Path) -> None:
    """The hash is that of the file, byte for byte."""
    first = evaluate(work, "run")
    (work / "mine.toml").write_text(TEXT + "# a remark\n")
    second = evaluate(work, "other")
    assert first.spec["protocol"] == second.spec["protocol"]
    assert first.identity != second.identity


def interrupted(work: Path, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops in its second attack."""
    real, calls = engine.run, 0

    def stop(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(work, out)


@pytest.mark.parametrize("change", ["gone", "changed", "broken"])
def test_resume_needs_the_copy_alone(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """The file may be gone, changed or spoilt: the run ends as it would have, byte for byte, and verifies."""
    evaluate(work, "whole")
    interrupted(work, "cut", monkeypatch)
    if change == "gone":
        (work / "mine.toml").unlink()
    else:
        (work / "mine.toml").write_text('[[attacks]]\nname = "fgsm"\n' if change == "changed" else "[[")
    typed = ["eval", f"python:{work}/net.py:make", "--data", f"npz:{work}/data.npz", "--threat", "linf:2/255", "--plan",
             str(work / "mine.toml"), "--precision", "float32", "--out", str(work / "cut")]  # fmt: skip
    assert _run(typed) == 0
    told = {"gone": "is gone", "changed": "was changed", "broken": "was changed"}[change]
    assert f"{told}" in capsys.readouterr().err
    for name in ("record.json", "examples.jsonl", "spec.json", "plan.toml"):
        assert (work / "whole" / name).read_bytes() == (work / "cut" / name).read_bytes(), name
    assert wrong(work, "cut") == ()


def test_a_finished_run_is_not_that_of_a_changed_plan(work: Path) -> None:
    """Its record would be taken for the new plan's; where the file is gone there is no other plan to mean."""
    first = evaluate(work, "run")
    (work / "mine.toml").write_text('[[attacks]]\nname = "fgsm"\n')
    with pytest.raises(RecordError, match=r"holds another run .*plan_sha256"):
        evaluate(work, "run")
    (work / "mine.toml").unlink()
    assert evaluate(work, "run").identity == first.identity
    with pytest.raises(SpecError, match=r"no file .*mine.toml; .*--out RUN"):
        evaluate(work, "elsewhere")


def test_an_edited_copy_is_found_out(work: Path) -> None:
    """Another plan, a missing one, and one whose hash was edited along with it."""
    evaluate(work, "run")
    shutil.copytree(work / "run", work / "edited")
    (work / "edited" / "plan.toml").write_text(TEXT.replace("17", "1700"))
    assert any("plan.toml was edited" in line for line in wrong(work, "edited"))
    (work / "edited" / "plan.toml").unlink()
    assert any("plan.toml is missing" in line for line in wrong(work, "edited"))
    shutil.copytree(work / "run", work / "forged")
    (work / "forged" / "plan.toml").write_text(TEXT.replace("17", "1700"))
    digest = hashlib.sha256(TEXT.replace("17", "1700").encode()).hexdigest()
    for name in ("spec.json", "record.json"):
        path = work / "forged" / name
        path.write_text(path.read_text().replace(hashlib.sha256(TEXT.encode()).hexdigest(), digest))
    spec = json.loads((work / "forged" / "spec.json").read_text())
    identity = hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    record = json.loads((work / "forged" / "record.json").read_text())
    (work / "forged" / "record.json").write_text(json.dumps({**record, "identity": identity}))
    assert any("which the protocol does not name" in line for line in wrong(work, "forged"))


def test_pictures_use_the_copy(work: Path) -> None:
    """A budget cannot be typed with --attacks, so that the protocol alone would not give the plan back."""
    (work / "mine.toml").write_text(TEXT.replace('goal = "next"', ""))
    evaluate(work, "run")
    opened = open_run(work / "run", None)
    assert _plan_of(opened, 4).protocol(4) == opened.record.spec["protocol"]
    (work / "run" / "plan.toml").unlink()
    assert _plan_of(opened, 4).name == "rapid"


def test_goal_of_plan_and_command_line(work: Path) -> None:
    """The same is fine, another is a contradiction."""
    assert evaluate(work, "same", goal="next").identity == evaluate(work, "none").identity
    with pytest.raises(SpecError, match="--goal targeted:1 contradicts plan mine, which says goal next"):
        evaluate(work, "other", goal="targeted:1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('gaol = "next"\n[[attacks]]\nname = "pgd"', "unknown key 'gaol'; did you mean 'goal'"),
        ('goal = "nxt"\n[[attacks]]\nname = "pgd"', "did you mean 'next'"),
        ('goal = 3\n[[attacks]]\nname = "pgd"', "goal must be a text"),
        ('[[attacks]]\nname = "pdg"', "did you mean 'pgd'"),
        ('[[attacks]]\nname = "pgd"\nquerys = 3', "unknown parameter of pgd 'querys'; did you mean 'queries'"),
        ('[[attacks]]\nname = "pgd"\nstep = 3', "did you mean 'steps'"),
        ('[[attacks]]\nname = "pgd"\nqueries = 0', "pgd: queries must be a whole number >= 1, got 0"),
        ('[[attacks]]\nname = "pgd"\nqueries = "many"', "pgd: queries must be a whole number >= 1"),
        ('[[attacks]]\nname = "pgd"\ncloseness = -1', "closeness must be a number >= 0"),
        ('version = "two"\n[[attacks]]\nname = "pgd"', "version must be an integer"),
        ('individual = 1\n[[attacks]]\nname = "pgd"', "individual must be true or false"),
        ('name = "a/b"\n[[attacks]]\nname = "pgd"', "name must be letters, digits"),
        ('goal = "next"\n[[attacks]]\nname = "fab"', "attack 'fab' cannot be told a class"),
    ],
)
def test_bad_files(work: Path, content: str, says: str) -> None:
    """The nearest name, before anything is written."""
    (work / "mine.toml").write_text(content)
    with pytest.raises(SpecError, match=re.escape(says)) as caught:
        evaluate(work, "run")
    assert caught.value.exit_code == 2
    assert not (work / "run").exists()


def test_the_example_in_the_docs_is_a_plan() -> None:
    """docs/plan-example.toml can be read, and docs/plans.md shows it as it is."""
    plan = read_plan(ROOT / "docs" / "plan-example.toml")
    assert plan.goal == tomllib.loads((ROOT / "docs" / "plan-example.toml").read_text())["goal"]
    assert len(plan.attacks) >= 3
    assert (ROOT / "docs" / "plan-example.toml").read_text() in (ROOT / "docs" / "plans.md").read_text()
