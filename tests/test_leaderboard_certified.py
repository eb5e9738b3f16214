"""Certified and purified entries: made from a run, on a board, on a page, submitted, and done again."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import robustgen
from robustgen.certify.record import load_certification
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.cli import _run
from robustgen.errors import SpecError
from robustgen.leaderboard.boards import board_names, make_board
from robustgen.leaderboard.build import build_site
from robustgen.leaderboard.certified import CertifiedCard
from robustgen.leaderboard.charts import curves_of
from robustgen.leaderboard.entries import EntryCard, load_entries, read_entry
from robustgen.leaderboard.foreign import read_submission
from robustgen.leaderboard.rerun import compared_certificates
from robustgen.progress import Silent
from robustgen.statistics import share_interval
from tests.submission_helpers import Members, edited, members_of, written
from tests.test_leaderboard_build import assert_harmless, pages

CERTIFIED = "certified-l2:0.5"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certification of four images, its card in a folder of cards, and an archive of it."""
    folder = tmp_path_factory.mktemp("certified")
    request = CertificationRequest(
        classifier="fmnist-gaussian-0.25", sigma=0.25, n=4, samples=100, selection=10, radii="0,0.25,0.5",
        precision="float32",
    )  # fmt: skip
    certify_request(request, out=folder / "run", batch_size=500, device="cpu", progress=Silent())
    assert 0 == _run(["leaderboard", "add", str(folder / "run"), "--entries", str(folder / "board"), "--name", "c"])
    assert 0 == _run(
        ["submit", str(folder / "run"), "--licence", "MIT", "--name", "c", "--out", str(folder / "c.zip")]
    )  # fmt: skip
    return folder


@pytest.fixture
def card(work: Path) -> CertifiedCard:
    """The card."""
    held = read_entry(work / "board" / "c.json").card
    assert isinstance(held, CertifiedCard)
    return held


def test_a_card_says_what_the_certificates_say(work: Path, card: CertifiedCard) -> None:
    """Figures of the record, radii of the journal, the rest of the specification; what is written is what was read."""
    held = load_certification(work / "run")
    log = held.log()
    assert [one["value"] for one in held.record["certified"]] == [share.value for share in card.certified]
    assert held.record["acr"] == card.acr
    for radius in (0.0, 0.1, 0.3, 0.7):
        assert set(log.ids[log.right & (log.radius >= radius)].tolist()) == card.held(radius)
    assert CertifiedCard.from_json(json.loads(json.dumps(card.to_json()))) == card
    words = shlex.split(card.command)
    assert ["robustgen", "certify", "fmnist-gaussian-0.25", "--sigma", "0.25"] == words[:5]
    assert ("100", "10") == (words[words.index("--samples") + 1], words[words.index("--selection") + 1])


def test_the_curve_is_that_of_the_radii(card: CertifiedCard) -> None:
    """It falls at each radius, by one example; drawn, it begins at the left and ends on the ground."""
    points = card.curve()
    for radius in (0.0, 0.2, 0.45, 0.6):
        share = next((share for reached, share in points if reached >= radius), 0.0) if radius else points[0][1]
        assert share == pytest.approx(len(card.held(radius)) / card.n)
    drawn = curves_of([("c", points)], [(0.25, share_interval(0.5, 8))])
    (line,) = drawn.lines
    assert line.path.startswith(f"M{drawn.left} ")
    assert line.path.endswith(f"V{drawn.bottom}")
    assert line.path.count("V") == len(points) - 1
    assert line.whiskers.count("M") == 1
    empty = curves_of([("none", [(0.0, 0.0)])])
    assert f"M{empty.left} {empty.bottom}" == empty.lines[0].path


def test_a_board_for_any_radius(work: Path, card: CertifiedCard, capsys: pytest.CaptureFixture[str]) -> None:
    """One board is listed, another radius may be asked for; the figure is the share that is certified within it."""
    entries = load_entries(work / "board")
    assert ("fmnist-test-1k", CERTIFIED) in board_names(entries)
    for radius in (0.25, 0.6):
        (row,) = make_board("fmnist-test-1k", f"certified-l2:{radius}", entries).rows
        assert len(card.held(radius)) / card.n == row.robust.value
        assert row.clean.value == len(card.held(0.0)) / card.n
        assert {"ACR": card.acr, "sigma": 0.25} == row.extra
    words = ["leaderboard", "table", "--data", "fmnist-test-1k", "--entries", str(work / "board"), "--format", "json"]
    assert 0 == _run([*words, "--threat", "certified-l2:0.25"])
    told = json.loads(capsys.readouterr().out)
    assert ("certified-l2:0.25", card.certified[1].value) == (told["threat"], told["rows"][0]["robust"]["value"])
    assert 2 == _run([*words, "--threat", "certified-l1:0.25"])
    assert "unknown threat model" in capsys.readouterr().err
    assert 2 == _run([*words, "--threat", "certified-l2:x"])
    assert "must be a number" in capsys.readouterr().err


def test_pages_show_the_curve(work: Path, tmp_path: Path) -> None:
    """On the page of the entry and on its board, with the figures, their intervals and the command."""
    entries = load_entries(work / "board")
    build_site(tmp_path, entries)
    found = pages(tmp_path)
    for name in ("entry-c.html", "board-fmnist-test-1k-certified-l2-0-5.html"):
        assert_harmless(found[name], name)
        assert [attrs for tag, attrs in found[name].tags if tag == "path" and "curve" in (attrs.get("class") or "")]
    shown, held = found["entry-c.html"].text, entries[0].card
    assert isinstance(held, CertifiedCard)
    assert held.command in shown
    assert f"{held.acr:.3f}" in shown
    for share in held.certified:
        assert f"{100 * share.low:.2f}–{100 * share.high:.2f}" in shown


def put(*keys: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one field, which may lie deeper."""

    def change(table: Any) -> None:
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = value

    return change


@pytest.mark.parametrize(("change", "message"), [
    (put("radii", value=[9.0] * 4), "certified at 0.*.value is"),
    (put("radii", value=[1.0]), "there are 1 radii"),
    (put("radii", 0, value="1"), "radii must be a list of numbers"),
    (put("acr", value=9.0), "acr is 9.000000; the radii give"),
    (put("certified", 0, "value", value=87.0), "certified at 0.value must be a fraction of 1"),
    (put("certified", 0, "low", value=0.0), "certified at 0.low is 0.000000"),
    (put("certified", 1, "radius", value=0.3), "certified must be at the radii of the spec"),
    (put("abstained", "value", value=1.0), "abstained.value is 1.000000"),
    (put("abstains", value="0-99"), "abstained|abstains must be"),
    (put("spec", "sigma", value=0.5), "identity is"),
    (put("spec", "noise", value="pink"), "identity|spec.noise"),
    (put("command", value="rm -rf ~"), "command must be what the spec gives"),
    (put("samples", value=1), "samples is not what its record says"),
    (put("shape", value=[1, 28]), "shape must be"),
    (put("kind", value="magic"), "kind must be"),
    (put("kind", value=["certification"]), "kind must be"),
    (put("certified", value=3), "certified must be a list"),
])  # fmt: skip
def test_bad_certified_cards(
    work: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """One sentence that names file and field."""
    (tmp_path / "records").mkdir()
    table = json.loads((work / "board" / "c.json").read_text(encoding="utf-8"))
    change(table)
    (tmp_path / "c.json").write_text(json.dumps(table), encoding="utf-8")
    (tmp_path / "records" / "c.json").write_bytes((work / "board" / "records" / "c.json").read_bytes())
    with pytest.raises(SpecError, match=message) as error:
        read_entry(tmp_path / "c.json")
    assert str(error.value).startswith(f"{tmp_path / 'c.json'}: ")


def test_done_again_it_is_the_same(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`reproduce board` certifies again as the card says, and every radius is the same; one that is not is named."""
    assert 0 == _run(["reproduce", "board", "--scale", str(work / "board"), "--dry-run"])
    assert capsys.readouterr().out.startswith("robustgen certify fmnist-gaussian-0.25 --sigma 0.25")
    again = ["--out", str(tmp_path), "--json"]
    assert 0 == _run(["reproduce", "board", "--scale", str(work / "board"), *again])
    assert 1 == json.loads(capsys.readouterr().out)["equal"]


def test_differences_of_certificates_are_named(card: CertifiedCard) -> None:
    """A radius, a certificate that is gone, and one that is new."""
    stored = dict(zip(range(4), card.radii, strict=True))
    right = [id_ for id_, radius in stored.items() if radius is not None]
    assert len(right) >= 2
    found: dict[int, float | None] = {**stored, right[0]: 0.001, right[1]: None}
    told = compared_certificates(card, card.spec, found, queries=1, seconds=1.0).verdict
    assert f"robust only on the board: {right[1]}; radius differs: {right[0]}" == told
    assert "equal verdicts" == compared_certificates(card, card.spec, stored, queries=1, seconds=1.0).verdict


def forged(members: Members) -> Members:
    """The first certified radius doubled, everywhere, with all that follows from it."""
    from robustgen.certify.certify import Certificate
    from robustgen.certify.record import summarise
    from robustgen.certify.spec import CertificationSpec

    rows = [json.loads(line) for line in members["run/certificates.jsonl"].splitlines()]
    first = next(row for row in rows if row["predict"] == row["label"])
    first["radius"] *= 2
    spec = CertificationSpec.from_json(json.loads(members["run/spec.json"]), "spec")
    totals = summarise(spec, [Certificate.from_line(json.dumps(row)) for row in rows], (1, 28, 28))
    made = {**members, "run/certificates.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode()}
    made = edited(made, "run/record.json", lambda record: record.update(totals))
    told = {key: totals[key] for key in ("certified", "acr", "abstained", "samples")}
    radii = [row["radius"] if row["predict"] == row["label"] else None for row in rows]
    digest = hashlib.sha256(made["run/record.json"]).hexdigest()
    return edited(made, "card.json", lambda card: card.update(told, radii=radii, record_sha256=digest))


def test_a_submission_of_certificates(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fresh noise tests it; a radius that does not follow from its counts is refused, and so are endless draws."""
    words = ["--check", "2", "--draws", "100", "--seed", "5"]
    assert 0 == _run(["leaderboard", "accept", str(work / "c.zip"), "--entries", str(tmp_path / "board"), *words])
    assert "fresh noise" in capsys.readouterr().out
    (entry,) = load_entries(tmp_path / "board")
    assert entry.card.accepted is not None
    assert any(line.startswith("fresh noise: 100 draws for 2 of") for line in entry.card.accepted.told)
    good = members_of(work / "c.zip")
    path = written(tmp_path, forged(good))
    assert 1 == _run(["leaderboard", "accept", str(path), "--entries", str(tmp_path / "other"), *words])
    assert "its radius was edited" in capsys.readouterr().out
    rows = good["run/certificates.jsonl"].replace(b'"counts": [', b'"counts": ["x", ', 1)
    (tmp_path / "a").mkdir()
    with pytest.raises(SpecError, match="line 1: counts must be a list of whole numbers"):
        read_submission(written(tmp_path, {**good, "run/certificates.jsonl": rows}), tmp_path / "a")


def test_a_purified_entry_says_how_its_gradients_cross(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """Gradient mode and draws are in the command, which leads to the same run again; full needs no word."""
    run = tmp_path / "run"
    robustgen.evaluate(
        "fmnist-standard", "fmnist-test-1k", "linf:0.1", n=2, precision="float32", purify="median", gradient="bpda",
        plan="rapid", out=run,
    )  # fmt: skip
    assert 0 == _run(["leaderboard", "add", str(run), "--entries", str(tmp_path / "board")])
    (entry,) = load_entries(tmp_path / "board")
    assert isinstance(entry.card, EntryCard)
    words = shlex.split(entry.card.command)
    assert "bpda" == words[words.index("--gradient") + 1]
    assert words[2].startswith("median")
    assert words[2].endswith("@fmnist-standard")
    assert "gradient-weaker-than-full" in entry.card.flags
    capsys.readouterr()
    again = ["--out", str(tmp_path / "again"), "--json"]
    assert 0 == _run(["reproduce", "board", "--scale", str(tmp_path / "board"), *again])
    assert 1 == json.loads(capsys.readouterr().out)["equal"]
    spec = replace(entry.card.spec, protocol="rapid/3: pgd; eot=8; gradient=full")
    from robustgen.leaderboard.entries import request_of

    assert {"eot": 8} == {key: value for key, value in request_of(spec).items() if key in ("eot", "gradient")}
