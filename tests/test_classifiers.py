from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from robustgen import classifiers
from robustgen.cards import Card
from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.errors import ArtifactError, SpecError
from robustgen.nets import build_network
from robustgen.weights import state_sha256
from tests.helpers import assert_global_rng_untouched, make_convnet, make_linear

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3])
OPTIONS = {"widths": [4], "depths": [1], "classes": 4}


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    """A card with weights beside it, as a training leaves them."""
    return write_model(tmp_path, "toy")


def write_model(folder: Path, name: str, **changes: Any) -> Path:
    """Write NAME.json and NAME.safetensors of a small-resnet for (1, 8, 8) images in 4 classes."""
    torch.manual_seed(0)
    save_file(build_network("small-resnet", **OPTIONS).state_dict(), folder / f"{name}.safetensors")
    digest = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
    figure = {"metric": "clean_accuracy", "value": 0.9, "n": 10, "protocol": "none"}
    fields: dict[str, Any] = {
        "name": name,
        "title": "A toy",
        "architecture": "small-resnet",
        "options": OPTIONS,
        "weights": f"{name}.safetensors",
        "sha256": digest,
        "mean": [0.25],
        "std": [0.5],
        "channels": 1,
        "size": [8, 8],
        "classes": 4,
        "kind": "robust",
        "threat": "linf:0.1",
        "figures": [figure],
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(fields))
    return folder / f"{name}.json"


class Answer(nn.Module):
    """A module that answers with whatever a function makes of the images."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


def user(module: nn.Module) -> Classifier:
    """The classifier around a module."""
    return load_classifier(module)


def test_classifier_normalises_and_stays_frozen(card_file: Path) -> None:
    """Logits are the network's on (x - mean) / std; no call brings training mode or gradients of weights back."""
    classifier = load_classifier(str(card_file), shape=(1, 8, 8), classes=4)
    network = build_network("small-resnet", **OPTIONS).eval()
    network.load_state_dict(classifier.network.state_dict())
    torch.testing.assert_close(classifier(X), network((X - 0.25) / 0.5))
    assert not any(module.training for module in classifier.train().modules())
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.stochastic is False
    assert not classifier.was_training
    assert check_classifier(classifier, X, Y) == []


def test_classifier_has_the_hash_of_its_file(card_file: Path) -> None:
    """The weights' identity is that of the file for a card, of its state for a module, of nothing without state."""
    content = card_file.with_suffix(".safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == load_classifier(str(card_file)).weights_sha256
    net = make_convnet()
    assert state_sha256(net.state_dict()) == user(net).weights_sha256
    assert hashlib.sha256().hexdigest() == user(Answer(lambda x: x)).weights_sha256


def test_bundled_names_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is looked up among the cards of the zoo; another is refused with the nearest."""
    path = write_model(tmp_path, "fmnist-at")
    monkeypatch.setattr(classifiers, "bundled_cards", lambda: {"fmnist-at": path})
    assert load_classifier("fmnist-at").card == Card.load(path)
    with pytest.raises(SpecError, match="unknown classifier 'fmnist-ta'; did you mean 'fmnist-at'"):
        load_classifier("fmnist-ta")


def test_loading_leaves_the_global_generator(card_file: Path) -> None:
    """Fresh weights that are overwritten at once draw nothing from the caller's stream."""
    with assert_global_rng_untouched():
        load_classifier(str(card_file))


def test_weights_override_those_of_a_card(card_file: Path, tmp_path: Path) -> None:
    """Other weights bring another name and hash, and take the claims of the old ones away."""
    torch.manual_seed(1)
    other = build_network("small-resnet", **OPTIONS)
    torch.save(other.state_dict(), tmp_path / "mine.pt")
    classifier = load_classifier(str(card_file), weights=tmp_path / "mine.pt")
    assert torch.equal(other.state_dict()["head.weight"], classifier.network.state_dict()["head.weight"])
    assert hashlib.sha256((tmp_path / "mine.pt").read_bytes()).hexdigest() == classifier.weights_sha256
    assert ("toy+mine", (), None, "user") == (
        classifier.card.name,
        classifier.card.figures,
        classifier.card.threat,
        classifier.card.kind,
    )
    again = load_classifier(load_classifier(str(card_file)), weights=tmp_path / "mine.pt")
    assert torch.equal(classifier(X), again(X))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sha256": "0" * 64}, ArtifactError, "the sha256 is [0-9a-f]{64}, the card of toy says 0000.*--weights FILE"),
        ({"weights": "none.safetensors"}, ArtifactError, "none.safetensors: there is no such file"),
        ({"weights": None}, SpecError, "names no weights: add the field 'weights', or pass --weights FILE"),
        ({"options": {"widths": [5], "depths": [1]}}, ArtifactError, "do not fit small-resnet: .*'stem.0.weight': .4"),
        ({"architecture": "resnet"}, SpecError, "unknown architecture 'resnet'; did you mean"),
    ],
)
def test_cards_that_do_not_fit_their_weights(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    """A damaged or missing file of weights, and one of another network, are refused."""
    with pytest.raises(error, match=message):
        load_classifier(str(write_model(tmp_path, "toy", **changes)))


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((3, 8, 8), 4, "toy takes images of 1 channels, the data has 3"),
        ((1, 28, 28), 4, "toy takes images of 8 x 8 pixels, the data has 28 x 28"),
        ((1, 8, 8), 10, "toy tells 4 classes apart, but the data has 10"),
    ],
)
def test_cards_that_do_not_suit_the_data(
    card_file: Path, shape: tuple[int, int, int], classes: int, message: str
) -> None:
    """Other channels, another size or more classes are told apart before any work."""
    with pytest.raises(SpecError, match=message):
        load_classifier(str(card_file), shape=shape, classes=classes)


@pytest.mark.parametrize(
    ("name", "channels", "classes"), [("resnet18", 1, 10), ("squeezenet1_1", 3, 7), ("regnet_y_400mf", 1, 5)]
)
def test_torchvision_with_weights(tmp_path: Path, name: str, channels: int, classes: int) -> None:
    """Channels and classes are those of the checkpoint; images of 3 channels are normalised as for ImageNet."""
    net = build_network(f"torchvision:{name}", channels=channels, classes=classes).eval()
    torch.save(net.state_dict(), tmp_path / "a.pt")
    classifier = load_classifier(f"torchvision:{name}", weights=str(tmp_path / "a.pt"))
    x = torch.rand(2, channels, 40, 40)
    assert (channels, classes) == (classifier.card.channels, classifier.card.classes)
    assert (0.485, 0.456, 0.406)[: 3 * (channels == 3)] == classifier.card.mean
    seen = x
    if channels == 3:
        seen = torchvision.transforms.functional.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(classifier(x), net(seen))
    assert check_classifier(classifier, x) == []


def test_torchvision_refuses_weights_of_another_network(tmp_path: Path) -> None:
    """The first differing keys are named."""
    torch.save(make_convnet().state_dict(), tmp_path / "a.pt")
    with pytest.raises(ArtifactError, match=r"a.pt do not fit torchvision:resnet18: first missing key 'conv1.weight'"):
        load_classifier("torchvision:resnet18", weights=tmp_path / "a.pt")


def test_torchvision_without_weights_or_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is cached and nothing can be downloaded, --weights is asked for; a wrong name is told first."""
    state = torchvision.models._api.WeightsEnum

    def fail(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(state, "get_state_dict", fail)
    with pytest.raises(ArtifactError, match=r"torchvision:alexnet needs --weights FILE: .*URLError: .*not known"):
        load_classifier("torchvision:alexnet")
    with pytest.raises(SpecError, match="unknown torchvision model 'alexnt'; did you mean 'alexnet'"):
        load_classifier("torchvision:alexnt")


def test_torchvision_with_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached weights bring ImageNet's class names and the normalisation that they were trained with."""
    net = build_network("torchvision:squeezenet1_1").eval()
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", lambda *_, **__: net.state_dict())
    classifier = load_classifier("torchvision:squeezenet1_1", shape=(3, 64, 64), classes=1000)
    assert (0.485, 0.456, 0.406) == classifier.card.mean
    assert classifier.card.class_names[0] == "tench"
    assert state_sha256(net.state_dict()) == classifier.weights_sha256


def test_missing_card_file() -> None:
    """A name ending in .json is a file."""
    with pytest.raises(ArtifactError, match=r"card none\.json cannot be read: .*No such file"):
        load_classifier("none.json")


def test_modules_are_copied() -> None:
    """The caller's module keeps its mode and its gradients; the classifier has neither."""
    net = make_convnet().train().requires_grad_(requires_grad=True)
    classifier = user(net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert classifier.was_training
    assert not classifier.network.training


def test_modules_that_cannot_be_copied_are_used() -> None:
    """A module that holds a generator, say, works all the same."""
    net = make_linear()
    vars(net)["stream"] = (k for k in range(3))
    assert user(net).network is net
    net.train()
    with pytest.raises(SpecError, match=r"Linear is in training mode, and no copy can be made .*call \.eval\(\)"):
        check_classifier(user(net), X, Y)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda x: (x.flatten(1), x), r"must return logits of shape \(4, K\) for 4 images, got a tuple"),
        (lambda x: x, r"floating point, got shape \(4, 1, 8, 8\) of torch.float32"),
        (lambda x: x.flatten(1)[:2], r"got shape \(2, 64\)"),
        (lambda x: x.flatten(1).argmax(1), r"got shape \(4,\) of torch.int64"),
        (lambda x: x.flatten(1).long(), r"got shape \(4, 64\) of torch.int64"),
        (
            lambda x: x.sum((1, 2, 3))[:, None],
            r"each class of the data, got shape \(4, 1\); for two classes return \(B, 2\) logits",
        ),
        (lambda x: x.flatten(1).index_fill(0, torch.tensor([2]), torch.nan), "NaN or infinite logits, first in row 2"),
        (lambda x: x.flatten(1) / 0, "NaN or infinite logits, first in row 0"),
        (lambda x: x.flatten(1)[:, :3], r"label 3 of example 3 is not in 0 \.\. 2: Answer has 3 classes"),
        (lambda x: x @ torch.ones(3, 3), r"Answer raised RuntimeError on a batch of shape \(4, 1, 8, 8\), values in"),
    ],
)
def test_answers_that_are_not_logits(answer: Callable[[Tensor], Any], message: str) -> None:
    """What came instead of finite (B, K) logits is said."""
    with pytest.raises(SpecError, match=message):
        check_classifier(user(Answer(answer)), X, Y)


def test_card_and_images_must_agree(card_file: Path) -> None:
    """Images of another size or channel count, negative labels and other logits than the card says are refused."""
    classifier = load_classifier(str(card_file))
    with pytest.raises(SpecError, match="takes images of 1 channels, the data has 3"):
        check_classifier(classifier, torch.rand(2, 3, 8, 8))
    with pytest.raises(SpecError, match="takes images of 8 x 8 pixels, the data has 9 x 8"):
        check_classifier(classifier, torch.rand(2, 1, 9, 8))
    with pytest.raises(SpecError, match=r"label -1 of example 9 is not in 0 \.\. 3"):
        check_classifier(classifier, X, torch.tensor([0] * 9 + [-1]))
    card = Card(name="ten", title="ten", architecture="linear", classes=10)
    with pytest.raises(SpecError, match="ten returned 4 logits an image, its card says 10 classes"):
        check_classifier(Classifier(make_linear(), card), X)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Dropout(0.1)),
        nn.Sequential(make_convnet(), nn.BatchNorm1d(4)),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64).train(), nn.Linear(64, 4).eval()),
    ],
    ids=["dropout", "batch-norm", "one layer"],
)
def test_training_mode_that_matters_is_refused(net: nn.Module) -> None:
    """A module handed over in training mode is refused when that changes its answers; it is left as it was."""
    before = state_sha256(net.state_dict())
    classifier = user(net.train())
    with (
        assert_global_rng_untouched(),
        pytest.raises(SpecError, match=r"in training mode, in which.*call \.eval\(\) on"),
    ):
        check_classifier(classifier, X, Y)
    assert before == state_sha256(net.state_dict()) == state_sha256(classifier.network.state_dict())
    assert check_classifier(user(net.eval()), X, Y) == []


def test_training_mode_that_fails_is_refused() -> None:
    """Batch norm cannot train on one row: that is told as the mode it is."""
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    with pytest.raises(SpecError, match=r"in training mode, and fails in it: call \.eval\(\)"):
        check_classifier(user(net), X[:1])


def test_training_mode_that_changes_nothing_is_accepted() -> None:
    """A network without dropout or batch norm is quietly set to eval."""
    assert check_classifier(user(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).train()), X, Y) == []


def test_probabilities_are_flagged() -> None:
    """Outputs that lie in [0, 1] and sum to 1 raise the flag; logits that do one of both do not."""
    linear = make_linear()
    assert check_classifier(user(nn.Sequential(linear, nn.Softmax(1))), X, Y) == ["probabilities"]
    assert check_classifier(user(nn.Sequential(linear, nn.Sigmoid())), X, Y) == []
    assert check_classifier(user(Answer(lambda x: x.flatten(1) - x.flatten(1).mean(1, True) + 1 / 64)), X, Y) == []
    assert check_classifier(user(nn.Sequential(linear, nn.LogSoftmax(1))), X, Y) == []


def test_stochastic_classifiers_get_their_rng() -> None:
    """The second argument is handed on."""

    class Noisy(Classifier):
        stochastic = True

        def forward(self, x: Tensor, rng: Tensor | None = None) -> Tensor:
            assert rng is not None
            return super().forward(x) + rng

    noisy = Noisy(make_linear(), Card(name="noisy", title="noisy", architecture="linear"))
    assert check_classifier(noisy, X, Y, rng=torch.zeros(4)) == []
    with pytest.raises(SpecError, match="noisy raised AssertionError"):
        check_classifier(noisy, X, Y)
