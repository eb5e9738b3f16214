"""Pictures: the curve against closed-form optima, the grid against the witnesses, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import robustgen
from robustgen import engine, plot
from robustgen.attacks.plans import Plan, parse_attack, parse_plan
from robustgen.cli import _run
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.plot import plot_run
from robustgen.progress import Silent
from robustgen.registry import ATTACKS
from robustgen.runs import open_run
from robustgen.statistics import proportion
from robustgen.threat import ThreatModel
from robustgen.witnesses import read_witnesses
from tests.helpers import make_linear

PNG = b"\x89PNG\r\n\x1a\n"


class Notes(Silent):
    """Remembers what the user was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def make_run(folder: Path, *, channels: int = 1, threat: str = "linf:8/255", n: int = 40) -> Path:
    """A finished run of a linear classifier on grey mid-tones, where the limits of [0, 1] are out of reach."""
    folder.mkdir(parents=True, exist_ok=True)
    code = f"from tests.helpers import make_linear\ndef make(): return make_linear(({channels}, 8, 8))\n"
    (folder / "net.py").write_text(code + f"def other(): return make_linear(({channels}, 8, 8), seed=1)\n")
    images = np.random.default_rng(0).integers(84, 172, (n, 8, 8, channels), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = make_linear((channels, 8, 8))(x).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 4
    np.savez(folder / "data.npz", image=images, label=labels)
    robustgen.evaluate(
        f"python:{folder}/net.py:make", f"npz:{folder}/data.npz", threat, attacks="apgd-t:steps=10:restarts=3",
        precision="float32", out=folder / "run",
    )  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests copy rather than make."""
    return make_run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A run of 40 examples at linf:8/255, with its classifier in MADE/net.py and its data in MADE/data.npz."""
    return shutil.copytree(made, tmp_path / "run")


def draw(run: Path, made: Path, **changes: Any) -> list[Path]:
    """`plot_run` with the run's own classifier."""
    options: dict[str, Any] = {
        "out": None, "n": 200, "classifier": f"python:{made.parent}/net.py:make", "weights": None, "data_dir": None,
        "device": "cpu", "progress": Silent(),
    }  # fmt: skip
    return plot_run(run, **{**options, **changes})


def sweep_of(folder: Path) -> Any:
    """The points that a call left."""
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def distances(data: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each image to the nearest other class in Linf, in closed form, and whether it is classified correctly."""
    model = make_linear()
    with np.load(data) as file:
        x, y = torch.from_numpy(file["image"]).permute(0, 3, 1, 2).float() / 255, torch.from_numpy(file["label"])
    return model.distance(x, y, "linf"), model(x).argmax(1) == y


def test_pictures_are_drawn_into_the_run_folder(run: Path, made: Path) -> None:
    """Two PNG files and the points, and nothing else; the record stays as it was."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    pictures = draw(run, made)
    assert pictures == [run / "accuracy-eps.png", run / "examples.png"]
    for picture in pictures:
        assert picture.read_bytes().startswith(PNG)
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    assert set(after) - set(before) == {"accuracy-eps.png", "examples.png", "sweep.json"}
    assert {name: after[name] for name in before} == before


def test_curve_is_the_closed_form(run: Path, made: Path) -> None:
    """Targeted APGD is optimal on a linear classifier: the curve is the share of examples further away than eps."""
    draw(run, made)
    sweep = sweep_of(run)
    distance, correct = distances(made.parent / "data.npz")
    assert [point["factor"] for point in sweep["points"]] == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3]
    for point in sweep["points"]:
        assert point["eps"] == point["factor"] * 8 / 255
        standing = int((correct & (distance > point["eps"])).sum())
        expected = proportion(standing, 40)
        assert (point["value"], point["low"], point["high"]) == (expected.value, expected.low, expected.high)
    assert sweep["points"][0]["value"] == 39 / 40
    assert len({point["value"] for point in sweep["points"]}) >= 5


def test_curve_falls_even_where_the_attack_fails(run: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was broken at a smaller eps, or by the run itself, stays broken: there is a witness."""
    monkeypatch.setattr(engine, "run", lambda *_, **__: None)  # an attack that breaks nothing
    draw(run, made)
    values = {point["factor"]: point["value"] for point in sweep_of(run)["points"]}
    own = json.loads((run / "record.json").read_text())["robust_accuracy"]["value"]
    assert values == {0: 39 / 40, 0.25: 39 / 40, 0.5: 39 / 40, 0.75: 39 / 40, 1: own, 1.5: own, 2: own, 3: own}


def test_first_examples_only(run: Path, made: Path) -> None:
    """--n takes the first ones of the run."""
    draw(run, made, n=10)
    sweep = sweep_of(run)
    distance, correct = distances(made.parent / "data.npz")
    assert sweep["n"] == 10
    expected = [int((correct & (distance > point["eps"]))[:10].sum()) / 10 for point in sweep["points"]]
    assert [point["value"] for point in sweep["points"]] == expected


def test_drawing_again_attacks_nothing(run: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The points are kept, so neither attack nor classifier is needed; more examples need both."""
    draw(run, made)
    held = sweep_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", None)
        pictures = draw(run, made, classifier=None, out=tmp_path / "elsewhere")
        with pytest.raises(TypeError):
            draw(run, made, n=7)
    assert [picture.parent for picture in pictures] == 2 * [tmp_path / "elsewhere"]
    assert not (tmp_path / "elsewhere" / "sweep.json").exists()
    assert held == sweep_of(run)
    draw(run, made, n=7)
    assert sweep_of(run)["n"] == 7


@pytest.mark.parametrize("left", ["{", "[]", '{"schema": 1, "identity": "of another run", "n": 40}'])
def test_points_of_another_run_are_not_used(left: str, run: Path, made: Path) -> None:
    """A broken or foreign sweep.json is replaced."""
    (run / "sweep.json").write_text(left, encoding="utf-8")
    draw(run, made)
    assert len(sweep_of(run)["points"]) == 8


def test_curve_shows_points_and_the_run(run: Path, made: Path) -> None:
    """What is drawn is what was measured; a fraction gets a second axis in its own unit."""
    draw(run, made)
    held, sweep = open_run(run, None), sweep_of(run)
    axes = plot._draw_curve(held, sweep).axes[0]
    curve = axes.lines[0]
    assert [point["eps"] for point in sweep["points"]] == list(curve.get_xdata())
    assert [point["value"] for point in sweep["points"]] == list(curve.get_ydata())
    marker = axes.containers[0].lines[0]
    own = held.record.robust_accuracy
    assert (list(marker.get_xdata()), list(marker.get_ydata())) == ([8 / 255], [own.value])
    bar = axes.containers[0].lines[2][0].get_segments()[0]
    assert [own.low, own.high] == pytest.approx(list(bar[:, 1]))
    above = axes.child_axes[0]
    assert above.get_xlabel() == "eps in units of 1/255"
    assert above._functions[0](8 / 255) == 8
    assert above._functions[1](8) == 8 / 255


def test_eps_as_decimal_has_one_axis(tmp_path: Path) -> None:
    """No second unit was typed, so none is shown; a linf eps beyond 1 means nothing and is left out."""
    run = make_run(tmp_path, threat="linf:0.5", n=6)
    draw(run, run)
    sweep = sweep_of(run)
    assert [point["factor"] for point in sweep["points"]] == [0, 0.25, 0.5, 0.75, 1, 1.5, 2]
    axes = plot._draw_curve(open_run(run, None), sweep).axes[0]
    assert axes.child_axes == []


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_clean_adversarial_and_difference(channels: int, tmp_path: Path) -> None:
    """Pixel by pixel from data and witnesses; the factor and the classes are written down."""
    run = make_run(tmp_path, channels=channels, n=12)
    held = open_run(run, None)
    chosen, adversarial = plot._choose_examples(held)
    figure = plot._draw_grid(held, chosen, adversarial)
    grid = [axes for axes in figure.axes if axes.images]
    assert len(grid) == 3 * len(chosen)
    witnesses = dict(read_witnesses(run))
    for column, example in enumerate(chosen):
        shown = [grid[row * len(chosen) + column] for row in range(3)]
        clean, adversary, difference = (np.asarray(a.images[0].get_array()).reshape(8, 8, channels) for a in shown)
        with np.load(tmp_path / "data.npz") as file:
            raw = file["image"][example.id].astype(np.float32) / 255
        witness = witnesses[example.id].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(clean, raw)
        np.testing.assert_array_equal(adversary, witness)
        np.testing.assert_allclose(difference, 0.5 + 15 * (witness - raw), atol=1e-5)  # 0.5 / (8 / 255), rounded down
        assert shown[0].get_title() == str(example.label)
        assert shown[1].get_title() == f"→ {example.prediction}"
        assert shown[2].get_xlabel() == f"id {example.id}\napgd-t"
    assert grid[2 * len(chosen)].get_ylabel() == "difference × 15"


def test_examples_are_spread_over_the_classes(run: Path) -> None:
    """Eight, each broken by an attack, none of them misclassified from the start, as even as the classes allow."""
    held = open_run(run, None)
    chosen, images = plot._choose_examples(held)
    assert len(chosen) == len(images) == 8
    assert all(example.broken_by == "apgd-t" for example in chosen)
    labels = [example.label for example in chosen]
    assert labels == sorted(labels)
    available = [e.label for e in held.examples.values() if e.broken_by == "apgd-t"]
    most = max(labels.count(label) for label in set(labels))
    for label in set(available):
        assert labels.count(label) >= min(available.count(label), most - 1)


def test_run_without_a_broken_example_has_no_grid(tmp_path: Path) -> None:
    """There is nothing to show, and the user is told so."""
    run = make_run(tmp_path, threat="linf:0.0001", n=6)
    notes = Notes()
    assert draw(run, run, progress=notes) == [run / "accuracy-eps.png"]
    assert not (run / "examples.png").exists()
    assert notes.notes == ["no attack broke an example of this run, so there is no examples.png."]


@pytest.mark.parametrize(
    ("largest", "factor"), [(0.1, 5), (4 / 255, 31), (8 / 255, 15), (0.3, 1.7), (0.9, 1), (0, 1), (1e-3, 500)]
)
def testamplification_keeps_the_largest_change_in_view(largest: float, factor: float) -> None:
    """Half the range at most, a round number, and never a reduction."""
    assert plot.amplification(largest) == pytest.approx(factor, abs=1e-9)


@pytest.mark.parametrize("name", list(ATTACKS))
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_plan_is_rebuilt_from_the_protocol(name: str, classes: int) -> None:
    """Every attack can be read back from what a record says, alone and in company, whatever the number of classes."""
    threat = ThreatModel("linf", 0.1)
    for plan in (Plan("mine/own", 3, (parse_attack(name),)), parse_plan("rapid", None, threat)):
        assert plan == plot._plan(plan.protocol(classes), classes, threat)


@pytest.mark.parametrize("protocol", ["", "mine/1: unheard-of(steps=3)", "rapid/1: pgd(steps=3)", "free text"])
def test_unknown_protocol_falls_back_to_rapid(protocol: str) -> None:
    """What this version cannot say the same way is not guessed at."""
    threat = ThreatModel("l2", 0.5)
    assert parse_plan("rapid", None, threat) == plot._plan(protocol, 10, threat)


def test_matplotlib_missing(run: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message is the command that installs it."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SpecError, match=re.escape("pip install 'robustgen[report]'")):
        draw(run, made)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"classifier": None}, SpecError, "calls its classifier 'net.make'.*--classifier python:FILE.py:FUNCTION"),
        ({"n": 0}, SpecError, "--n must be >= 1, got 0"),
        ({"device": "gpu"}, SpecError, "--device must be"),
        ({"classifier": "python:{made}/net.py:other"}, ArtifactError, "pass the right ones with --classifier"),
        ({"classifier": "fmnist-aat"}, SpecError, "unknown classifier"),
        ({"out": Path("{made}/net.py")}, SpecError, "--out: .* cannot be made"),
        ({"out": Path("{made}/net.py/below")}, SpecError, "--out: .* cannot be made"),
    ],
)
def test_bad_request_says_what_to_type(
    changes: dict[str, Any], error: type[Exception], says: str, run: Path, made: Path
) -> None:
    """Refused before any attack, and nothing is written."""
    before = sorted(run.rglob("*"))
    fill = {k: type(v)(str(v).format(made=made.parent)) if "{" in str(v) else v for k, v in changes.items()}
    with pytest.raises(error, match=says):
        draw(run, made, **fill)
    assert sorted(run.rglob("*")) == before


def test_run_that_cannot_be_drawn(run: Path, made: Path, tmp_path: Path) -> None:
    """Changed data, tensors, a name with extra weights, lost examples and no run at all: each has its own sentence."""

    def edit(**spec: Any) -> None:
        record = json.loads((made / "record.json").read_text())
        record["spec"].update(spec)
        (run / "record.json").write_text(json.dumps(record))

    edit(data_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="its hash differs; restore it, or evaluate again"):
        draw(run, made)
    edit(data="tensors")
    with pytest.raises(SpecError, match=r"from tensors in memory.*--data npz:FILE"):
        draw(run, made)
    edit(classifier="fmnist-at+mine")
    with pytest.raises(SpecError, match="--classifier fmnist-at --weights FILE"):
        draw(run, made, classifier=None)
    edit()
    lines = (run / "examples.jsonl").read_text().splitlines()
    (run / "examples.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(RecordError, match="lacks examples of the run"):
        draw(run, made)
    (run / "examples.jsonl").write_text("{}")
    with pytest.raises(RecordError, match=r"examples\.jsonl.* cannot be read"):
        draw(run, made)
    with pytest.raises(RecordError, match="is not a run folder"):
        draw(tmp_path / "none", made)


def test_full_disk_is_an_error_not_a_traceback(run: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a picture is never left in the place of a whole one."""

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(SpecError, match=r"accuracy-eps.png cannot be written \(No space left on device\)"):
        draw(run, made)
    assert not (run / "accuracy-eps.png").exists()


def test_command_prints_the_pictures(run: Path, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One path a line on stdout, ready for the next command."""
    out = tmp_path / "pictures"
    command = ["plot", str(run), "--classifier", f"python:{made.parent}/net.py:make", "--n", "5", "--out", str(out)]
    assert _run(command) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}/accuracy-eps.png", f"{out}/examples.png"]
    assert {path.name for path in out.iterdir()} == {"accuracy-eps.png", "examples.png", "sweep.json"}


def test_a_plan_with_conditions_and_escalation_can_be_drawn(tmp_path: Path) -> None:
    """The curve of a `rapid` run is made from its attacks, on every example that is standing."""
    record = robustgen.evaluate("fmnist-at", n=8, plan="rapid", out=tmp_path / "run")
    pictures = plot_run(
        Path(record.run), out=None, n=4, classifier=None, weights=None, data_dir=None, device="cpu", progress=Silent()
    )
    assert "accuracy-eps.png" in [path.name for path in pictures]
    assert (tmp_path / "run" / "sweep.json").is_file()
