"""A run folder under attack: crashes at every write, kills at random moments, other processes, power cuts."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import robustgen
from robustgen import durable, engine
from robustgen.attacks import plans
from robustgen.attacks.apgd import APGDCE
from robustgen.attacks.square import Square
from robustgen.durable import FolderLock
from robustgen.errors import BusyError, RecordError, SpecError
from robustgen.record import RunRecord
from robustgen.runs import read_examples
from robustgen.witnesses import read_witnesses
from tests.helpers import ROOT, make_convnet, make_images

Task = tuple[nn.Module, tuple[Tensor, Tensor]]


class Crash(BaseException):
    """The process is gone: nothing catches it, and nothing is written after it."""


@pytest.fixture(scope="module")
def task() -> Task:
    """A small classifier with images, some of them easy and some hard to break."""
    model = make_convnet(classes=4)
    x, y = make_images(model, 14, (1, 6, 6))
    y[:3] = (y[:3] + 1) % 4
    return model, (x, y)


def evaluate(task: Task, out: Path, **options: Any) -> RunRecord:
    """A run with several stages that leave survivors."""
    model, data = task
    asked = {"attacks": "pgd:steps=3,apgd-ce:steps=4,square:steps=6", **options}
    return robustgen.evaluate(model, data, "linf:0.35", out=out, precision="float32", batch_size=7, **asked)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished run but the clock."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop("seconds.json")
    return files


class Faults:
    """Counts writes, syncs, renames and removals; from number `at` on, each fails, the first write half-way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at, self.count = at, 0
        real_write, real_sync = os.write, os.fsync

        def write(file: int, content: Any) -> int:
            if self.count + 1 == self.at:
                real_write(file, bytes(content)[: len(content) // 2])
            self.tick()
            return real_write(file, content)

        def sync(file: int) -> None:
            self.tick()
            real_sync(file)

        monkeypatch.setattr(durable.os, "write", write)
        monkeypatch.setattr(durable.os, "fsync", sync)
        for name in ("replace", "unlink"):
            monkeypatch.setattr(Path, name, self.before(getattr(Path, name)))

    def tick(self) -> None:
        """One operation."""
        self.count += 1
        if self.count >= self.at:
            raise Crash

    def before(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The same, after a tick."""

        def call(path: Path, *arguments: Any, **options: Any) -> Any:
            self.tick()
            return real(path, *arguments, **options)

        return call


def test_a_crash_at_every_write(task: Task, tmp_path: Path) -> None:
    """Whichever write, sync, rename or removal is the last one, the same command completes the very same folder."""
    evaluate(task, tmp_path / "whole")
    expected, crashes = contents(tmp_path / "whole"), 0
    assert list(read_witnesses(tmp_path / "whole"))
    for at in range(1, 1000):
        folder = tmp_path / f"cut-{at}"
        with pytest.MonkeyPatch.context() as patch:
            Faults(patch, at)
            try:
                evaluate(task, folder)
            except Crash:
                crashes += 1
            else:
                break
        evaluate(task, folder)
        assert expected == contents(folder), f"after a crash at operation {at}"
    assert crashes > 50


def test_stages_that_were_passed_are_not_run_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples that survived an attack go on with the next one."""
    evaluate(task, tmp_path / "whole")
    real, asked = engine.run, []

    def run(attack: Any, oracle: Any, judge: Any, fetch: Any, ids: Any, *rest: Any, **options: Any) -> None:
        asked.append((type(attack).__name__, tuple(ids)))
        if len(asked) == 3:
            raise KeyboardInterrupt
        real(attack, oracle, judge, fetch, ids, *rest, **options)

    monkeypatch.setattr(engine, "run", run)
    with pytest.raises(KeyboardInterrupt):
        evaluate(task, tmp_path / "cut")
    evaluate(task, tmp_path / "cut")
    assert ["PGD", "APGDCE", "Square", "Square"] == [name for name, _ in asked]
    assert asked[2] == asked[3]
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def test_individual_attacks_resume_as_well(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every attack sees every example, breaks are kept before an example is finished."""
    model, data = task
    options: dict[str, Any] = {"plan": "individual", "precision": "float32", "ids": range(3, 11)}
    robustgen.evaluate(model, data, "linf:0.3", out=tmp_path / "whole", **options)
    real, calls = engine.run, []

    def run(attack: Any, *rest: Any, **named: Any) -> None:
        calls.append(type(attack).__name__)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(attack, *rest, **named)

    monkeypatch.setattr(engine, "run", run)
    with pytest.raises(KeyboardInterrupt):
        robustgen.evaluate(model, data, "linf:0.3", out=tmp_path / "cut", **options)
    robustgen.evaluate(model, data, "linf:0.3", out=tmp_path / "cut", **options)
    assert ["APGDCE", "APGDT", "FABT", "FABT", "Square"] == calls
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
    assert list(read_witnesses(tmp_path / "cut"))


def test_a_run_that_escalated_resumes(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped among the thorough attacks, it raises the same flags and ends in the same folder."""

    class Coarse(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner((x * 6).round() / 6)
            return logits

    model, (x, y) = Coarse(task[0]).eval(), task[1]
    monkeypatch.setattr(plans, "_autoattack", lambda _: (APGDCE(steps=3), Square(steps=200)))
    options: dict[str, Any] = {"plan": "rapid", "precision": "float32"}
    whole = robustgen.evaluate(model, (x, y), "linf:0.5", out=tmp_path / "whole", **options)
    assert "zero-gradient" in whole.flags
    assert any("thorough" in note for note in whole.notes)
    late = [e for e in read_examples(tmp_path / "whole") if e.broken_by == "square#2"]
    assert len(late) >= 3, "enough for a flag of their own, were they counted"
    assert "black-box-wins" not in whole.flags
    real, calls = engine.run, []

    def run(attack: Any, *rest: Any, **named: Any) -> None:
        calls.append(attack)
        real(attack, *rest, **named)
        if attack == Square(steps=200):
            raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", run)
    with pytest.raises(KeyboardInterrupt):
        robustgen.evaluate(model, (x, y), "linf:0.5", out=tmp_path / "cut", **options)
    asked = len(calls)
    again = robustgen.evaluate(model, (x, y), "linf:0.5", out=tmp_path / "cut", **options)
    assert asked == len(calls), "nothing was left to run"
    assert whole.flags == again.flags
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")


def test_a_second_process_is_refused(task: Task, tmp_path: Path) -> None:
    """While one process writes a folder, another may not; when the first is gone it may."""
    folder = tmp_path / "run"
    folder.mkdir()
    lock = FolderLock(folder)
    with pytest.raises(SpecError, match=rf"is being written by another process \(pid {os.getpid()}\)"):
        evaluate(task, folder)
    lock.release()
    evaluate(task, folder)
    assert not (folder / "lock").exists()
    other = {"attacks": "pgd:steps=2"}  # such as another search form, chosen before the first process noted its own
    lock = FolderLock(folder)
    with pytest.raises(BusyError, match="is being written by another process"):
        evaluate(task, folder, **other)
    lock.release()
    with pytest.raises(RecordError, match="holds another run"):
        evaluate(task, folder, **other)
    assert not (folder / "lock").exists()


def test_bytes_reach_the_disk_before_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is synced before it gets its name, the folder after: a power cut leaves the old file or the new one."""
    events: list[str] = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(
        durable.os,
        "fsync",
        lambda file: (events.append("folder" if Path(f"/proc/self/fd/{file}").is_dir() else "file"), sync(file)),
    )
    monkeypatch.setattr(Path, "replace", lambda path, to: (events.append("rename"), rename(path, to))[1])
    durable.replace(tmp_path / "whole", b"content")
    assert ["file", "rename", "folder"] == events
    events.clear()
    log = durable.Appender(tmp_path / "log")
    log.add(b"one\n")
    assert (tmp_path / "log").read_bytes() == b"one\n", "the system has it at once"
    log.sync()
    log.add(b"two\n")
    log.sync()
    log.close()
    assert ["file", "folder", "file"] == events
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\n"


def test_a_line_whose_witness_is_lost(task: Task, tmp_path: Path) -> None:
    """After a power cut a line may be there and its image not: that example is run again."""
    evaluate(task, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    (tmp_path / "whole" / "record.json").unlink()
    for path in (tmp_path / "whole" / "witnesses").iterdir():
        path.unlink()
    evaluate(task, tmp_path / "whole")
    assert expected == contents(tmp_path / "whole")


@pytest.mark.slow
def test_killed_twenty_times(tmp_path: Path) -> None:
    """SIGKILL at 20 random moments of one run: no finished line is ever lost, and the folder ends up the same."""
    command = [
        sys.executable, "-m", "robustgen", "eval", "--n", "150", "--precision", "float32", "--batch-size", "8",
        "--attacks", "apgd-ce:steps=40,apgd-t:steps=10,square:steps=300", "--out",
    ]  # fmt: skip
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    draw, kept, kills, log = random.Random(0), (0, 0), 0, []
    files = [tmp_path / "cut" / name for name in ("examples.jsonl", "progress.jsonl")]
    while kills < 20:
        process = subprocess.Popen([*command, "cut"], cwd=tmp_path, env=surroundings, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(2.5, 5.5))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        now = tuple(len(path.read_bytes().splitlines()) if path.is_file() else 0 for path in files)
        assert now[0] >= kept[0]
        assert now[1] >= kept[1]
        kept = now
        log.append(kept)
    for out in ("cut", "whole"):
        subprocess.run([*command, out], cwd=tmp_path, env=surroundings, check=True, capture_output=True)
    print("examples finished, and stages passed, after each kill:", log)
    assert 20 == kills
    assert contents(tmp_path / "whole") == contents(tmp_path / "cut")
