"""Entries of our own: one card each, checked against the record that it was made from.

entries/NAME.json             the card
entries/records/NAME.json     record.json of the run, byte for byte
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustgen.eps import same_threat
from robustgen.errors import ArtifactError, RecordError, SpecError
from robustgen.fields import FILE_NAME, NOT_NEGATIVE, TEXT, WHOLE, Rule, check_fields, each, read_section, text
from robustgen.leaderboard.pictures import MOST, Picture
from robustgen.leaderboard.published import DAY
from robustgen.leaderboard.strict import read_object, read_with
from robustgen.spec import RunSpec, expand_ids
from robustgen.statistics import Estimate, share_interval

__all__ = [
    "ENTRIES", "Claimed", "Cost", "Entry", "EntryCard", "command_of", "load_entries", "read_entry", "request_of",
]  # fmt: skip

ENTRIES = Path(__file__).resolve().parent / "entries"

_MOST = 1_000_000  # examples; ids are not expanded beyond that
_ROUNDING = 1e-9
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
        rules = {"value": _FRACTION, "n": WHOLE, "protocol": _LINE, "source": _LINE}
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
    schema: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)
        for name, value in self.spec.to_json().items():
            named = name == "surrogates" and isinstance(value, list) and each(_printable)(tuple(value))
            if not (_printable(value) or type(value) is int or named):
                raise SpecError(f"spec.{name} must be a text without control characters or a number, got {value!r}.")
        same_threat(self.spec.threat, self.spec.threat)  # whose eps have to be numbers
        if self.spec.identity() != self.identity:
            raise SpecError(f"identity is {self.identity[:12]}, the spec hashes to {self.spec.identity()[:12]}.")
        if self.spec.goal != "untargeted":
            raise SpecError(f"spec.goal must be untargeted on a board of robust accuracy, got '{self.spec.goal}'.")
        self._check_ids()
        for name, ids in (("clean_accuracy", self.right), ("robust_accuracy", self.robust)):
            _check_figure(name, getattr(self, name), _count(ids), self.n)
        if self.command != command_of(self.spec):
            raise SpecError(f"command must be what the spec gives, {command_of(self.spec)!r}, got {self.command!r}.")

    def _check_ids(self) -> None:
        for name in ("right", "robust"):
            _check_compact(name, getattr(self, name), allow_none=True)
        _check_compact("spec.ids", self.spec.ids)
        if _count(self.spec.ids) != self.n or self.n > _MOST:
            raise SpecError(f"n is {self.n}, the spec names {_count(self.spec.ids)} examples (at most {_MOST:,}).")
        if _count(self.robust) > _count(self.right) or _count(self.right) > self.n:
            raise SpecError(
                f"clean below robust: {_count(self.right)} of {self.n} examples are right and {_count(self.robust)} "
                "robust, and what is robust has to be right."
            )
        examples, right, robust = (set(expand_ids(ids)) for ids in (self.spec.ids, self.right, self.robust))
        if not robust <= right <= examples:
            stray = min((robust - right) | (right - examples))
            raise SpecError(f"example {stray} is robust but not right, or not one of the run's.")
        shown = {picture.id for picture in self.pictures}
        if len(self.pictures) > MOST or len(shown) < len(self.pictures) or not shown <= right - robust:
            raise SpecError(f"pictures must be of at most {MOST} different examples that were broken.")

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {**asdict(self), "spec": self.spec.to_json()}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> EntryCard:
        """The inverse of `to_json`.

        Raises:
            SpecError: a field is missing, unknown, or of the wrong kind.
        """
        made = dict(table)
        for name, kind in (
            ("clean_accuracy", Estimate),
            ("robust_accuracy", Estimate),
            ("cost", Cost),
            ("claimed", Claimed),
        ):
            if name in made and not (name == "claimed" and made[name] is None):
                made[name] = _section(kind, name, made[name])
        if "pictures" in made:
            if not isinstance(made["pictures"], list):
                raise SpecError(f"pictures must be a list, got {made['pictures']!r}.")
            made["pictures"] = tuple(_section(Picture, "pictures", picture) for picture in made["pictures"])
        if "spec" in made:
            try:
                made["spec"] = RunSpec.from_json(made["spec"], "spec")
            except RecordError as error:
                raise SpecError(str(error)) from None
        return read_section(cls, "card", made)


@dataclass(frozen=True, slots=True)
class Entry:
    """A card with the record that it was made from, read and as the bytes of its file."""

    card: EntryCard
    record: dict[str, Any]
    content: bytes

    def check(self) -> None:
        """Refuse a card that does not say what its record says.

        Raises:
            SpecError: the first field that differs is named.
        """
        said = self.card.to_json()
        for name in _FROM_RECORD:
            mine = list(said[name]) if isinstance(said[name], tuple) else said[name]
            if mine != self.record.get(name):
                raise SpecError(f"{name} is not what its record says, {str(self.record.get(name))[:60]}.")
        for name in ("forwards", "backwards"):
            if self.record.get(name) != said["cost"][name]:
                raise SpecError(f"cost.{name} is not what its record says, {self.record.get(name)}.")
        for attack in self.attacks:
            if not isinstance(attack.get("name"), str) or any(type(attack.get(key)) is not int for key in _COUNTS):
                raise SpecError(f"its record's attacks need a name and whole numbers of {', '.join(_COUNTS)}.")

    @property
    def attacks(self) -> list[dict[str, Any]]:
        """What each attack broke and spent, in the order in which they ran."""
        held = self.record.get("attacks")
        return [attack for attack in held if isinstance(attack, dict)] if isinstance(held, list) else []


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
    card = read_with(path, EntryCard.from_json)
    if card.name != path.stem:
        raise SpecError(f"{path}: the card is called '{card.name}'; it belongs in {card.name}.json.")
    stored = path.parent / "records" / path.name
    record = read_object(stored)
    content = stored.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != card.record_sha256:
        raise SpecError(f"{path}: {stored} has sha256 {found[:12]}, the card says {card.record_sha256[:12]}.")
    entry = Entry(card, record, content)
    try:
        entry.check()
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    return entry


def request_of(spec: RunSpec) -> dict[str, Any]:
    """What `robustgen eval` is asked for to make such a run again, as keywords of `Request`."""
    whole = spec.ids == f"0-{_count(spec.ids) - 1}"
    return {
        "classifier": spec.classifier, "data": spec.data, "threat": spec.threat, "plan": spec.plan,
        **({"surrogates": ",".join(text.split()[0] for text in spec.surrogates)} if spec.surrogates else {}),
        **({"n": _count(spec.ids)} if whole else {"ids": spec.ids}), "seed": spec.seed, "precision": spec.precision,
    }  # fmt: skip


def command_of(spec: RunSpec) -> str:
    """The same as a line for the shell, each word quoted where it must be."""
    asked = request_of(spec)
    words = ["robustgen", "eval", asked.pop("classifier")]
    for name, value in asked.items():
        words += [f"--{name}", str(value)]
    return shlex.join(words)


def _section(kind: type[Any], name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        raise SpecError(f"{name} must be an object, got {value!r}.")
    return read_section(kind, name, value)


def _check_figure(name: str, figure: Estimate, count: int, n: int) -> None:
    """A figure is a share of n that follows from the ids, with the interval that follows from both."""
    for part in ("value", "low", "high"):
        value = getattr(figure, part)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise SpecError(f"{name}.{part} must be a fraction of 1 (0.85 for 85 %), got {value!r}.")
    expected = share_interval(count / n, n)
    for part in ("value", "low", "high"):
        value, wanted = getattr(figure, part), getattr(expected, part)
        if abs(value - wanted) > _ROUNDING:
            raise SpecError(f"{name}.{part} is {value:.6f}; {count} of {n} examples give {wanted:.6f}.")


def _check_compact(name: str, ids: str, *, allow_none: bool = False) -> None:
    """Ids as "0-3,7": not more than may be expanded, whatever a stranger wrote."""
    if allow_none and ids == "":
        return
    if not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", ids) or _count(ids) > _MOST:
        raise SpecError(f"{name} must be ids such as 0-3,7, at most {_MOST:,}, got '{ids[:40]}'.")


def _count(ids: str) -> int:
    """How many ids, without writing them out."""
    parts = [part.partition("-") for part in ids.split(",")] if ids else []
    return sum(max(0, int(last or first) - int(first) + 1) for first, _, last in parts)


def _matches(pattern: str) -> Any:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _plain_text(value: Any) -> bool:
    return isinstance(value, str)


def _printable(value: Any) -> bool:
    """A text without control characters, which would act on a terminal."""
    return text(value) and value.isprintable()


_FRACTION: Rule = (
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1,
    "a fraction of 1 (0.85 for 85 %)",
)
_HASH: Rule = (_matches("[0-9a-f]{64}"), "64 lower-case hexadecimal digits")
_LINE: Rule = (_printable, "a text that is not empty, without control characters")
_RULES: dict[str, Rule] = {
    "name": FILE_NAME,
    "title": _LINE,
    "architecture": _LINE,
    "licence": _LINE,
    "source": _LINE,
    "date": DAY,
    "identity": _HASH,
    "record_sha256": _HASH,
    "n": WHOLE,
    "right": (_plain_text, "ids such as 0-3,7"),
    "robust": (_plain_text, "ids such as 0-3,7"),
    "flags": (each(_printable), "a list of texts without control characters"),
    "notes": (each(_printable), "a list of texts without control characters"),
    "environment": (lambda value: isinstance(value, dict), "an object"),
    "command": TEXT,
    "schema": (lambda value: value == 1 and value is not True, "1, which this version reads"),
}
