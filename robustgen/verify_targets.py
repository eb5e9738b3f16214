"""Check a run with `--goal all`: each of its parts as any run, and the record over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from robustgen.all_targets import part_folder, part_spec, total, wanted_targets
from robustgen.errors import RecordError
from robustgen.record import AttackSummary, RunRecord
from robustgen.spec import RunSpec
from robustgen.verification import Findings, Verification

__all__ = ["verify_targets"]


def verify_targets(run: Path, record: RunRecord, verify: Callable[[Path], Verification]) -> Verification:
    """Every part by itself, that they are the parts of this run, and the figures over them.

    Args:
        run: the folder of the whole.
        record: what it says.
        verify: checks one part.

    Raises:
        RecordError: spec.json or a part cannot be read.
    """
    found, path = Findings(run), run / "spec.json"
    try:
        spec = RunSpec.from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise RecordError(f"{path} cannot be read: {error}.") from None
    if found.identity(spec, record.identity, record.spec) and record.targets is not None:
        targets = wanted_targets(record.targets.labels, len(record.targets.attacked[0]))
        parts = {target: RunRecord.load(part_folder(run, target)) for target in targets}
        for target, part in parts.items():
            if part.spec != part_spec(spec, target).table():
                found.wrong.append(f"{part_folder(run, target)} is not the part of this run towards class {target}.")
        if not found.wrong:
            _figures(found, record, parts)
            for target in targets:
                held = verify(part_folder(run, target))
                found.wrong += [f"towards {target}: {line}" for line in held.wrong]
                found.doubtful |= set(held.doubtful)
            found.checked.append(f"runs towards {len(targets)} classes: each as any run")
    elif not found.wrong:
        found.wrong.append("record.json holds no matrix of successes by label and target.")
    return Verification(
        run=run, checked=tuple(found.checked), wrong=tuple(found.wrong), doubtful=tuple(sorted(found.doubtful))
    )


def _figures(found: Findings, record: RunRecord, parts: dict[int, RunRecord]) -> None:
    for name, value in total(found.run, parts, {}).items():
        said = getattr(record, name)
        said = tuple(_untimed(attack) for attack in said) if name == "attacks" else said
        if said != value:
            found.wrong.append(f"record.json: {name} was edited: {said}, the parts say {value}.")
    found.checked.append("totals: accuracies, intervals, sums and the matrix of successes")


def _untimed(attack: AttackSummary) -> AttackSummary:
    return replace(attack, seconds=0.0)
