"""Entries of our own: one card each, checked against the record that it was made from.

entries/NAME.json             the card
entries/records/NAME.json     record.json of the run, byte for byte
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustgen.eps import same_threat
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.fields import FILE_NAME, NOT_NEGATIVE, TEXT, WHOLE, Rule, check_fields, read_section
from robustgen.leaderboard.certified import CERTIFICATION, CertifiedCard, certification_request
from robustgen.leaderboard.parts import (
    FRACTION,
    HASH,
    IDS,
    LINE,
    LINES,
    MOST,
    Accepted,
    Origin,
    check_compact,
    check_figure,
    check_identity,
    check_said,
    check_spec,
    chosen_ids,
    count,
    loading,
    read_parts,
    shell_line,
)
from robustgen.leaderboard.pictures import MOST as MOST_PICTURES
from robustgen.leaderboard.pictures import Picture
from robustgen.leaderboard.published import DAY
from robustgen.leaderboard.strict import read_object, read_with
from robustgen.spec import RunSpec, expand_ids
from robustgen.statistics import Estimate

__all__ = [
    "ENTRIES", "Claimed", "Cost", "Entry", "EntryCard", "attacks_of", "command_in", "command_of", "load_entries",
    "read_card", "read_entry", "request_of",
]  # fmt: skip

ENTRIES = Path(__file__).resolve().parent / "entries"

_APART = ("transfer", "queries")  # plans of an adversary who sees less than the network
_ATTACKS = "attacks"  # the kind of card that says nothing of its kind
_COUNTS = ("broken", "forwards", "backwards")
_FROM_RECORD = ("spec", "identity", "n", "clean_accuracy", "robust_accuracy", "flags", "notes", "environment")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Queries of all attacks together, and seconds of the machine that the environment names."""

    forwards: int
    backwards: int
    seconds: float

    def __post_init__(self) -> None:
        whole: Rule = (lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "whole")
        check_fields(self, "cost", {"cost.forwards": whole, "cost.backwards": whole, "cost.seconds": NOT_NEGATIVE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """What was said of the classifier before: robust accuracy as a fraction of 1, of n images, how, and where."""

    value: float
    n: int
    protocol: str
    source: str

    def __post_init__(self) -> None:
        rules = {"value": FRACTION, "n": WHOLE, "protocol": LINE, "source": LINE}
        check_fields(self, "claimed", {f"claimed.{name}": rule for name, rule in rules.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryCard:
    """All that the board shows of a run, and what it takes to check it.

    Args:
        name: of the card's file, without .json.
        title, architecture, licence, source: of the classifier.
        date: on which the card was made.
        spec, identity: of the run.
        record_sha256: of record.json, byte for byte.
        n: examples.
        clean_accuracy, robust_accuracy: fractions of 1 with 95 % Wilson intervals.
        right, robust: ids that are classified correctly, and of those that no attack broke, as "0-3,7".
        flags, notes, environment: as in the record.
        cost: of the run.
        command: runs it again.
        claimed: what was said of it before, or None.
        pictures: some of the examples that were broken.
        origin: where the classifier comes from, if its name does not lead to it.
        accepted: what was checked when somebody submitted it; None for a run of our own.

    Raises:
        SpecError: a field is of another kind than said here, or two of them contradict each other.
    """

    name: str
    title: str
    architecture: str
    licence: str
    source: str
    date: str
    spec: RunSpec
    identity: str
    record_sha256: str
    n: int
    clean_accuracy: Estimate
    robust_accuracy: Estimate
    right: str
    robust: str
    flags: tuple[str, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]
    cost: Cost
    command: str
    claimed: Claimed | None = None
    pictures: tuple[Picture, ...] = ()
    origin: Origin | None = None
    accepted: Accepted | None = None
    schema: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)
        check_spec(self.spec)
        same_threat(self.spec.threat, self.spec.threat)  # whose eps have to be numbers
        check_identity(self.spec, self.identity)
        if self.spec.goal != "untargeted":
            raise SpecError(f"spec.goal must be untargeted on a board of robust accuracy, got '{self.spec.goal}'.")
        self._check_ids()
        for name, ids in (("clean_accuracy", self.right), ("robust_accuracy", self.robust)):
            check_figure(name, getattr(self, name), count(ids), self.n)
        command = command_of(self.spec, self.origin)
        if self.command != command:
            raise SpecError(f"command must be what the spec gives, {command!r}, got {self.command!r}.")
        if self.accepted is not None:
            self.accepted.check(set(expand_ids(self.robust)))

    def _check_ids(self) -> None:
        for name in ("right", "robust"):
            check_compact(name, getattr(self, name), allow_none=True)
        check_compact("spec.ids", self.spec.ids)
        if count(self.spec.ids) != self.n or self.n > MOST:
            raise SpecError(f"n is {self.n}, the spec names {count(self.spec.ids)} examples (at most {MOST:,}).")
        if count(self.robust) > count(self.right) or count(self.right) > self.n:
            raise SpecError(
                f"clean below robust: {count(self.right)} of {self.n} examples are right and {count(self.robust)} "
                "robust, and what is robust has to be right."
            )
        examples, right, robust = (set(expand_ids(ids)) for ids in (self.spec.ids, self.right, self.robust))
        if not robust <= right <= examples:
            stray = min((robust - right) | (right - examples))
            raise SpecError(f"example {stray} is robust but not right, or not one of the run's.")
        shown = {picture.id for picture in self.pictures}
        if len(self.pictures) > MOST_PICTURES or len(shown) < len(self.pictures) or not shown <= right - robust:
            raise SpecError(f"pictures must be of at most {MOST_PICTURES} different examples that were broken.")

    @property
    def threat(self) -> str:
        """Of the board that it belongs on; an adversary who sees less has a board apart: transfer/linf:0.1."""
        return f"{self.spec.plan}/{self.spec.threat}" if self.spec.plan in _APART else self.spec.threat

    def check_record(self, record: Mapping[str, Any]) -> None:
        """Refuse a record that does not say what this card says.

        Raises:
            SpecError: the first field that differs is named.
        """
        check_said(self.to_json(), record, _FROM_RECORD)
        for name in ("forwards", "backwards"):
            if record.get(name) != getattr(self.cost, name):
                raise SpecError(f"cost.{name} is not what its record says, {record.get(name)}.")
        for attack in attacks_of(record):
            if not isinstance(attack.get("name"), str) or any(type(attack.get(key)) is not int for key in _COUNTS):
                raise SpecError(f"its record's attacks need a name and whole numbers of {', '.join(_COUNTS)}.")

    def to_json(self) -> dict[str, Any]:
        """What the file holds; nothing of what a card of a run of our own has not."""
        made = {**asdict(self), "spec": self.spec.to_json()}
        return {key: value for key, value in made.items() if value is not None or key not in ("origin", "accepted")}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> EntryCard:
        """The inverse of `to_json`.

        Raises:
            SpecError: a field is missing, unknown, or of the wrong kind.
        """
        made = read_parts(table, _PARTS)
        if "pictures" in made:
            if not isinstance(made["pictures"], list):
                raise SpecError(f"pictures must be a list, got {made['pictures']!r}.")
            made["pictures"] = tuple(
                read_parts({"pictures": picture}, {"pictures": Picture})["pictures"] for picture in made["pictures"]
            )
        if "spec" in made:
            try:
                made["spec"] = RunSpec.from_json(made["spec"], "spec")
            except RecordError as error:
                raise SpecError(str(error)) from None
        return read_section(cls, "card", made)


@dataclass(frozen=True, slots=True)
class Entry:
    """A card with the record that it was made from, read and as the bytes of its file."""

    card: EntryCard | CertifiedCard
    record: dict[str, Any]
    content: bytes

    def check(self) -> None:
        """Refuse a card that does not say what its record says, or names another record.

        Raises:
            SpecError: the first field that differs is named.
        """
        found = hashlib.sha256(self.content).hexdigest()
        if found != self.card.record_sha256:
            raise SpecError(f"its record has sha256 {found[:12]}, the card says {self.card.record_sha256[:12]}.")
        self.card.check_record(self.record)


def attacks_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each attack broke and spent, in the order in which they ran."""
    held = record.get("attacks")
    return [attack for attack in held if isinstance(attack, dict)] if isinstance(held, list) else []


def read_card(table: Mapping[str, Any]) -> EntryCard | CertifiedCard:
    """The card of any kind in an object of JSON.

    Raises:
        SpecError: it is none; the field is named.
    """
    kind = table.get("kind", _ATTACKS)
    if kind not in (_ATTACKS, CERTIFICATION):
        raise SpecError(f"kind must be {_ATTACKS} (or left out) or {CERTIFICATION}, got {kind!r}.")
    if kind == CERTIFICATION:
        return CertifiedCard.from_json(table)
    return EntryCard.from_json({key: value for key, value in table.items() if key != "kind"})


def load_entries(folder: Path | None = None) -> tuple[Entry, ...]:
    """All entries of a folder, by name; those that come with robustgen where none is named.

    Raises:
        SpecError, ArtifactError: the folder is missing, a card is none, or one does not match its record.
    """
    where = folder or ENTRIES
    if folder is not None and not folder.is_dir():
        raise ArtifactError(f"--entries {folder}: there is no such folder; make a card with robustgen leaderboard add.")
    entries = tuple(read_entry(path) for path in sorted(where.glob("*.json")))
    seen: dict[str, str] = {}
    for entry in entries:
        other = seen.setdefault(entry.card.identity, entry.card.name)
        if other != entry.card.name:
            raise SpecError(f"{where}: {other} and {entry.card.name} are cards of the same run; remove one.")
    return entries


def read_entry(path: Path) -> Entry:
    """A card and its record.

    Raises:
        SpecError, ArtifactError: the card is none, or does not match its record; file and field are named.
    """
    card = read_with(path, read_card)
    if card.name != path.stem:
        raise SpecError(f"{path}: the card is called '{card.name}'; it belongs in {card.name}.json.")
    stored = path.parent / "records" / path.name
    entry = Entry(card, read_object(stored), stored.read_bytes())
    try:
        entry.check()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return entry


def request_of(spec: RunSpec, origin: Origin | None = None, folder: Path | None = None) -> dict[str, Any]:
    """What `robustgen eval` is asked for to make such a run again, as keywords of `Request`.

    Args:
        spec: of the run.
        origin: of its classifier.
        folder: of the cards, to which paths in the origin belong; None to leave them as they are.
    """
    said = dict(re.findall(r"; (gradient|eot)=(\w{1,9})", spec.protocol))  # of a purified or random classifier
    crossing = {} if said.get("gradient", "full") == "full" else {"gradient": said["gradient"]}
    draws = {"eot": int(said["eot"])} if said.get("eot", "").isdecimal() else {}
    return {
        **loading(spec.classifier, origin, folder), "data": spec.data, "threat": spec.threat, "plan": spec.plan,
        **({"surrogates": ",".join(text.partition(" ")[0] for text in spec.surrogates)} if spec.surrogates else {}),
        **crossing, **draws, **chosen_ids(spec.ids), "seed": spec.seed, "precision": spec.precision,
    }  # fmt: skip


def command_of(spec: RunSpec, origin: Origin | None = None) -> str:
    """The same as a line for the shell, each word quoted where it must be."""
    return shell_line("eval", request_of(spec, origin))


def command_in(card: EntryCard | CertifiedCard, folder: Path) -> str:
    """The command of a card, with the paths of what lies in the folder of the cards."""
    if isinstance(card, CertifiedCard):
        return shell_line("certify", certification_request(card.spec, card.origin, folder))
    return shell_line("eval", request_of(card.spec, card.origin, folder))


_PARTS: dict[str, type[Any]] = {
    "clean_accuracy": Estimate, "robust_accuracy": Estimate, "cost": Cost, "claimed": Claimed, "origin": Origin,
    "accepted": Accepted,
}  # fmt: skip
_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "title": LINE,
    "architecture": LINE,
    "licence": LINE,
    "source": LINE,
    "date": DAY,
    "identity": HASH,
    "record_sha256": HASH,
    "n": WHOLE,
    "right": IDS,
    "robust": IDS,
    "flags": LINES,
    "notes": LINES,
    "environment": (lambda value: isinstance(value, dict), "an object"),
    "command": TEXT,
    "schema": (lambda value: value == 1 and value is not True, "1, which this version reads"),
}
