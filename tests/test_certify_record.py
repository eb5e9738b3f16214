"""What a certification leaves, as tables show it: exports that come back, Linf, envelopes, times, shared work."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from robustgen.certify.certify import Certificate, certify
from robustgen.certify.design import make_design
from robustgen.certify.logs import CertificationLog, envelope, read_log, write_log
from robustgen.certify.noise import GridNoise
from robustgen.certify.record import CertificationSpec, as_log, gather_logs, load_certification
from robustgen.certify.report import measured, render
from robustgen.certify.run import _work
from robustgen.certify.votes import Voter
from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.progress import Silent
from tests.certify_helpers import RADII, SIGMA, certify_all, lines, make, write_lines
from tests.helpers import make_linear
from tests.test_schemas import schema


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier, data, and three finished certifications: anytime, fixed, and with uniform noise."""
    return certify_all(tmp_path_factory.mktemp("certified"))


@pytest.fixture
def run(work: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(work / "anytime", tmp_path / "run"))


@pytest.mark.parametrize("name", ["anytime", "fixed", "uniform"])
def test_files_obey_their_schemas(name: str, work: Path) -> None:
    """Specification, lines and record; every field is described, and none that is not there."""
    for file, its in (("spec", "certification-spec"), ("record", "certification-record")):
        jsonschema.validate(json.loads((work / name / f"{file}.json").read_text()), schema(its))
    for row in lines(work / name):
        jsonschema.validate(row, schema("certificate"))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**row, "radius": None}, schema("certificate"))
    for kind, its in ((CertificationSpec, "certification-spec"), (Certificate, "certificate")):
        described = schema(its)["properties"]
        assert {f.name for f in fields(kind)} == set(described)
        assert all("description" in value for value in described.values())


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


def test_a_finished_folder_is_read_and_an_older_record_made_anew(work: Path, run: Path) -> None:
    """The same command leaves every byte as it is; where totals of an earlier version lack fields, lines stay too."""
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    make(work, str(run))
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    record = json.loads(before["record.json"])
    older = {key: value for key, value in record.items() if key not in ("journal_sha256", "shape", "norm", "linf")}
    (run / "record.json").write_text(json.dumps(older))
    make(work, str(run))
    assert before["certificates.jsonl"] == (run / "certificates.jsonl").read_bytes()
    again = json.loads((run / "record.json").read_text())
    assert {**again, "run": "", "environment": {}} == {**record, "run": "", "environment": {}}


def test_time_that_nobody_knows_is_not_zero(work: Path, tmp_path: Path) -> None:
    """A journal without seconds gives nan in the file, and null in the report."""
    found = [Certificate.from_line(json.dumps({k: v for k, v in row.items() if k != "seconds"}))
             for row in lines(work / "anytime")]  # fmt: skip
    assert found == load_certification(work / "anytime").certificates, "seconds are no part of equality"
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
    design = make_design("anytime", radii=RADII, noise=GridNoise(SIGMA), pixels=64, samples=1000, alpha=0.001)
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


class SecondRank:
    """The second of two processes, that begins late: the first had seen no certificate when they shared out."""

    rank, size, first = 1, 2, False

    def from_first(self, value: list[int]) -> list[int]:
        """What the first process sent, not what this one would find now."""
        assert value == []
        return []


def test_ranks_share_what_the_first_one_saw(work: Path, run: Path, tmp_path: Path) -> None:
    """A late process takes its half although others have written since, and touches no line that is being written."""
    half = tmp_path / "half"
    half.mkdir()
    whole = (run / "certificates.jsonl").read_bytes().splitlines(keepends=True)
    (half / "certificates.jsonl").write_bytes(whole[0] + whole[2][:30])
    spec = load_certification(run).spec
    dataset = load_data(spec.data, data_dir=None)
    late: Any = SecondRank()
    _work(spec, make_linear((1, 8, 8)), dataset, half, 4, 500, torch.device("cpu"), Silent(), late)
    taken = {json.loads(line)["id"] for line in (half / "certificates-1.jsonl").read_text().splitlines()}
    assert taken == set(range(1, 14, 2))
    assert (half / "certificates.jsonl").read_bytes() == whole[0] + whole[2][:30]
