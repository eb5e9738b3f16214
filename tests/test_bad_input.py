"""Bad input: one clear sentence that says what to type, exit code 2, no traceback, nothing left on the disk."""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import robustgen
from robustgen import journal
from robustgen.attacks.fgsm import FGSM
from robustgen.cli import _run
from robustgen.errors import SpecError
from tests.bad_files import write_bad_files
from tests.helpers import make_images, make_linear


class Bad(NamedTuple):
    """A command line and what its error must say.

    {in} is the folder of inputs, a leading + stands for a good eval, and @NAME for one of that function in models.py.
    """

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
    Bad("+ --plan rapd", "did you mean 'rapid'"),
    Bad("+ --plan thorough", "robustgen list plans"),
    Bad("+ --plan rapid --attacks pgd", "exclude each other"),
    Bad("+ --plan rand", "gives the same answer each time; type --plan standard"),
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
    Bad("+ --precision bfloat17", "auto, float32 or another form"),
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
    Bad("eval {in}/card-option.json", "did you mean 'widths'"),
    Bad("eval {in}/card-bare.json", "--weights FILE"),
    Bad("eval {in}/card-missing.json", "no such file"),
    Bad("eval {in}/card-sum.json", "sha256"),
    Bad("+ --out {in}/good.npz", "is a file"),
    Bad("+ --out {in}/good.npz/below", "cannot be written"),
    Bad("+ --out /proc/robustgen", "name another folder"),
    Bad("+ --out {in}", "holds no run"),
    Bad("+ --out {in}/other-run --seed 1", "seed: 1 / 0"),
    Bad("+ --out {in}/other-run --threat linf:0.2", "threat: linf:0.2 / linf:0.1"),
    Bad("+ --out {in}/strange-run", "not valid JSON"),
    Bad("verify", "Missing argument"),
    Bad("verify missing", "is not a run folder"),
    Bad("verify {in}/other-run", "unfinished run"),
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
    write_bad_files(folder)
    return folder


def _arguments(typed: str, inputs: Path) -> list[str]:
    """A command line as written in the tables, ready to run."""
    if typed.startswith("@"):
        typed = EVAL.replace(":linear", f":{typed[1:]}")
    elif typed.startswith("+"):
        typed = EVAL + typed[1:]
    return shlex.split(typed.replace("{in}", str(inputs)))


ALL = [*COMMANDS, *THREATS, *PLANS, *SELECTIONS, *DATA, *CLASSIFIERS, *FILES]


@pytest.mark.parametrize("bad", ALL, ids=[bad.typed.replace("{in}/", "") for bad in ALL])
def test_bad_input_is_one_sentence(
    bad: Bad, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is refused with exit code 2 and one line that says what is wrong or what to type; nothing is written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = _files(inputs)
    code = _run(_arguments(bad.typed, inputs))
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


def test_attack_that_refuses_the_threat_is_asked_first(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even the last attack of a plan says what it cannot do before the first one has begun."""

    def refuse(*_: object) -> None:
        raise SpecError("fgsm: no l1; type --attacks pgd for an l1 threat.")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(FGSM, "init", refuse)
    assert _run([*_arguments("+", inputs), "--attacks", "pgd,fgsm"]) == 2
    assert capsys.readouterr() == ("", "error: fgsm: no l1; type --attacks pgd for an l1 threat.\n")
    assert list(tmp_path.iterdir()) == []


def test_probabilities_are_a_flag_and_no_error(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A classifier that returns probabilities is evaluated, and the reader is warned."""
    assert _run([*_arguments("@probabilities", inputs), "--attacks", "fgsm", "--out", f"{tmp_path}/run"]) == 0
    assert "FLAG probabilities: all outputs lie in [0, 1] and sum to 1" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "record.json").read_text())["flags"] == ["probabilities"]


def test_full_disk_is_refused_before_any_work(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too little room for the run is found out at the start."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=2**30, used=2**30, free=1000))
    assert _run(_arguments("+", inputs)) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "0 MiB free" in err
    assert "make room or name another folder" in err
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_fails_the_run(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No space in the middle: exit code 1, one sentence; with room again the same command ends well."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    command = [*_arguments("+ --attacks fgsm", inputs), "--out", str(tmp_path / "run")]
    with monkeypatch.context() as patch:
        patch.setattr(journal.Appender, "add", full)
        assert _run(command) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("error: no space left for")
    assert not (tmp_path / "run" / "record.json").exists()
    assert _run(command) == 0
    assert (tmp_path / "run" / "record.json").is_file()


def _python_calls() -> dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], str]]:
    """What goes wrong only from Python: name to a call with (model, images, labels) and what its error says."""
    evaluate, attack = robustgen.evaluate, robustgen.attack
    return {
        "0 to 255": (lambda m, x, y: evaluate(m, (255 * x, y), "linf:0.1"), "divide by 255"),
        "normalised": (lambda m, x, y: evaluate(m, (x - 0.5, y), "linf:0.1"), "undo the normalisation"),
        "nan": (lambda m, x, y: evaluate(m, (x * torch.nan, y), "linf:0.1"), "got NaN or infinite"),
        "infinite": (lambda m, x, y: evaluate(m, (x / 0, y), "linf:0.1"), "got NaN or infinite"),
        "no channels": (lambda m, x, y: evaluate(m, (x[:, 0], y), "linf:0.1"), r"give x\[:, None\]"),
        "integers": (lambda m, x, y: evaluate(m, (x.long(), y), "linf:0.1"), "floating point in"),
        "real labels": (lambda m, x, y: evaluate(m, (x, y.float()), "linf:0.1"), "whole numbers"),
        "few labels": (lambda m, x, y: evaluate(m, (x, y[:-1]), "linf:0.1"), "8 images, but 7 labels"),
        "large label": (lambda m, x, y: evaluate(m, (x, y + 4), "linf:0.1"), "is not in 0 .. 3"),
        "negative label": (lambda m, x, y: evaluate(m, (x, y - 9), "linf:0.1"), "classes count from 0"),
        "no images": (lambda m, x, y: evaluate(m, (x[:0], y[:0]), "linf:0.1"), "holds no images"),
        "NumPy": (lambda m, x, y: evaluate(m, (x.numpy(), y.numpy()), "linf:0.1"), "torch.from_numpy"),
        "one tensor": (lambda m, x, y: evaluate(m, x, "linf:0.1"), r"pair of tensors \(images, labels\)"),
        "three tensors": (lambda m, x, y: evaluate(m, (x, y, y), "linf:0.1"), "pair of tensors"),
        "no threat": (lambda m, x, y: evaluate(m, (x, y)), "--threat linf:8/255"),
        "number as threat": (lambda m, x, y: evaluate(m, (x, y), 0.1), "'linf:8/255', got 0.1"),
        "function": (lambda m, x, y: evaluate(lambda z: z, (x, y), "linf:0.1"), "got a function"),
        "class": (lambda m, x, y: evaluate(type(m), (x, y), "linf:0.1"), "a name or a torch.nn.Module"),
        "no ids": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", ids=[]), "selects nothing"),
        "same ids": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", ids=[1, 1]), "example 1 twice"),
        "id too large": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", ids=[8]), "ids 0 to 7"),
        "id below zero": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", ids=[-1]), "neither an id"),
        "real ids": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", ids=[1.5]), "ids must be integers"),
        "real n": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", n=2.5), "--n must be an integer"),
        "real seed": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", seed=1.5), "seed must be an integer"),
        "plan and attacks": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", plan="a", attacks="pgd"), "exclude each"),
        "batch size": (lambda m, x, y: evaluate(m, (x, y), "linf:0.1", batch_size=0), "--batch-size must be >= 1"),
        "attack: images": (lambda m, x, y: attack(m, 255 * x, y, "linf:0.1"), "divide by 255"),
        "attack: labels": (lambda m, x, y: attack(m, x, y + 4, "linf:0.1"), "is not in 0 .. 3"),
        "attack: threat": (lambda m, x, y: attack(m, x, y, "linf:8"), "did you mean linf:8/255"),
        "attack: name": (lambda m, x, y: attack(m, x, y, "linf:0.1", "pgdd"), "did you mean 'pgd'"),
        "attack: seed": (lambda m, x, y: attack(m, x, y, "linf:0.1", seed=-1), "seed must be"),
        "attack: function": (lambda m, x, y: attack(lambda z: z, x, y, "linf:0.1"), "torch.nn.Module"),
        "attack: batch size": (lambda m, x, y: attack(m, x, y, "linf:0.1", batch_size=0), "batch_size must be >= 1"),
    }


@pytest.mark.parametrize("name", _python_calls())
def test_bad_arguments_from_python(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sentences for library users, and nothing written."""
    monkeypatch.chdir(tmp_path)
    call, says = _python_calls()[name]
    model = make_linear()
    with pytest.raises(SpecError, match=says):
        call(model, *make_images(model))
    assert list(tmp_path.iterdir()) == []
