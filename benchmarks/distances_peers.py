"""The minimum-norm attacks of robustgen and of other libraries, each at one budget of forwards and backwards an image.

An attack gets as many steps as the budget pays for; for the rest the settings are those of its documentation, or of its
paper where these are better known; `docs/distances.md` lists them. Where two libraries have the same attack, ours and
theirs get the same number of searches, restarts and classes.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from robustgen.threat import Norm

__all__ = ["LIBRARIES", "Counted", "Entrant", "entrants", "missing_libraries"]

LIBRARIES = {"adv_lib": "adv-lib", "foolbox": "foolbox", "art": "adversarial-robustness-toolbox"}  # module: package
INSTALL = "pip install 'setuptools<81' wheel && pip install --no-build-isolation visdom " + " ".join(LIBRARIES.values())
SEARCHES = 3  # for the constant of theirs, each from the image again, so that few steps each break nothing
STEPS_A_SEARCH = 150  # of theirs, where a budget has room for more searches than that
OUR_SEARCHES = 6  # each goes on from the last
RATE = 0.1  # of Adam in these few steps; 0.01, a default, stays far away
TARGETS = 3  # classes that FAB aims at, one after the other
STEPS_A_CLASS = 50  # about so many of FMN-T, as held-out images tell: within a budget more classes beat longer walks
_NORMS: dict[Norm, float] = {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}


class Counted(nn.Module):
    """A network that counts images sent forward, and backward: each time a gradient arrives at its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.forwards = self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> logits (B, K)."""
        logits: Tensor = self.network(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._gradient_arrived)
        return logits

    def _gradient_arrived(self, grad: Tensor) -> None:
        self.backwards += len(grad)


@dataclass(frozen=True, slots=True)
class Entrant:
    """One attack of one library.

    Attributes:
        library: "robustgen" or a key of `LIBRARIES`.
        attack: its name there.
        like: the attack of robustgen that it is compared with; "" where robustgen has not that attack.
        settings: keyword arguments, all that are not the library's defaults.
    """

    library: str
    attack: str
    like: str
    settings: dict[str, Any]

    def spec(self) -> str:
        """As typed: "ddn:steps=299"."""
        return ":".join([self.attack, *(f"{key}={value}" for key, value in self.settings.items())])

    def run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The final images (B, C, H, W), whatever they are worth, of a library that is not robustgen.

        Args:
            model: (B, C, H, W) float32 in [0, 1] -> logits (B, K).
            x, y: images and labels (B,) int64, all predicted right.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            found = _RUN[self.library](self, model, x, y)
        return found.detach()


def missing_libraries() -> list[str]:
    """The modules that are not installed."""
    return [module for module in LIBRARIES if find_spec(module) is None]


def _run_adv_lib(entrant: Entrant, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    attack: Callable[..., Tensor] = getattr(importlib.import_module("adv_lib.attacks"), entrant.attack)
    return attack(model, x.clone(), y, **entrant.settings)


def _run_foolbox(entrant: Entrant, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    foolbox = importlib.import_module("foolbox")
    attack = getattr(importlib.import_module("foolbox.attacks"), entrant.attack)(**entrant.settings)
    attacked = foolbox.PyTorchModel(model.eval(), bounds=(0, 1), device="cpu")
    found: Tensor = attack.run(attacked, x, foolbox.Misclassification(y))
    return found


def _run_art(entrant: Entrant, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    classifiers = importlib.import_module("art.estimators.classification")
    estimator = classifiers.PyTorchClassifier(
        model.eval(), loss=nn.CrossEntropyLoss(), input_shape=tuple(x.shape[1:]), nb_classes=int(model(x[:1]).shape[1]),
        clip_values=(0.0, 1.0), device_type="cpu",
    )  # fmt: skip
    attack = getattr(importlib.import_module("art.attacks.evasion"), entrant.attack)
    return torch.from_numpy(attack(estimator, verbose=False, **entrant.settings).generate(x.numpy(), y.numpy()))


_RUN = {"adv_lib": _run_adv_lib, "foolbox": _run_foolbox, "art": _run_art}


def entrants(norm: Norm, budget: int, classes: int, steps_a_class: Sequence[int] = (STEPS_A_CLASS,)) -> list[Entrant]:
    """All attacks in this norm, those of robustgen first, within so many forwards and backwards an image.

    Args:
        norm: in which the distance is made small.
        budget: forwards plus backwards; at least 60, below which some get no step.
        classes: K of the classifier, which DeepFool's cost depends on.
        steps_a_class: about so many of FMN-T, which is entered once for each that makes a difference.
    """
    steps = budget // 2  # each a forward and a backward
    parts = (
        _walks(norm, steps, classes, steps_a_class), _fab(norm, budget), _deepfool(norm, budget, classes),
        _penalties(norm, budget, steps), _lagrangians(norm, steps),
    )  # fmt: skip
    listed = [entrant for part in parts for entrant in part]
    return sorted(listed, key=lambda entrant: entrant.library != "robustgen")


def _walks(norm: Norm, steps: int, classes: int, steps_a_class: Sequence[int]) -> list[Entrant]:
    """FMN, DDN and sigma-zero: one gradient a step. Ours queries its last point, so it takes one step less."""
    foolbox = {"l0": "L0FMNAttack", "l1": "L1FMNAttack", "l2": "L2FMNAttack", "linf": "LInfFMNAttack"}[norm]
    # First steps of the paper; in L1 a tenth of it is better on some networks and worse on others, so both are entered.
    # Foolbox 3.3.4 holds nothing back in its L2 ball, where short steps end nearer.
    firsts = {"linf": (10.0,), "l1": (1.0, 0.1)}.get(norm, (1.0,))
    in_foolbox = (0.1,) if norm == "l2" else firsts
    aimed = sorted({min(max(1, classes - 1), max(2, steps // each)) for each in steps_a_class})
    listed = [
        Entrant("robustgen", "fmn", "", {"steps": steps - 1}),
        # each restart looks at the clean image first
        *(Entrant("robustgen", "fmn-t", "", {"steps": steps // aims - 2, "restarts": aims}) for aims in aimed),
        *(Entrant("adv_lib", "fmn", "fmn", {"norm": _NORMS[norm], "steps": steps, "α_init": one}) for one in firsts),
        *(Entrant("foolbox", foolbox, "fmn", {"steps": steps, "max_stepsize": one}) for one in in_foolbox),
    ]
    if norm == "l2":
        listed += [
            Entrant("robustgen", "ddn", "", {"steps": steps - 1}),
            Entrant("adv_lib", "ddn", "ddn", {"steps": steps, "levels": None}),
            Entrant("foolbox", "DDNAttack", "ddn", {"steps": steps}),
        ]
    if norm == "l0":
        listed += [
            Entrant("robustgen", "sigma-zero", "", {"steps": steps - 1}),
            Entrant("adv_lib", "sigma_zero", "sigma-zero", {"num_steps": steps}),
        ]
    return listed


def _fab(norm: Norm, budget: int) -> list[Entrant]:
    """FAB towards the nearest classes: two forwards and a backward a step, and a forward or two before."""
    if norm == "l0":
        return []
    ours = (budget // TARGETS - 1) // 3
    theirs = ((budget - 1) // TARGETS - 1) // 3
    settings = {"norm": _NORMS[norm], "n_iter": theirs, "targeted_restarts": True, "restarts": TARGETS}
    return [
        Entrant("robustgen", "fab-t", "", {"steps": ours, "restarts": TARGETS}),
        Entrant("adv_lib", "fab", "fab-t", settings),
    ]


def _deepfool(norm: Norm, budget: int, classes: int) -> list[Entrant]:
    """DeepFool, which ends at its first success and seldom spends the budget."""
    if norm not in ("l2", "linf"):
        return []
    each = 2 * (classes - 1)  # a forward and a backward for each wrong class
    steps = max(1, (budget - 1) // each - 1)
    foolbox = "L2DeepFoolAttack" if norm == "l2" else "LinfDeepFoolAttack"
    listed = [
        Entrant("robustgen", "deepfool", "", {"steps": steps, "classes": classes - 1}),
        Entrant("adv_lib", "df", "deepfool", {"norm": _NORMS[norm], "steps": budget // (classes + 1)}),
        Entrant("foolbox", foolbox, "deepfool", {"steps": steps, "candidates": classes}),
    ]
    if norm == "l2":
        settings = {"max_iter": max(1, budget // (classes + 2) - 1), "nb_grads": classes, "batch_size": 1000}
        listed.append(Entrant("art", "DeepFool", "deepfool", settings))
    return listed


def _penalties(norm: Norm, budget: int, steps: int) -> list[Entrant]:
    """Carlini and Wagner, and the elastic net: a distance and a class term, weighed by a constant that is searched."""
    if norm == "l2":
        searches = max(SEARCHES, steps // STEPS_A_SEARCH)
        each = steps // searches
        adv_lib = {"learning_rate": RATE, "initial_const": 1.0, "max_iterations": each, "abort_early": False}
        foolbox = {"steps": each, "stepsize": RATE, "initial_const": 1.0, "abort_early": False}
        art = {"binary_search_steps": 4, "max_iter": max(1, budget // 40), "initial_const": 10.0}
        return [
            Entrant("robustgen", "cw", "", {"steps": steps // OUR_SEARCHES, "searches": OUR_SEARCHES, "rate": RATE}),
            Entrant("adv_lib", "carlini_wagner_l2", "cw", {"binary_search_steps": searches, **adv_lib}),
            Entrant("foolbox", "L2CarliniWagnerAttack", "cw", {"binary_search_steps": searches, **foolbox}),
            Entrant("art", "CarliniL2Method", "cw", art),
        ]
    if norm == "l1":
        elastic: dict[str, Any] = {
            "binary_search_steps": SEARCHES,
            "steps": budget // (3 * SEARCHES),
            "initial_const": 1.0,
        }
        elastic |= {"decision_rule": "L1", "abort_early": False}
        return [Entrant("foolbox", "EADAttack", "", elastic)]
    return []


def _lagrangians(norm: Norm, steps: int) -> list[Entrant]:
    """ALMA and the primal-dual attacks, which robustgen has not."""
    listed = []
    if norm in ("l1", "l2"):
        settings = {"distance": norm, "num_steps": steps, "init_lr_distance": 0.5 if norm == "l1" else 0.1}
        listed.append(Entrant("adv_lib", "alma", "", settings))
    if norm == "l2":
        listed.append(Entrant("adv_lib", "pdgd", "", {"num_steps": steps}))
    else:
        operator = {"proximal_operator": 23} if norm == "l0" else {}
        listed.append(Entrant("adv_lib", "pdpgd", "", {"norm": _NORMS[norm], "num_steps": steps, **operator}))
    return listed
