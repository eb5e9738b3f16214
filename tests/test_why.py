"""What docs/why.md rests on: closed forms of linear classifiers, planes, transfer, gradients; and all pictures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustgen.attacks.fgsm import FGSM
from robustgen.attacks.losses import Margin
from robustgen.benchmarks import why
from robustgen.benchmarks.tables import load_result
from robustgen.benchmarks.why_dimension import exponent, linear_row, linearisation, resize, train_linear
from robustgen.benchmarks.why_models import (
    ASCENT,
    AXIS,
    crossing,
    final_points,
    gradient_row,
    honest_models,
    nonlinearity,
    picture_rows,
    plane,
    read_rows,
    transfer,
)
from robustgen.benchmarks.why_pictures import PICTURES, picture, read_picture
from robustgen.cards import Card
from robustgen.classifier import Classifier
from robustgen.data import load_data
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel
from tests.helpers import ROOT, Linear, make_images, make_linear


def as_classifier(model: nn.Module, shape: tuple[int, int, int], classes: int) -> Classifier:
    """A module with a card."""
    card = Card(name="n", title="n", architecture="n", channels=shape[0], size=shape[1:], classes=classes)
    return Classifier(model, card)


def task(n: int, shape: tuple[int, int, int], classes: int) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier, images, and what it says of them."""
    model = make_linear(shape, classes)
    return model, *make_images(model, n, shape)


def test_resizing_keeps_means_and_constants() -> None:
    """Smaller: means of blocks, in float64; larger: a constant stays, and a ramp stays a ramp inside."""
    x = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = x.double().reshape(2, 3, 4, 3, 4, 3).mean((3, 5))
    assert torch.allclose(resize(x, 4).double(), expected, atol=1e-6)
    assert torch.allclose(resize(torch.full((1, 1, 5, 5), 0.3), 10), torch.tensor(0.3))
    ramp = resize(torch.arange(6.0).expand(1, 1, 6, 6), 12)[0, 0, 3]
    assert torch.allclose(ramp[1:-1].diff(), torch.tensor(0.5))


@pytest.mark.parametrize("classes", [2, 5])
def test_training_ends_at_the_optimum(classes: int) -> None:
    """The gradient of the loss with decay is zero there, in float64; all parameters are frozen."""
    model, x, y = task(300, (1, 4, 4), classes)
    y[::7] = (y[::7] + 1) % classes  # not separable
    trained = train_linear(x, y, classes)
    weight: Tensor = trained[1].weight.double()  # type: ignore[operator]
    p = (x.double().flatten(1) @ weight.T + trained[1].bias).softmax(1)
    residual = (p - F.one_hot(y, classes)) / len(x)
    gradient = residual.T @ x.double().flatten(1) + 1e-4 * weight
    at_zero = (1 / classes - F.one_hot(y, classes).double()).T @ x.double().flatten(1) / len(x)
    assert float(gradient.abs().max()) < 0.01 * float(at_zero.abs().max())
    assert not any(one.requires_grad for one in trained.parameters())
    assert model is not trained


def test_a_linear_row_is_the_closed_form() -> None:
    """eps ||w||_1, deviation near eps ||w||_2, and accuracy under the worst change by trying every class."""
    linear, x, y = task(400, (3, 6, 6), 4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).requires_grad_(requires_grad=False)
    model[1].weight, model[1].bias = linear.weight, linear.bias
    y[:40] = (y[:40] + 1) % 4
    eps = 0.01
    row = linear_row(model, x, y, eps, ExampleRng.of(0, range(400)))
    assert row["clean"]["value"] == 0.9
    logits = linear(x)
    rival = logits.scatter(1, y[:, None], -math.inf).argmax(1)
    w = (linear.weight[y] - linear.weight[rival])[40:].double()
    assert row["adversarial"] == pytest.approx(eps * float(w.abs().sum(1).mean()), rel=1e-3)
    normal = eps * math.sqrt(2 / math.pi) * float(w.norm(dim=1).mean())  # of a sum of many signs
    assert row["random"] == pytest.approx(normal, rel=0.1)
    assert row["weight"] == pytest.approx(float(w.abs().mean()), rel=1e-5)
    wrong = torch.zeros(400, dtype=torch.bool)
    for target in range(4):
        step = -eps * (linear.weight[y] - linear.weight[target]).sign().reshape(x.shape)
        wrong |= linear(x + step).argmax(1) != y
    assert row["under_adversarial"]["value"] == pytest.approx(1 - float(wrong.float().mean()), abs=0.003)
    assert row["under_adversarial"]["value"] < row["under_random"]["value"] <= row["clean"]["value"] + 0.05


def test_exponent_of_a_power() -> None:
    """3 d^0.7, whatever the points."""
    assert exponent([4, 9, 100], [3 * n**0.7 for n in (4, 9, 100)]) == pytest.approx(0.7)


def test_the_linearisation_of_what_is_linear_is_true() -> None:
    """Of two classes: predicted and true fall agree, and grow with eps; random signs do less."""
    linear, x, y = task(30, (1, 8, 8), 2)
    found = linearisation(as_classifier(linear, (1, 8, 8), 2), load_data((x, y)), range(30), [0.01, 0.03])
    for row in found["rows"]:
        assert row["true"] == pytest.approx(row["predicted"], rel=1e-3)
        assert 0 < row["random"] < 0.5 * row["true"]
    first, second = found["rows"]
    assert second["predicted"] == pytest.approx(3 * first["predicted"], rel=1e-5)


def test_a_plane_holds_the_loss_at_each_of_its_points() -> None:
    """Row by row t, along the row s; the image itself is where both are 0."""
    linear, x, y = task(1, (3, 6, 5), 5)
    model = nn.Sequential(linear, nn.Softplus(beta=9))
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(3, 6, 5, generator=generator).sign() for _ in range(2))
    found = plane(model, x[0], y[0], first, second)
    loss, margin = (torch.tensor(read_rows(found[key])) for key in ("loss", "margin"))
    middle = (max(AXIS) + min(AXIS)) / 2
    assert loss.shape == margin.shape == (len(AXIS), len(AXIS))
    for i, j in ((0, 0), (3, 20), (30, 1), (15, 10)):
        logits = model((x[0] + AXIS[j] * first + (AXIS[i] - middle) * second)[None])
        assert float(loss[i, j]) == pytest.approx(float(F.cross_entropy(logits, y)), rel=0.006)
    home = model(x)
    assert AXIS[10] == AXIS[15] - middle == 0
    assert float(margin[15, 10]) == pytest.approx(float(-Margin()(home, y)), rel=0.01)


def test_points_where_attacks_end_lie_in_the_threat_model_in_any_batch() -> None:
    """FGSM of a linear classifier is x + eps sign(w); PGD goes on after its first success."""
    linear, x, y = task(5, (1, 8, 8), 2)
    threat, rng = ThreatModel.parse("linf:0.3"), ExampleRng.of(0, range(5))
    w = (linear.weight[1] - linear.weight[0]).reshape(1, 8, 8)
    expected = (x + torch.where(y == 0, 0.3, -0.3).reshape(-1, 1, 1, 1) * w.sign()).clamp(0, 1)
    for attack in (FGSM(loss=Margin()), ASCENT):
        points = final_points(attack, linear, x, y, threat, rng)
        assert bool(threat.contains(x, points).all())
        assert torch.allclose(points, expected, atol=1e-5)
        alone = final_points(attack, linear, x[3:], y[3:], threat, rng.take(torch.tensor([3, 4])))
        assert torch.allclose(points[3:], alone, atol=1e-6)


def test_directions_mislead_their_twin_and_not_a_model_that_looks_elsewhere() -> None:
    """Of three models two are alike; the third reads the other half of the image, and no direction reaches it."""

    class Half(nn.Module):
        def __init__(self, rows: slice) -> None:
            super().__init__()
            self.rows = rows

        def forward(self, x: Tensor) -> Tensor:
            """(B, 1, 8, 8) -> (B, 2): the mean of half of the image against 0.5."""
            mean = 40 * (x[:, :, self.rows].flatten(1).mean(1) - 0.5)
            return torch.stack([-mean, mean], 1)

    models = {"a": Half(slice(4)), "b": Half(slice(4)), "c": Half(slice(4, 8))}
    x = torch.tensor([0.48, 0.52, 0.44, 0.9, 0.52]).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    x[4, :, 4:] = 0.48
    y = torch.tensor([0, 1, 0, 0, 1])  # of the last two one nobody gets right, and one not everybody
    threat = ThreatModel.parse("linf:0.05")
    found = transfer(models, {"fgsm": FGSM(loss=Margin())}, x, y, threat, ExampleRng.of(0, range(5)))
    assert found["n"] == 3
    share = {a: {b: round(found["success"]["fgsm"][a][b]["value"], 3) for b in models} for a in models}
    half = round(2 / 3, 3)  # 0.44 is farther than eps from the boundary
    assert share == {
        "a": {"a": half, "b": half, "c": 0}, "b": {"a": half, "b": half, "c": 0}, "c": {"a": 0, "b": 0, "c": half},
    }  # fmt: skip
    assert found["cosine"]["a"]["b"] == pytest.approx(1)
    assert found["cosine"]["a"]["c"] == pytest.approx(0)
    assert all(estimate["value"] == 0 for estimate in found["random"].values())


def test_gradients_of_what_is_linear() -> None:
    """Margin / ||g||_1 is the closed form, the class changes there to a step, and nothing departs from linear."""
    linear, x, y = task(40, (1, 8, 8), 2)
    x = 0.5 + 0.2 * (x - 0.5)
    y = linear(x).argmax(1)
    model, rng = as_classifier(linear, (1, 8, 8), 2), ExampleRng.of(0, range(40))
    distance = linear.distance(x, y, "linf").sort().values
    row = gradient_row(model, x, y, 0.05, rng)
    assert row["n"] == 40
    assert row["by_gradient"] == pytest.approx(float(distance[19]), rel=1e-4)
    assert row["by_gradient"] <= row["along_sign"] + 1e-6 <= row["by_gradient"] + 0.006
    assert row["crossed"]["value"] == 1
    assert row["nonlinear"] < 1e-3
    assert row["by_gradient_quantiles"][0] == pytest.approx(float(distance[0]), rel=1e-3)
    away = crossing(model, x, y, torch.zeros_like(x))
    assert bool(away.isinf().all())


def test_what_bends_departs_from_linear() -> None:
    """f = a z + z^2 of one pixel: the largest departure within eps is eps^2, as a share of eps a it is eps / a."""

    class Bent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            z = x.flatten(1)[:, 0] - 0.5
            return torch.stack([torch.zeros_like(z), 1 + 2.0 * z + z**2], 1)

    x, y = torch.full((3, 1, 1, 1), 0.5), torch.ones(3, dtype=torch.int64)
    grad = torch.full((3, 1, 1, 1), 2.0)
    found = nonlinearity(Bent(), x, y, grad, 0.2, ExampleRng.of(0, range(3)))
    assert torch.allclose(found, torch.tensor(0.1), atol=1e-5)


def test_pictures_in_text_come_back() -> None:
    """To one part in 127."""
    image = torch.linspace(-1, 1, 30).reshape(5, 6)
    assert torch.allclose(torch.from_numpy(read_picture(picture_rows(image))).float(), image, atol=0.005)


def test_every_part_is_stored_drawn_and_shown(tmp_path: Path) -> None:
    """A figure from each stored result; docs/why.md shows the picture and says the command; pictures are small."""
    text = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
    assert set(PICTURES) == set(why.PARTS)
    for part in PICTURES:
        picture(part, load_result(f"why-{part}")).savefig(tmp_path / f"{part}.png", dpi=40)
        assert (tmp_path / f"{part}.png").stat().st_size > 4000
        assert f"](why-{part}.png)" in text
        assert f"`python -m robustgen.benchmarks.why {part}`" in text
        assert (ROOT / "docs" / f"why-{part}.png").stat().st_size < 120_000


def test_bundled_models_are_the_honest_ones() -> None:
    """Of Fashion-MNIST, without decoys; stored results speak of models that are still there."""
    names = set(honest_models())
    assert {"fmnist-standard", "fmnist-at"} <= names
    assert not any(name.startswith(("decoy", "cifar10")) for name in names)
    assert set(load_result("why-transfer")["names"]) - {"linear"} <= names


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Measures, stores and draws one part; draws again without measuring; refuses a part that is none."""
    stored = dict[str, Any]()

    def keep(name: str, result: dict[str, Any], *, module: str | None = None) -> Path:
        stored[name] = {"module": module, **result}
        return tmp_path / name

    result = load_result("why-gradients")
    monkeypatch.setattr(why, "store", keep)
    monkeypatch.setattr(why, "DOCS", tmp_path)
    monkeypatch.setitem(why.PARTS, "gradients", lambda: {"rows": result["rows"]})
    monkeypatch.setattr("sys.argv", ["why", "gradients"])
    why.main()
    assert json.dumps(stored["why-gradients"]["rows"]) == json.dumps(result["rows"])
    assert stored["why-gradients"]["module"] == "why gradients"
    (tmp_path / "why-gradients.png").unlink()
    stored.clear()
    monkeypatch.setattr("sys.argv", ["why", "gradients", "--draw"])
    why.main()
    assert not stored
    assert (tmp_path / "why-gradients.png").is_file()
    monkeypatch.setattr("sys.argv", ["why", "gradient"])
    with pytest.raises(SystemExit):
        why.main()
    assert "there is no part 'gradient'" in capsys.readouterr().err
