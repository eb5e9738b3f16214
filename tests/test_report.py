"""The record as people read it: the same figures on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from robustgen.flags import FLAGS
from robustgen.record import AttackSummary, RunRecord
from robustgen.report import flag_meaning, print_record, record_lines
from robustgen.statistics import Estimate


@pytest.fixture
def record() -> RunRecord:
    """A run of 200 examples by two attacks, with a flag and a note."""
    return RunRecord(
        spec={
            "classifier": "net[1]", "weights_sha256": "0123456789abcdef", "data": "fmnist-test-1k",
            "threat": "linf:8/255", "protocol": "rapid/1: pgd(steps=5)", "precision": "float32", "seed": 3,
        },
        identity="f" * 64, n=200, clean_accuracy=Estimate(0.9, 0.85, 0.93), robust_accuracy=Estimate(0.5, 0.43, 0.57),
        attacks=(
            AttackSummary(name="pgd", broken=70, robust_accuracy=None, forwards=1000, backwards=900, seconds=1.25),
            AttackSummary(name="square", broken=10, robust_accuracy=None, forwards=4000, backwards=0, seconds=2.5),
        ),
        forwards=5200, backwards=900, seconds=4.0, flags=("probabilities",), health={},
        notes=("a plainer form [x] is used.",),
        environment={}, run="runs/here",
    )  # fmt: skip


def on_terminal(record: RunRecord) -> str:
    """What a terminal of 120 columns shows, without colours."""
    stream = io.StringIO()
    print_record(record, Console(file=stream, force_terminal=True, width=120, color_system="truecolor"))
    assert "\x1b[" in stream.getvalue()
    return re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())


def test_plain_lines(record: RunRecord) -> None:
    """Every figure, aligned; costs are per example of the whole run."""
    expected = """\
classifier       net[1]  (weights 0123456789ab)
data             fmnist-test-1k, 200 examples
threat           linf:8/255
clean accuracy   90.00 %  [85.00, 93.00]
robust accuracy  50.00 %  [43.00, 57.00]

attack  broke  forwards/example  backwards/example  seconds
pgd        70               5.0                4.5      1.2
square     10              20.0                0.0      2.5
all        80              26.0                4.5      4.0

plan rapid/1: every attack and parameter stands in record.json
searched in float32, judged in float32, seed 3
FLAG probabilities: all outputs lie in [0, 1] and sum to 1; return logits: drop the softmax at the end of the classifier
note: a plainer form [x] is used.
record: runs/here"""
    assert expected.splitlines() == record_lines(record)


def test_a_pipe_gets_the_plain_lines(record: RunRecord, capsys: pytest.CaptureFixture[str]) -> None:
    """No codes, no boxes."""
    print_record(record, Console(file=io.StringIO(), force_terminal=False))
    assert "\n".join(record_lines(record)) + "\n" == capsys.readouterr().out


def test_terminal_shows_the_same(record: RunRecord) -> None:
    """Colours and rules are added, words and figures are not; brackets are no markup."""
    shown = on_terminal(record)
    for line in record_lines(record):
        for word in line.split():
            assert word in shown, line


def test_long_lines_can_be_copied(record: RunRecord) -> None:
    """A note or a path is not cut where the terminal ends."""
    long = replace(record, run="runs/" + 150 * "x", notes=(150 * "y",))
    shown = on_terminal(long)
    assert 150 * "x" in shown
    assert 150 * "y" in shown


def test_every_flag_is_explained(record: RunRecord) -> None:
    """The mark comes with what it means; a flag of a newer version is shown all the same."""
    for flag in FLAGS:
        assert f"FLAG {flag}: {flag_meaning(flag)}" in record_lines(replace(record, flags=(flag,)))
    assert "FLAG new: see the record" in record_lines(replace(record, flags=("new",)))


def test_attacks_run_alone_show_their_own_figure(record: RunRecord) -> None:
    """A column that is there only where it was measured."""
    assert "robust alone" not in "\n".join(record_lines(record))
    first, second = record.attacks
    alone = replace(record, attacks=(replace(first, robust_accuracy=Estimate(0.55, 0.48, 0.62)), second))
    text = "\n".join(record_lines(alone))
    assert "robust alone" in text
    assert "55.00 % [48.00, 62.00]" in text
    assert "[48.00, 62.00]" in on_terminal(alone)


@pytest.mark.parametrize("alone", [None, Estimate(0.5, 0.43, 0.57)])
def test_an_attack_that_nothing_was_left_for_shows_dashes(record: RunRecord, alone: Estimate | None) -> None:
    """Zeros would say that it was run and broke nothing."""
    idle = AttackSummary(name="fmn-t", broken=0, robust_accuracy=alone, forwards=0, backwards=0, seconds=0.0)
    lines = record_lines(replace(record, attacks=(*record.attacks, idle)))
    row = next(line.split() for line in lines if line.startswith("fmn-t"))
    assert row == ["fmn-t", *"-" * (4 if alone is None else 5)]
