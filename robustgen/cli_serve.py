"""`robustgen serve` and `serve-calibrate`: a classifier behind HTTP, and what watches its queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app

__all__: list[str] = []

FalseAlarms = Annotated[float, typer.Option(help="Share of honest queries on which the monitor may alarm.")]


@app.command("serve")
def serve_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-standard",
    answers: Annotated[str, typer.Option(help="labels, or scores: probabilities too.")] = "labels",
    rate: Annotated[float | None, typer.Option(help="Images a second that an account may send.")] = None,
    burst: Annotated[int, typer.Option(help="Images that an account may send at once.")] = 256,
    monitor: Annotated[
        str | None, typer.Option(help="Watch queries: stateful, blacklight, or a file of serve-calibrate.")
    ] = None,
    alarm: Annotated[str, typer.Option(help="What an alarm does: close the account, or count.")] = "close",
    false_alarms: FalseAlarms = 0.001,
    data: Annotated[
        str | None,
        typer.Option(help="Says the shape of images, and is the honest traffic (default: the classifier's)."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Serve a classifier: POST /predict takes JSON or PNG, GET /health says what is served.

    A client is its header X-Account, or its address. Stop it with Ctrl-C.

    Examples -

      robustgen serve fmnist-standard --answers scores --rate 100

      robustgen serve fmnist-standard --monitor blacklight --false-alarms 0.001 --port 8001
    """
    from robustgen.environment import tune_process
    from robustgen.service.start import start

    tune_process()
    start(
        classifier, answers=answers, rate=rate, burst=burst, monitor=monitor, alarm=alarm, false_alarms=false_alarms,
        data=data, host=host, port=port, weights=weights, data_dir=data_dir, device=device,
    )  # fmt: skip


@app.command("serve-calibrate")
def calibrate_command(
    monitor: Annotated[str, typer.Argument(help="stateful or blacklight.")],
    false_alarms: FalseAlarms = 0.001,
    data: Annotated[str, typer.Option(help="What honest accounts send.")] = "fmnist-test-1k",
    accounts: Annotated[int, typer.Option(help="Honest accounts, of each half.")] = 10,
    queries: Annotated[int, typer.Option(help="Of each account.")] = 150,
    seed: Annotated[int, typer.Option(help="Of the traffic.")] = 0,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("monitor.json"),
    data_dir: DataDir = None,
    json_: Json = False,
) -> None:
    """Set a monitor's threshold on honest traffic with near-duplicates, and measure it on other images.

    Example -

      robustgen serve-calibrate stateful --false-alarms 0.001 --out stateful.json
    """
    from robustgen.data import load_data
    from robustgen.durable import disk_errors, write_json
    from robustgen.environment import tune_process
    from robustgen.service.monitors import make_monitor
    from robustgen.service.traffic import Traffic, calibrate

    chosen, traffic = make_monitor(monitor), Traffic(accounts=accounts, queries=queries)
    tune_process()
    dataset = load_data(data, data_dir=data_dir)
    _, table = calibrate(chosen, dataset, range(len(dataset)), rate=false_alarms, traffic=traffic, seed=seed)
    with disk_errors(out.parent):
        write_json(out, {"schema": 1, **table})
    if json_:
        print(json.dumps({**table, "file": str(out)}))
        return
    held = table["held_out"]
    rate = held["rate"]
    threshold = table["monitor"]["threshold"]
    print(f"{monitor}: alarm from {threshold:.6g} on, set for {100 * false_alarms:g} % of honest queries")
    print(
        f"on other images: {held['alarms']} of {held['queries']} queries alarmed, {100 * rate['value']:.3f} % "
        f"[{100 * rate['low']:.3f}, {100 * rate['high']:.3f}]; {held['alarmed']} of {held['accounts']} accounts"
    )
    print(f"file: {out}")
