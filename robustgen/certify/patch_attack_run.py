"""A finished certification against patches under attack: every image that the defence gets right, with every side.

attack-ID/ in the folder of the certification:
spec.json            what the attack depends on; ID is the head of its sha256
attacked.jsonl       one line an image, appended and flushed as it is finished
broken-N-SIDE.npy    the image that beat the defence for example N with a patch of that side, (C, H, W) float32
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from robustgen import durable, tables
from robustgen.certify.folder import claim, save_array, whole_lines
from robustgen.certify.patch_attack import PatchAttack, Target
from robustgen.certify.patches_run import PatchResult, PatchSpec, defence_of, load_patch_run
from robustgen.classifier import Classifier
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.fields import SEED, WHOLE, check_value, or_none
from robustgen.judge import strict_float32
from robustgen.progress import Progress
from robustgen.runs import load_run_classifier, load_run_data
from robustgen.spec import Spec
from robustgen.statistics import proportion

__all__ = ["PatchAttackRequest", "PatchAttackResult", "PatchAttackSpec", "attack_patch_run", "patch_attack_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAttackRequest:
    """What `robustgen certify-attack` was asked for; see its help for the meaning of each field."""

    run: Path
    places: int = 4
    steps: int = 20
    n: int | None = None
    seed: int = 0
    classifier: str | None = None
    weights: Path | None = None
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        check_value("--seed", self.seed, SEED)
        check_value("--n", self.n, (or_none(WHOLE[0]), WHOLE[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAttackSpec(Spec):
    """What the result of an attack depends on.

    Attributes:
        certification: identity of the run that is attacked.
        places, steps: see `PatchAttack`.
        seed: of every example's random stream.
        schema: of this file.
    """

    certification: str
    places: int
    steps: int
    seed: int
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAttackResult:
    """What became of one image, each list with an entry a side.

    Attributes:
        id, label: which.
        certified: what the run says of it.
        clean: what the defence answers now, without a patch.
        attacked: what it answers where the attack ended; the label where nothing was found.
    """

    id: int
    label: int
    certified: list[bool]
    clean: list[int]
    attacked: list[int]


def attack_patch_run(request: PatchAttackRequest, *, device: str, progress: Progress) -> dict[str, Any]:
    """Attack all images of a certification that the defence gets right, or go on with what is left.

    Args:
        request: what is asked.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told how the work goes.

    Raises:
        SpecError, ArtifactError, RecordError: it cannot be done as asked; nothing has been computed.
    """
    where, attack = pick_device(device), PatchAttack(places=request.places, steps=request.steps)
    held, results = load_patch_run(request.run)
    dataset, _ = load_run_data(request.run, held.to_json(), request.data_dir)
    model = load_run_classifier(
        request.run, held.to_json(), dataset.shape, given=request.classifier, weights=request.weights,
        command=f"robustgen certify-attack {request.run}",
    ).to(where)  # fmt: skip
    defence = defence_of(held, dataset.shape)
    defence.settings(model)
    chosen = results[: request.n]
    spec = PatchAttackSpec(certification=held.identity(), places=attack.places, steps=attack.steps, seed=request.seed)
    folder = request.run / f"attack-{spec.identity()[:8]}"
    job = _Job(held, attack, defence.targets(model), model, dataset, where, request.seed, folder)
    lock = claim(folder, spec)
    try:
        with durable.disk_errors(folder), strict_float32():
            found = _work(job, chosen, progress)
    finally:
        lock.release()
    return {**_totals(held, found), "spec": asdict(spec), "run": str(request.run), "folder": str(folder)}


@dataclass(frozen=True, slots=True)
class _Job:
    """All that one image needs."""

    held: PatchSpec
    how: PatchAttack
    targets: Sequence[Target]
    model: Classifier
    dataset: Dataset
    device: torch.device
    seed: int
    folder: Path


def _work(job: _Job, chosen: Sequence[PatchResult], progress: Progress) -> list[PatchAttackResult]:
    """Results of the chosen images: read where they are there, else made and appended."""
    path = job.folder / "attacked.jsonl"
    done = {one.id: one for one in whole_lines(path, lambda line: PatchAttackResult(**json.loads(line)))}
    todo = [one for one in chosen if one.id not in done]
    if len(todo) < len(chosen):
        progress.note(f"{len(chosen) - len(todo)} examples were attacked before; going on.")
    progress.start("attack", len(todo))
    file, begun = durable.Appender(path), time.monotonic()
    for count, one in enumerate(todo, 1):
        done[one.id] = result = _attack(job, one)
        file.add((json.dumps(asdict(result), sort_keys=True) + "\n").encode())
        beaten = sum(_won(done[each.id], k) for each in chosen if each.id in done for k in range(len(job.targets)))
        progress.advance(count, f"beaten {beaten} times, {(time.monotonic() - begun) / count:.1f} s each")
    file.sync()
    file.close()
    return [done[one.id] for one in chosen]


def _attack(job: _Job, one: PatchResult) -> PatchAttackResult:
    """Each side by itself; an image that the defence gets wrong as it is needs no patch."""
    x, y = (part.to(job.device) for part in job.dataset.batch([one.id]))
    clean, attacked = list[int](), list[int]()
    for side, target in zip(job.held.patches, job.targets, strict=True):
        clean.append(int(target.answer(x)))
        attacked.append(clean[-1])
        if clean[-1] != int(y):
            continue
        found = job.how.attack(target, job.model, x, y, side, id_=one.id, seed=job.seed)
        if found is not None:
            assert found.prediction is not None
            assert found.x_adv is not None
            attacked[-1] = found.prediction
            save_array(job.folder / f"broken-{one.id}-{side}.npy", found.x_adv)
    return PatchAttackResult(id=one.id, label=int(y), certified=one.certified, clean=clean, attacked=attacked)


def _won(one: PatchAttackResult, k: int) -> bool:
    """Whether a patch of that side made the defence err, where it does not without one."""
    return one.clean[k] == one.label != one.attacked[k]


def _totals(held: PatchSpec, found: Sequence[PatchAttackResult]) -> dict[str, Any]:
    """Certified, attacked and clean accuracy of the same images, a row a side."""
    rows = []
    for k, side in enumerate(held.patches):
        counts = {
            "certified": sum(one.certified[k] for one in found),
            "attacked": sum(one.attacked[k] == one.label for one in found),
            "clean": sum(one.clean[k] == one.label for one in found),
        }
        broken = [one.id for one in found if one.certified[k] and one.attacked[k] != one.label]
        rows.append({
            "patch": side, **{key: asdict(proportion(count, len(found))) for key, count in counts.items()},
            "broken": broken,
        })  # fmt: skip
    return {"classifier": held.classifier, "method": held.method, "n": len(found), "rows": rows}


def patch_attack_lines(found: dict[str, Any]) -> list[str]:
    """What `attack_patch_run` found, for reading."""
    keys = ("certified", "attacked", "clean")
    cells = [
        [
            f"{row['patch']} x {row['patch']}",
            *(tables.interval_cell(row[key]) for key in keys),
            ", ".join(map(str, row["broken"])) or "none",
        ]
        for row in found["rows"]
    ]
    lines = tables.aligned([["patch", *(f"{key}, %" for key in keys), "certificates broken"], *cells])
    return [*lines, f"{found['classifier']}, {found['method']}, {found['n']} images; lines: {found['folder']}"]
