"""`benchmark` with the arguments of the function of that name in RobustBench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustgen.classifiers import load_classifier
from robustgen.compat.folders import device_name, run_folder
from robustgen.corruptions.suite import CorruptionRequest, measure_clean, measure_corruptions
from robustgen.durable import disk_errors, write_json
from robustgen.errors import SpecError, unknown_name
from robustgen.interchange import model_info
from robustgen.jobs import run_job
from robustgen.prepare import prepare
from robustgen.progress import Lines
from robustgen.request import Request
from robustgen.runs import open_run
from robustgen.threat import Norm, ThreatModel

__all__ = ["benchmark"]

_NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2"}
_DATA = ("cifar10", "cifar100")
_ELSEWHERE = {
    "imagenet": "robustgen holds no list of RobustBench's 5,000 images; put them into a folder and type "
    "robustgen.evaluate(model, 'folder:PATH', 'linf:4/255', plan='standard')",
    "corruptions_3d": "robustgen has the 15 common corruptions only: threat_model='corruptions'",
}


def benchmark(
    model: nn.Module, n_examples: int = 10000, dataset: object = "cifar10", threat_model: object = "Linf",
    to_disk: bool = False, model_name: str | None = None, data_dir: str = "./data",
    corruptions_data_dir: str | None = None, device: str | torch.device | None = None, batch_size: int = 32,
    eps: float | None = None, log_path: str | Path | None = None, preprocessing: object = None,
    aa_state_path: str | Path | None = None,
) -> tuple[float, float]:  # fmt: skip
    """Clean accuracy and robust accuracy under the plan `standard`, or the mean over common corruptions.

    Differs: every argument is checked before any work; the accuracy under attack is that of the judge; the seed is 0,
    so that the same call gives the same figures; torch's global generator is left alone.

    Args:
        model: (B, C, H, W) float32 in [0, 1] to logits (B, K); it is not changed.
        n_examples: the first so many of the test set.
        dataset: "cifar10" or "cifar100", or a member of RobustBench's enumeration.
        threat_model: "Linf", "L2" or "corruptions", or a member of RobustBench's enumeration.
        to_disk: write model_info/<dataset>/<threat_model>/<model_name>.json, as RobustBench does.
        model_name: of that file.
        data_dir: folder of cifar-10-batches-py or cifar-100-python.
        corruptions_data_dir: folder of CIFAR-10-C or CIFAR-100-C; by default `data_dir`.
        device: where to compute; None for the CPU.
        batch_size: images attacked at once; changes no figure.
        eps: radius in pixels of [0, 1]; needed for "Linf" and "L2".
        log_path: file to which the two lines are added as well.
        preprocessing: only None: images are taken as they are.
        aa_state_path: folder of the run, which can be verified; the same call goes on with an unfinished one.

    Returns:
        (clean accuracy, accuracy under the threat model), fractions of 1.

    Raises:
        SpecError, ArtifactError: an argument that means nothing or cannot be honoured, or data that is not there.
    """
    data, threat = _choice("dataset", dataset, _DATA), _choice("threat_model", threat_model, (*_NORMS, "corruptions"))
    _refuse(model, preprocessing, to_disk=to_disk, model_name=model_name)
    where = device_name(device or "cpu")
    if threat != "corruptions" and eps is None:
        raise SpecError(f"threat_model {threat} needs an eps, such as eps=8/255.")
    if threat == "corruptions" and eps is not None:
        raise SpecError("threat_model corruptions has no eps; drop the argument.")
    options: dict[str, Any] = {"n": n_examples, "device": where, "batch_size": batch_size}
    with run_folder(aa_state_path, "aa_state_path") as folder:
        if threat == "corruptions":
            places = Path(data_dir), Path(corruptions_data_dir or data_dir)
            clean, under, info = _corrupted(model, data, places, folder, options)
        else:
            limits = ThreatModel(_NORMS[threat], float(eps or 0))
            clean, under, info = _attacked(model, data, Path(data_dir), limits, folder, options)
        if to_disk:
            path = Path("model_info") / data / threat / f"{model_name}.json"
            with disk_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {**info, "name": model_name})
    _say([f"Clean accuracy: {clean:.2%}", f"Adversarial accuracy: {under:.2%}"], log_path)
    return clean, under


def _choice(argument: str, given: object, known: tuple[str, ...]) -> str:
    """A name, or the value of an enumeration's member."""
    name = str(getattr(given, "value", given))
    if name in _ELSEWHERE:
        raise SpecError(f"{argument} '{name}': {_ELSEWHERE[name]}.")
    if name not in known:
        raise unknown_name(argument, name, known)
    return name


def _refuse(model: object, preprocessing: object, *, to_disk: bool, model_name: str | None) -> None:
    if not isinstance(model, nn.Module):
        raise SpecError(f"model must be one torch.nn.Module, got a {type(model).__name__}; call benchmark for each.")
    if preprocessing is not None:
        raise SpecError("preprocessing: the images of CIFAR are taken as they are; drop the argument.")
    if to_disk and model_name is None:
        raise SpecError("to_disk=True needs a model_name, after which the file is called.")


def _attacked(
    model: nn.Module, data: str, data_dir: Path, threat: ThreatModel, folder: Path, options: dict[str, Any]
) -> tuple[float, float, dict[str, Any]]:
    """Both accuracies under the plan `standard`, and RobustBench's fields."""
    request = Request(
        classifier=model, data=data, threat=threat, plan="standard", n=options["n"], precision="float32",
        data_dir=data_dir,
    )  # fmt: skip
    job = prepare(request, device=options["device"], batch_size=options["batch_size"], out=folder)
    record = run_job(job, Lines())
    info = model_info(open_run(folder, data_dir))
    return record.clean_accuracy.value, record.robust_accuracy.value, info


def _corrupted(
    model: nn.Module, data: str, places: tuple[Path, Path], folder: Path, options: dict[str, Any]
) -> tuple[float, float, dict[str, Any]]:
    """Accuracy on clean images and the mean over the published corruptions, and RobustBench's fields."""
    classifier = load_classifier(model)
    request = CorruptionRequest(classifier=classifier, data=f"{data}-c", n=options["n"], data_dir=places[1])
    given = {"device": options["device"], "batch_size": options["batch_size"], "progress": Lines()}
    found, _ = measure_corruptions(request, out=folder / "corrupted", **given)
    clean = measure_clean(classifier, data, n=options["n"], data_dir=places[0], out=folder / "clean", **given)
    info = {
        "link": "", "authors": "", "additional_data": False, "number_forward_passes": 1, "dataset": data,
        "venue": "N/A", "architecture": "", "eps": None, "clean_acc": f"{100 * clean.clean_accuracy.value:.2f}",
        "reported": "", "corruptions_acc": f"{100 * found['mean']['value']:.2f}", "corruptions_mce": "",
        "footnote": f"{found['n']} examples ({found['ids']}), robustgen",
    }  # fmt: skip
    return clean.clean_accuracy.value, found["mean"]["value"], info


def _say(lines: list[str], log_path: str | Path | None) -> None:
    print("\n".join(lines))
    if log_path is not None:
        with disk_errors(Path(log_path)), Path(log_path).open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
