"""Commands about purifiers: pictures, curves, scores, the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import robustgen
from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.purify.diffpure import DiffPure
from robustgen.purify_files import at_levels, parse_levels
from robustgen.reproduce import purification
from robustgen.reproduce.purification import load_table


def test_a_picture_of_every_level(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One row of images, then two rows a level; from a data set, and from a file."""
    picture = tmp_path / "grid.png"
    asked = ["purify", "--purifier", "diffpure:steps=1", "--levels", "0.05,0.2", "--out", str(picture)]
    assert _run([*asked, "--ids", "0-2"]) == 0
    with Image.open(picture) as image:
        assert image.size == (3 * 85 + 1, 5 * 85 + 1), "28 pixels three times, and a line"
    grey = tmp_path / "shoe.png"
    Image.fromarray(np.full((28, 28, 3), 90, np.uint8)).save(grey)
    assert _run([*asked, str(grey)]) == 0
    with Image.open(picture) as image:
        assert image.size == (1 * 85 + 1, 5 * 85 + 1)
    Image.fromarray(np.zeros((20, 28), np.uint8)).save(grey)
    assert _run([*asked, str(grey)]) == 2
    assert "(1, 20, 28), this generator makes (1, 28, 28)" in capsys.readouterr().err


def test_levels_replace_what_the_purifier_says() -> None:
    """t, sigma and step give way, all else stays."""
    assert at_levels("diffpure:sigma=0.3,steps=7", [0.2]) == [(0.2, DiffPure(t="0.2", steps=7))]
    assert at_levels("diffpure", [0.2]) == [(0.2, DiffPure(t="0.2"))]
    with pytest.raises(SpecError, match="no t to vary"):
        at_levels("jpeg", [0.1])
    for text in ("", "a", "0,0.1", "1.5"):
        with pytest.raises(SpecError, match="--levels must be times"):
            parse_levels(text)


def test_a_curve_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run folder a level, finished ones only read; numbers and picture."""
    asked = [
        "purify-curve", "fmnist-standard", "--purifier", "diffpure:steps=1", "--attacks", "fgsm", "--eot", "2",
        "-n", "6", "--out", str(tmp_path),
    ]  # fmt: skip
    assert _run([*asked, "--levels", "0.05"]) == 0
    stamp = (tmp_path / "t-0.05" / "record.json").stat().st_mtime_ns
    assert _run([*asked, "--levels", "0.05,0.1"]) == 0
    assert (tmp_path / "t-0.05" / "record.json").stat().st_mtime_ns == stamp
    held = json.loads((tmp_path / "curve.json").read_text(encoding="utf-8"))
    assert [row["t"] for row in held["rows"]] == [0.05, 0.1]
    assert (tmp_path / "curve.png").stat().st_size > 1000
    assert "t = 0.1: clean" in capsys.readouterr().out


def test_scoring_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By one protocol or all; refused where there is nothing random, too few draws, or no such protocol."""
    run = tmp_path / "run"
    asked = {"threat": "linf:0.02", "attacks": "fgsm"}
    robustgen.evaluate("fmnist-standard", n=6, purify="one-shot:sigma=0.05", out=run, **asked)
    assert _run(["score", str(run), "--draws", "16", "--protocol", "diffbreak-wc"]) == 0
    assert "any of the draws on the final image fails" in capsys.readouterr().out
    assert _run(["score", str(run), "--draws", "16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draws"] == 16
    assert _run(["score", str(run), "--draws", "3"]) == 2
    assert "--draws must be >= 11" in capsys.readouterr().err
    assert _run(["score", str(run), "--protocol", "diffbrake-wc"]) == 2
    assert "did you mean 'diffbreak-wc'" in capsys.readouterr().err
    robustgen.evaluate("fmnist-standard", n=4, out=tmp_path / "plain", **asked)
    assert _run(["score", str(tmp_path / "plain")]) == 2
    assert "nothing to score" in capsys.readouterr().err


TABLE = """
title = "Toy"
description = "Toy."
data = "fmnist-test-1k"
threat = "linf:0.02"

[[rows]]
name = "median"
classifier = "fmnist-standard"
purifier = "median:size=2"
n = 3

[[published]]
name = "somebody's"
claimed = "90"
corrected = "10"
source = "a thread"
"""


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows are runs, what is left falls from rung to rung, pages and picture are written, nothing is done twice."""
    scale = tmp_path / "toy.toml"
    scale.write_text(TABLE, encoding="utf-8")
    asked = ["reproduce", "purification", "--scale", str(scale), "--out", str(tmp_path / "out")]
    assert _run(asked) == 0
    page = capsys.readouterr().out
    assert "| median | fmnist-standard | 3 | 0 |" in page
    assert "transfer/apgd-ce" in page
    assert "| somebody's | 90 | 10 | a thread |" in page
    held = json.loads((tmp_path / "out" / "purification.json").read_text(encoding="utf-8"))
    left = [step["left"] for step in held["rows"][0]["ladder"]]
    assert left == sorted(left, reverse=True)
    assert (tmp_path / "out" / "purification.csv").read_text(encoding="utf-8").count("\n") == 1 + len(left)
    assert (tmp_path / "out" / "purification.png").stat().st_size > 1000
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "purification").rglob("*") if p.is_file()}
    assert _run(asked) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "purification").rglob("*") if p.is_file()}


@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_bundled_scales_as_commands(scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row can be typed; the paper's is refused where there is no GPU."""
    table = load_table(scale)
    text = purification.commands(table, tmp_path)
    assert text.count("robustgen eval ") == len(table.rows)
    if scale == "paper":
        assert _run(["reproduce", "purification", "--scale", "paper", "--device", "cpu"]) == 2
        assert "needs a GPU" in capsys.readouterr().err
    with pytest.raises(SpecError, match="did you mean 'laptop'"):
        load_table("labtop")


def test_a_detector_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Who knows the detector does at least as well as who does not; the threshold needs images of its own."""
    assert _run(["detect", "fmnist-standard", "--threat", "linf:0.05", "-n", "40", "--steps", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["robust"]["value"] <= found["robust_blind"]["value"] <= found["clean"]["value"]
    assert _run(["detect", "fmnist-standard", "-n", "1000"]) == 2
    assert "must leave some to set the threshold on" in capsys.readouterr().err
