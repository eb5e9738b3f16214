"""The command line, run in this process where that is enough, and as a process of its own where it is not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import robustgen
from robustgen import catalog, engine
from robustgen.cards import bundled_cards
from robustgen.cli import _run
from robustgen.errors import AttackError
from robustgen.training.recipe import load_recipe
from robustgen.training.train import TrainResult
from robustgen.witnesses import read_witnesses
from tests.helpers import ROOT, make_linear
from tests.training_helpers import write_recipe

KEYS = {
    "classifier", "data", "threat", "plan", "protocol", "seed", "n", "clean_accuracy", "robust_accuracy", "attacks",
    "forwards", "backwards", "seconds", "flags", "run",
}  # fmt: skip

NET = """
import os, time, torch
from torch import nn
from tests.helpers import make_linear

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.pause = make_linear(), float(os.environ.get("TEST_PAUSE", "0"))
    def forward(self, x):
        time.sleep(self.pause)
        return self.net(x)

def make():
    return Net().eval()
"""


class Result(NamedTuple):
    """What a command gave back."""

    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the test, with net.py and data.npz: 40 images, every tenth with a wrong label."""
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = make_linear()(x).argmax(1).numpy()
    labels[::10] = (labels[::10] + 1) % 4
    np.savez(tmp_path / "data.npz", image=images, label=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = _run(list(arguments))
        return Result(code, *capsys.readouterr())

    return run


USER = ("eval", "python:net.py:make", "--data", "npz:data.npz", "--threat", "linf:8/255", "--precision", "float32")
ATTACKED = (*USER, "--attacks", "fgsm,pgd:steps=5,square:steps=10")


def evaluate(command: Command, *more: str, base: Sequence[str] = ATTACKED) -> Any:
    """The JSON object that an eval prints."""
    result = command(*base, *more, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)


def comparable(folder: Path) -> tuple[bytes, bytes, Any]:
    """What must be the same in every run of the same thing: all but clocks, environment and the folder's name."""
    record = json.loads((folder / "record.json").read_text())
    record.pop("environment")
    witnesses = (folder / "witnesses" / "adversarials-00000.safetensors").read_bytes()
    return (folder / "examples.jsonl").read_bytes(), witnesses, record


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A command as a process of its own, which hears Ctrl-C even where these tests, in the background, do not."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "robustgen", *arguments]
    held = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.signal(signal.SIGINT, held)


def test_json_is_one_object_with_the_promised_keys(work: Path, command: Command) -> None:
    """Stdout holds nothing else; both accuracies come with their interval, each attack with its cost."""
    result = command(*ATTACKED, "--json")
    assert result.code == 0
    assert result.out.count("\n") == 1
    record = json.loads(result.out)
    assert set(record) >= KEYS
    for key in ("clean_accuracy", "robust_accuracy"):
        estimate = record[key]
        assert set(estimate) == {"value", "low", "high"}
        assert 0 <= estimate["low"] <= estimate["value"] <= estimate["high"] <= 1
    assert [attack["name"] for attack in record["attacks"]] == ["fgsm", "pgd", "square"]
    assert all(set(attack) >= {"name", "broken", "forwards", "backwards", "seconds"} for attack in record["attacks"])
    assert record["clean_accuracy"]["value"] == 0.9
    assert 0 < record["robust_accuracy"]["value"] < 0.9
    broken = sum(attack["broken"] for attack in record["attacks"])
    assert round(40 * record["robust_accuracy"]["value"]) == 36 - broken
    assert (record["n"], record["seed"], record["threat"], record["plan"]) == (40, 0, "linf:8/255", "custom")
    assert record["forwards"] == 40 + sum(attack["forwards"] for attack in record["attacks"])


def test_text_in_a_pipe_is_plain(work: Path, command: Command) -> None:
    """No escape codes; figures with intervals, costs, and where the record lies; progress goes to stderr."""
    result = command(*ATTACKED, "--out", "here")
    assert result.code == 0
    assert "\x1b" not in result.out + result.err
    assert re.search(r"^clean accuracy +90\.00 % +\[76\.95, 96\.04\]$", result.out, re.MULTILINE)
    assert re.search(r"^robust accuracy +\d+\.\d\d % +\[", result.out, re.MULTILINE)
    assert re.search(r"^pgd +\d+ +\d+\.\d +\d+\.\d +\d+\.\d$", result.out, re.MULTILINE)
    assert "record: here" in result.out
    assert "clean: 40/40, 4 misclassified" in result.err


def test_run_folder_holds_the_evidence(work: Path, command: Command) -> None:
    """Specification, one line an example, a witness for each broken one, the summary; no drafts are left."""
    record = evaluate(command)
    folder = Path(record["run"])
    assert folder.parent == Path("runs")
    assert folder.name == f"npz-data.npz-net.make-{record['identity'][:8]}"
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    named = {"spec.json", "examples.jsonl", "witnesses/adversarials-00000.safetensors", "record.json", "seconds.json"}
    assert files == named
    examples = [json.loads(line) for line in (folder / "examples.jsonl").read_text().splitlines()]
    assert [example["id"] for example in examples] == list(range(40))
    broken = {str(e["id"]) for e in examples if e["broken_by"] not in (None, "clean")}
    assert {str(id_) for id_, _ in read_witnesses(folder)} == broken
    stored = json.loads((folder / "record.json").read_text())
    assert {"seconds", "run"} == set(record) - set(stored), "the clock is kept apart"
    assert all(record[key] == value for key, value in stored.items() if key != "attacks")


def test_shell_completes(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """A shell that asks for the commands beginning with "corr" is told of the one there is."""
    for name, value in (("", "complete_bash"), ("_WORDS", "robustgen corr"), ("_CWORD", "1")):
        monkeypatch.setenv(f"COMP{name}" if name else "_ROBUSTGEN_COMPLETE", value)
    result = command()
    assert (result.code, result.out.split()) == (0, ["corruptions"])


def test_same_seed_same_figures(work: Path, command: Command) -> None:
    """Everything but the clock is the same twice, for any batch size; another seed is another run."""
    for out, more in (("a", ()), ("b", ("--batch-size", "7")), ("c", ("--seed", "1"))):
        evaluate(command, "--attacks", "pgd:steps=3,square:steps=10", "--out", out, *more, base=USER)
    assert comparable(work / "a") == comparable(work / "b")
    assert comparable(work / "a")[2]["identity"] != comparable(work / "c")[2]["identity"]
    assert comparable(work / "a")[1] != comparable(work / "c")[1]


@pytest.mark.parametrize(
    ("typed", "ids"),
    [
        (("--ids", "30-32,5"), [30, 31, 32, 5]),
        (("--ids", "ids.txt"), [7, 9, 10]),
        (("--ids", "30-32,5", "--n", "2"), [30, 31]),
        (("--n", "3"), [0, 1, 2]),
    ],
)
def test_examples_are_chosen(work: Path, command: Command, typed: tuple[str, ...], ids: list[int]) -> None:
    """By number, by a list or by a file; each keeps the fate that it has in the whole run."""
    (work / "ids.txt").write_text("7\n9-10\n", encoding="utf-8")
    evaluate(command, "--out", "whole")
    record = evaluate(command, *typed, "--out", "some")
    assert record["n"] == len(ids)
    whole, some = ((work / name / "examples.jsonl").read_text().splitlines() for name in ("whole", "some"))
    assert [whole[id_] for id_ in sorted(ids)] == some


def test_parameters_of_attacks_reach_the_protocol(work: Path, command: Command) -> None:
    """What was typed is what the record says was run."""
    record = evaluate(command, "--attacks", "pgd:steps=3:restarts=2:rel_step=0.5:loss=margin,apgd-t:steps=2", base=USER)
    assert record["protocol"].startswith(
        "custom/1: pgd(steps=3, rel_step=0.5, restarts=2, loss=margin) > apgd-t(steps=2,"
    )


def test_finished_run_is_read_again(work: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same command attacks nothing and prints the same."""
    first = command(*ATTACKED, "--json")
    monkeypatch.setattr(engine, "run", None)
    again = command(*ATTACKED, "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out) == json.loads(first.out)
    assert "this run was finished before; its record is read from runs/" in again.err


def test_interrupt_keeps_what_is_finished(
    work: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 130; the same command goes on, and ends like a run that nobody interrupted."""
    evaluate(command, "--out", "whole")
    real = engine.run

    def interrupted(*arguments: Any, finish: Callable[[engine.Outcome], None], **options: Any) -> None:
        def count(outcome: engine.Outcome) -> None:
            finish(outcome)
            if outcome.broken:
                raise KeyboardInterrupt

        real(*arguments, finish=count, **options)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run", interrupted)
        result = command(*ATTACKED, "--out", "cut")
    assert result.code == 130
    assert result.out == ""
    assert result.err.splitlines()[-1].startswith("interrupted: what was finished is kept; the same command goes on")
    assert len((work / "cut" / "examples.jsonl").read_text().splitlines()) == 5  # 4 misclassified and 1 broken
    assert not (work / "cut" / "record.json").exists()
    result = command(*ATTACKED, "--out", "cut")
    assert result.code == 0
    assert "5 of 40 examples were finished before; going on" in result.err
    assert comparable(work / "cut") == comparable(work / "whole")


def test_ctrl_c_in_a_process_of_its_own(work: Path, command: Command) -> None:
    """SIGINT in the middle of an attack: 130, no traceback, and the rest is done by the same command."""
    arguments = (*ATTACKED, "--out", "cut")
    process = start(*arguments, TEST_PAUSE="0.1")
    try:
        deadline = time.monotonic() + 60
        journal, seen = work / "cut" / "examples.jsonl", 0
        while seen < 4:  # examples are written one by one: so many are finished when the signal comes
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
            seen = len(journal.read_text().splitlines()) if journal.exists() else 0
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert out == ""
    assert "the same command goes on from there" in err
    assert len(journal.read_text().splitlines()) >= seen
    assert not (work / "cut" / "record.json").exists()
    assert command(*arguments).code == 0
    evaluate(command, "--out", "whole")
    assert comparable(work / "cut") == comparable(work / "whole")


def test_failure_of_a_run_is_exit_code_1(work: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error inside the run, unlike one in the request, is told apart by its code."""

    def fail(*_: object, **__: object) -> None:
        raise AttackError("the attack left the threat model.")

    monkeypatch.setattr(engine, "run", fail)
    result = command(*ATTACKED)
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines()[-1] == "error: the attack left the threat model."


def test_weights_replace_those_of_the_classifier(work: Path, command: Command) -> None:
    """--weights puts a file into the network, and the record says which."""
    torch.save({f"net.{key}": value for key, value in make_linear(seed=1).state_dict().items()}, "other.pt")
    own, other = evaluate(command), evaluate(command, "--weights", "other.pt")
    assert other["classifier"] == "net.make+other"
    assert own["spec"]["weights_sha256"] != other["spec"]["weights_sha256"]
    assert own["clean_accuracy"] != other["clean_accuracy"]


@pytest.mark.parametrize("name", ["eval", "train", "list", "show", "plot", "verify", "compare", "power"])
def test_help_shows_an_example(name: str, command: Command) -> None:
    """Every command explains itself by an example that begins with what to type."""
    result = command(name, "--help")
    assert (result.code, result.err) == (0, "")
    assert f"robustgen {name} " in result.out.partition("Example")[2]
    assert command(name, "-h").out == result.out


def test_help_without_arguments(command: Command) -> None:
    """The bare command explains itself, and is no error."""
    result = command()
    assert (result.code, result.err) == (0, "")
    for name in ("eval", "train", "list", "show", "plot", "verify", "compare", "power"):
        assert re.search(rf"^  {name} ", result.out, re.MULTILINE)


def test_version(command: Command) -> None:
    """--version prints the version and nothing else."""
    assert command("--version") == Result(0, f"robustgen {robustgen.__version__}\n", "")


@pytest.mark.parametrize("kind", sorted(catalog.KINDS))
def test_list_and_show(kind: str, command: Command) -> None:
    """Every kind has entries, each with a description; each entry can be shown; --json says the same."""
    listed = command("list", kind)
    rows = json.loads(command("list", kind, "--json").out)
    assert listed.code == 0
    assert rows
    assert [line.split(maxsplit=1) for line in listed.out.splitlines()] == [list(row.values()) for row in rows]
    for row in rows:
        shown = command("show", row["name"])
        assert shown.code == 0
        assert f"{kind.removesuffix('s')} {row['name']}\n" in shown.out


def test_reader_that_leaves_is_no_error() -> None:
    """`robustgen list attacks | head` ends quietly."""
    process = start("list", "attacks")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert (process.wait(60), err) == (0, "")
    process.stderr.close()


def test_help_needs_no_torch() -> None:
    """The first thing that a user types answers at once."""
    code = "import sys; from robustgen.cli import _run; _run(['--help']); sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)


def test_first_command_of_the_readme(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`robustgen eval` needs no file, no network and no option; both bundled classifiers are there."""
    monkeypatch.chdir(tmp_path)
    assert {"fmnist-at", "fmnist-standard"} <= set(bundled_cards())
    robust = evaluate(command, base=("eval", "--n", "20"))
    assert (robust["classifier"], robust["data"], robust["threat"]) == ("fmnist-at", "fmnist-test-1k", "linf:0.1")
    standard = evaluate(command, base=("eval", "fmnist-standard", "--n", "20"))
    assert robust["robust_accuracy"]["value"] >= 0.5 > standard["robust_accuracy"]["value"]
    assert standard["clean_accuracy"]["value"] >= 0.8


def test_train_says_what_came_out_and_what_to_type(tmp_path: Path, command: Command) -> None:
    """The last lines name the accuracy and a command that works; a budget that ends it early says how to go on."""
    recipe = write_recipe(tmp_path)
    done = command("train", str(recipe), "--out", str(tmp_path / "done"))
    assert done.code == 0, done.err
    assert re.search(r"tiny: validation accuracy \d+\.\d %", done.out)
    assert f"robustgen eval {tmp_path / 'done' / 'tiny.json'}" in done.out
    early = TrainResult(recipe=load_recipe(recipe), out=tmp_path / "early", finished=False, epochs=1, seconds=2.0)
    assert [f"tiny: 1 epochs done; the same command goes on from {tmp_path / 'early'}."] == early.lines()
