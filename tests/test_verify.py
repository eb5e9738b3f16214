"""`robustgen verify`: an honest run passes, and each kind of tampering is called by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import robustgen
from robustgen.cli import _run
from robustgen.errors import RecordError, SpecError
from robustgen.spec import RunSpec
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses, save_packed
from tests.helpers import write_linear_task


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a linear classifier over 40 images: some misclassified, some broken, some robust."""
    folder = tmp_path_factory.mktemp("verify")
    write_linear_task(folder, 40)
    record = robustgen.evaluate(
        f"python:{folder}/net.py:make", f"npz:{folder}/data.npz", "linf:2/255", attacks="pgd:steps=20,square:steps=20",
        precision="float32", out=folder / "run",
    )  # fmt: skip
    assert 0.1 < record.robust_accuracy.value < 0.9
    return folder / "run"


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(honest, tmp_path / "run"))


def check(run: Path, honest: Path, function: str = "make") -> tuple[str, ...]:
    """What verify finds wrong."""
    return verify_run(run, classifier=f"python:{honest.parent}/net.py:{function}").wrong


def lines(run: Path) -> list[dict[str, Any]]:
    """The rows of the journal."""
    return [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]


def write_lines(run: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in place of those of the journal."""
    (run / "examples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def edit(run: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Edit a JSON file."""
    table = json.loads((run / name).read_text())
    change(table)
    (run / name).write_text(json.dumps(table))


def edit_row(run: Path, pick: Callable[[dict[str, Any]], bool], **changes: Any) -> int:
    """Edit the first row of that kind; its id."""
    rows = lines(run)
    row = next(row for row in rows if pick(row))
    row.update(changes)
    write_lines(run, rows)
    return int(row["id"])


def broken(row: dict[str, Any]) -> bool:
    """Broken by an attack."""
    return row["broken_by"] not in (None, "clean")


def edit_witness(run: Path, change: Callable[[dict[str, torch.Tensor], list[str]], object]) -> None:
    """Edit the witnesses, given their names in order."""
    (path,) = (run / "witnesses").glob("*.safetensors")
    held = {str(id_): image.clone() for id_, image in read_witnesses(run)}
    change(held, sorted(held, key=int))
    save_packed(torch.stack(list(held.values())), [int(name) for name in held], path)


def test_an_honest_run_holds(honest: Path) -> None:
    """Nothing is wrong, and each kind of check was made."""
    found = verify_run(honest, classifier=f"python:{honest.parent}/net.py:make")
    assert () == found.wrong
    assert found.holds
    text = "\n".join(found.checked)
    for word in ("identity", "rows", "verdicts", "totals", "data and weights", "clean images", "witnesses"):
        assert word in text


def _edited_verdict(run: Path) -> None:
    edit_row(run, broken, robust=True)


def _robust_claimed(run: Path) -> None:
    edit_row(run, broken, robust=True, broken_by=None)


def _clean_prediction(run: Path) -> None:
    row = next(row for row in lines(run) if row["broken_by"] == "clean")
    edit_row(run, lambda r: r["id"] == row["id"], clean_prediction=row["label"], robust=True, broken_by=None)


def _label(run: Path) -> None:
    row = next(row for row in lines(run) if row["broken_by"] == "clean")
    other = next(k for k in range(4) if k not in (row["label"], row["clean_prediction"]))
    edit_row(run, lambda r: r["id"] == row["id"], label=other)


def _witness_of_another(run: Path) -> None:
    def swap(held: dict[str, torch.Tensor], names: list[str]) -> None:
        held[names[0]], held[names[1]] = held[names[1]], held[names[0]]

    edit_witness(run, swap)


def _outside_the_ball(run: Path) -> None:
    edit_witness(run, lambda held, names: held[names[0]].add_(0.05))


def _beyond_the_box(run: Path) -> None:
    edit_witness(run, lambda held, names: held[names[0]][0, 0, 0].fill_(1.5))


def _nan(run: Path) -> None:
    edit_witness(run, lambda held, names: held[names[0]][0, 0, 0].fill_(torch.nan))


def _dropped_rows(run: Path) -> None:
    write_lines(run, lines(run)[:-2])


def _duplicated_ids(run: Path) -> None:
    rows = lines(run)
    write_lines(run, [*rows, rows[3]])


def _foreign_rows(run: Path) -> None:
    rows = lines(run)
    write_lines(run, [*rows, {**rows[0], "id": 77}])


def _edited_totals(run: Path) -> None:
    edit(run, "record.json", lambda table: table["robust_accuracy"].update(value=0.99))


def _edited_interval(run: Path) -> None:
    edit(run, "record.json", lambda table: table["robust_accuracy"].update(low=0.0))


def _edited_cost(run: Path) -> None:
    edit_row(run, broken, cost={"pgd": [1, 1]})


def _edited_spec(run: Path) -> None:
    edit(run, "spec.json", lambda table: table.update(threat="linf:1/255"))


def _edited_spec_and_record(run: Path) -> None:
    edit(run, "spec.json", lambda table: table.update(seed=5))
    identity = RunSpec.from_json(json.loads((run / "spec.json").read_text()), "spec.json").identity()
    edit(run, "record.json", lambda table: table.update(identity=identity))


def _edited_distance(run: Path) -> None:
    edit_row(run, broken, distance=0.001)


def _edited_prediction(run: Path) -> None:
    row = next(row for row in lines(run) if broken(row))
    other = next(k for k in range(4) if k not in (row["label"], row["prediction"]))
    edit_row(run, lambda r: r["id"] == row["id"], prediction=other)


def _missing_witness(run: Path) -> None:
    def lose(held: dict[str, torch.Tensor], names: list[str]) -> None:
        del held[names[0]]

    edit_witness(run, lose)


def _witness_twice(run: Path) -> None:
    (path,) = (run / "witnesses").glob("*.safetensors")
    shutil.copy2(path, path.with_name("adversarials-00001.safetensors"))


def _missing_file(run: Path) -> None:
    shutil.rmtree(run / "witnesses")


def _clean_image_as_witness(run: Path) -> None:
    data = np.load(run.parent / "data.npz")

    def undo(held: dict[str, torch.Tensor], names: list[str]) -> None:
        image = data["image"][int(names[0])]
        held[names[0]] = torch.from_numpy(image).permute(2, 0, 1).float().div(255).contiguous()

    edit_witness(run, undo)
    edit_row(run, broken, distance=0.0)


TAMPERING: dict[str, tuple[Callable[[Path], None], str]] = {
    "edited verdict": (_edited_verdict, "its verdict was edited"),
    "a break filed as robust": (_robust_claimed, "was edited"),
    "edited clean prediction": (_clean_prediction, "was edited"),
    "edited label": (_label, "its label was edited"),
    "witness of another example": (_witness_of_another, "is it that of another example"),
    "image outside the ball": (_outside_the_ball, "outside linf:2/255"),
    "image beyond [0, 1]": (_beyond_the_box, r"leaves [0, 1]"),
    "NaN": (_nan, "NaN or infinity"),
    "dropped rows": (_dropped_rows, "missing in examples.jsonl"),
    "duplicated ids": (_duplicated_ids, "stands twice"),
    "foreign rows": (_foreign_rows, "example 77 does not belong to the run"),
    "edited accuracy": (_edited_totals, "robust_accuracy was edited"),
    "edited interval": (_edited_interval, "robust_accuracy was edited"),
    "edited cost": (_edited_cost, "was edited"),
    "edited spec": (_edited_spec, "spec.json was edited"),
    "edited spec with a new hash": (_edited_spec_and_record, "disagree on seed"),
    "edited distance": (_edited_distance, "its distance was edited"),
    "edited prediction": (_edited_prediction, "its prediction was edited"),
    "missing witness": (_missing_witness, "has no witness"),
    "missing witness file": (_missing_file, "have no witness"),
    "two witnesses": (_witness_twice, "have two witnesses"),
    "clean image as witness": (_clean_image_as_witness, "it breaks nothing"),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_called_by_its_name(kind: str, run: Path, honest: Path) -> None:
    """Each edit is refused with a sentence of its own."""
    shutil.copy2(honest.parent / "data.npz", run.parent / "data.npz")
    spoil, says = TAMPERING[kind]
    spoil(run)
    wrong = check(run, honest)
    assert any(says in sentence for sentence in wrong), wrong


def test_a_consistent_lie_still_needs_its_witness(run: Path, honest: Path) -> None:
    """A break filed as robust, with totals to match, is betrayed by the witness that is left over."""
    id_ = edit_row(run, broken, robust=True, broken_by=None, prediction=None, distance=None, threat=None)
    rows = lines(run)

    def adjust(table: dict[str, Any]) -> None:
        from robustgen.example import ExampleRecord
        from robustgen.record import summarise

        examples = [ExampleRecord.from_line(json.dumps(row)) for row in rows]
        seconds = {attack["name"]: 0.0 for attack in table["attacks"]}
        _, robust, attacks = summarise(examples, seconds, seconds)
        table["robust_accuracy"] = {"value": robust.value, "low": robust.low, "high": robust.high}
        for row, attack in zip(table["attacks"], attacks, strict=True):
            row["broken"] = attack.broken

    edit(run, "record.json", adjust)
    assert (f"example {id_} has a witness, but is not filed as broken.",) == check(run, honest)


def test_other_weights_and_other_data(run: Path, honest: Path, tmp_path: Path) -> None:
    """The network and the images must be those of the run."""
    (sentence,) = check(run, honest, "other")
    assert "has weights" in sentence
    data = dict(np.load(honest.parent / "data.npz"))
    data["image"] = data["image"].copy()
    data["image"][7, 0, 0, 0] += 1
    np.savez(tmp_path / "other.npz", **data)

    def move(table: dict[str, Any]) -> None:
        table["data"] = f"npz:{tmp_path}/other.npz"

    for name in ("spec.json", "record.json"):
        edit(run, name, lambda table: move(table.get("spec", table)))
    identity = RunSpec.from_json(json.loads((run / "spec.json").read_text()), "spec.json").identity()
    edit(run, "record.json", lambda table: table.update(identity=identity))
    (sentence,) = check(run, honest)
    assert "is no longer the data" in sentence


def test_folders_that_cannot_be_checked(run: Path, honest: Path, tmp_path: Path) -> None:
    """No run, a newer schema, an unreadable line: one sentence each, that names the place."""
    with pytest.raises(RecordError, match="is not a run folder"):
        verify_run(tmp_path)
    with pytest.raises(SpecError, match=r"robustgen verify .* --classifier"):
        verify_run(run)
    text = (run / "examples.jsonl").read_text().splitlines()
    (run / "examples.jsonl").write_text("\n".join([*text[:2], "{half", *text[2:]]) + "\n")
    with pytest.raises(RecordError, match="line 3"):
        check(run, honest)
    edit(run, "record.json", lambda table: table.update(schema=9))
    with pytest.raises(RecordError, match="schema 9"):
        check(run, honest)


def test_command(run: Path, honest: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and a closing line for an honest run, 1 and the reason for another; JSON on request."""
    typed = ["verify", str(run), "--classifier", f"python:{honest.parent}/net.py:make"]
    assert 0 == _run(typed)
    assert capsys.readouterr().out.endswith("every figure follows from its witnesses\n")
    _edited_distance(run)
    assert 1 == _run(typed)
    assert "WRONG    example" in capsys.readouterr().out
    assert 1 == _run([*typed, "--json"])
    assert json.loads(capsys.readouterr().out)["holds"] is False
    assert 2 == _run([*typed, "--fresh", "3"])
    assert "draw votes of a certification" in capsys.readouterr().err
