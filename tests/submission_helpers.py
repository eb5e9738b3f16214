"""What tests of submissions share: an honest archive, and ways to spoil it as a careful forger would."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustgen.leaderboard.archive import pack
from robustgen.leaderboard.entries import command_of
from robustgen.spec import RunSpec

Members = dict[str, bytes]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7 * 7 }}javascript:alert(3)"


def members_of(archive: Path) -> Members:
    """Name -> content of a good archive."""
    with zipfile.ZipFile(archive) as held:
        return {name: held.read(name) for name in held.namelist()}


def written(folder: Path, members: Members) -> Path:
    """An archive of these members, as `submit` lays it out."""
    path = folder / "submission.zip"
    pack(path, members)
    return path


def edited(members: Members, name: str, change: Callable[[dict[str, Any]], Any]) -> Members:
    """One JSON file changed."""
    table = json.loads(members[name])
    change(table)
    return {**members, name: json.dumps(table).encode()}


def settled(members: Members) -> Members:
    """The card told of what the record says now."""
    record = json.loads(members["run/record.json"])

    def tell(card: dict[str, Any]) -> None:
        card["record_sha256"] = hashlib.sha256(members["run/record.json"]).hexdigest()
        for key in ("spec", "identity", "n", "clean_accuracy", "robust_accuracy", "flags", "notes", "environment"):
            card[key] = record[key]
        card["cost"] |= {"forwards": record["forwards"], "backwards": record["backwards"]}

    return edited(members, "card.json", tell)


def respecified(members: Members, **changes: Any) -> Members:
    """Another specification everywhere: in spec.json, in the record, in the card, with its identity and command."""
    table = json.loads(members["run/spec.json"]) | changes
    spec = RunSpec.from_json(table, "spec")
    identity = spec.identity()
    made = {**members, "run/spec.json": json.dumps(table).encode()}
    made = edited(made, "run/record.json", lambda record: record.update(spec=table, identity=identity))
    return edited(settled(made), "card.json", lambda card: card.update(command=command_of(spec)))


def example_lines(members: Members) -> list[dict[str, Any]]:
    """The rows of examples.jsonl."""
    return [json.loads(line) for line in members["run/examples.jsonl"].splitlines()]


def with_lines(members: Members, rows: list[dict[str, Any]]) -> Members:
    """Other rows."""
    text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
    return {**members, "run/examples.jsonl": text.encode()}


def raw_zip(path: Path, entries: list[tuple[str, bytes, dict[str, Any]]]) -> Path:
    """A zip of anything: name, content, and attributes of its ZipInfo."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content, attributes in entries:
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, content)
    return path
