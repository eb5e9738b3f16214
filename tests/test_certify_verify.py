"""`robustgen verify` of certifications: an honest one holds, and each kind of tampering is called by its name."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from robustgen.certify.check import LEVEL, Redraw, _Check
from robustgen.certify.noise import GridNoise
from robustgen.certify.record import load_certification
from robustgen.certify.votes import Wanted
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.errors import RecordError, SpecError
from robustgen.progress import Silent
from robustgen.verification import Verification
from robustgen.verify import verify_run
from tests.certify_helpers import SIGMA, abstained, certified, certify_all, edit, edit_row, lines, settle, write_lines


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, data, and three finished certifications: anytime, fixed, and with uniform noise."""
    return certify_all(tmp_path_factory.mktemp("certified"))


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(work / "anytime", tmp_path / "run"))


def check(run: Path, work: Path, *, function: str = "make", **redraw: int) -> Verification:
    """What verify finds."""
    return verify_run(run, classifier=f"python:{work}/net.py:{function}", redraw=Redraw(**redraw))


@pytest.mark.parametrize("name", ["anytime", "fixed", "uniform"])
def test_an_honest_certification_holds(name: str, work: Path) -> None:
    """Nothing is wrong, each kind of check was made, fresh and repeated draws included."""
    found = check(work / name, work, fresh=5, draws=300, replay=14)
    assert found.wrong == ()
    assert found.doubtful == ()
    text = "\n".join(found.checked)
    for word in ("identity", "rows: 14", "certificates", "totals", "data and weights", "labels", "fresh", "replay"):
        assert word in text
    assert f"level {LEVEL:g} / 5" in text


def _radius(run: Path) -> None:
    edit_row(run, certified, lambda row: row.update(radius=row["radius"] + 0.01))


def _radius_with_totals(run: Path) -> None:
    _radius(run)
    settle(run)


def _count(run: Path) -> None:
    edit_row(run, abstained, lambda row: row["counts"].__setitem__(0, row["counts"][0] + 1))


def _last_count_with_totals(run: Path) -> None:
    design = load_certification(run).spec.design(64)

    def most(row: dict[str, Any]) -> int:
        look = len(row["counts"]) - 1
        return int(row["counts"][-2] + design.looks[look] - design.looks[look - 1])

    def pays(row: dict[str, Any]) -> bool:
        look = len(row["counts"]) - 1
        return look > 0 and design.radii[design.reached(most(row), look) - 1] > row["radius"]

    edit_row(run, pays, lambda row: row["counts"].__setitem__(-1, most(row)))
    settle(run)


def _impossible_count(run: Path) -> None:
    edit_row(run, abstained, lambda row: row["counts"].__setitem__(0, 99))
    settle(run)


def _class(run: Path) -> None:
    edit_row(run, abstained, lambda row: row.update(predict=row["selected"]))
    settle(run)


def _draws(run: Path) -> None:
    edit_row(run, certified, lambda row: row.update(samples=10**6))
    settle(run)


def _one_look_more(run: Path) -> None:
    design = load_certification(run).spec.design(64)
    row = next(row for row in lines(run) if certified(row))
    more = design.looks[len(row["counts"])] - design.looks[len(row["counts"]) - 1]

    def go_on(row: dict[str, Any]) -> None:
        row["counts"].append(row["counts"][-1] + more)
        row["samples"] += more

    edit_row(run, certified, go_on)
    settle(run)


def _one_look_less(run: Path) -> None:
    design = load_certification(run).spec.design(64)

    def stop(row: dict[str, Any]) -> None:
        row["counts"] = row["counts"][:1]
        row["samples"] = 100 + design.looks[0]

    edit_row(run, lambda row: certified(row) and len(row["counts"]) > 1, stop)
    settle(run)


def _lost_line(run: Path) -> None:
    write_lines(run, lines(run)[:-1])


def _abstentions_dropped(run: Path) -> None:
    write_lines(run, [row for row in lines(run) if not abstained(row)])
    settle(run)


def _line_twice(run: Path) -> None:
    rows = lines(run)
    write_lines(run, [*rows, rows[0]])


def _foreign_line(run: Path) -> None:
    rows = lines(run)
    write_lines(run, [*rows, {**rows[0], "id": 77}])


def _label(run: Path) -> None:
    wrong = next(row for row in lines(run) if certified(row) and row["label"] != row["predict"])
    edit_row(run, lambda row: row["id"] == wrong["id"], lambda row: row.update(label=row["predict"]))
    settle(run)


def _accuracy(run: Path) -> None:
    edit(run, lambda table: table["certified"][1].update(value=0.99))


def _interval(run: Path) -> None:
    edit(run, lambda table: table["certified"][1].update(low=0.5))


def _acr(run: Path) -> None:
    edit(run, lambda table: table.update(acr=1.0))


def _linf(run: Path) -> None:
    edit(run, lambda table: table["linf"].update(acr=1.0))


def _shape(run: Path) -> None:
    edit(run, lambda table: table.update(shape=[1, 4, 4]))


def _spec(run: Path) -> None:
    edit(run, lambda table: table.update(alpha=0.0001), "spec.json")


def _spec_with_a_new_hash(run: Path) -> None:
    _spec(run)
    edit(run, lambda table: table.update(identity=load_certification(run).spec.identity()))


def _sigma_everywhere(run: Path) -> None:
    edit(run, lambda table: table.update(sigma=0.16), "spec.json")
    spec = load_certification(run).spec
    edit(run, lambda table: table.update(spec=spec.to_json(), identity=spec.identity()))


TAMPERING: dict[str, tuple[Callable[[Path], None], str]] = {
    "radius": (_radius, "its radius was edited"),
    "radius, totals to match": (_radius_with_totals, "its radius was edited"),
    "count": (_count, "certificates.jsonl was edited: its hash"),
    "last count, totals to match": (_last_count_with_totals, "its counts were edited: it stopped"),
    "impossible count": (_impossible_count, "its counts were edited: look 1 adds 99 votes in 60 draws"),
    "abstention made a certificate": (_class, "its class was edited: "),
    "draws": (_draws, "its draws were edited: 1000000"),
    "one look more": (_one_look_more, "its counts were edited: it went on at look"),
    "one look less": (_one_look_less, "its counts were edited: it stopped at look 1"),
    "lost line": (_lost_line, "example 13 of the run is missing in certificates.jsonl"),
    "abstentions dropped": (_abstentions_dropped, "missing in certificates.jsonl"),
    "line twice": (_line_twice, "example 0 stands twice in certificates.jsonl"),
    "foreign line": (_foreign_line, "example 77 does not belong to the run"),
    "label": (_label, "its label was edited"),
    "accuracy": (_accuracy, "certified was edited"),
    "interval": (_interval, "certified was edited"),
    "ACR": (_acr, "acr was edited"),
    "Linf": (_linf, "linf was edited"),
    "shape": (_shape, "was edited"),
    "specification": (_spec, "spec.json was edited"),
    "specification with a new hash": (_spec_with_a_new_hash, "disagree on alpha"),
    "sigma everywhere": (_sigma_everywhere, "edited"),
}


@pytest.mark.parametrize("kind", TAMPERING)
def test_tampering_is_called_by_its_name(kind: str, run: Path, work: Path) -> None:
    """Each edit gives a sentence of its own; that it was made at all is seen to first."""
    spoil, says = TAMPERING[kind]
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    spoil(run)
    assert before != {path.name: path.read_bytes() for path in run.iterdir()}
    wrong = check(run, work).wrong
    assert any(says in sentence for sentence in wrong), wrong


def test_other_weights_are_refused(run: Path, work: Path) -> None:
    """In the words in which runs of attacks refuse them."""
    (sentence,) = check(run, work, function="other").wrong
    theirs, ours = make_hash(work, "other"), make_hash(work, "make")
    assert f"net.py:other has weights {theirs}, {run} was made with {ours}" in sentence
    assert "pass the right ones with --classifier or --weights FILE." in sentence


def make_hash(work: Path, function: str) -> str:
    """Of the weights that a function of net.py makes."""
    return load_classifier(f"python:{work}/net.py:{function}", shape=(1, 8, 8)).weights_sha256[:12]


def forge(run: Path) -> tuple[int, float]:
    """A lie that the journal cannot betray: every draw of an uncertain example right, all that follows to match."""
    held = load_certification(run)
    design = held.spec.design(64)
    row = min((row for row in lines(run) if row["radius"] < 0.04), key=lambda row: row["counts"][0])
    k = reached = look = 0
    counts = []
    while not look or not design.decided(k, look - 1, reached):
        k = design.looks[look]
        counts.append(k)
        reached = max(reached, design.reached(k, look))
        look += 1
    radius = design.radii[reached - 1]
    changes = {"counts": counts, "samples": 100 + design.looks[look - 1], "radius": radius, "predict": row["selected"]}
    edit_row(run, lambda one: one["id"] == row["id"], lambda one: one.update(changes))
    settle(run)
    return int(row["id"]), radius


def test_a_consistent_lie_is_found_by_drawing_again(run: Path, work: Path) -> None:
    """The paperwork holds; fresh noise contradicts the radius, the repeated draws contradict the counts."""
    id_, radius = forge(run)
    assert check(run, work).wrong == ()
    (sentence,) = check(run, work, fresh=14, draws=400).wrong
    assert f"example {id_}: fresh noise contradicts its radius {radius:g}" in sentence
    (sentence,) = check(run, work, replay=14).wrong
    assert f"example {id_}: its counts were edited: [60" in sentence


def test_one_vote_more_is_doubtful_and_another_class_is_wrong(run: Path, work: Path) -> None:
    """Rounding may turn a vote, so one is no proof; the class that the same draws choose is."""
    id_ = edit_row(run, abstained, lambda row: row["counts"].__setitem__(0, row["counts"][0] + 1))
    settle(run)
    found = check(run, work, replay=14)
    assert (found.wrong, found.doubtful) == ((), (id_,))
    id_ = edit_row(
        run, certified, lambda row: row.update(selected=(row["selected"] + 1) % 4, predict=(row["predict"] + 1) % 4)
    )
    settle(run)
    assert any(f"example {id_}: its class was edited" in said for said in check(run, work, replay=14).wrong)


class Ballot:
    """Votes as they are told: so many for the class of one example, all of them for that of the others."""

    noise = GridNoise(SIGMA)

    def __init__(self, classes: dict[int, int], id_: int, votes: int) -> None:
        self.classes, self.id, self.votes = classes, id_, votes

    def count(self, wanted: Sequence[Wanted]) -> np.ndarray:
        """(1, 4) votes."""
        (one,) = wanted
        found = np.zeros((1, 4), dtype=np.int64)
        found[0, self.classes[one.example]] = self.votes if one.example == self.id else one.last
        return found


def test_fresh_noise_is_tested_at_the_level_and_at_the_probability_that_is_claimed(work: Path) -> None:
    """The most votes that contradict are where the exact tail at Phi(radius / sigma) is just below level / tests."""
    held = load_certification(work / "anytime")
    able = [one for one in held.certificates if one.predict != -1]
    one, draws = max(able, key=lambda one: one.radius), 200
    noise = GridNoise(SIGMA)
    claimed = float(norm.cdf((one.radius + noise.slack(64)) / SIGMA)) + noise.approximation(64)
    terms = [math.comb(draws, k) * claimed**k * (1 - claimed) ** (draws - k) for k in range(draws + 1)]
    least = next(k for k in range(draws + 1) if sum(terms[: k + 1]) >= LEVEL / len(able))
    assert len(able) > 4
    dataset = load_data(held.spec.data, data_dir=None)
    for votes, contradicted in ((least - 1, True), (least, False)):
        check_ = _Check(held)
        ballot = Ballot({one.id: one.predict for one in able}, one.id, votes)
        check_.fresh(ballot, dataset, Redraw(fresh=99, draws=draws), Silent())  # type: ignore[arg-type]
        assert [f"example {one.id}: fresh noise contradicts" in said for said in check_.wrong] == [True] * contradicted


def test_folders_that_cannot_be_checked(run: Path, work: Path, tmp_path: Path) -> None:
    """No certification, an unfinished one, another schema, an unreadable line: a sentence that names the place."""
    with pytest.raises(RecordError, match="is not the folder of a certification"):
        load_certification(tmp_path)
    with pytest.raises(SpecError, match=r"robustgen verify .* --classifier"):
        verify_run(run)
    rows = lines(run)
    for change, says in (
        ({"radius": "0.5"}, "line 2, cannot be read: radius must be a number >= 0, got '0.5'"),
        ({"radius": math.nan}, "radius must be a number >= 0, got nan"),
        ({"counts": []}, "counts must be a list"),
        ({"predict": -2}, "predict must be a class, or -1"),
        ({"votes": 1}, "line 2, cannot be read"),
    ):
        write_lines(run, [rows[0], {**rows[1], **change}, *rows[2:]])
        with pytest.raises(RecordError, match=says.replace("-", r"\-")):
            check(run, work)
    write_lines(run, rows)
    edit(run, lambda table: table.update(shape=None))
    with pytest.raises(RecordError, match="expected the shape of the images"):
        check(run, work)
    edit(run, lambda table: table.update(schema=9))
    with pytest.raises(RecordError, match="schema 9"):
        check(run, work)
    (run / "record.json").unlink()
    with pytest.raises(RecordError, match="unfinished certification"):
        check(run, work)
    edit(run, lambda table: table.update(sigma=-1), "spec.json")
    with pytest.raises(RecordError, match="sigma must be a number above 0"):
        load_certification(run)


def test_commands(run: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0 and a closing line, 1 and the reason, 2 for a wrong request; JSON on request."""
    typed = ["verify", str(run), "--classifier", f"python:{work}/net.py:make"]
    assert _run([*typed, "--fresh", "2", "--draws", "100"]) == 0
    assert capsys.readouterr().out.endswith("every figure follows from its counts\n")
    _radius(run)
    assert _run([*typed, "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["holds"] is False
    assert len(said["wrong"]) > 1
    assert _run([*typed, "--fresh", "-1"]) == 2
    assert "--fresh must be a whole number >= 0, got -1" in capsys.readouterr().err
    assert _run(["export", str(run), "--format", "robustbench"]) == 2
    assert "is a certification; use --format tsv" in capsys.readouterr().err
