"""Randomized smoothing against classifiers whose smoothed selves are known in closed form."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor, nn

from robustgen.cards import bundled_cards
from robustgen.certify.boundaries import boundaries, crossing_probability
from robustgen.certify.bounds import lower_bound, probability_for, radius_for
from robustgen.certify.certify import Certificate, certify, predict
from robustgen.certify.design import Design, make_design
from robustgen.certify.logs import read_log
from robustgen.certify.noise import BLOCK, GridNoise
from robustgen.certify.request import default_classifier
from robustgen.certify.votes import Voter, Wanted
from robustgen.cli import _run
from robustgen.errors import SpecError

SHAPE = (1, 4, 4)
LOGS = Path(__file__).parent / "data" / "cohen2019"
RADII = (0.0, 0.25, 0.5, 0.75, 1.0)


class Halfspace(nn.Module):
    """Class 1 on one side of a plane: under noise its probability is Phi(distance / sigma), so R is the distance."""

    def __init__(self) -> None:
        super().__init__()
        w = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.w = w / w.norm()

    def distance(self, x: Tensor) -> Tensor:
        """Of (B, ...) to the boundary through the grey image, signed."""
        return (x.double().flatten(1) - 0.5) @ self.w

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 4, 4) -> (B, 2)."""
        d = self.distance(x)
        return torch.stack([-d, d], 1)


def voter(sigma: float = 0.25, *, batch_size: int = 700, model: nn.Module | None = None) -> Voter:
    """Votes of the half-space."""
    return Voter(
        model or Halfspace(), GridNoise(sigma), seed=0, classes=2, batch_size=batch_size, device=torch.device("cpu")
    )


def design_of(
    method: str, *, sigma: float = 0.25, samples: int = 1000, alpha: float = 0.001, radii: tuple[float, ...] = RADII,
    profile: str = "exact",
) -> Design:  # fmt: skip
    """For images of 16 pixels."""
    noise = GridNoise(sigma)
    return make_design(method, radii=radii, noise=noise, pixels=16, samples=samples, alpha=alpha, profile=profile)


def images(n: int) -> np.ndarray:
    """On the 8-bit grid."""
    return np.random.default_rng(1).integers(0, 256, (n, *SHAPE)) / 255


def run(who: Voter, design: Design, n: int, selection: int = 50) -> list[Certificate]:
    """Certificates of the first images, with the half-space's own answer as label."""
    x = images(n)
    labels = Halfspace()(torch.from_numpy(x)).argmax(1).tolist()
    found: list[Certificate] = []
    certify(who, zip(range(n), labels, x, strict=True), design, selection=selection, finish=found.append)
    return sorted(found, key=lambda one: one.id)


@pytest.mark.parametrize("method", ["fixed", "anytime"])
def test_radius_never_exceeds_the_distance_and_comes_near(method: str) -> None:
    """The smoothed half-space is the half-space: its true radius is the distance to the boundary."""
    design = design_of(method, samples=10_000)
    found = run(voter(), design, 40)
    distance = Halfspace().distance(torch.from_numpy(images(40))).abs().tolist()
    for one, d in zip(found, distance, strict=True):
        assert one.radius <= d
        assert one.predict in (one.label, -1)
    kept = [one.radius >= max(r for r in RADII if r <= max(d - 0.1, 0)) for one, d in zip(found, distance, strict=True)]
    assert np.mean(kept) > 0.9, "the table's radii that lie well inside are certified"


def test_fixed_is_cohens(capsys: pytest.CaptureFixture[str]) -> None:
    """One look: Clopper-Pearson at the whole alpha, less the slack of the grid."""
    design = design_of("fixed", samples=1000)
    (one,) = run(voter(), design, 1)
    bound = float(lower_bound(one.counts[0], 1000, 0.001))
    noise = GridNoise(0.25)
    expected = float(radius_for(bound - noise.approximation(16), 0.25)) - noise.slack(16)
    assert one.radius == pytest.approx(max(expected, 0), abs=1e-12)
    assert one.samples == 1050


def test_votes_belong_to_examples_and_draws() -> None:
    """Batch size, order and pieces change nothing; selection and estimation share no draw."""
    x = GridNoise(0.25).on_grid(images(3))
    whole = [Wanted(k, x[k], "estimate", 0, 1300) for k in range(3)]
    expected = voter().count(whole)
    assert np.array_equal(voter(batch_size=64).count(whole[::-1])[::-1], expected)
    parts = [Wanted(1, x[1], "estimate", a, b) for a, b in ((0, 60), (60, 501), (501, 1300))]
    pieces = voter(batch_size=333).count(parts)
    assert np.array_equal(pieces.sum(0), expected[1])
    noise = GridNoise(0.25)
    one, other = (noise.draw(0, 1, 0, SHAPE, purpose) for purpose in ("select", "estimate"))
    assert not np.array_equal(one, other)
    assert len(one) == BLOCK


def test_noise_has_its_distribution() -> None:
    """Mean, deviation and tail of each kind, in pixels."""
    for kind, deviation in (("normal", 0.3), ("uniform", 0.3 / math.sqrt(3)), ("laplace", 0.3 * math.sqrt(2))):
        noise = GridNoise(0.3, kind)
        drawn = np.concatenate([noise.draw(0, 0, b, (10, 10), "x") for b in range(4)]) * noise.unit
        assert abs(drawn.mean()) < 0.005
        assert drawn.std() == pytest.approx(deviation, rel=0.01)
        if kind == "uniform":
            assert np.abs(drawn).max() <= 0.3 + noise.unit


def test_sums_are_exact() -> None:
    """Adding and taking away the noise gives the image back, to the last bit, where float32 does not."""
    noise = GridNoise(0.25)
    x, z = noise.on_grid(images(1)), noise.draw(0, 0, 0, SHAPE, "x")
    assert np.array_equal((x + z) - z, np.broadcast_to(x, z.shape))
    assert np.array_equal(np.rint(images(1) * 255), x / 2**noise.bits)
    plain = images(1).astype(np.float32)
    rough = np.float32(0.25) * np.random.default_rng(0).standard_normal((500, *SHAPE)).astype(np.float32)
    assert not np.array_equal((plain + rough) - rough, np.broadcast_to(plain, rough.shape))


class RoundingSpy(nn.Module):
    """Looks at the last digits of pixels near 0, where float32 still has many: class 1 where they are used up.

    Noise added to 0 keeps its own fine digits; added to 1/255 and cancelled by it, only multiples of 2^-31 are left.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 100, 100) -> (B, 2)."""
        near = (x.abs() < 2**-12) & (x != 0)
        coarse = near & ((x * 2**31).round() == x * 2**31)
        share = coarse.flatten(1).sum(1) / near.flatten(1).sum(1).clamp(min=1)
        return torch.stack([0.5 - share, share - 0.5], 1)


def test_a_classifier_that_exploits_rounding_breaks_the_naive_certificate_and_not_ours() -> None:
    """Two images lie within the naive radius and get different classes; with noise on the grid they get the same."""
    spy, sigma, shape = RoundingSpy(), 0.25, (1, 100, 100)
    pair = (np.zeros(shape), np.full(shape, 1 / 255))
    distance = float(np.linalg.norm(pair[1] - pair[0]))
    naive = []
    for image in pair:
        noise = sigma * torch.randn(1000, *shape, generator=torch.Generator().manual_seed(0))
        naive.append(int(spy(torch.from_numpy(image).float() + noise).argmax(1).sum()))
    assert float(radius_for(lower_bound(1000 - naive[0], 1000, 0.001), sigma)) > distance
    assert naive[1] > 900, "inside the radius of class 0, and class 1"
    who = Voter(spy, GridNoise(sigma), seed=0, classes=2, batch_size=500, device=torch.device("cpu"))
    ours = who.count([Wanted(k, who.noise.on_grid(image), "estimate", 0, 1000) for k, image in enumerate(pair)])
    assert ours[0].argmax() == ours[1].argmax()


def test_predict_abstains_near_the_boundary() -> None:
    """Right away from it; on it nothing can be said."""
    x = images(20)
    distance = Halfspace().distance(torch.from_numpy(x))
    sure, unsure = int(distance.abs().argmax()), np.full(SHAPE, 0.5)
    assert predict(voter(), sure, x[sure], samples=200, alpha=0.001) == int(distance[sure] > 0)
    assert predict(voter(), 0, unsure, samples=200, alpha=0.001) == -1


@pytest.mark.parametrize("profile", ["exact", "fast"])
def test_false_certificates_of_the_design(profile: str) -> None:
    """At a probability just below a threshold at most alpha of 100,000 are certified, whatever the stop."""
    alpha, runs = 0.01, 100_000
    design = design_of("anytime", sigma=1.0, samples=2000, alpha=alpha, radii=(1.0,), profile=profile)
    row = design.radii.index(1.0)
    noise = GridNoise(1.0)
    p = probability_for(1.0 + noise.slack(16), 1.0) + noise.approximation(16) - 1e-9
    rng, k, ever = np.random.default_rng(0), np.zeros(runs, dtype=np.int64), np.zeros(runs, dtype=bool)
    for look, draws in enumerate(np.diff([0, *design.looks]).tolist()):
        k += rng.binomial(draws, p, runs)
        ever |= k >= design.required[row, look]
    spread = math.sqrt(alpha * (1 - alpha) / runs)
    assert alpha * 0.7 < ever.mean() <= alpha + 3 * spread, "never more, and not much is given away"


def test_boundaries_against_simulation_and_enumeration() -> None:
    """The recursion gives what enumerating all outcomes of few draws gives, and one look is Clopper-Pearson."""
    looks, p = (3, 6, 8), 0.6
    required = np.array([3, 6, 7])
    total = 0.0
    for outcome in itertools.product((0, 1), repeat=8):
        counts = np.cumsum(outcome)[np.array(looks) - 1]
        if (counts >= required).any():
            total += p ** sum(outcome) * (1 - p) ** (8 - sum(outcome))
    assert crossing_probability(p, looks, required) == pytest.approx(total, rel=1e-12)
    for n in (40, 1000):
        (k,) = boundaries(0.8, (n,), 0.001, 0.5)
        assert float(lower_bound(k, n, 0.001)) > 0.8 >= float(lower_bound(k - 1, n, 0.001))


def test_boundaries_spend_alpha_and_are_nested() -> None:
    """Each radius spends at most alpha at its own threshold, most of it; a larger one never asks for less."""
    design = design_of("anytime", sigma=0.5, samples=3000, alpha=0.01)
    assert design.looks[-1] == 3000
    assert bool((np.diff(design.required, axis=0) >= 0).all())
    noise = GridNoise(0.5)
    for radius, required in zip(design.radii, design.required, strict=True):
        reach = radius + noise.slack(16) if radius else 0.0
        p = probability_for(reach, 0.5) + noise.approximation(16)
        assert crossing_probability(p, design.looks, required) <= 0.01 * (1 + 1e-9)


@pytest.mark.parametrize(("profile", "fewer", "lost"), [("exact", 8.0, 0.4), ("fast", 14.0, 0.8)])
def test_savings_on_published_logs(profile: str, fewer: float, lost: float) -> None:
    """Votes replayed at the rates of a CIFAR-10 log of Cohen: so many times fewer draws, so few points lost."""
    sigma, radii = 0.5, (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    log = read_log(LOGS / "cifar10_resnet110_sigma_0.50.tsv")
    rates = np.where(log.predict < 0, 0.47, np.minimum(norm.cdf(log.radius / sigma) + 2e-4, 1 - 3e-6))
    design = make_design(
        "anytime", radii=radii, noise=GridNoise(sigma), pixels=3072, samples=100_000, alpha=0.001, profile=profile
    )
    rng, draws, ours = np.random.default_rng(0), 0, []
    for rate in rates:
        k = reached = before = 0
        for look, n in enumerate(design.looks):
            k, before = k + int(rng.binomial(n - before, rate)), n
            reached = max(reached, design.reached(k, look))
            if design.decided(k, look, reached):
                break
        draws += 100 + before
        ours.append(design.radii[reached - 1] if reached else -1.0)
    assert 100_100 * len(rates) / draws > fewer
    fixed = radius_for(lower_bound(rng.binomial(100_000, rates), np.full(len(rates), 100_000), 0.001), sigma)
    for radius in radii[1:]:
        theirs, mine = (100 * float(((r >= radius) & log.right).mean()) for r in (fixed, np.array(ours)))
        assert theirs - mine <= lost + 0.6, radius  # of 500 images one is 0.2 points


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridNoise(0.0), "--sigma must be above 0"),
        (lambda: GridNoise(0.1, "pink"), "noise must be one of"),
        (lambda: design_of("fixed", samples=5), "--samples must be >= 10"),
        (lambda: design_of("sometime"), "did you mean 'anytime'"),
        (lambda: design_of("anytime", profile="fats"), "'fast'"),
    ],
)
def test_what_cannot_be_is_refused(make: object, message: str) -> None:
    """In a sentence."""
    with pytest.raises(SpecError, match=message):
        make()  # type: ignore[operator]


def test_nan_is_refused() -> None:
    """A vote that is none."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 2), math.nan)

    with pytest.raises(SpecError, match="NaN or infinity on a noised image"):
        run(voter(model=Broken()), design_of("fixed", samples=100, alpha=0.1), 1)


def test_a_certification_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with one line an example; cut off in the middle, the same command goes on to the same end."""
    asked = ["certify", "fmnist-standard", "--sigma", "0.1", "-n", "6", "--samples", "200", "--json"]
    assert _run([*asked, "--out", str(tmp_path / "a")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["radius"] for one in record["certified"]] == [0, 0.25, 0.5, 0.75, 1]
    assert {"acr", "abstained", "samples", "seconds", "run"} <= set(record)
    lines = (tmp_path / "a" / "certificates.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == list(range(6))
    half = tmp_path / "b"
    half.mkdir()
    shutil.copy(tmp_path / "a" / "spec.json", half)
    (half / "certificates.jsonl").write_text("\n".join(lines[:3]) + "\n" + lines[3][:20], encoding="utf-8")
    assert _run([*asked, "--out", str(half), "--batch-size", "77"]) == 0
    again = json.loads(capsys.readouterr().out)
    resumed = (half / "certificates.jsonl").read_text(encoding="utf-8").splitlines()
    assert resumed[:3] == lines[:3]
    for one, other in zip(map(json.loads, resumed), map(json.loads, lines), strict=True):
        assert (one["id"], one["label"], one["selected"]) == (other["id"], other["label"], other["selected"])
        apart = np.abs(np.array(one["counts"][:1]) - other["counts"][:1])
        assert apart.max() <= 2, "the same noise; rounding in other batches may turn a vote at a boundary"
    assert again["n"] == record["n"] == 6
    assert _run([*asked, "--out", str(half), "--sigma", "0.2"]) == 2
    said = capsys.readouterr().err
    assert "holds another certification (asked / there: " in said
    assert "sigma: 0.2 / 0.1" in said


def test_denoised_smoothing_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The generator sees sigma in its own units: with it the plain classifier withstands noise that it fails under."""
    asked = ["certify", "fmnist-standard", "--sigma", "0.3", "-n", "12", "--samples", "60", "--alpha", "0.01", "--json"]
    assert _run([*asked, "--out", str(tmp_path / "plain")]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert _run([*asked, "--denoise", "fmnist-edm", "--out", str(tmp_path / "denoised")]) == 0
    denoised = json.loads(capsys.readouterr().out)
    assert denoised["spec"]["classifier"] == "fmnist-edm|fmnist-standard"
    assert denoised["acr"] > plain["acr"] + 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha", "1"], r"alpha must be in (0, 1)"),
        (["--sigma", "0"], "--sigma must be above 0"),
        (["--samples", "3"], "--samples must be >= 10"),
        (["--selection", "0"], "--selection must be >= 1"),
        (["--method", "fixd"], "did you mean 'fixed'"),
        (["--radii", "a"], "--radii must be numbers"),
        (["--denoise", "fmnist-edm", "--sigma", "99"], "for which this generator was trained"),
        (["--denoise", "fmnist-emd"], "did you mean 'fmnist-edm'"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, before any draw."""
    assert _run(["certify", "fmnist-standard", "-n", "2", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_random_classifiers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """By name where it is a purifier, by looking otherwise."""
    assert _run(["certify", "one-shot@fmnist-standard", "-n", "2"]) == 2
    assert "certify the classifier alone, with --denoise" in capsys.readouterr().err
    (decoy,) = [name for name, path in bundled_cards().items() if "noise" in name]
    assert _run(["certify", decoy, "-n", "2"]) == 2
    assert "answers the same image in two ways" in capsys.readouterr().err


def test_the_classifier_of_a_sigma() -> None:
    """The bundled one trained for it, a plain one behind a denoiser, and else a sentence that says which there are."""
    assert default_classifier(0.25, None) == "fmnist-gaussian-0.25"
    assert default_classifier(0.5, None) == "fmnist-gaussian-0.50"
    assert default_classifier(0.4, "fmnist-edm") == "fmnist-standard"
    with pytest.raises(SpecError, match=r"--sigma 0\.4 \(there is one for: 0\.25, 0\.5.*--denoise fmnist-edm"):
        default_classifier(0.4, None)
