"""PGD against foolbox and ART: same model, images, steps and step length, in turn in one process.

Each side is called as its documentation says. What is compared is the time to a verdict: which images are broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import robustgen
from robustgen import engine
from robustgen.attacks.pgd import PGD
from robustgen.benchmarks.harness import compare, store
from robustgen.classifiers import load_classifier
from robustgen.environment import tune_process
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel, choose_form
from robustgen.threat import ThreatModel

STEPS, REL_STEP, IMAGES, BATCH = 40, 0.1, 300, 250
EPS = 0.1


def foolbox_side(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], int]:
    """Broken images by foolbox.LinfPGD."""
    from foolbox.attacks import LinfPGD
    from foolbox.models.pytorch import PyTorchModel

    attacked = PyTorchModel(model, bounds=(0, 1), device="cpu")
    attack = LinfPGD(steps=STEPS, rel_stepsize=REL_STEP)

    def run() -> int:
        parts = [attack(attacked, a, b, epsilons=EPS)[2] for a, b in zip(x.split(BATCH), y.split(BATCH), strict=True)]
        return int(sum(part.sum() for part in parts))

    return run


def art_side(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], int]:
    """Broken images by ART's ProjectedGradientDescentPyTorch."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    classes = int(model(x[:1]).shape[1])
    estimator = PyTorchClassifier(
        model, loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=classes, clip_values=(0.0, 1.0),
        device_type="cpu",
    )  # fmt: skip
    attack = ProjectedGradientDescentPyTorch(
        estimator, norm="inf", eps=EPS, eps_step=REL_STEP * EPS, max_iter=STEPS, num_random_init=1, batch_size=BATCH,
        verbose=False,
    )  # fmt: skip

    def run() -> int:
        x_adv = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
        with torch.no_grad():
            return int((torch.cat([model(part) for part in x_adv.split(BATCH)]).argmax(1) != y).sum())

    return run


def our_side(classifier: nn.Module, search: SearchModel, x: Tensor, y: Tensor) -> Callable[[], int]:
    """Broken images by our engine, judged in float32."""
    threat = ThreatModel("linf", EPS)
    judge, attack = Judge(classifier, threat), PGD(steps=STEPS, rel_step=REL_STEP)

    def run() -> int:
        outcomes: list[engine.Outcome] = []
        engine.run(
            attack, Oracle(search), judge, lambda ids: (x[list(ids)], y[list(ids)]), range(len(x)), threat,
            seed=0, batch_size=BATCH, finish=outcomes.append,
        )  # fmt: skip
        return sum(o.broken for o in outcomes)

    return run


def main() -> None:
    """Measure, print, store."""
    tune_process()
    rows = []
    for name in ("fmnist-at", "fmnist-standard"):
        classifier = load_classifier(name)
        x, y = robustgen.load_data("fmnist-test-1k").batch(range(IMAGES))
        with torch.no_grad():
            correct = classifier(x).argmax(1) == y
        x, y = x[correct], y[correct]
        chosen, _ = choose_form(classifier, x, y)
        plain = SearchModel(classifier, SearchForm())
        for peer, theirs in (("foolbox", foolbox_side(classifier, x, y)), ("ART", art_side(classifier, x, y))):
            for search in (chosen, plain):
                ours = our_side(classifier, search, x, y)
                row: dict[str, Any] = {
                    "classifier": name, "peer": peer, "form": str(search.form), "images": len(x),
                    "broken": {"ours": ours(), "theirs": theirs()}, **compare(ours, theirs, pairs=3).summary(),
                }  # fmt: skip
                rows.append(row)
                print({k: row[k] for k in ("classifier", "peer", "form", "broken", "ratio")}, flush=True)
    what = f"PGD, {STEPS} steps of {REL_STEP} eps, linf {EPS}, batch {BATCH}"
    print(store("speed-pgd", {"what": what, "rows": rows}, module="speed.pgd"))


if __name__ == "__main__":
    main()
