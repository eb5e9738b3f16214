"""Submissions of the right form: what is measured again, what that refutes, and what the board shows then."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

import robustgen
from robustgen.cli import _run
from robustgen.data import load_data
from robustgen.example import ExampleRecord
from robustgen.leaderboard.accept import LEVEL, TOLERATED, refuted
from robustgen.leaderboard.boards import make_board
from robustgen.leaderboard.build import build_site
from robustgen.leaderboard.entries import EntryCard, load_entries, request_of
from robustgen.leaderboard.submit import submit_run
from robustgen.prepare import prepare
from robustgen.record import summarise
from robustgen.request import Request
from robustgen.spec import compact_ids, expand_ids
from robustgen.statistics import sampled_tail
from tests.helpers import write_linear_task
from tests.submission_helpers import (
    HOSTILE,
    Members,
    edited,
    example_lines,
    members_of,
    settled,
    with_lines,
    written,
)
from tests.submission_network import BROKEN, IDS, ROBUST, THREAT, write_network
from tests.test_leaderboard_build import assert_harmless, pages

WITNESSES = "run/witnesses/adversarials-00000.safetensors"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the user's own whose card is an attack in every text, and its run on five images."""
    folder = tmp_path_factory.mktemp("stranger")
    told = dict.fromkeys(("title", "licence", "source", "description"), HOSTILE)
    card = write_network(folder, **told, class_names=[HOSTILE] * 10)
    robustgen.evaluate(str(card), "fmnist-test-1k", THREAT, ids=IDS, precision="float32", out=folder / "run")
    return folder


@pytest.fixture(scope="module")
def good(work: Path) -> Members:
    """The members of an honest archive of it."""
    made = submit_run(work / "run", work / "mine.zip", licence=HOSTILE, name="mine", classifier=str(work / "mine.json"))
    return members_of(made.path)


def accepted(path: Path, board: Path, *words: str) -> int:
    """The exit code of the command."""
    return _run(["leaderboard", "accept", str(path), "--entries", str(board), "--seed", "5", *words])


def test_an_honest_submission(work: Path, good: Members, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Packed, checked, filed with its network, which leads to the same run; a second time it is there already."""
    path = written(tmp_path, good)
    assert 0 == accepted(path, tmp_path / "board", "--check", "2", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["accepted"]
    assert {"holds"} == {check["outcome"] for check in told["checks"]}
    assert {"witnesses", "made again", "attacked again", "filed"} <= {check["check"] for check in told["checks"]}
    (entry,) = load_entries(tmp_path / "board")
    card = entry.card
    assert isinstance(card, EntryCard)
    assert card.accepted is not None
    assert (5, 2) == (card.accepted.seed, len(expand_ids(card.accepted.again)))
    assert hashlib.sha256(path.read_bytes()).hexdigest() == card.accepted.archive_sha256
    assert card.command.startswith("robustgen eval classifiers/mine.json --data fmnist-test-1k")
    held = {file.relative_to(tmp_path / "board").as_posix() for file in (tmp_path / "board").rglob("*.*")}
    beside = {"classifiers/mine.json", "classifiers/mine.safetensors", "licences/mine.txt", "records/mine.json"}
    assert beside | {"mine.json"} == held
    assert 0 == _run(["reproduce", "board", "--scale", str(tmp_path / "board"), "--dry-run"])
    network = str(tmp_path / "board" / "classifiers" / "mine.json")
    assert capsys.readouterr().out.startswith(f"robustgen eval {network} --data")
    job = prepare(Request(**request_of(card.spec, card.origin, tmp_path / "board")))
    assert card.identity == job.spec.identity()
    assert 1 == accepted(path, tmp_path / "board")
    assert "not accepted: this run is on the board already, as mine" in capsys.readouterr().out


def test_equal_runs_give_equal_bytes(work: Path, good: Members, tmp_path: Path) -> None:
    """Packed again, an archive is the same file; so is one of a copy of the folder."""
    shutil.copytree(work / "run", tmp_path / "elsewhere")
    made = submit_run(
        tmp_path / "elsewhere", tmp_path / "b.zip", licence=HOSTILE, name="mine", classifier=str(work / "mine.json")
    )  # fmt: skip
    assert (work / "mine.zip").read_bytes() == made.path.read_bytes()
    assert made.members == {name: len(content) for name, content in good.items()}


def test_injection_everywhere(good: Members, tmp_path: Path) -> None:
    """Scripts in every text that a submission may hold are text on every page, and on the command line."""
    claim = {"value": 0.9, "n": 10, "protocol": HOSTILE, "source": HOSTILE}
    spent = {"name": HOSTILE, "broken": 0, "robust_accuracy": None, "forwards": 0, "backwards": 0}

    def spoil(record: dict[str, Any]) -> None:
        record.update(notes=[HOSTILE], environment={HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}})
        record["attacks"].append(spent)

    made = settled(edited(good, "run/record.json", spoil))
    made = edited(made, "card.json", lambda card: card.update(claimed=claim))
    assert 0 == accepted(written(tmp_path, made), tmp_path / "board", "--check", "0")
    build_site(tmp_path / "site", load_entries(tmp_path / "board"))
    found = pages(tmp_path / "site")
    for name, page in found.items():
        assert_harmless(page, name)
    # title, source, licence, claim twice, note, attack, environment four times, licence of the archive
    assert found["entry-mine.html"].text.count(HOSTILE) >= 12
    assert HOSTILE in found["claims.html"].text or "mine" in found["claims.html"].text


def resummed(members: Members, rows: list[dict[str, Any]]) -> Members:
    """The rows, and everything that follows from them, as a careful forger would write it."""
    examples = [ExampleRecord.from_line(json.dumps(row)) for row in rows]
    names = [row["name"] for row in json.loads(members["run/record.json"])["attacks"]]
    clean, robust, attacks = summarise(examples, names, {})

    def tell(record: dict[str, Any]) -> None:
        record.update(clean_accuracy=asdict(clean), robust_accuracy=asdict(robust))
        record["attacks"] = [{k: v for k, v in asdict(row).items() if k != "seconds"} for row in attacks]
        record["forwards"] = len(rows) + sum(row.forwards for row in attacks)
        record["backwards"] = sum(row.backwards for row in attacks)

    made = settled(edited(with_lines(members, rows), "run/record.json", tell))
    right = compact_ids([e.id for e in examples if e.clean_prediction == e.label])
    standing = compact_ids([e.id for e in examples if e.robust])
    fallen = {e.id for e in examples if e.broken_by not in (None, "clean")}

    def show(card: dict[str, Any]) -> None:
        pictures = [picture for picture in card["pictures"] if picture["id"] in fallen]
        card.update(right=right, robust=standing, pictures=pictures)

    return edited(made, "card.json", show)


def images(members: Members) -> tuple[dict[str, torch.Tensor], np.ndarray[Any, Any]]:
    """The tensors of the witnesses, and their pixels (N, 784) float32."""
    held = load(members[WITNESSES])
    pixels = np.frombuffer(lzma.decompress(held["packed"].numpy().tobytes()), "<f4").reshape(-1, 784)
    return held, pixels.copy()


def repacked(members: Members, change: Callable[[np.ndarray[Any, Any]], Any], *, drop: int = 0) -> Members:
    """Other witnesses; the last ones left out."""
    held, pixels = images(members)
    change(pixels)
    kept = len(pixels) - drop
    stream = np.frombuffer(lzma.compress(pixels[:kept].tobytes()), np.uint8).copy()
    return {**members, WITNESSES: save({**held, "ids": held["ids"][:kept], "packed": torch.from_numpy(stream)})}


def _clean(members: Members) -> Members:
    """Each witness replaced by its clean image."""
    held, _ = images(members)
    x, _ = load_data("fmnist-test-1k").batch(held["ids"].tolist())
    return repacked(members, lambda pixels: np.copyto(pixels, x.flatten(1).numpy()))


def _relabelled(members: Members) -> Members:
    """The first example of the run given another label, and counted as wrong."""
    rows = example_lines(members)
    rows[0] |= {"label": (rows[0]["label"] + 1) % 10, "robust": False, "broken_by": "clean", "cost": {}}
    return resummed(members, rows)


def _bomb(members: Members) -> Members:
    """16 MB of zeros behind images of a few kB."""
    held, _ = images(members)
    packer = lzma.LZMACompressor(preset=0)
    stream = b"".join([*(packer.compress(bytes(2**22)) for _ in range(4)), packer.flush()])
    return {**members, WITNESSES: save({**held, "packed": torch.frombuffer(bytearray(stream), dtype=torch.uint8)})}


def called_robust(members: Members, most: int) -> Members:
    """So many broken examples, the last ones, called robust; their witnesses left out."""
    rows = example_lines(members)
    broken = sorted(row["id"] for row in rows if row["broken_by"] not in (None, "clean"))[-most:]
    lies = {"robust": True, "broken_by": None, "threat": None, "restart": None, "round": None, "distance": None,
            "prediction": None}  # fmt: skip
    rows = [row | lies if row["id"] in broken else row for row in rows]
    return resummed(repacked(members, lambda pixels: None, drop=len(broken)), rows)


FORGED: dict[str, tuple[Callable[[Members], Members], str]] = {
    "witness outside eps": (
        lambda m: repacked(m, lambda pixels: np.clip(pixels + 0.02, 0, 1, out=pixels)), "distance|outside"
    ),
    "witness beyond [0, 1]": (lambda m: repacked(m, lambda pixels: pixels.fill(1.5)), "verify +fails"),
    "witness that is not finite": (lambda m: repacked(m, lambda pixels: pixels.fill(np.nan)), "verify +fails"),
    "witness that does not fool": (_clean, "verify +fails"),
    "witness left out": (lambda m: repacked(m, lambda pixels: None, drop=1), "has no witness"),
    "bomb in the witnesses": (_bomb, "holds [0-9]+ bytes or more"),
    "label changed": (_relabelled, "its label was edited"),
    "picture changed": (
        lambda m: edited(m, "card.json", lambda c: c["pictures"][0].update(clean=c["pictures"][0]["adversarial"])),
        "pictures of the card is not what its run gives",
    ),
    "seconds changed": (
        lambda m: edited(m, "card.json", lambda c: c["cost"].update(seconds=1e-3)), "cost of the card is not"
    ),
    "all called robust": (lambda m: called_robust(m, 6), "refuted: plan rapid, seed 5: 3 of 5 fell"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGED)
def test_what_measuring_again_refutes(
    kind: str, good: Members, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the reason in the table and in the last line, nothing on the board."""
    spoil, message = FORGED[kind]
    assert 1 == accepted(written(tmp_path, spoil(good)), tmp_path / "board")
    said = capsys.readouterr().out
    assert re.search(message, said), said
    assert said.strip().splitlines()[-1].startswith("not accepted: ")
    assert not list((tmp_path / "board").rglob("*.json"))


def test_one_that_falls_counts_as_broken(good: Members, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within what luck explains the claim is no lie, but the board has the lower figure, its flag and its id."""
    path = written(tmp_path, called_robust(good, 1))
    assert 0 == accepted(path, tmp_path / "board")
    (entry,) = load_entries(tmp_path / "board")
    card = entry.card
    assert isinstance(card, EntryCard)
    assert card.accepted is not None
    (fell,) = expand_ids(card.accepted.fell)
    assert fell in BROKEN
    assert f"1 of {len(ROBUST) + 1} fell ({fell})" in capsys.readouterr().out
    (row,) = make_board("fmnist-test-1k", THREAT, [entry]).rows
    assert len(ROBUST) / len(BROKEN + ROBUST) == row.robust.value
    assert "broken-further" in row.flags
    assert fell in row.broken


def test_the_test_is_exact() -> None:
    """Against the count of all samples; a claim at its limit is refuted in less than one case of a thousand."""
    for hits in range(6):
        ways = sum(math.comb(4, k) * math.comb(16, 5 - k) for k in range(hits, 5))
        assert sampled_tail(hits, 5, 4, 20) == pytest.approx(ways / math.comb(20, 5), abs=1e-12)
    most, _ = refuted(0, 50, 780)
    assert math.ceil(TOLERATED * 780) == most
    needed = next(fell for fell in range(51) if refuted(fell, 50, 780)[1] < LEVEL)
    assert refuted(needed - 1, 50, 780)[1] >= LEVEL
    drawn = np.random.default_rng(0).hypergeometric(most, 780 - most, 50, 20_000)
    assert (drawn >= needed).mean() < LEVEL + 4 * math.sqrt(LEVEL / 20_000)
    assert refuted(2, 6, 6)[1] == 0.0, "where all are looked at, one too many is enough"


def test_code_of_strangers_is_not_run(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused, with what to do about it; run only where the user names the file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from pathlib import Path\nfrom robustgen.classifiers import load_classifier\n"
        "def make():\n    Path('ran').touch()\n    return load_classifier('fmnist-standard').network\n"
    )
    code = "python:net.py:make"
    robustgen.evaluate(code, "fmnist-test-1k", "linf:0.1", n=1, precision="float32", out=tmp_path / "run")
    assert 0 == _run(["submit", "run", "--licence", "MIT", "--classifier", code, "--out", "a.zip"])
    assert "Your classifier is code" in capsys.readouterr().out
    (tmp_path / "ran").unlink()
    assert 1 == accepted(tmp_path / "a.zip", tmp_path / "board")
    assert "code of strangers is not run" in capsys.readouterr().out
    assert not (tmp_path / "ran").exists()
    assert 0 == accepted(tmp_path / "a.zip", tmp_path / "board", "--classifier", code)
    assert (tmp_path / "ran").exists()
    assert 0 == _run(["reproduce", "board", "--scale", "board", "--dry-run"])
    (entry,) = load_entries(tmp_path / "board")
    assert entry.card.command.startswith(f"robustgen eval {code} ")


def test_submit_refuses_what_accept_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data that nobody else has: said before an archive is written."""
    monkeypatch.chdir(tmp_path)
    write_linear_task(tmp_path, 4)
    code = "python:net.py:make"
    robustgen.evaluate(code, "npz:data.npz", "linf:0.5", n=3, precision="float32", out=tmp_path / "run")
    assert 2 == _run(["submit", "run", "--licence", "MIT", "--classifier", code, "--out", "a.zip"])
    assert "error: a.zip: spec.data must be one of" in capsys.readouterr().err
    assert not (tmp_path / "a.zip").exists()


@pytest.mark.parametrize(("words", "message"), [
    (["--check", "-1"], "--check must be"), (["--draws", "0"], "--draws must be"), (["--seed", "-1"], "--seed must be"),
    (["--name", "../x"], "--name must be"),
])  # fmt: skip
def test_bad_words_for_accept(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """One sentence, exit code 2, before the archive is opened."""
    assert 2 == _run(["leaderboard", "accept", "nothing.zip", "--entries", str(tmp_path / "board"), *words])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("words", "message"), [
    (["--licence", " "], "--licence must say in words"),
    (["--licence", "MIT", "--classifier", "mine"], "--classifier must be a card file"),
    (["--licence", "MIT", "--weights", "w.pt"], "only safetensors are accepted"),
    (["--licence", "MIT", "--name", "../x"], "--name must be letters, digits"),
    (["--licence", "MIT"], "nothing of that name can be loaded"),
])  # fmt: skip
def test_bad_words_for_submit(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """One sentence, exit code 2, no archive."""
    assert 2 == _run(["submit", str(work / "run"), "--out", str(tmp_path / "a.zip"), *words])
    said = capsys.readouterr().err
    assert message in said
    assert 1 == len(said.strip().splitlines())
    assert not (tmp_path / "a.zip").exists()
