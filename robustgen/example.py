"""What a run says of one example: a line of examples.jsonl, plain JSON. Null means not measured, never 0."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

__all__ = ["ExampleRecord", "counted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleRecord:
    """One example's fate.

    Attributes:
        id, label: which example.
        clean_prediction: class of the clean image, -1 when its logits were not finite.
        robust: classified correctly, and no attack broke it.
        broken_by: label of the attack, "clean" when the clean image is already misclassified, null when robust.
        broken_by_all: labels of all attacks that broke it, where every attack saw every example, else null.
        threat: the threat model under which it was broken, or null.
        restart, round: of that attack, from 0.
        distance: of the adversarial image in the norm of the threat model.
        distances: attack label -> distance of the nearest image that it found, where the run has no eps; else null.
        prediction: class of the adversarial image.
        cost: attack label -> [forwards, backwards] spent on this example.
        missed: a query saw a point inside misclassified, whatever the judge said of it.
        error: why an attack gave the example up, or null.
        target: the class that its prediction had to become, where the run has a goal; else left out of the line.
    """

    id: int
    label: int
    clean_prediction: int
    robust: bool
    broken_by: str | None = None
    broken_by_all: list[str] | None = None
    threat: str | None = None
    restart: int | None = None
    round: int | None = None
    distance: float | None = None
    distances: dict[str, float] | None = None
    prediction: int | None = None
    cost: dict[str, list[int]] = field(default_factory=dict)
    missed: bool = False
    error: str | None = None
    target: int | None = None

    @property
    def skipped(self) -> bool:
        """Whether its label is the target, so that there is nothing to attack."""
        return self.target is not None and self.target == self.label

    def line(self) -> str:
        """One line of examples.jsonl, without the newline; floats keep every digit."""
        table = {key: value for key, value in asdict(self).items() if key != "target" or value is not None}
        return json.dumps(table, sort_keys=True)

    @classmethod
    def from_line(cls, text: str) -> ExampleRecord:
        """The inverse of `line`; ValueError, KeyError or TypeError where the line is not one."""
        return cls(**json.loads(text))


def counted(examples: Iterable[ExampleRecord]) -> list[ExampleRecord]:
    """The examples that a goal does not skip."""
    return [e for e in examples if not e.skipped]
