"""Classifiers behind purifiers: attacked, judged, scored and verified with noise that belongs to examples."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import robustgen
from robustgen import engine
from robustgen.attacks.apgd import APGDCE
from robustgen.attacks.losses import Margin
from robustgen.attacks.pgd import PGD
from robustgen.attacks.plans import Plan, Rung
from robustgen.cards import Card
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.defended import Defended, defend
from robustgen.errors import SpecError
from robustgen.generator.analytic import GaussianDenoiser
from robustgen.judge import Judge, Verdict
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm
from robustgen.purify.base import PURIFIERS, Chain, Sanitiser, single_step, straight_through
from robustgen.purify.diffpure import DiffPure
from robustgen.purify.median import Median
from robustgen.purify.mirage import Mirage
from robustgen.record import RunRecord
from robustgen.registry import PLANS
from robustgen.rng import ExampleRng
from robustgen.scoring import score_run
from robustgen.threat import ThreatModel
from robustgen.verify import verify_run
from tests.helpers import assert_global_rng_untouched, make_linear

SHAPE = (1, 6, 6)


def plain(classes: int = 3) -> Classifier:
    """A linear classifier of small images."""
    network = make_linear(SHAPE, classes=classes)
    return Classifier(network, Card(name="linear", title="Linear", architecture="Linear", channels=1, size=(6, 6)))


def defended(steps: int = 4, gradient: str = "full") -> Defended:
    """The same behind DiffPure with the exact denoiser of Gaussian data."""
    denoiser = GaussianDenoiser(torch.zeros(SHAPE), 0.5)
    return Defended(DiffPure(t="0.02", steps=steps), plain(), denoiser, gradient=gradient)


def images(model: Classifier, n: int) -> tuple[Tensor, Tensor]:
    """Images with the labels that the undefended classifier gives them."""
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    return x, model(x).argmax(1)


@pytest.fixture
def short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adaptive` with few steps."""

    def ladder(_threat: ThreatModel) -> Plan:
        return Plan(
            "adaptive", 1,
            (Rung(APGDCE(steps=4), "transfer"), Rung(PGD(steps=4), "bpda", eot=2),
             Rung(PGD(steps=4), "surrogate", eot=2), Rung(APGDCE(steps=6, loss=Margin()), "full", eot=4, warm=True)),
            growth=(Rung(APGDCE(steps=8), "full", eot=4, warm=True), Rung(APGDCE(steps=16), "full", eot=4, warm=True)),
        )  # fmt: skip

    PLANS["adaptive"]
    monkeypatch.setitem(PLANS._entries, "adaptive", ladder)


def test_answers_belong_to_examples() -> None:
    """With streams: the same in any batch and order, another for each draw; without: from the global generator."""
    model = defended()
    x, _ = images(model, 6)
    rng = ExampleRng.of(0, [3, 1, 4, 5, 9, 2])
    with assert_global_rng_untouched():
        together = model(x, rng)
    alone = torch.cat([model(x[k : k + 1], rng.take(torch.tensor([k]))) for k in range(6)])
    torch.testing.assert_close(together, alone)
    assert not torch.equal(together, model(x, ExampleRng.of(1, [3, 1, 4, 5, 9, 2])))
    torch.manual_seed(5)
    first = model(x)
    torch.manual_seed(5)
    assert torch.equal(first, model(x))


def test_queries_average_draws_that_belong_to_rows() -> None:
    """The oracle's mean over draws is that of each draw alone, whether they go through in one batch or in several."""
    model = defended()
    x, y = images(model, 5)
    rng, place = ExampleRng.of(0, range(5)), torch.full((5,), 3)

    def ask(rows: Tensor, eot: int) -> Any:
        oracle = Oracle(model, eot=eot)
        oracle.look_at(rng.take(rows), place[rows])
        return oracle.grad(x[rows], y[rows], Margin())

    everything = torch.arange(5)
    whole, part = ask(everything, 100), ask(torch.tensor([4]), 100)  # 100 x 5 rows make several batches, 100 x 1 one
    torch.testing.assert_close(whole.grad[4:], part.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(whole.logits[4:], part.logits, rtol=1e-4, atol=1e-6)
    single = ask(everything, 1)
    assert not torch.allclose(single.logits, whole.logits)
    oracle = Oracle(model, eot=2)
    oracle.look_at(rng, place)
    assert not torch.equal(oracle.logits(x), oracle.logits(x)), "two queries, two draws"


def test_the_ladder_runs_and_can_be_verified(short_ladder: None, tmp_path: Path) -> None:
    """Rungs by name, growth until it is quiet, witnesses that verify exactly, images that can be scored again."""
    model = defended()
    data = images(model, 30)
    np_data = tmp_path / "data.npz"
    import numpy as np

    np.savez(np_data, image=(data[0] * 255).round().byte().permute(0, 2, 3, 1).numpy(), label=data[1].numpy())
    record = robustgen.evaluate(model, f"npz:{np_data}", "linf:0.05", plan="adaptive", out=tmp_path / "run")
    names = [attack.name for attack in record.attacks]
    assert names[:5] == ["transfer/apgd-ce", "bpda/pgd", "surrogate/pgd", "full/apgd-ce", "full/apgd-ce#2"]
    assert record.stochastic is not None
    assert record.stochastic.clean_worst_of_n.value >= record.stochastic.worst_of_n.value
    assert set(record.stochastic.protocols) == {"diffpure", "lee-kim", "diffbreak-wc", "diffbreak-mv"}
    assert "gradient-weaker-than-full" not in record.flags
    again = robustgen.evaluate(
        model, f"npz:{np_data}", "linf:0.05", plan="adaptive", out=tmp_path / "again", batch_size=7
    )
    lines = [(tmp_path / name / "examples.jsonl").read_text(encoding="utf-8") for name in ("run", "again")]
    verdicts = [[json.loads(line)["broken_by"] for line in text.splitlines()] for text in lines]
    assert verdicts[0] == verdicts[1], "whatever the batch"
    assert RunRecord.load(tmp_path / "run").stochastic == record.stochastic == again.stochastic


def test_verify_repeats_the_judge(tmp_path: Path) -> None:
    """By name: the noise of each verdict is drawn again; more draws score the same images."""
    run = tmp_path / "run"
    record = robustgen.evaluate(
        "fmnist-standard", threat="linf:0.02", attacks="pgd:steps=2", n=12, purify="one-shot:sigma=0.05", eot=2, out=run
    )
    assert record.spec["classifier"].startswith("one-shot:sigma=0.05")
    assert record.spec["protocol"].endswith("gradient=full")
    found = verify_run(run)
    assert found.holds, found.wrong
    assert record.stochastic is not None
    more = score_run(run, draws=40)
    assert more.draws == 40
    assert more.single_shot.low <= record.stochastic.single_shot.value <= more.single_shot.high
    assert load_classifier(record.spec["classifier"]).weights_sha256 == record.spec["weights_sha256"]


def test_a_decoy_that_only_exact_gradients_break(tmp_path: Path) -> None:
    """It stands against BPDA and transfer, and falls to the full gradient."""
    model = Defended(Mirage(), plain(), None)
    x = torch.rand(60, *SHAPE, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    data = (x, model(x).argmax(1))
    left = {}
    for gradient in ("bpda", "full"):
        record = robustgen.evaluate(
            Defended(Mirage(), plain(), None, gradient=gradient), data, "linf:0.05", attacks="apgd-ce:steps=30",
            out=tmp_path / gradient,
        )  # fmt: skip
        left[gradient] = record.robust_accuracy.value
        assert ("gradient-weaker-than-full" in record.flags) == (gradient == "bpda")
    assert left["full"] < left["bpda"] - 0.2


def test_weak_evaluations_are_flagged(tmp_path: Path) -> None:
    """One draw of a random purifier, and a gradient that is not exact."""
    model = defended(gradient="bpda")
    record = robustgen.evaluate(model, images(model, 10), "linf:0.02", attacks="fgsm", out=tmp_path / "run")
    assert {"gradient-weaker-than-full", "single-draw", "randomised"} <= set(record.flags)


def test_deterministic_purifiers_get_one_draw(short_ladder: None, tmp_path: Path) -> None:
    """The ladder for a median filter has no expectation, and no surrogate."""
    model = Defended(Median(size=2), plain(), None)
    record = robustgen.evaluate(model, images(model, 10), "linf:0.02", plan="adaptive", out=tmp_path / "run")
    assert "eot" not in record.spec["protocol"]
    assert "surrogate" not in record.spec["protocol"]
    assert record.stochastic is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--purify", "difpure"], "did you mean 'diffpure'"),
        (["--purify", "diffpure:t=0.9,sigma=99"], "outside"),
        (["--purify", "diffpure:generator=fmnist-emd"], "did you mean 'fmnist-edm'"),
        (["--purify", "jpeg", "--gradient", "exact"], "must be one of full"),
        (["--gradient", "bpda"], "add --purify NAME"),
        (["--plan", "adaptive"], "add --purify NAME"),
        (["--purify", "median", "--plan", "rand"], "same answer each time"),
        (["--purify", "one-shot", "--eot", "0"], "--eot must be >= 1"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, before any work."""
    assert _run(["eval", "fmnist-standard", "-n", "4", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_generator_and_classifier_must_fit() -> None:
    """Both shapes are named."""
    other = Classifier(
        make_linear((3, 8, 8)), Card(name="colour", title="Linear", architecture="x", channels=3, size=(8, 8))
    )
    with pytest.raises(SpecError, match=r"3 channels and 8 x 8 pixels, the generator fmnist-edm makes images \(1, 28"):
        defend(other, "diffpure")


def test_a_form_for_the_search_leaves_the_classifier_as_it_is() -> None:
    """In bfloat16 the answers are near, and those of float32 are the same bits before and after."""
    model = defend(load_classifier("fmnist-standard"), "diffpure:t=0.05,steps=2")
    x, rng = load_data("fmnist-test-1k").batch(range(4))[0], ExampleRng.of(0, range(4))
    before = model(x, rng)
    low = model.in_form(SearchForm(torch.bfloat16, channels_last=True))
    near = low(x, rng)
    assert torch.equal(model(x, rng), before)
    assert not torch.equal(near, before)
    assert float((near - before).norm() / before.norm()) < 0.1


def test_a_purifier_of_ones_own() -> None:
    """One dataclass under one decorator, and it is typed, attacked and listed."""

    @PURIFIERS.register("halve-for-test")
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Halve(Sanitiser):
        """Contrast halved.

        Source: none. Under attack: not known.
        """

        share: float = 0.5

        def chain(self, denoiser: object, rng: ExampleRng) -> Chain:
            """One step."""
            return single_step(lambda x: straight_through(x, self.share * x))

    try:
        x = torch.rand(2, 1, 28, 28)
        model = defend(load_classifier("fmnist-standard"), "halve-for-test:share=0.25")
        torch.testing.assert_close(model.purify(x), x / 4)
    finally:
        del PURIFIERS._entries["halve-for-test"]


class Watched(Judge):
    """Keeps count of how many points it was asked about."""

    asked = 0

    def __call__(
        self, x: Tensor, y: Tensor, x_adv: Tensor, rng: ExampleRng | None = None, goal: Tensor | None = None
    ) -> Verdict:
        """Judge, and count."""
        self.asked += len(x)
        return super().__call__(x, y, x_adv, rng, goal)


def test_a_rung_begins_where_it_is_told_and_a_blind_one_is_judged_at_its_end() -> None:
    """The first point queried is the start given; where another classifier is asked only the last point counts."""
    model, threat = plain(), ThreatModel("linf", 1e-4)
    x, y = images(model, 3)
    seen: list[Tensor] = []

    class Wrong(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            seen.append(z.detach().clone())
            return -model(z)

    starts = threat.project(x, x + 1e-4)
    for only_last in (True, False):
        judge = Watched(model, threat)
        engine.run(
            PGD(steps=4), Oracle(Wrong()), judge, lambda ids: (x[list(ids)], y[list(ids)]), range(3), threat,
            seed=0, batch_size=3, finish=lambda _: None, starts=lambda id_: starts[id_], only_last=only_last,
        )  # fmt: skip
        assert judge.asked == (3 if only_last else 15)
    assert torch.equal(seen[0], starts)


def test_growth_ends_when_it_is_quiet(short_ladder: None, tmp_path: Path) -> None:
    """With an eps that breaks nothing the first larger rung is the last."""
    model = Defended(Median(size=2), plain(), None)
    x = images(plain(), 12)[0]
    data = (x, model(x).argmax(1))
    record = robustgen.evaluate(model, data, "linf:1e-7", plan="adaptive", out=tmp_path / "run")
    names = [attack.name for attack in record.attacks]
    assert "full/apgd-ce#2" in names
    assert "full/apgd-ce#3" not in names


def test_a_rung_sees_what_came_near_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At an eps that moves no margin, a rung for margins below half of the clean one has nothing to do."""

    def ladder(_threat: ThreatModel) -> Plan:
        rungs = tuple(Rung(PGD(steps=2), "full", within=within) for within in (None, 0.5, 1.5))
        return Plan("adaptive", 1, rungs)

    PLANS["adaptive"]
    monkeypatch.setitem(PLANS._entries, "adaptive", ladder)
    model = Defended(Median(size=2), plain(), None)
    x = images(plain(), 12)[0]
    data = (x, model(x).argmax(1))
    record = robustgen.evaluate(model, data, "linf:1e-7", plan="adaptive", out=tmp_path / "run")
    asked = [attack.forwards for attack in record.attacks]
    assert asked[0] == asked[2] > 0
    assert asked[1] == 0
    assert "where the margin fell below 0.5 of the clean one" in record.spec["protocol"]


def test_an_oracle_sends_no_more_rows_than_it_may() -> None:
    """Draws go together up to that many rows, one draw of every image at least."""
    sizes: list[int] = []
    model = defended()
    model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    x, _ = images(model.undefended, 3)
    for rows, expected in ((7, [6, 6, 3]), (2, [3] * 5), (100, [15])):
        oracle = Oracle(model, eot=5, rows=rows)
        oracle.look_at(ExampleRng.of(0, range(3)), torch.zeros(3, dtype=torch.int64))
        sizes.clear()
        oracle.logits(x)
        assert sizes == expected
