"""Certified entries: what `robustgen certify` proved of each example, and the curve that follows from it.

A certificate holds against every attack, so a board of them has one norm and asks for a radius, written as a threat
model: certified-l2:0.5. An abstention counts as wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from robustgen.certify.spec import CertificationSpec
from robustgen.errors import RecordError, SpecError
from robustgen.fields import (
    FILE_NAME,
    NOT_NEGATIVE,
    WHOLE,
    Rule,
    check_fields,
    check_value,
    number,
    one_of,
    or_none,
    read_section,
)
from robustgen.leaderboard.parts import (
    HASH,
    IDS,
    LINE,
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
from robustgen.leaderboard.published import DAY
from robustgen.spec import expand_ids
from robustgen.statistics import Estimate

__all__ = ["CERTIFICATION", "CERTIFIED", "CertifiedCard", "Share", "certification_command", "certification_request"]

CERTIFICATION = "certification"  # what such a card calls its kind
CERTIFIED = "certified-"  # before the norm, in the threat model of a board
_RADIUS = 0.5  # of the board that is shown where nobody asks for another
_FROM_RECORD = ("spec", "identity", "n", "certified", "acr", "abstained", "samples", "shape", "environment")
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Share of the examples that are certified right within a radius, with its 95 % Wilson interval."""

    radius: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CertifiedCard:
    """All that the board shows of a certification, and what it takes to check it.

    Args:
        name, title, architecture, licence, source, date, identity, record_sha256, n: as of any entry.
        spec: of the certification: sigma, draws that select (n0) and at most estimate (n), alpha, and the rest.
        radii: of each example, in the order of the ids: within which its label is certified, in the norm that the
            noise gives; null where another class is, or none.
        abstains: ids that got no class.
        certified: at the radii of the specification.
        acr: average certified radius, 0 where the label is not certified.
        abstained: share without a class.
        shape: (C, H, W) of the images.
        samples: draws of all examples together.
        seconds: of drawing, or None where nobody knows.
        environment, command, origin, accepted: as of any entry.

    Raises:
        SpecError: a field is of another kind than said here, or two of them contradict each other.
    """

    flags: ClassVar[tuple[str, ...]] = ()

    name: str
    title: str
    architecture: str
    licence: str
    source: str
    date: str
    spec: CertificationSpec
    identity: str
    record_sha256: str
    n: int
    radii: tuple[float | None, ...]
    abstains: str
    certified: tuple[Share, ...]
    acr: float
    abstained: Estimate
    shape: tuple[int, int, int]
    samples: int
    seconds: float | None
    environment: dict[str, Any]
    command: str
    origin: Origin | None = None
    accepted: Accepted | None = None
    kind: str = CERTIFICATION
    schema: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "", _RULES)
        check_spec(self.spec)
        check_identity(self.spec, self.identity)
        check_value("spec.noise", self.spec.noise, one_of("normal", "uniform", "laplace"))
        self._check_ids()
        told = [share.radius for share in self.certified]
        if told != list(self.spec.radii):
            raise SpecError(f"certified must be at the radii of the spec, {list(self.spec.radii)}, got {told}.")
        for share in self.certified:
            check_figure(f"certified at {share.radius:g}", share, len(self.held(share.radius)), self.n)
        check_figure("abstained", self.abstained, count(self.abstains), self.n)
        acr = math.fsum(radius or 0.0 for radius in self.radii) / self.n
        if abs(acr - self.acr) > _ROUNDING * (1 + acr):
            raise SpecError(f"acr is {self.acr:.6f}; the radii give {acr:.6f}.")
        command = certification_command(self.spec, self.origin)
        if self.command != command:
            raise SpecError(f"command must be what the spec gives, {command!r}, got {self.command!r}.")
        if self.accepted is not None:
            self.accepted.check(self.held(0.0))

    def _check_ids(self) -> None:
        check_compact("spec.ids", self.spec.ids)
        check_compact("abstains", self.abstains, allow_none=True)
        if not count(self.spec.ids) == self.n == len(self.radii) <= MOST:
            raise SpecError(
                f"n is {self.n}, the spec names {count(self.spec.ids)} examples and there are {len(self.radii)} radii "
                f"(at most {MOST:,})."
            )
        wrong = set(expand_ids(self.spec.ids)) - self.held(0.0)
        if not set(expand_ids(self.abstains)) <= wrong:
            raise SpecError("abstains must be ids of the run whose radius is null.")

    @property
    def norm(self) -> str:
        """Of the radii: "l2" or "l1"."""
        return self.spec.norm

    @property
    def threat(self) -> str:
        """Of the board that it belongs on, at the radius that is shown first."""
        return f"{CERTIFIED}{self.norm}:{_RADIUS:g}"

    def held(self, radius: float) -> set[int]:
        """Ids whose label is certified within a radius."""
        pairs = zip(expand_ids(self.spec.ids), self.radii, strict=True)
        return {id_ for id_, reached in pairs if reached is not None and reached >= radius}

    def curve(self) -> list[tuple[float, float]]:
        """Radius, and share certified within it, from 0 on: the share falls right after each point."""
        reached = sorted(radius for radius in self.radii if radius is not None)
        return [(0.0, len(reached) / self.n)] + [
            (radius, (len(reached) - k) / self.n) for k, radius in enumerate(reached)
        ]

    def check_record(self, record: Mapping[str, Any]) -> None:
        """Refuse a record that does not say what this card says.

        Raises:
            SpecError: the first field that differs is named.
        """
        check_said(self.to_json(), record, _FROM_RECORD)

    def to_json(self) -> dict[str, Any]:
        """What the file holds; nothing of what a card of a run of our own has not."""
        made = {**asdict(self), "spec": self.spec.to_json()}
        return {key: value for key, value in made.items() if value is not None or key not in ("origin", "accepted")}

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> CertifiedCard:
        """The inverse of `to_json`.

        Raises:
            SpecError: a field is missing, unknown, or of the wrong kind.
        """
        made = read_parts(table, {"abstained": Estimate, "origin": Origin, "accepted": Accepted})
        if "certified" in made:
            if not isinstance(made["certified"], list):
                raise SpecError(f"certified must be a list, got {made['certified']!r}.")
            made["certified"] = tuple(
                read_parts({"certified": share}, {"certified": Share})["certified"] for share in made["certified"]
            )
        if "spec" in made:
            try:
                made["spec"] = CertificationSpec.from_json(made["spec"], "spec")
            except RecordError as error:
                raise SpecError(str(error)) from None
        return read_section(cls, "card", made)


def certification_request(
    spec: CertificationSpec, origin: Origin | None = None, folder: Path | None = None
) -> dict[str, Any]:  # fmt: skip
    """What `robustgen certify` is asked for to do it again, as keywords of `CertificationRequest`."""
    generator, _, name = spec.classifier.rpartition("|")
    return {
        **loading(name, origin, folder), "sigma": spec.sigma, **({"denoise": generator} if generator else {}),
        "noise": spec.noise, "method": spec.method, "profile": spec.profile, "radii": ",".join(map(str, spec.radii)),
        "samples": spec.samples, "selection": spec.selection, "alpha": spec.alpha, "data": spec.data,
        **chosen_ids(spec.ids), "seed": spec.seed, "precision": spec.precision,
    }  # fmt: skip


def certification_command(spec: CertificationSpec, origin: Origin | None = None) -> str:
    """The same as a line for the shell, each word quoted where it must be."""
    return shell_line("certify", certification_request(spec, origin))


def _radii(value: Any) -> bool:
    return isinstance(value, tuple) and all(or_none(number(0, math.inf))(radius) for radius in value)


def _shape(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(type(side) is int and side > 0 for side in value)


_RULES: dict[str, Rule] = {
    "name": FILE_NAME, "title": LINE, "architecture": LINE, "licence": LINE, "source": LINE, "date": DAY,
    "identity": HASH, "record_sha256": HASH, "n": WHOLE, "abstains": IDS, "acr": NOT_NEGATIVE, "samples": WHOLE,
    "radii": (_radii, "a list of numbers >= 0, null where the label is not certified"),
    "shape": (_shape, "[channels, height, width]"),
    "seconds": (or_none(NOT_NEGATIVE[0]), "a number >= 0, or null"),
    "environment": (lambda value: isinstance(value, dict), "an object"),
    "kind": one_of(CERTIFICATION), "command": LINE,
    "schema": (lambda value: value == 1 and value is not True, "1, which this version reads"),
}  # fmt: skip
