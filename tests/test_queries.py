"""A budget in queries: never exceeded, only what may be seen is shown, and what the record says of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import pytest
import torch
from torch import Tensor

import robustgen
from robustgen import engine
from robustgen.attacks.base import AnswersOnly, QueryModel, Sees, State, sees
from robustgen.attacks.decision import noise
from robustgen.attacks.losses import CE
from robustgen.attacks.plans import parse_attack, parse_plan
from robustgen.attacks.queries import counts_queries, limit, needs_float32
from robustgen.cli import _run
from robustgen.engine import run
from robustgen.errors import AttackError, SpecError
from robustgen.example import ExampleRecord
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.plot_queries import draw_queries, plot_queries
from robustgen.queries import QuerySummary, success_curve, summarise_queries
from robustgen.record import RunRecord
from robustgen.registry import ATTACKS
from robustgen.rng import ExampleRng
from robustgen.runs import read_examples
from robustgen.threat import ThreatModel
from robustgen.verify import verify_run
from tests.helpers import make_convnet, make_images, make_linear, write_linear_task
from tests.nearest_helpers import FarLinear
from tests.query_helpers import Counting, LabelsOnly, outcomes_of, rounds_of

SCORES = ("square", "noise", "simba", "simba-dct", "nes", "nes-blind", "spsa", "bandits")
LABELS = ("boundary", "hopskipjump", "surfree")
TASK_ATTACKS = "square,simba,hopskipjump"


def test_what_each_attack_sees() -> None:
    """The registry's answers: gradients unless an attack says less."""
    said = {name: sees(parse_attack(name)) for name in ATTACKS if name != "replay"}
    assert {*SCORES, "patch-rs"} == {name for name, seen in said.items() if seen == "scores"}
    assert set(LABELS) == {name for name, seen in said.items() if seen == "labels"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("name", [*SCORES, *LABELS])
def test_the_budget_is_never_exceeded(name: str, norm: str) -> None:
    """The images that reach the network, one example at a time, are those that the outcome says, N at most."""
    attack = parse_attack(name)
    assert isinstance(attack, AnswersOnly)
    if norm not in getattr(attack, "nearest_in", ("linf", "l2")):
        norm = "l2"
    limited = attack.limited(37)
    assert 37 == limited.rounds * limited.restarts
    net = make_linear((1, 6, 5), classes=3)
    x, y = make_images(net, 5, (1, 6, 5))
    counting, spent = Counting(net), []
    for eps in (1e-6, 0.2):
        threat = ThreatModel(norm, eps)  # type: ignore[arg-type]
        for k in range(5):
            before, found = counting.images, []
            run(
                limited, Oracle(counting), Judge(net, threat), lambda ids: (x[list(ids)], y[list(ids)]), [k], threat,
                seed=0, batch_size=1, finish=found.append,
            )  # fmt: skip
            sent = counting.images - before
            assert sent == found[0].forwards or name == "square"  # which does not send again what it knows
            assert sent <= found[0].forwards <= 37
            assert found[0].backwards == 0
            assert found[0].broken or found[0].forwards == 37
            spent.append(sent)
    assert min(spent) >= 1


@pytest.mark.parametrize("text", ["boundary:queries=60", "hopskipjump:queries=60:probes=8", "surfree:queries=60"])
def test_labels_are_enough(text: str) -> None:
    """A network that gives one-hot labels instead of logits: the same points, costs and verdicts, eps or not."""
    net = FarLinear((1, 6, 5), classes=3)
    x, y = net.images(4)
    attack = parse_attack(text)
    threat = ThreatModel.unbounded("l2")
    whole, bare = (rounds_of(attack, model, x, y, threat, 60) for model in (net, LabelsOnly(net)))
    assert all(torch.equal(a.x_adv, b.x_adv) for a, b in zip(whole, bare, strict=True))
    for limits in (threat, ThreatModel("l2", 0.8)):
        mine = outcomes_of(text, net, x, y, limits)
        theirs = outcomes_of(text, LabelsOnly(net), x, y, limits, judge=net)
        assert [(o.broken, o.distance, o.forwards) for o in mine] == [
            (o.broken, o.distance, o.forwards) for o in theirs
        ]
        assert any(o.broken for o in mine)


def test_the_oracle_shows_no_more_than_that() -> None:
    """Labels as one-hot, no gradient for either kind, all again afterwards; queries are counted all the same."""
    net = make_convnet(classes=4)
    x, y = make_images(net, 6)
    oracle = Oracle(net)
    with oracle.showing("labels"):
        shown = oracle.logits(x)
        assert torch.equal(shown.argmax(1), y)
        assert [1.0] * 6 == shown.sum(1).tolist()
        with pytest.raises(AttackError, match="says it sees labels asked for a gradient"):
            oracle.grad(x, y, CE())
    with oracle.showing("scores"), pytest.raises(AttackError, match="says it sees scores"):
        oracle.grad(x, y, CE())
    torch.testing.assert_close(net(x), oracle.logits(x))
    assert (12, 0) == (oracle.cost.forwards, oracle.cost.backwards)
    oracle.grad(x, y, CE())
    sick = Oracle(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)))
    torch.nn.init.constant_(sick.model[1].weight, torch.nan)  # type: ignore[index]
    with sick.showing("labels"):
        assert sick.logits(x).isnan().all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cheat:
    """Says that it sees labels, and asks for a gradient."""

    sees: ClassVar[Sees] = "labels"
    rounds: ClassVar[int] = 1
    restarts: ClassVar[int] = 1

    def limited(self, queries: int) -> Cheat:
        """Itself."""
        return self

    def init(self, oracle: QueryModel, x: Tensor, y: Tensor, threat: ThreatModel, rng: ExampleRng) -> State:
        """Nothing yet."""
        return State.start(x, y, threat, rng)

    def step(self, oracle: QueryModel, s: State) -> State:
        """What it should not."""
        return replace(s, logits=oracle.grad(s.x, s.y, CE()).logits, i=s.i + 1)


def test_an_attack_that_asks_for_more_is_stopped() -> None:
    """The engine tells the oracle what to show."""
    net = make_linear((1, 6, 5))
    x, y = make_images(net, 2, (1, 6, 5))
    threat = ThreatModel("linf", 0.1)
    with pytest.raises(AttackError, match="asked for a gradient"):
        run(
            Cheat(), Oracle(net), Judge(net, threat), lambda ids: (x[list(ids)], y[list(ids)]), [0, 1], threat, seed=0,
            batch_size=2, finish=print,
        )  # fmt: skip


def test_starts_differ_in_grain_and_contrast() -> None:
    """In [0, 1], an example's own; fine at first, later blocks, black and white in turn; on rectangles too."""
    x, rng = torch.zeros(3, 2, 9, 14), ExampleRng.of(0, [4, 5, 6])
    tries = [noise(x, rng, torch.full((3,), k)) for k in range(12)]
    assert all(0 <= float(z.min()) <= float(z.max()) <= 1 for z in tries)
    assert x[0].numel() * 0.9 < len(tries[0][0].unique())
    assert not torch.equal(tries[0][0], tries[0][1])
    assert all(set(z.unique().tolist()) <= {0.0, 1.0} for z in tries[1::2])
    assert any(len(z[0].unique()) < 20 for z in tries[2::2])
    alone = noise(x[1:2], rng.take(torch.tensor([1])), torch.tensor([7]))
    assert torch.equal(alone[0], tries[7][1])


def test_limited_plans() -> None:
    """Every attack gets the budget and all examples; what cannot be held to it is refused."""
    linf = ThreatModel("linf", 0.1)
    plan = limit(parse_plan("rapid", "square:restarts=3,nes,hopskipjump", linf), 500)
    assert plan.individual
    assert [500, 500, 500] == [a.rounds * a.restarts for a in plan.unconditional()]
    assert counts_queries(plan, linf)
    assert not counts_queries(plan, ThreatModel.unbounded("linf"))
    assert needs_float32(plan)
    assert not needs_float32(parse_plan("rapid", "square", linf))
    assert not counts_queries(parse_plan("rapid", "square,pgd", linf), linf)
    named = parse_plan("queries", None, ThreatModel.unbounded("l2"))
    assert ["hopskipjump", "boundary", "surfree"] == named.labels()
    with pytest.raises(SpecError, match="square needs 2 queries at least"):
        limit(parse_plan("rapid", "square", linf), 1)


def evaluate(out: Path, folder: Path, **options: Any) -> RunRecord:
    """The run that most tests below begin with."""
    asked: dict[str, Any] = {"attacks": TASK_ATTACKS, "queries": 40, "precision": "float32", **options}
    return robustgen.evaluate(
        f"python:{folder}/net.py:make", f"npz:{folder}/data.npz", "linf:0.02", out=out, **asked
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear classifier, 24 images of which two are misclassified, and a finished run."""
    folder = tmp_path_factory.mktemp("queries")
    write_linear_task(folder, 24)
    evaluate(folder / "run", folder)
    return folder


def test_the_record_follows_from_the_rows(folder: Path) -> None:
    """Success, median, mean and curve of each attack, over 22 attacked; the two misclassified took 0 queries."""
    record, rows = RunRecord.load(folder / "run"), read_examples(folder / "run")
    assert record.queries is not None
    assert 2 == record.queries.misclassified
    assert all(e.cost == {} for e in rows if e.broken_by == "clean")
    assert set(TASK_ATTACKS.split(",")) == set(record.queries.attacks)
    for name, row in record.queries.attacks.items():
        took = [e.cost[name][0] for e in rows if name in (e.broken_by_all or [])]
        assert all(e.cost[name][0] == 40 for e in rows if e.cost and name not in (e.broken_by_all or []))
        assert (22, len(took) / 22) == (row.attacked, row.success)
        assert row.most <= 40
        if took:
            assert row.median == sorted(took)[(len(took) + 1) // 2 - 1]
            assert row.mean == pytest.approx(np.mean(took))
        for point in row.curve:
            assert point.value == pytest.approx(sum(q <= point.queries for q in took) / 22)
            assert point.high - point.value == pytest.approx(min(math.sqrt(math.log(40) / 44), 1 - point.value))
            assert point.value - point.low == pytest.approx(min(math.sqrt(math.log(40) / 44), point.value))
    assert any(row.success for row in record.queries.attacks.values())
    assert record.backwards == 0


def test_json_obeys_its_schema(folder: Path) -> None:
    """With a budget, and without one for attacks that see answers only; null where gradients are asked."""
    schema = json.loads((Path(robustgen.__file__).parent / "schemas" / "record.schema.json").read_text())
    table = json.loads((folder / "run" / "record.json").read_text())
    jsonschema.validate(table, schema)
    assert {"attacked", "success", "median", "mean", "most", "curve"} == set(table["queries"]["attacks"]["square"])
    plain = evaluate(folder / "plain", folder, attacks="square:steps=9", queries=None)
    assert plain.queries is not None
    assert 10 >= plain.queries.attacks["square"].most
    white = evaluate(folder / "white", folder, attacks="square:steps=9,pgd:steps=2", queries=None)
    assert white.queries is None
    assert json.loads((folder / "white" / "record.json").read_text())["queries"] is None


def test_batch_size_changes_nothing(folder: Path) -> None:
    """The same rows from batches of three."""
    evaluate(folder / "small", folder, batch_size=3)
    for mine, theirs in zip(read_examples(folder / "run"), read_examples(folder / "small"), strict=True):
        assert (mine.cost, mine.broken_by_all) == (theirs.cost, theirs.broken_by_all)


def test_a_crash_changes_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies in its second attack and goes on leaves the same rows and the same record."""
    real, calls = engine.run, []

    def dies(*args: Any, finish: Any, **options: Any) -> None:
        def settle(outcome: engine.Outcome) -> None:
            calls.append(outcome.id)
            if len(calls) == 30:
                raise KeyboardInterrupt
            finish(outcome)

        real(*args, finish=settle, **options)

    monkeypatch.setattr(engine, "run", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path / "run", folder)
    monkeypatch.setattr(engine, "run", real)
    evaluate(tmp_path / "run", folder)
    for name in ("examples.jsonl", "record.json"):
        assert (folder / "run" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_verify_recomputes_it(folder: Path, tmp_path: Path) -> None:
    """An honest run holds; an edited figure is found."""
    run, name = Path(evaluate(tmp_path / "run", folder).run), f"python:{folder}/net.py:make"
    assert verify_run(run, classifier=name).holds
    table = json.loads((run / "record.json").read_text())
    table["queries"]["attacks"]["square"]["most"] -= 1
    (run / "record.json").write_text(json.dumps(table))
    assert any("queries was edited" in line for line in verify_run(run, classifier=name).wrong)


def example(id_: int, cost: int | None, *, broken: bool = False) -> ExampleRecord:
    """A row of an attack called a; None for a misclassified image."""
    by = "clean" if cost is None else "a" if broken else None
    return ExampleRecord(
        id=id_, label=0, clean_prediction=int(cost is None), robust=by is None, broken_by=by,
        cost={} if cost is None else {"a": [cost, 0]},
    )  # fmt: skip


def test_summary_by_hand() -> None:
    """Three of four attacked are broken, after 2, 5 and 9 queries; one took 10 in vain, one was misclassified."""
    rows = [example(0, 5, broken=True), example(1, 2, broken=True), example(2, 10), example(3, 9, broken=True)]
    found = summarise_queries([*rows, example(4, None)], ["a", "b"])
    assert 1 == found.misclassified
    a = found.attacks["a"]
    assert (4, 0.75, 5, 10) == (a.attacked, a.success, a.median, a.most)
    assert a.mean == pytest.approx(16 / 3)
    assert [(p.queries, p.value) for p in a.curve] == [(0, 0.0), (2, 0.25), (5, 0.5), (9, 0.75)]
    empty = QuerySummary(attacked=0, success=0.0, median=None, mean=None, most=0, curve=())
    assert found.attacks["b"] == empty
    assert asdict(found)["attacks"]["b"] == asdict(empty)
    assert [0.0] == [p.value for p in success_curve([math.inf, math.inf])]


def test_picture(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One curve an attack and run, up to the budget; plot draws it without attacking again."""
    record = RunRecord.load(folder / "run")
    lines = draw_queries([record]).axes[0].get_lines()
    assert 3 == len(lines)
    assert record.queries is not None
    for name, row in record.queries.attacks.items():
        (line,) = [one for one in lines if str(one.get_label()).startswith(f"{name}:")]
        at, value = (np.asarray(part, dtype=float) for part in line.get_data())
        assert (row.most, row.success) == (at[-1], pytest.approx(value[-1]))
    assert 6 == len(draw_queries([record, record]).axes[0].get_lines())
    run = str(folder / "run")
    assert 0 == _run(["plot", run, run, "--out", str(tmp_path)])
    assert str(tmp_path / "success-queries.png") in capsys.readouterr().out
    assert (tmp_path / "success-queries.png").read_bytes().startswith(b"\x89PNG")
    white = robustgen.evaluate(
        f"python:{folder}/net.py:make", f"npz:{folder}/data.npz", "linf:0.02", attacks="fgsm", out=tmp_path / "white"
    )
    with pytest.raises(SpecError, match="does not count queries"):
        plot_queries([folder / "run", Path(white.run)], out=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--queries 0", "--queries must be a whole number >= 1, got 0"),
        ("--queries 1 --attacks square", "square needs 2 queries at least"),
        ("--queries 9 --attacks square,pgd", "attack 'pgd' asks for more than answers"),
        ("--queries 9 --plan rapid", "plan rapid does more"),
        ("--queries 9 --eot 4", "counts single answers, and --eot 4 averages several"),
        ("--attacks boundary --threat linf:0.1", "'boundary' works in l2, not in linf:0.1; type --attacks hopskipjump"),
        ("--attacks hopskipjump --threat l1:5", "'hopskipjump' works in l2, linf, not in l1:5; type --attacks square"),
        ("--attacks surfree --threat linf --report distance", "'surfree' finds the nearest image in l2, not in linf"),
        ("--plan queries --threat l1 --report distance", "plan queries has no attack for l1"),
        ("--attacks simba --threat l2 --report distance", "'simba' needs an eps, and threat l2 has none"),
        ("--attacks hopskipjump:queries=0", "hopskipjump: queries must be a whole number >= 1"),
        ("--queries 9 --suite fmnist-linf", "--queries 9 contradicts suite fmnist-linf"),
    ],
)
def test_bad_requests(arguments: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, exit code 2, nothing written."""
    assert 2 == _run(["eval", "fmnist-at", *arguments.split(), "--out", str(tmp_path / "run")])
    told = capsys.readouterr().err
    assert says in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--queries alone takes the plan of that name; --json prints one object, a table otherwise; distances too."""
    command = [
        "eval",
        "fmnist-standard",
        "--threat",
        "l2:2",
        "--queries",
        "12",
        "-n",
        "3",
        "--out",
        str(tmp_path / "run"),
    ]
    assert 0 == _run([*command, "--json"])
    table = json.loads(capsys.readouterr().out)
    assert ("queries", {*SCORES, *LABELS} - {"noise", "nes-blind"}) == (table["plan"], set(table["queries"]["attacks"]))
    assert table["precision"].startswith("float32")
    assert 0 == _run(command)
    told = capsys.readouterr().out
    assert "misclassified already (0 queries" in told
    assert "  hopskipjump" in told
    free = ["eval", "fmnist-standard", "--threat", "l2", "--report", "distance", "--queries", "25", "-n", "2", "--json"]
    assert 0 == _run([*free, "--out", str(tmp_path / "free")])
    table = json.loads(capsys.readouterr().out)
    assert set(LABELS) == set(table["distances"])
    assert table["queries"] is None
    assert all(a["forwards"] == 25 * table["nearest"]["attacked"] for a in table["attacks"])
    assert 0 == _run(["verify", str(tmp_path / "free")])
