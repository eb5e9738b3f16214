"""`reproduce certification`: rows are run folders, nothing is done twice, and a verdict needs the data for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from robustgen.certify.logs import CertificationLog
from robustgen.cli import _run as run_cli
from robustgen.errors import SpecError
from robustgen.reproduce import certification
from robustgen.reproduce.certification import Certified, load_table

TABLE = """
title = "Toy"
description = "For a test."
data = "fmnist-test-1k"
n = 6
radii = [0, 0.05]
samples = 100

[[rows]]
name = "as it is"
sigma = 0.05
classifier = "fmnist-standard"

[[rows]]
name = "denoised"
sigma = 0.05
classifier = "fmnist-standard"
denoise = "fmnist-edm"

[[comparisons]]
text = "a denoiser helps"
better = "denoised"
than = "as it is"
radius = 0.05

[[published]]
name = "somebody's"
data = "CIFAR-10"
source = "a log"
radii = [0, 0.5]
certified = [70.5, 50]
"""


def _log(name: str, radius: list[float]) -> CertificationLog:
    """Examples of label 0, right wherever there is a radius."""
    held = np.array(radius)
    zeros = np.zeros(len(held), dtype=np.int64)
    return CertificationLog(name, np.arange(len(held)), zeros, np.where(held > 0, 0, -1), held, np.zeros(len(held)))


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line to JSON, Markdown, CSV and a picture; a second call does no work."""
    scale, out = tmp_path / "toy.toml", tmp_path / "out"
    scale.write_text(TABLE, encoding="utf-8")
    asked = ["reproduce", "certification", "--scale", str(scale), "--out", str(out)]
    assert run_cli(asked) == 0
    page = capsys.readouterr().out
    assert "| as it is | 0.05 |" in page
    assert "| somebody's | CIFAR-10 | 70.5 | 50 |  | a log |" in page
    held = json.loads((out / "certification.json").read_text(encoding="utf-8"))
    first = [one["value"] for one in held["rows"][0]["certified"]]
    assert first == sorted(first, reverse=True)
    assert first[0] > 0.5
    assert held["comparisons"][0]["verdict"] == "undecided at this n"  # six images carry no verdict
    assert (out / "certification.csv").read_text(encoding="utf-8").count("\n") == 1 + 4
    assert (out / "certification.png").stat().st_size > 1000
    runs = out / "certification"
    stamps = {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}
    assert run_cli(asked) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in runs.rglob("*") if path.is_file()}


def test_verdicts_follow_from_the_paired_counts(tmp_path: Path) -> None:
    """Ten against none: p = 2^-9, holds; the same the other way round: does not hold; ten against ten: undecided."""
    scale = tmp_path / "toy.toml"
    scale.write_text(TABLE, encoding="utf-8")
    table = load_table(str(scale))

    def verdict(better: list[float], than: list[float]) -> dict[str, object]:
        logs = {"denoised": _log("denoised", better), "as it is": _log("as it is", than)}
        done = [(row, Certified(log=logs[row.name], samples=1, precision="float32", seconds=1.0)) for row in table.rows]
        found: dict[str, object] = certification.measured(table, done)["comparisons"][0]
        return found

    ten, none = [0.1] * 10 + [0.0] * 10, [0.0] * 20
    assert verdict(ten, none)["verdict"] == "holds"
    assert verdict(ten, none)["p_value"] == pytest.approx(2**-9)
    assert verdict(none, ten)["verdict"] == "does not hold"
    assert verdict(ten, ten[::-1])["verdict"] == "undecided at this n"
    assert verdict([0.04] * 20, none)["verdict"] == "undecided at this n"  # below the radius asked about


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_bundled_scales_as_commands(scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row can be typed, in a folder of its own; the paper's is refused where there is no GPU."""
    table = load_table(scale)
    text = certification.commands(table, tmp_path)
    assert text.count("robustgen certify ") == len(table.rows)
    assert text.count("robustgen train ") == sum(row.recipe is not None for row in table.rows)
    assert len({row.folder for row in table.rows}) == len(table.rows)
    if scale == "paper":
        assert run_cli(["reproduce", "certification", "--scale", "paper", "--device", "cpu"]) == 2
        assert "needs a GPU" in capsys.readouterr().err


def test_a_row_of_nothing(tmp_path: Path) -> None:
    """Neither classifier nor recipe, or a comparison of a row that there is not: refused, with what is wrong."""
    path = tmp_path / "toy.toml"
    path.write_text(TABLE.replace('classifier = "fmnist-standard"\ndenoise', "denoise"), encoding="utf-8")
    with pytest.raises(SpecError, match="denoised needs either classifier or recipe"):
        load_table(str(path))
    path.write_text(TABLE.replace('than = "as it is"', 'than = "another"'), encoding="utf-8")
    with pytest.raises(SpecError, match="names a row that there is not"):
        load_table(str(path))
