"""Evaluating a server: queries counted where they arrive, the same verdicts as the network itself, resume, verify."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.errors import RemoteError, SpecError
from robustgen.record import RunRecord
from robustgen.report import verification_lines
from robustgen.runs import read_examples
from robustgen.verify import verify_run
from tests.helpers import make_linear, write_linear_task
from tests.query_helpers import Counting
from tests.serve_helpers import SHAPE, running, served
from tests.test_schemas import schema

ASKED: dict[str, Any] = {"threat": "linf:0.03", "attacks": "square,hopskipjump", "queries": 30}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier of four classes with ten images, two of them misclassified."""
    folder = tmp_path_factory.mktemp("remote")
    write_linear_task(folder, 10)
    return folder


@pytest.fixture(scope="module")
def target() -> Iterator[tuple[str, Counting]]:
    """An address that gives scores, and what counts the images that arrive."""
    counting = Counting(make_linear(SHAPE))
    with running(served(classifier=load_classifier(_Whole(counting)), answers="scores")) as url:
        yield url, counting


class _Whole(nn.Module):
    """Hands on to a network that is not copied with it, so that its counter is seen outside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.held = [net]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.held[0](x)
        return logits

    def __deepcopy__(self, _memo: object) -> _Whole:
        return _Whole(self.held[0])


def evaluate(task: Path, url: str, out: Path, **more: Any) -> RunRecord:
    """A run against an address."""
    return robustgen.evaluate(url, f"npz:{task}/data.npz", out=out, **{**ASKED, **more})


def test_as_the_network_itself(task: Path, target: tuple[str, Counting], tmp_path: Path) -> None:
    """The same examples fall to the same attacks after as many queries; fewer images arrive than are counted."""
    url, counting = target
    before = counting.images
    record = evaluate(task, url, tmp_path / "run")
    arrived = counting.images - before
    local = robustgen.evaluate(
        f"python:{task}/net.py:make", f"npz:{task}/data.npz", out=tmp_path / "local", precision="float32", **ASKED
    )
    mine, theirs = (
        [(e.id, e.broken_by_all, e.cost, e.distance) for e in read_examples(tmp_path / name)]
        for name in ("run", "local")
    )
    assert mine == theirs
    assert record.robust_accuracy == local.robust_accuracy
    assert record.queries == local.queries
    counted = record.forwards
    assert arrived <= counted + 1, "the judge and repeats are answered by the cache; one image was asked twice"
    assert url == record.spec["classifier"]
    assert record.notes[0].startswith(f"remote: the target at {url} gave scores; it says that it serves _Whole")
    assert record.health == {}
    jsonschema.validate(json.loads((tmp_path / "run" / "record.json").read_text()), schema("record"))
    jsonschema.validate(json.loads((tmp_path / "run" / "spec.json").read_text()), schema("spec"))


def test_verify_with_and_without_the_server(task: Path, tmp_path: Path) -> None:
    """Down: distance, range, hashes, labels, and what is not checked; up: predictions too; edits are found."""
    run = tmp_path / "run"
    with running(served(answers="scores")) as url:
        evaluate(task, url, run)
        asked = verify_run(run, classifier=url)
        assert asked.holds, asked.wrong
        assert not asked.unchecked
    found = verify_run(run)
    assert found.holds, found.wrong
    assert "predictions, which only the server knows" in found.unchecked[0]
    assert any(line.startswith("witnesses: range and distance of") for line in found.checked)
    assert any("what could be checked holds" in line for line in verification_lines(found))
    lines = (run / "examples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    broken = next(row for row in rows if row["distance"])
    broken["distance"] *= 0.5
    (run / "examples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    assert any("its distance was edited" in said for said in verify_run(run).wrong)
    broken["distance"], broken["prediction"] = broken["distance"] * 2, broken["label"]
    (run / "examples.jsonl").write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows))
    assert any("it breaks nothing" in said for said in verify_run(run).wrong)
    (run / "examples.jsonl").write_text("\n".join(lines) + "\n")
    for path in (run / "witnesses").iterdir():
        path.unlink()
    assert any("no witness" in said for said in verify_run(run).wrong)


def test_a_spent_budget_loses_nothing(task: Path, target: tuple[str, Counting], tmp_path: Path) -> None:
    """Stopped by --total-queries, again and again; the record is that of a run in one go."""
    url, _ = target
    whole = evaluate(task, url, tmp_path / "whole", attacks="square")
    stops = 0
    for _ in range(40):
        try:
            record = evaluate(task, url, tmp_path / "run", attacks="square", batch_size=2, total_queries=70)
            break
        except RemoteError as error:
            stops += "budget of 70 queries is spent" in str(error)
    assert 0 < stops < 40
    assert (tmp_path / "run" / "examples.jsonl").read_text() == (tmp_path / "whole" / "examples.jsonl").read_text()
    assert record.robust_accuracy == whole.robust_accuracy


def test_labels_alone_and_surrogates(task: Path, tmp_path: Path) -> None:
    """hopskipjump gets by on labels; gradients only on a surrogate, whose results the server judges."""
    with running(served()) as url:
        record = evaluate(task, url, tmp_path / "labels", attacks="hopskipjump")
        assert record.queries is not None
        for asked, says in (
            ({"attacks": "pgd", "queries": None}, "asks for gradients"),
            ({"attacks": "square"}, "asks for scores"),
            ({"attacks": None}, "asks for scores"),
            ({"purify": "median"}, "answers as it is; drop --purify"),
        ):
            with pytest.raises(SpecError, match=says):
                evaluate(task, url, tmp_path / "no", **asked)
        moved = evaluate(
            task, url, tmp_path / "moved", attacks="mi-fgsm", queries=None, surrogates=f"python:{task}/net.py:other",
        )  # fmt: skip
        assert moved.spec["surrogates"]
        assert verify_run(tmp_path / "moved").holds
    images = np.zeros((4, 9, 9, 1), np.uint8)
    np.savez(tmp_path / "large.npz", image=images, label=np.zeros(4, np.int64))
    with running(served()) as url, pytest.raises(SpecError, match=r"takes images of shape \(1, 8, 8\)"):
        robustgen.evaluate(url, f"npz:{tmp_path}/large.npz", "linf:0.1")


def test_command_line(
    task: Path, target: tuple[str, Counting], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As in the manual; options of a server are refused for anything else."""
    url, _ = target
    command = ["eval", url, "--data", f"npz:{task}/data.npz", "--threat", "linf:0.03", "--queries", "20", "--attacks",
               "square", "-n", "4", "--account", "me", "--out", str(tmp_path / "run"), "--json"]  # fmt: skip
    assert _run(command) == 0
    assert url == json.loads(capsys.readouterr().out)["classifier"]
    assert _run(["eval", "fmnist-at", "--total-queries", "5"]) == 2
    assert "are for a target at an address" in capsys.readouterr().err


def test_a_random_target_is_judged_by_majority(task: Path, tmp_path: Path) -> None:
    """It says so in /health: no cache, the flag, no further scores."""

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_linear(SHAPE)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.net(x)
            return logits + 1e-3 * torch.randn_like(logits)

    classifier = load_classifier(Random())
    classifier.stochastic = True
    with running(served(classifier=classifier, answers="scores", burst=10**6)) as url:
        record = evaluate(task, url, tmp_path / "run", attacks="square", queries=5)
    assert record.flags == ("randomised",)
    assert record.stochastic is None
