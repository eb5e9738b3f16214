"""Cards of our own entries: made from a run, checked against their record, run again."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import robustgen
from robustgen.cli import _run
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.leaderboard.boards import make_board
from robustgen.leaderboard.certified import CertifiedCard
from robustgen.leaderboard.claims import claims_of
from robustgen.leaderboard.entries import ENTRIES, EntryCard, load_entries, read_entry
from robustgen.leaderboard.parts import Origin, loading
from robustgen.leaderboard.rerun import compared, load_table, markdown, measured
from robustgen.spec import expand_ids
from robustgen.verification import Verification
from tests.helpers import write_linear_task

GOOD = next(  # of fmnist-at in Linf
    path for path in sorted(ENTRIES.glob("fmnist-test-1k-fmnist-at-[!l]*.json"))
    if json.loads(path.read_text(encoding="utf-8"))["spec"]["threat"] == "linf:0.1"
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four images of a bundled classifier under the default plan."""
    folder = tmp_path_factory.mktemp("entries") / "run"
    robustgen.evaluate("fmnist-standard", "fmnist-test-1k", "linf:0.1", n=4, precision="float32", out=folder)
    return folder


def changed(folder: Path, change: Callable[[dict[str, Any]], Any], *, record: bool = False) -> Path:
    """A copy of a bundled card, changed; or, its record changed and the card told the new hash."""
    (folder / "records").mkdir(parents=True)
    card, stored = (json.loads(path.read_text(encoding="utf-8")) for path in (GOOD, ENTRIES / "records" / GOOD.name))
    change(stored if record else card)
    if record:
        text = json.dumps(stored)
        card["record_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "records" / GOOD.name).write_text(text, encoding="utf-8")
    else:
        shutil.copy(ENTRIES / "records" / GOOD.name, folder / "records")
    path = folder / GOOD.name
    path.write_text(json.dumps(card), encoding="utf-8")
    return path


def test_bundled_entries_hold() -> None:
    """Every card that comes with robustgen matches its record, and there are some of each of three classifiers."""
    cards = [entry.card for entry in load_entries()]
    assert {"fmnist-standard", "fmnist-at", "fmnist-at-l2"} <= {card.spec.classifier for card in cards}
    for card in cards:
        command = "certify" if isinstance(card, CertifiedCard) else "eval"
        assert card.command.startswith(f"robustgen {command} {card.spec.classifier} --")


def test_card_survives_its_file() -> None:
    """What is written is what was read."""
    card = read_entry(GOOD).card
    assert card == EntryCard.from_json(json.loads(json.dumps(card.to_json())))


def test_add_makes_a_card_that_runs_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run becomes a card with its figures and pictures; run again as the card says, every verdict is the same."""
    assert 0 == _run(["leaderboard", "add", str(run), "--entries", str(tmp_path / "cards")])
    (path,) = (tmp_path / "cards").glob("*.json")
    assert str(path) == capsys.readouterr().out.strip()
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    card = read_entry(path).card
    assert record["robust_accuracy"] == json.loads(path.read_text(encoding="utf-8"))["robust_accuracy"]
    assert hashlib.sha256((run / "record.json").read_bytes()).hexdigest() == card.record_sha256
    assert card.pictures
    assert {picture.id for picture in card.pictures} <= set(expand_ids(card.right)) - set(expand_ids(card.robust))
    out = tmp_path / "again"
    assert 0 == _run(["reproduce", "board", "--scale", str(tmp_path / "cards"), "--out", str(out), "--json"])
    held = json.loads(capsys.readouterr().out)
    assert (1, 1) == (held["equal"], held["entries"])
    assert [card.cost.forwards + card.cost.backwards] * 2 == held["rows"][0]["queries"]
    assert "1 of 1 entries come out with equal verdicts" in (out / "board.md").read_text(encoding="utf-8")
    assert 2 == _run(["leaderboard", "add", str(run), "--entries", str(tmp_path / "cards")])
    assert "is there already" in capsys.readouterr().err


def test_claim_given_by_hand(run: Path, tmp_path: Path) -> None:
    """A claim is held against what was verified, and flagged beyond a point."""
    words = ["--claimed", "75", "--claimed-n", "100", "--claimed-by", "a paper", "--name", "mine"]
    assert 0 == _run(["leaderboard", "add", str(run), "--entries", str(tmp_path), *words])
    entries = load_entries(tmp_path)
    (claim,) = claims_of(entries, ("fmnist-test-1k", "linf:0.1"), published=False)
    verified = entries[0].card.robust_accuracy.value
    assert (0.75, verified, 0.75 - verified) == (claim.claimed, claim.measured, claim.overclaim)
    (row,) = make_board("fmnist-test-1k", "linf:0.1", entries).rows
    assert "overclaim" in row.flags


def test_few_images_may_claim_too_much(tmp_path: Path) -> None:
    """78 % verified: a claim of 80 % over 250 images is within chance, over 100,000 images it is not."""
    for number, (n, flags) in enumerate(((250, ()), (100_000, ("overclaim",)))):
        claim = {"value": 0.8, "n": n, "protocol": "p", "source": "s"}
        path = changed(tmp_path / str(number), put("claimed", value=claim))
        (row,) = make_board("fmnist-test-1k", "linf:0.1", [read_entry(path)]).rows
        assert flags == row.flags


@pytest.mark.parametrize(("words", "message"), [
    (["--claimed", "79.2"], "a claim needs --claimed, --claimed-n and --claimed-by"),
    (["--claimed", "792", "--claimed-n", "9", "--claimed-by", "x"], "--claimed is in percent, from 0 to 100, got 792"),
    (["--name", "../x"], "--name must be letters, digits"),
])  # fmt: skip
def test_bad_words_for_add(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Half a claim, a claim over 100 %, a name that leaves the folder."""
    assert 2 == _run(["leaderboard", "add", str(run), "--entries", str(tmp_path), *words])
    assert message in capsys.readouterr().err
    assert [] == list(tmp_path.iterdir())


def test_runs_that_cannot_be_entries(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No run, a tampered one, one by attacks that no plan names: refused, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    write_linear_task(tmp_path, 6)
    words = [
        "eval",
        "python:net.py:make",
        "--data",
        "npz:data.npz",
        "--threat",
        "linf:0.05",
        "--attacks",
        "pgd:steps=2",
    ]
    assert 0 == _run([*words, "--out", "custom"])
    shutil.copytree(run, tmp_path / "tampered")
    lines = (run / "examples.jsonl").read_text(encoding="utf-8").replace('"robust": false', '"robust": true', 1)
    (tmp_path / "tampered" / "examples.jsonl").write_text(lines, encoding="utf-8")
    capsys.readouterr()
    for folder, message in (
        ("nothing", "is not a run folder"), ("tampered", "does not hold"), ("custom", "classifier"),
    ):  # fmt: skip
        assert 2 == _run(["leaderboard", "add", folder, "--entries", "cards"])
        said = capsys.readouterr().err
        assert message in said
        assert 1 == len(said.strip().splitlines())
    assert not (tmp_path / "cards").exists()


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of one field, which may lie deeper."""

    def change(table: dict[str, Any]) -> None:
        for key in keys[:-1]:
            table = table[key]
        table[keys[-1]] = value

    return change


@pytest.mark.parametrize(("change", "message"), [
    (put("title", value=3), "title must be a text"),
    (put("n", value="1000"), "n must be a whole number >= 1, got '1000'"),
    (put("clean_accuracy", "value", value=87.7), "clean_accuracy.value must be a fraction of 1"),
    (put("robust_accuracy", "value", value=0.99), r"robust_accuracy.value is 0.990000; \d+ of 1000 examples give"),
    (put("robust_accuracy", "high", value=0.9), "robust_accuracy.high is 0.900000"),
    (put("right", value="0-3"), "clean below robust: 4 of 1000 examples are right"),
    (put("robust", value="0-99999999999"), "robust must be ids such as"),
    (put("robust", value="0-999999999"), "robust must be ids such as"),
    (put("record_sha256", value="0" * 64), "the card says 000000000000"),
    (put("record_sha256", value="x"), "record_sha256 must be 64 lower-case hexadecimal digits"),
    (put("identity", value="0" * 64), "identity is 000000000000, the spec hashes to"),
    (put("spec", "seed", value=1), "identity is"),
    (put("spec", "threat", value=["linf:0.1"]), "spec.threat must be a text"),
    (put("spec", "threat", value="linf:alert(1)"), "eps must be a number"),
    (put("spec", value={}), "is no run specification"),
    (put("command", value="rm -rf ~"), "command must be what the spec gives"),
    (put("flags", value=["\x1b[31mred"]), "flags must be a list of texts without control characters"),
    (put("cost", "forwards", value=1), "cost.forwards is not what its record says"),
    (put("cost", value=None), "cost must be an object"),
    (put("claimed", value={"value": 1.2, "n": 9, "protocol": "p", "source": "s"}), "claimed.value must be a fraction"),
    (put("environment", value={}), "environment is not what its record says"),
    (put("pictures", value=[{}]), "the field 'pictures.id' is missing"),
    (put("pictures", value=3), "pictures must be a list"),
    (put("name", value="another"), "the card is called 'another'"),
    (put("colour", value="red"), "unknown field 'card.colour'"),
    (lambda card: card.pop("licence"), "the field 'card.licence' is missing"),
])  # fmt: skip
def test_bad_cards_are_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """One sentence that names file and field."""
    path = changed(tmp_path / "cards", change)
    with pytest.raises(SpecError, match=message) as error:
        read_entry(path)
    assert str(error.value).startswith(f"{path}: ")
    assert 1 == len(str(error.value).splitlines())


@pytest.mark.parametrize(("change", "message"), [
    (put("n", value=999), "n is not what its record says, 999"),
    (put("flags", value=["range"]), "flags is not what its record says"),
    (put("backwards", value=0), "cost.backwards is not what its record says, 0"),
    (put("attacks", value=[{"name": "pgd"}]), "its record's attacks need a name and whole numbers"),
])  # fmt: skip
def test_record_that_does_not_match(tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    """A record with the right hash that says something else than its card."""
    with pytest.raises(SpecError, match=message):
        read_entry(changed(tmp_path / "cards", change, record=True))


def test_pictures_are_checked(tmp_path: Path) -> None:
    """Pixels that do not fit the shape, no base64, an example that stands, thirteen of them."""
    base = read_entry(GOOD).card.to_json()["pictures"][0] | {"shape": [1, 28, 28]}
    standing = expand_ids(read_entry(GOOD).card.robust)[0]
    cases = [
        ([base | {"clean": "AAAA"}], "pictures.clean must hold 784 bytes"),
        ([base | {"adversarial": "<svg>"}], "pictures.adversarial must be base64"),
        ([base | {"shape": [4, 14, 14]}], "pictures.shape must be"),
        ([base | {"id": standing}], "pictures must be of at most 12 different examples that were broken"),
        ([base, base], "pictures must be of at most 12 different examples"),
    ]
    for number, (pictures, message) in enumerate(cases):
        with pytest.raises(SpecError, match=message):
            read_entry(changed(tmp_path / str(number), put("pictures", value=pictures)))


def test_duplicates_are_refused(tmp_path: Path) -> None:
    """A key twice in a card, and one run under two names."""
    path = changed(tmp_path / "keys", lambda card: None)
    path.write_text(path.read_text(encoding="utf-8").replace("{", '{"n": 1000, ', 1), encoding="utf-8")
    with pytest.raises(SpecError, match="the key 'n' stands twice"):
        read_entry(path)
    path = changed(tmp_path / "runs", lambda card: None)
    twin = path.with_name("twin.json")
    card = json.loads(path.read_text(encoding="utf-8")) | {"name": "twin"}
    twin.write_text(json.dumps(card), encoding="utf-8")
    shutil.copy(path.parent / "records" / path.name, path.parent / "records" / "twin.json")
    with pytest.raises(SpecError, match=r"twin are cards of the same run; remove one"):
        load_entries(path.parent)


def test_missing_record(tmp_path: Path) -> None:
    """A card whose record is not there."""
    path = changed(tmp_path / "cards", lambda card: None)
    (path.parent / "records" / path.name).unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_entry(path)


def test_differences_are_named() -> None:
    """Examples that come out otherwise are named by id, and so are fields of the specification."""
    card = read_entry(GOOD).card
    robust, right = set(expand_ids(card.robust)), set(expand_ids(card.right))
    fallen, risen = min(robust), min(right - robust)
    now = (robust - {fallen}) | {risen}
    examples = [
        ExampleRecord(id=id_, label=0, clean_prediction=0 if id_ in right else 1, robust=id_ in now)
        for id_ in expand_ids(card.spec.ids)
    ]
    same = compared(card, card.spec, examples, queries=1, seconds=1.0)
    assert f"robust only on the board: {fallen}; robust only now: {risen}" == same.verdict
    assert (len(robust), len(robust)) == (same.stored, same.found)
    exact = compared(
        card, card.spec, [ExampleRecord(id=e.id, label=0, clean_prediction=e.clean_prediction, robust=e.id in robust)
                          for e in examples], queries=1, seconds=1.0,
    )  # fmt: skip
    assert "equal verdicts" == exact.verdict
    table = load_table("laptop")
    shown = markdown(measured(table, [(card, same)]))
    assert f"robust only on the board: {fallen}" in shown
    assert "not run yet" in shown
    assert f"0 of {len(table.rows)} entries come out with equal verdicts" in shown


def test_reproduce_board_tells_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run prints one command an entry; there is no other scale."""
    assert 0 == _run(["reproduce", "board", "--dry-run"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(load_entries()) == len(lines)
    assert all(line.startswith(("robustgen eval ", "robustgen certify ")) and " --out " in line for line in lines)
    assert 2 == _run(["reproduce", "board", "--scale", "paper"])
    assert "board has one scale" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "origin", "asked"), [
    ("fmnist-at", Origin(), {"classifier": "fmnist-at"}),
    ("mine", Origin(classifier="classifiers/n.json"), {"classifier": "b/classifiers/n.json"}),
    ("median@mine", Origin(classifier="classifiers/n.json"), {"classifier": "median@b/classifiers/n.json"}),
    ("fmnist-at+file", Origin(weights="classifiers/n.safetensors"),
     {"classifier": "fmnist-at", "weights": "b/classifiers/n.safetensors"}),
    ("net.make+file", Origin(classifier="python:net.py:make", weights="classifiers/n.safetensors"),
     {"classifier": "python:net.py:make", "weights": "b/classifiers/n.safetensors"}),
])  # fmt: skip
def test_where_a_classifier_comes_from(name: str, origin: Origin, asked: dict[str, str]) -> None:
    """Files beside the cards are found there, behind the purifier that the name has; code is named as it was."""
    assert asked == loading(name, origin, Path("b"))
    assert {key: value.replace("b/", "") for key, value in asked.items()} == loading(name, origin, None)


@pytest.mark.parametrize(
    "path", ["../x.json", "/etc/x.json", "classifiers/../x.json", "http://x/y.json", "python:a/b.py:f"]
)
def test_an_origin_stays_beside_the_cards(path: str) -> None:
    """No path leads out of the folder, and code has no path."""
    with pytest.raises(SpecError, match=r"origin\.classifier must be"):
        Origin(classifier=path)


def test_add_never_files_what_verify_refuses(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check is that of `robustgen verify`: what it finds wrong is what is said."""
    from robustgen.leaderboard import add

    found = Verification(run=run, checked=(), wrong=("example 3 is not broken.",))
    monkeypatch.setattr(add, "verify_run", lambda *_, **__: found)
    with pytest.raises(RecordError, match="does not hold: example 3 is not broken"):
        add.add_run(run, tmp_path)
