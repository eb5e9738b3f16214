"""Goals: one class counts as success. Losses, attacks and the judge against closed forms; what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import robustgen
from robustgen.attacks.base import Attack
from robustgen.attacks.losses import LOSSES
from robustgen.attacks.plans import parse_attack
from robustgen.engine import Outcome, run
from robustgen.errors import SpecError
from robustgen.goals import Goal, check_goal_of, check_labels
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.registry import ATTACKS
from robustgen.threat import ThreatModel
from tests.helpers import Linear, make_convnet, make_images, make_linear

INSIDE = ["fgsm", "pgd:steps=40", "pgd:steps=40:loss=margin", "apgd-ce:steps=40", "apgd-dlr:steps=40",
          "apgd-t:steps=40:restarts=1", "fmn:steps=40",
          "fmn-t:steps=40:restarts=1", "fab-t:steps=20:restarts=1", "square:steps=400",
          "nes:queries=800", "spsa:queries=800", "bandits:queries=800:tile=1", "simba:queries=800"]  # fmt: skip
FREE = ["fmn:steps=150", "fmn-t:steps=150:restarts=1", "ddn:steps=300:loss=margin", "cw", "fab-t:steps=60:restarts=1"]
REFUSE = {"deepfool", "fab", "malt"}  # they take whichever class they come to


def attack_towards(
    attack: Attack, model: nn.Module, x: Tensor, y: Tensor, goal: Tensor, threat: ThreatModel, batch_size: int = 8
) -> list[Outcome]:
    """Outcomes in the order of the images."""
    found: dict[int, Outcome] = {}
    run(
        attack, Oracle(model), Judge(model, threat), lambda ids: (x[list(ids)], y[list(ids)]), range(len(x)), threat,
        seed=0, batch_size=batch_size, finish=lambda o: found.__setitem__(o.id, o), goals=lambda ids: goal[list(ids)],
    )  # fmt: skip
    return [found[k] for k in range(len(x))]


def planes(model: Linear, goal: int) -> tuple[np.ndarray, np.ndarray]:
    """(A, u) with A x <= u exactly where the goal is predicted, in float64."""
    w, b = model.weight.double().numpy(), model.bias.double().numpy()
    others = [k for k in range(len(w)) if k != goal]
    return w[others] - w[goal], b[goal] - b[others]


def exact_linf(model: Linear, x: Tensor, goal: int) -> float:
    """Distance of x (C, H, W) to the points where the goal is predicted, by a linear programme over [0, 1]."""
    a, u = planes(model, goal)
    flat = x.double().flatten().numpy()
    size, one = len(flat), np.eye(len(flat))
    rows = np.block([[a, np.zeros((len(a), 1))], [one, -np.ones((size, 1))], [-one, -np.ones((size, 1))]])
    bound = np.concatenate([u - a @ flat, np.zeros(2 * size)])
    free = [(-v, 1 - v) for v in flat]
    solved = linprog(np.append(np.zeros(size), 1.0), A_ub=rows, b_ub=bound, bounds=[*free, (0, None)])
    return float(solved.fun) if solved.status == 0 else np.inf


def exact_l2(model: Linear, x: Tensor, goal: int) -> float:
    """The same in L2 without the limits of [0, 1]: active sets of the half-spaces, one after the other."""
    from itertools import combinations

    a, u = planes(model, goal)
    room = u - a @ x.double().flatten().numpy()
    best = np.inf
    for count in range(1, len(a) + 1):
        for active in map(list, combinations(range(len(a)), count)):
            rows = a[active]
            d = rows.T @ np.linalg.solve(rows @ rows.T, room[active])
            if (a @ d <= room + 1e-9).all():
                best = min(best, float(np.linalg.norm(d)))
    return best


@pytest.fixture(scope="module")
def linear() -> tuple[Linear, Tensor, Tensor, Tensor]:
    """Four classes, grey rectangular images far from the walls of [0, 1], and the next class as goal."""
    model = make_linear((1, 4, 6), classes=4)
    x, _ = make_images(model, 8, (1, 4, 6))
    x = 0.5 + 0.1 * (x - 0.5)
    y = model(x).argmax(1)
    return model, x, y, (y + 1) % 4


@pytest.mark.parametrize("text", INSIDE)
def test_a_little_beyond_the_distance_succeeds_and_below_it_nothing_does(
    text: str, linear: tuple[Linear, Tensor, Tensor, Tensor]
) -> None:
    """In Linf the points of the goal are a polyhedron whose distance a linear programme gives."""
    model, x, y, goal = linear
    broke = 0
    for k in range(len(x)):
        distance = exact_linf(model, x[k], int(goal[k]))
        for factor, possible in ((1.3, True), (0.98, False)):
            one = (x[k : k + 1], y[k : k + 1], goal[k : k + 1])
            (found,) = attack_towards(parse_attack(text), model, *one, ThreatModel("linf", factor * distance))
            assert possible or not found.broken, f"example {k} at {factor} times its distance"
            if found.broken:
                assert found.x_adv is not None
                assert int(goal[k]) == found.prediction == int(model(found.x_adv[None]).argmax(1))
                broke += 1
    # The cross-entropy has its optimum inside the goal, not at its edge; one step and random search are weaker still.
    weak = {"fgsm": 3, "square:steps=400": 3, "pgd:steps=40": 5, "apgd-ce:steps=40": 5, "bandits:queries=800:tile=1": 3}
    assert broke >= weak.get(text, len(x) - 1)


@pytest.mark.parametrize("text", FREE)
def test_nearest_image_of_the_goal(text: str, linear: tuple[Linear, Tensor, Tensor, Tensor]) -> None:
    """In L2 never below the exact distance, and within 1.1 times it on most images, 1.5 on all."""
    model, x, y, goal = linear
    outcomes = attack_towards(parse_attack(text), model, x, y, goal, ThreatModel.unbounded("l2"))
    ratios = []
    for k, found in enumerate(outcomes):
        assert found.distance is not None
        assert found.prediction == int(goal[k])
        ratios.append(found.distance / exact_l2(model, x[k], int(goal[k])))
    assert min(ratios) > 1 - 1e-5
    assert sorted(ratios)[len(ratios) // 2] < 1.1
    assert max(ratios) < 1.5


def test_two_classes_are_the_untargeted_problem() -> None:
    """With two classes the goal is the only wrong one: PGD takes the same path, to the last bit, on the margin."""
    model = make_convnet(classes=2)
    x, y = make_images(model, 6)
    attack, threat = parse_attack("pgd:steps=10:loss=margin"), ThreatModel("linf", 0.2)
    found = attack_towards(attack, model, x, y, 1 - y, threat)
    plain = robustgen.attack(model, x, y, threat, "pgd:steps=10:loss=margin", batch_size=8)
    assert any(o.broken for o in found)
    for k, o in enumerate(found):
        assert torch.equal(x[k] if o.x_adv is None else o.x_adv, plain[k])


@pytest.mark.parametrize("classes", [2, 3, 8, 1000])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_towards_a_goal(name: str, classes: int) -> None:
    """float64 formulas; all but the cross-entropy are positive exactly at success."""
    z = torch.randn(16, classes, dtype=torch.float64, generator=torch.Generator().manual_seed(classes))
    goal = torch.arange(16) % classes
    rest = z.scatter(1, goal[:, None], -torch.inf).amax(1)
    rise = z.gather(1, goal[:, None]).squeeze(1) - rest
    p = z.exp() / z.exp().sum(1, keepdim=True)
    ordered = z.sort(1, descending=True).values
    tail = (ordered[:, 2] + ordered[:, min(3, classes - 1)]) / 2 if classes > 2 else rest
    expected = {
        "ce": p.gather(1, goal[:, None]).squeeze(1).log(),
        "margin": rise,
        "margin-t": rise,
        "pm": p.gather(1, goal[:, None]).squeeze(1) - p.scatter(1, goal[:, None], 0.0).amax(1),
        "dlr": rise / (ordered[:, 0] - tail) if classes > 2 else rise,
        "dlr-t": rise / (ordered[:, 0] - tail) if classes > 2 else rise,
    }[name]
    got = LOSSES[name].towards(z, goal)
    torch.testing.assert_close(got, expected)
    if name != "ce":
        assert torch.equal(got > 0, z.argmax(1) == goal)


def test_the_judge_wants_the_goal_itself() -> None:
    """A third class is a break without a goal, and none with one."""
    model = make_linear((1, 4, 4), classes=4)
    x, y = make_images(model, 12, (1, 4, 4))
    other = x.flip(0)
    judge, anywhere = Judge(model, ThreatModel("linf", 1.0)), model(other).argmax(1)
    assert torch.equal(judge(x, y, other).broken, anywhere != y)
    for goal in range(4):
        aims = torch.full_like(y, goal)
        assert torch.equal(judge(x, y, other, goal=aims).broken, anywhere == goal)


@pytest.mark.parametrize(
    "text", ["pgd:steps=6:restarts=2", "apgd-t:steps=6:restarts=2", "square:steps=30", "fab-t:steps=5"]
)
def test_batch_size_changes_nothing(text: str) -> None:
    """RGB rectangles in float64: each example meets the same fate in any batch."""
    model = make_convnet(channels=3, classes=5).double()
    x, y = make_images(model.float(), 12, (3, 7, 5))
    model, x = model.double(), x.double()
    goal, threat = (y + 2) % 5, ThreatModel("linf", 0.03)
    fates = [attack_towards(parse_attack(text), model, x, y, goal, threat, size) for size in (12, 5, 1)]
    for other in fates[1:]:
        assert [(o.broken, o.round, o.restart, o.forwards) for o in fates[0]] == [
            (o.broken, o.round, o.restart, o.forwards) for o in other
        ]
    assert any(o.broken for o in fates[0])


def test_restarts_towards_one_class_differ() -> None:
    """FAB-T begins at the image once only, so that its other restarts are worth their queries."""
    model = make_convnet(channels=1, classes=4)
    x, y = make_images(model, 1)
    starts = [
        parse_attack("fab-t").init(  # type: ignore[call-arg]
            Oracle(model), x, y, ThreatModel("linf", 0.1), robustgen.rng.ExampleRng.of(0, [0], [r]), goal=(y + 1) % 4
        )
        for r in range(3)
    ]
    assert torch.equal(starts[0].x_i, x)  # type: ignore[attr-defined]
    assert len({tuple(s.x_i.flatten().tolist()) for s in starts}) == 3  # type: ignore[attr-defined]


def test_every_attack_takes_a_goal_or_says_why_not() -> None:
    """Those that cannot are the ones whose sentence says so."""
    free = {name for name in ATTACKS if not getattr(ATTACKS[name], "takes_goal", False)}
    assert REFUSE == free
    for name in REFUSE:
        with pytest.raises(SpecError, match=rf"attack '{name}' cannot be told a class.*type --attacks pgd, apgd-t"):
            check_goal_of([(name, ATTACKS[name]())], Goal.parse("next"))
        check_goal_of([(name, ATTACKS[name]())], Goal())


@pytest.mark.parametrize("text", ["untargeted", "targeted:0", "targeted:17", "least-likely", "next", "all"])
def test_goals_round_trip(text: str) -> None:
    """`str` gives back what was read."""
    assert text == str(Goal.parse(text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("targetted:3", "did you mean 'targeted'"),
        ("targeted", "expected targeted:CLASS"),
        ("targeted:-1", "expected targeted:CLASS"),
        ("targeted:cat", "expected targeted:CLASS"),
        ("next:3", "next takes no class"),
        ("least", "did you mean 'least-likely'"),
    ],
)
def test_bad_goals(text: str, says: str) -> None:
    """The nearest name, or what to type."""
    with pytest.raises(SpecError, match=says):
        Goal.parse(text)


def test_targets_of_each_goal() -> None:
    """Next wraps around; the least likely is never the label, even where that has the smallest logit."""
    y, z = torch.tensor([0, 2, 1]), torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 9.0], [7.0, -1.0, 4.0]])

    def targets(text: str) -> Sequence[int]:
        found = Goal.parse(text).targets(y, z)
        assert found is not None
        return found.tolist()

    assert [1, 0, 2] == targets("next")
    assert [1, 0, 2] == targets("least-likely")
    assert [2, 2, 2] == targets("targeted:2")
    assert Goal().targets(y, z) is None


def test_goals_that_a_classifier_has_not() -> None:
    """A class out of range, and a single class."""
    with pytest.raises(SpecError, match=r"--goal targeted:3: the classifier has 3 classes, 0 to 2; class 3 is none"):
        Goal.parse("targeted:3").check(3)
    with pytest.raises(SpecError, match="needs two classes or more"):
        Goal.parse("next").check(1)
    Goal.parse("targeted:2").check(3)
    Goal().check(1)
    with pytest.raises(SpecError, match="all 2 examples have that label"):
        check_labels(Goal.parse("targeted:1"), [1, 1])
    assert ["1 of 3 examples have the label 1, which is the target: they are skipped."] == check_labels(
        Goal.parse("targeted:1"), [0, 1, 2]
    )
    assert [] == check_labels(Goal.parse("next"), [0, 1, 2])


def test_library_function_takes_a_goal() -> None:
    """Images that become the class, and clean ones elsewhere."""
    model = make_linear((3, 8, 6), classes=4)
    x, y = make_images(model, 10, (3, 8, 6))
    x_adv = robustgen.attack(model, x, y, "linf:0.1", "apgd-t:steps=20:restarts=2", goal="targeted:2")
    changed = (x_adv != x).flatten(1).any(1)
    assert changed.any()
    assert (model(x_adv[changed]).argmax(1) == 2).all()
    assert not changed[y == 2].any()
    with pytest.raises(SpecError, match="loop over targeted:CLASS"):
        robustgen.attack(model, x, y, "linf:0.1", "pgd", goal="all")
    with pytest.raises(SpecError, match="cannot be told a class"):
        robustgen.attack(model, x, y, "linf:0.1", "fab", goal="next")
