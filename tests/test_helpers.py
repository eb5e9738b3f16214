"""The fixtures and helpers that other tests lean on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import Linear, assert_global_rng_untouched, make_convnet, make_linear


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_linear_distance_is_the_smallest_step_that_changes_the_class(
    linear_classifier: Linear, images: Callable[..., tuple[Tensor, Tensor]], norm: str
) -> None:
    """A step of the stated length along the best direction reaches another class, and one a little shorter does not."""
    x, y = images(linear_classifier, n=16)
    radius = linear_classifier.distance(x, y, norm)
    logits = linear_classifier(x)
    assert torch.equal(y, logits.argmax(1))
    reached = torch.zeros(len(x), 2, dtype=torch.bool)
    for target in range(4):
        w = linear_classifier.weight[target] - linear_classifier.weight[y]  # (B, D)
        step = {
            "linf": w.sign(),
            "l2": w / w.norm(dim=1, keepdim=True).clamp_min(1e-12),
            "l1": torch.zeros_like(w).scatter(1, w.abs().argmax(1, keepdim=True), 1.0) * w.sign(),
        }[norm]
        for column, factor in enumerate((0.999, 1.001)):
            moved = x + (factor * radius[:, None] * step).view_as(x)
            reached[:, column] |= linear_classifier(moved).argmax(1) != y
    assert not reached[:, 0].any()
    assert reached[:, 1].all()


def test_images_are_labelled_by_the_model_with_several_classes(images: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Labels are the predictions, and random images do not all fall into one class of the linear classifier."""
    model = make_linear((3, 8, 8), 5, seed=1)
    x, y = images(model, n=32, shape=(3, 8, 8), seed=2)
    assert x.shape == (32, 3, 8, 8)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    assert torch.equal(model(x).argmax(1), y)
    assert len(y.unique()) >= 3


@pytest.mark.parametrize("size", [8, 13, 28])
def test_convnet_takes_any_size_and_is_deterministic(tiny_convnet: Callable[..., nn.Module], size: int) -> None:
    """The same seed gives the same logits, another seed others, and nothing in it trains."""
    x = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    net = tiny_convnet(3, 7, seed=1)
    assert net(x).shape == (2, 7)
    assert torch.equal(net(x), tiny_convnet(3, 7, seed=1)(x))
    assert not torch.allclose(net(x), tiny_convnet(3, 7, seed=2)(x))
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


def test_making_a_convnet_leaves_the_global_generator_alone() -> None:
    """Models for tests are drawn without touching the random numbers of the code under test."""
    with assert_global_rng_untouched():
        make_convnet()


def test_a_use_of_the_global_generator_is_noticed() -> None:
    """The guard fails when a number is drawn."""
    with pytest.raises(AssertionError, match="global torch generator"), assert_global_rng_untouched():
        torch.rand(1)
