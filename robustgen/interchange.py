"""To and from other projects: RobustBench's files, the field's certification logs, adversarial images from anywhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from robustgen.adversarials import Adversarials, read_tensor
from robustgen.attacks.replay import Replay
from robustgen.certify.logs import write_log
from robustgen.certify.record import holds_certification, load_certification
from robustgen.durable import disk_errors, write_json
from robustgen.errors import SpecError, unknown_name
from robustgen.jobs import run_job
from robustgen.prepare import Job, prepare
from robustgen.progress import Progress
from robustgen.record import RunRecord
from robustgen.request import Request
from robustgen.runs import OpenedRun, open_run, refuse_distances, refuse_goal
from robustgen.witnesses import read_witnesses

__all__ = ["export_run", "import_adversarials", "model_info"]

FORMATS = ("robustbench", "tsv")
_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def export_run(run: Path, form: str, out: Path, *, data_dir: Path | None = None) -> list[Path]:
    """Write a run for others.

    "tsv", of a certification: OUT/<run>.tsv with the columns idx, label, predict, radius, correct and time, as Cohen et
    al. write them; radii with every digit, time nan where nobody knows it.

    "robustbench", of attacks: adversarials.pt and model_info.json as RobustBench asks for an external evaluation. The
    tensor is (N, C, H, W) float32 in [0, 1], one image for each example in the order of the run: the witness where
    there is one, else the clean image. What the record does not know (paper, authors, venue) is left empty, to be
    filled in by hand.

    Returns:
        The files that were written.

    Raises:
        SpecError: an unknown format, or a run that it has no place for.
        RecordError, ArtifactError: no finished run, or its data cannot be had.
    """
    if form not in FORMATS:
        raise unknown_name("format", form, FORMATS)
    if (form == "tsv") != holds_certification(run):
        what, fits = ("no certification", "robustbench") if form == "tsv" else ("a certification", "tsv")
        raise SpecError(f"--format {form}: {run} is {what}; use --format {fits}.")
    if form == "tsv":
        return [_export_log(run, out)]
    refuse_goal(run, RunRecord.load(run), "export")
    opened = open_run(run, data_dir)
    refuse_distances(run, opened.record, "export")
    if len(opened.threats) > 1:
        raise SpecError(f"{run} has several threat models, RobustBench knows one; evaluate with one --threat.")
    if opened.threat.norm not in _NORMS:
        raise SpecError(f"--format robustbench: it knows Linf, L2 and L1, and {run} is of {opened.threat}.")
    images, _ = opened.dataset.batch(opened.ids)
    row = {id_: k for k, id_ in enumerate(opened.ids)}
    for id_, image in read_witnesses(run):
        images[row[id_]] = image
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        tensor, info = out / "adversarials.pt", out / "model_info.json"
        torch.save(images, tensor)
        write_json(info, model_info(opened))
    return [tensor, info]


def _export_log(run: Path, out: Path) -> Path:
    path = out / f"{run.resolve().name}.tsv"
    log = load_certification(run).log()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        write_log(log, path)
    return path


def model_info(opened: OpenedRun) -> dict[str, object]:
    """RobustBench's fields; all values are strings but those that it keeps otherwise. Accuracies in per cent."""
    record, spec = opened.record, opened.record.spec
    clean, robust = (f"{100 * e.value:.2f}" for e in (record.clean_accuracy, record.robust_accuracy))
    autoattack = spec["plan"] == "standard"
    return {
        "link": "", "name": spec["classifier"], "authors": "", "additional_data": False, "number_forward_passes": 1,
        "dataset": spec["data"], "venue": "N/A", "architecture": "", "eps": opened.threat.text,
        "norm": _NORMS[opened.threat.norm], "clean_acc": clean, "reported": "",
        "autoattack_acc": robust if autoattack else "", "external": "" if autoattack else robust,
        "unreliable": bool(record.flags),
        "footnote": f"{record.n} examples ({spec['ids']}), {spec['protocol']}, seed {spec['seed']}, robustgen run "
        f"{record.identity[:12]}",
    }  # fmt: skip


def import_adversarials(
    path: Path, request: Request, *, out: Path | None, device: str, progress: Progress
) -> RunRecord:  # fmt: skip
    """Make a run of somebody else's images: each is judged as any witness is.

    Args:
        path: (N, C, H, W) images; see `robustgen.adversarials.read_tensor`.
        request: classifier, data, threat and examples.
        out, device, progress: as in `robustgen.evaluate`.

    Raises:
        SpecError, ArtifactError: a file that cannot be read, or one with another number or shape of images.
    """
    images = read_tensor(path)
    probe = prepare(replace(request, attacks="clean", precision="float32"), device=device, out=out)
    ids, total = probe.ids, len(probe.dataset)
    if tuple(images.shape[1:]) != probe.dataset.shape or len(images) not in (len(ids), total):
        raise SpecError(
            f"--adversarials: {path} holds {tuple(images.shape)}, expected {len(ids)} images of shape "
            f"{probe.dataset.shape} (one for each example, in order) or all {total} of {probe.dataset.name}."
        )
    source = Adversarials.of_tensor(images, ids if len(images) == len(ids) else None)
    asked = replace(request, attacks=(Replay(source=source),), precision="float32")
    job = prepare(asked, device=device, out=out)
    return run_job(replace(job, notes=(*job.notes, *_outside(job, source))), progress)


def _outside(job: Job, source: Adversarials) -> list[str]:
    """A sentence for each reason for which images cannot count."""
    sick = outside = 0
    for at in range(0, len(job.ids), job.batch_size):
        ids = job.ids[at : at + job.batch_size]
        x, _ = job.dataset.batch(ids)
        x_adv, finite = source.of(ids, x)
        inside = torch.stack([threat.contains(x, x_adv) for threat in job.threats]).any(0)
        sick += int((~finite).sum())
        outside += int((finite & ~inside).sum())
    names = " and ".join(map(str, job.threats))
    told = [f"{outside} of {len(job.ids)} images lie outside {names} or [0, 1]: they break nothing."] if outside else []
    return told + ([f"{sick} of {len(job.ids)} images hold NaN or infinity: they break nothing."] if sick else [])
