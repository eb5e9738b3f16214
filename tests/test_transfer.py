"""Attacks on surrogates: what they ask, what is judged, what the record says, and the matrix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from torch import nn

import robustgen
from robustgen.attacks.plans import Plan, parse_attack, parse_plan
from robustgen.attacks.transfer import check_surrogate_plan
from robustgen.classifiers import load_classifier
from robustgen.cli import _run
from robustgen.engine import run
from robustgen.errors import RecordError, SpecError
from robustgen.example import ExampleRecord
from robustgen.health import transfer_wins
from robustgen.journal import saved_spec
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel
from robustgen.record import RunRecord
from robustgen.report import record_lines, transfer_lines
from robustgen.runs import read_examples
from robustgen.spec import RunSpec
from robustgen.surrogates import Ensemble, check_apart, split_names
from robustgen.threat import ThreatModel
from robustgen.transfer import TransferMatrix
from robustgen.verify import verify_run
from robustgen.witnesses import read_witnesses
from tests.helpers import make_convnet, make_images, make_linear
from tests.query_helpers import Counting
from tests.test_plot import PNG
from tests.test_schemas import schema

CODE = """
import torch
from tests.helpers import make_linear

class Near(torch.nn.Module):
    def __init__(self, seed, share):
        super().__init__()
        self.a, self.b, self.share = make_linear((1, 8, 8)), make_linear((1, 8, 8), seed=seed), share
    def forward(self, x):
        return self.a(x) + self.share * self.b(x)

class Masked(Near):
    def forward(self, x):
        return super().forward((255 * x).round() / 255)

def target(): return Near(1, 0.0).eval()
def near(): return Near(2, 0.3).eval()
def far(): return Near(3, 3.0).eval()
def masked(): return Masked(4, 0.1).eval()
def three(): return make_linear((1, 8, 8), classes=3)
def noisy():
    class Noisy(Near):
        def forward(self, x): return super().forward(x) + torch.randn(len(x), 4)
    return Noisy(5, 0.1).eval()
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nets.py with linear classifiers that agree more or less, and data.npz, of which `target` gets all but two."""
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "nets.py").write_text(CODE)
    images = np.random.default_rng(0).integers(84, 172, (24, 8, 8, 1), dtype=np.uint8)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    labels = make_linear((1, 8, 8))(x).argmax(1).numpy()
    labels[:2] = (labels[:2] + 1) % 4
    np.savez(folder / "data.npz", image=images, label=labels)
    return folder


def net(task: Path, name: str) -> str:
    """How a classifier is typed."""
    return f"python:{task}/nets.py:{name}"


def evaluate(task: Path, out: Path, surrogates: str, **more: Any) -> RunRecord:
    """A run against `target` from surrogates."""
    names = ",".join(net(task, name) for name in surrogates.split(","))
    asked = {"attacks": "mi-fgsm,di-fgsm", "precision": "float32", **more}
    return robustgen.evaluate(
        net(task, "target"), f"npz:{task}/data.npz", "linf:0.02", surrogates=names, out=out, **asked
    )


def test_the_record_is_checked_like_any_other(task: Path, tmp_path: Path) -> None:
    """Names and hashes of the surrogates in spec, table and protocol; verify holds; the same call only reads it."""
    record = evaluate(task, tmp_path / "run", "near,far")
    spec = saved_spec(tmp_path / "run")
    assert spec is not None
    members = [load_classifier(net(task, name)) for name in ("near", "far")]
    assert spec.surrogates == tuple(f"{m.card.name} sha256:{m.weights_sha256}" for m in members)
    assert spec.protocol.endswith("; on the mean of the logits of nets.near, nets.far, judged where each attack ends")
    jsonschema.validate(spec.to_json(), schema("spec"))
    assert "nets.near, nets.far" in "\n".join(record_lines(record))
    found = verify_run(tmp_path / "run", classifier=net(task, "target"))
    assert found.holds, found.wrong
    assert 0 < sum(a.broken for a in record.attacks) < 22
    stored = (tmp_path / "run" / "record.json").read_bytes()
    evaluate(task, tmp_path / "run", "near,far")
    assert stored == (tmp_path / "run" / "record.json").read_bytes()
    with pytest.raises(RecordError, match="surrogates"):
        evaluate(task, tmp_path / "run", "near")
    assert record.queries is None


def test_the_witness_is_where_the_attack_on_the_mean_ends(task: Path, tmp_path: Path) -> None:
    """On two linear surrogates each witness of MI-FGSM is the point that the iteration on their mean reaches."""
    record = evaluate(task, tmp_path / "run", "near,far", attacks="mi-fgsm:steps=3")
    dataset = robustgen.load_data(f"npz:{task}/data.npz")
    mean = [load_classifier(net(task, name)) for name in ("near", "far")]
    threat, found = ThreatModel("linf", 0.02), dict(read_witnesses(tmp_path / "run"))
    target = load_classifier(net(task, "target"))
    for e in read_examples(tmp_path / "run"):
        x, y = dataset.batch([e.id])
        here, g = x, torch.zeros_like(x)
        for _ in range(3):
            leaf = here.clone().requires_grad_()
            logits = (mean[0](leaf) + mean[1](leaf)) / 2
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), leaf)
            g = g + grad / grad.abs().mean()
            here = threat.project(x, here + 0.02 / 3 * g.sign())
        wrong = int(target(here).argmax(1)) != int(y) and e.clean_prediction == e.label
        assert wrong == (e.id in found)
        if wrong:
            torch.testing.assert_close(found[e.id][None], here, atol=1e-6, rtol=0)
    assert 0 < len(found) == sum(a.broken for a in record.attacks)


def test_the_target_is_never_asked_by_the_attacks() -> None:
    """Beside one look at the end, the target sees nothing; that look needs no word of the surrogate."""
    surrogate, target = make_convnet(seed=1), Counting(make_convnet(seed=2))
    x, _ = make_images(target.net, 10)
    y = torch.arange(10) % 2
    threat, outcomes = ThreatModel("linf", 0.3), []
    target.images = 0
    robust = lambda z: torch.nn.functional.one_hot(y[:1].expand(len(z)), 4).float() + 0 * surrogate(z)  # noqa: E731
    fooled_by_nothing = nn.Module()
    fooled_by_nothing.forward = robust  # type: ignore[method-assign]
    for unasked, seen in ((True, 10), (False, int((y != y[0]).sum()))):
        target.images = 0
        outcomes.clear()
        run(
            parse_attack("mi-fgsm:steps=2"), Oracle(fooled_by_nothing), Judge(target, threat),
            lambda ids: (x[list(ids)], y[list(ids)]), range(10), threat, seed=0, batch_size=4,
            finish=outcomes.append, only_last=True, unasked=unasked,
        )  # fmt: skip
        assert seen == target.images, "judged once each, or only where the surrogate errs"
    assert 0 < int((y != y[0]).sum()) < 10


def test_ensemble_is_the_mean_in_any_form() -> None:
    """Mean logits, as they are and folded in channels_last."""
    nets = [make_convnet(seed=seed) for seed in (1, 2)]
    x, _ = make_images(nets[0], 5)
    expected = (nets[0](x) + nets[1](x)) / 2
    torch.testing.assert_close(Ensemble(nets)(x), expected)
    for form in (SearchForm(), SearchForm(channels_last=True, folded=True)):
        torch.testing.assert_close(SearchModel(Ensemble(nets), form)(x), expected, atol=1e-5, rtol=1e-5)


def test_a_goal_is_judged_on_the_target(task: Path, tmp_path: Path) -> None:
    """Towards a class: every witness is classified as that class by the target."""
    record = evaluate(task, tmp_path / "run", "near", goal="next", attacks="mi-fgsm")
    assert record.targets is not None
    assert record.targets.success is not None
    target = load_classifier(net(task, "target"))
    rows = {e.id: e for e in read_examples(tmp_path / "run")}
    found = dict(read_witnesses(tmp_path / "run"))
    assert found
    assert all(int(target(image[None]).argmax(1)) == rows[id_].target for id_, image in found.items())
    assert verify_run(tmp_path / "run", classifier=net(task, "target")).holds


REFUSED = [
    ({"surrogates": "target"}, "nets.target has the weights of nets.target"),
    ({"surrogates": "near,near"}, "twice"),
    ({"surrogates": "three"}, "nets.three tells 3 classes apart, nets.target 4"),
    ({"surrogates": "noisy"}, "nets.noisy gives other answers each time"),
    ({"surrogates": "near", "plan": "rapid", "attacks": None}, "never hear of the target, and plan rapid"),
    ({"surrogates": "near", "queries": 10}, "--queries counts what the target is asked"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "says"), REFUSED)
def test_bad_requests(asked: dict[str, Any], says: str, task: Path, tmp_path: Path) -> None:
    """One sentence each, and nothing is written."""
    with pytest.raises(SpecError, match=says):
        evaluate(task, tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()


def test_plan_transfer_needs_surrogates() -> None:
    """By itself it says what to type; with them it is the plan of its name; names are a list."""
    plan, linf = parse_plan("transfer", None, ThreatModel("linf", 0.1)), ThreatModel("linf", 0.1)
    with pytest.raises(SpecError, match="add --surrogates NAME,NAME"):
        check_surrogate_plan(plan, linf, surrogates=False)
    assert check_surrogate_plan(plan, linf, surrogates=True) is plan
    assert check_surrogate_plan(Plan("x", 1, ()), linf, surrogates=False).name == "x"
    with pytest.raises(SpecError, match="--surrogates needs an eps"):
        check_surrogate_plan(plan, ThreatModel.unbounded("l2"), surrogates=True)
    with pytest.raises(SpecError, match="expected names separated by commas"):
        split_names(" , ")
    same = load_classifier(make_linear())
    from robustgen.defended import defend

    with pytest.raises(SpecError, match="has the weights of"):
        check_apart([same, defend(load_classifier(make_linear()), "median")])


def test_runs_without_surrogates_keep_their_identity() -> None:
    """The new field is not in their file."""
    fields = ("classifier", "weights_sha256", "data", "data_sha256", "ids", "threat", "plan", "protocol", "precision")
    spec = RunSpec(**dict.fromkeys(fields, "0"), seed=0)  # type: ignore[arg-type]
    assert "surrogates" not in spec.table()


def row(id_: int, *, robust: bool) -> ExampleRecord:
    """An example that is classified right."""
    return ExampleRecord(id=id_, label=0, clean_prediction=0, robust=robust, broken_by=None if robust else "pgd")


@pytest.mark.parametrize(("white", "moved", "expected"), [(0, 3, True), (0, 2, False), (10, 10, False), (5, 3, False)])
def test_when_transfer_wins(white: int, moved: int, expected: bool) -> None:
    """It broke more, and three or more images that the white box left: the first ones here, the last ones there."""
    mine = [row(k, robust=k >= white) for k in range(20)]
    theirs = [row(k, robust=k < 20 - moved) for k in range(20)]
    assert expected == transfer_wins(mine, theirs)


def test_matrix(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Cells from runs that verify, others at once, a masked classifier flagged, the heat map; again it only reads."""
    names = ",".join(net(task, name) for name in ("target", "near", "masked"))
    command = ["transfer", "matrix", names, "--attacks", "mi-fgsm:steps=4", "--threat", "linf:0.03",
               "--data", f"npz:{task}/data.npz", "--out", str(tmp_path / "m"), "--json"]  # fmt: skip
    assert _run(command) == 0
    said = json.loads(capsys.readouterr().out)
    assert (tmp_path / "m" / "transfer.png").read_bytes().startswith(PNG)
    stored = json.loads((tmp_path / "m" / "transfer.json").read_text())
    assert stored == {key: value for key, value in said.items() if key != "picture"}
    assert 3 + 6 + 3 == len(said["cells"])
    target = net(task, "target")
    for cell in said["cells"]:
        rows = read_examples(tmp_path / "m" / cell["run"])
        right = [e for e in rows if e.clean_prediction == e.label]
        assert (cell["attacked"], cell["success"]["value"]) == (
            len(right),
            sum(not e.robust for e in right) / len(right),
        )
        if cell["target"] == target:
            assert verify_run(tmp_path / "m" / cell["run"], classifier=target).holds
    masked = net(task, "masked")
    assert said["flags"][masked] == ["transfer-beats-white-box"]
    assert said["flags"][target] == []
    before = (tmp_path / "m" / "transfer.json").stat().st_mtime_ns, stored
    assert _run(command[:-1]) == 0
    told = capsys.readouterr().out
    assert "transfer-beats-white-box: attacks made on other classifiers" in told
    assert json.loads((tmp_path / "m" / "transfer.json").read_text()) == before[1]


def test_matrix_refuses(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One name, or the same weights twice."""
    assert _run(["transfer", "matrix", "fmnist-at", "--out", str(tmp_path / "m")]) == 2
    assert "needs two classifiers or more" in capsys.readouterr().err
    names = ",".join(net(task, name) for name in ("target", "target"))
    assert _run(["transfer", "matrix", names, "--out", str(tmp_path / "m")]) == 2
    assert "twice" in capsys.readouterr().err


def test_an_empty_cell_is_shown_as_such() -> None:
    """A matrix without cells has lines all the same."""
    empty = TransferMatrix(threat="linf:0.1", data="d", protocol="p", n=3, names=(), cells=(), flags={})
    assert transfer_lines(empty)[-2:] == ["flags: none", "p"]
