"""Bad input: one clear sentence that says what to type, exit code 2, no traceback, nothing left on the disk."""

from __future__ import annotations

import io
import json
import pickle
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import robustgen
from robustgen import journal
from robustgen.cli import _run
from robustgen.errors import RobustgenError
from tests.helpers import make_linear

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


class Bad(NamedTuple):
    """A command line and what its error must say; {in} is the folder of inputs, a leading + stands for a good eval."""

    typed: str
    says: str


EVAL = "eval python:{in}/models.py:linear --data npz:{in}/good.npz --threat linf:0.1"

COMMANDS = [
    Bad("evaluate", "Did you mean"),
    Bad("eval --treat linf:0.1", "--threat"),
    Bad("eval --bogus 1", "No such option"),
    Bad("eval fmnist-at extra", "unexpected extra argument"),
    Bad("+ --n", "requires an argument"),
    Bad("+ --n ten", "--n"),
    Bad("+ --seed 1.5", "--seed"),
    Bad("list", "Missing argument"),
    Bad("list attack", "did you mean 'attacks'"),
    Bad("list everything", "known: attacks, classifiers"),
    Bad("show apgd-tt", "did you mean 'apgd-t'"),
    Bad("show zzzzzz", "robustgen list"),
    Bad("train fmnist-att", "did you mean 'fmnist-at'"),
    Bad("train missing.toml", "missing.toml"),
    Bad("train fmnist-at --budget soon", "30m"),
]
THREATS = [
    Bad("+ --threat linf:0", "positive"),
    Bad("+ --threat linf:-8/255", "positive"),
    Bad("+ --threat linf:nan", "must be a number"),
    Bad("+ --threat linf:inf", "must be a number"),
    Bad("+ --threat linf:1e999", "type for example linf:8/255"),
    Bad("+ --threat linf:eight", "must be a number such as 8/255"),
    Bad("+ --threat linf:8", "did you mean linf:8/255"),
    Bad("+ --threat linf:8/0", "divides by zero"),
    Bad("+ --threat linf", "linf:8/255"),
    Bad("+ --threat linf:", "linf:8/255"),
    Bad("+ --threat 0.1", "reads like linf:8/255"),
    Bad("+ --threat ''", "reads like linf:8/255"),
    Bad("+ --threat lnf:0.1", "did you mean 'linf'"),
    Bad("+ --threat l3:0.1", "did you mean 'l"),
    Bad("eval python:{in}/models.py:linear --data npz:{in}/good.npz", "--threat linf:8/255"),
]
PLANS = [
    Bad("+ --attacks pgb", "did you mean 'pgd'"),
    Bad("+ --attacks zzzz", "robustgen list attacks"),
    Bad("+ --attacks ''", "robustgen list attacks"),
    Bad("+ --attacks ,", "robustgen list attacks"),
    Bad("+ --attacks fgsm,apgd", "apgd"),
    Bad("+ --attacks pgd:step=20", "did you mean 'steps'"),
    Bad("+ --attacks pgd:steps", "pgd:steps=20"),
    Bad("+ --attacks pgd:steps=", "steps must be an integer"),
    Bad("+ --attacks pgd:steps=2.5", "steps must be an integer"),
    Bad("+ --attacks pgd:steps=many", "steps must be an integer"),
    Bad("+ --attacks pgd:steps=inf", "steps must be an integer"),
    Bad("+ --attacks pgd:steps=0", "steps and restarts must be >= 1"),
    Bad("+ --attacks pgd:restarts=-1", "steps and restarts must be >= 1"),
    Bad("+ --attacks pgd:rel_step=nan", "rel_step must be positive"),
    Bad("+ --attacks pgd:rel_step=inf", "rel_step must be"),
    Bad("+ --attacks pgd:loss=cee", "did you mean 'ce'"),
    Bad("+ --attacks fgsm:steps=3", "parameter of fgsm 'steps'"),
    Bad("+ --attacks square:p_init=2", "(0, 1]"),
    Bad("+ --attacks square --threat l1:1", "--attacks pgd"),
    Bad("+ --attacks apgd-ce --threat l1:1", "--attacks pgd"),
    Bad("+ --plan quik", "did you mean 'quick'"),
    Bad("+ --plan thorough", "robustgen list plans"),
    Bad("+ --plan quick --attacks pgd", "exclude each other"),
    Bad("+ --plan missing.toml", "no file missing.toml"),
    Bad("+ --plan {in}/folder.toml", "folder.toml"),
    Bad("+ --plan {in}/broken.toml", "not valid TOML"),
    Bad("+ --plan {in}/binary.toml", "not valid TOML"),
    Bad("+ --plan {in}/idle.toml", "[[attacks]]"),
    Bad("+ --plan {in}/nameless.toml", "[[attacks]]"),
    Bad("+ --plan {in}/typo.toml", "did you mean 'pgd'"),
    Bad("+ --plan {in}/number.toml", "attack"),
    Bad("+ --plan {in}/version.toml", "version"),
    Bad("+ --plan {in}/steps.toml", "steps must be an integer"),
    Bad("eval --suite fmnist-lin", "did you mean 'fmnist-linf'"),
    Bad("eval --suite fmnist-linf --threat linf:0.2", "contradicts suite fmnist-linf"),
    Bad("eval --suite fmnist-linf --n 20", "--n 20"),
    Bad("eval --suite fmnist-linf --attacks pgd", "--attacks pgd"),
    Bad("eval --suite fmnist-linf --seed 1", "contradicts suite"),
    Bad("eval --suite missing.toml", "cannot be read"),
    Bad("eval --suite {in}/broken.toml", "not valid TOML"),
    Bad("eval --suite {in}/binary.toml", "not valid TOML"),
    Bad("eval --suite {in}/idle.toml", "lacks version"),
    Bad("eval --suite {in}/suite-typo.toml", "did you mean 'threat'"),
    Bad("eval --suite {in}/suite-kind.toml", "seed must be int"),
]
SELECTIONS = [
    Bad("+ --n 0", "--n must be >= 1"),
    Bad("+ --n -5", "--n must be >= 1"),
    Bad("+ --n 41", "has 40 examples"),
    Bad("+ --ids ''", "selects nothing"),
    Bad("+ --ids ,", "selects nothing"),
    Bad("+ --ids 40", "ids 0 to 39"),
    Bad("+ --ids 30-99", "ids 0 to 39"),
    Bad("+ --ids 5-2", "write 2-5"),
    Bad("+ --ids 3,1-5", "names example 3 twice"),
    Bad("+ --ids=-3", "neither an id"),
    Bad("+ --ids 1-2-3", "neither an id"),
    Bad("+ --ids missing.txt", "nor a file"),
    Bad("+ --ids {in}/empty.txt", "selects nothing"),
    Bad("+ --ids {in}/words.txt", "'three' is neither an id"),
    Bad("+ --ids {in}", "cannot be read"),
    Bad("+ --ids 0-3 --n 9", "selects 4 examples"),
    Bad("+ --seed -1", "seed"),
    Bad("+ --seed 99999999999999999999999999", "seed"),
    Bad("+ --batch-size 0", "--batch-size must be >= 1"),
    Bad("+ --batch-size -3", "--batch-size must be >= 1"),
    Bad("+ --precision bfloat16", "auto or float32"),
    Bad("+ --device gpu", "auto, cpu, cuda or mps"),
    Bad("+ --device cuda", "--device auto"),
]
DATA = [
    Bad("+ --data fmnist-test-1", "did you mean 'fmnist-test-1k'"),
    Bad("+ --data imagenet", "robustgen list data"),
    Bad("+ --data npz:missing.npz", "no such file"),
    Bad("+ --data npz:{in}", "cannot be read"),
    Bad("+ --data npz:{in}/no-label.npz", "lacks the array 'label'"),
    Bad("+ --data npz:{in}/float.npz", "must be uint8"),
    Bad("+ --data npz:{in}/nan.npz", "must be uint8"),
    Bad("+ --data npz:{in}/length.npz", "40 images, but 39 labels"),
    Bad("+ --data npz:{in}/one-hot.npz", "argmax(1)"),
    Bad("+ --data npz:{in}/negative.npz", "negative"),
    Bad("+ --data npz:{in}/real-label.npz", "whole numbers"),
    Bad("+ --data npz:{in}/none.npz", "holds no images"),
    Bad("+ --data npz:{in}/nchw.npz", "transpose(0, 2, 3, 1)"),
    Bad("+ --data npz:{in}/flat.npz", "(N, H, W, C)"),
    Bad("+ --data npz:{in}/bare.npz", "np.savez"),
    Bad("+ --data npz:{in}/objects.npz", "plain arrays"),
    Bad("+ --data npz:{in}/truncated.npz", "cannot be read"),
    Bad("+ --data npz:{in}/words.txt", "cannot be read"),
    Bad("+ --data npz:{in}/many-classes.npz", "is not in 0 .. 3"),
    Bad("+ --data folder:missing", "no such folder"),
    Bad("+ --data folder:{in}/good.npz", "no such folder"),
    Bad("+ --data folder:{in}/empty", "one sub-folder a class"),
    Bad("+ --data folder:{in}/empty-class", "has no images"),
    Bad("+ --data folder:{in}/odd", "resize or crop"),
    Bad("+ --data folder:{in}/broken-image", "repair or remove it"),
    Bad("+ --data folder:{in}/deep-image", "convert it to 8 bits"),
    Bad("+ --data cifar10 --data-dir {in}/bad-data", "cifar10"),
]
CLASSIFIERS = [
    Bad("eval fmnist-aat", "did you mean 'fmnist-at'"),
    Bad("eval ''", "torchvision:NAME"),
    Bad("eval torchvision:resnet81 --data npz:{in}/rgb.npz --threat linf:0.1", "resnet"),
    Bad("eval python:", "python:FILE.py:FUNCTION"),
    Bad("eval python:{in}/models.py", "python:FILE.py:FUNCTION"),
    Bad("eval python:missing.py:make", "no such file"),
    Bad("eval python:no_such_module:make", "python:FILE.py:FUNCTION"),
    Bad("eval python:{in}/models.py:liner", "did you mean 'linear'"),
    Bad("eval python:{in}/models.py:constant", "function without arguments"),
    Bad("eval python:{in}/models.py:raises", "RuntimeError: no such"),
    Bad("eval python:{in}/models.py:leaves", "SystemExit"),
    Bad("eval python:{in}/models.py:asks", "TypeError"),
    Bad("eval python:{in}/models.py:number", "must return a torch.nn.Module"),
    Bad("eval python:{in}/models.py:nothing", "must return a torch.nn.Module"),
    Bad("eval python:{in}/models.py:kind", "must return a torch.nn.Module"),
    Bad("eval python:{in}/syntax.py:make", "SyntaxError"),
    Bad("eval python:{in}/imports.py:make", "no_such_package"),
    Bad("@flat", "logits of shape"),
    Bad("@images", "logits of shape"),
    Bad("@half_batch", "logits of shape"),
    Bad("@pair", "return the tensor of logits only"),
    Bad("@classes", "floating point"),
    Bad("@two_classes", "is not in 0 .. 1"),
    Bad("@one_class", "(B, 2) logits"),
    Bad("@no_class", "logits of shape"),
    Bad("@nan", "NaN or infinite logits"),
    Bad("@infinite", "NaN or infinite logits"),
    Bad("@dropout", "call .eval()"),
    Bad("@batch_norm", "call .eval()"),
    Bad("@colour", "raised RuntimeError"),
]
FILES = [
    Bad("+ --weights missing.safetensors", "no such file"),
    Bad("+ --weights {in}", ".safetensors, .pt or .pth"),
    Bad("+ --weights {in}/words.txt", ".safetensors, .pt or .pth"),
    Bad("+ --weights {in}/code.pt", "code"),
    Bad("+ --weights {in}/truncated.pt", "truncated.pt"),
    Bad("+ --weights {in}/truncated.safetensors", "truncated"),
    Bad("+ --weights {in}/empty.safetensors", "truncated"),
    Bad("+ --weights {in}/numbers.pt", "numbers.pt"),
    Bad("+ --weights {in}/other.safetensors", "first missing key 'layer.weight'"),
    Bad("+ --weights {in}/shape.safetensors", "first shape difference 'layer.weight'"),
    Bad("eval missing.json", "cannot be read"),
    Bad("eval {in}/broken.json", "cannot be read"),
    Bad("eval {in}/list.json", "one JSON object"),
    Bad("eval {in}/card-typo.json", "did you mean 'title'"),
    Bad("eval {in}/card-short.json", "lacks the field"),
    Bad("eval {in}/card-kind.json", "classes must be"),
    Bad("eval {in}/card-network.json", "small-resnet"),
    Bad("eval {in}/card-option.json", "widthes"),
    Bad("eval {in}/card-bare.json", "--weights FILE"),
    Bad("eval {in}/card-missing.json", "no such file"),
    Bad("eval {in}/card-sum.json", "sha256"),
    Bad("+ --out {in}/good.npz", "is a file"),
    Bad("+ --out {in}/good.npz/below", "cannot be written"),
    Bad("+ --out /proc/robustgen", "cannot be written"),
    Bad("+ --out {in}", "holds no run"),
    Bad("+ --out {in}/other-run --seed 1", "seed: 1 / 0"),
    Bad("+ --out {in}/other-run --threat linf:0.2", "threat: linf:0.2 / linf:0.1"),
    Bad("+ --out {in}/strange-run", "not valid JSON"),
    Bad("plot missing", "is not a run folder"),
    Bad("plot {in}", "is not a run folder"),
    Bad("plot {in}/other-run", "unfinished run"),
    Bad("plot {in}/other-run --device gpu", "auto, cpu, cuda or mps"),
    Bad("plot {in}/other-run --n 0", "--n must be >= 1"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files, most of them bad."""
    folder = tmp_path_factory.mktemp("inputs")
    for write in (_write_models, _write_npz, _write_folders, _write_weights, _write_cards, _write_toml, _write_runs):
        write(folder)
    return folder


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
        "card-typo": {**card, "titel": "mine"},
        "card-short": {key: value for key, value in card.items() if key != "architecture"},
        "card-kind": {**card, "classes": "four"},
        "card-network": {**card, "architecture": "small-resnt"},
        "card-option": {**card, "options": {"widthes": [4]}},
        "card-bare": card,
        "card-missing": {**card, "weights": "missing.safetensors"},
        "card-sum": {**card, "weights": "good.safetensors", "sha256": 64 * "0"},
    }
    for name, content in cards.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "broken.json").write_text("{", encoding="utf-8")


def _write_toml(folder: Path) -> None:
    suite = 'name = "s"\ndescription = ""\ndata = "fmnist-test-1k"\nids = "0"\nthreat = "linf:0.1"\nplan = "quick"\n'
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
    job_spec = _spec_of(folder)
    for name, content in {"other-run": json.dumps(job_spec), "strange-run": "{"}.items():
        (folder / name).mkdir()
        (folder / name / "spec.json").write_text(content, encoding="utf-8")


def _spec_of(folder: Path) -> dict[str, Any]:
    from dataclasses import asdict

    from robustgen.prepare import Request, prepare

    request = Request(
        classifier=f"python:{folder}/models.py:linear", data=f"npz:{folder}/good.npz", threat="linf:0.1"
    )
    return asdict(prepare(request).spec)


ALL = [*COMMANDS, *THREATS, *PLANS, *SELECTIONS, *DATA, *CLASSIFIERS, *FILES]


@pytest.mark.parametrize("bad", ALL, ids=[bad.typed.replace("{in}/", "") for bad in ALL])
def test_bad_input_is_one_sentence(
    bad: Bad, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused with exit code 2 and one line that says what is wrong or what to type; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = _files(inputs)
    typed = bad.typed
    if typed.startswith("@"):
        typed = EVAL.replace(":linear", f":{typed[1:]}")
    elif typed.startswith("+"):
        typed = EVAL + typed[1:]
    code = _run(shlex.split(typed.replace("{in}", str(inputs))))
    out, err = capsys.readouterr()
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, f"expected one line, got: {err}"
    assert err[-2] in ".?`])", f"not a sentence: {err}"
    assert "Traceback" not in err
    assert bad.says in err
    assert code == 2
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    assert _files(inputs) == before


def _files(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
