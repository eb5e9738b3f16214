"""Methods of training: what they attack with, how accuracy is measured, and when the guard speaks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustgen.adversarial_training import (
    FastAdversarial,
    PgdAdversarial,
    Standard,
    clean_accuracy,
    fgsm_accuracy,
    has_collapsed,
    measuring,
    pgd_accuracy,
)
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.helpers import Linear, make_convnet, make_images

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


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("steps", [1, 3])
def test_attack_inside_training(threat: ThreatModel, steps: int) -> None:
    """One pass an attack step with frozen parameters, then one for them at a point of higher loss."""
    network = make_convnet().requires_grad_(requires_grad=True)
    x, y = make_images(network)
    model = Recorder(network)
    rng = ExampleRng.of(0, torch.arange(len(x)))
    PgdAdversarial(threat=threat, steps=steps).loss(model, x, y, rng).backward()
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
    smoothed = Standard(label_smoothing=0.1).loss(model, x, y, ExampleRng.of(0, torch.arange(len(x))))
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
