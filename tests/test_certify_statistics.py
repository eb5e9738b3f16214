"""Bounds and evidence for certificates: closed forms, simulation, and the tables of published logs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm

from robustgen.certify.bounds import least_samples, lower_bound, probability_for, radius_for, upper_bound
from robustgen.certify.logs import read_log, write_log
from robustgen.certify.report import FORMATS
from robustgen.certify.sequences import evidence_above, evidence_below, sequential_lower_bound
from robustgen.cli import _run
from robustgen.errors import SpecError

LOGS = Path(__file__).parent / "data" / "cohen2019"


@pytest.mark.parametrize(("k", "n"), [(1, 1), (5, 10), (99, 100), (100, 100), (99_000, 100_000)])
def test_lower_bound_is_where_the_tail_is_alpha(k: int, n: int) -> None:
    """P(at least k right | bound) = alpha, by the binomial distribution itself."""
    alpha = 0.001
    bound = float(lower_bound(k, n, alpha))
    assert float(binom.sf(k - 1, n, bound)) == pytest.approx(alpha, rel=1e-6)
    assert float(upper_bound(n - k, n, alpha)) == pytest.approx(1 - bound)


def test_bounds_at_the_ends() -> None:
    """Nothing right proves nothing; all right has a closed form."""
    assert float(lower_bound(0, 100, 0.001)) == 0.0
    assert float(lower_bound(100, 100, 0.001)) == pytest.approx(0.001 ** (1 / 100))
    with pytest.raises(SpecError, match=r"alpha must be in \(0, 1\)"):
        lower_bound(1, 2, 0.0)


@pytest.mark.parametrize("noise", ["normal", "uniform", "laplace"])
def test_radius_and_probability_are_inverse(noise: str) -> None:
    """Back and forth; 0 at and below one half."""
    for radius in (0.0, 0.1, 0.3):
        p = probability_for(radius, 0.5, noise)
        assert float(radius_for(p, 0.5, noise)) == pytest.approx(radius, abs=1e-12)
    assert float(radius_for(0.4, 0.5, noise)) == 0.0
    with pytest.raises(SpecError, match="noise must be one of"):
        radius_for(0.9, 0.5, "pink")


def test_largest_radii_of_the_facts() -> None:
    """R / sigma at alpha = 0.001 with every draw right, and the draws that radii need."""
    for n, expected in ((100, 1.500), (1000, 2.463), (10_000, 3.199), (100_000, 3.811)):
        assert float(radius_for(lower_bound(n, n, 0.001), 1.0)) == pytest.approx(expected, abs=5e-4)
    assert [least_samples(r, 1.0, 0.001) for r in (0.5, 1.0, 1.5, 2.0)] == [19, 40, 100, 301]


def test_evidence_is_a_martingale() -> None:
    """Its mean under p0 stays at most 1, exactly, by summing over all outcomes; and 1 for the two-sided part of it."""
    for n in (1, 5, 20):
        k = np.arange(n + 1)
        for p in (0.5, 0.7, 0.8):
            mean = float((binom.pmf(k, n, p) * np.exp(evidence_above(k, n, 0.8))).sum())
            assert mean <= 1 + 1e-9
            assert mean == pytest.approx(1.0, abs=0.05) or p < 0.8


def test_draws_needed_when_every_one_is_right() -> None:
    """As the facts have them for r / sigma of 1/2, 1, 3/2 and 2."""
    needed = []
    for ratio in (0.5, 1.0, 1.5, 2.0):
        n = np.arange(1, 1000)
        needed.append(int(n[evidence_above(n, n, float(norm.cdf(ratio))) >= math.log(1000)][0]))
    assert needed == [22, 47, 117, 351]


def test_false_certificates_are_as_rare_as_promised() -> None:
    """At p = p0, looking after every draw up to 1,000: at most alpha; looking at Clopper-Pearson again is not valid."""
    rng, alpha, p0, runs = np.random.default_rng(0), 0.05, 0.841, 2000
    right = np.cumsum(rng.random((runs, 1000)) < p0, axis=1)
    n = np.arange(1, 1001)
    accepted = (evidence_above(right, n[None, :], p0) >= math.log(1 / alpha)).any(1).mean()
    assert 0.01 < accepted <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / runs)
    looks = n[99::100]
    peeking = (lower_bound(right[:, 99::100], looks[None, :], alpha) > p0).any(1).mean()
    assert peeking > 2 * alpha


def test_sequential_bound_and_evidence_agree() -> None:
    """The bound excludes what the evidence excludes; the mirrored evidence is that of the other class."""
    bound = sequential_lower_bound(95, 100, 0.01)
    assert evidence_above(95, 100, bound - 1e-6) >= math.log(100) > evidence_above(95, 100, bound + 1e-6)
    assert float(evidence_below(5, 100, 0.2)) == pytest.approx(float(evidence_above(95, 100, 0.8)))
    assert sequential_lower_bound(0, 10, 0.01) == 0.0


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("imagenet_resnet50_sigma_0.25.tsv", {0.0: 0.667, 0.5: 0.494}),
        (
            "cifar10_resnet110_sigma_0.50.tsv",
            {0.0: 0.652, 0.25: 0.546, 0.5: 0.414, 0.75: 0.32, 1.0: 0.234, 1.25: 0.152, 1.5: 0.094},
        ),
        ("cifar10_resnet110_sigma_0.12.tsv", {0.0: 0.814, 0.25: 0.586}),
    ],
)
def test_published_logs_give_the_published_table(file: str, expected: dict[float, float]) -> None:
    """Cohen et al. 2019, from their own files."""
    if not (LOGS / file).exists():
        pytest.fail(f"{file} is missing")
    log = read_log(LOGS / file)
    assert {r: round(log.certified(r).value, 3) for r in expected} == expected


def test_acr_of_a_published_log() -> None:
    """.538 for CIFAR-10 at sigma 0.50, .270 at 0.12."""
    assert read_log(LOGS / "cifar10_resnet110_sigma_0.50.tsv").acr == pytest.approx(0.538, abs=5e-4)
    assert read_log(LOGS / "cifar10_resnet110_sigma_0.12.tsv").acr == pytest.approx(0.270, abs=5e-4)


def test_written_as_read(tmp_path: Path) -> None:
    """Every column comes back, radii to the last digit."""
    log = read_log(LOGS / "cifar10_resnet110_sigma_0.50.tsv")
    write_log(log, tmp_path / "again.tsv")
    again = read_log(tmp_path / "again.tsv", log.name)
    assert np.array_equal(again.radius, log.radius)
    assert np.array_equal(again.predict, log.predict)
    assert np.allclose(again.seconds, log.seconds)


@pytest.mark.parametrize("form", list(FORMATS))
def test_reports(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each format holds the figures; a picture is drawn."""
    logs = [str(LOGS / f"cifar10_resnet110_sigma_{sigma}.tsv") for sigma in ("0.12", "0.50")]
    picture = tmp_path / "curve.png"
    asked = ["certify-report", *logs, "--radii", "0,0.25", "--format", form, "--plot", str(picture)]
    assert _run(asked) == 0
    said = capsys.readouterr().out
    assert "65.2" in said or "0.652" in said
    assert picture.stat().st_size > 1000
    if form == "json":
        assert [one["value"] for one in json.loads(said)["envelope"]] == [0.814, 0.586]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected the columns idx label"),
        ("idx\tlabel\tpredict\tradius\tcorrect\n", "expected the columns idx label"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n", "holds no example"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\n", "line 2: expected 6 fields"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\tbig\t1\t2.0\n", "line 2: could not convert"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t2\t0.5\t1\t2.0\n", "correct 1"),
        ("idx\tlabel\tpredict\tradius\tcorrect\ttime\n" + "0\t1\t1\t0.5\t1\t2.0\n" * 2, "stands there twice"),
    ],
)
def test_bad_logs(content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Named with file and line, exit 2."""
    path = tmp_path / "log.tsv"
    path.write_text(content, encoding="utf-8")
    assert _run(["certify-report", str(path)]) == 2
    assert message in capsys.readouterr().err
    assert _run(["certify-report", str(LOGS / "cifar10_resnet110_sigma_0.12.tsv"), "--radii", "a"]) == 2
    assert "--radii must be numbers" in capsys.readouterr().err
