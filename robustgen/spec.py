"""What is asked for: RunSpec holds everything that changes numbers, RunOptions everything that does not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from robustgen.errors import RecordError

__all__ = ["RunOptions", "RunSpec", "Spec", "compact_ids", "expand_ids"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """Whatever is written to a spec.json: a frozen dataclass with a field `schema`, whose sha256 names the run."""

    def identity(self) -> str:
        """sha256 of the canonical JSON of this spec."""
        return hashlib.sha256(json.dumps(self.table(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def table(self) -> dict[str, Any]:
        """What spec.json holds: every field but the optional ones at their default, which older runs do not know."""
        return {key: value for key, value in asdict(self).items() if self.optional().get(key, ...) != value}

    @classmethod
    def optional(cls) -> dict[str, Any]:
        """Fields that came later -> their default."""
        return {}

    def to_json(self) -> dict[str, Any]:
        """The fields as a spec.json gives them back."""
        table: dict[str, Any] = json.loads(json.dumps(self.table()))
        return table

    @classmethod
    def from_json(cls, table: Any, source: str) -> Self:
        """Read a spec.json that holds `table()`; lists become tuples.

        Raises:
            RecordError: other fields, or another schema.
        """
        names = {f.name for f in fields(cls)}
        if not isinstance(table, dict) or not names - set(cls.optional()) <= set(table) <= names:
            raise RecordError(f"{source} is no {cls.kind()}: expected the fields {', '.join(sorted(names))}.")
        if table["schema"] != cls.schema_version():
            raise RecordError(f"{source} has schema {table['schema']}, this version reads {cls.schema_version()}.")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in table.items()})

    @classmethod
    def kind(cls) -> str:
        """How messages call it."""
        return "run specification"

    @classmethod
    def schema_version(cls) -> int:
        """The schema that this version writes and reads."""
        return 1

    def differences(self, other: Self) -> list[str]:
        """One line a field that differs, "field: mine / theirs"."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{key}: {mine[key]} / {theirs[key]}" for key in mine if mine[key] != theirs[key]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec(Spec):
    """A claim to be settled; two runs with the same identity give the same record.

    Attributes:
        classifier, weights_sha256: which network.
        data, data_sha256: which data set, and the hash over the selected ids, labels and pixels.
        ids: the examples, in order, as "0-999" or "3,7,12-20".
        threat: such as "linf:8/255".
        plan, protocol: what is run, by name and in full.
        seed: of every example's random stream.
        precision: the search form as resolved, such as "bfloat16+channels_last+folded".
        goal: what counts as a success, such as "targeted:3"; "untargeted" is left out of the file.
        plan_sha256: of the TOML file that the plan came from, byte for byte; left out where there was none.
        surrogates: name and sha256 of the classifiers that were attacked in place of this one; left out without any.
        schema: of this file.
    """

    classifier: str
    weights_sha256: str
    data: str
    data_sha256: str
    ids: str
    threat: str
    plan: str
    protocol: str
    seed: int
    precision: str
    goal: str = "untargeted"
    plan_sha256: str = ""
    surrogates: tuple[str, ...] = ()
    schema: int = 1

    @classmethod
    def optional(cls) -> dict[str, Any]:
        """A run without a goal, of a plan that came with robustgen, on the classifier itself."""
        return {"goal": "untargeted", "plan_sha256": "", "surrogates": ()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run; changes no figure.

    Attributes:
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: rows held at once; None means 250.
        out: run folder; None means runs/<data>-<classifier>-<identity>.
    """

    device: str = "auto"
    batch_size: int | None = None
    out: Path | None = None


def compact_ids(ids: Sequence[int]) -> str:
    """[0, 1, 2, 7] -> "0-2,7", in the order given."""
    runs = []
    for _, group in groupby(enumerate(ids), key=lambda pair: pair[1] - pair[0]):
        block = [id_ for _, id_ in group]
        runs.append(str(block[0]) if len(block) == 1 else f"{block[0]}-{block[-1]}")
    return ",".join(runs)


def expand_ids(text: str) -> list[int]:
    """The inverse of `compact_ids`: "0-2,7" -> [0, 1, 2, 7]."""
    ids: list[int] = []
    for part in text.split(",") if text else []:
        first, _, last = part.partition("-")
        ids += range(int(first), int(last or first) + 1)
    return ids
