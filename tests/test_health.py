"""Health checks: each lie is caught, and honest models are left in peace."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustgen.flags import FLAGS
from robustgen.health import Health, inspect_classifier
from robustgen.threat import ThreatModel
from tests.helpers import assert_global_rng_untouched, make_convnet, make_images, make_linear

LINF = ThreatModel("linf", 0.05)


class Behind(nn.Module):
    """A network with something in front of it and something after it."""

    def __init__(self, net: nn.Module, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(self.before(x)))


def same(x: Tensor) -> Tensor:
    """The identity."""
    return x


def noisy(x: Tensor) -> Tensor:
    """Noise drawn anew."""
    return x + 0.05 * torch.randn_like(x)


def rounded(x: Tensor) -> Tensor:
    """Eight levels, no gradient."""
    return (x * 7).round() / 7


def jumping(x: Tensor) -> Tensor:
    """Smooth with the wrong slope between jumps: the mean falls where the value rises."""
    return (x * 40).round() / 40 - 0.3 * (x - (x * 40).round() / 40)


def one_hot(z: Tensor) -> Tensor:
    """Decisions only, with a gradient of zero."""
    return nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z) + 0 * z


def inner_descent(x: Tensor) -> Tensor:
    """A forward pass that computes a gradient."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(leaf.square().sum(), leaf)
    return x - 0.001 * g


LIES = {
    "randomised": (noisy, same),
    "zero-gradient": (rounded, same),
    "eps-sweep": (same, one_hot),
    "gradient-mismatch": (jumping, same),
    "dynamic": (inner_descent, same),
}


def check(model: nn.Module, shape: tuple[int, int, int] = (3, 10, 10), classes: int | None = None) -> Health:
    """Health of a model on images that it classifies as labelled."""
    x, y = make_images(model, 40, shape)
    return inspect_classifier(model, x, y, LINF)


@pytest.mark.parametrize("flag", LIES)
def test_lies_are_caught(flag: str) -> None:
    """Each masking trick raises its flag."""
    before, after = LIES[flag]
    net = make_convnet(channels=3, classes=4)
    assert flag in check(Behind(net, before, after)).flags


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_honest_models_are_left_in_peace(norm: str, channels: int) -> None:
    """Conv nets and linear models raise nothing, in any norm."""
    for model, shape in (
        (make_convnet(channels=channels, classes=5), (channels, 9, 12)),
        (make_linear((channels, 8, 8), classes=3), (channels, 8, 8)),
    ):
        x, y = make_images(model, 40, shape)
        threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.5, "l1": 6.0}[norm])  # type: ignore[arg-type]
        with assert_global_rng_untouched():
            health = inspect_classifier(model, x, y, threat)
        assert () == health.flags, health.measured


def test_a_missing_normalisation_is_suspected() -> None:
    """A network that is right on images in [0, 255] and not in [0, 1]."""
    net = make_linear()
    wants_bytes = Behind(net, lambda x: x / 255, same)
    x, y = make_images(net, 40)
    health = inspect_classifier(wants_bytes, x, y, LINF)
    assert "range" in health.flags


def test_the_mismatch_is_near_zero_for_smooth_and_one_for_flat() -> None:
    """The measure has known ends: quadrature is exact for a line, and a rounded input promises nothing."""
    x, y = make_images(make_linear(), 40)
    assert inspect_classifier(make_linear(), x, y, LINF).measured["gradient-mismatch"] < 1e-3
    flat = Behind(make_linear(), rounded, same)
    with torch.no_grad():
        y = flat(x).argmax(1)
    assert math.isclose(1.0, inspect_classifier(flat, x, y, LINF).measured["gradient-mismatch"], abs_tol=1e-6)


def test_static_models_stay_static_after_a_dynamic_one() -> None:
    """The watch on autograd is put back: no flag sticks to the next model."""
    net = make_convnet(channels=3, classes=4)
    grad, backward = torch.autograd.grad, Tensor.backward
    assert "dynamic" in check(Behind(net, inner_descent, same)).flags
    assert "dynamic" not in check(net).flags
    assert (grad, backward) == (torch.autograd.grad, Tensor.backward)


def test_one_and_two_classes() -> None:
    """Nothing breaks where there is nothing to attack."""
    for classes in (1, 2):
        model = make_linear(classes=classes)
        x, y = make_images(model, 10)
        assert () == inspect_classifier(model, x, y, LINF).flags


def test_nothing_classified_correctly() -> None:
    """With no image to attack only the checks that need none are made."""
    model = make_linear(classes=2)
    x, y = make_images(model, 10)
    assert "zero-gradient" not in inspect_classifier(model, x, 1 - y, LINF).measured


def test_the_manual_is_complete() -> None:
    """Every flag that can be raised says when, why and what to do."""
    for name, flag in FLAGS.items():
        assert all((flag.raised_if, flag.why, flag.what_to_do)), name
