"""Figures that others published: one JSON file a data set, with source, commit and date."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robustgen.errors import SpecError
from robustgen.fields import FILE_NAME, TEXT, WHOLE, Fits, Rule, check_fields, one_of, or_none, read_section, text
from robustgen.leaderboard.strict import read_with

__all__ = ["DAY", "PublishedBoard", "PublishedEntry", "PublishedFile", "load_published", "read_published"]

_FOLDER = Path(__file__).resolve().parent / "published"
_ADDRESS = re.compile(r"https?://[^\s<>\"']+")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedEntry:
    """One classifier on one published board; accuracies in percent, None where there is none.

    Args:
        key: its name there.
        threat: "linf", "l2" or "corruptions".
        eps: as written there, such as "8/255"; of a corruptions board, what it was trained for.
        paper, link, venue, architecture: as published.
        extra_data: whether it was trained on more than the data set.
        forward_passes: passes behind one prediction.
        clean: accuracy on clean images.
        reported: what its authors claim.
        autoattack: under AutoAttack.
        best_known: the lowest that any attack left, where one beat AutoAttack or the board names one.
        unreliable: whether the board calls AutoAttack potentially unreliable here; None where it does not say.
        corruptions, corruptions_3d: mean accuracy under common corruptions, in two and in three dimensions.
        mce: mean corruption error, relative to AlexNet's 100.
        zoo: whether the README lists it: it has weights in the model zoo.
        listed_after: place among entries of equal figure, which the README keeps in the order of the zoo.
    """

    key: str
    threat: str
    eps: str | None
    paper: str
    link: str
    venue: str
    architecture: str
    extra_data: bool
    forward_passes: int
    clean: float
    reported: float | None
    autoattack: float | None
    best_known: float | None
    unreliable: bool | None
    corruptions: float | None
    corruptions_3d: float | None
    mce: float | None
    zoo: bool
    listed_after: int = 0

    def __post_init__(self) -> None:
        try:
            check_fields(self, "", _RULES)
        except SpecError as error:
            raise SpecError(f"entry '{self.key}': {error}") from None
        wanted, other = ("corruptions", "autoattack") if self.threat == "corruptions" else ("autoattack", "corruptions")
        if getattr(self, wanted) is None or getattr(self, other) is not None:
            raise SpecError(f"entry '{self.key}': a board of {self.threat} needs {wanted}, and {other} null.")
        for name in ("autoattack", "best_known", "corruptions"):
            figure = getattr(self, name)
            if figure is not None and figure > self.clean:
                raise SpecError(f"entry '{self.key}': {name} {figure} is above clean {self.clean}.")
        if self.best_known is not None and self.autoattack is not None and self.best_known > self.autoattack:
            raise SpecError(f"entry '{self.key}': best_known {self.best_known} is above autoattack {self.autoattack}.")

    @property
    def measured(self) -> float:
        """What the board measured: accuracy under AutoAttack, or under corruptions."""
        figure = self.corruptions if self.autoattack is None else self.autoattack
        assert figure is not None  # of one of the two kinds, see above
        return figure

    @property
    def robust(self) -> float:
        """What the README sorts by: the best known accuracy where there is one, else what the board measured."""
        return self.measured if self.best_known is None else self.best_known

    @property
    def date(self) -> str:
        """Month of the paper, "2024-06", where link or venue tell it, else its year, else nothing."""
        if arxiv := re.search(r"arxiv\.org/\w+/(\d\d)(0[1-9]|1[0-2])\.\d{4,5}", self.link):
            return f"20{arxiv[1]}-{arxiv[2]}"
        year = re.search(r"\b(20\d\d)\b", self.venue)
        month = re.search(r"\b(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\b", self.venue)
        if year and month:
            return f"{year[1]}-{_MONTHS.index(month[1]) + 1:02}"
        return year[1] if year else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedBoard:
    """A threat model of a file: how many images stand behind each figure, and which."""

    threat: str
    images: int
    images_are: str

    def __post_init__(self) -> None:
        check_fields(self, "boards", {"boards.threat": TEXT, "boards.images": WHOLE, "boards.images_are": TEXT})


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedFile:
    """All entries of one data set, and where they come from."""

    data: str
    source: str
    commit: str
    date: str
    licence: str
    boards: tuple[PublishedBoard, ...]
    entries: tuple[PublishedEntry, ...]

    def __post_init__(self) -> None:
        texts = dict.fromkeys(("source", "commit", "licence"), TEXT)
        check_fields(self, "", texts | {"data": FILE_NAME, "date": DAY})
        norms = {board.threat.partition(":")[0] for board in self.boards}
        seen: set[tuple[str, str]] = set()
        for entry in self.entries:
            if entry.threat not in norms:
                raise SpecError(f"entry '{entry.key}': no board of this file is of {entry.threat}.")
            if (entry.threat, entry.key) in seen:
                raise SpecError(f"entry '{entry.key}' stands twice on the board of {entry.threat}.")
            seen.add((entry.threat, entry.key))


def read_published(path: Path) -> PublishedFile:
    """One file of published figures.

    Raises:
        SpecError, ArtifactError: it is none; file, entry and field are named.
    """
    return read_with(path, _build)


@lru_cache(maxsize=1)
def load_published() -> tuple[PublishedFile, ...]:
    """The files that come with robustgen, by name of the data set."""
    return tuple(read_published(path) for path in sorted(_FOLDER.glob("*.json")))


def _build(table: Mapping[str, Any]) -> PublishedFile:
    lists: dict[str, Any] = {"boards": PublishedBoard, "entries": PublishedEntry}
    parts = {}
    for name, kind in lists.items():
        rows = table.get(name)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise SpecError(f"'{name}' must be a list of objects.")
        parts[name] = tuple(read_section(kind, f"{name}[{k}]", row) for k, row in enumerate(rows))
    return read_section(PublishedFile, "file", {**table, **parts})


def _percentage(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 100


def _place(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1000


_KEY: Fits = lambda value: isinstance(value, str) and re.fullmatch(r"[\w.-]{1,80}", value) is not None  # noqa: E731
DAY: Rule = (
    lambda value: isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value) is not None,
    "a date such as 2025-03-31",
)
_SHARE: Rule = (or_none(_percentage), "a percentage from 0 to 100 or null")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_RULES: dict[str, Rule] = {
    "key": (_KEY, "letters, digits and .-_ only"),
    "threat": one_of("linf", "l2", "corruptions"),
    "eps": (or_none(text), "a text such as 8/255 or null"),
    "paper": TEXT,
    "link": (lambda value: isinstance(value, str) and _ADDRESS.fullmatch(value) is not None, "an http address"),
    "venue": TEXT,
    "architecture": TEXT,
    "extra_data": (_truth, "true or false"),
    "forward_passes": WHOLE,
    "clean": (_percentage, "a percentage from 0 to 100"),
    "reported": _SHARE,
    "autoattack": _SHARE,
    "best_known": _SHARE,
    "unreliable": (or_none(_truth), "true, false or null"),
    "corruptions": _SHARE,
    "corruptions_3d": _SHARE,
    "mce": (or_none(_above_zero), "a number above 0 or null"),
    "zoo": (_truth, "true or false"),
    "listed_after": (_place, "a whole number >= 0"),
}
