"""A finished certification under attack: every certified example within its own radius, judged by PREDICT.

attack-ID/ in the folder of the certification:
spec.json            what the attack depends on; ID is the head of its sha256
attacked.jsonl       one line an example, appended and flushed as it is finished
broken-N.npy         the image that broke the certificate of example N, (C, H, W) float32
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustgen import durable, tables
from robustgen.certify.certify import ABSTAIN, Certificate, predict_votes, verdict
from robustgen.certify.check import count_classes, load_base
from robustgen.certify.folder import claim, save_array, whole_lines
from robustgen.certify.inside import SmoothedPGD, distance_within
from robustgen.certify.record import Certification, load_certification
from robustgen.certify.spec import certified_norm
from robustgen.certify.votes import Voter
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.fields import SEED, WHOLE, check_value, or_none
from robustgen.progress import Progress
from robustgen.rng import ExampleRng
from robustgen.runs import load_run_data
from robustgen.spec import Spec
from robustgen.statistics import proportion

__all__ = ["InsideRequest", "InsideResult", "InsideSpec", "attack_certification", "attack_lines"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideRequest:
    """What `robustgen certify-attack` was asked for; see its help for the meaning of each field."""

    run: Path
    draws: int = 16
    steps: int = 20
    rel_step: float = 0.25
    samples: int = 1000
    n: int | None = None
    seed: int = 0
    classifier: str | None = None
    weights: Path | None = None
    data_dir: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideSpec(Spec):
    """What the result of an attack depends on, beside the batch's rounding.

    Attributes:
        certification: identity of the run that is attacked.
        sigma, noise, draws, steps, rel_step: see `SmoothedPGD`.
        samples, seed: of PREDICT; the seed is that of all noise.
        schema: of this file.
    """

    certification: str
    sigma: float
    noise: str
    draws: int
    steps: int
    rel_step: float
    samples: int
    seed: int
    schema: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class InsideResult:
    """What became of one example.

    Attributes:
        id, label: which.
        predict, radius: its certificate; -1 and 0 where it abstained.
        clean: PREDICT for the image, -1 where the votes do not tell.
        share: of these votes, for the certified class, or for the most frequent one where none is certified.
        distance: of the attacked image, in the norm of the radius; None where no radius was certified, so that nothing
            was attacked.
        attacked, attacked_share: the same for the attacked image.
    """

    id: int
    label: int
    predict: int
    radius: float
    clean: int
    share: float
    distance: float | None = None
    attacked: int | None = None
    attacked_share: float | None = None

    @property
    def broken(self) -> bool:
        """Whether the smoothed classifier significantly predicts another class inside the radius."""
        return self.attacked not in (None, ABSTAIN, self.predict)


def attack_certification(
    request: InsideRequest, *, batch_size: int, device: str, progress: Progress
) -> dict[str, Any]:  # fmt: skip
    """Attack every certified example of a run within its radius, or go on with what is left.

    Args:
        request: what is asked.
        batch_size: noised images sent at once; changes figures by rounding only.
        device: "auto", "cpu", "cuda" or "mps".
        progress: told how the work goes.

    Raises:
        SpecError, ArtifactError, RecordError: it cannot be done as asked; nothing has been computed.
        AttackError: a point left the radius.
    """
    check_value("--batch-size", batch_size, WHOLE)
    where, held = pick_device(device), load_certification(request.run)
    _check(request, held)
    attack = SmoothedPGD(
        sigma=held.spec.sigma, noise=held.spec.noise, draws=request.draws, steps=request.steps,
        rel_step=request.rel_step,
    )  # fmt: skip
    dataset, _ = load_run_data(request.run, held.spec.to_json(), request.data_dir)
    base = load_base(
        request.run, held, dataset, given=request.classifier, weights=request.weights, device=where,
        command=f"robustgen certify-attack {request.run}",
    )  # fmt: skip
    voter = Voter(
        base, held.spec.grid_noise(), seed=request.seed, classes=count_classes(base, dataset, where),
        batch_size=batch_size, device=where,
    )  # fmt: skip
    chosen = held.certificates[: request.n]
    spec = InsideSpec(
        certification=held.spec.identity(), **asdict(attack), samples=request.samples, seed=request.seed
    )  # fmt: skip
    folder = request.run / f"attack-{spec.identity()[:8]}"
    lock = claim(folder, spec)
    try:
        with durable.disk_errors(folder):
            found = _work(folder, chosen, dataset, voter, attack, request, held.spec.alpha, progress)
    finally:
        lock.release()
    told = {"alpha": held.spec.alpha, "run": str(request.run), "folder": str(folder)}
    return {**_totals(held, found), "spec": asdict(spec), **told}


def _check(request: InsideRequest, held: Certification) -> None:
    check_value("--samples", request.samples, WHOLE)
    check_value("--seed", request.seed, SEED)
    check_value("--n", request.n, (or_none(WHOLE[0]), WHOLE[1]))
    least = math.ceil(math.log2(2 / held.spec.alpha))
    if request.samples < least:
        raise SpecError(
            f"--samples must be >= {least}, or PREDICT always abstains at alpha = {held.spec.alpha:g}, "
            f"got {request.samples}."
        )


def _work(
    folder: Path, chosen: Sequence[Certificate], dataset: Dataset, voter: Voter, attack: SmoothedPGD,
    request: InsideRequest, alpha: float, progress: Progress,
) -> list[InsideResult]:  # fmt: skip
    """Results of the chosen certificates: read where they are there, else made and appended."""
    path = folder / "attacked.jsonl"
    done = {one.id: one for one in whole_lines(path, lambda line: InsideResult(**json.loads(line)))}
    todo = [one for one in chosen if one.id not in done]
    if len(todo) < len(chosen):
        progress.note(f"{len(chosen) - len(todo)} examples were attacked before; going on.")
    progress.start("attack", len(todo))
    file, begun, rows = durable.Appender(path), time.monotonic(), 0
    size = max(1, voter.batch_size // attack.draws)
    for part in (todo[at : at + size] for at in range(0, len(todo), size)):
        x = dataset.batch([one.id for one in part])[0]
        points = _attack(part, x, voter, attack, request.seed)
        for one, image, point in zip(part, x, points, strict=True):
            result = _judge(one, image, point, voter, request.samples, alpha)
            if result.broken:
                save_array(folder / f"broken-{one.id}.npy", point)
            file.add((json.dumps(asdict(result), sort_keys=True) + "\n").encode())
            done[one.id], rows = result, rows + 1
            broken = sum(done[each.id].broken for each in chosen if each.id in done)
            progress.advance(rows, f"{broken} broken, {(time.monotonic() - begun) / rows:.2f} s each")
    file.sync()
    file.close()
    return [done[one.id] for one in chosen]


def _attack(part: Sequence[Certificate], x: Tensor, voter: Voter, attack: SmoothedPGD, seed: int) -> Tensor:
    """Attacked images on the CPU; those without a radius stay as they are."""
    able = torch.tensor([one.predict != ABSTAIN and one.radius > 0 for one in part])
    points = x.clone()
    if bool(able.any()):
        rows = [one for one, can in zip(part, able.tolist(), strict=True) if can]
        y, radius = torch.tensor([one.predict for one in rows]), torch.tensor([one.radius for one in rows])
        rng = ExampleRng.of(seed, [one.id for one in rows])
        x_able, y, radius = (tensor.to(voter.device) for tensor in (x[able], y, radius))
        points[able] = attack.attack(voter.classifier, x_able, y, radius, rng).cpu()
    return points


def _judge(one: Certificate, x: Tensor, point: Tensor, voter: Voter, samples: int, alpha: float) -> InsideResult:
    """PREDICT for the image and for the attacked one, with noise that neither certificate nor attack has seen."""
    votes = predict_votes(voter, one.id, x.double().numpy(), samples=samples)
    cls = int(votes.argmax()) if one.predict == ABSTAIN else one.predict
    told: dict[str, Any] = {}
    if one.predict != ABSTAIN and one.radius > 0:
        distance = distance_within(x, point, one.radius, certified_norm(voter.noise.kind))
        there = predict_votes(voter, one.id, point.double().numpy(), samples=samples)
        told = {
            "distance": distance, "attacked": verdict(there, alpha), "attacked_share": float(there[cls]) / samples
        }  # fmt: skip
    return InsideResult(
        id=one.id, label=one.label, predict=one.predict, radius=one.radius, clean=verdict(votes, alpha),
        share=float(votes[cls]) / samples, **told,
    )  # fmt: skip


def _totals(held: Certification, found: Sequence[InsideResult]) -> dict[str, Any]:
    """Certified, attacked and clean accuracy of the same examples; an abstention is wrong."""
    n, rows = len(found), []
    clean = asdict(proportion(sum(one.clean == one.label for one in found), n))
    for radius in held.spec.radii:
        certified = [one for one in found if one.predict == one.label and one.radius >= radius]
        stand = [one for one in certified if not one.broken]
        rows.append({
            "radius": radius, "certified": asdict(proportion(len(certified), n)),
            "attacked": asdict(proportion(len(stand), n)), "clean": clean,
        })  # fmt: skip
    tried = [one for one in found if one.distance is not None]
    mean = {key: float(np.mean([getattr(one, key) for one in tried])) for key in ("share", "attacked_share") if tried}
    return {
        "classifier": held.spec.classifier, "norm": held.spec.norm, "n": n, "attacked": len(tried),
        "broken": [one.id for one in tried if one.broken], "expected_false": held.spec.alpha * len(tried), **mean,
        "rows": rows,
    }  # fmt: skip


def attack_lines(found: dict[str, Any]) -> list[str]:
    """What `attack_certification` found, for reading."""
    cells = [
        [f"{row['radius']:g}", *(tables.interval_cell(row[key]) for key in ("certified", "attacked", "clean"))]
        for row in found["rows"]
    ]
    broken = ", ".join(map(str, found["broken"])) or "none"
    lines = tables.aligned([[f"radius, {found['norm']}", "certified, %", "attacked, %", "clean, %"], *cells])
    lines.append(
        f"{found['classifier']}: {found['attacked']} of {found['n']} examples attacked within their radii; broken: "
        f"{broken} (at alpha = {found['alpha']:g} at most {found['expected_false']:.2g} false ones are expected)"
    )
    if found["attacked"]:
        lines.append(
            f"votes for the certified class: {100 * found['share']:.1f} % on the image, "
            f"{100 * found['attacked_share']:.1f} % on the attacked one; lines: {found['folder']}"
        )
    return lines
