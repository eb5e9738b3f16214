"""`robustgen forge`: an image that a classifier is sure to be some class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []


@app.command("forge")
def forge_command(
    target: Annotated[str, typer.Argument(metavar="CLASS", help="Class to be forged, by number or name.")],
    start: Annotated[
        str, typer.Option("--from", help="noise, an image file, or the number of an example of the classifier's data.")
    ] = "noise",
    closeness: Annotated[float, typer.Option(help="Weight of the squared L2 distance to the start.")] = 0.1,
    classifier: Annotated[str, typer.Option(help="As in `robustgen eval`.")] = "fmnist-standard",
    sure: Annotated[float, typer.Option(help="Probability of the class at which it ends.")] = 0.9,
    steps: Annotated[int, typer.Option(help="At most so many.")] = 500,
    step: Annotated[float, typer.Option(help="Length of each in L2, in pixels of [0, 1].")] = 0.05,
    purify: Annotated[
        str | None, typer.Option(help="Ask whether it survives this purifier: diffpure:t=0.1,steps=5.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Passes through a random purifier.")] = 21,
    smooth: Annotated[
        float | None, typer.Option(help="Ask PREDICT of the classifier smoothed with this sigma.")
    ] = None,
    samples: Annotated[int, typer.Option(help="Votes of PREDICT.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the noise to begin with, and of the defences.")] = 0,
    out: Annotated[Path, typer.Option(help="Picture (PNG): start, result, amplified difference.")] = Path("forged.png"),
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Make an image that the classifier is sure to be CLASS; exit code 1 when it does not become sure.

    Examples -

      robustgen forge Dress

      robustgen forge 3 --from shoe.png --closeness 0.5 --out dress.png

      robustgen forge Dress --from 0 --purify diffpure:t=0.1,steps=5 --smooth 0.25
    """
    from robustgen.environment import tune_process
    from robustgen.forge import ForgeRequest, forge
    from robustgen.forge_report import check_picture, forge_lines, save_picture

    request = ForgeRequest(
        target=target, start=start, closeness=closeness, classifier=classifier, sure=sure, steps=steps, step=step,
        purify=purify, draws=draws, smooth=smooth, samples=samples, seed=seed, weights=weights, data_dir=data_dir,
    )  # fmt: skip
    check_picture(out)
    tune_process()
    found = with_progress(lambda progress: forge(request, device=device, progress=progress), silent=json_)
    factor = save_picture(found, out)
    if json_:
        settings = {"classifier": classifier, "from": start, "closeness": closeness, "seed": seed}
        print(json.dumps({**settings, **found.to_json(), "amplified": factor, "picture": str(out)}))
    else:
        print("\n".join(forge_lines(request, found)))
        print(f"picture: {out} (start, result, difference x {factor:g})")
    if not found.sure:
        raise typer.Exit(1)
