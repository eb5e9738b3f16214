from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from robustgen.classifier import check_classifier
from robustgen.classifiers import load_classifier
from robustgen.errors import ArtifactError, SpecError

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3])


def write_python(folder: Path, text: str, name: str = "mine.py") -> Path:
    """A file of Python that begins with the import of torch's modules."""
    (folder / name).write_text(f"import torch\nfrom torch import nn\n{text}\n")
    return folder / name


def test_python_file_and_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function is found in a file, whose neighbours it may import, and in a module of the current folder."""
    write_python(tmp_path, "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))", "neighbour_net.py")
    path = write_python(tmp_path, "import neighbour_net\ndef make():\n    return neighbour_net.net().eval()")
    classifier = load_classifier(f"python:{path}:make")
    assert ("mine.make", "user", f"python:{path}:make") == (
        classifier.card.name,
        classifier.card.kind,
        classifier.card.source,
    )
    assert classifier.card.mean == ()
    assert check_classifier(classifier, X, Y) == []
    monkeypatch.chdir(tmp_path)
    assert load_classifier("python:neighbour_net:net").card.name == "neighbour_net.net"
    assert load_classifier("python:mine.py:make").card.name == "mine.make"


def test_python_returns_a_classifier_as_it_is(tmp_path: Path) -> None:
    """A function that knows its card keeps it."""
    text = (
        "from robustgen.cards import Card\nfrom robustgen.classifiers import Classifier\n"
        "def make():\n    card = Card(name='own', title='own', architecture='own', mean=(0.5,), std=(0.5,))\n"
        "    return Classifier(nn.Flatten(), card)"
    )
    assert load_classifier(f"python:{write_python(tmp_path, text)}:make").card.name == "own"


def test_python_takes_weights(tmp_path: Path) -> None:
    """--weights fills the module of the function, and refuses what does not fit it."""
    path = write_python(tmp_path, "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).eval()")
    state = {"1.weight": torch.ones(4, 64), "1.bias": torch.zeros(4)}
    save_file(state, tmp_path / "a.safetensors")
    classifier = load_classifier(f"python:{path}:make", weights=tmp_path / "a.safetensors")
    torch.testing.assert_close(classifier(X)[:, 0], X.sum((1, 2, 3)))
    save_file({"1.weight": torch.ones(4, 64)}, tmp_path / "b.safetensors")
    with pytest.raises(ArtifactError, match=r"b\.safetensors do not fit Sequential: first missing key '1.bias'"):
        load_classifier(f"python:{path}:make", weights=tmp_path / "b.safetensors")


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("", "make", "unknown function in .*mine.py: 'make'"),
        ("def maker():\n    pass", "make", "unknown function in .*mine.py: 'make'; did you mean 'maker'"),
        ("make = 3", "make", "make is a int; expected a function without arguments"),
        ("def make():\n    return 3", "make", "the function must return a torch.nn.Module, got int"),
        ("def make():\n    raise KeyError('no such layer')", "make", r"make\(\) raised KeyError: 'no such layer'"),
        ("def make(size):\n    pass", "make", r"make\(\) raised TypeError: .*missing 1 required positional argument"),
        ("def make():\n    raise SystemExit(3)", "make", r"make\(\) raised SystemExit: 3"),
        ("raise ValueError('first\\nsecond')", "make", "importing it raised ValueError: first"),
        ("def make(:", "make", "importing it raised SyntaxError"),
        (
            "import no_such_package",
            "make",
            "importing it raised ModuleNotFoundError: No module named 'no_such_package'",
        ),
    ],
)
def test_python_functions_that_fail(tmp_path: Path, text: str, function: str, message: str) -> None:
    """What is missing, or what the user's code raised, is said in one sentence."""
    path = write_python(tmp_path, text)
    with pytest.raises(SpecError, match=message) as caught:
        load_classifier(f"python:{path}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("python:mine.py", "must be python:MODULE:FUNCTION or python:FILE.py:FUNCTION"),
        ("python::make", "must be python:MODULE:FUNCTION"),
        ("python:no/such/file.py:make", "python:no/such/file.py: there is no such file"),
        ("python:no_such_module:make", "there is no module 'no_such_module' here; for a file write"),
        ("python:json.nothing:make", "there is no module 'json.nothing' here"),
    ],
)
def test_python_specs_that_lead_nowhere(spec: str, message: str) -> None:
    """A spec without function, file or module behind it is refused."""
    with pytest.raises(SpecError, match=message):
        load_classifier(spec)


def test_training_mode_in_a_function_names_it(tmp_path: Path) -> None:
    """The advice names the user's function."""
    path = write_python(tmp_path, "def make():\n    return nn.Sequential(nn.Flatten(), nn.Dropout())")
    classifier = load_classifier(f"python:{path}:make")
    with pytest.raises(SpecError, match=r"call \.eval\(\) in make before returning it"):
        check_classifier(classifier, X, Y)
