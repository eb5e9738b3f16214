"""From the command to a server that runs: classifier, shape, monitor, uvicorn."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import torch

from robustgen.classifier import Classifier, check_classifier
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.prepare import default_data
from robustgen.request import is_address
from robustgen.service.app import ServeSettings, create_app, need_fastapi
from robustgen.service.monitors import Monitor, make_monitor, read_monitor
from robustgen.service.traffic import Traffic, calibrate

__all__ = ["ready_monitor", "start"]


def start(
    name: str, *, answers: str, rate: float | None, burst: int, monitor: str | None, alarm: str, false_alarms: float,
    data: str | None, host: str, port: int, weights: Path | None, data_dir: Path | None, device: str,
) -> None:  # fmt: skip
    """Serve until interrupted.

    Raises:
        SpecError, ArtifactError: the classifier cannot be served as asked, or the port is taken.
    """
    need_fastapi()
    settings = ServeSettings(answers=answers, rate=rate, burst=burst, alarm=alarm)
    if is_address(name):
        raise SpecError(f"{name} is a server already; name a classifier (`robustgen list classifiers`).")
    if monitor is not None and not monitor.endswith(".json"):
        make_monitor(monitor)  # an unknown name, before anything is loaded
    where = pick_device(device)
    dataset = load_data(default_data(name) if data is None else data, data_dir=data_dir)
    classifier = load_classifier(name, weights=weights, shape=dataset.shape).to(where)
    with torch.random.fork_rng(devices=[]):
        check_classifier(classifier, dataset.batch([0])[0].to(where))
    watch = None if monitor is None else ready_monitor(monitor, dataset, false_alarms)
    _run(classifier, dataset, settings, watch, host, port)


def ready_monitor(text: str, dataset: Dataset, false_alarms: float) -> Monitor:
    """A monitor from a file of serve-calibrate, or by name with its threshold set on this data now."""
    if text.endswith(".json"):
        return read_monitor(Path(text))
    chosen, table = calibrate(make_monitor(text), dataset, range(len(dataset)), rate=false_alarms, traffic=Traffic())
    held = table["held_out"]
    print(f"monitor {text}: {held['alarms']} alarms in {held['queries']} honest queries held out", file=sys.stderr)
    return chosen


def _run(
    classifier: Classifier, dataset: Dataset, settings: ServeSettings, monitor: Monitor | None, host: str, port: int
) -> None:
    import uvicorn

    try:
        listening = socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"--port {port} on {host} cannot be had ({said}); name another one.") from None
    app = create_app(classifier, dataset.shape, settings, monitor)
    at = listening.getsockname()[1]
    print(f"serving {classifier.card.name} ({settings.answers}) at http://{host}:{at}; stop with Ctrl-C", flush=True)
    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=30, access_log=False)
    uvicorn.Server(config).run([listening])
