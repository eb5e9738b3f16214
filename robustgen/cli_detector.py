"""`robustgen detector`: train and measure object detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []

detector_app = typer.Typer(
    help="Object detectors with torchvision's interface: train a tiny one, measure any.\n\n"
    "To make their objects vanish type robustgen patch vanish; to detect adversarial images, robustgen detect.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(detector_app, name="detector")


@detector_app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="Recipe by name (fmnist-detector) or TOML file.")] = "fmnist-detector",
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the result (default: trained/<name>).")
    ] = None,
    data_dir: DataDir = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop after this long, such as 10m; the same command goes on.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a detector by a recipe; interrupt it whenever you like, the same command goes on.

    Example -

      robustgen detector train fmnist-detector --data-dir ~/data
    """
    from robustgen.detectors.recipe import load_detector_recipe
    from robustgen.detectors.train import train_detector
    from robustgen.environment import tune_process
    from robustgen.fields import parse_duration

    tune_process()
    given = load_detector_recipe(recipe)
    seconds = None if budget is None else parse_duration(budget)
    result = with_progress(
        lambda progress: train_detector(
            given,
            out=out or Path("trained") / given.name,
            data_dir=data_dir,
            device=device,
            budget_seconds=seconds,
            progress=progress,
        )
    )
    print("\n".join(result.lines()))


@detector_app.command("eval")
def eval_command(
    detector: Annotated[str, typer.Argument(help="As in `robustgen patch vanish`.")] = "fmnist-detector",
    scenes: Annotated[
        str, typer.Option(help="Data whose pictures scenes are composed of, or coco:FOLDER.")
    ] = "fmnist-test-1k",
    n: Annotated[int | None, typer.Option("--n", "-n", help="How many (default: 500, or all of a folder).")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of a few scenes with boxes.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure average precision and recall.

    Example -

      robustgen detector eval fmnist-detector --picture scenes.png
    """
    from robustgen.detectors.measure import clean_lines, measure_detections
    from robustgen.environment import tune_process

    tune_process()
    found = measure_detections(
        detector, scenes, n=n, picture=picture, seed=seed, weights=weights, data_dir=data_dir, device=device
    )
    print(json.dumps(found) if json_ else "\n".join(clean_lines(found)))
