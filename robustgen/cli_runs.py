"""Commands that begin with a run folder: plot, verify, compare, export, import; and power, which plans one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, show_record, with_progress

__all__: list[str] = []


@app.command("plot")
def plot_command(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folder that `robustgen eval` left; several of --report distance or --queries."),
    ],
    out: Annotated[Path | None, typer.Option(help="Where to put the pictures (default: the first run folder).")] = None,
    n: Annotated[int, typer.Option("--n", help="Examples behind the curve of accuracy against eps.")] = 200,
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Draw accuracy against eps, and a grid of clean, adversarial and amplified difference.

    Of runs with --report distance the curves are drawn together, from the distances that they found; of runs whose
    attacks see answers only, such as those with --queries, the share broken against queries. Of a run with --goal the
    success of each label towards each class is drawn, as a matrix.

    Examples -

      robustgen plot runs/fmnist-test-1k-fmnist-at-0123abcd

      robustgen plot runs/fmnist-test-1k-fmnist-at-0123abcd runs/fmnist-test-1k-fmnist-at-l2-4567cdef
    """
    from robustgen.environment import tune_process
    from robustgen.plot import plot_run
    from robustgen.plot_distances import has_distances, plot_distances
    from robustgen.plot_queries import has_queries, plot_queries
    from robustgen.plot_targets import has_targets, plot_targets

    if len(runs) == 1 and has_targets(runs[0]):
        for path in with_progress(
            lambda progress: plot_targets(runs[0], out=out, data_dir=data_dir, progress=progress)
        ):
            print(path)
        return
    if has_queries(runs[0]):
        for path in plot_queries(runs, out=out):
            print(path)
        return
    if len(runs) > 1 or has_distances(runs[0]):
        for path in plot_distances(runs, out=out):
            print(path)
        return
    tune_process()
    pictures = with_progress(
        lambda progress: plot_run(
            runs[0],
            out=out,
            n=n,
            classifier=classifier,
            weights=weights,
            data_dir=data_dir,
            device=device,
            progress=progress,
        )
    )
    for path in pictures:
        print(path)


@app.command("verify")
def verify_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` or `robustgen certify` left.")],
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    fresh: Annotated[int, typer.Option(help="Certificates to test by fresh noise.")] = 0,
    draws: Annotated[int, typer.Option(help="Of fresh noise, for each.")] = 1000,
    replay: Annotated[int, typer.Option(help="Certified examples whose draws to repeat.")] = 0,
    seed: Annotated[int, typer.Option(help="Of fresh noise, and of which examples are taken.")] = 1,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Check a finished run from what it left, without attacking again; exit code 1 when something is wrong.

    Examples -

      robustgen verify runs/fmnist-test-1k-fmnist-at-0123abcd

      robustgen verify runs/certify-fmnist-test-1k-fmnist-standard-4567cdef --fresh 10 --replay 2
    """
    from dataclasses import asdict

    from robustgen.certify.check import Redraw
    from robustgen.environment import tune_process
    from robustgen.report import verification_lines
    from robustgen.verify import verify_run

    redraw = Redraw(fresh=fresh, draws=draws, replay=replay, seed=seed)
    tune_process()
    found = with_progress(
        lambda progress: verify_run(
            run, classifier=classifier, weights=weights, data_dir=data_dir, device=device, redraw=redraw,
            progress=progress,
        ),
        silent=json_,
    )  # fmt: skip
    if json_:
        print(json.dumps({**asdict(found), "run": str(run), "holds": found.holds}))
    else:
        print("\n".join(verification_lines(found)))
    if not found.holds:
        raise typer.Exit(1)


@app.command("compare")
def compare_command(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    json_: Json = False,
) -> None:
    """Compare runs over the same examples: intervals, exact paired test, ties, who changed side.

    Example -

      robustgen compare runs/fmnist-test-1k-fmnist-at-0123abcd runs/fmnist-test-1k-fmnist-standard-4567cdef
    """
    from robustgen.compare import compare_runs

    found = compare_runs(runs)
    if json_:
        print(json.dumps(found.to_json()))
        return
    from robustgen.report import comparison_lines

    print("\n".join(comparison_lines(found)))


@app.command("power")
def power_command(
    difference: Annotated[float, typer.Option(help="Difference of two accuracies, in points.")],
    power: Annotated[float, typer.Option(help="Probability of telling the two apart.")] = 0.8,
    json_: Json = False,
) -> None:
    """Say how many examples two classifiers must share before a difference can be told from chance.

    Example -

      robustgen power --difference 1.0
    """
    from robustgen.report import power_rows

    rows = power_rows(difference, power)
    if json_:
        print(json.dumps([{"differing": share, "examples": n} for share, n in rows]))
        return
    print(f"To tell {difference:g} points from chance in {100 * power:g} % of the cases (paired test at 5 %):")
    for share, n in rows:
        print(f"  where the two differ on {100 * share:4.1f} % of the examples: {n:>7,} examples")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` or `robustgen certify` left.")],
    format_: Annotated[
        str, typer.Option("--format", help="robustbench: tensor file and model_info JSON; tsv: log of a certification.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to write into (default: RUN/export).")] = None,
    data_dir: DataDir = None,
) -> None:
    """Write a run in the form that another project asks for.

    Examples -

      robustgen export runs/fmnist-test-1k-fmnist-at-0123abcd --format robustbench

      robustgen export runs/certify-fmnist-test-1k-fmnist-standard-4567cdef --format tsv
    """
    from robustgen.interchange import export_run

    for path in export_run(run, format_, out or run / "export", data_dir=data_dir):
        print(path)


@app.command("import")
def import_command(
    adversarials: Annotated[Path, typer.Option(help="Images (N, C, H, W): .pt without code, .npy or .safetensors.")],
    classifier: Annotated[str, typer.Option(help="What they were made against, as in `robustgen eval`.")],
    data: Annotated[str | None, typer.Option(help="Data set, as in `robustgen eval`.")] = None,
    threat: Annotated[str | None, typer.Option(help="Such as linf:8/255, l2:0.5 or l1:12.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples.")] = None,
    ids: Annotated[str | None, typer.Option(help="These examples: 0-99,205 or a file of ids.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<data>-<classifier>-<identity>).")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Judge somebody else's adversarial images by our rules, and make a run folder of them.

    Row k of the file belongs to example k, or to the k-th of the examples asked for. An image outside the threat model
    breaks nothing; the record says how many there were.

    Example -

      robustgen import --adversarials adv.pt --classifier fmnist-at --threat linf:0.1
    """
    from robustgen.environment import tune_process
    from robustgen.interchange import import_adversarials
    from robustgen.request import Request

    tune_process()
    request = Request(classifier=classifier, data=data, threat=threat, n=n, ids=ids, weights=weights, data_dir=data_dir)
    record = with_progress(
        lambda progress: import_adversarials(adversarials, request, out=out, device=device, progress=progress)
    )
    show_record(record, json_)
