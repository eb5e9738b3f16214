"""Fixtures for all tests: classifiers small enough to be exact, and images that they classify as labelled."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import Linear, make_convnet, make_images, make_linear


def pytest_configure() -> None:
    """One thread for each process that tests start: beside other processes, those of several wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Up to four processes for the whole suite; none for tests that somebody names, which start sooner without."""
    whole = config.args_source != pytest.Config.ArgsSource.ARGS
    return min(4, os.cpu_count() or 1) if whole else 0


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Small tensors are slower on many threads, and sums come out the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture
def linear_classifier() -> Linear:
    """Logits W x + b for images (1, 8, 8) in 4 classes; `distance(x, y, norm)` is the optimum of every attack."""
    return make_linear()


@pytest.fixture
def tiny_convnet() -> Callable[..., nn.Module]:
    """Factory `tiny_convnet(channels=1, classes=4, seed=0)`: a random conv net for images of any size."""
    return make_convnet


@pytest.fixture
def images() -> Callable[..., tuple[Tensor, Tensor]]:
    """Factory `images(model, n=8, shape=(1, 8, 8), seed=0)`: images in [0, 1] and the labels `model` gives them."""
    return make_images
