"""A board: entries of one data set under one threat model, ranked as RobustBench's README ranks them.

Differs from the README: each figure has its interval, and each rank the ranks that the data do not exclude.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from robustgen.eps import parse_eps, same_threat
from robustgen.errors import SpecError, unknown_name
from robustgen.leaderboard.certified import CERTIFIED, CertifiedCard
from robustgen.leaderboard.entries import Entry, EntryCard, request_of
from robustgen.leaderboard.published import PublishedEntry, load_published
from robustgen.spec import expand_ids
from robustgen.statistics import Estimate, mcnemar, share_interval

__all__ = ["Board", "Row", "board_names", "find_board", "make_board", "rank_rows"]

_LEVEL = 0.05  # of the paired test
_OVERCLAIM = 0.01  # a claim is flagged beyond one point


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An entry on a board; accuracies are fractions of 1, None where there is none.

    Attributes:
        name: key of a published entry, or name of a card.
        shown: what tables call it.
        origin: "published" or "ours".
        title, link, architecture, venue, date: where it comes from.
        clean, robust: with 95 % intervals; the board is sorted by `robust`.
        measured: what a claim is held against: accuracy under AutoAttack, under corruptions, or of our own run.
        best_known: the lowest that any attack left, where it is told apart from `measured`. Of a certified entry
            `clean` is certified at radius 0 and `robust` at that of the board.
        claimed: by its authors.
        n: images behind the figures.
        extra_data: None where it is not known.
        extra: further figures by name: in percent, but ACR and sigma as they are.
        flags: see flags.html and `robustgen list flags`.
        queries: forwards and backwards an example, of our own runs.
        listed: whether the README lists it; ours are.
        place: among entries of equal figure.
        images, broken: what the paired test compares: which images, and the ids that are not robust.
        curve: of a certified entry: radius, and share certified within it.
        rank, best, worst: filled in by `rank_rows`; `best` and `worst` are the ranks that the data do not exclude.
    """

    name: str
    shown: str
    origin: str
    title: str
    link: str
    architecture: str
    venue: str
    date: str
    clean: Estimate
    robust: Estimate
    measured: float
    best_known: float | None
    claimed: float | None
    n: int
    extra_data: bool | None
    extra: dict[str, float]
    flags: tuple[str, ...]
    queries: float | None = None
    listed: bool = True
    place: int = 0
    images: tuple[str, str] | None = None
    broken: frozenset[int] = field(default=frozenset(), repr=False)
    curve: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    rank: int = 0
    best: int = 0
    worst: int = 0

    @property
    def overclaim(self) -> float | None:
        """Claimed minus measured, as a fraction of 1."""
        return None if self.claimed is None else self.claimed - self.measured

    @property
    def tied(self) -> bool:
        """Whether the data leave another rank open."""
        return self.best < self.worst


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """Ranked entries, best first; `sources` says where they come from, `images` what stands behind a figure."""

    data: str
    threat: str
    images: str
    sources: tuple[str, ...]
    rows: tuple[Row, ...]


def board_names(entries: Iterable[Entry]) -> list[tuple[str, str]]:
    """(data, threat) of every board: the published ones, then those of our own entries that are not among them."""
    names = [(file.data, board.threat) for file in load_published() for board in file.boards]
    for entry in entries:
        mine, of = entry.card.spec.data, entry.card.threat
        if not any(data == mine and same_threat(threat, of) for data, threat in names):
            names.append((mine, of))
    return names


def find_board(data: str, threat: str | None, entries: Iterable[Entry]) -> tuple[str, str]:
    """The board that is meant.

    Raises:
        SpecError: no such data set or threat model; the nearest is suggested.
    """
    names = board_names(entries)
    known = sorted({name for name, _ in names})
    if data not in known:
        raise unknown_name("data set", data, known, hint="See robustgen leaderboard boards.")
    threats = [of for name, of in names if name == data]
    if threat is None:
        if len(threats) > 1:
            raise SpecError(f"{data} has several boards; add --threat {' or --threat '.join(threats)}.")
        return data, threats[0]
    for known_threat in threats:
        if same_threat(threat, known_threat):
            return data, known_threat
        norm, _, radius = threat.strip().lower().partition(":")
        if known_threat.startswith(f"{norm}:") and norm.startswith(CERTIFIED) and parse_eps(radius) >= 0:
            return data, f"{norm}:{radius}"  # a board of certificates is made for any radius
    raise unknown_name(f"threat model of {data}", threat, threats, hint="See robustgen leaderboard boards.")


def make_board(
    data: str, threat: str, entries: Iterable[Entry], *, published: bool = True, ours: bool = True,
    unlisted: bool = False,
) -> Board:  # fmt: skip
    """One board, ranked.

    Args:
        data, threat: as `find_board` gives them.
        entries: our own, of any board.
        published, ours: which entries to take.
        unlisted: also the published entries that the README leaves out, whose weights the zoo lacks.
    """
    rows: list[Row] = []
    images, sources = [], []
    for file in load_published() if published else ():
        for kind in file.boards:
            if file.data == data and same_threat(kind.threat, threat):
                sources.append(f"{file.source}, commit {file.commit} of {file.date}, licence {file.licence}")
                images.append(f"published: {kind.images:,} images ({kind.images_are})")
                rows += [_published_row(entry, kind.images, threat) for entry in file.entries
                         if entry.threat == kind.threat.partition(":")[0] and (entry.zoo or unlisted)]  # fmt: skip
    own = [_own_row(entry, threat) for entry in entries if ours and _belongs(entry, data, threat)]
    if own:
        sources.append("robustgen: runs of robustgen eval or certify, records in leaderboard/entries")
        images.append("ours: the images of each run")
    return Board(
        data=data, threat=threat, images="; ".join(images), sources=tuple(sources), rows=rank_rows([*rows, *own])
    )


def rank_rows(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows by falling `robust`, with their ranks and the ranks that cannot be excluded.

    Two entries are told apart where their 95 % intervals do not overlap; where both ran on the same images, by the
    exact McNemar test at 5 % instead, which sees more.
    """
    ordered = sorted(rows, key=lambda row: (-row.robust.value, row.place, row.name.lower()))
    ranked = []
    for k, row in enumerate(ordered):
        above = sum(_differ(other, row) for other in ordered[:k])
        below = sum(_differ(row, other) for other in ordered[k + 1 :])
        ranked.append(replace(row, rank=k + 1, best=above + 1, worst=len(ordered) - below))
    return tuple(ranked)


def _differ(upper: Row, lower: Row) -> bool:
    if upper.images is not None and upper.images == lower.images:
        only_upper, only_lower = len(lower.broken - upper.broken), len(upper.broken - lower.broken)
        return _mcnemar(only_upper, only_lower) <= _LEVEL
    return upper.robust.low > lower.robust.high


@functools.cache
def _mcnemar(first: int, second: int) -> float:
    return mcnemar(first, second)


def _belongs(entry: Entry, data: str, threat: str) -> bool:
    if entry.card.spec.data != data:
        return False
    if isinstance(entry.card, CertifiedCard):
        return threat.partition(":")[0] == entry.card.threat.partition(":")[0]
    return same_threat(entry.card.threat, threat)


def _published_row(entry: PublishedEntry, n: int, threat: str) -> Row:
    flags = [
        ("unreliable", entry.unreliable is True),
        ("broken-further", entry.best_known is not None and entry.best_known < entry.measured),
        ("overclaim", entry.reported is not None and entry.reported / 100 - entry.measured / 100 > _OVERCLAIM),
        ("other-eps", _other_eps(entry, threat)),
    ]
    further = {"3DCC": entry.corruptions_3d, "mCE": entry.mce}
    return Row(
        name=entry.key, shown=entry.key, origin="published", title=entry.paper, link=entry.link,
        architecture=entry.architecture, venue=entry.venue, date=entry.date,
        clean=share_interval(entry.clean / 100, n), robust=share_interval(entry.robust / 100, n),
        measured=entry.measured / 100, best_known=None if entry.best_known is None else entry.best_known / 100,
        claimed=None if entry.reported is None else entry.reported / 100, n=n, extra_data=entry.extra_data,
        extra={name: value for name, value in further.items() if value is not None},
        flags=tuple(name for name, raised in flags if raised), listed=entry.zoo, place=entry.listed_after,
    )  # fmt: skip


def _other_eps(entry: PublishedEntry, threat: str) -> bool:
    """Whether it was measured at another eps than that of the board; a corruptions board has none."""
    _, _, eps = threat.partition(":")
    return bool(eps) and entry.eps is not None and parse_eps(entry.eps) != parse_eps(eps)


def _own_row(entry: Entry, threat: str) -> Row:
    """The row of a card of any kind, on a board of this threat model."""
    card = entry.card
    accepted = card.accepted
    shared: dict[str, Any] = {
        "name": card.name, "shown": card.spec.classifier, "origin": "ours", "title": card.title, "link": "",
        "architecture": card.architecture, "date": card.date, "n": card.n, "extra_data": None,
        "images": (card.spec.data_sha256, card.spec.ids),
    }  # fmt: skip
    how = "" if accepted is None else ", submitted"
    if isinstance(card, EntryCard) and (crossing := request_of(card.spec).get("gradient")):
        how = f", gradient {crossing}{how}"
    if isinstance(card, CertifiedCard):
        return _certified_row(card, parse_eps(threat.partition(":")[2]), how, shared)
    standing = frozenset(expand_ids(card.robust))
    fallen = frozenset() if accepted is None else frozenset(expand_ids(accepted.fell))
    robust = share_interval(len(standing - fallen) / card.n, card.n) if fallen else card.robust_accuracy
    flags = [*card.flags, *(accepted.flags if accepted is not None else ())]
    flags += [name for name, raised in (("broken-further", fallen), ("overclaim", _overclaims(card, robust))) if raised]
    return Row(
        **shared, venue=f"plan {card.spec.plan}{how}", clean=card.clean_accuracy, robust=robust,
        measured=card.robust_accuracy.value, best_known=robust.value if fallen else None,
        claimed=None if card.claimed is None else card.claimed.value, extra={}, flags=tuple(flags),
        queries=(card.cost.forwards + card.cost.backwards) / card.n,
        broken=frozenset(expand_ids(card.spec.ids)) - (standing - fallen),
    )  # fmt: skip


def _certified_row(card: CertifiedCard, radius: float, how: str, shared: dict[str, Any]) -> Row:
    spec, held, examples = card.spec, card.held(radius), frozenset(expand_ids(card.spec.ids))
    robust = share_interval(len(held) / card.n, card.n)
    return Row(
        **shared, venue=f"n0 {spec.selection:,}, n {spec.samples:,}, alpha {spec.alpha:g}{how}",
        clean=share_interval(len(card.held(0.0)) / card.n, card.n), robust=robust, measured=robust.value,
        best_known=None, claimed=None, extra={"ACR": card.acr, "sigma": spec.sigma},
        flags=() if card.accepted is None else card.accepted.flags, queries=card.samples / card.n,
        broken=examples - held, curve=tuple(card.curve()),
    )  # fmt: skip


def _overclaims(card: EntryCard, robust: Estimate) -> bool:
    """Whether the claim is over a point too high, and its images cannot explain it: they are often few."""
    if card.claimed is None or card.claimed.value - robust.value <= _OVERCLAIM:
        return False
    return share_interval(card.claimed.value, card.claimed.n).low > robust.value
