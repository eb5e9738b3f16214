"""FAB: step for step the reference implementation, its projections against SciPy, the optimum on linear classifiers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from pyautoattack.fab_pt import FABAttack_PT
from scipy.optimize import linprog, minimize
from torch import Tensor, nn

from robustgen.attacks.fab import FAB, FABT, FABState
from robustgen.attacks.fab_projections import step_to_hyperplane
from robustgen.engine import Outcome, run
from robustgen.errors import SpecError
from robustgen.judge import Judge
from robustgen.oracle import Cost, Oracle
from robustgen.rng import ExampleRng
from robustgen.threat import Norm, ThreatModel
from tests.helpers import Recorder, make_convnet, make_images, make_linear

STEPS = 100
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1")
EPS = {"linf": 0.1, "l2": 0.5, "l1": 4.0}


@pytest.fixture
def double_reference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The reference casts to float32 wherever it can; here it keeps float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def subject() -> tuple[nn.Module, Tensor, Tensor]:
    """A conv net and rectangular images away from the walls and from its boundaries, all in float64."""
    model = make_convnet(channels=3, classes=6).double()
    x = 0.2 + 0.6 * torch.rand(8, 3, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return model, x, model(x).argmax(1)


def our_steps(
    attack: FAB | FABT, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, restart: int
) -> list[tuple[Tensor, Tensor]]:
    """(where it linearised, what it queried next) of every step."""
    recorder = Recorder(model)
    oracle = Oracle(recorder)
    state: Any = attack.init(oracle, x, y, threat, ExampleRng.of(0, range(len(x)), [restart] * len(x)))
    steps = []
    for _ in range(attack.rounds):
        recorder.seen.clear()
        state = attack.step(oracle, state)
        assert torch.equal(recorder.seen[-1], state.x_adv)
        steps.append((recorder.seen[0], recorder.seen[-1]))
    return steps


def reference_steps(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, **how: Any
) -> list[tuple[Tensor, Tensor]]:
    """The same of the reference."""
    recorder = Recorder(model)
    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    reference = FABAttack_PT(recorder, norm=norm, eps=threat.eps, n_iter=STEPS, device=torch.device("cpu"))
    reference.target_class = how.pop("target_class", None)
    with torch.no_grad():
        reference.attack_single_run(x, y, **how)
    rounds = recorder.seen[-2 * STEPS :]
    return list(zip(rounds[::2], rounds[1::2], strict=True))


def assert_same_steps(expected: list[tuple[Tensor, Tensor]], found: list[tuple[Tensor, Tensor]], start: Tensor) -> None:
    """All 100 pairs agree, and they went somewhere."""
    assert STEPS == len(expected) == len(found)
    torch.testing.assert_close(start, found[0][0], atol=1e-12, rtol=0)
    assert min(float((a - start).abs().amax()) for _, a in found) > 1e-4
    backwards = sum(int((a != b).any()) for (_, a), (b, _) in pairwise(found))
    assert backwards > STEPS / 4, "some rounds step back from a success"
    for k, (a, b) in enumerate(zip(expected, found, strict=True)):
        for ours, theirs in zip(b, a, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0, msg=f"step {k} differs")


@pytest.mark.usefixtures("double_reference")
@pytest.mark.parametrize("restart", [0, 4])  # the last class lies so far away that some planes miss the box
@pytest.mark.parametrize("norm", NORMS)
def test_fab_t_follows_the_reference(norm: Norm, restart: int) -> None:
    """The class with the r-th largest logit, and all 100 linearisation points and iterates, from x."""
    model, x, y = subject()
    threat = ThreatModel(norm, EPS[norm])
    expected = reference_steps(model, x, y, threat, is_targeted=True, target_class=restart + 2)
    assert_same_steps(expected, our_steps(FABT(steps=STEPS), model, x, y, threat, restart), x)


@pytest.mark.usefixtures("double_reference")
@pytest.mark.parametrize("norm", NORMS)
def test_fab_follows_the_reference(norm: Norm) -> None:
    """All 100 linearisation points and iterates, each towards the class that is nearest there, from x."""
    model, x, y = subject()
    threat = ThreatModel(norm, EPS[norm])
    expected = reference_steps(model, x, y, threat)
    assert_same_steps(expected, our_steps(FAB(steps=STEPS), model, x, y, threat, 0), x)


@pytest.mark.usefixtures("double_reference")
@pytest.mark.parametrize("norm", NORMS)
def test_second_restart_follows_the_reference(norm: Norm, monkeypatch: pytest.MonkeyPatch) -> None:
    """With our direction in the place of its random numbers the reference starts where we do, and goes the same way."""
    model, x, y = subject()
    threat = ThreatModel(norm, EPS[norm] / 10)
    ours = our_steps(FAB(steps=STEPS), model, x, y, threat, 1)
    start = ours[0][0]
    torch.testing.assert_close(threat.distance(x, start), torch.full((8,), threat.eps / 2), atol=1e-6, rtol=0)
    monkeypatch.setattr(torch, "rand", lambda shape: (start - x + 1) / 2)
    monkeypatch.setattr(torch, "randn", lambda shape: start - x)
    expected = reference_steps(model, x, y, threat, use_rand_start=True)
    for k, (a, b) in enumerate(zip(expected, ours, strict=True)):
        # our start has the length eps / 2 to float32 rounding, the reference to that of float64
        torch.testing.assert_close(b[1], a[1], atol=1e-5, rtol=0, msg=f"step {k} differs")


def attack_one(attack: FAB | FABT, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, k: int) -> Outcome:
    """What becomes of example k."""
    outcomes: list[Outcome] = []
    run(
        attack, Oracle(model), Judge(model, threat), lambda ids: (x[list(ids)], y[list(ids)]), [k], threat,
        seed=0, batch_size=1, finish=outcomes.append,
    )  # fmt: skip
    return outcomes[0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [FAB(), FABT(restarts=3)], ids=["fab", "fab-t"])
def test_within_one_percent_of_the_optimum(attack: FAB | FABT, norm: Norm) -> None:
    """On a linear classifier of four classes it breaks at 1.01 times the closed-form distance, and not at 0.99."""
    model = make_linear(classes=4)
    x, _ = make_images(model, 24)
    x = 0.5 + 0.1 * (x - 0.5)
    y = model(x).argmax(1)
    distance = model.distance(x, y, norm)
    tried = [k for k in range(24) if 1e-3 < float(distance[k]) < 0.4][:6]
    assert len(tried) >= 5
    for k in tried:
        for factor, expected in ((1.01, True), (0.99, False)):
            threat = ThreatModel(norm, factor * float(distance[k]))
            found = attack_one(attack, model, x, y, threat, k)
            assert expected == found.broken, f"example {k}, {factor} times the distance"


def scipy_step(x: np.ndarray, w: np.ndarray, gap: float, norm: Norm) -> float | None:
    """The norm of the shortest step to the hyperplane inside the box; None where there is none."""
    size = len(x)
    box = list(zip(-x, 1 - x, strict=True))
    if norm == "l2":
        feasible = linprog(np.zeros(size), A_eq=w[None], b_eq=[-gap], bounds=box)
        if feasible.status != 0:
            return None
        on_plane = {"type": "eq", "fun": lambda d: gap + w @ d, "jac": lambda d: w}
        found = minimize(
            lambda d: d @ d, feasible.x, jac=lambda d: 2 * d, bounds=box, constraints=on_plane, method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        return float(np.sqrt(found.fun))
    # |d_j| <= u_j in L1, or all of them below one u_0 in Linf
    count = 1 if norm == "linf" else size
    bound = np.ones((size, 1)) if norm == "linf" else np.eye(size)
    above = np.block([[np.eye(size), -bound], [-np.eye(size), -bound]])
    found = linprog(
        np.r_[np.zeros(size), np.ones(count)], A_ub=above, b_ub=np.zeros(2 * size),
        A_eq=np.r_[w, np.zeros(count)][None], b_eq=[-gap], bounds=box + [(0, None)] * count,
    )  # fmt: skip
    return float(found.fun) if found.status == 0 else None


@pytest.mark.parametrize("norm", NORMS)
def test_projection_is_optimal(norm: Norm) -> None:
    """As short as SciPy's on 2 x 40 random problems, with walls, zero weights and planes that miss the box."""
    g = torch.Generator().manual_seed(1)
    x = (1.6 * torch.rand(2, 40, 7, generator=g, dtype=torch.float64) - 0.3).clamp(0, 1)
    w = torch.randn(40, 7, generator=g, dtype=torch.float64) * (torch.rand(40, 7, generator=g) < 0.8)
    gap = 2 * torch.randn(2, 40, generator=g, dtype=torch.float64)
    d = step_to_hyperplane(x, w, gap, norm)
    moved = x + d
    assert (moved >= -1e-12).all()
    assert (moved <= 1 + 1e-12).all()
    residual = gap + (w * d).sum(-1)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    length = torch.linalg.vector_norm(d, ord=order, dim=-1)
    missed = 0
    for p in range(2):
        for k in range(40):
            shortest = scipy_step(x[p, k].numpy(), w[k].numpy(), float(gap[p, k]), norm)
            if shortest is None:
                missed += 1
                corner = (w[k] * gap[p, k] < 0).double()
                torch.testing.assert_close(moved[p, k][w[k] != 0], corner[w[k] != 0])
                assert (d[p, k][w[k] == 0] == 0).all()
            else:
                assert abs(float(residual[p, k])) < 1e-9
                assert float(length[p, k]) == pytest.approx(shortest, abs=1e-5)
    assert 5 < missed < 60


@pytest.mark.parametrize("norm", NORMS)
def test_projection_in_float32(norm: Norm) -> None:
    """Image-sized problems in float32 land on the plane to rounding, and where float64 does."""
    g = torch.Generator().manual_seed(2)
    x = (1.6 * torch.rand(2, 20, 3072, generator=g) - 0.3).clamp(0, 1)
    w = torch.randn(20, 3072, generator=g) * torch.rand(20, 3072, generator=g) ** 4
    gap = 0.1 * (2 * torch.rand(2, 20, generator=g) - 1) * w.abs().sum(1)
    d = step_to_hyperplane(x, w, gap, norm)
    assert d.dtype == torch.float32
    residual = gap.double() + (w.double() * d.double()).sum(-1)
    assert float(residual.abs().amax()) < 1e-5 * float(w.abs().sum(1).amax())
    exact = step_to_hyperplane(x.double(), w.double(), gap.double(), norm)
    order = {"linf": torch.inf, "l2": 2, "l1": 1}[norm]
    lengths = [torch.linalg.vector_norm(z.double(), ord=order, dim=-1) for z in (d, exact)]
    torch.testing.assert_close(lengths[0], lengths[1], atol=0, rtol=1e-4)


def test_projection_survives_hard_breakpoints() -> None:
    """Walls at distances that shrink geometrically cost Newton's method one pass each, not the answer."""
    x = 0.5 ** torch.arange(1, 51, dtype=torch.float64)[None, None]
    w = 1 / x[0]
    gap = torch.tensor([[49.0]], dtype=torch.float64)
    for norm in NORMS:
        d = step_to_hyperplane(x, w, gap, norm)
        assert abs(float(gap + (w * d).sum())) < 1e-9
        assert float((x + d).amin()) >= 0


@pytest.mark.parametrize("norm", NORMS)
def test_projection_in_corner_cases(norm: Norm) -> None:
    """A solution just at a breakpoint; a plane far out of reach, from which a zero weight is no way; no step at all."""
    x = torch.tensor([[[0.25, 1.0]]])
    ones = torch.ones(1, 2)
    assert [-0.25, -0.25] == step_to_hyperplane(x, ones, torch.tensor([[0.5]]), norm).flatten().tolist()
    far = step_to_hyperplane(x, torch.tensor([[3.0, 0.0]]), torch.tensor([[-1e6]]), norm)
    assert [0.75, 0.0] == far.flatten().tolist()
    assert [0.0, 0.0] == step_to_hyperplane(x, ones, torch.tensor([[0.0]]), norm).flatten().tolist()
    assert [0.0, 0.0] == step_to_hyperplane(x, 0 * ones, torch.tensor([[2.0]]), norm).flatten().tolist()


def test_projection_ignores_rounding_in_the_weights() -> None:
    """A weight that is only rounding sends no pixel to the wall; the scale of all weights together does not matter."""
    x = torch.full((1, 1, 3), 0.5)
    far, near = torch.tensor([[-1e6]]), torch.tensor([[-1e-10]])
    for norm in ("l2", "l1"):
        assert [0.5, 0.0, -0.5] == step_to_hyperplane(
            x, torch.tensor([[3.0, 1e-9, -1e-3]]), far, norm
        ).flatten().tolist()
        d = step_to_hyperplane(x, 1e-9 * torch.tensor([[3.0, 0.0, -1e-3]]), near, norm)
        torch.testing.assert_close(d, torch.tensor([[[1 / 30, 0.0, 0.0]]]), atol=1e-4, rtol=0)


def test_targets_follow_the_clean_logits() -> None:
    """Restart r aims at the r-th nearest wrong class from x; where there are too few it begins again from elsewhere."""
    model = make_linear(classes=3)
    x, y = make_images(model, 4)
    x = 0.3 + 0.4 * x
    y = model(x).argmax(1)
    ranked = model(x).argsort(1, descending=True)
    threat = ThreatModel("linf", 0.1)
    for restart, rank, radius in ((0, 1, 0.0), (1, 2, 0.0), (2, 1, 0.05)):
        state = FABT().init(Oracle(model), x, y, threat, ExampleRng.of(0, range(4), [restart] * 4))
        assert torch.equal(ranked[:, rank], state.target)
        torch.testing.assert_close(threat.distance(x, state.x_i), torch.full((4,), radius).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(1, 5, 9), (3, 8, 2), (1, 1, 1)])
@pytest.mark.parametrize("classes", [1, 2, 3, 1000])
@pytest.mark.parametrize("norm", NORMS)
def test_any_shape_and_number_of_classes(norm: Norm, classes: int, shape: tuple[int, int, int]) -> None:
    """Every point is finite and in [0, 1], and a round costs what it should."""
    model = make_linear(shape, classes)
    x, y = make_images(model, 3, shape)
    for attack, forwards, backwards in ((FAB(steps=3), max(classes, 2), max(classes - 1, 1)), (FABT(steps=5), 2, 1)):
        oracle = Oracle(model)
        state: Any = attack.init(oracle, x, y, ThreatModel(norm, 0.3), ExampleRng.of(0, range(3), [0, 2, 8]))
        for _ in range(attack.rounds):
            before = oracle.cost
            state = attack.step(oracle, state)
            assert Cost(3 * forwards, 3 * backwards) == oracle.cost - before
            for z in (state.x_adv, state.x_i):
                assert z.shape == x.shape
                assert ((z >= 0) & (z <= 1)).all()
            assert state.logits.shape == (3, classes)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [FAB(steps=4), FABT(steps=4)], ids=["fab", "fab-t"])
def test_zero_gradient_leaves_the_image(attack: FAB | FABT, norm: Norm) -> None:
    """A classifier that ignores its input gives no direction: the points stay x, and nothing is NaN."""
    model = make_linear(classes=3)
    model.weight.zero_()
    model.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    x, y = make_images(model, 4)
    state: Any = attack.init(Oracle(model), x, y, ThreatModel(norm, 0.1), ExampleRng.of(0, range(4)))
    for _ in range(attack.rounds):
        state = attack.step(Oracle(model), state)
        assert torch.equal(x, state.x_adv)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", [FAB(steps=4), FABT(steps=4)], ids=["fab", "fab-t"])
def test_misclassified_images_count_at_once(attack: FAB | FABT, norm: Norm) -> None:
    """What is wrong already is shown in the first round as it is, and its neighbours are not disturbed."""
    model = make_linear(classes=4)
    x, y = make_images(model, 4)
    wrong = torch.tensor([True, False, True, False])
    labels = torch.where(wrong, (y + 1) % 4, y)
    threat = ThreatModel(norm, 0.1)
    state: Any = attack.init(Oracle(model), x, labels, threat, ExampleRng.of(0, range(4)))
    first = attack.step(Oracle(model), state)
    assert torch.equal(x[wrong], first.x_adv[wrong])
    torch.testing.assert_close(model(first.x_adv), first.logits)
    assert ((first.x_adv != x).flatten(1).any(1) == ~wrong).all()
    state = first
    for _ in range(attack.rounds - 1):
        state = attack.step(Oracle(model), state)
        assert state.x_adv.isfinite().all()
    found = attack_one(attack, model, x, labels, threat, 0)
    assert (True, 0, 0.0) == (found.broken, found.round, found.distance)


def test_rows_may_stand_at_different_iterations() -> None:
    """A row that enters later goes the way that it would have gone alone."""
    model = make_convnet(classes=4)
    x, y = make_images(model, 4)
    threat, attack, oracle = ThreatModel("l2", 0.3), FABT(steps=6), Oracle(model)
    rng = ExampleRng.of(0, range(4))
    state: Any = attack.init(oracle, x, y, threat, rng)
    for _ in range(3):
        state = attack.step(oracle, state)
    late: Any = attack.init(oracle, x, y, threat, rng)
    mixed = FABState(
        x=torch.cat([x, x]), y=torch.cat([y, y]), threat=threat, rng=rng.join(rng), i=torch.cat([state.i, late.i]),
        x_adv=torch.cat([state.x_adv, x]), logits=torch.cat([state.logits, state.logits]),
        x_i=torch.cat([state.x_i, late.x_i]), target=torch.cat([state.target, late.target]),
    )  # fmt: skip
    for _ in range(3):
        state, mixed, late = (attack.step(oracle, s) for s in (state, mixed, late))
    torch.testing.assert_close(torch.cat([state.x_adv, late.x_adv]), mixed.x_adv, atol=1e-5, rtol=0)
    assert [6] * 4 + [3] * 4 == mixed.i.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "must be >= 1"),
        ({"restarts": 0}, "must be >= 1"),
        ({"alpha_max": 1.5}, "shares up to 1"),
        ({"beta": 0.0}, "shares up to 1"),
        ({"eta": 0.5}, "at least 1"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], says: str) -> None:
    """Each message names the parameter and its range."""
    with pytest.raises(SpecError, match=says):
        FABT(**options)
