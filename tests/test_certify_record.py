"""The folder of a certification: an honest one holds, tampering is called by its name, exports come back."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, norm

from robustgen.certify.certify import Certificate, certify
from robustgen.certify.check import LEVEL, Redraw
from robustgen.certify.logs import read_log
from robustgen.certify.noise import GridNoise
from robustgen.certify.record import CertificationSpec, as_log, gather_logs, load_certification, summarise
from robustgen.certify.report import measured, render
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.certify.votes import Voter
from robustgen.cli import _run
from robustgen.errors import RecordError, SpecError
from robustgen.progress import Silent
from robustgen.verification import Verification
from robustgen.verify import verify_run
from tests.helpers import make_linear, write_linear_task

SIGMA = 0.08
RADII = (0.0, 0.04, 0.08, 0.12)


def make(folder: Path, name: str, **asked: Any) -> Path:
    """A certification of the linear classifier."""
    request = CertificationRequest(
        classifier=f"python:{folder}/net.py:make", data=f"npz:{folder}/data.npz", sigma=SIGMA, n=14, samples=1500,
        radii="0,0.04,0.08,0.12", precision="float32", **asked,
    )  # fmt: skip
    certify_request(request, out=folder / name, batch_size=500, device="cpu", progress=Silent())
    return folder / name


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, data, and three finished certifications: anytime, fixed, and with uniform noise."""
    folder = tmp_path_factory.mktemp("certified")
    write_linear_task(folder, 20)
    found = load_certification(make(folder, "anytime")).certificates
    assert {one.predict == -1 for one in found} == {True, False}, "some are certified, some abstain"
    make(folder, "fixed", method="fixed")
    make(folder, "uniform", noise="uniform", method="fixed")
    return folder


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(work / "anytime", tmp_path / "run"))


def check(run: Path, work: Path, *, function: str = "make", **redraw: int) -> Verification:
    """What verify finds."""
    return verify_run(run, classifier=f"python:{work}/net.py:{function}", redraw=Redraw(**redraw))


def lines(run: Path) -> list[dict[str, Any]]:
    """The rows of the journal."""
    return [json.loads(line) for line in (run / "certificates.jsonl").read_text().splitlines()]


def write_lines(run: Path, rows: list[dict[str, Any]]) -> None:
    """Put rows in place of those of the journal."""
    (run / "certificates.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))


def edit(run: Path, change: Callable[[dict[str, Any]], None], file: str = "record.json") -> None:
    """Edit a JSON file."""
    table = json.loads((run / file).read_text())
    change(table)
    (run / file).write_text(json.dumps(table))


def edit_row(run: Path, pick: Callable[[dict[str, Any]], bool], change: Callable[[dict[str, Any]], None]) -> int:
    """Edit the first row of that kind; its id."""
    rows = lines(run)
    row = next(row for row in rows if pick(row))
    change(row)
    write_lines(run, rows)
    return int(row["id"])


def settle(run: Path) -> None:
    """Make the totals those of the journal, as a careful forger would."""
    held = load_certification(run)
    edit(run, lambda table: table.update(summarise(held.spec, held.certificates, held.shape)))


def certified(row: dict[str, Any]) -> bool:
    """With a radius above 0."""
    return row["radius"] > 0


def abstained(row: dict[str, Any]) -> bool:
    """Without a class."""
    return row["predict"] == -1


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
    from robustgen.classifiers import load_classifier

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


def test_fresh_test_is_the_binomial_one(work: Path) -> None:
    """At the claimed probability a false alarm is as rare as the level, and half a level more would not be."""
    held = load_certification(work / "anytime")
    one = next(one for one in held.certificates if one.radius > 0)
    noise = GridNoise(SIGMA)
    claimed = float(norm.cdf((one.radius + noise.slack(64)) / SIGMA)) + noise.approximation(64)
    from robustgen.certify.design import threshold_for

    assert threshold_for(one.radius, noise, 64) == pytest.approx(claimed, abs=1e-15)
    draws, level = 400, LEVEL / 5
    least = int(binom.ppf(level, draws, claimed))
    for votes, says in ((least - 1, True), (least + 1, False)):
        assert (float(binom.cdf(votes, draws, claimed)) < level) is says


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


def test_export_comes_back_as_the_same_table(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The field's columns, to the last digit, with the time of each example; folder and file give one table."""
    assert _run(["export", str(work / "anytime"), "--format", "tsv", "--out", str(tmp_path)]) == 0
    file = tmp_path / "anytime.tsv"
    assert capsys.readouterr().out.split() == [str(file)]
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    assert rows[0] == ["idx", "label", "predict", "radius", "correct", "time"]
    found = load_certification(work / "anytime").certificates
    assert [(int(r[0]), float(r[3])) for r in rows[1:]] == [(one.id, one.radius) for one in found]
    assert all(0 < one.seconds < 60 for one in found if one.seconds is not None)
    assert read_log(file).seconds.tolist() == pytest.approx([one.seconds for one in found], abs=1e-6)
    ours, theirs = measured(gather_logs([work / "anytime", file], pixels=64), RADII)["rows"]
    assert {**ours, "name": "", "seconds": 0} == {**theirs, "name": "", "seconds": 0}
    assert ours["seconds"] == pytest.approx(theirs["seconds"], abs=1e-5)
    assert _run(["certify-report", str(work / "anytime"), str(file), "--radii", "0,0.04", "--format", "md"]) == 0
    _, _, ours_row, linf, theirs_row, best = capsys.readouterr().out.splitlines()
    assert "| net.make, normal 0.08 | 14 | L2 |" in ours_row
    assert ours_row.split("|")[4:] == theirs_row.split("|")[4:]
    assert "| Linf | at r = 0 | at r = 0.005 |" in linf
    assert "chosen on these images" in best


def test_time_that_nobody_knows_is_not_zero(work: Path, tmp_path: Path) -> None:
    """A journal without seconds gives nan in the file, and null in the report."""
    found = [Certificate.from_line(json.dumps({k: v for k, v in row.items() if k != "seconds"}))
             for row in lines(work / "anytime")]  # fmt: skip
    assert found == load_certification(work / "anytime").certificates, "seconds are no part of equality"
    from robustgen.certify.logs import write_log

    write_log(as_log(found, "x"), tmp_path / "x.tsv")
    assert (tmp_path / "x.tsv").read_text().splitlines()[1].endswith("\tnan")
    (row,) = measured([read_log(tmp_path / "x.tsv")], RADII)["rows"]
    assert row["seconds"] is None


def test_seconds_are_shared_by_draws() -> None:
    """One second a call of the voter: what examples are told adds up, and who draws more is told more."""
    voter = Voter(
        make_linear((1, 8, 8)), GridNoise(SIGMA), seed=0, classes=4, batch_size=500, device=torch.device("cpu")
    )
    now, found = iter(range(10**6)), list[Certificate]()
    images = np.random.default_rng(0).integers(84, 172, (6, 1, 8, 8)) / 255
    spec = {"data": "d", "classifier": "c", "weights_sha256": "w", "data_sha256": "h", "ids": "0", "profile": "exact"}
    design = CertificationSpec(
        **spec, noise="normal", sigma=SIGMA, bits=8, method="anytime", radii=RADII, samples=1000, selection=50,
        alpha=0.001, seed=0, precision="float32",
    ).design(64)  # fmt: skip
    certify(voter, zip(range(6), [0] * 6, images, strict=True), design, selection=50, finish=found.append,
            clock=lambda: float(next(now)))  # fmt: skip
    calls = max(len(one.counts) for one in found) + 1
    assert sum(one.seconds or 0 for one in found) == pytest.approx(calls, abs=1e-4)
    by_draws = sorted(found, key=lambda one: one.samples)
    assert [one.seconds for one in by_draws] == sorted(one.seconds or 0 for one in found)


@pytest.mark.parametrize(("name", "norm_name", "divisor"), [("anytime", "l2", 8.0), ("uniform", "l1", 64.0)])
def test_linf_by_the_norm_bound(name: str, norm_name: str, divisor: float, work: Path) -> None:
    """R / sqrt(d) for L2 and R / d for L1, in the record and in every format; a corner of the cube reaches it."""
    record = json.loads((work / name / "record.json").read_text())
    assert record["norm"] == norm_name
    assert [one["radius"] for one in record["linf"]["certified"]] == [r / divisor for r in RADII]
    shares = [{k: v for k, v in one.items() if k != "radius"} for one in record["certified"]]
    assert [{k: v for k, v in one.items() if k != "radius"} for one in record["linf"]["certified"]] == shares
    assert record["linf"]["acr"] == pytest.approx(record["acr"] / divisor)
    corner = torch.full((64,), 0.08 / divisor, dtype=torch.float64)
    assert float(torch.linalg.vector_norm(corner, ord=int(norm_name[1]))) == pytest.approx(0.08)
    held = measured([load_certification(work / name).log()], RADII)
    assert f"{norm_name.upper()} " in render(held, "rich")
    for form in ("rich", "md", "latex"):
        assert f"at r = {0.08 / divisor:.3g}" in render(held, form)
    assert f",linf,{0.08 / divisor!r}," in render(held, "csv")


def test_envelope_is_of_the_same_images_and_marked(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best at each radius, with intervals wider than a log's own; none where nothing can be compared."""
    runs = [work / "anytime", work / "fixed"]
    held = measured(gather_logs(runs), RADII)
    for best, *each in zip(held["envelope"], *(row["certified"] for row in held["rows"]), strict=True):
        assert best["value"] == max(one["value"] for one in each)
        top = max(each, key=lambda one: one["value"])
        assert best["high"] > top["high"]
        assert best["low"] < top["low"] or top["low"] == 0
        assert best["log"] in [row["name"] for row in held["rows"]]
    assert "net.make, normal 0.08" in render(held, "csv")
    for form in ("rich", "md", "csv", "latex"):
        assert "chosen on these images" in render(held, form)
    other = measured(gather_logs([work / "anytime", work / "uniform"]), RADII)
    assert "envelope" not in other
    assert "radii are of several norms" in render(other, "rich")
    write_lines(shutil.copytree(work / "fixed", tmp_path / "less"), lines(work / "fixed")[:-1])
    assert _run(["certify-report", str(work / "anytime"), str(tmp_path / "less")]) == 0
    assert "not of the same images" in capsys.readouterr().out


def test_envelope_intervals_cover_the_best() -> None:
    """Three equally good logs: the interval holds the true best in 95 % of the cases, the best log's own does not."""
    from robustgen.certify.logs import CertificationLog, envelope

    rng, truth, covered, naive = np.random.default_rng(0), 0.5, 0, 0
    ids, zeros = np.arange(200), np.zeros(200)
    for _ in range(300):
        guesses = [(rng.random(200) >= truth).astype(int) for _ in range(3)]
        logs = [CertificationLog("x", ids, zeros.astype(int), guess, zeros + 1, zeros) for guess in guesses]
        (best,) = envelope(logs, [0.5])
        covered += best["low"] <= truth <= best["high"]
        own = max((log.certified(0.5) for log in logs), key=lambda one: one.value)
        naive += own.low <= truth <= own.high
    assert covered >= 0.95 * 300 - 3 * math.sqrt(300 * 0.05 * 0.95)
    assert naive < covered
