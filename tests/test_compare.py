"""`robustgen compare` and `robustgen power`: exact paired tests, ties, and what cannot be compared."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import robustgen
from robustgen.cli import _run
from robustgen.compare import compare_runs, holm
from robustgen.errors import SpecError
from robustgen.runs import read_examples
from robustgen.statistics import examples_needed, mcnemar
from tests.helpers import make_images, make_linear


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One classifier under a weak and a strong attack, a threat twice as large, and fewer examples."""
    folder = tmp_path_factory.mktemp("compare")
    model = make_linear()
    data = make_images(model, 60)
    asked = {
        "weak": ("linf:0.02", "noise:steps=2", 60),
        "strong": ("linf:0.02", "pgd:steps=20", 60),
        "large": ("linf:0.04", "pgd:steps=20", 60),
        "few": ("linf:0.02", "pgd:steps=20", 30),
    }
    for name, (threat, attacks, n) in asked.items():
        robustgen.evaluate(model, data, threat, attacks=attacks, n=n, out=folder / name)
    return {name: folder / name for name in asked}


def test_who_changed_side(runs: dict[str, Path]) -> None:
    """The sets are those of the journals, the p-value that of the binomial test on them."""
    found = compare_runs([runs["strong"], runs["weak"]])
    best, other = found.rows
    assert str(runs["weak"]) == best.run
    robust = {name: {e.id for e in read_examples(runs[name]) if e.robust} for name in ("weak", "strong")}
    assert tuple(sorted(robust["weak"] - robust["strong"])) == other.only_best
    assert () == other.only_here
    assert math.isclose(2 * 0.5 ** len(other.only_best), other.p_value)
    assert len(other.only_best) > 8
    assert not other.tie
    assert best.tie


def test_a_run_ties_with_itself(runs: dict[str, Path]) -> None:
    """Equal verdicts give p = 1 and a tie."""
    found = compare_runs([runs["strong"], runs["strong"]])
    assert [True, True] == [row.tie for row in found.rows]
    assert [1.0, 1.0] == [row.p_value for row in found.rows]


@pytest.mark.parametrize(("other", "field"), [("large", "threat is linf:0.04 there"), ("few", "data_sha256 is")])
def test_what_differs_is_named(runs: dict[str, Path], other: str, field: str) -> None:
    """Other threats and other examples cannot be compared."""
    with pytest.raises(SpecError, match=field):
        compare_runs([runs["strong"], runs[other]])


def test_one_run_is_not_enough(runs: dict[str, Path]) -> None:
    """The message shows what to type."""
    with pytest.raises(SpecError, match="compare RUN RUN"):
        compare_runs([runs["strong"]])


def test_command(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A table with the test, or JSON."""
    assert 0 == _run(["compare", str(runs["strong"]), str(runs["weak"])])
    out = capsys.readouterr().out
    assert "tied with the best at the 5 % level: none" in out
    assert "strong: robust only in the best: " in out
    assert 0 == _run(["compare", str(runs["strong"]), str(runs["weak"]), "--json"])
    assert [str(runs["weak"]), str(runs["strong"])] == [r["run"] for r in json.loads(capsys.readouterr().out)["rows"]]
    assert 2 == _run(["compare", str(runs["strong"]), str(runs["large"])])


def test_mcnemar_is_the_binomial_test() -> None:
    """Known values: 1 and 9 give 22 / 1024; no difference gives 1."""
    assert math.isclose(22 / 1024, mcnemar(1, 9))
    assert mcnemar(4, 4) == 1.0
    assert mcnemar(0, 0) == 1.0
    with pytest.raises(SpecError, match="must be >= 0"):
        mcnemar(-1, 3)


def test_holm_against_the_definition() -> None:
    """Stepping down: the smallest times the number of tests, and never below a smaller one."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("difference", "differing"), [(0.02, 0.06), (0.05, 0.2), (0.03, 0.05)])
def test_examples_needed_reach_their_power(difference: float, differing: float) -> None:
    """Simulated runs of that size are told apart about as often as asked, by the test that has no continuity term."""
    n, rng = examples_needed(difference, differing), np.random.default_rng(0)
    a, b = (differing + difference) / 2, (differing - difference) / 2
    draws = rng.multinomial(n, [a, b, 1 - differing], size=4000)
    z = (draws[:, 0] - draws[:, 1]) / np.sqrt(np.maximum(draws[:, 0] + draws[:, 1], 1))
    power = float((np.abs(z) > stats.norm.ppf(0.975)).mean())
    assert 0.75 < power < 0.9


def test_power_command(capsys: pytest.CaptureFixture[str]) -> None:
    """More examples where the two differ more often; nonsense is refused."""
    assert 0 == _run(["power", "--difference", "1.0", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["examples"] for row in rows] == sorted(row["examples"] for row in rows)
    assert 0 == _run(["power", "--difference", "1.0"])
    assert "To tell 1 points from chance" in capsys.readouterr().out
    for bad, says in (
        ([], "--difference"),
        (["--difference", "0"], "above 0 and below 100"),
        (["--difference", "120"], "above 0 and below 100"),
        (["--difference", "1", "--power", "1"], "between 0 and 1"),
    ):
        assert 2 == _run(["power", *bad])
        assert says in capsys.readouterr().err


def test_folders_without_a_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence each, exit 2."""
    assert 2 == _run(["compare", str(tmp_path)])
    assert "two runs or more, got 1" in capsys.readouterr().err
    assert 2 == _run(["compare", str(tmp_path), str(tmp_path)])
    assert "is not a run folder" in capsys.readouterr().err
