"""The patch threat model: windows counted one by one, nearest points by trying every window, bad input, a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import robustgen
from robustgen.attacks.nearest import check_goal
from robustgen.attacks.plans import Plan, parse_attack
from robustgen.compare import compare_runs
from robustgen.errors import SpecError
from robustgen.interchange import export_run
from robustgen.patch_threat import PatchThreat
from robustgen.registry import ATTACKS, PLANS
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.training.method import make_method
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses
from tests.helpers import write_linear_task

THREATS = ["patch:2x3", "patch:3x1", "patch:2x3@1,2", "patch:5x7", "patch:1x1"]


def parse(text: str) -> PatchThreat:
    """As what it is."""
    threat = ThreatModel.parse(text)
    assert isinstance(threat, PatchThreat)
    return threat


def windows(threat: PatchThreat, height: int, width: int) -> list[tuple[slice, slice]]:
    """Every window that the threat model allows, along rows."""
    corners = [(r, c) for r in range(height - threat.height + 1) for c in range(width - threat.width + 1)]
    kept = corners if threat.place is None else [threat.place]
    return [(slice(r, r + threat.height), slice(c, c + threat.width)) for r, c in kept]


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Images and far-away points, (6, 3, 5, 7)."""
    g = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 5, 7, generator=g), torch.randn(6, 3, 5, 7, generator=g)


@pytest.mark.parametrize("text", THREATS)
def test_text_round_trips(text: str) -> None:
    """Also in capitals, with blanks, and beside another threat model, although a place holds a comma."""
    assert text == str(parse(text)) == str(parse(text.upper().replace("@", " @ ").replace(",", " , ")))
    assert [text, "linf:0.1"] == [str(threat) for threat in ThreatModel.parse_all(f"{text}, linf:0.1")]
    assert parse("patch:2x3") != parse("patch:2x3@1,2") != parse("patch:2x3@1,3")
    assert parse(text).bounded


@pytest.mark.parametrize("text", THREATS)
def test_contained_is_what_one_window_holds(text: str) -> None:
    """Against every window in turn, for random sets of pixels where one channel differs; distance 1 is the border."""
    threat, x = parse(text), torch.full((400, 2, 5, 7), 0.5)
    rng, expected, changed = np.random.default_rng(0), [], x.clone()
    for k in range(400):
        rows, columns = rng.integers(0, 5, k % 4), rng.integers(0, 7, k % 4)
        if k % 2:  # near each other, or hardly a pair would share a window
            rows, columns = rows % 2 + 1, columns % 3 + 2
        changed[k, k % 2, rows, columns] = 0.5 + 2.0**-24
        free = [(changed[k] != x[k]).any(0).clone() for _ in windows(threat, 5, 7)]
        for differs, window in zip(free, windows(threat, 5, 7), strict=True):
            differs[window] = False
        expected.append(any(not differs.any() for differs in free))
    inside, distance = threat.contains(x, changed), threat.distance(x, changed)
    assert expected == inside.tolist()
    assert expected == (distance <= 1).tolist()
    assert torch.equal((changed == x).flatten(1).all(1), distance == 0)
    assert 0 < sum(expected) < 400 or text == "patch:5x7"


def test_distance_is_how_much_larger_the_window_would_have_to_be() -> None:
    """Rows 1 to 4 and columns 2 to 3 need twice the height of patch:2x3; of a placed window the farther edge counts."""
    x = torch.zeros(1, 1, 6, 8)
    changed = x.clone()
    changed[0, 0, 1, 2] = changed[0, 0, 4, 3] = 1
    assert 2.0 == float(parse("patch:2x3").distance(x, changed))
    assert 4.0 == float(parse("patch:2x2@4,2").distance(x, changed))  # from row 5 up to the upper edge of row 1: 4 of 1
    changed[0, 0, 1, 2] = torch.nan
    assert not parse("patch:6x8").contains(x, changed)


@pytest.mark.parametrize("text", THREATS)
def test_projection_is_the_nearest_point(text: str, batch: tuple[Tensor, Tensor]) -> None:
    """No window's own projection is nearer to z, and what is inside stays."""
    threat, (x, z) = parse(text), batch
    inside = threat.project(x, z)
    assert threat.contains(x, inside).all()
    assert torch.equal(inside, threat.project(x, inside))
    ours = (inside - z).flatten(1).norm(dim=1)
    for window in windows(threat, 5, 7):
        other = x.clone()
        other[:, :, *window] = z[:, :, *window].clamp(0, 1)
        assert (ours <= (other - z).flatten(1).norm(dim=1) + 1e-6).all()


@pytest.mark.parametrize("text", THREATS)
def test_windows_are_counted_along_rows(text: str, batch: tuple[Tensor, Tensor]) -> None:
    """Sums, masks and corners speak of the same window under the same number."""
    threat, (x, z) = parse(text), batch
    sums = threat.window_sums(z[:, 0]).flatten(1)
    listed = windows(threat, 5, 7)
    assert len(listed) == sums.shape[1] == threat.places(x)[0] * threat.places(x)[1]
    for number, window in enumerate(listed):
        torch.testing.assert_close(z[:, 0, *window].sum((1, 2)), sums[:, number])
        held = torch.zeros(6, 1, 5, 7, dtype=torch.bool)
        held[:, :, *window] = True
        assert torch.equal(held, threat.window(torch.full((6,), number), x))


def test_random_starts_reach_every_window(batch: tuple[Tensor, Tensor]) -> None:
    """Each start is inside, and several hundred of them touch each of the 20 windows."""
    threat, x = parse("patch:2x3"), batch[0][:1].expand(500, -1, -1, -1)
    start = threat.random_start(x, ExampleRng.of(0, range(500)))
    assert threat.contains(x, start).all()
    corners = {tuple((a != b).any(0).nonzero()[0].tolist()) for a, b in zip(x, start, strict=True)}
    assert len(windows(threat, 5, 7)) == len(corners)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("patch", "patch:HxW such as patch:6x6"),
        ("patch:6", "expected patch:HxW"),
        ("patch:6x-6", "expected patch:HxW"),
        ("patch:6x6@3", "expected patch:HxW"),
        ("patch:0x6", "at least one pixel"),
        ("pach:6x6", "did you mean 'patch'"),
        ("patch:2x2,patch:2x2", "twice"),
    ],
)
def test_bad_threats_say_what_to_type(text: str, says: str) -> None:
    """One sentence for each way to get it wrong."""
    with pytest.raises(SpecError, match=says):
        ThreatModel.parse_all(text, bare=True)


def test_only_attacks_for_windows_are_let_in() -> None:
    """Each attack and each plan either serves a window or refuses in a sentence; and those of windows refuse balls."""
    window, ball = ThreatModel.parse("patch:6x6"), ThreatModel.parse("linf:0.1")
    for name in ATTACKS:
        plan = Plan("x", 1, (parse_attack(name),))
        if name in {"patch-pgd", "patch-rs"}:
            check_goal(plan, window)
            with pytest.raises(SpecError, match=f"'{name}' works in patch, not in linf:0.1; type --threat patch:6x6"):
                check_goal(plan, ball)
        elif name in {"clean", "noise", "replay"}:
            check_goal(plan, window)
            check_goal(plan, ball)
        else:
            with pytest.raises(
                SpecError, match=f"'{name}' works in linf, l2, l1, not in patch:6x6; type --plan patches"
            ):
                check_goal(plan, window)
    for name in PLANS:
        if name not in {"adaptive", "patches", "queries"}:
            with pytest.raises(SpecError, match="type --plan patches"):
                check_goal(PLANS[name](window), window)
    assert ["patch-rs"] == PLANS["queries"](window).labels()
    assert "patch-rs" not in PLANS["queries"](ball).labels()


def test_training_knows_balls_only() -> None:
    """A recipe with a window is refused before any work."""
    with pytest.raises(SpecError, match="training knows linf, l2, l1, got patch:2x2"):
        make_method("pgd-at", threat=ThreatModel.parse("patch:2x2"), label_smoothing=0.0, options={})


def test_a_run_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan by default, record, witnesses, verify and compare; RobustBench has no place for it."""
    monkeypatch.chdir(tmp_path)
    write_linear_task(tmp_path, 24)
    options = {"data": "npz:data.npz", "precision": "float32", "threat": "patch:4x3"}
    record = robustgen.evaluate("python:net.py:make", out="a", **options)
    assert "patches" == record.spec["plan"]
    assert record.robust_accuracy.value < record.clean_accuracy.value
    assert verify_run(Path("a"), classifier="python:net.py:make").holds
    dataset, threat = robustgen.load_data("npz:data.npz"), parse("patch:4x3")
    for id_, image in read_witnesses(Path("a")):
        assert threat.contains(dataset.batch([id_])[0], image[None]).all()
    robustgen.evaluate("python:net.py:other", out="b", attacks="patch-rs:queries=20,noise:steps=5", **options)
    assert {"a", "b"} == {row.run for row in compare_runs([Path("a"), Path("b")]).rows}
    with pytest.raises(SpecError, match="knows Linf, L2 and L1"):
        export_run(Path("a"), "robustbench", tmp_path / "out")
    with pytest.raises(SpecError, match="not inside images of 8 x 8"):
        robustgen.evaluate("python:net.py:make", out="c", **{**options, "threat": "patch:4x3@6,0"})
    union = robustgen.evaluate("python:net.py:make", out="d", **{**options, "threat": "patch:2x6,patch:6x2"}, n=8)
    assert {"patch:2x6/patch-pgd", "patch:6x2/patch-rs"} <= {attack.name for attack in union.attacks}
