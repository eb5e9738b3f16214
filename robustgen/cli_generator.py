"""`robustgen generator`: train, sample, judge and look at generators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, app, with_progress
from robustgen.errors import SpecError

__all__: list[str] = []

generator_app = typer.Typer(
    name="generator",
    help="Diffusion models: train, sample, judge.\n\nTry it: robustgen generator sample fmnist-edm --grid grid.png",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(generator_app)

Name = Annotated[str, typer.Argument(help="Name, card file (.json), or diffusers:PATH.")]
Precision = Annotated[str, typer.Option(help="auto, float32 or bfloat16.")]
Seed = Annotated[int, typer.Option(help="Seed of every random draw.")]
SamplerText = Annotated[
    str, typer.Option(help="heun, euler, ddim, ancestral or dpm++, with parameters: heun:steps=18:churn=0.")
]
Guidance = Annotated[float, typer.Option(help="Weight of classifier-free guidance; 1 for none.")]


@generator_app.command("info")
def info_command(
    names: Annotated[
        list[str] | None, typer.Argument(help="Generators or recipes (default: all that come with robustgen).")
    ] = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json_: Json = False,
) -> None:
    """Show weights, MFLOPs and speed of generators; of a recipe, what its network would cost.

    Example -

      robustgen generator info fmnist-edm edm-cifar10
    """
    from robustgen.environment import tune_process
    from robustgen.generator.overview import overview

    tune_process()
    rows = overview(names or None, device, precision)
    if json_:
        print(json.dumps(rows))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title, side in (
        ("generator", "left"),
        ("images", "left"),
        ("classes", "right"),
        ("weights", "right"),
        ("MFLOPs", "right"),
        ("images/s", "right"),
        ("form", "left"),
    ):
        table.add_column(title, justify="right" if side == "right" else "left")
    for row in rows:
        speed = "-" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}"
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(
            row["name"], shape, str(row["classes"]), f"{row['weights']:,}", f"{row['mflops']:,.1f}", speed, row["form"]
        )
    Console().print(table)


@generator_app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="Recipe by name (fmnist-edm, fmnist-ddpm, edm-cifar10) or TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the result (default: trained/<name>).")
    ] = None,
    data_dir: DataDir = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop after this long, such as 2h; the same command goes on.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a generator by a recipe; interrupt it whenever you like, the same command goes on.

    With torchrun the batch is shared between processes.

    Examples -

      robustgen generator train fmnist-edm --data-dir ~/data --budget 2h

      torchrun --nproc-per-node 8 -m robustgen generator train edm-cifar10 --data-dir ~/data
    """
    from robustgen.environment import tune_process
    from robustgen.fields import parse_duration
    from robustgen.generator.recipe import load_generator_recipe
    from robustgen.generator.train import train_generator
    from robustgen.ranks import joined_ranks

    tune_process()
    folder = out or Path("trained") / load_generator_recipe(recipe).name
    seconds = None if budget is None else parse_duration(budget)
    with joined_ranks() as ranks:
        result = with_progress(
            lambda progress: train_generator(
                recipe,
                out=folder,
                data_dir=data_dir,
                device=device,
                budget_seconds=seconds,
                progress=progress,
                ranks=ranks,
            ),
            silent=not ranks.first,
        )
        if not ranks.first:
            return
    for line in result.lines():
        print(line)


@generator_app.command("sample")
def sample_command(
    name: Name,
    n: Annotated[int, typer.Option("--n", "-n", help="How many images.")] = 64,
    out: Annotated[Path | None, typer.Option(help="File ending in .npz (default: <name>-<n>.npz).")] = None,
    sampler: SamplerText = "heun:steps=18",
    seed: Seed = 0,
    guidance: Guidance = 1.0,
    class_: Annotated[int | None, typer.Option("--class", help="Only this class (default: all, in turn).")] = None,
    grid: Annotated[Path | None, typer.Option(help="Also a picture (PNG) of the first 100 images.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images drawn at once; changes rounding only.")] = 250,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Draw images into an .npz (image, label, provenance); interrupt it whenever you like, the same command goes on.

    Image i depends on (seed, i) alone. With torchrun the blocks of images are shared between processes.

    Examples -

      robustgen generator sample fmnist-edm --n 50000 --out fmnist-50k.npz

      robustgen generator sample diffusers:ddpm-folder --n 1000 --sampler ddim:steps=50

      robustgen generator sample fmnist-edm --n 100 --class 8 --guidance 2 --grid bags.png
    """
    from robustgen.environment import pick_device, tune_process
    from robustgen.generator.load import load_generator
    from robustgen.generator.sample import SampleSpec, sample_to_file
    from robustgen.generator.samplers import parse_sampler
    from robustgen.ranks import joined_ranks

    tune_process()
    spec = SampleSpec(n=n, seed=seed, guidance=guidance, label=class_)
    method = parse_sampler(sampler)
    if batch_size < 1:
        raise SpecError(f"--batch-size must be >= 1, got {batch_size}.")
    target = out or Path(f"{Path(name).stem}-{n}.npz")
    generator = load_generator(name, device=pick_device(device), precision=precision)
    with joined_ranks() as ranks:
        path = with_progress(
            lambda progress: sample_to_file(
                generator, method, spec, target, batch_size=batch_size, progress=progress, ranks=ranks
            ),
            silent=not ranks.first,
        )
        if not ranks.first:
            return
    print(f"{n:,} images: {path}")
    if grid is not None:
        from robustgen.generator.grid import grid_of_file

        grid_of_file(path, grid)
        print(f"picture: {grid}")


@generator_app.command("judge")
def judge_command(
    file: Annotated[Path, typer.Argument(help="Generated images (.npz), as `robustgen generator sample` writes them.")],
    against: Annotated[str, typer.Option(help="The data that they imitate, by name.")] = "fashion-mnist",
    features: Annotated[
        str | None, typer.Option(help="Classifier in whose features to compare (default: one for that data).")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help="Weights of the standard Inception network, for FID and KID as well.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="Images in every set (default: as many as there are).")
    ] = None,
    cas: Annotated[
        bool, typer.Option(help="Also train a classifier on these images and on real ones (minutes).")
    ] = False,
    pairs: Annotated[Path | None, typer.Option(help="Picture (PNG) of the pairs closest to training images.")] = None,
    without_duplicates: Annotated[
        Path | None, typer.Option(help="Also write the images without near duplicates and copies (.npz).")
    ] = None,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Judge generated images: distances with their floors, precision, recall, copies of training images, CAS.

    Examples -

      robustgen generator judge fmnist-50k.npz --against fashion-mnist --pairs pairs.png

      robustgen generator judge fmnist-50k.npz --cas --json
    """
    from robustgen.environment import tune_process
    from robustgen.generator.judge_files import JudgeRequest, judge_file

    tune_process()
    request = JudgeRequest(
        file=file,
        against=against,
        features=features,
        inception=inception,
        n=n,
        cas=cas,
        pairs=pairs,
        without_duplicates=without_duplicates,
        seed=seed,
        data_dir=data_dir,
        device=device,
    )
    judgement = with_progress(lambda progress: judge_file(request, progress))
    if json_:
        print(json.dumps(judgement.to_json()))
        return
    for line in judgement.lines():
        print(line)
    if without_duplicates is not None:
        print(f"without copies: {without_duplicates}")


@generator_app.command("inpaint")
def inpaint_command(
    name: Name,
    image: Annotated[
        str, typer.Option(help="Data set, folder:PATH or npz:PATH to take images from.")
    ] = "fmnist-test-1k",
    ids: Annotated[str, typer.Option(help="Which images: 0-7 or 3,14,15.")] = "0-7",
    box: Annotated[str, typer.Option(help="Region to draw anew: top:bottom,left:right in pixels.")] = "0:14,0:28",
    out: Annotated[Path, typer.Option(help="Picture (PNG): given, masked, filled in.")] = Path("inpainted.png"),
    sampler: SamplerText = "heun:steps=18",
    rounds: Annotated[int, typer.Option(help="How often each step is done, so that the regions agree.")] = 4,
    with_class: Annotated[bool, typer.Option(help="Tell the generator the class of each image.")] = True,
    seed: Seed = 0,
    data_dir: DataDir = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Fill in a masked region of images, and make a picture of it.

    Example -

      robustgen generator inpaint fmnist-edm --ids 0-9 --box 14:28,0:28
    """
    from robustgen.environment import pick_device, tune_process
    from robustgen.generator.edit_files import inpaint_to_picture
    from robustgen.generator.load import load_generator
    from robustgen.generator.samplers import parse_sampler

    tune_process()
    generator = load_generator(name, device=pick_device(device), precision=precision)
    inpaint_to_picture(
        generator.denoiser,
        parse_sampler(sampler),
        data=image,
        data_dir=data_dir,
        ids=ids,
        box=box,
        rounds=rounds,
        with_class=with_class,
        seed=seed,
        out=out,
    )
    print(f"given, masked, filled in, from top to bottom: {out}")


@generator_app.command("interpolate")
def interpolate_command(
    name: Name,
    first: Annotated[int, typer.Option("--from", help="Image id at one end.")] = 0,
    last: Annotated[int, typer.Option("--to", help="Image id at the other end.")] = 1,
    count: Annotated[int, typer.Option(help="Images, both ends included.")] = 10,
    class_: Annotated[int | None, typer.Option("--class", help="One class (default: a row of each).")] = None,
    out: Annotated[Path, typer.Option(help="Picture (PNG), one row a class.")] = Path("interpolated.png"),
    sampler: SamplerText = "heun:steps=18",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Walk from one image to another through the noise they come from, and make a picture of it.

    Example -

      robustgen generator interpolate fmnist-edm --from 0 --to 7
    """
    from robustgen.environment import pick_device, tune_process
    from robustgen.generator.edit_files import interpolate_to_picture
    from robustgen.generator.load import load_generator
    from robustgen.generator.samplers import parse_sampler

    tune_process()
    generator = load_generator(name, device=pick_device(device), precision=precision)
    interpolate_to_picture(
        generator.denoiser, parse_sampler(sampler), first, last, count, label=class_, seed=seed, out=out
    )
    print(f"from image {first} to image {last}: {out}")


@generator_app.command("import-edm")
def import_edm_command(
    file: Annotated[Path, typer.Argument(help="Weights as NVlabs published them (.pkl).")],
    out: Annotated[Path, typer.Option(help="Folder for the card and the weights.")] = Path("imported"),
) -> None:
    """Read weights of the EDM paper's format, without running the code pickled in them.

    Example -

      robustgen generator import-edm edm-cifar10-32x32-cond-vp.pkl --out imported
    """
    from robustgen.generator.import_edm import import_edm

    card = import_edm(file, out)
    print(f"generator: {card}\ndraw from it: robustgen generator sample {card} --n 64")
