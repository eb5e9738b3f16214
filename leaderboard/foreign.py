"""A submission, read as data and nothing else: every field of every file is of its kind before any of it is used.

What is read here was written by a stranger. No code of theirs is run, no path of theirs followed, no name looked up but
those of data, plans, purifiers and classifiers that robustgen knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.cards import bundled_cards
from robustgen.certify.certify import Certificate
from robustgen.data import DATA
from robustgen.errors import RobustgenError, SpecError, unknown_name
from robustgen.example import ExampleRecord
from robustgen.fields import NOT_NEGATIVE, Rule, check_value, number, or_none, read_section
from robustgen.flags import FLAGS
from robustgen.generator.card import bundled_generators
from robustgen.leaderboard.archive import CLASSIFIER, WEIGHTS, unpack
from robustgen.leaderboard.certified import CertifiedCard
from robustgen.leaderboard.entries import Entry, EntryCard, read_card
from robustgen.leaderboard.foreign_network import check_network, check_tensors
from robustgen.leaderboard.parts import Origin
from robustgen.leaderboard.strict import plain, read_lines, read_object, read_with
from robustgen.nets import TORCHVISION
from robustgen.record import RunRecord
from robustgen.registry import PLANS
from robustgen.robustbench_zoo import ROBUSTBENCH
from robustgen.spec import RunSpec

__all__ = ["Submission", "read_submission", "told"]

_LINES = 200_000_000  # bytes of a journal
_LONGEST = 2000  # characters of what somebody says in words
_NAME = 100  # characters of the name of a card
_DRAWS = 1_000_000  # of a certification, an example
_LARGEST = 2**31  # ids, classes and counts of an example stay below


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """What an archive holds, unpacked and of the right form; whether it is true is another matter.

    Attributes:
        entry: card and record.
        run: the run folder.
        classifier: the card of a network that came along, or None.
        weights: a file of weights that came along, or None.
        licence: the text of the licence.
        sha256: of the archive.
        members, size: how many files it holds, and their bytes together.
    """

    entry: Entry
    run: Path
    classifier: Path | None
    weights: Path | None
    licence: str
    sha256: str
    members: int
    size: int


def read_submission(path: Path, folder: Path) -> Submission:
    """Unpack an archive into an empty folder and check the form of all that it holds.

    Raises:
        SpecError: something in it is not what a submission has; one sentence, fit for a terminal, says what.
    """
    try:
        return _read(path, folder)
    except (RobustgenError, OSError) as error:
        raise SpecError(f"{path.name}: {told(error, path, folder)}") from None


def told(error: Exception, path: Path, folder: Path) -> str:
    """What went wrong, without the places where it was unpacked, and without what would act on a terminal."""
    return plain(str(error).replace(f"{folder}/", "").replace(f"{path}: ", "").replace(f"{path} ", ""))


def _read(path: Path, folder: Path) -> Submission:
    held, sha256 = unpack(path, folder)
    for needed in ("card.json", "licence.txt", "run/spec.json", "run/record.json"):
        if needed not in held:
            raise SpecError(f"{needed} is missing.")
    table, record = read_object(held["card.json"]), read_object(held["run/record.json"])
    for name, content in (("card.json", table), ("run/record.json", record)):
        _check_words(name, content)
    card = read_with(held["card.json"], read_card)
    entry = Entry(card, record, held["run/record.json"].read_bytes())
    entry.check()
    if read_object(held["run/spec.json"]) != table["spec"]:
        raise SpecError("run/spec.json is not the specification of the card.")
    _check_card(card)
    check_names(card)
    if isinstance(card, CertifiedCard):
        _check_certification(card.spec, held)
    else:
        _check_run(folder / "run", record, held)
    _check_origin(card.name, card.origin, held)
    for name in held:
        if name.endswith(".safetensors"):
            check_tensors(held[name])
    if CLASSIFIER in held:
        _check_words(CLASSIFIER, read_object(held[CLASSIFIER]))
        check_network(held[CLASSIFIER], held[WEIGHTS])
    return Submission(
        entry=entry, run=folder / "run", classifier=held.get(CLASSIFIER), weights=held.get(WEIGHTS),
        licence=_licence(held["licence.txt"]), sha256=sha256, members=len(held),
        size=sum(file.stat().st_size for file in held.values()),
    )  # fmt: skip


def _check_words(where: str, value: Any) -> None:
    """Every text and every key can be shown: nothing that acts on a terminal or turns the direction of writing."""
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(part, str) and not (part.isprintable() or part == ""):
            raise SpecError(f"{where} holds {part[:40]!r}, with characters that cannot be shown.")
        _check_words(where, part)


def _check_card(card: EntryCard | CertifiedCard) -> None:
    """What a card of ours may have, and one of a stranger may not."""
    if card.accepted is not None:
        raise SpecError("card.json: accepted is for the board to fill in; leave it out.")
    if not card.name.isascii() or len(card.name) > _NAME:
        raise SpecError(f"card.json: name must be at most {_NAME} letters, digits and .-_ of ASCII, got {card.name!r}.")
    words = [card.title, card.architecture, card.licence, card.source, *card.flags]
    if isinstance(card, EntryCard):
        words += [*card.notes, *([card.claimed.protocol, card.claimed.source] if card.claimed else [])]
        words += [part for picture in card.pictures for part in (picture.label, picture.prediction)]
    for word in words:
        if len(word) > _LONGEST:
            raise SpecError(f"card.json holds a text of {len(word):,} characters, at most {_LONGEST:,} are shown.")
    for flag in card.flags:
        if flag not in FLAGS:
            raise unknown_name("flag", flag, FLAGS)


def check_names(card: EntryCard | CertifiedCard) -> None:
    """Names of data, plan, purifier, generator and classifier that robustgen knows; none that is a path or an address.

    Raises:
        SpecError: any other name.
    """
    spec, origin = card.spec, card.origin or Origin()
    known = [name for name in DATA if ":" not in name]
    if spec.data not in known:
        raise SpecError(f"spec.data must be one of {', '.join(known)}, which anybody has, got '{spec.data}'.")
    if isinstance(spec, RunSpec) and (spec.plan not in PLANS or spec.plan_sha256):
        raise SpecError(f"spec.plan must be a plan that comes with robustgen, got '{spec.plan}'.")
    generator, _, name = spec.classifier.rpartition("|")
    if generator and generator not in bundled_generators():
        raise unknown_name("generator", generator, bundled_generators())
    purifier, _, inner = name.rpartition("@")
    if not re.fullmatch(r"[A-Za-z0-9_.:=,+-]*", purifier) or re.search(r"\.json|diffusers:", purifier):
        raise SpecError(f"spec.classifier has a purifier that names a file: '{purifier}'.")
    if re.search(r"(?<![.0-9])[0-9]{5}|e\+", purifier):
        raise SpecError(f"spec.classifier has a purifier that would not come to an end: '{purifier}'.")
    check_value("spec.seed", spec.seed, _SEED)
    for text in getattr(spec, "surrogates", ()):
        surrogate = text.partition(" ")[0]
        if surrogate not in bundled_cards():
            raise SpecError(f"spec.surrogates names '{surrogate[:60]}', which is none of robustgen list classifiers.")
    if origin.classifier:  # a network that came along, or code, which is another matter
        if inner in bundled_cards() or inner.startswith((TORCHVISION, ROBUSTBENCH)):
            raise SpecError(f"spec.classifier is '{inner}', and a network of another origin may not be called so.")
        return
    inner = inner.partition("+")[0] if origin.weights else inner
    published = re.fullmatch(rf"{TORCHVISION}[a-z0-9_]+|{ROBUSTBENCH}[A-Za-z0-9_/-]+", inner)
    if inner not in bundled_cards() and published is None:
        raise SpecError(
            f"spec.classifier is '{inner}', which nobody else has: name one of robustgen list classifiers, or send its "
            "network along (robustgen submit --classifier CARD.json)."
        )


def _check_origin(name: str, origin: Origin | None, held: Mapping[str, Path]) -> None:
    """A network and weights are there if, and only if, the card says so."""
    said = origin or Origin()
    network, weights = f"classifiers/{name}.json", f"classifiers/{name}.safetensors"
    if said.classifier not in ("", network) and not said.code:
        raise SpecError(f"origin.classifier must be {network}, got '{said.classifier}'.")
    if said.weights not in ("", weights):
        raise SpecError(f"origin.weights must be {weights}, got '{said.weights}'.")
    for file, wanted in (
        (CLASSIFIER, said.classifier == network), (WEIGHTS, said.classifier == network or bool(said.weights)),
    ):  # fmt: skip
        if (file in held) != wanted:
            raise SpecError(f"{file} {'is missing' if wanted else 'is there'}, and the card says otherwise (origin).")


def _check_run(run: Path, record: Mapping[str, Any], held: Mapping[str, Path]) -> None:
    """The files of a run of attacks."""
    for needed in ("run/examples.jsonl", "run/seconds.json"):
        if needed not in held:
            raise SpecError(f"{needed} is missing.")
    clock = read_object(held["run/seconds.json"])
    for name, seconds in clock.items():
        check_value(f"run/seconds.json: {name[:40]!r}", seconds, NOT_NEGATIVE)
    for field in ("targets", "distances", "nearest"):
        if record.get(field) is not None:
            raise SpecError(f"run/record.json: {field} must be null, as it is for a run with an eps and without goal.")
    RunRecord.load(run)
    for place, row in enumerate(read_lines(held["run/examples.jsonl"], _LINES), 1):
        where = f"run/examples.jsonl, line {place}"
        _check_words(where, row)
        try:
            example = read_section(ExampleRecord, "example", row)
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from None
        for name, rule in _EXAMPLE.items():
            check_value(f"{where}: {name}", getattr(example, name), rule)


def _check_certification(spec: Any, held: Mapping[str, Path]) -> None:
    """The files of a certification, and numbers that would take for ever."""
    if "run/certificates.jsonl" not in held:
        raise SpecError("run/certificates.jsonl is missing.")
    limits = {"samples": _DRAWS, "selection": _DRAWS, "bits": 16, "sigma": 100}
    for name, most in limits.items():
        if getattr(spec, name) > most:
            raise SpecError(f"spec.{name} must be at most {most:,}, got {getattr(spec, name):,}.")
    if len(spec.radii) > 100:
        raise SpecError(f"spec.radii must be at most 100 numbers, got {len(spec.radii)}.")
    for place, row in enumerate(read_lines(held["run/certificates.jsonl"], _LINES), 1):
        try:
            Certificate.from_line(json.dumps(row))
        except (SpecError, TypeError, ValueError) as error:
            raise SpecError(f"run/certificates.jsonl, line {place}: {error}") from None


def _licence(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or not all(line.isprintable() for line in text.replace("\t", " ").splitlines()):
        raise SpecError("licence.txt must be a text that can be shown.")
    return text


def _whole(value: Any, least: int = 0) -> bool:
    return type(value) is int and least <= value < _LARGEST


def _cost(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(spent, list) and len(spent) == 2 and all(map(_whole, spent)) for spent in value.values()
    )


_SEED: Rule = (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number from 0 to 2^63 - 1")
_CLASS: Rule = (lambda value: _whole(value, -1), "a class, or -1")
_COUNT: Rule = (or_none(_whole), "a whole number >= 0, or null")
_WORDS: Rule = (or_none(lambda value: isinstance(value, str)), "a text, or null")
_YES: Rule = (lambda value: isinstance(value, bool), "true or false")
_NAMES: Rule = (
    or_none(lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value)), "texts, or null"
)  # fmt: skip
_EXAMPLE: dict[str, Rule] = {
    "id": (_whole, "a whole number >= 0"), "label": (_whole, "a whole number >= 0"), "clean_prediction": _CLASS,
    "robust": _YES, "missed": _YES, "broken_by": _WORDS, "broken_by_all": _NAMES, "threat": _WORDS, "error": _WORDS,
    "restart": _COUNT, "round": _COUNT, "prediction": (or_none(_CLASS[0]), "a class, or null"),
    "distance": (or_none(number(0, float("inf"))), "a number >= 0, or null"),
    "distances": (lambda value: value is None, "null"), "target": (lambda value: value is None, "left out"),
    "cost": (_cost, "attacks with [forwards, backwards] each"),
}  # fmt: skip
