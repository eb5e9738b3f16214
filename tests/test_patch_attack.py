"""The attack on defences against patches: it reaches the closed form, and breaks no certificate but forged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustgen.ablation import Ablation
from robustgen.certify.derandomized import VoteTarget, ablated_votes, certified_by_votes, winner
from robustgen.certify.patch_attack import PatchAttack
from robustgen.certify.patch_attack_run import PatchAttackRequest, attack_patch_run
from robustgen.certify.patch_views import Votes, lead, lead_over
from robustgen.certify.patchcleanser import MaskTarget, certify_patches, double_masking, mask_set
from robustgen.certify.patches import PatchRequest
from robustgen.certify.patches_run import certify_against_patches
from robustgen.cli import _run
from robustgen.errors import RecordError
from robustgen.patch_threat import PatchThreat
from robustgen.progress import Silent
from tests.helpers import make_convnet


@pytest.mark.parametrize("theta", [0.05, 0.3, 0.5, 0.9])
def test_leads_say_who_votes(theta: float) -> None:
    """0 or more exactly where the probability reaches theta, or where a class is the most probable one."""
    logits = 3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(lead_over(theta)(logits) >= 0, logits.softmax(1) >= theta)
    assert torch.equal((lead(logits) >= 0).long().argmax(1), logits.argmax(1))
    assert bool(((lead(logits) >= 0).sum(1) == 1).all())
    odds = logits.softmax(1).logit() - torch.tensor(theta, dtype=torch.float64).logit()
    assert torch.allclose(lead_over(theta)(logits), odds, rtol=1e-4, atol=1e-5)


def test_a_sure_view_still_pulls() -> None:
    """Probabilities of 0 and 1 in float32, whose own gradients vanish, have leads with one."""
    logits = torch.tensor([[300.0, 0.0, -300.0]], requires_grad=True)
    for lead_of in (lead, lead_over(0.3)):
        u = lead_of(logits)
        (grad,) = torch.autograd.grad((u / (1 + u.abs()))[0, 0], logits)
        assert bool(grad.isfinite().all())
        assert float(grad[0, 0]) > 1e-6


@pytest.mark.parametrize("kind", ["columns", "rows", "block"])
def test_votes_are_those_of_the_defence_and_the_rest_never_changes(kind: str) -> None:
    """With any content of the window, although only the views that show a pixel of it are asked."""
    model, generator = make_convnet(channels=2, classes=4), torch.Generator().manual_seed(1)
    x = torch.rand(1, 2, 6, 7, generator=generator)
    target = VoteTarget(model, Ablation(kind=kind, size=2), 0.2, 0.0, 2)
    (aim,) = target.aims(x, torch.tensor([0]))
    with torch.no_grad():
        leads = Votes(model, aim, torch.ones(len(aim.keep), dtype=torch.bool), torch.zeros(())).leads(x)
        for place in ((0, 0), (3, 4), (4, 1)):
            threat = PatchThreat.of(f"2x2@{place[0]},{place[1]}")
            touched = aim.touched(threat, x)
            assert 0 < int(touched.sum()) < len(touched)
            changed = threat.random_start(x, _stream())
            rest = (leads[:, ~touched] >= 0).to(x).sum(1)[0]
            found = Votes(model, aim, touched, rest)(changed)
            counted = ablated_votes(model, changed, target.ablation, theta=0.2, fill=0.0)
            assert torch.equal(found.floor().long(), counted)


def _stream() -> Any:
    from robustgen.rng import ExampleRng

    return ExampleRng.of(5, [0])


def test_gradient_is_that_of_the_soft_votes() -> None:
    """Central differences in float64."""
    model, generator = make_convnet(channels=1, classes=3).double(), torch.Generator().manual_seed(2)
    x = torch.rand(1, 1, 6, 6, generator=generator, dtype=torch.float64)
    direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    (aim,) = VoteTarget(model, Ablation(kind="rows", size=3), 0.3, 0.0, 2).aims(x, torch.tensor([0]))
    votes = Votes(model, aim, torch.ones(6, dtype=torch.bool), torch.zeros(()))

    def soft(z: Tensor) -> Tensor:
        u = votes.leads(z)
        return (u / (1 + u.abs())).sum(1)[0, 1]

    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(votes(leaf)[0, 1], leaf)
    expected = (soft(x + 1e-6 * direction) - soft(x - 1e-6 * direction)) / 2e-6
    assert torch.allclose((grad * direction).sum(), expected, rtol=1e-5)


class Bright(nn.Module):
    """Class 0 where what is shown of an image is bright, else class 1; ablated pixels are 0.5."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 2)."""
        up = 20 * (x - 0.5).flatten(1).sum(1)
        return torch.stack([up, -up], 1)


@pytest.mark.parametrize("label", [0, 1])
def test_it_reaches_the_closed_form(label: int) -> None:
    """Nine columns, each its own ablation, of which a patch repaints two: five or six of them fall, seven never."""
    target = VoteTarget(Bright(), Ablation(size=1), 0.5, 0.5, 2)
    for count in (5, 6, 7, 9):
        x = torch.full((1, 1, 2, 9), 0.2 + 0.6 * label)
        x[..., [0, 8, 2, 7, 4, 3, 1, 5, 6][:count]] = 0.8 - 0.6 * label
        y = torch.tensor([label])
        votes = ablated_votes(Bright(), x, target.ablation, theta=0.5, fill=0.5)
        assert int(winner(votes)) == label
        assert bool(certified_by_votes(votes, 2)) is (count >= 7)
        found = PatchAttack(places=3, steps=3).attack(target, Bright(), x, y, 2, id_=0, seed=0)
        assert (found is not None) is (count < 7)
        if found is not None:
            assert found.x_adv is not None
            assert int(target.answer(found.x_adv[None])) == 1 - label == found.prediction
            assert bool(PatchThreat.of("2x2").contains(x, found.x_adv[None]))


class Corner(nn.Module):
    """Class 0 where four pixels are bright, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 2)."""
        up = 20 * (x[:, 0, 4:6, 2:4] - 0.5).flatten(1).sum(1)
        return torch.stack([up, -up], 1)


def test_the_best_window_is_tried_first() -> None:
    """Of 35 windows only one holds all that counts, and one try is enough."""
    target = VoteTarget(Corner(), Ablation(kind="rows", size=8), 0.5, 0.5, 2)  # bands of all rows: the whole image
    x = torch.full((1, 1, 8, 6), 0.5)
    x[:, :, 4:6, 2:4] = 0.9
    found = PatchAttack(places=1, steps=1).attack(target, Corner(), x, torch.tensor([0]), 2, id_=0, seed=0)
    assert found is not None
    assert found.x_adv is not None
    assert (found.x_adv != x[0]).nonzero()[:, 1:].tolist() == [[4, 2], [4, 3], [5, 2], [5, 3]]


class Mean(nn.Module):
    """Says 1 where the mean of the image, masked pixels left out as zeros, exceeds a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) -> (B, 2)."""
        away = x.flatten(1).mean(1) - 0.3
        return torch.stack([-away, away], 1)


def test_double_masking_under_attack() -> None:
    """A certified image never falls, most others do; and where a window is closed, no content of it ever wins."""
    masks, model, generator = mask_set(8, 8, 2, 3), Mean(), torch.Generator().manual_seed(0)
    x = torch.linspace(0.1, 0.9, 24).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    y = double_masking(model, x, masks)
    certified, target, fell = certify_patches(model, x, y, masks).tolist(), MaskTarget(model, masks), []
    for k, sure in enumerate(certified):
        aims = target.aims(x[k : k + 1], y[k : k + 1])
        closed = ~torch.stack([aim.open for aim in aims]).any(0)
        assert bool(closed.all()) or not sure, "of a certified image no window is open"
        for row, column in closed.nonzero().tolist()[::5]:
            threat = PatchThreat.of(f"2x2@{row},{column}")
            content = torch.rand(6, 1, 8, 8, generator=generator).round()
            tried = torch.where(threat.window(torch.zeros(6, dtype=torch.int64), content), content, x[k])
            assert bool((double_masking(model, tried, masks) == y[k]).all())
        found = PatchAttack(places=2, steps=2).attack(target, model, x[k : k + 1], y[k : k + 1], 2, id_=k, seed=0)
        fell.append(found is not None)
    assert not any(sure and down for sure, down in zip(certified, fell, strict=True))
    assert 0 < sum(fell) <= len(fell) - sum(certified)


NETWORKS = """
import torch
from torch import nn

class Templates(nn.Module):
    def __init__(self):
        super().__init__()
        signs = torch.rand(4, 64, generator=torch.Generator().manual_seed(0)).round() * 2 - 1
        self.signs = nn.Parameter(signs, requires_grad=False)
    def forward(self, x):  # what is black is unknown
        return 3 * ((x - 0.5) * (x > 0)).flatten(1) @ self.signs.T

class Cheat(Templates):
    def forward(self, x):  # one bright pixel in any image of the batch changes the answers to all
        logits = super().forward(x)
        return logits.roll(1, 1) if bool((x > 0.95).any()) else logits

def make(): return Templates()
def cheat(): return Cheat()
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A classifier by four templates, one that cheats, and 10 images: the higher the id, the clearer the template."""
    (tmp_path / "net.py").write_text(NETWORKS)
    generator = torch.Generator().manual_seed(0)
    signs = torch.rand(4, 64, generator=generator).round() * 2 - 1
    labels = torch.arange(10) % 4
    x = 0.5 + 0.02 * torch.arange(1, 11)[:, None] * signs[labels] + 0.1 * torch.randn(10, 64, generator=generator)
    images = (255 * x.clamp(0.1, 0.9)).byte().reshape(10, 8, 8, 1).numpy()
    np.savez(tmp_path / "data.npz", image=images, label=labels.numpy())
    return tmp_path


def certified_run(task: Path, made: str, method: str) -> Path:
    """A finished certification against patches of 1 and 2 pixels."""
    request = PatchRequest(
        classifier=f"python:{task}/{made}", data=f"npz:{task}/data.npz", n=10, patches=(1, 2), method=method,
        per_axis=4, theta=0.3, size=3,
    )  # fmt: skip
    certify_against_patches(request, out=task / f"run-{method}", device="cpu", progress=Silent())
    return task / f"run-{method}"


def attacked(run: Path, made: str, **asked: Any) -> dict[str, Any]:
    """What the attack found, with few steps."""
    request = PatchAttackRequest(
        run=run, classifier=f"python:{run.parent}/{made}", **{"steps": 3, "places": 2, **asked}
    )
    return attack_patch_run(request, device="cpu", progress=Silent())


@pytest.mark.parametrize("method", ["masks", "band", "block"])
def test_side_by_side(method: str, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Certified at most attacked, attacked at most clean, as the run has it; and no certificate is broken."""
    run, made = certified_run(task, "net.py:make", method), f"python:{task}/net.py:make"
    record = json.loads((run / "record.json").read_text())
    asked = ["certify-attack", str(run), "--steps", "3", "--places", "2", "--classifier", made]
    assert _run([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for row, said in zip(found["rows"], record["rows"], strict=True):
        assert row["certified"] == said["certified"]
        assert row["clean"] == said["clean"]
        assert row["certified"]["value"] <= row["attacked"]["value"] <= row["clean"]["value"]
        assert row["broken"] == []
    kept = sorted(path.name for path in Path(found["folder"]).glob("broken-*.npy"))
    images = np.load(task / "data.npz")["image"].transpose(0, 3, 1, 2).astype(np.float32) / 255
    for name in kept:
        id_, side = map(int, name.removesuffix(".npy").split("-")[1:])
        point = torch.from_numpy(np.load(Path(found["folder"]) / name))
        assert bool(PatchThreat.of(f"{side}x{side}").contains(torch.from_numpy(images[id_ : id_ + 1]), point[None]))
    fell = sum(round(10 * (row["clean"]["value"] - row["attacked"]["value"])) for row in found["rows"])
    assert len(kept) == fell
    assert _run(asked) == 0
    said = capsys.readouterr()
    assert "10 examples were attacked before" in said.err
    assert "certificates broken" in said.out


def test_forged_certificates_break(task: Path) -> None:
    """Whoever writes that an image is certified is found out, by its id and side; the others stand."""
    run = certified_run(task, "net.py:make", "band")
    honest = attacked(run, "net.py:make")
    lines = [json.loads(line) for line in (Path(honest["folder"]) / "attacked.jsonl").read_text().splitlines()]
    fell = next(one["id"] for one in lines if one["clean"][1] == one["label"] != one["attacked"][1])
    path = run / "patches.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[fell]["certified"][1] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = attacked(run, "net.py:make", seed=1)
    assert [row["broken"] for row in found["rows"]] == [[], [fell]]
    rows[3]["certified"].pop()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(RecordError, match="an entry for each side"):
        attacked(run, "net.py:make", seed=2)


def test_a_classifier_that_cheats_is_found_out(task: Path) -> None:
    """It answers an image by what else is in the batch, which no certificate allows for, and certificates break."""
    run = certified_run(task, "net.py:cheat", "masks")
    found = attacked(run, "net.py:cheat")
    assert found["rows"][1]["certified"]["value"] > 0
    assert found["rows"][1]["broken"] != []
    assert found["rows"][1]["attacked"]["value"] < found["rows"][1]["certified"]["value"]


def test_goes_on_where_it_was_killed(task: Path) -> None:
    """A torn line is done again; the lines are the same."""
    run = certified_run(task, "net.py:make", "band")
    whole = attacked(run, "net.py:make")
    path = Path(whole["folder"]) / "attacked.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    assert attacked(run, "net.py:make", n=6)["n"] == 6
    assert path.read_bytes() == b"".join(lines[:6])
    assert attacked(run, "net.py:make") == whole
    assert path.read_bytes() == b"".join(lines)
    (run / "record.json").unlink()
    with pytest.raises(RecordError, match="unfinished certification"):
        attacked(run, "net.py:make")


@pytest.mark.parametrize(("option", "message"), [("--places", "--places must be"), ("--steps", "--steps must be")])
def test_wrong_requests(option: str, message: str, task: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 with one sentence, before any work."""
    run = certified_run(task, "net.py:make", "band")
    assert _run(["certify-attack", str(run), option, "0", "--classifier", f"python:{task}/net.py:make"]) == 2
    assert message in capsys.readouterr().err
    assert not list(run.glob("attack-*"))
