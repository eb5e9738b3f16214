"""The contract that every registered attack keeps, and the optimum on classifiers where it is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustgen
from robustgen.attacks.base import Attack
from robustgen.attacks.plans import parse_attack
from robustgen.engine import Outcome, run
from robustgen.errors import SpecError
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.registry import ATTACKS
from robustgen.threat import ThreatModel
from tests.helpers import Linear, assert_global_rng_untouched, make_convnet, make_images, make_linear

# One small instance of every attack, with the norms it knows. A registered attack that is missing here fails a test;
# `replay`, which needs a file, is tried in test_interchange.py.
INSTANCES = {
    "clean": ("clean", ("linf", "l2", "l1", "patch")),
    "noise": ("noise:steps=10", ("linf", "l2", "l1", "patch")),
    "fgsm": ("fgsm", ("linf", "l2", "l1")),
    "pgd": ("pgd:steps=15:restarts=2", ("linf", "l2", "l1")),
    "apgd-ce": ("apgd-ce:steps=15:restarts=2", ("linf", "l2", "l1")),
    "apgd-dlr": ("apgd-dlr:steps=15", ("linf", "l2", "l1")),
    "malt": ("malt:steps=10:restarts=3", ("linf", "l2", "l1")),
    "apgd-t": ("apgd-t:steps=10:restarts=3", ("linf", "l2", "l1")),
    "square": ("square:steps=60", ("linf", "l2", "l1")),
    "simba": ("simba:queries=40", ("linf", "l2", "l1")),
    "simba-dct": ("simba-dct:queries=40", ("linf", "l2", "l1")),
    "nes": ("nes:queries=40:samples=6", ("linf", "l2", "l1")),
    "nes-blind": ("nes-blind:queries=30:samples=4", ("linf", "l2")),
    "spsa": ("spsa:queries=40:samples=6", ("linf", "l2", "l1")),
    "bandits": ("bandits:queries=40", ("linf", "l2", "l1")),
    "hopskipjump": ("hopskipjump:queries=40:probes=6", ("linf", "l2")),
    "boundary": ("boundary:queries=40", ("l2",)),
    "surfree": ("surfree:queries=40", ("l2",)),
    "mi-fgsm": ("mi-fgsm:steps=4", ("linf", "l2", "l1")),
    "ni-fgsm": ("ni-fgsm:steps=4", ("linf", "l2")),
    "di-fgsm": ("di-fgsm:steps=4", ("linf", "l2")),
    "ti-fgsm": ("ti-fgsm:steps=4", ("linf", "l2")),
    "si-fgsm": ("si-fgsm:steps=3:copies=3", ("linf", "l2")),
    "vt-fgsm": ("vt-fgsm:steps=3:samples=2", ("linf", "l2")),
    "fmn": ("fmn:steps=15:restarts=2", ("linf", "l2", "l1")),
    "fmn-t": ("fmn-t:steps=10:restarts=3", ("linf", "l2", "l1")),
    "fab": ("fab:steps=10:restarts=2", ("linf", "l2", "l1")),
    "fab-t": ("fab-t:steps=10:restarts=3", ("linf", "l2", "l1")),
    "patch-pgd": ("patch-pgd:places=9:keep=2:steps=4", ("patch",)),
    "patch-rs": ("patch-rs:queries=40", ("patch",)),
}
# Images sent forward in a round with the five classes of `subject`; 1 for the others.
FORWARDS = {"fab": 5, "fab-t": 2, "si-fgsm": 3, "vt-fgsm": 3}
START = {"malt": 8}  # a look at the clean image, and the slope towards each wrong class; 3 for the others
CASES = [(text, norm) for text, norms in INSTANCES.values() for norm in norms]
THREATS = {"linf": "linf:0.02", "l2": "l2:0.2", "l1": "l1:1.5", "patch": "patch:2x3"}
WHITE_BOX = [
    "fgsm",
    "pgd:steps=40",
    "apgd-ce:steps=40",
    "apgd-dlr:steps=40",
    "apgd-t:steps=40",
    "fab:steps=20",
    "fab-t:steps=20",
    "fmn:steps=40",
    "fmn-t:steps=40",
]


def attack_all(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, batch_size: int, order: list[int]
) -> dict[int, Outcome]:
    """Outcome by id."""
    outcomes: dict[int, Outcome] = {}
    run(
        attack, Oracle(model), Judge(model, threat), lambda ids: (x[list(ids)], y[list(ids)]), order, threat,
        seed=0, batch_size=batch_size, finish=lambda o: outcomes.__setitem__(o.id, o),
    )  # fmt: skip
    return outcomes


@pytest.fixture(scope="module")
def subject() -> tuple[nn.Module, Tensor, Tensor]:
    """A conv net for rectangular RGB images, some of which lie near the boundary."""
    model = make_convnet(channels=3, classes=5)
    x, y = make_images(model, 24, (3, 11, 8))
    return model, x, y


def test_every_attack_is_tried() -> None:
    """The table above covers the registry."""
    without_eps = {name for name in ATTACKS if not getattr(ATTACKS[name], "takes_eps", True)}  # see test_nearest.py
    assert {*INSTANCES, "replay", *without_eps} == set(ATTACKS)


@pytest.mark.parametrize(("text", "norm"), CASES)
def test_contract(text: str, norm: str, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Inside the threat model; model, gradients and global generator as found; costs counted."""
    model, x, y = subject
    threat = ThreatModel.parse(THREATS[norm])
    attack = parse_attack(text)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with assert_global_rng_untouched():
        outcomes = attack_all(attack, model, x, y, threat, batch_size=7, order=list(range(24)))
    assert set(range(24)) == set(outcomes)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    for id_, o in outcomes.items():
        # Beside the rounds: a look at the clean image, and in L1 the starts of two phases of APGD.
        name = text.partition(":")[0]
        assert 0 < o.forwards <= attack.restarts * (FORWARDS.get(name, 1) * attack.rounds + START.get(name, 3))
        if o.broken:
            assert o.x_adv is not None
            assert threat.contains(x[id_ : id_ + 1], o.x_adv[None]).all()
            assert o.prediction == int(model(o.x_adv[None]).argmax(1)) != int(y[id_])
        else:
            assert o.x_adv is None
            assert o.forwards >= attack.rounds


@pytest.mark.parametrize(("text", "norm"), CASES)
def test_batch_order_shards_and_threads_change_nothing(
    text: str, norm: str, subject: tuple[nn.Module, Tensor, Tensor]
) -> None:
    """Each example meets the same fate alone, in a batch, in reverse order, in one of three shards, on one thread."""
    model, x, y = subject
    model, x = _double(model), x.double()
    threat = ThreatModel.parse(THREATS[norm])
    attack = parse_attack(text)
    fates, ids, threads = [], list(range(24)), torch.get_num_threads()
    for batch_size, shards, cores in (
        (24, [ids], threads),
        (24, [ids], 1),
        (1, [ids], threads),
        (5, [ids[::-1]], threads),
        (4, [ids[0::3], ids[1::3], ids[2::3]], threads),
    ):
        outcomes = {}
        torch.set_num_threads(cores)
        try:
            for order in shards:
                outcomes |= attack_all(attack, model, x, y, threat, batch_size=batch_size, order=order)
        finally:
            torch.set_num_threads(threads)
        fates.append([outcomes[id_] for id_ in ids])
    for other in fates[1:]:
        for a, b in zip(fates[0], other, strict=True):
            assert (a.broken, a.round, a.restart, a.forwards) == (b.broken, b.round, b.restart, b.forwards)
            if a.x_adv is not None and b.x_adv is not None:
                torch.testing.assert_close(a.x_adv, b.x_adv, atol=1e-6, rtol=0)


def _double(model: nn.Module) -> nn.Module:
    import copy

    return copy.deepcopy(model).double()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("text", WHITE_BOX)
def test_optimal_on_a_linear_classifier(text: str, norm: str) -> None:
    """Succeeds a little beyond the closed-form distance of every example, fails everywhere below it."""
    model, n = make_linear(classes=2), 32
    x, y = make_images(model, n)
    x = 0.5 + 0.1 * (x - 0.5)  # far from the walls of the box, so that the closed form holds
    y = model(x).argmax(1)
    x = _at_one_distance(model, x, y)
    distance = float(model.distance(x, y, norm)[0])
    for factor, expected in ((1.05, True), (0.95, False)):
        threat = ThreatModel(norm, factor * distance)  # type: ignore[arg-type]
        outcomes = attack_all(parse_attack(text), model, x, y, threat, batch_size=n, order=list(range(n)))
        assert {k: outcomes[k].broken for k in range(n)} == dict.fromkeys(range(n), expected), factor


def _at_one_distance(model: Linear, x: Tensor, y: Tensor) -> Tensor:
    """Images moved straight towards or away from the boundary of two classes, until all are equally far from it."""
    normal = model.weight[1] - model.weight[0]
    sign = 2.0 * y - 1
    margin = sign * (model(x)[:, 1] - model(x)[:, 0])
    moved = x + (sign * (margin.mean() - margin) / normal.square().sum())[:, None, None, None] * normal.view_as(x[0])
    assert torch.equal(model(moved).argmax(1), y)
    assert moved.min() > 0.3
    assert moved.max() < 0.7
    torch.testing.assert_close(model.distance(moved, y, "l2"), model.distance(moved, y, "l2")[:1].expand(len(x)))
    return moved.detach()


@pytest.mark.parametrize("classes", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize(("text", "norms"), INSTANCES.values())
def test_any_number_of_classes(text: str, norms: tuple[str, ...], classes: int) -> None:
    """Losses that need a third or fourth logit, and targets that do not exist, are no obstacle."""
    model = make_linear((1, 5, 9), classes=classes)
    x, y = make_images(model, 4, (1, 5, 9))
    threat = ThreatModel.parse("patch:4x6" if "linf" not in norms and "patch" in norms else "linf:0.3")
    outcomes = attack_all(parse_attack(text), model, x, y, threat, batch_size=4, order=[0, 1, 2, 3])
    assert all(o.error is None for o in outcomes.values())
    if classes == 1:
        assert not any(o.broken for o in outcomes.values())
    elif text.startswith(("pgd", "apgd", "square", "fab", "patch-pgd")):
        assert all(o.broken for o in outcomes.values())


@pytest.mark.parametrize("attack", ["pgd:steps=5", "apgd-t:steps=5:restarts=2", "square:steps=20"])
def test_library_function(attack: str, subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """`robustgen.attack` returns images inside the ball, and the clean image where it found none."""
    model, x, y = subject
    x_adv = robustgen.attack(model, x, y, "linf:0.02", attack)
    assert ThreatModel("linf", 0.02).contains(x, x_adv).all()
    broken = model(x_adv).argmax(1) != y
    assert broken.any()
    assert torch.equal(x[~broken], x_adv[~broken])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pdg", "did you mean 'pgd'"),
        ("pgd:step=3", "did you mean 'steps'"),
        ("pgd:steps", "expected parameter=value"),
        ("pgd:steps=many", "steps must be an integer"),
        ("pgd:steps=1.5", "steps must be an integer"),
        ("pgd:rel_step=-1", "rel_step must be positive"),
        ("pgd:loss=cee", "did you mean 'ce'"),
        ("square:steps=0", "must be >= 1"),
        ("square:p_init=2", "fraction of the image"),
        ("noise:steps=0", "must be >= 1"),
    ],
)
def test_bad_attacks_say_what_to_type(text: str, says: str) -> None:
    """Names and parameters are checked before anything runs."""
    with pytest.raises(SpecError, match=says):
        parse_attack(text)


def test_stronger_attacks_break_more(subject: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Noise breaks fewer than FGSM, FGSM no more than APGD."""
    model, x, y = subject
    count: Callable[[str], Any] = lambda text: sum(  # noqa: E731
        o.broken
        for o in attack_all(
            parse_attack(text), model, x, y, ThreatModel("linf", 0.01), batch_size=24, order=list(range(24))
        ).values()
    )
    assert count("noise:steps=20") < count("fgsm") <= count("apgd-ce:steps=20")
