"""`AutoAttack` with the arguments of the class of that name, on the plans and the judge of robustgen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.attacks.plans import Plan
from robustgen.classifier import check_classifier
from robustgen.classifiers import load_classifier
from robustgen.compat.folders import as_module, device_name, run_folder
from robustgen.compat.settings import VERSIONS, Settings, plan_of
from robustgen.data import load_data
from robustgen.durable import disk_errors
from robustgen.errors import SpecError, unknown_name
from robustgen.jobs import run_job
from robustgen.judge import Judge, strict_float32
from robustgen.prepare import prepare
from robustgen.progress import Lines, Silent
from robustgen.record import RunRecord
from robustgen.report import flag_meaning
from robustgen.request import Request
from robustgen.runs import read_examples
from robustgen.threat import Norm, ThreatModel
from robustgen.witnesses import read_witnesses

__all__ = ["AutoAttack"]

_NORMS: dict[str, Norm] = {"Linf": "linf", "L2": "l2", "L1": "l1"}


class AutoAttack:
    """AutoAttack by robustgen's plan of the same name; the figures are those of `robustgen eval --plan VERSION`.

    Source: Croce & Hein 2020, arXiv:2003.01690; for L1 Croce & Hein 2021, arXiv:2103.01208.
    Differs: a seed of None is 0, so that the same call gives the same images; torch's global generator is left alone;
    verdicts do not depend on `bs`; a network that says something else in training mode is refused in it.
    `state_path` is a folder, and what was found before an interruption is returned as well.

    Args:
        model: (B, C, H, W) float32 in [0, 1] to logits (B, K); a module or a function. It is not changed.
        norm: "Linf", "L2" or "L1".
        eps: radius in pixels of [0, 1].
        seed: of every random draw.
        verbose: print figures on stdout, and how far it is on stderr.
        attacks_to_run: names and order, for version "custom" only: "apgd-ce", "apgd-dlr", "fab", "square", "apgd-t",
            "fab-t". May be set later as well.
        version: "standard", "plus", "rand" (for stochastic classifiers only) or "custom".
        is_tf_model: only False.
        device: where to compute; None for the model's own.
        log_path: file to which the lines are added as well.
        attacks: another name of `attacks_to_run`, as in the package pyautoattack.
        precision: as in `robustgen.evaluate`; "auto" is faster, and takes the form that is fastest at that moment.

    Attributes:
        apgd, apgd_targeted, fab, square: hyper-parameters that may be set, such as `apgd.n_restarts`.
        record: of the last evaluation, with intervals and flags; None before.

    Raises:
        SpecError: an argument that means nothing or cannot be honoured.
    """

    def __init__(
        self, model: object, norm: str = "Linf", eps: float = 0.3, seed: int | None = None, verbose: bool = True,
        attacks_to_run: Sequence[str] = (), version: str = "standard", is_tf_model: bool = False,
        device: str | torch.device | None = None, log_path: str | Path | None = None, *,
        attacks: Sequence[str] | None = None, precision: str = "float32",
    ) -> None:  # fmt: skip
        if is_tf_model:
            raise SpecError("is_tf_model=True: robustgen attacks PyTorch models; convert it, or wrap it in a module.")
        if norm not in _NORMS:
            raise unknown_name("norm", str(norm), _NORMS)
        if version not in VERSIONS:
            raise unknown_name("version", str(version), VERSIONS)
        named = list(attacks_to_run if attacks is None else attacks)
        if named and version != "custom":
            raise SpecError(f"attacks_to_run is for version='custom'; version {version} has its own attacks.")
        self.model, self.norm, self.epsilon, self.seed, self.version = as_module(model), norm, eps, seed, version
        self.threat = ThreatModel(_NORMS[norm], float(eps))
        self.verbose, self.log_path, self.precision = verbose, log_path, precision
        self.device = device_name(_home(self.model) if device is None else device)
        self.attacks_to_run = named or list(VERSIONS[version])
        self._settings = Settings(version, self.threat.norm)
        self.apgd, self.apgd_targeted = self._settings.apgd, self._settings.apgd_targeted
        self.fab, self.square = self._settings.fab, self._settings.square
        self.record: RunRecord | None = None

    def run_standard_evaluation(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False,
        state_path: str | Path | None = None, *, batch_size: int | None = None,
    ) -> Any:  # fmt: skip
        """Attack after attack, each on what those before it have left standing.

        Args:
            x_orig: (N, C, H, W) in [0, 1].
            y_orig: (N,) integer labels.
            bs: images attacked at once; changes no verdict.
            return_labels: whether to return predictions as well.
            state_path: folder of the run; the same call goes on with an unfinished one. By default nothing is kept.
            batch_size: another name of `bs`, as in the package pyautoattack.

        Returns:
            (N, C, H, W) of the type and on the device of x_orig: an adversarial image where one was found, the clean
            one elsewhere. With `return_labels` also (N,) int64: the class of each.

        Raises:
            SpecError, RecordError: the images, labels, model or settings are not what they should be.
        """
        plan = self._plan(self.attacks_to_run)
        self._say(f"using {self.version} version including {', '.join(self.attacks_to_run)}.")
        found = self._evaluate(plan, x_orig, y_orig, batch_size or bs, state_path)
        return found if return_labels else found[0]

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Any]:  # fmt: skip
        """Each attack on all correctly classified images, by itself.

        Returns:
            Name of the attack -> what `run_standard_evaluation` returns.
        """
        plans = {name: self._plan([name], alone=True) for name in self.attacks_to_run}
        found = {name: self._evaluate(plan, x_orig, y_orig, bs, None) for name, plan in plans.items()}
        return {name: pair if return_labels else pair[0] for name, pair in found.items()}

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Share of the images (N, C, H, W) in [0, 1] that get their label (N,), in float32."""
        dataset = load_data((x_orig, y_orig))
        classifier = load_classifier(self.model, shape=dataset.shape).to(self.device)
        right = 0
        with strict_float32():
            judge = Judge(classifier, self.threat)
            for at in range(0, len(dataset), bs):
                x, y = (part.to(self.device) for part in dataset.batch(range(at, min(at + bs, len(dataset)))))
                if at == 0:
                    check_classifier(classifier, x, torch.as_tensor(dataset.labels))
                right += int((judge.predict(x) == y).sum())
        self._say(f"clean accuracy: {right / len(dataset):.2%}")
        return right / len(dataset)

    def _plan(self, names: Sequence[str], *, alone: bool = False) -> Plan:
        return plan_of(self._settings, list(names), "custom" if alone else self.version, self.threat)

    def _evaluate(
        self, plan: Plan, x: Tensor, y: Tensor, batch: int, state_path: str | Path | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Images and predictions of one run; its record is kept in `record`."""
        request = Request(
            classifier=self.model, data=(x, y), threat=self.threat, plan=plan, seed=self.seed or 0,
            precision=self.precision,
        )  # fmt: skip
        with run_folder(state_path, "state_path") as folder:
            job = prepare(request, device=self.device, batch_size=batch, out=folder)
            record = run_job(job, Lines() if self.verbose else Silent())
            x_adv, labels = x.detach().clone(), torch.empty_like(y, dtype=torch.int64)
            for id_, image in read_witnesses(folder):
                x_adv[id_] = image.to(x_adv)
            for e in read_examples(folder):
                labels[e.id] = e.clean_prediction if e.prediction is None else e.prediction
        self.record = record if state_path is not None else replace(record, run="")
        self._report(record, x, x_adv)
        return x_adv, labels

    def _report(self, record: RunRecord, x: Tensor, x_adv: Tensor) -> None:
        """The lines that a reader of AutoAttack's log looks for, and the flags."""
        left, seconds = round(record.n * record.clean_accuracy.value), 0.0
        self._say(f"initial accuracy: {record.clean_accuracy.value:.2%}")
        for attack in record.attacks:
            left, seconds = left - attack.broken, seconds + attack.seconds
            name, total = attack.name.upper(), f"total time {seconds:.1f} s"
            self._say(f"robust accuracy after {name}: {left / record.n:.2%} ({total})")
        for flag in record.flags:
            self._say(f"flag {flag}: raised if {flag_meaning(flag)}")
        farthest = float(self.threat.distance(x.float(), x_adv.float()).max())
        self._say(f"max {self.norm} perturbation: {farthest:.5f}")
        self._say(f"robust accuracy: {record.robust_accuracy}")

    def _say(self, line: str) -> None:
        if self.verbose:
            print(line)
        if self.log_path is not None:
            path = Path(self.log_path)
            with disk_errors(path), path.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")


def _home(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies; the CPU where it has none."""
    first = next(iter([*model.parameters(), *model.buffers()]), None)
    return torch.device("cpu") if first is None else first.device
