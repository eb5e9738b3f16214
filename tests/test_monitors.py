"""Monitors: distances and fingerprints by hand, thresholds on honest traffic, and what they catch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import robustgen
from robustgen.cli import _run
from robustgen.errors import ArtifactError, SpecError
from robustgen.service.monitors import Blacklight, Stateful, make_monitor, read_monitor
from robustgen.service.traffic import Traffic, calibrate, honest_traffic
from tests.serve_helpers import ask_app, served

G = torch.Generator().manual_seed(0)


def test_stateful_is_the_mean_distance_to_the_nearest_of_the_account() -> None:
    """Nothing is said before k queries; then minus the mean of the k least distances; accounts are apart."""
    x = torch.rand(9, 1, 4, 4, generator=G)
    monitor = Stateful(k=3, pool=1, history=5)
    said = [monitor.look("a", image) for image in x]
    assert [-math.inf] * 3 == said[:3]
    for k in range(3, 9):
        before = x[max(0, k - 5) : k].flatten(1).double()  # the last five are remembered
        distances = (before - x[k].flatten()).norm(dim=1).sort().values[:3]
        assert -float(distances.mean()) == pytest.approx(said[k], abs=1e-6)
    assert -math.inf == monitor.look("b", x[0])
    pooled = Stateful(k=1, pool=2)
    pooled.look("a", x[0])
    means = [torch.nn.functional.avg_pool2d(image, 2) for image in x[:2]]
    assert -float((means[0] - means[1]).norm()) == pytest.approx(pooled.look("a", x[1]), abs=1e-6)


def test_blacklight_counts_shared_windows() -> None:
    """Equal images share all, an image with one pixel changed all but the windows over it, whoever sends them."""
    x = torch.rand(1, 6, 6, generator=G)
    monitor = Blacklight(window=4, keep=33, levels=10, key=1)
    assert -math.inf == monitor.look("a", x)
    assert 33.0 == monitor.look("b", x)
    changed = x.clone()
    changed[0, 3, 0] = (changed[0, 3, 0] + 0.5) % 1
    assert 33.0 - 4 == monitor.fresh().look("a", changed) or monitor.look("c", changed) == 29.0
    assert 0.0 == monitor.look("d", torch.rand(1, 6, 6, generator=G))
    close = (x + 1e-7).clamp(0, 1)
    assert 33.0 == monitor.look("e", close), "below the quantisation nothing changes"


def test_fingerprints_belong_to_a_key_and_forget_the_oldest() -> None:
    """Another key, another fingerprint; a flat image has one window; the history is a ring."""
    x = torch.rand(4, 1, 6, 6, generator=G)
    a, b = (Blacklight(window=4, keep=10, key=key) for key in (1, 2))
    assert not np.array_equal(a.fingerprint(x[0]), b.fingerprint(x[0]))
    assert 1 == int((a.fingerprint(torch.zeros(1, 6, 6)) != 0).sum())
    ring = Blacklight(window=4, keep=10, levels=1, history=2, key=1)
    for image in x[:3]:
        ring.look("a", image)
    assert ring.look("a", x[1]) == 10.0
    assert ring.look("a", x[0]) < 10.0
    with pytest.raises(SpecError, match="no window of 20"):
        Blacklight().look("a", torch.zeros(1, 2, 2))


@pytest.mark.parametrize("kind", ["stateful", "blacklight"])
def test_threshold_from_honest_traffic(kind: str) -> None:
    """At most the asked share of its own traffic alarms; near that on other images; an attack's queries do alarm."""
    dataset = robustgen.load_data("fmnist-test-1k")
    settings = {"k": 10} if kind == "stateful" else {"key": 5}
    traffic = Traffic(accounts=4, queries=60)
    monitor, table = calibrate(
        make_monitor(kind, **settings), dataset, range(200), rate=0.05, traffic=traffic, seed=1
    )  # fmt: skip
    again = monitor.fresh()
    alarms = sum(again.see(account, x) for account, x in honest_traffic(dataset, range(0, 200, 2), traffic, 2))
    assert alarms <= 0.05 * 240
    held = table["held_out"]
    assert (240, 4) == (held["queries"], held["accounts"])
    assert held["rate"]["value"] < 0.2
    image = dataset.batch([300])[0][0]
    noise = 0.05 * torch.rand(40, *image.shape, generator=G).sub(0.5).sign()
    square = [(image + noise[k] * (torch.arange(28) // 4 == k % 7)).clamp(0, 1) for k in range(40)]
    assert any(again.see("attacker", x) for x in square)


def test_calibration_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes what `read_monitor` gives back, and says the measured rate; other files are refused."""
    path = tmp_path / "m.json"
    command = ["serve-calibrate", "stateful", "--false-alarms", "0.01", "--accounts", "2", "--queries", "60", "--out"]
    assert _run([*command, str(path)]) == 0
    assert "queries alarmed" in capsys.readouterr().out
    table = json.loads(path.read_text())
    monitor = read_monitor(path)
    assert isinstance(monitor, Stateful)
    assert (table["monitor"]["threshold"], 50) == (monitor.threshold, monitor.k)
    (tmp_path / "bad.json").write_text("{}")
    for name, says in (("bad.json", "holds no monitor"), ("none.json", "cannot be read")):
        with pytest.raises(ArtifactError, match=says):
            read_monitor(tmp_path / name)
    for text, says in (("stateful", "a number above 0 and below 1"),):
        with pytest.raises(SpecError, match=says):
            calibrate(make_monitor(text), robustgen.load_data("fmnist-test-1k"), range(9), rate=0.0, traffic=Traffic())


def test_bad_parameters() -> None:
    """One sentence each."""
    for kind, settings, says in (
        ("stateful", {"k": 0}, "stateful: k must be"), ("stateful", {"k": 600}, "history must hold"),
        ("blacklight", {"window": 0}, "blacklight: window"), ("blacklight", {"windows": 2}, "did you mean 'window'"),
        ("black", {}, "did you mean 'blacklight'"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=says):
            make_monitor(kind, **settings)
    with pytest.raises(SpecError, match="traffic: noise must be"):
        Traffic(noise=-1.0)


def test_an_alarm_closes_the_account_or_is_counted() -> None:
    """The query that raised it is refused, and all later ones of the account; others go on; counted, nobody is."""
    image = {"json": {"image": torch.rand(1, 8, 8, generator=G).tolist()}}
    calls = [{**image, "headers": {"x-account": name}} for name in "aaab"]
    health = {"method": "GET", "url": "/health"}
    for alarm, expected in (("close", [200, 200, 403, 200]), ("count", [200, 200, 200, 200])):
        app = served(Stateful(k=2, threshold=-0.001), alarm=alarm)
        *answers, last = ask_app(app, *calls, health)
        assert expected == [a.status_code for a in answers]
        assert (1, int(alarm == "close")) == (last.json()["alarms"], last.json()["closed"])
    app = served(Stateful(k=2, threshold=-0.001))
    answers = ask_app(app, *calls[:3], calls[0])
    assert "looks like an attack" in answers[3].json()["error"] or "look like an attack" in answers[3].json()["error"]
