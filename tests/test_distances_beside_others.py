"""Distances beside other libraries: optimality by its integral, passes counted, images judged, budgets kept."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen.attacks.sigma_zero import SigmaZero
from robustgen.benchmarks import distances as script
from robustgen.benchmarks import distances_peers, render_distances
from robustgen.benchmarks.distances import Bench, measure, optimality, share_near
from robustgen.benchmarks.distances_peers import Counted, Entrant, entrants
from robustgen.benchmarks.speed import distances as speed
from robustgen.classifiers import load_classifier
from robustgen.threat import Norm
from tests.nearest_helpers import FarLinear

NORMS: tuple[Norm, ...] = ("l0", "l1", "l2", "linf")


def bench(norm: Norm, n: int = 3, classes: int = 3) -> tuple[Bench, FarLinear]:
    """A linear classifier whose nearest adversarial images are known, and n images."""
    model = FarLinear((1, 6, 5), classes)
    x, y = model.images(n)
    return Bench(load_classifier(model), x, y, norm), model


def test_optimality_is_the_integral() -> None:
    """The area between step curves, by brute force on a fine grid in float64; 1 for the best, 0 for no success."""
    g = np.random.default_rng(0)
    best = g.uniform(0.1, 2, 40)
    attack = best * g.uniform(1, 1.5, 40)
    attack[:5] = np.inf
    end = best.max()
    grid = (np.arange(400_000) + 0.5) * end / 400_000
    curves = [1 - np.searchsorted(np.sort(side), grid) / 40 for side in (attack, best)]
    expected = 1 - (curves[0] - curves[1]).mean() / (1 - curves[1]).mean()
    assert optimality(attack.tolist(), best.tolist()) == pytest.approx(expected, abs=1e-4)
    assert optimality(best.tolist(), best.tolist()) == 1
    assert optimality([math.inf] * 40, best.tolist()) == 0
    assert optimality([math.inf], [math.inf]) is None


def test_optimality_where_one_image_is_never_broken() -> None:
    """The curves end at the largest distance found: (2 - 1.5) / (2 - 1) of the one image that counts."""
    assert optimality([1.5, math.inf, math.inf], [1.0, 2.0, math.inf]) == pytest.approx(0.5)


def test_near_is_one_percent() -> None:
    """1.01 times the best is near, 1.02 is not; an image that nobody breaks is near for nobody."""
    assert share_near([1.0, 1.0099, 1.02, math.inf], [1.0, 1.0, 1.0, math.inf]) == 0.5


def test_every_pass_is_counted() -> None:
    """Forwards with and without a graph; a backward for each gradient that arrives, twice through one graph too."""
    model = Counted(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).requires_grad_(False))
    x = torch.rand(5, 1, 2, 2)
    model(x)
    assert (5, 0) == (model.forwards, model.backwards)
    logits = model(x.requires_grad_())
    torch.autograd.grad(logits[:, 0].sum(), x, retain_graph=True)
    torch.autograd.grad(logits[:2, 1].sum(), x)
    assert (10, 10) == (model.forwards, model.backwards)


def crossing(model: FarLinear, x: Tensor, y: Tensor, beyond: float = 1.001) -> Tensor:
    """The nearest images in L2 across the boundary of two classes, a thousandth beyond it; with 0.999 before it."""
    slope = (model.weight[1] - model.weight[0]).reshape(1, *model.shape) * (1 - 2 * y)[:, None, None, None]
    gap = model(x).diff(dim=1).abs()[:, :, None, None]
    return x + beyond * gap / slope[0].square().sum() * slope


def test_final_images_are_judged() -> None:
    """The closed form's distance where misclassified; none for what is not, whatever a library says of it."""
    run, model = bench("l2", classes=2)
    exact = model.exact(run.x, run.y, "l2")
    np.testing.assert_allclose(1.001 * exact, run.judged(run.x, run.y, crossing(model, run.x, run.y)), rtol=1e-5)
    assert [math.inf] * 3 == run.judged(run.x, run.y, crossing(model, run.x, run.y, 0.999))
    assert [math.inf] * 3 == run.judged(run.x, run.y, torch.full_like(run.x, math.nan))
    outside = run.x + 100 * (crossing(model, run.x, run.y) - run.x)
    expected = (outside.clamp(0, 1) - run.x).double().flatten(1).norm(dim=1)
    assert expected.tolist() == pytest.approx(run.judged(run.x, run.y, outside))


@pytest.mark.parametrize("norm", NORMS)
def test_ours_keep_the_budget(norm: Norm) -> None:
    """At most the budget an image, counted by the oracle; all but a step of each class, where nothing ends early.

    DeepFool ends at a success, sigma-zero when no pixel is left to set back.
    """
    early = {"deepfool": 120, "sigma-zero": 2 * SigmaZero().prune}
    run, _ = bench(norm, n=2, classes=4)
    ours = [entrant for entrant in entrants(norm, 120, 4) if entrant.library == "robustgen"]
    assert len(ours) >= 3
    for entrant in ours:
        _, cost, judged = run.run(entrant)
        spent = (cost.forwards + cost.backwards) / 2
        assert spent <= 120
        assert spent >= 120 - 3 * distances_peers.TARGETS - early.get(entrant.attack, 0)
        assert judged > 0


@pytest.mark.parametrize("norm", NORMS)
def test_others_are_beside_one_of_ours(norm: Norm) -> None:
    """Each names one of ours of the same norm, or none; FMN has two others beside it, twice in L1."""
    listed = entrants(norm, 600, 10)
    ours = {entrant.attack for entrant in listed if entrant.library == "robustgen"}
    assert {entrant.like for entrant in listed} <= ours | {""}
    assert (4 if norm == "l1" else 2) == sum(entrant.like == "fmn" for entrant in listed)
    assert {entrant.library for entrant in listed} <= {"robustgen", *distances_peers.LIBRARIES}


def test_short_walks_to_more_classes() -> None:
    """FMN-T is entered a second time where shorter walks reach more classes, and only there."""
    restarts = {
        budget: [e.settings["restarts"] for e in entrants("linf", budget, 10, (50, 16)) if e.attack == "fmn-t"]
        for budget in (40, 100, 300, 2000)
    }
    assert restarts == {40: [2], 100: [2, 3], 300: [3, 9], 2000: [9]}
    for entrant in entrants("linf", 300, 4, (50, 16)):
        if entrant.attack == "fmn-t":
            assert bench("linf", n=2, classes=4)[0].run(entrant)[1].forwards / 2 <= 150


def with_a_library(monkeypatch: pytest.MonkeyPatch, model: FarLinear) -> None:
    """A library whose attack "exact" knows the closed form, and whose attack "lies" gives the clean image back."""

    def run(entrant: Entrant, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        network(x)
        return crossing(model, x, y, 1.0001) if entrant.attack == "exact" else x

    monkeypatch.setitem(distances_peers._RUN, "adv_lib", run)


def test_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best attack has optimality 1, one that returns clean images 0; seconds in turn; and the tables show it."""
    run, model = bench("l2", classes=2)
    with_a_library(monkeypatch, model)
    listed = [
        Entrant("robustgen", "ddn", "", {"steps": 40}),
        Entrant("adv_lib", "exact", "ddn", {"steps": 1}),
        Entrant("adv_lib", "lies", "", {}),
    ]
    row = measure(run, listed, rounds=3, timed=2)
    ours, exact, lies = row["attacks"]
    assert (1, 1) == (exact["optimality"], exact["near"])
    assert (0, 0, None) == (lies["optimality"], lies["success"], lies["median"])
    assert 0 < ours["optimality"] < 1
    assert (1, 0) == (exact["forwards"], exact["backwards"])
    assert [None] * 3 == lies["distances"]
    assert 3 == len(exact["seconds"])
    assert exact["ratio"]["min"] == min(b / a for a, b in zip(ours["seconds"], exact["seconds"], strict=True))
    assert row["together"]["others"]["near"] == 1
    result = {
        "rows": [{"classifier": "c", "norm": "l2", "images": 3, "budget": 20, **row}], "what": "W", "rounds": 3,
        "libraries": {"adv-lib": "0"}, "command": "C", "date": "D", "environment": {"processor": "P", "threads": 1},
    }  # fmt: skip
    monkeypatch.setattr(render_distances, "load_result", lambda _name: json.loads(json.dumps(result, allow_nan=False)))
    assert f"{exact['median']:.4g}" in render_distances.distances()
    assert "| adv_lib `lies` | 0 % | –, –, – | 0 % | 0 % | 1 + 0 |" in render_distances.distances_attacks()
    assert "`steps=40`" in render_distances.distances_settings()


def test_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with what to type, before any work."""
    monkeypatch.setattr(distances_peers, "find_spec", lambda module: None if module == "foolbox" else module)
    monkeypatch.setattr(sys, "argv", ["distances", "--small"])
    with pytest.raises(SystemExit, match=r"foolbox cannot be found; type pip install .* adv-lib foolbox"):
        script.main()


def test_rows_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row that is stored is not measured again, another budget takes its place; `--small` stores nothing."""
    monkeypatch.setattr(script, "missing_libraries", list)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    done: list[tuple[int, ...]] = []

    def fake(_bench: Bench, listed: list[Entrant], *, rounds: int, timed: int) -> dict[str, Any]:
        done.append((len(listed), rounds))
        return {"attacks": []}

    def keep(name: str, result: dict[str, Any]) -> None:
        (tmp_path / f"{name}.json").write_text(json.dumps(result), encoding="utf-8")

    monkeypatch.setattr(script, "measure", fake)
    monkeypatch.setattr(script, "store", keep)
    monkeypatch.setattr(script, "_versions", dict)
    common = ["distances", "--classifier", "fmnist-standard", "--norm", "l0", "--images", "3"]
    for more, runs, rows in (
        (["--small"], 1, None), ([], 2, 1), ([], 2, 1), (["--again"], 3, 1), (["--budget", "90"], 4, 1),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [*common, *more])
        script.main()
        path = tmp_path / "distances.json"
        assert runs == len(done)
        assert rows == (len(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.is_file() else None)


def test_the_quickest_at_the_same_distance() -> None:
    """Of each side the quickest within 1 % of their best; None where nothing of ours is."""

    def tried(library: str, mean: float, seconds: float) -> speed.Tried:
        return speed.Tried(Entrant(library, "fmn", "", {}), 100, {"mean": mean, "median": 1 / mean}, seconds)

    far, near, best = (tried("adv_lib", *one) for one in ((1.1, 1.0), (1.009, 2.0), (1.0, 3.0)))
    quick, slow, worse = (tried("robustgen", *one) for one in ((1.0099, 0.7), (0.9, 5.0), (1.02, 0.1)))
    assert speed.sides([far, near, best, worse, slow, quick], "mean") == (near, quick)
    assert speed.sides([far, near, best, worse], "mean") == (near, None)
    assert speed.sides([far, best, slow], "median") == (far, None), "another statistic, another answer"
    failed = tried("adv_lib", math.inf, 0.1)
    assert speed.sides([failed, slow, quick], "mean") == (None, quick), "any success is nearer than none"
    assert speed.sides([failed], "mean") == (None, None)


def test_the_lines_of_a_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """FMN and any attack, by mean and median, each with who was compared; drawn and rendered, failures as gaps."""
    run, model = bench("l2", n=4, classes=2)
    with_a_library(monkeypatch, model)
    listed = [
        Entrant("robustgen", "fmn", "", {"steps": 30}), Entrant("adv_lib", "exact", "", {}),
        Entrant("adv_lib", "fmn", "fmn", {}),
    ]  # fmt: skip
    tried = [speed.run_once(run, entrant, 60) for entrant in listed]
    assert [math.isfinite(one.distance["mean"]) for one in tried] == [True, True, False]
    lines = [
        {"compared": "any attack", "statistic": name, **speed._line(run, *speed.sides(tried, name))}
        for name in speed.STATISTICS
    ]
    assert all(line["theirs"]["attack"] == "exact" and line["ours"]["attack"] == "fmn" for line in lines)
    assert all(len(line["seconds"]["ours"]) == speed.PAIRS for line in lines)
    rows = [{"classifier": "c", "norm": "l2", "images": 4, "lines": lines, "tried": [one.stored() for one in tried]}]
    assert rows[0]["tried"][2]["mean"] is None
    result = {
        "rows": rows, "budgets": [60], "pairs": 5, "command": "C", "date": "D",
        "environment": {"processor": "P", "threads": 1},
    }  # fmt: skip
    monkeypatch.setattr(render_distances, "load_result", lambda _name: json.loads(json.dumps(result, allow_nan=False)))
    exact = tried[1].distance["median"]
    assert (
        f"| any attack | median | adv_lib `exact`, 60, {exact:.4g} | `fmn`, 60, " in render_distances.speed_distances()
    )
    (axes,) = speed.draw(rows).axes
    assert len(axes.lines) == 3
    assert axes.get_ylim()[1] == pytest.approx(2 * tried[1].distance["mean"])
