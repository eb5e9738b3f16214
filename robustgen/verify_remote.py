"""What can be checked of a run against a server without the server: all that needs no prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from robustgen.dataset import Dataset
from robustgen.example import ExampleRecord
from robustgen.threat import ThreatModel
from robustgen.verification import Findings
from robustgen.witnesses import read_found_by, read_witnesses

__all__ = ["misplaced", "without_server"]


class _Check(Protocol):
    """A check that has gone through the paperwork of its run."""

    @property
    def threats(self) -> Mapping[str, ThreatModel]: ...

    @property
    def examples(self) -> Sequence[ExampleRecord]: ...


def without_server(check: Findings, dataset: Dataset) -> None:
    """Labels, and place and number of the witnesses; what is wrong is added to the check's findings."""
    told: _Check = check  # type: ignore[assignment]
    for e in told.examples:
        if e.label != int(dataset.labels[e.id]):
            check.wrong.append(
                f"example {e.id}: its label was edited: {e.label}, the data says {dataset.labels[e.id]}."
            )
        if e.broken_by not in (None, "clean") and e.prediction == e.label:
            check.wrong.append(f"example {e.id}: its own prediction {e.prediction} is its label: it breaks nothing.")
        if e.target is not None and e.prediction not in (None, e.target):
            check.wrong.append(f"example {e.id}: its own prediction {e.prediction} is not its target {e.target}.")
    broken = {e.id: e for e in told.examples if e.broken_by not in (None, "clean")}
    found = dict(read_witnesses(check.run))
    for id_, e in broken.items():
        if id_ in found:
            _place(check, told, e, found[id_], dataset)
    missing, extra = sorted(set(broken) - set(found)), sorted(set(found) - set(broken))
    check.say(missing, "is filed as broken, but has no witness", "are filed as broken, but have no witness")
    check.say(extra, "has a witness, but is not filed as broken", "have a witness, but are not filed as broken")
    check.checked.append(f"labels of {len(told.examples)} examples")
    check.checked.append(f"witnesses: range and distance of {len(broken)}")
    for label in sorted({label for e in told.examples for label in e.distances or {}}):
        others = {e.id: e for e in told.examples if label in (e.distances or {}) and e.broken_by != label}
        held = dict(read_found_by(check.run, label))
        for id_, e in others.items():
            if id_ in held:
                mine = ExampleRecord(
                    id=id_, label=e.label, clean_prediction=e.clean_prediction, robust=False, threat=e.threat,
                    distance=(e.distances or {})[label],
                )  # fmt: skip
                _place(check, told, mine, held[id_], dataset)
        lost = sorted(set(others) - set(held))
        check.say(lost, f"has a distance by {label}, but no witness", f"have a distance by {label}, but no witness")


def _place(check: Findings, told: _Check, e: ExampleRecord, image: Tensor, dataset: Dataset) -> None:
    threat = told.threats.get(e.threat or "")
    if threat is None or image.shape != dataset.shape:
        check.wrong.append(
            f"example {e.id}: no threat model of the run is '{e.threat}', or its witness has no such shape."
        )
        return
    said = misplaced(e, threat, dataset.batch([e.id])[0], image[None])
    if said is not None:
        check.wrong.append(f"example {e.id}: {said}")


def misplaced(e: ExampleRecord, threat: ThreatModel, x: Tensor, x_adv: Tensor) -> str | None:
    """What is wrong with the place of a witness x_adv (1, C, H, W) of the image x, or None."""
    if not x_adv.isfinite().all():
        return "its witness holds NaN or infinity."
    low, high = float(x_adv.min()), float(x_adv.max())
    if low < 0 or high > 1:
        return f"its witness leaves [0, 1]: it reaches from {low:.4g} to {high:.4g}."
    distance = float(threat.distance(x, x_adv))
    if distance > threat.eps + threat.tolerance:
        return f"its witness lies {distance:.6g} from the image, outside {threat}; is it that of another example?"
    if e.distance is None or abs(distance - e.distance) > 1e-9 + 1e-9 * distance:
        return f"its distance was edited: {e.distance}, the witness lies at {distance:.9g}."
    return None
