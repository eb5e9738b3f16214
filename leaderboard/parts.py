"""What cards of every kind share: where a classifier comes from, how an entry was accepted, rules of fields."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from robustgen.errors import SpecError
from robustgen.fields import SEED, Rule, check_fields, check_value, each, read_section, text
from robustgen.leaderboard.published import DAY
from robustgen.spec import Spec, expand_ids
from robustgen.statistics import share_interval

__all__ = [
    "FRACTION", "HASH", "IDS", "LINE", "LINES", "MOST", "Accepted", "Origin", "check_compact", "check_figure",
    "check_identity", "check_said", "check_spec", "chosen_ids", "count", "loading", "read_parts", "shell_line",
]  # fmt: skip

MOST = 1_000_000  # examples; ids are not expanded beyond that
_ROUNDING = 1e-9
_OPTIONAL = ("claimed", "origin", "accepted")


def _matches(pattern: str) -> Any:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _printable(value: Any) -> bool:
    """A text without control characters, which would act on a terminal."""
    return text(value) and value.isprintable()


FRACTION: Rule = (
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1,
    "a fraction of 1 (0.85 for 85 %)",
)
HASH: Rule = (_matches("[0-9a-f]{64}"), "64 lower-case hexadecimal digits")
LINE: Rule = (_printable, "a text that is not empty, without control characters")
LINES: Rule = (each(_printable), "a list of texts without control characters")
IDS: Rule = (lambda value: isinstance(value, str), "ids such as 0-3,7")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """How a classifier is loaded whose name alone does not lead to it; paths are relative to the folder of the cards.

    Args:
        classifier: classifiers/NAME.json, the card of its network; python:FILE.py:FUNCTION for code, which nobody runs
            but who trusts it; empty where the name in the specification will do.
        weights: classifiers/NAME.safetensors, or empty.
    """

    classifier: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        file = r"classifiers/\w[\w.-]*"
        rules: dict[str, Rule] = {
            "origin.classifier": (
                _matches(rf"{file}\.json|python:\w[\w.-]*\.py:\w+|"), "classifiers/NAME.json, python:FILE.py:F, or ''",
            ),
            "origin.weights": (_matches(rf"{file}\.safetensors|"), "classifiers/NAME.safetensors, or ''"),
        }  # fmt: skip
        check_fields(self, "origin", rules)

    @property
    def code(self) -> bool:
        """Whether loading it runs somebody's Python."""
        return self.classifier.startswith("python:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """How `leaderboard accept` came to file an entry.

    Args:
        date: on which it did.
        archive_sha256: of the file that was submitted.
        licence: the first line of its licence.
        seed: of what was drawn again; nobody knew it before.
        again: ids that were attacked again, or none.
        fell: those of them that this broke, although the run says that they are robust.
        flags: health flags that were raised only then.
        told: a sentence for each check.
    """

    date: str
    archive_sha256: str
    licence: str
    seed: int
    again: str = ""
    fell: str = ""
    flags: tuple[str, ...] = ()
    told: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        rules: dict[str, Rule] = {
            "date": DAY, "archive_sha256": HASH, "licence": LINE, "seed": SEED, "again": IDS, "fell": IDS,
            "flags": LINES, "told": LINES,
        }  # fmt: skip
        check_fields(self, "accepted", {f"accepted.{name}": rule for name, rule in rules.items()})

    def check(self, robust: set[int]) -> None:
        """Refuse ids that the card does not call robust."""
        for name in ("again", "fell"):
            check_compact(f"accepted.{name}", getattr(self, name), allow_none=True)
        again, fell = (set(expand_ids(ids)) for ids in (self.again, self.fell))
        if not fell <= again <= robust:
            raise SpecError("accepted.fell must be among accepted.again, and these among the robust examples.")


def read_parts(table: Mapping[str, Any], kinds: Mapping[str, type[Any]]) -> dict[str, Any]:
    """A card's table with each field that is an object of its own made one; null stays null where it may stand.

    Raises:
        SpecError: such a field is no object, or a field of it is missing, unknown or of the wrong kind.
    """
    made = dict(table)
    for name, kind in kinds.items():
        if name in made and not (name in _OPTIONAL and made[name] is None):
            if not isinstance(made[name], dict):
                raise SpecError(f"{name} must be an object, got {made[name]!r}.")
            made[name] = read_section(kind, name, made[name])
    return made


_KINDS: dict[str, Rule] = {
    "str": LINE,
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (lambda value: type(value) in (int, float), "a number"),
    "tuple[str, ...]": LINES,
    "tuple[float, ...]": (each(lambda value: type(value) in (int, float)), "a list of numbers"),
}


def check_spec(spec: Spec) -> None:
    """Fields of the kinds that the specification has, texts printable."""
    stored = spec.table()
    for entry in fields(spec):
        if entry.name in stored:
            check_value(f"spec.{entry.name}", getattr(spec, entry.name), _KINDS[str(entry.type)])


def check_identity(spec: Spec, identity: str) -> None:
    """The identity that the specification hashes to, and no other."""
    if spec.identity() != identity:
        raise SpecError(f"identity is {identity[:12]}, the spec hashes to {spec.identity()[:12]}.")


def check_said(card: Mapping[str, Any], record: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a card, as its file holds it, that says something else than its record.

    Raises:
        SpecError: the first field that differs is named.
    """
    for name in names:
        mine = list(card[name]) if isinstance(card[name], tuple) else card[name]
        if mine != record.get(name):
            raise SpecError(f"{name} is not what its record says, {str(record.get(name))[:60]}.")


def check_figure(name: str, figure: object, count: int, n: int) -> None:
    """A figure (`value`, `low`, `high`) is a share of n that follows from the ids, with the interval of both."""
    for part in ("value", "low", "high"):
        value = getattr(figure, part)
        if not FRACTION[0](value):
            raise SpecError(f"{name}.{part} must be {FRACTION[1]}, got {value!r}.")
    expected = share_interval(count / n, n)
    for part in ("value", "low", "high"):
        value, wanted = getattr(figure, part), getattr(expected, part)
        if abs(value - wanted) > _ROUNDING:
            raise SpecError(f"{name}.{part} is {value:.6f}; {count} of {n} examples give {wanted:.6f}.")


def check_compact(name: str, ids: str, *, allow_none: bool = False) -> None:
    """Ids as "0-3,7": not more than may be expanded, none of them twice, whatever a stranger wrote."""
    if allow_none and ids == "":
        return
    if not re.fullmatch(r"[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*", ids) or count(ids) > MOST:
        raise SpecError(f"{name} must be ids such as 0-3,7, at most {MOST:,}, got '{ids[:40]}'.")
    if len(set(expand_ids(ids))) < count(ids):
        raise SpecError(f"{name} names an example twice, in '{ids[:40]}'.")


def count(ids: str) -> int:
    """How many ids, without writing them out."""
    parts = [part.partition("-") for part in ids.split(",")] if ids else []
    return sum(max(0, int(last or first) - int(first) + 1) for first, _, last in parts)


def chosen_ids(ids: str) -> dict[str, Any]:
    """The examples as a request says them: n for the first n."""
    return {"n": count(ids)} if ids == f"0-{count(ids) - 1}" else {"ids": ids}


def loading(name: str, origin: Origin | None, folder: Path | None) -> dict[str, Any]:
    """How a request says which classifier, behind its purifier where there is one, and which weights."""
    before, at, inner = name.rpartition("@")
    origin = origin or Origin()

    def place(path: str) -> str:
        return path if folder is None or not path or origin.code else str(folder / path)

    if origin.weights:
        inner = inner.partition("+")[0]  # NAME+FILE is what NAME with --weights FILE is called
    asked = {"classifier": f"{before}{at}{place(origin.classifier) or inner}"}
    weights = origin.weights if folder is None or not origin.weights else str(folder / origin.weights)
    return {**asked, **({"weights": weights} if weights else {})}


def shell_line(command: str, asked: Mapping[str, Any]) -> str:
    """A request as a line for the shell, each word quoted where it must be."""
    words = ["robustgen", command, asked["classifier"]]
    for name, value in asked.items():
        words += [] if name == "classifier" else [f"--{name}", str(value)]
    return shlex.join(words)
