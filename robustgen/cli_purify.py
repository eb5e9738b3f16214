"""`robustgen purify`, `purify-curve` and `score`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []

_LEVELS = "0.02,0.05,0.1,0.2,0.3"
Levels = Annotated[str, typer.Option(help="Times t*, with commas.")]
PurifierText = Annotated[str, typer.Option("--purifier", help="A purifier with a setting t (`list purifiers`).")]


@app.command("purify")
def purify_command(
    image: Annotated[Path | None, typer.Argument(help="An image file (default: images of --data).")] = None,
    show: Annotated[bool, typer.Option("--show", help="Open the picture when it is made.")] = False,
    purifier: PurifierText = "diffpure:steps=20",
    levels: Levels = _LEVELS,
    data: Annotated[str, typer.Option(help="Data set, folder:PATH or npz:PATH.")] = "fmnist-test-1k",
    ids: Annotated[str, typer.Option(help="Which images of it: 0-7 or 3,14,15.")] = "0-9",
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    out: Annotated[Path, typer.Option(help="Picture (PNG): images, then noised and purified for each t.")] = Path(
        "purified.png"
    ),
    data_dir: DataDir = None,
) -> None:
    """Make a picture of images, diffused to several t* and purified again.

    Examples -

      robustgen purify --ids 0-7

      robustgen purify shoe.png --show --levels 0.1,0.2
    """
    from robustgen.environment import tune_process
    from robustgen.purify_files import parse_levels, purified_to_picture

    tune_process()
    purified_to_picture(
        purifier, parse_levels(levels), image=image, data=data, data_dir=data_dir, ids=ids, seed=seed, out=out
    )
    print(f"images, then noised and purified for t = {levels}: {out}")
    if show:
        typer.launch(str(out))


@app.command("purify-curve")
def purify_curve_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-standard",
    purifier: PurifierText = "diffpure:steps=5",
    levels: Levels = _LEVELS,
    attacks: Annotated[str, typer.Option(help="As in `robustgen eval`.")] = "apgd-ce:steps=20:loss=margin",
    eot: Annotated[int, typer.Option(help="Draws behind each gradient.")] = 5,
    n: Annotated[int, typer.Option("--n", "-n", help="The first N examples.")] = 100,
    threat: Annotated[str | None, typer.Option(help="Such as linf:8/255, l2:0.5 or l1:12.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set by name, folder:PATH or npz:PATH.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for runs, curve.json and curve.png.")] = Path("purify-curve"),
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure clean and robust accuracy against t*, and draw it; the same command goes on where it was stopped.

    Example -

      robustgen purify-curve fmnist-standard --purifier diffpure:steps=5 -n 100
    """
    from robustgen.environment import tune_process
    from robustgen.purify_files import curve, draw_curve, parse_levels

    tune_process()
    options: dict[str, Any] = {"threat": threat, "data": data, "data_dir": data_dir, "device": device}
    chosen = parse_levels(levels)
    held = with_progress(
        lambda progress: curve(
            classifier, purifier, chosen, attacks=attacks, eot=eot, n=n, out=out, options=options, progress=progress
        ),
        silent=json_,
    )
    if json_:
        print(json.dumps(held))
        return
    for row in held["rows"]:
        told = ", ".join(
            f"{key} {100 * row[key]['value']:.1f} %" for key in ("clean", "robust", "worst") if row[key] is not None
        )
        print(f"t = {row['t']:g}: {told}")
    if find_spec("matplotlib") is not None:
        draw_curve(held, out / "curve.png")
        print(out / "curve.png")


@app.command("detect")
def detect_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-standard",
    threat: Annotated[str, typer.Option(help="Such as linf:8/255, l2:0.5 or l1:12.")] = "linf:0.1",
    data: Annotated[str, typer.Option(help="Data set, folder:PATH or npz:PATH.")] = "fmnist-test-1k",
    n: Annotated[int, typer.Option("--n", "-n", help="Images that are attacked; others set the threshold.")] = 200,
    rate: Annotated[float, typer.Option(help="False positives that the threshold is set for.")] = 0.05,
    steps: Annotated[int, typer.Option(help="Of the attack that knows the detector.")] = 100,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure feature squeezing as a detector: false positives, and attacks that know of it and that do not.

    Example -

      robustgen detect fmnist-standard --threat linf:0.1 -n 200
    """
    from dataclasses import asdict

    from robustgen.detection import measure_detector
    from robustgen.environment import tune_process
    from robustgen.statistics import Estimate

    tune_process()
    found = measure_detector(
        classifier, threat, data=data, data_dir=data_dir, n=n, rate=rate, steps=steps, seed=seed, device=device
    )
    if json_:
        plain = {key: asdict(value) if isinstance(value, Estimate) else value for key, value in found.items()}
        print(json.dumps(plain))
        return
    told = {
        "false_positives": "clean images flagged",
        "clean": "clean images right and not flagged",
        "robust_blind": "robust against an attack that does not know the detector",
        "robust": "robust against one that does",
    }
    for key, text in told.items():
        print(f"{text:<56} {found[key]}")


@app.command("score")
def score_command(
    run: Annotated[Path, typer.Argument(help="Run folder of a random classifier.")],
    draws: Annotated[int, typer.Option(help="Fresh passes over each image.")] = 128,
    protocol: Annotated[
        str | None, typer.Option(help="Only this one: diffpure, lee-kim, diffbreak-wc or diffbreak-mv.")
    ] = None,
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Score the images of a finished run again with more draws, by every published protocol; no attack is run.

    Example -

      robustgen score runs/fmnist-test-1k-diffpure-0123abcd --draws 128
    """
    from dataclasses import asdict

    from robustgen.environment import tune_process
    from robustgen.errors import unknown_name
    from robustgen.report import stochastic_rows
    from robustgen.scoring import PROTOCOLS, score_run

    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    tune_process()
    score = with_progress(
        lambda progress: score_run(
            run, draws=draws, classifier=classifier, weights=weights, data_dir=data_dir, device=device,
            progress=progress,
        ),
        silent=json_,
    )  # fmt: skip
    if json_:
        print(json.dumps(asdict(score) if protocol is None else asdict(score.protocols[protocol])))
        return
    if protocol is not None:
        print(f"{score.protocols[protocol]}: {PROTOCOLS[protocol]}")
        return
    for name, text in stochastic_rows(score):
        print(f"{name.strip():<18} {text}")
    for name, meaning in PROTOCOLS.items():
        print(f"{name}: {meaning}")
