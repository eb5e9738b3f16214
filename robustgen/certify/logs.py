"""Certification logs: the field's tab-separated files, and what is read off them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from robustgen.errors import ArtifactError, SpecError
from robustgen.statistics import Estimate, proportion

__all__ = ["COLUMNS", "CertificationLog", "envelope", "read_log", "write_log"]

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
ABSTAIN = -1


@dataclass(frozen=True, slots=True)
class CertificationLog:
    """One certified example a row.

    Attributes:
        name: how tables call it.
        ids, label, predict: (N,) int64; predict is -1 where it abstained.
        radius: (N,) float64, 0 where it abstained.
        seconds: (N,) float64.
    """

    name: str
    ids: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]
    predict: npt.NDArray[np.int64]
    radius: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(N,) whether the certified class is the label."""
        same: npt.NDArray[np.bool_] = self.predict == self.label
        return same

    def certified(self, radius: float) -> Estimate:
        """Share of examples that are right with at least this radius; an abstention is wrong."""
        return proportion(int((self.right & (self.radius >= radius)).sum()), len(self))

    @property
    def acr(self) -> float:
        """Average certified radius: mean of radius times right (Zhai et al. 2020, arXiv:2001.02378, section 5.1)."""
        return float((self.radius * self.right).mean())

    @property
    def abstained(self) -> Estimate:
        """Share of abstentions."""
        return proportion(int((self.predict == ABSTAIN).sum()), len(self))


def read_log(path: Path, name: str | None = None) -> CertificationLog:
    """A file with the columns idx, label, predict, radius, correct, time, as Cohen et al. write it.

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
        radius.astype(np.float64), seconds.astype(np.float64),
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
    """Seconds of "0:02:31.238689" or of "151.2"."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def write_log(log: CertificationLog, path: Path) -> None:
    """The same columns; radii with every digit, so that none is rounded up."""
    from robustgen import durable

    lines = ["\t".join(COLUMNS)]
    columns = (log.ids, log.label, log.predict, log.radius, log.right, log.seconds)
    for id_, label, predict, radius, right, seconds in zip(*(c.tolist() for c in columns), strict=True):
        hours, rest = divmod(seconds, 3600)
        time = f"{int(hours)}:{int(rest // 60):02d}:{rest % 60:09.6f}"
        lines.append(f"{id_}\t{label}\t{predict}\t{radius!r}\t{int(right)}\t{time}")
    durable.replace(path, ("\n".join(lines) + "\n").encode())


def envelope(logs: Sequence[CertificationLog], radii: Sequence[float]) -> list[float]:
    """The best certified accuracy of several logs at each radius: chosen on the test data, so an upper bound."""
    return [max(log.certified(radius).value for log in logs) for radius in radii]
