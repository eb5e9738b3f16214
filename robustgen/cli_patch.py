"""`robustgen patch`: one patch for all images, or for all objects; train, vanish, apply, eval, export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []

patch_app = typer.Typer(
    help="Universal adversarial patches: train one against a classifier or (vanish) against a detector, paste it, "
    "measure it on unseen images, print it.\n\n"
    "For patches made for each image by itself type robustgen eval --threat patch:6x6.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(patch_app, name="patch")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a trained patch.")]


@patch_app.command("train")
def train_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-standard",
    size: Annotated[str, typer.Option(help="Side in pixels of the image, or HxW.")] = "8",
    target: Annotated[
        str | None, typer.Option(help="Class to reach, by number or name (default: any wrong one).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for patch, card and picture.")] = Path("patch"),
    shape: Annotated[
        str, typer.Option(help="square, circle, or an image whose bright pixels are the patch.")
    ] = "square",
    location: Annotated[
        str, typer.Option(help="random, fixed (the middle), fixed:ROW,COLUMN (upper left pixel) or optimised.")
    ] = "random",
    transforms: Annotated[
        str,
        typer.Option(
            help="none, default, or rotation=20,scale=0.8:1.2,perspective=0.1,brightness=0.1,contrast=0.1,"
            "blur=0.5,noise=0.05,jpeg=60; what is not named stays off."
        ),
    ] = "default",
    tv: Annotated[float, typer.Option(help="Weight of total variation.")] = 0.0,
    nps: Annotated[float, typer.Option(help="Weight of non-printability.")] = 0.0,
    colours: Annotated[
        Path | None, typer.Option(help="Printable colours, a line each: 230 20 20 (default: a computed set of 30).")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adam or sign.")] = "adam",
    lr: Annotated[float, typer.Option(help="First step length, in pixels of [0, 1].")] = 0.05,
    schedule: Annotated[str, typer.Option(help="cosine (down to 0) or constant.")] = "cosine",
    loss: Annotated[str, typer.Option(help="ce, margin, dlr or pm.")] = "ce",
    steps: Annotated[int, typer.Option(help="How many.")] = 500,
    batch_size: Annotated[int, typer.Option(help="Images a step; changes the result.")] = 64,
    images: Annotated[int | None, typer.Option(help="Images to train on (default: half of data in one part).")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set by name, folder:PATH or npz:PATH (default: the classifier's own).")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="auto trains in the fastest form of the network, float32 in the plain one.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Train a patch; interrupt it whenever you like, the same command goes on.

    Example -

      robustgen patch train fmnist-standard --size 8 --target 8 --out bag-patch
    """
    from robustgen.environment import tune_process
    from robustgen.patch.design import PatchRequest
    from robustgen.patch.train import train_patch

    tune_process()
    request = PatchRequest(
        classifier=classifier, size=size, shape=shape, target=target, location=location, transforms=transforms, tv=tv,
        nps=nps, colours=colours, optimizer=optimizer, lr=lr, schedule=schedule, loss=loss, steps=steps,
        batch_size=batch_size, images=images, precision=precision, data=data, seed=seed, weights=weights,
        data_dir=data_dir,
    )  # fmt: skip
    trained = with_progress(lambda progress: train_patch(request, out=out, device=device, progress=progress))
    if json_:
        print(json.dumps(trained.card))
        return
    print(f"patch of {trained.spec.size} pixels, trained on {trained.card['trained_on']} images: {out}")
    print(f"measure it on others: robustgen patch eval {out}")


@patch_app.command("vanish")
def vanish_command(
    detector: Annotated[
        str,
        typer.Argument(
            help="Name, card file, torchvision-detection:NAME or python:FILE.py:FUNCTION (`list detectors`)."
        ),
    ] = "fmnist-detector",
    share: Annotated[float, typer.Option(help="Edge of the patch over that of the box it lies on.")] = 0.35,
    label: Annotated[
        str | None, typer.Option(help="Class whose objects vanish, by number or name (default: all).")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for patch, card and picture.")] = Path("vanishing-patch"),
    size: Annotated[str, typer.Option(help="Side in pixels of the patch itself, or HxW.")] = "12",
    shape: Annotated[
        str, typer.Option(help="square, circle, or an image whose bright pixels are the patch.")
    ] = "square",
    transforms: Annotated[str, typer.Option(help="As in patch train; drawn for each object.")] = "default",
    tv: Annotated[float, typer.Option(help="Weight of total variation.")] = 0.05,
    nps: Annotated[float, typer.Option(help="Weight of non-printability.")] = 0.01,
    colours: Annotated[
        Path | None, typer.Option(help="Printable colours, a line each: 230 20 20 (default: a computed set of 30).")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adam or sign.")] = "adam",
    lr: Annotated[float, typer.Option(help="First step length, in pixels of [0, 1].")] = 0.05,
    schedule: Annotated[str, typer.Option(help="cosine (down to 0) or constant.")] = "cosine",
    steps: Annotated[int, typer.Option(help="How many.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Scenes a step; changes the result.")] = 16,
    scenes: Annotated[
        str,
        typer.Option(
            help="Data whose pictures scenes are composed of (fmnist-test-1k, fashion-mnist), or coco:FOLDER."
        ),
    ] = "fmnist-test-1k",
    scenes_count: Annotated[
        int | None, typer.Option(help="Scenes to train on (default: 2000, or all of a folder).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Train a patch that hides from a detector the objects it lies on; interrupt it whenever you like.

    Examples -

      robustgen patch vanish

      robustgen patch vanish torchvision-detection:fcos_resnet50_fpn --weights fcos.pth --scenes coco:street
        --label person --size 64 --share 0.3
    """
    from robustgen.environment import tune_process
    from robustgen.patch.vanish import train_vanishing
    from robustgen.patch.vanish_design import VanishRequest

    tune_process()
    request = VanishRequest(
        detector=detector, share=share, label=label, size=size, shape=shape, transforms=transforms, tv=tv, nps=nps,
        colours=colours, optimizer=optimizer, lr=lr, schedule=schedule, steps=steps, batch_size=batch_size,
        scenes=scenes, count=scenes_count, seed=seed, weights=weights, data_dir=data_dir,
    )  # fmt: skip
    trained = with_progress(lambda progress: train_vanishing(request, out=out, device=device, progress=progress))
    if json_:
        print(json.dumps(trained.card))
        return
    print(f"patch of {trained.spec.size} pixels, trained on {trained.card['trained_on']} scenes: {out}")
    print(f"measure it on others: robustgen patch eval {out}")


@patch_app.command("apply")
def apply_command(
    folder: Folder,
    image: Annotated[Path, typer.Argument(help="An image file.")],
    out: Annotated[Path, typer.Option(help="The image with the patch (PNG).")] = Path("patched.png"),
    angle: Annotated[float, typer.Option(help="Degrees, counter-clockwise.")] = 0.0,
    scale: Annotated[float, typer.Option(help="Times its nominal side.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the place, where it is random.")] = 0,
    json_: Json = False,
) -> None:
    """Paste the patch into an image, as large in proportion as in training.

    Example -

      robustgen patch apply bag-patch shoe.png --out shoe-with-patch.png
    """
    from robustgen.patch.files import load_patch
    from robustgen.patch.output import apply_patch

    top, left, height, width = apply_patch(load_patch(folder), image, out, angle=angle, scale=scale, seed=seed)
    if json_:
        print(json.dumps({"out": str(out), "top": top, "left": left, "height": height, "width": width}))
        return
    print(f"{out}: {height} x {width} pixels at row {top}, column {left}")


@patch_app.command("eval")
def eval_command(
    folder: Folder,
    classifier: Annotated[
        str | None,
        typer.Argument(help="Classifier or detector, as in training (default: the one that it was trained on)."),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Success against angle and scale, as a heat map.")] = False,
    angles: Annotated[str, typer.Option(help="Of the grid, in degrees.")] = "-60,-40,-20,0,20,40,60",
    scales: Annotated[str, typer.Option(help="Of the grid.")] = "0.5,0.75,1,1.25,1.5",
    camera: Annotated[bool, typer.Option("--camera", help="Through a simulation of print and camera.")] = False,
    transforms: Annotated[
        str | None, typer.Option(help="As in patch train (default: those of the training, drawn anew).")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="The first N images, or N scenes, that training did not see.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Instead of the data, or the scenes, it was trained on.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure the patch, and patches of noise, on images or scenes that its training did not see.

    Examples -

      robustgen patch eval bag-patch

      robustgen patch eval bag-patch fmnist-at --camera --json

      robustgen patch eval bag-patch --grid
    """
    from robustgen.environment import tune_process
    from robustgen.errors import SpecError
    from robustgen.patch.files import read_patch
    from robustgen.patch.heat import grid_lines, measure_grid, parse_axis
    from robustgen.patch.measure import MeasureRequest, eval_lines, measure_patch

    tune_process()
    if read_patch(folder).card.get("kind") == "vanishing-patch":
        if grid or camera:
            raise SpecError("--grid and --camera are for patches against classifiers; drop them.")
        _eval_vanishing(folder, classifier, data, n, transforms, seed, weights, data_dir, device, as_json=json_)
        return
    if grid and transforms is not None:
        raise SpecError("--grid sets angle and scale itself and leaves the rest neutral; drop --transforms.")
    axes = parse_axis("angles", angles, positive=False), parse_axis("scales", scales, positive=True)
    request = MeasureRequest(
        folder=folder, classifier=classifier, data=data, n=n, transforms=transforms, camera=camera, seed=seed,
        weights=weights, data_dir=data_dir,
    )  # fmt: skip
    found = with_progress(
        lambda progress: (
            measure_grid(request, *axes, device=device, progress=progress)
            if grid
            else measure_patch(request, device=device, progress=progress)
        )
    )
    if json_:
        print(json.dumps(found))
        return
    print("\n".join(grid_lines(found, folder) if grid else eval_lines(found)))


def _eval_vanishing(
    folder: Path, detector: str | None, scenes: str | None, n: int | None, transforms: str | None, seed: int,
    weights: Path | None, data_dir: Path | None, device: str, *, as_json: bool,
) -> None:  # fmt: skip
    from robustgen.patch.vanish_measure import VanishMeasureRequest, measure_vanishing, vanish_lines

    request = VanishMeasureRequest(
        folder=folder, detector=detector, scenes=scenes, n=n, transforms=transforms, seed=seed, weights=weights,
        data_dir=data_dir,
    )  # fmt: skip
    found = with_progress(lambda progress: measure_vanishing(request, device=device, progress=progress))
    print(json.dumps(found) if as_json else "\n".join(vanish_lines(found, folder)))


@patch_app.command("export")
def export_command(
    folder: Folder,
    dpi: Annotated[int, typer.Option("--dpi", help="Pixels an inch.")] = 300,
    width_mm: Annotated[float, typer.Option("--width-mm", help="Width of the printed patch.")] = 50.0,
    out: Annotated[Path | None, typer.Option(help="Folder for both files (default: DIR).")] = None,
    json_: Json = False,
) -> None:
    """Write a sheet to be printed, with crop marks, as PDF and PNG; print it at 100 %, not fitted to the page.

    Example -

      robustgen patch export bag-patch --dpi 600 --width-mm 80
    """
    from robustgen.patch.files import read_patch
    from robustgen.patch.output import export_patch

    paths = export_patch(read_patch(folder), out or folder, dpi=dpi, width_mm=width_mm)
    print(json.dumps([str(path) for path in paths]) if json_ else "\n".join(map(str, paths)))
