from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from robustgen.cards import Card, bundled_cards
from robustgen.errors import ArtifactError, SpecError

FIGURE = {"metric": "robust_accuracy", "value": 0.73, "n": 300, "protocol": "AutoAttack standard", "date": "2025-01-01"}


def content(**changes: Any) -> dict[str, Any]:
    """A complete card as JSON has it, with some fields changed."""
    return {
        "name": "toy",
        "title": "A toy",
        "architecture": "small-resnet",
        "options": {"widths": [8], "depths": [1]},
        "weights": "toy.safetensors",
        "sha256": "0" * 64,
        "mean": [0.5],
        "std": [0.25],
        "channels": 1,
        "size": [28, 28],
        "classes": 2,
        "class_names": ["a", "b"],
        "threat": "linf:8/255",
        "kind": "robust",
        "figures": [FIGURE],
        **changes,
    }


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    """A saved card is read back equal, and the file is sorted, indented and ends with a line."""
    card = Card(**content())
    card.save(tmp_path / "toy.json")
    text = (tmp_path / "toy.json").read_text()
    assert Card.load(tmp_path / "toy.json") == card
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"
    assert card.size == (28, 28)
    assert card.mean == (0.5,)


def test_bundled_cards_are_valid() -> None:
    """Every card of the zoo can be read, bears the name of its file and has its weights beside it."""
    for name, path in bundled_cards().items():
        card = Card.load(path)
        assert name == card.name
        assert card.weights is not None
        assert (path.parent / card.weights).is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nam": "x"}, "unknown field in card .*toy.json: 'nam'; did you mean 'name'"),
        ({"name": None}, "lacks the field 'name'"),
        ({"classes": None}, "lacks the field 'classes'"),
        ({"name": 3}, "name must be a text that is not empty, got 3"),
        ({"title": " "}, "title must be a text that is not empty"),
        ({"description": 3}, "description must be a text"),
        ({"options": [1]}, "options must be an object"),
        ({"weights": ""}, "weights must be a file name or null"),
        ({"sha256": "abc"}, "sha256 must be 64 lower-case hexadecimal digits or null, got 'abc'"),
        ({"mean": 0.5}, "mean must be a list of numbers, one a channel, got 0.5"),
        ({"mean": ["0.5"]}, "mean must be a list of numbers"),
        ({"std": [0]}, "std must be a list of numbers above 0"),
        ({"mean": [0.5, 0.5]}, "mean and std need one number a channel each, got 2 and 1"),
        ({"mean": [0.5] * 3, "std": [0.5] * 3}, "mean has 3 numbers for 1 channels"),
        ({"channels": True}, "channels must be a whole number >= 1, got True"),
        ({"size": [28]}, r"size must be \[height, width\] or null"),
        ({"size": [28, 0]}, r"size must be \[height, width\] or null"),
        ({"classes": 0}, "classes must be a whole number >= 1, got 0"),
        ({"class_names": "ab"}, "class_names must be a list of texts"),
        ({"class_names": ["a"]}, "class_names has 1 names for 2 classes"),
        ({"licence": 1}, "licence must be a text or null"),
        ({"threat": "8/255"}, "threat must be a threat model such as 'linf:8/255' or null"),
        ({"kind": "good"}, "kind must be one of standard, robust, decoy, user, got 'good'"),
        ({"kind": []}, "kind must be one of"),
        ({"figures": {"value": 1}}, "figures must be a list of objects"),
        ({"figures": [{**FIGURE, "value": None}]}, r"figures\[0\]: value must be a number, got None"),
        ({"figures": [FIGURE, {"metric": "a", "value": 1, "n": 1}]}, r"figures\[1\] lacks the field 'protocol'"),
    ],
)
def test_wrong_cards_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """The message names the file, the field, what was expected and what came."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(content(**changes)))
    with pytest.raises(SpecError, match=message) as caught:
        Card.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", '{"name": '])
def test_unreadable_cards_are_refused(tmp_path: Path, text: str | None) -> None:
    """A missing file and broken JSON are errors of the file."""
    path = tmp_path / "toy.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ArtifactError, match=r"card .*toy\.json cannot be read"):
        Card.load(path)


def test_a_card_is_one_object(tmp_path: Path) -> None:
    """JSON of another form is refused."""
    (tmp_path / "toy.json").write_text("[1]")
    with pytest.raises(SpecError, match="must be one JSON object, got list"):
        Card.load(tmp_path / "toy.json")
