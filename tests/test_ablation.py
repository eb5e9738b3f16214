"""Derandomized smoothing: what a patch can touch is counted, and no certificate is broken by any patch at all."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from robustgen.ablation import UNKNOWN, Ablation, AblationNet
from robustgen.certify.derandomized import ablated_votes, certified_by_votes, winner
from robustgen.certify.patches import ablated_value
from robustgen.classifier import Classifier
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.nets import build_network, input_layer
from robustgen.rng import ExampleRng
from robustgen.training.method import make_method
from robustgen.training.recipe import load_recipe
from robustgen.training.train import train
from tests.helpers import make_convnet
from tests.training_helpers import write_recipe

KINDS = ("columns", "rows", "block")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("height", "width", "size"), [(5, 7, 1), (7, 5, 3), (6, 6, 6), (4, 9, 2)])
def test_a_patch_touches_at_most_delta_ablations(kind: str, height: int, width: int, size: int) -> None:
    """Counted for every place of every patch; and some place reaches the count that is claimed."""
    ablation = Ablation(kind=kind, size=size)
    count = ablation.positions(height, width)
    kept = ablation.kept(torch.arange(count), height, width)[:, 0]
    assert bool((kept.sum(0) == kept.sum(0)[0, 0]).all()), "every pixel lies in equally many"
    if size < min(height, width):
        assert len({tuple(one.flatten().tolist()) for one in kept}) == count, "all differ"
    for patch in range(1, min(height, width) + 1):
        found = [
            int(kept[:, top : top + patch, left : left + patch].flatten(1).any(1).sum())
            for top in range(height - patch + 1)
            for left in range(width - patch + 1)
        ]
        assert max(found) == ablation.touched(patch, height, width)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept(kind: str) -> None:
    """So many pixels, the first one where the position says, wrapped around the edge; the rest is filled."""
    x = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4) / 12
    ablation = Ablation(kind=kind, size=2)
    last = ablation.positions(3, 4) - 1
    shown = ablation.apply(x, torch.tensor([last]), -1.0)
    expected = torch.full((3, 4), -1.0)
    rows, columns = [0, 2] if kind != "columns" else [0, 1, 2], [0, 3] if kind != "rows" else [0, 1, 2, 3]
    for i, j in itertools.product(rows, columns):
        expected[i, j] = x[0, 0, i, j]
    assert torch.equal(shown[0, 0], expected)


class Tiny(nn.Module):
    """Random logits for each content of what is kept: a table over binary images with unknown pixels."""

    def __init__(self, seed: int, classes: int) -> None:
        super().__init__()
        self.seed, self.classes = seed, classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) of 0, 1 and -1 -> (B, K)."""
        pixels = x.flatten(1)
        code = ((pixels.long() + 1) * 3 ** torch.arange(pixels.shape[1])).sum(1)
        rng = ExampleRng.of(self.seed, code % 4294967291)
        # class 0 is preferred, by a different amount for each table, so that there is something to certify
        return 6 * rng.uniform((self.classes,), "table") + torch.eye(self.classes)[0] * (self.seed % 5)


def patched(x: Tensor, patch: int) -> Tensor:
    """(N, 1, H, W): the binary image with every binary patch at every place."""
    height, width = x.shape[1:]
    contents = torch.tensor(list(itertools.product((0.0, 1.0), repeat=patch * patch))).reshape(-1, patch, patch)
    found = []
    for top in range(height - patch + 1):
        for left in range(width - patch + 1):
            copies = x.expand(len(contents), 1, height, width).clone()
            copies[:, 0, top : top + patch, left : left + patch] = contents
            found.append(copies)
    return torch.cat(found)


@pytest.mark.parametrize(("kind", "height", "width", "patch"), [
    ("columns", 3, 7, 1), ("columns", 2, 9, 2), ("rows", 7, 3, 1), ("block", 5, 5, 1), ("block", 3, 6, 1),
])  # fmt: skip
@pytest.mark.parametrize("classes", [2, 3])
def test_certificates_by_brute_force(kind: str, height: int, width: int, patch: int, classes: int) -> None:
    """Every place and content against random tables: none is ever broken, and with Delta - 1 some would be."""
    ablation, broken_with_less, certified = Ablation(kind=kind, size=1), 0, 0
    delta = ablation.touched(patch, height, width)
    for seed in range(120):
        model, rng = Tiny(seed, classes), ExampleRng.of(seed, [7])
        x = (rng.uniform((1, height, width), "image") > 0.5).float()
        votes = ablated_votes(model, x, ablation, theta=0.4, fill=UNKNOWN)
        answers = winner(ablated_votes(model, patched(x[0], patch), ablation, theta=0.4, fill=UNKNOWN))
        broken = bool((answers != winner(votes)).any())
        if bool(certified_by_votes(votes, delta)):
            certified += 1
            assert not broken, (kind, seed)
        broken_with_less += broken and bool(certified_by_votes(votes, delta - 1))
    assert certified > 0
    assert broken_with_less > 0, "the certificate is not looser than it must be"


@pytest.mark.parametrize("classes", [1, 2, 3, 8])
def test_the_rule_is_the_papers(classes: int) -> None:
    """n_1 - n_2 > 2 Delta, or equal and the winner's index is the lower, in plain Python; one class never changes."""
    votes = torch.randint(0, 8, (400, classes), generator=torch.Generator().manual_seed(0))
    for delta in (0, 1, 2):
        found = certified_by_votes(votes, delta).tolist()
        for row, one in zip(votes.tolist(), found, strict=True):
            best = row.index(max(row))
            gaps = [(row[best] - n, k > best) for k, n in enumerate(row) if k != best]
            assert one == all(gap > 2 * delta or (gap == 2 * delta and lower) for gap, lower in gaps)


def test_ties_are_exact() -> None:
    """The runner-up at exactly 2 Delta: safe for the lower index, and a witness against the higher one."""
    assert certified_by_votes(torch.tensor([[6, 2], [2, 6]]), 2).tolist() == [True, False]
    assert winner(torch.tensor([[4, 4], [3, 4]])).tolist() == [0, 1]
    assert winner(torch.tensor([[4 + 0, 2 + 2]])).tolist() == [0], "two votes taken and given leave a tie for class 0"


def test_votes_pass_the_threshold_one_by_one() -> None:
    """An ablation may vote for several classes or none; votes are those of a plain loop, in batches of any size."""
    model = make_convnet(channels=3, classes=4)
    x = torch.rand(3, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    for kind, theta in itertools.product(KINDS, (0.2, 0.9)):
        ablation = Ablation(kind=kind, size=2)
        votes = ablated_votes(model, x, ablation, theta=theta, fill=0.0)
        expected = torch.zeros(3, 4, dtype=torch.int64)
        for row, position in itertools.product(range(3), range(ablation.positions(6, 9))):
            shown = ablation.apply(x[row : row + 1], torch.tensor([position]), 0.0)
            expected[row] += (model(shown).softmax(1)[0] >= theta).long()
        assert torch.equal(votes, expected)
        assert torch.equal(ablated_votes(model, x, ablation, theta=theta, fill=0.0, batch_size=5), expected)


def test_unknown_differs_from_every_value() -> None:
    """The network sees x and 1 - x where it knows, and nothing of the pixels it does not know."""
    net = build_network("ablation-resnet", widths=[4], depths=[1], channels=3, classes=2).eval()
    assert isinstance(net, AblationNet)
    assert input_layer(net)[1].in_channels == 3
    seen: list[Tensor] = []
    net.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.rand(2, 3, 6, 4)
    x[0, :, 2:4] = 0.0
    net(x)
    net(Ablation(kind="rows", size=2).apply(x, torch.tensor([2, 2])))
    assert torch.allclose(seen[0], torch.cat([x, 1 - x], 1))
    assert torch.equal(seen[1][:, :, 2:4], seen[0][:, :, 2:4]), "black pixels are known"
    assert not bool(seen[1][:, :, :2].any())
    trained = [name for name, one in net.named_parameters() if one.requires_grad]
    assert trained
    assert not any(name.startswith("pair") for name in trained)


def test_training_method() -> None:
    """Each image is shown one part, at places of its own that do not depend on the batch."""
    method = make_method("ablation", threat=None, label_smoothing=0.0, options={"kind": "block", "size": 3})
    x, rng = torch.rand(40, 1, 8, 6), ExampleRng.of(0, range(40))
    shown = method.attack(nn.Identity(), x, torch.zeros(40), rng).x
    known = shown != UNKNOWN
    assert known.flatten(1).sum(1).tolist() == [9] * 40
    assert torch.equal(shown[known], x[known])
    assert len({tuple(one.flatten().tolist()) for one in known}) > 15
    part = method.attack(nn.Identity(), x[7:9], torch.zeros(2), ExampleRng.of(0, [7, 8])).x
    assert torch.equal(part, shown[7:9])


def test_a_trained_classifier_certifies_what_another_does_not(tmp_path: Path) -> None:
    """From a recipe to certificates: trained on columns it holds for columns, and the best epoch was chosen by them."""

    def change(text: str) -> str:
        text = text.replace('"small-resnet"', '"ablation-resnet"').replace("augment = [", "augment = [] # [")
        return text.replace('method = "standard"', 'method = "ablation"\noptions = { size = 3 }').replace(
            "epochs = 2", "epochs = 8"
        )

    result = train(write_recipe(tmp_path, change), out=tmp_path / "out", device="cpu")
    trained = load_classifier(str(result.card))
    assert ablated_value(trained, None) == UNKNOWN
    with torch.no_grad():
        from robustgen.data import load_data

        x, y = load_data(f"npz:{tmp_path / 'toy.npz'}").batch(range(100, 200))
        votes = ablated_votes(trained, x, Ablation(size=3), theta=0.3, fill=UNKNOWN)
        right = (winner(votes) == y) & certified_by_votes(votes, Ablation(size=3).touched(1, 8, 8))
    assert float(right.float().mean()) > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "bands"], "did you mean 'band'"),
        (["--method", "band", "--theta", "0"], "theta must be a number in (0, 1]"),
        (["--method", "band", "--size", "29"], "1 to 28 pixels"),
        (["--method", "block", "--size", "0"], "size of ablation must be a whole number >= 1"),
        (["--method", "band", "--axis", "column"], "did you mean 'columns'"),
        (["--method", "band", "--patch", "40"], "1 to 28 pixels wide, got 40"),
        (["--method", "band", "--fill", "nan"], "--fill must be a number"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, before any work."""
    assert _run(["certify-patches", "fmnist-standard", "-n", "2", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--method", "band"], ["--method", "band", "--axis", "rows"], ["--method", "block", "--size", "20"]]
)
def test_by_command(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Larger patches, fewer certificates; an ordinary classifier is filled with 0 and the record says so."""
    asked = ["certify-patches", "fmnist-standard", "--patch", "1,2", "-n", "6", "--theta", "0.1", "--json", *arguments]
    assert _run([*asked, "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fill"] == 0
    small, large = found["rows"]
    assert small["touched"] < large["touched"]
    assert small["clean"]["value"] >= small["certified"]["value"] >= large["certified"]["value"]


def test_a_normalised_card_cannot_tell_unknown_pixels() -> None:
    """Refused in a sentence, unless a fill is named."""
    from robustgen.cards import Card

    net = build_network("ablation-resnet", widths=[4], depths=[1], channels=1, classes=2)
    card = Card(name="n", title="n", architecture="ablation-resnet", mean=(0.3,), std=(0.3,))
    with pytest.raises(SpecError, match="unknown pixels by their value"):
        ablated_value(Classifier(net.eval(), card), None)
    assert ablated_value(Classifier(net.eval(), card), 0.3) == 0.3


def test_recipes_name_the_method() -> None:
    """One for columns, one for blocks; neither has a mean."""
    columns, block = load_recipe("fmnist-ablation"), load_recipe("fmnist-ablation-block")
    assert columns.training.options == {"kind": "columns", "size": 4}
    assert block.training.options == {"kind": "block", "size": 10}
    assert columns.data.mean == block.data.mean == ()
