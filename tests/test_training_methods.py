"""Methods of training: what they attack with, how accuracy is measured, and when the guard speaks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustgen.errors import SpecError
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from robustgen.training.awp import adversarial_weights
from robustgen.training.inner import kl_to, probabilities
from robustgen.training.measure import (
    clean_accuracy,
    fgsm_accuracy,
    has_collapsed,
    measuring,
    pgd_accuracy,
)
from robustgen.training.method import METHODS, Attacked, Method, make_method
from robustgen.training.methods.fast import FastAdversarial, GradAlign, NoisyFast
from robustgen.training.methods.mart import Mart
from robustgen.training.methods.pgd_at import PgdAdversarial
from robustgen.training.methods.standard import Standard
from robustgen.training.methods.trades import Trades
from tests.helpers import Linear, make_convnet, make_images
from tests.training_helpers import Shrinking

THREATS = [ThreatModel.parse(text) for text in ("linf:0.03", "l2:0.3", "l1:1.5")]


class Recorder(nn.Module):
    """Passes images on to a network and keeps them, with whether its parameters then asked for gradients."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[tuple[Tensor, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        wanted = any(parameter.requires_grad for parameter in self.network.parameters())
        self.seen.append((x.detach().clone(), wanted))
        return self.network(x)  # type: ignore[no-any-return]


def loss_of(method: Method, model: nn.Module, x: Tensor, y: Tensor, rng: ExampleRng) -> Tensor:
    """Of one step: attack, then loss."""
    return method.loss(model, x, y, method.attack(model, x, y, rng))


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_attack_inside_training(threat: ThreatModel, steps: int) -> None:
    """One pass an attack step with frozen parameters, then one for them at a point of higher loss."""
    network = make_convnet().requires_grad_(requires_grad=True)
    x, y = make_images(network)
    model = Recorder(network)
    rng = ExampleRng.of(0, torch.arange(len(x)))
    loss_of(PgdAdversarial(threat=threat, steps=steps), model, x, y, rng).backward()
    assert [wanted for _, wanted in model.seen] == [False] * steps + [True]
    assert all(parameter.grad is not None for parameter in network.parameters())
    assert all(bool(threat.contains(x, z).all()) for z, _ in model.seen)
    with torch.no_grad():
        first, last = (nn.functional.cross_entropy(network(model.seen[k][0]), y) for k in (0, -1))
    assert float(last) > float(first)


def test_standard_loss() -> None:
    """Standard training is the cross-entropy, with smoothed labels where asked."""
    model = make_convnet()
    x, y = make_images(model)
    smoothed = loss_of(Standard(label_smoothing=0.1), model, x, y, ExampleRng.of(0, torch.arange(len(x))))
    log_p = model(x).log_softmax(1)
    expected = -(0.9 * log_p.gather(1, y[:, None])[:, 0] + 0.1 * log_p.mean(1)).mean()
    assert torch.allclose(expected, smoothed)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_pgd_accuracy_is_exact(linear_classifier: Linear, norm: Norm) -> None:
    """On a linear classifier PGD breaks what the closed form says it can, and nothing that it cannot."""
    x, y = make_images(linear_classifier, n=300)
    x = 0.5 + 0.2 * (x - 0.5)  # far from the limits of [0, 1], which the closed form ignores
    y = linear_classifier(x).argmax(1)
    distance = linear_classifier.distance(x, y, norm)
    threat = ThreatModel(norm, float(distance.median()))
    measured = pgd_accuracy(linear_classifier, x, y, threat, steps=40, rel_step=0.1)
    at_most = float((distance > threat.eps / 1.25).double().mean())
    at_least = float((distance > threat.eps).double().mean())
    assert at_least < at_most
    assert at_least <= measured <= at_most


def test_accuracies_agree(linear_classifier: Linear) -> None:
    """Clean accuracy counts the right ones; with wrong labels PGD has nothing left to do."""
    x, y = make_images(linear_classifier, n=40)
    wrong = torch.where(torch.arange(40) < 10, (y + 1) % 4, y)
    tiny = ThreatModel.parse("linf:1e-6")
    assert clean_accuracy(linear_classifier, x, wrong) == 0.75
    assert pgd_accuracy(linear_classifier, x, wrong, tiny) == 0.75
    assert fgsm_accuracy(linear_classifier, x, wrong, tiny) == 0.75


def test_fgsm_accuracy_lies_above_pgd(linear_classifier: Linear) -> None:
    """One step breaks some, and many steps break no fewer."""
    x, y = make_images(linear_classifier, n=300)
    threat = THREATS[0]
    fgsm = fgsm_accuracy(linear_classifier, x, y, threat)
    assert pgd_accuracy(linear_classifier, x, y, threat) <= fgsm < 1


def test_measuring_restores() -> None:
    """Measuring leaves mode and gradients as found, also after an error."""
    network = make_convnet().train().requires_grad_(requires_grad=True)

    def measure() -> None:
        with measuring(network) as model:
            assert not model.training
            assert not any(parameter.requires_grad for parameter in model.parameters())
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        measure()
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("fgsm", "pgd", "collapsed"),
    [
        (0.80, 0.70, False),  # as good as ever
        (0.80, 0.36, False),  # worse, but not by half
        (0.95, 0.34, True),  # the classic picture
        (0.95, 0.00, True),
        (0.30, 0.00, False),  # both fell: the training went wrong in another way
    ],
)
def test_collapse(fgsm: float, pgd: float, collapsed: bool) -> None:
    """The guard speaks when PGD accuracy halves and FGSM accuracy does not."""
    assert has_collapsed(fgsm, pgd, best_fgsm=0.8, best_pgd=0.7, classes=10) is collapsed


def test_collapse_from_chance() -> None:
    """A network that has not learned anything yet cannot collapse."""
    assert not has_collapsed(0.2, 0.0, best_fgsm=0.2, best_pgd=0.15, classes=10)


def test_stronger() -> None:
    """After a collapse the attack has one more step, and its steps together are as long as before."""
    fast = FastAdversarial(threat=THREATS[0])
    harder = fast.stronger().stronger()
    assert harder.steps == 3
    assert harder.steps * harder.rel_step == pytest.approx(1.25)


RNG = ExampleRng.of(0, torch.arange(12))


def normed() -> nn.Module:
    """A small network with batch norm, in training mode."""
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 3)]
    return nn.Sequential(*layers).train()


def toy(n: int = 12, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Grey noise and labels in turn."""
    torch.manual_seed(2)
    return torch.rand(n, 1, 8, 8), torch.arange(n) % classes


@pytest.fixture(autouse=True)
def toy_denoiser(monkeypatch: pytest.MonkeyPatch) -> None:
    """For `denoised`: the bundled generators make images of 28 x 28, toys are smaller."""
    monkeypatch.setattr("robustgen.training.methods.denoised._denoiser", lambda name, device: Shrinking((1, 8, 8)))


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_trains(name: str) -> None:
    """Each registered method gives all parameters a finite gradient, from hard and from mixed labels, in any norm."""
    for threat in THREATS:
        method = make_method(name, threat=threat, label_smoothing=0.1, options={})
        for mixed in (False, True):
            model, (x, y) = normed(), toy()
            target = 0.5 * (probabilities(y, 3) + probabilities(y.flip(0), 3)) if mixed else y
            loss_of(method, model, x, target, RNG).backward()
            assert all(
                bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters() if p.grad is not None
            )
            assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", list(METHODS))
def test_an_attack_leaves_no_trace_in_running_statistics(name: str) -> None:
    """They belong to what is trained on: one update a forward pass of the loss, none of the ascent."""
    method = make_method(name, threat=THREATS[0], label_smoothing=0.0, options={})
    model, (x, y) = normed(), toy()
    statistics: Any = model[1]  # type: ignore[index]
    with_clean = name == "trades"  # whose clean pass serves attack and loss
    before = statistics.running_mean.clone()
    method.attack(model, x, y, RNG)
    assert torch.equal(before, statistics.running_mean) is not with_clean


def test_trades_is_the_formula() -> None:
    """CE + beta KL(p || p'), differentiated through both sides, against an independent computation in float64."""
    model, (x, y) = normed().double().eval(), toy()
    x, x_adv = x.double(), (toy()[0] + 0.01).double()
    trades = Trades(threat=THREATS[0], beta=3.0, label_smoothing=0.1)
    loss = trades.loss(model, x, y, Attacked(x_adv))
    p, p_adv = model(x).softmax(1), model(x_adv).softmax(1)
    natural = -(0.9 * p.log().gather(1, y[:, None])[:, 0] + 0.1 * p.log().mean(1)).mean()
    expected = natural + 3.0 * (p * (p / p_adv).log()).sum(1).mean()
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs)


def test_trades_shares_its_clean_pass() -> None:
    """One pass for clean images, one a step, one for the attacked: no double forward, and the same gradient."""
    model, (x, y) = normed(), toy()
    trades = Trades(threat=THREATS[0], steps=4)
    passes = Recorder(model)
    attacked = trades.attack(passes, x, y, RNG)
    loss = trades.loss(passes, x, y, attacked)
    assert len(passes.seen) == 4 + 2
    again = trades.loss(model, x, y, replace(attacked, clean=None))
    parameters = list(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(again, parameters), rtol=1e-4, atol=1e-6
    )


def test_trades_climbs_the_divergence() -> None:
    """The point found has a larger KL divergence from the clean prediction than the start, and lies in the ball."""
    for threat in THREATS:
        model, (x, y) = normed(), toy()
        attacked = Trades(threat=threat).attack(model, x, y, RNG)
        assert attacked.clean is not None
        assert bool(threat.contains(x, attacked.x).all())
        climb = kl_to(attacked.clean.softmax(1))
        start = threat.random_start(x, RNG, "training")
        with torch.no_grad():
            found, begun = (float(climb(model(z)).mean()) for z in (attacked.x, start))
        assert found > begun


def test_mart_is_the_formula() -> None:
    """Boosted cross-entropy and weighted divergence, against an independent computation in float64."""
    model, (x, y) = normed().double().eval(), toy()
    x, x_adv = x.double(), (toy()[0] - 0.02).double()
    loss = Mart(threat=THREATS[0], beta=2.0).loss(model, x, y, Attacked(x_adv))
    p, p_adv = model(x).softmax(1), model(x_adv).softmax(1)
    right, right_adv = p.gather(1, y[:, None])[:, 0], p_adv.gather(1, y[:, None])[:, 0]
    wrong = torch.stack([torch.cat([row[:k], row[k + 1 :]]).max() for row, k in zip(p_adv, y.tolist(), strict=True)])
    boosted = -right_adv.log() - (1.0001 - wrong).log()
    expected = (boosted + 2.0 * (p * (p / p_adv).log()).sum(1) * (1 - right)).mean()
    torch.testing.assert_close(loss, expected)


def test_n_fgsm_is_not_projected() -> None:
    """Its points lie up to three eps away, most of them beyond one, and in [0, 1]."""
    threat = ThreatModel.parse("linf:0.03")
    model, (x, y) = normed(), toy()
    x = 0.3 + 0.4 * x
    found = NoisyFast(threat=threat).attack(model, x, y, RNG).x
    distance = threat.distance(x, found)
    assert bool((distance > threat.eps).all())
    assert bool((distance <= 3 * threat.eps + 1e-6).all())


def test_grad_align_penalises_what_is_not_linear() -> None:
    """With two classes a linear model's gradients are parallel and the penalty is 0; elsewhere it is not."""
    (x, y), threat = toy(classes=2), ThreatModel.parse("linf:0.1")
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    for model, aligned in ((linear, True), (normed(), False)):
        method = GradAlign(threat=threat, penalty=10.0)
        attacked = method.attack(model, x, y, RNG)
        whole, plain = (m.loss(model, x, y, attacked).item() for m in (method, FastAdversarial(threat=threat)))
        assert (abs(whole - plain) < 1e-4) is aligned


def test_weights_are_perturbed_and_restored() -> None:
    """Inside, every matrix has moved by exactly the size asked for and the loss is higher; afterwards nothing has."""
    model, (x, y) = normed(), toy()
    before = copy.deepcopy(model.state_dict())
    plain = nn.functional.cross_entropy(model.eval()(x), y).item()
    model.train()

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    statistics = copy.deepcopy(model.state_dict())
    with adversarial_weights(model, loss, 0.01):
        for name, weight in model.named_parameters():
            moved, length = (float(part.detach().norm()) for part in (weight - before[name], before[name]))
            assert moved == pytest.approx(0.01 * length if weight.ndim > 1 else 0.0, rel=1e-3)
        assert nn.functional.cross_entropy(model.eval()(x), y).item() > plain
    assert all(
        torch.equal(statistics[name], value) for name, value in model.state_dict().items() if "batches" not in name
    )


def test_a_method_from_outside() -> None:
    """What an outsider registers is found by name, with its own options checked."""
    with pytest.raises(SpecError, match=r"unknown option of method trades 'bta'; did you mean 'beta'"):
        make_method("trades", threat=THREATS[0], label_smoothing=0.0, options={"bta": 5})
    with pytest.raises(SpecError, match=r"training.beta must be a number >= 0, got -1"):
        make_method("trades", threat=THREATS[0], label_smoothing=0.0, options={"beta": -1})
    with pytest.raises(SpecError, match=r"method 'mart' needs a threat model"):
        make_method("mart", threat=None, label_smoothing=0.0, options={})
