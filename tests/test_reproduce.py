"""Reproduced tables: verdicts that the data carry, definitions, and a whole table on toy data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.durable import FolderLock
from robustgen.errors import SpecError
from robustgen.reproduce import report
from robustgen.reproduce.costs import commands, describe_training, forwards_per_image, to_toml
from robustgen.reproduce.experiment import Arm, Claim, Scale, Term, list_tables, load_scale, load_table
from robustgen.reproduce.runner import Outcome, Runner, by_arm
from robustgen.reproduce.verdict import judge_claim, paired_interval
from robustgen.training.recipe import Recipe, load_recipe
from tests.generator_helpers import RECIPE as GENERATOR
from tests.training_helpers import RECIPE as CLASSIFIER
from tests.training_helpers import write_data


def drawn(rng: np.random.Generator, rate: float, spread: float, seeds: int = 3, images: int = 400) -> Any:
    """Robust or not: every seed has its own rate, images differ in difficulty, all arms drawn alike share both."""
    rates = rate + spread * rng.standard_normal((seeds, 1))
    return rng.random((seeds, images)) < rates


def test_interval_covers() -> None:
    """Of the intervals for a difference that is 0, about 95 % hold 0, and not fewer than 93 %."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        d = drawn(rng, 0.5, 0.02).astype(float) - drawn(rng, 0.5, 0.02)
        _, low, high = paired_interval(d)
        covered += low <= 0 <= high
    assert covered >= 0.93 * 400


def test_interval_of_the_paired_differences_alone() -> None:
    """With seeds that all say the same the interval is the usual one over images."""
    d = np.tile(np.array([[1.0, 0.0, 0.0, -1.0, 1.0]]), (3, 40))
    mean, low, high = paired_interval(d)
    half = 1.972 * np.sqrt(d[0].var(ddof=1) / 200)
    assert (mean, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), rel=1e-3)


def claim(kind: str = "above", margin: float = 0.0) -> Claim:
    """a beats b."""
    return Claim(text="a beats b", terms=(Term(1, "a", "best"), Term(-1, "b", "best")), kind=kind, margin=margin)


@pytest.mark.parametrize(
    ("a", "b", "kind", "margin", "verdict"),
    [
        (0.7, 0.5, "above", 0.0, "holds"),
        (0.5, 0.7, "above", 0.0, "does not hold"),
        (0.5, 0.5, "above", 0.0, "undecided at this n"),
        (0.7, 0.68, "above", 0.1, "does not hold"),
        (0.5, 0.7, "not-above", 0.01, "holds"),
        (0.7, 0.5, "not-above", 0.01, "does not hold"),
        (0.5, 0.5, "not-above", 0.01, "undecided at this n"),
        (0.5, 0.5, "not-above", 0.2, "holds"),
    ],
)
def test_verdicts(a: float, b: float, kind: str, margin: float, verdict: str) -> None:
    """Held, refuted or neither, by where the interval lies."""
    rng = np.random.default_rng(1)
    outcomes = {("a", "best"): drawn(rng, a, 0.0), ("b", "best"): drawn(rng, b, 0.0)}
    found = judge_claim(claim(kind, margin), outcomes)
    assert found.verdict == verdict
    assert (found.seeds, found.images) == (3, 400)


def test_one_seed_carries_no_verdict() -> None:
    """An interval over seeds needs two."""
    with pytest.raises(SpecError, match="needs two of each, got 1 and 9"):
        paired_interval(np.zeros((1, 9)))


@pytest.mark.parametrize("name", list_tables())
@pytest.mark.parametrize("scale", ["laptop", "paper"])
def test_bundled_tables(name: str, scale: str, tmp_path: Path) -> None:
    """Every table has its recipes at both scales, and its claims follow from the paper's own figures."""
    table, at = load_table(name), load_scale(scale)
    for one in table.claims:
        told = [table.arm(term.arm).paper.get(f"aa_{term.which}") for term in one.terms]
        assert all(figure is not None for figure in told)
        total = sum(term.factor * (figure or 0) for term, figure in zip(one.terms, told, strict=True))
        assert one.paper == pytest.approx(total, abs=0.006)
    text = commands(table, at, tmp_path)
    assert text.count("robustgen train") >= len(at.seeds) * len(table.arms)
    for path in (tmp_path / "recipes").glob("*.toml"):
        assert path.stem.startswith("generator") or isinstance(load_recipe(path), Recipe)


def test_recipes_as_toml(tmp_path: Path) -> None:
    """What is written is what is read."""
    for name in ("fmnist-at", "wang2023-wrn-28-10", "wang2023-laptop"):
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(load_recipe(name).to_dict()), encoding="utf-8")
        assert load_recipe(path) == load_recipe(name)


def test_cost_of_trades() -> None:
    """Ten steps: 20 forward passes' worth of input gradients and twice three for the loss, as the facts count them."""
    assert forwards_per_image(load_recipe("wang2023-wrn-28-10")) == 26


def toy(folder: Path) -> tuple[Path, Scale]:
    """A table of three arms on toy data, and its scale."""
    data = write_data(folder)
    generator = json.loads(json.dumps(GENERATOR))
    generator["data"] = {"name": f"npz:{data}", "validation": 40}
    generator["training"] |= {"images": 64, "batch_size": 8}
    recipe = CLASSIFIER.format(path=data).replace(
        'method = "standard"', 'method = "trades"\nthreat = "linf:0.1"\nsteps = 1'
    )
    (folder / "classifier.toml").write_text(recipe, encoding="utf-8")
    (folder / "labeller.toml").write_text(
        CLASSIFIER.format(path=data).replace('"tiny"', '"labeller"'), encoding="utf-8"
    )
    (folder / "generator.toml").write_text(to_toml(generator), encoding="utf-8")
    (folder / "table.toml").write_text(
        """
title = "Toy"
source = "nowhere"
arms = [
    { name = "none", paper = { aa_best = 50.0, aa_last = 40.0 } },
    { name = "some", ratio = 0.2, sampler = "heun:steps=2" },
    { name = "unlabelled", ratio = 0.2, sampler = "heun:steps=2", conditional = false },
]
claims = [{ text = "some is better than none", terms = [[1, "some", "best"], [-1, "none", "best"]] }]
""",
        encoding="utf-8",
    )
    scale = Scale(
        name="toy", description="Toy.", recipe=str(folder / "classifier.toml"), labeller=str(folder / "labeller.toml"),
        generators={"edm": str(folder / "generator.toml")}, share=0.5, images=160, seeds=(0, 1), n=6, plan="rapid",
    )  # fmt: skip
    return folder / "table.toml", scale


def test_a_table_from_end_to_end(tmp_path: Path) -> None:
    """All arms and seeds; again, nothing is done twice; the generator saw the same images; pages are written."""
    path, scale = toy(tmp_path)
    table = load_table(str(path))
    found = list(Runner(table, scale, tmp_path / "out").outcomes())
    assert [(one.arm, one.seed) for one in found] == [(a, s) for s in (0, 1) for a in ("none", "some", "unlabelled")]
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    again = list(Runner(table, scale, tmp_path / "out").outcomes())
    assert [one.robust for one in again] == [one.robust for one in found]
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    held = report.result(table, scale, found, training="Toy.")
    report.write(held, tmp_path / "out")
    page = (tmp_path / "out" / "table.md").read_text(encoding="utf-8")
    assert "| some | 2 |" in page
    assert "(50.00)" in page
    assert "+10.00" in page
    assert (tmp_path / "out" / "table.png").stat().st_size > 1000
    assert (tmp_path / "out" / "table.csv").read_text(encoding="utf-8").count("\n") == 4
    images = next((tmp_path / "out" / "images").glob("edm-heun*.npz"))
    with np.load(images) as file:
        provenance = json.loads(str(file["provenance"]))
    assert provenance["trained_on"]["images"] == 160
    assert provenance["trained_on"]["held_out"] == 40


def test_the_last_weights_are_attacked_where_the_table_is_about_them(tmp_path: Path) -> None:
    """Not else; what another table made of the same training serves this one, and gets what it lacks."""
    path, scale = toy(tmp_path)
    both = load_table(str(path))
    one = replace(both, arms=tuple(replace(arm, paper={"aa_best": 50.0}) for arm in both.arms[:1]), claims=())
    assert (one.attacked, both.attacked) == (("best",), ("best", "last"))
    out = tmp_path / "out"
    found = list(Runner(one, scale, out).outcomes())
    assert [set(outcome.robust) for outcome in found] == [{"best"}] * 2
    assert "last" not in report.markdown(report.result(one, scale, found, training="Toy."))
    assert not list((out / "runs").glob("*-last"))
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*") if p.is_file() and p.name != "lock"}
    more = next(Runner(replace(both, arms=both.arms[:1], claims=()), scale, out).outcomes())
    assert set(more.robust) == {"best", "last"}
    assert stamps.items() <= {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")}.items()
    again = Runner(one, scale, out).outcomes()
    assert [outcome.robust["best"] for outcome in again] == [outcome.robust["best"] for outcome in found]


def test_image_distances_stand_beside_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the paper has an FID: less for test images than for noise, measured once, and shown in a column."""
    monkeypatch.setattr("robustgen.reproduce.quality._MOST", 200)
    near, far = (Arm(name=name, ratio=k, paper={"fid": fid}) for name, k, fid in (("near", 1, 2.5), ("far", 2, 30.0)))
    arms = (near, far, Arm(name="none"))
    table = replace(load_table("wang2023-amount"), arms=arms, claims=())
    scale = replace(load_scale("laptop"), images=300)
    runner = Runner(table, scale, tmp_path)
    runner.recipe = replace(runner.recipe, data=replace(runner.recipe.data, name="fmnist-test-1k", images=None))
    monkeypatch.setattr("robustgen.reproduce.quality.classifier_for", lambda _: "fmnist-standard")
    assert runner.distances() == {}
    real = np.stack([load_data("fmnist-test-1k").read(k) for k in range(300, 600)])
    noise = np.random.default_rng(0).integers(0, 256, real.shape, np.uint8)
    for arm, image in zip(arms, (real, noise), strict=False):
        runner.images_path(arm).parent.mkdir(exist_ok=True)
        np.savez(runner.images_path(arm), image=image)
    found = runner.distances()
    assert found["near"].value < 0.2 * found["far"].value
    assert (found["near"].n, found["near"].network) == (200, "fmnist-standard")
    runner.images_path(arms[0]).unlink()
    assert runner.distances() == found
    page = report.markdown(report.result(table, scale, [], training="", distances=found))
    assert "| arm | FD of the images | seeds |" in page
    assert "(2.5) | 0 | not run yet |" in page
    assert "| none |  | 0 | not run yet |" in page


def test_processes_share_a_table(tmp_path: Path) -> None:
    """What another process is at is left to it and collected later."""
    path, scale = toy(tmp_path)
    table = load_table(str(path))
    runner = Runner(table, scale, tmp_path / "out")
    busy = tmp_path / "out" / "classifiers" / runner.key(runner.classifier_recipe(table.arms[0], 0))
    busy.mkdir(parents=True)
    lock = FolderLock(busy)
    outcomes = runner.outcomes()
    first = next(outcomes)
    assert (first.arm, first.seed) == ("some", 0)
    lock.release()
    rest = list(outcomes)
    assert [(one.arm, one.seed) for one in rest[:2]] == [("none", 0), ("unlabelled", 0)]
    assert len(rest) == 5


def test_seeds_are_paired_whatever_their_order() -> None:
    """A process that waited for another one's seed 0 has seed 1 first."""
    truth = {0: [True, False], 1: [False, False]}
    found = [
        Outcome(
            arm="a", seed=seed, best_epoch=1, epochs=1, clean=dict.fromkeys(("best", "last"), truth[seed]),
            robust=dict.fromkeys(("best", "last"), truth[seed]), seconds=1.0,
        )
        for seed in (1, 0)
    ]  # fmt: skip
    assert by_arm(found)["a", "best"].tolist() == [truth[0], truth[1]]


def test_each_arm_has_its_generator(tmp_path: Path) -> None:
    """By its name among the scale's; images and folders do not share a place; an unknown one is refused."""
    table, scale = load_table("wang2023-edm"), load_scale("laptop")
    runner = Runner(table, scale, tmp_path)
    _, ddpm, edm = table.arms
    assert [runner.generator_recipe(arm).objective.kind for arm in (ddpm, edm)] == ["ddpm", "edm"]
    assert runner.generator_folder(ddpm) != runner.generator_folder(edm)
    assert runner.images_path(ddpm) != runner.images_path(edm)
    assert [runner.sampler(arm) for arm in (ddpm, edm)] == ["ddim:steps=50", scale.sampler]
    with pytest.raises(SpecError, match="unknown generator of this scale 'ddpm'"):
        Runner(table, replace(scale, generators={"edm": "wang2023-laptop-edm"}), tmp_path)


def test_a_scale_takes_fewer_images_for_a_table(tmp_path: Path) -> None:
    """Arms without generated images stay so, and other tables are as they were; what is run is what is said."""
    scale = replace(load_scale("laptop"), ratios={"wang2023-amount": 2})
    fitted = scale.fit(load_table("wang2023-amount"))
    assert [arm.ratio for arm in fitted.arms] == [0, 2, 2, 2]
    assert Runner(fitted, scale, tmp_path).images_needed(fitted.arms[-1]) == 5_000
    assert "0 or 2 generated images for each real one, 70% of each batch" in describe_training(fitted, scale)
    assert scale.fit(load_table("wang2023-edm")) == load_table("wang2023-edm")
    with pytest.raises(SpecError, match=r"ratios must be positive numbers by table"):
        replace(scale, ratios={"wang2023-amount": 0})


def test_a_deadline_keeps_what_is_done(tmp_path: Path) -> None:
    """Past the deadline nothing new is begun; without one the rest follows."""
    path, scale = toy(tmp_path)
    table = load_table(str(path))
    assert list(Runner(table, scale, tmp_path / "out", deadline=0.0).outcomes()) == []
    first = next(iter(Runner(table, scale, tmp_path / "out").outcomes()))
    assert list(Runner(table, scale, tmp_path / "out", deadline=0.0).outcomes()) == [first]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wang2023-amuont"], "unknown table 'wang2023-amuont'; did you mean 'wang2023-amount'"),
        (["wang2023-amount", "--scale", "labtop"], "unknown scale 'labtop'; did you mean 'laptop'"),
        (["wang2023-amount", "--scale", "paper", "--device", "cpu"], "needs a GPU"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, before any work."""
    assert _run(["reproduce", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands, recipes and cost; nothing is trained."""
    assert _run(["reproduce", "wang2023-amount", "--scale", "paper", "--dry-run", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "hours of one H100" in said
    assert "--n 1000000" in said
    assert (tmp_path / "commands.sh").read_text(encoding="utf-8") == said.rstrip("\n") + "\n"
    assert not (tmp_path / "classifiers").exists()
