"""Certification logs: the field's tab-separated files, and what is read off them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustgen import durable
from robustgen.errors import ArtifactError, SpecError
from robustgen.statistics import Estimate, proportion

__all__ = ["COLUMNS", "CertificationLog", "envelope", "not_comparable", "read_log", "write_log"]

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
ABSTAIN = -1


@dataclass(frozen=True, slots=True)
class CertificationLog:
    """One certified example a row.

    Attributes:
        name: how tables call it.
        ids, label, predict: (N,) int64; predict is -1 where it abstained.
        radius: (N,) float64, 0 where it abstained.
        seconds: (N,) float64, NaN where nobody knows.
        norm: of the radii, "l2" or "l1", or None where the log does not say.
        pixels: of an image, channels included, or None.
    """

    name: str
    ids: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    predict: npt.NDArray[np.int64]
    radius: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    norm: str | None = None
    pixels: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the certified class is the label."""
        same: npt.NDArray[np.bool_] = self.predict == self.label
        return same

    def certified(self, radius: float, *, confidence: float = 0.95) -> Estimate:
        """Share of examples that are right with at least this radius; an abstention is wrong."""
        return proportion(int((self.right & (self.radius >= radius)).sum()), len(self), confidence=confidence)

    @property
    def acr(self) -> float:
        """Average certified radius: mean of radius times right (Zhai et al. 2020, arXiv:2001.02378, section 5.1)."""
        return float((self.radius * self.right).mean())

    @property
    def linf_divisor(self) -> float | None:
        """What a radius is divided by to hold in Linf, or None where norm or size are not known.

        A perturbation of Linf norm e over d pixels has an L2 norm of at most e sqrt(d) and an L1 norm of at most e d.
        """
        if self.norm is None or self.pixels is None:
            return None
        return math.sqrt(self.pixels) if self.norm == "l2" else float(self.pixels)

    @property
    def abstained(self) -> Estimate:
        """Share of abstentions."""
        return proportion(int((self.predict == ABSTAIN).sum()), len(self))


def read_log(path: Path, name: str | None = None, *, pixels: int | None = None) -> CertificationLog:
    """A file with the columns idx, label, predict, radius, correct, time, as Cohen et al. write it.

    Args:
        path: the file.
        name: how tables call it; None for that of the file.
        pixels: of an image, channels included; radii are then taken for those of normal noise, in L2.

    Raises:
        ArtifactError: it cannot be read.
        SpecError: other columns, a field that is no number, no row, an example twice, or `correct` that contradicts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.") from None
    header = tuple(lines[0].split("\t")) if lines else ()
    if header != COLUMNS:
        raise SpecError(f"{path}: expected the columns {' '.join(COLUMNS)}, tabs between, got {' '.join(header)!r}.")
    rows = [_row(path, number, line) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not rows:
        raise SpecError(f"{path} holds no example.")
    ids, label, predict, radius, seconds = (np.array(column) for column in zip(*rows, strict=True))
    if len(np.unique(ids)) < len(ids):
        raise SpecError(f"{path}: an example stands there twice; was a restarted log appended to?")
    return CertificationLog(
        name or path.stem, ids.astype(np.int64), label.astype(np.int64), predict.astype(np.int64),
        radius.astype(np.float64), seconds.astype(np.float64), None if pixels is None else "l2", pixels,
    )  # fmt: skip


def _row(path: Path, number: int, line: str) -> tuple[int, int, int, float, float]:
    fields = line.split("\t")
    if len(fields) != len(COLUMNS):
        raise SpecError(f"{path}, line {number}: expected {len(COLUMNS)} fields with tabs between, got {len(fields)}.")
    try:
        id_, label, predict, correct = (int(fields[k]) for k in (0, 1, 2, 4))
        radius, seconds = float(fields[3]), _seconds(fields[5])
    except ValueError as error:
        raise SpecError(f"{path}, line {number}: {error}.") from None
    if bool(correct) != (predict == label) or not radius >= 0:
        said = f"label {label}, predict {predict}, radius {radius:g}, correct {correct}"
        raise SpecError(f"{path}, line {number} contradicts itself: {said}.")
    return id_, label, predict, radius, seconds


def _seconds(text: str) -> float:
    """Seconds of "0:02:31.238689" or of "151.2"; "nan" where nobody knows."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def write_log(log: CertificationLog, path: Path) -> None:
    """The same columns; radii with every digit, so that none is rounded up."""
    lines = ["\t".join(COLUMNS)]
    columns = (log.ids, log.label, log.predict, log.radius, log.right, log.seconds)
    for id_, label, predict, radius, right, seconds in zip(*(c.tolist() for c in columns), strict=True):
        lines.append(f"{id_}\t{label}\t{predict}\t{radius!r}\t{int(right)}\t{_clock(seconds)}")
    durable.replace(path, ("\n".join(lines) + "\n").encode())


def _clock(seconds: float) -> str:
    """The inverse of `_seconds`, to the microsecond."""
    if math.isnan(seconds):
        return "nan"
    minutes, rest = divmod(round(seconds * 1e6), 60_000_000)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 1e6:09.6f}"


def envelope(logs: Sequence[CertificationLog], radii: Sequence[float]) -> list[dict[str, Any]]:
    """The best certified accuracy of several logs at each radius: chosen on the test data, after the fact.

    It is the certified accuracy of no classifier: at each radius another one may be the best. The interval covers
    the best of the true accuracies: all logs' intervals hold at once, each at 1 - 5 % / logs (Bonferroni).

    Returns:
        One table a radius: radius, value, low, high, and the log that is best there.
    """
    found = []
    for radius in radii:
        best = max(logs, key=lambda log: log.certified(radius).value)
        several = [log.certified(radius, confidence=1 - 0.05 / len(logs)) for log in logs]
        ends = {"low": max(one.low for one in several), "high": max(one.high for one in several)}
        found.append({"radius": radius, **asdict(best.certified(radius)), **ends, "log": best.name})
    return found


def not_comparable(logs: Sequence[CertificationLog]) -> str | None:
    """Why logs have no envelope, in a sentence, or None: it needs the same images, and one norm."""
    first, *others = [dict(zip(log.ids.tolist(), log.label.tolist(), strict=True)) for log in logs]
    if any(other != first for other in others):
        return "no best log is shown: the logs are not of the same images."
    if len({log.norm for log in logs} - {None}) > 1:
        return "no best log is shown: the radii are of several norms."
    return None
