"""Files that users get wrong: networks, images, weights, cards, plans and run folders, most of them bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from robustgen.prepare import prepare
from robustgen.request import Request

MODELS = '''
import torch
from torch import nn

class Answer(nn.Module):
    """Does to the logits of a linear layer whatever is asked."""
    def __init__(self, change):
        super().__init__()
        self.layer, self.change = nn.Linear(64, 4), change
    def forward(self, x):
        return self.change(self.layer(x.flatten(1)))

def build(change=lambda z: z, mode=False):
    torch.manual_seed(0)
    return Answer(change).train(mode)

def linear(): return build()
def flat(): return build(lambda z: z[:, 0])
def images(): return build(lambda z: z[:, :, None, None])
def half_batch(): return build(lambda z: z[: len(z) // 2])
def pair(): return build(lambda z: (z, z))
def classes(): return build(lambda z: z.argmax(1, keepdim=True))
def two_classes(): return build(lambda z: z[:, :2])
def one_class(): return build(lambda z: z[:, :1])
def no_class(): return build(lambda z: z[:, :0])
def nan(): return build(lambda z: z * torch.nan)
def infinite(): return build(lambda z: z / 0)
def nothing(): return None
def number(): return 3
def kind(): return nn.Linear
def raises(): raise RuntimeError("no such\\nlayer")
def leaves(): raise SystemExit(3)
def asks(size): return build()
def dropout(): return nn.Sequential(build(), nn.Dropout(0.5)).train()
def batch_norm(): return nn.Sequential(nn.BatchNorm2d(1), build()).train()
def colour(): return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten()).eval()
def probabilities(): return build(lambda z: z.softmax(1))
constant = 3
'''


def _write_models(folder: Path) -> None:
    (folder / "models.py").write_text(MODELS, encoding="utf-8")
    (folder / "syntax.py").write_text("def make(:\n", encoding="utf-8")
    (folder / "imports.py").write_text("import no_such_package\n", encoding="utf-8")
    (folder / "empty.txt").write_text("\n", encoding="utf-8")
    (folder / "words.txt").write_text("1\nthree\n", encoding="utf-8")


def _write_npz(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    y = np.arange(40) % 4
    sets: dict[str, dict[str, Any]] = {
        "good": {"image": x, "label": y},
        "no-label": {"image": x, "labels": y},
        "float": {"image": x / 255, "label": y},
        "nan": {"image": x * np.nan, "label": y},
        "length": {"image": x, "label": y[:-1]},
        "one-hot": {"image": x, "label": np.eye(4, dtype=np.int64)[y]},
        "negative": {"image": x, "label": y - 1},
        "real-label": {"image": x, "label": y.astype(float)},
        "none": {"image": x[:0], "label": y[:0]},
        "nchw": {"image": x.transpose(0, 3, 1, 2), "label": y},
        "flat": {"image": x.reshape(40, 64), "label": y},
        "objects": {"image": np.array([x, None], dtype=object), "label": y},
        "many-classes": {"image": x, "label": y + 2},
        "rgb": {"image": x.repeat(3, axis=3), "label": y},
    }
    for name, arrays in sets.items():
        np.savez(folder / f"{name}.npz", **arrays)
    np.save(folder / "bare.npy", x)
    (folder / "bare.npy").rename(folder / "bare.npz")
    (folder / "truncated.npz").write_bytes((folder / "good.npz").read_bytes()[:900])
    (folder / "bad-data" / "cifar10").mkdir(parents=True)
    (folder / "bad-data" / "cifar10" / "test.npz").write_bytes(b"PK")


def _write_folders(folder: Path) -> None:
    def image(path: str, size: int, mode: str = "L") -> None:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (size, size)).save(folder / path)

    (folder / "empty").mkdir()
    image("empty-class/a/0.png", 8)
    (folder / "empty-class" / "b").mkdir()
    image("odd/a/0.png", 8)
    image("odd/b/0.png", 9)
    image("broken-image/a/0.png", 8)
    (folder / "broken-image" / "a" / "1.png").write_bytes(b"no image")
    image("deep-image/a/0.png", 8, "I;16")


class _Code:
    """What unpickles by running a command."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (print, ("this must never run",))


def _write_weights(folder: Path) -> None:
    state = nn.Linear(64, 4).state_dict()
    good = {f"layer.{key}": value for key, value in state.items()}
    torch.save(good, folder / "good.pt")
    torch.save([1, 2, 3], folder / "numbers.pt")
    torch.save({"layer.weight": _Code()}, folder / "code.pt")
    (folder / "truncated.pt").write_bytes((folder / "good.pt").read_bytes()[:700])
    save_file(good, folder / "good.safetensors")
    save_file(state, folder / "other.safetensors")
    save_file({**good, "layer.weight": torch.zeros(5, 64)}, folder / "shape.safetensors")
    (folder / "truncated.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:-40])
    (folder / "empty.safetensors").touch()


def _write_cards(folder: Path) -> None:
    card = {
        "name": "mine", "title": "mine", "architecture": "small-resnet", "channels": 1, "classes": 4, "kind": "user",
        "options": {"widths": [4], "depths": [1], "channels": 1, "classes": 4},
    }  # fmt: skip
    cards: dict[str, Any] = {
        "list": [card],
        "card-typo": {**card, "titles": "mine"},
        "card-short": {key: value for key, value in card.items() if key != "architecture"},
        "card-kind": {**card, "classes": "four"},
        "card-network": {**card, "architecture": "small-resnt"},
        "card-option": {**card, "options": {"width": [4]}},
        "card-bare": card,
        "card-missing": {**card, "weights": "missing.safetensors"},
        "card-sum": {**card, "weights": "good.safetensors", "sha256": 64 * "0"},
    }
    for name, content in cards.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")


def _write_toml(folder: Path) -> None:
    suite = 'name = "s"\ndescription = ""\ndata = "fmnist-test-1k"\nids = "0"\nthreat = "linf:0.1"\nplan = "rapid"\n'
    files = {
        "broken": "name = ",
        "idle": 'name = "idle"',
        "nameless": "[[attacks]]\nsteps = 3",
        "typo": '[[attacks]]\nname = "pgdd"',
        "number": "[[attacks]]\nname = 3",
        "version": 'version = "one"\n[[attacks]]\nname = "pgd"',
        "steps": '[[attacks]]\nname = "pgd"\nsteps = [3]',
        "suite-typo": suite + "version = 1\nseed = 0\nthreats = 1",
        "suite-kind": suite + 'version = 1\nseed = "0"',
    }
    for name, content in files.items():
        (folder / f"{name}.toml").write_text(content, encoding="utf-8")
    (folder / "binary.toml").write_bytes(b"\xff\xfe\x00")
    (folder / "folder.toml").mkdir()


def _write_runs(folder: Path) -> None:
    """The folder of a run that was left before its first example, and one that nobody can read."""
    request = Request(classifier=f"python:{folder}/models.py:linear", data=f"npz:{folder}/good.npz", threat="linf:0.1")
    spec = json.dumps(asdict(prepare(request).spec))
    for name, content in {"other-run": spec, "strange-run": "{"}.items():
        (folder / name).mkdir()
        (folder / name / "spec.json").write_text(content, encoding="utf-8")


def write_bad_files(folder: Path) -> None:
    """Fill a folder with bad files, and with good ones to go with them: models.py, good.npz, good.safetensors."""
    for write in (_write_models, _write_npz, _write_folders, _write_weights, _write_cards, _write_toml, _write_runs):
        write(folder)
