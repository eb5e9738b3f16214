"""Networks of published checkpoints: names and shapes as RobustBench has them, and weights that load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustgen.benchmarks.published_nets import fingerprint
from robustgen.benchmarks.tables import load_result
from robustgen.classifiers import load_classifier
from robustgen.errors import SpecError
from robustgen.nets import build_network

REFERENCE = load_result("published_nets")  # made with RobustBench's own classes


@pytest.mark.parametrize("row", REFERENCE["rows"], ids=lambda row: row["name"])
def test_names_and_shapes_are_those_of_the_board(row: dict[str, Any]) -> None:
    """Every parameter and buffer, in their order."""
    with torch.device("meta"):
        network = build_network(row["architecture"], **row["options"])
    assert sum(parameter.numel() for parameter in network.parameters()) == row["parameters"]
    assert fingerprint(network) == row["fingerprint"]


def test_logits_were_equal() -> None:
    """What was measured when the fingerprints were taken: the same weights gave the same logits."""
    assert max(REFERENCE["largest_difference_of_logits"].values()) < 1e-5


def by_hand(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits of a WRN-10-1 with SiLU, written out from its parameters."""

    def norm(h: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        return F.silu(F.batch_norm(h, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"]))

    h = F.conv2d(x, state["init_conv.weight"], padding=1)
    for group, stride in enumerate((1, 2, 2)):
        name = f"layer.{group}.block.0"
        a = norm(h, f"{name}.batchnorm_0")
        padded = F.pad(a, (1, 1, 1, 1)) if stride == 1 else F.pad(a, (0, 1, 0, 1))
        b = norm(F.conv2d(padded, state[f"{name}.conv_0.weight"], stride=stride), f"{name}.batchnorm_1")
        shortcut = f"{name}.shortcut.weight"
        h = F.conv2d(b, state[f"{name}.conv_1.weight"], padding=1) + (
            F.conv2d(a, state[shortcut], stride=stride) if shortcut in state else h
        )
    return F.linear(norm(h, "batchnorm").mean((2, 3)), state["logits.weight"], state["logits.bias"])


def test_a_checkpoint_file_becomes_a_classifier(tmp_path: Path) -> None:
    """Weights as RobustBench stores them, a .pt of tensors, and a card are a classifier, normalisation included."""
    torch.manual_seed(0)
    network = build_network("same-wide-resnet", depth=10, width=1)
    network.train()(torch.rand(8, 3, 32, 32))  # running statistics of its own
    torch.save(network.state_dict(), tmp_path / "published.pt")
    mean, std = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    content = {
        "name": "published", "title": "t", "architecture": "same-wide-resnet", "options": {"depth": 10, "width": 1},
        "weights": "published.pt", "mean": mean, "std": std, "channels": 3, "size": [32, 32], "classes": 10,
        "kind": "robust",
    }  # fmt: skip
    card = tmp_path / "published.json"
    card.write_text(json.dumps(content), encoding="utf-8")
    x = torch.rand(3, 3, 32, 32)
    normalised = (x - torch.tensor(mean).reshape(1, 3, 1, 1)) / torch.tensor(std).reshape(1, 3, 1, 1)
    with torch.no_grad():
        expected = by_hand(network.state_dict(), normalised)
        torch.testing.assert_close(load_classifier(str(card))(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "options", "message"),
    [
        ("same-wide-resnet", {"depth": 12}, "depth must be 6 n \\+ 4"),
        ("same-wide-resnet", {"width": 0}, "width must be >= 1, got 0"),
        ("same-wide-resnet", {"activation": "sillu"}, "unknown activation 'sillu'; did you mean 'silu'"),
        ("same-preact-resnet", {"blocks": (2, 2)}, "need four numbers each, got 2 and 4"),
    ],
)
def test_impossible_networks(architecture: str, options: dict[str, Any], message: str) -> None:
    """Each mistake is one sentence."""
    with pytest.raises(SpecError, match=message):
        build_network(architecture, **options)


@pytest.mark.parametrize("architecture", ["same-wide-resnet", "same-preact-resnet"])
def test_rectangular_grey_images_and_three_classes(architecture: str) -> None:
    """Nothing is made for 32 x 32 in colour alone."""
    options = {"depth": 10, "width": 1} if "wide" in architecture else {"widths": (4, 4, 8, 8)}
    network = build_network(architecture, channels=1, classes=3, **options)
    assert network(torch.rand(2, 1, 24, 16)).shape == (2, 3)
