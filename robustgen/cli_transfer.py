"""`robustgen transfer matrix`: who misleads whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, app, with_progress

__all__: list[str] = []

transfer_app = typer.Typer(
    name="transfer",
    help="Attacks on one classifier, judged on another.\n\n"
    "Try it: robustgen transfer matrix fmnist-standard,fmnist-at,fmnist-at-l2 -n 50",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(transfer_app)


@transfer_app.callback()
def _root() -> None:
    pass


@transfer_app.command("matrix")
def matrix_command(
    classifiers: Annotated[str, typer.Argument(help="Two or more with commas, each as in `robustgen eval`.")],
    attacks: Annotated[
        str | None, typer.Option(help="Such as mi-fgsm,di-fgsm (default: those of the plan transfer).")
    ] = None,
    threat: Annotated[str | None, typer.Option(help="Such as linf:8/255 (default: that of the first one).")] = None,
    data: Annotated[str | None, typer.Option(help="As in `robustgen eval` (default: that of the first one).")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples.")] = None,
    ids: Annotated[str | None, typer.Option(help="These examples: 0-99,205 or a file of ids.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for the runs, transfer.json and transfer.png.")] = Path("transfer"),
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Attack each classifier, judge on every other: table, heat map, and a flag where that beats the white box.

    Every cell is a run folder that `robustgen verify` takes; the same command goes on where it stopped.

    Example -

      robustgen transfer matrix fmnist-standard,fmnist-at,fmnist-at-l2 --threat linf:0.1 -n 100
    """
    from robustgen.environment import tune_process
    from robustgen.plot import need_matplotlib
    from robustgen.plot_transfer import plot_transfer
    from robustgen.report import transfer_lines
    from robustgen.request import Request
    from robustgen.transfer import transfer_matrix

    need_matplotlib()
    tune_process()
    request = Request(attacks=attacks, threat=threat, data=data, n=n, ids=ids, seed=seed, data_dir=data_dir)
    found = with_progress(
        lambda progress: transfer_matrix(classifiers, request, out=out, device=device, progress=progress), silent=json_
    )
    picture = plot_transfer(found, out)
    if json_:
        print(json.dumps({**found.to_json(), "picture": str(picture)}))
        return
    print("\n".join(transfer_lines(found)))
    print(f"table: {out / 'transfer.json'}; picture: {picture}")
