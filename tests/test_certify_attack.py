"""The attack on smoothed classifiers: it finds what there is beyond the boundary, and nothing inside a certificate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen.cards import Card, bundled_cards
from robustgen.certify.certify import predict, predict_votes
from robustgen.certify.check import load_base
from robustgen.certify.inside import SmoothedPGD, distance_within, smoothed_gradient
from robustgen.certify.inside_run import InsideRequest, attack_certification, attack_lines
from robustgen.certify.noise import GridNoise
from robustgen.certify.record import load_certification
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.certify.spec import certified_norm
from robustgen.certify.votes import Voter
from robustgen.cli import _run
from robustgen.errors import AttackError, RecordError
from robustgen.progress import Silent
from robustgen.rng import ExampleRng
from robustgen.runs import load_run_data
from tests.helpers import make_convnet, make_linear, write_linear_task

CPU = torch.device("cpu")


def certified(out: Path, classifier: str, **asked: Any) -> Path:
    """A finished certification."""
    request = CertificationRequest(classifier=classifier, precision="float32", **asked)
    certify_request(request, out=out, batch_size=500, device="cpu", progress=Silent())
    return out


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of four classes, its data, and two certifications of it."""
    folder = tmp_path_factory.mktemp("attacked")
    write_linear_task(folder, 14)
    asked = {"data": f"npz:{folder}/data.npz", "samples": 1500, "radii": "0,0.04,0.08,0.12"}
    certified(folder / "normal", f"python:{folder}/net.py:make", **asked, sigma=0.08)
    certified(folder / "uniform", f"python:{folder}/net.py:make", **asked, sigma=0.1, noise="uniform", method="fixed")
    return folder


@pytest.fixture
def given(work: Path) -> str:
    """Where the classifier comes from, which the record of user code cannot name."""
    return f"python:{work}/net.py:make"


@pytest.fixture(params=["normal", "uniform"])
def run(work: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy that a test may spoil; with radii in L2, or in L1."""
    shutil.copytree(work / request.param, tmp_path / "run")
    return tmp_path / "run"


def attacked(run: Path, **asked: Any) -> dict[str, Any]:
    """What the command prints, with an attack of few steps."""
    request = InsideRequest(run=run, **{"steps": 6, "draws": 4, "samples": 400, **asked})
    return attack_certification(request, batch_size=300, device="cpu", progress=Silent())


def test_gradient_is_that_of_the_mean_softmax() -> None:
    """Against differences in float64, for each of several rows with noise of its own."""
    base = make_convnet(channels=3, classes=5).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(7, 2, 3, 5, 6, generator=generator, dtype=torch.float64)
    direction = torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64)
    y = torch.tensor([1, 4])

    def loss(z: Tensor) -> Tensor:
        p = base((z + noise).flatten(0, 1)).softmax(1).unflatten(0, (7, 2)).mean(0)
        return p.scatter(1, y[:, None], 0).amax(1).log() - p.gather(1, y[:, None])[:, 0].log()

    expected = (loss(x + 1e-5 * direction) - loss(x - 1e-5 * direction)) / 2e-5
    found = (smoothed_gradient(base, x, y, noise) * direction).flatten(1).sum(1)
    assert torch.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_the_boundary_of_a_linear_classifier(shape: tuple[int, int, int]) -> None:
    """Smoothed it is itself: 1.2 times the distance is always enough, nothing within the distance ever is."""
    sigma, model = 0.1, make_linear(shape, classes=2)
    x = 0.5 + 0.2 * (torch.rand(12, *shape, generator=torch.Generator().manual_seed(1)) - 0.5)
    with torch.no_grad():
        logits = model(x)
        w = model.weight[1] - model.weight[0]
        aim = torch.where(logits.argmax(1) == 1, 0.4, -0.4) - (logits[:, 1] - logits[:, 0]) / w.norm()
        x = x + (aim[:, None] * w / w.norm()).reshape(x.shape)  # all at a distance of 0.4, inside [0, 1]
        assert 0 < float(x.min()) < float(x.max()) < 1
        y = model(x).argmax(1)
    distance = model.distance(x, y, "l2")
    assert torch.allclose(distance, torch.full_like(distance, 0.4), atol=1e-4)
    voter = Voter(model, GridNoise(sigma), seed=0, classes=2, batch_size=999, device=CPU)
    attack, rng = SmoothedPGD(sigma=sigma, draws=4, steps=10), ExampleRng.of(0, range(12))
    for factor, breaks in ((0.99, False), (1.2, True)):
        points = attack.attack(model, x, y, factor * distance, rng)
        for k in range(12):
            assert 0.98 * factor * 0.4 < distance_within(x[k], points[k], factor * float(distance[k])) < 0.5
            answer = predict(voter, k, points[k].double().numpy(), samples=1000, alpha=0.001)
            assert (answer not in (-1, int(y[k]))) is breaks


def l1_distance(x: np.ndarray[Any, Any], w: np.ndarray[Any, Any], margin: float) -> float:
    """The least sum of |d| with w . d = -margin and x + d in [0, 1], by filling coordinates, the largest |w| first."""
    room, spent = np.where(w > 0, x, 1 - x), 0.0
    for k in np.argsort(-np.abs(w)):
        step = min(float(room[k]), margin / abs(float(w[k])))
        spent, margin = spent + step, margin - step * abs(float(w[k]))
        if margin <= 0:
            return spent
    raise AssertionError("the boundary does not cross the box")


@pytest.mark.parametrize("noise", ["uniform", "laplace"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_the_boundary_in_l1(shape: tuple[int, int, int], noise: str) -> None:
    """Walls of the box included: within the distance nothing ever breaks, at twice the distance everything does."""
    sigma, model = 0.1, make_linear(shape, classes=2, seed=3)
    x = torch.rand(10, *shape, generator=torch.Generator().manual_seed(2))
    x[5:] = x[5:].round()  # every pixel at a wall
    y = model(x).argmax(1)
    w = (model.weight[1] - model.weight[0]).double().numpy()
    gaps = (model(x).double() @ torch.tensor([-1.0, 1.0], dtype=torch.float64)).tolist()
    distance = [
        l1_distance(image.double().flatten().numpy(), np.sign(gap) * w, abs(gap))
        for image, gap in zip(x, gaps, strict=True)
    ]
    free = model.distance(x, y, "l1")
    assert bool((torch.tensor(distance) > 1.05 * free).any()), "the box matters"
    voter = Voter(model, GridNoise(sigma, noise), seed=0, classes=2, batch_size=999, device=CPU)
    attack, rng = SmoothedPGD(sigma=sigma, noise=noise, draws=2, steps=40), ExampleRng.of(0, range(10))
    for factor, breaks in ((0.99, False), (2.0, True)):
        radius = factor * torch.tensor(distance)
        points = attack.attack(model, x, y, radius, rng)
        for k in range(10):
            assert distance_within(x[k], points[k], float(radius[k]), "l1") > 0.95 * factor * distance[k]
            answer = predict(voter, k, points[k].double().numpy(), samples=1000, alpha=0.001)
            assert (answer not in (-1, int(y[k]))) is breaks


@pytest.mark.parametrize(
    ("noise", "deviation", "mean_size"),
    [("normal", 1, (2 / np.pi) ** 0.5), ("uniform", 3**-0.5, 0.5), ("laplace", 2**0.5, 1)],
)
def test_the_attack_draws_the_noise_of_the_certificate(noise: str, deviation: float, mean_size: float) -> None:
    """Deviation and mean size of sigma = 1, centred; new in each step."""
    attack, x = SmoothedPGD(sigma=1.0, noise=noise, draws=50), torch.zeros(3, 1, 20, 20)
    drawn = attack._draw(x, 0, ExampleRng.of(0, [4, 5, 6]))
    assert drawn.shape == (50, 3, 1, 20, 20)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.02)
    assert float(drawn.std()) == pytest.approx(deviation, rel=0.02)
    assert float(drawn.abs().mean()) == pytest.approx(mean_size, rel=0.02)
    assert float(drawn.abs().max() <= 1) == (noise == "uniform")
    assert not torch.equal(drawn, attack._draw(x, 1, ExampleRng.of(0, [4, 5, 6])))


@pytest.mark.parametrize("noise", ["normal", "uniform"])
@pytest.mark.parametrize("radius", [1e-7, 1e-3, 0.3, 40.0])
def test_points_stay_within_radius_and_range(radius: float, noise: str) -> None:
    """Also from the corners of the range, for radii below what float32 resolves and beyond the whole image."""
    model = make_convnet(channels=1, classes=3)
    x = torch.stack([torch.zeros(1, 9, 5), torch.ones(1, 9, 5), torch.full((1, 9, 5), 0.7)])
    y, rng, norm = torch.tensor([0, 1, 2]), ExampleRng.of(3, [4, 9, 2]), certified_norm(noise)
    attack = SmoothedPGD(sigma=0.2, noise=noise, draws=3, steps=5, rel_step=2.0)
    points = attack.attack(model, x, y, torch.full((3,), radius), rng)
    assert bool(points.isfinite().all())
    assert all(distance_within(a, b, radius, norm) <= radius for a, b in zip(x, points, strict=True))
    alone = attack.attack(model, x[1:2], y[1:2], torch.tensor([radius]), ExampleRng.of(3, [9]))
    assert torch.allclose(alone[0], points[1], atol=1e-5), "its own noise, whatever the batch"


def test_a_base_that_is_sure_is_attacked_too() -> None:
    """Logits hundreds apart leave gradients of 1e-30; their direction still counts."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            d = 9.0 * (x.flatten(1).mean(1) - 0.5)
            return torch.stack([d, -d], 1)

    x = torch.full((1, 1, 8, 8), 1.0) - 0.02
    x_adv = SmoothedPGD(sigma=0.01).attack(
        nn.Sequential(Sure(), Scale(7.0)), x, torch.tensor([0]), torch.tensor([4.5]), ExampleRng.of(0, [0])
    )
    assert float(x_adv.mean()) < 0.5


class Scale(nn.Module):
    """Logits times a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, K) -> (B, K)."""
        return self.factor * x


def test_who_leaves_the_radius_is_caught() -> None:
    """By a distance in float64, by the range, and where it is no number."""
    x = torch.full((1, 4, 4), 0.5)
    for bad in (x + 0.0251, torch.where(x > 0, 0.5, 0.5).index_fill(1, torch.tensor([0]), 1.01), x * torch.nan):
        with pytest.raises(AttackError, match="left the certified radius"):
            distance_within(x, bad, 0.1)
    assert distance_within(x, x + 0.0249, 0.1) == pytest.approx(0.0996)
    assert distance_within(x, x + 0.0249, 0.4, "l1") == pytest.approx(0.3984)
    with pytest.raises(AttackError, match=r"0\.1 in l1"):
        distance_within(x, x + 0.0249, 0.1, "l1")


def test_side_by_side(run: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Certified as the run says; nothing breaks, so attacked is the same; clean lies above; the attack takes votes."""
    asked = ["certify-attack", str(run), "--classifier", given, "--steps", "6", "--draws", "4", "--samples", "400"]
    assert _run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    assert [row["radius"] for row in found["rows"]] == record["spec"]["radii"]
    for row, said in zip(found["rows"], record["certified"], strict=True):
        assert row["certified"]["value"] == said["value"]
        assert row["attacked"] == row["certified"]
        assert row["clean"]["value"] >= row["certified"]["value"]
    assert found["broken"] == []
    assert 0 < found["attacked"] < found["n"] == 14
    assert found["attacked_share"] < found["share"] - 0.05
    assert _run(asked) == 0
    said = capsys.readouterr()
    assert "14 examples were attacked before" in said.err
    assert "broken: none" in said.out
    assert found["folder"] in said.out


def test_goes_on_where_it_was_killed(run: Path, given: str) -> None:
    """A torn line is done again; the lines are the same, and more examples add to them."""
    whole = attacked(run, classifier=given)
    path = Path(whole["folder"]) / "attacked.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:30])
    assert attacked(run, classifier=given, n=9)["n"] == 9
    assert path.read_bytes() == b"".join(lines[:9])
    assert attacked(run, classifier=given) == whole
    assert path.read_bytes() == b"".join(lines)
    assert attacked(run, classifier=given, seed=5)["folder"] != whole["folder"]
    path.write_bytes(b"{}\n" + b"".join(lines))
    with pytest.raises(RecordError, match="line 1, cannot be read"):
        attacked(run, classifier=given)


def test_false_certificates_are_found(run: Path, given: str) -> None:
    """Radii that somebody stretched to twice the distance of the boundary break, and the images are kept."""
    path, norm = run / "certificates.jsonl", load_certification(run).spec.norm
    ones = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    model = make_linear((1, 8, 8))
    data = np.load(Path(json.loads((run / "spec.json").read_text())["data"].removeprefix("npz:")))
    x = torch.from_numpy(data["image"]).permute(0, 3, 1, 2).float() / 255
    distance = model.distance(x, model(x).argmax(1), norm).tolist()
    able = [one for one in ones if one["predict"] != -1 and one["predict"] == one["label"]][:4]
    for one in able:
        one["radius"] = 2.0 * distance[one["id"]]
    path.write_text("".join(json.dumps(one) + "\n" for one in ones), encoding="utf-8")
    found = attacked(run, steps=15, classifier=given)
    assert found["norm"] == norm
    assert found["broken"] == [one["id"] for one in able]
    first = found["rows"][0]
    assert first["certified"]["value"] - first["attacked"]["value"] == pytest.approx(4 / 14)
    assert "broken: " + ", ".join(str(one["id"]) for one in able) in "\n".join(attack_lines(found))
    for one in able:
        kept = torch.from_numpy(np.load(Path(found["folder"]) / f"broken-{one['id']}.npy"))
        assert distance_within(x[one["id"]], kept, one["radius"], norm) > distance[one["id"]]


def share_far_away(run: Path, steps: int = 5, radius: float = 6.0) -> float:
    """Votes for the certified classes, on average, after the same attack at a radius that certifies nothing."""
    held = load_certification(run)
    dataset, _ = load_run_data(run, held.spec.to_json(), None)
    base = load_base(run, held, dataset, given=None, weights=None, device=CPU, command="")
    able = [one for one in held.certificates if one.predict != -1]
    x, y = dataset.batch([one.id for one in able])[0], torch.tensor([one.predict for one in able])
    attack = SmoothedPGD(sigma=held.spec.sigma, noise=held.spec.noise, draws=4, steps=steps)
    points = attack.attack(base, x, y, torch.full((len(able),), radius), ExampleRng.of(0, [one.id for one in able]))
    voter = Voter(base, held.spec.grid_noise(), seed=0, classes=10, batch_size=60, device=CPU)
    votes = [predict_votes(voter, one.id, z.double().numpy(), samples=60) for one, z in zip(able, points, strict=True)]
    return float(np.mean([one[k] / 60 for one, k in zip(votes, y.tolist(), strict=True)]))


def images_for(card: Card, folder: Path) -> str:
    """Name of data of the card's size: the embedded images, or a few without meaning, smooth as photographs are."""
    if card.data == "fashion-mnist":
        return "fmnist-test-1k"
    assert card.size is not None
    coarse = torch.rand(2, card.channels or 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images = nn.functional.interpolate(coarse, card.size, mode="bicubic").clamp(0, 1)
    np.savez(folder / "smooth.npz", image=(255 * images).byte().permute(0, 2, 3, 1).numpy(), label=np.arange(2))
    return f"npz:{folder}/smooth.npz"


HONEST = {name: card for name, path in bundled_cards().items() if (card := Card.load(path)).kind != "decoy"}


@pytest.mark.parametrize("name", HONEST)
def test_bundled_classifiers_are_never_broken_within_their_radii(name: str, tmp_path: Path) -> None:
    """Under the noise that they were trained for, or a little: some are certified, and none changes its class.

    Far beyond the radius the same attack succeeds.
    """
    data, sigma = images_for(HONEST[name], tmp_path), HONEST[name].sigma or 0.12
    run = certified(
        tmp_path / "run", name, data=data, sigma=sigma, samples=150, selection=50, ids="0-1", radii="0,0.1", alpha=0.01
    )
    found = attacked(run, steps=5, samples=150)
    assert found["attacked"] > 0
    assert found["broken"] == []
    assert found["attacked_share"] <= found["share"]
    assert share_far_away(run) < 0.3


def test_a_bundled_classifier_in_l1(tmp_path: Path) -> None:
    """The same for radii in L1."""
    asked = {"noise": "uniform", "sigma": 0.25, "alpha": 0.01, "radii": "0,0.1"}
    run = certified(tmp_path / "run", "fmnist-gaussian-0.25", **asked, samples=200, selection=50, n=2)
    found = attacked(run, steps=5, samples=200)
    assert found["norm"] == "l1"
    assert found["attacked"] > 0
    assert found["broken"] == []
    assert share_far_away(run, steps=10, radius=60.0) < 0.3


def test_behind_a_denoiser(tmp_path: Path) -> None:
    """Gradients cross the generator: the same, with the denoiser inside of what is smoothed."""
    run = certified(
        tmp_path / "run", "fmnist-standard", denoise="fmnist-edm", sigma=0.25, samples=20, selection=5, n=1, alpha=0.01
    )
    found = attacked(run, steps=2, draws=2, samples=20)
    assert found["classifier"] == "fmnist-edm|fmnist-standard"
    assert found["attacked"] > 0
    assert found["broken"] == []
    assert share_far_away(run, steps=8) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps must be a whole number >= 1"),
        (["--draws", "0"], "--draws must be a whole number >= 1"),
        (["--rel-step", "0"], "--rel-step must be a number above 0"),
        (["--samples", "10"], "--samples must be >= 11"),
        (["--n", "0"], "--n must be a whole number >= 1"),
        (["--batch-size", "0"], "--batch-size must be"),
        (["--classifier", "fmnist-at"], "images"),
    ],
)
def test_wrong_requests(run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, and no folder."""
    assert _run(["certify-attack", str(run), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(run.glob("attack-*"))


def test_what_is_no_run_of_it(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No certification, one that is not finished, another network."""
    assert _run(["certify-attack", str(tmp_path)]) == 2
    assert "is not the folder of a certification" in capsys.readouterr().err
    other = f"python:{work}/net.py:other"
    assert _run(["certify-attack", str(work / "normal"), "--classifier", other]) == 2
    assert "was made with" in capsys.readouterr().err
