"""A random classifier is broken only where every vote says so, each with noise that decided nothing before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen.judge import VOTES, Judge
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from robustgen.verify import verify_run

THREAT = ThreatModel("linf", 0.5)


class Often(nn.Module):
    """Two classes: of an image whose first pixel is p, 0 is predicted in that share of the passes.

    Its noise is that of the streams it is given; the draws that it saw are kept.
    """

    stochastic = True

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def forward(self, x: Tensor, rng: ExampleRng) -> Tensor:
        """(B, 1, H, W) -> (B, 2)."""
        self.seen += zip(rng.ids.tolist(), rng.restart.tolist(), strict=True)
        right = (rng.uniform((1,), "coin")[:, 0] < x[:, 0, 0, 0]).float()
        return torch.stack([right, 1 - right], 1)


def points(share: float, n: int = 400) -> tuple[Tensor, Tensor, ExampleRng]:
    """So many points that are right in that share of the passes, their labels, a stream each."""
    return torch.full((n, 1, 1, 1), share), torch.zeros(n, dtype=torch.int64), ExampleRng.of(0, range(n))


@pytest.mark.parametrize(("share", "by_one", "by_all"), [(0.6, 0.174, 6e-6), (0.55, 0.321, 0.0037), (0.5, 0.5, 0.125)])
def test_unlucky_majorities_are_asked_again(share: float, by_one: float, by_all: float) -> None:
    """One majority of 21 breaks what is right more often than not; three votes do as seldom as binomial tails say."""
    x, y, rng = points(share)
    single = Judge(Often(), THREAT, votes=VOTES[:1])(x, y, x, rng).broken.float().mean()
    fair = Judge(Often(), THREAT, votes=VOTES)(x, y, x, rng).broken.float().mean()
    assert by_one == pytest.approx(float(single), abs=0.08)
    assert float(fair) <= by_all + 4 * (by_all / len(x)) ** 0.5


def test_what_is_broken_stays_broken() -> None:
    """Wrong in two of three passes is broken; the prediction is that of the votes, with a goal that goal."""
    x, y, rng = points(1 / 3)
    verdict = Judge(Often(), THREAT, votes=VOTES)(x, y, x, rng)
    assert verdict.broken.float().mean() > 0.9
    assert verdict.prediction[verdict.broken].eq(1).all()
    assert verdict.prediction[~verdict.broken].eq(0).all()
    towards = Judge(Often(), THREAT, votes=VOTES)(x, y, x, rng, goal=torch.ones_like(y))
    assert towards.broken.equal(verdict.broken)
    assert not Judge(Often(), THREAT, votes=VOTES)(x, y, x, rng, goal=torch.zeros_like(y)).broken.any()


def test_no_draw_decides_twice() -> None:
    """A broken point has seen 339 draws, all different; one that its first vote calls right, 21."""
    model, judge = Often(), Judge(Often(), THREAT, votes=VOTES)
    judge.classifier = model
    x, y, rng = points(0.0, 3)
    assert judge(x, y, x, rng).broken.all()
    assert len(model.seen) == len(set(model.seen)) == 3 * sum(VOTES)
    model.seen.clear()
    x, y, rng = points(1.0, 3)
    assert not judge(x, y, x, rng).broken.any()
    assert len(model.seen) == 3 * VOTES[0]


def test_every_row_is_judged_as_if_alone() -> None:
    """Whatever else the batch holds, and in whatever part of it the later votes are due."""
    x = torch.linspace(0.3, 0.7, 40).reshape(-1, 1, 1, 1)
    y, rng, judge = torch.zeros(40, dtype=torch.int64), ExampleRng.of(0, range(40)), Judge(Often(), THREAT, votes=VOTES)
    together = judge(x, y, x, rng)
    for k in range(40):
        alone = judge(x[k : k + 1], y[k : k + 1], x[k : k + 1], rng.take(torch.tensor([k])))
        assert bool(alone.broken) == bool(together.broken[k])
        assert int(alone.prediction) == int(together.prediction[k])


TOSSED = """
import torch
from torch import nn

class Tossed(nn.Module):
    # Two classes by torch's global generator, as users' own defences draw; right less often where the image is darker.
    def forward(self, x):
        share = (LEAST + (0.95 - LEAST) * (x[:, 0, 0, 0] - 0.4) / 0.7).clamp(LEAST, 0.95)
        logits = torch.stack([share, 1 - share], 1).log()
        return logits - torch.log(-torch.log(torch.rand(len(x), 2)))

def tossed():
    return Tossed().eval()
"""


def evaluated(least: float, folder: Path) -> robustgen.RunRecord:
    """A run that drives every image to where it is right in the share `least` of the passes, and goes on from there."""
    (folder / "net.py").write_text(f"LEAST = {least}\n{TOSSED}")
    np.savez(folder / "data.npz", image=np.full((30, 4, 4, 1), 230, np.uint8), label=np.zeros(30, np.int64))
    return robustgen.evaluate(
        f"python:{folder}/net.py:tossed", f"npz:{folder}/data.npz", "linf:0.5", attacks="pgd:steps=40",
        out=folder / "run",
    )  # fmt: skip


def test_hundreds_of_points_break_nothing_that_is_right_by_majority(tmp_path: Path) -> None:
    """At 60 % around the image, forty points each: one vote alone calls nearly all images broken."""
    assert evaluated(0.6, tmp_path).robust_accuracy.value >= 0.9


def test_breaks_by_global_chance_hold_in_another_draw(tmp_path: Path) -> None:
    """Chance that cannot be repeated: an honest run holds up at nearly even odds, a false one is told."""
    assert evaluated(0.47, tmp_path).robust_accuracy.value < 0.2
    given = f"python:{tmp_path}/net.py:tossed"
    found = verify_run(tmp_path / "run", classifier=given)
    assert found.holds, found.wrong
    (tmp_path / "net.py").write_text(f"LEAST = 0.9\n{TOSSED}")
    wrong = verify_run(tmp_path / "run", classifier=given).wrong
    assert any("breaks nothing" in one for one in wrong), wrong


UNDECIDED = """
import torch
from torch import nn

class Undecided(nn.Module):
    # The first of three classes where the image is bright, else one of the other two, by torch's global generator.
    def forward(self, x):
        coin = (torch.rand(len(x)) < 0.35).float()
        return torch.stack([9 * x.mean((1, 2, 3)) - 6, coin, 1 - coin], 1)

def undecided():
    return Undecided().eval()
"""


def test_clean_images_between_two_wrong_classes_are_no_contradiction(tmp_path: Path) -> None:
    """Which of them a majority named cannot be repeated; one that it could not have named is told."""
    (tmp_path / "net.py").write_text(UNDECIDED)
    image = np.repeat(np.array([254, 99], np.uint8), 64)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    np.savez(tmp_path / "data.npz", image=image, label=np.zeros(128, np.int64))
    given = f"python:{tmp_path}/net.py:undecided"
    run = tmp_path / "run"
    record = robustgen.evaluate(given, f"npz:{tmp_path}/data.npz", "linf:0.01", attacks="fgsm", out=run)
    assert "randomised" in record.flags
    found = verify_run(run, classifier=given)
    assert found.holds, found.wrong
    (tmp_path / "net.py").write_text(UNDECIDED.replace("< 0.35", "< 0.98"))
    assert any("clean image" in one for one in verify_run(run, classifier=given).wrong)
