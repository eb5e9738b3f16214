"""The command line. Commands import what they need when they run, so that `robustgen --help` needs no torch."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustgen import __version__
from robustgen.errors import RobustgenError, SpecError

if TYPE_CHECKING:
    from robustgen.progress import Progress

__all__ = ["app", "main"]

app = typer.Typer(
    name="robustgen",
    help="Robustness claims that anybody can check: attack a classifier, keep the evidence.\n\n"
    "Try it: robustgen eval    (bundled classifier, embedded images, under a minute, no download)",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of the table.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of full data sets (default: $ROBUSTGEN_DATA).")]
Weights = Annotated[Path | None, typer.Option(help="Weights (.safetensors, or .pt without code) to use instead.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def _version(wanted: bool) -> None:
    if wanted:
        print(f"robustgen {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command("eval")
def eval_command(
    classifier: Annotated[
        str, typer.Argument(help="Name, card file, torchvision:NAME, or python:MODULE_OR_FILE.py:FUNCTION.")
    ] = "fmnist-at",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set by name, folder:PATH or npz:PATH (default: the classifier's own, or the embedded images)."
        ),
    ] = None,
    threat: Annotated[str | None, typer.Option(help="Such as linf:8/255, l2:0.5 or l1:12.")] = None,
    plan: Annotated[str | None, typer.Option(help="Plan by name or TOML file (default: rapid).")] = None,
    attacks: Annotated[str | None, typer.Option(help="Instead of a plan: pgd:steps=20:restarts=2,square")] = None,
    suite: Annotated[str | None, typer.Option(help="Data, ids, threat, plan and seed of a published suite.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="The first N examples.")] = None,
    ids: Annotated[str | None, typer.Option(help="These examples: 0-99,205 or a file of ids.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw (default: 0).")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/<data>-<classifier>-<identity>).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples attacked at once; changes no figure.")] = None,
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(help="auto searches in the fastest form, float32 in the plain one; or a form as recorded.")
    ] = "auto",
    weights: Weights = None,
    data_dir: DataDir = None,
    json_: Json = False,
) -> None:
    """Measure clean and robust accuracy of a classifier and keep the evidence.

    Examples -

      robustgen eval

      robustgen eval fmnist-standard --threat linf:0.05 --n 200

      robustgen eval torchvision:resnet18 --weights my.safetensors --data folder:photos --threat linf:4/255

      robustgen eval python:model.py:make --data cifar10 --threat l2:0.5 --attacks pgd:steps=40,square
    """
    from robustgen.prepare import Request, prepare

    if plan is not None and attacks is not None:
        raise SpecError("--plan and --attacks exclude each other; drop one of them.")
    asked = {"data": data, "threat": threat, "plan": plan, "attacks": attacks, "ids": ids, "n": n, "seed": seed}
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if suite is not None:
        from robustgen.suites import load_suite

        given = load_suite(suite).request(given)
    request = Request(classifier=classifier, precision=precision, weights=weights, data_dir=data_dir, **given)
    from robustgen.environment import tune_process
    from robustgen.evaluation import run_job

    tune_process()
    record = _with_progress(
        lambda progress: run_job(prepare(request, device=device, batch_size=batch_size, out=out), progress)
    )
    if json_:
        print(json.dumps(record.to_json()))
        return
    from rich.console import Console

    from robustgen.report import print_record

    print_record(record, Console())


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="Recipe by name (fmnist-at, fmnist-standard) or TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the result (default: trained/<name>).")
    ] = None,
    data_dir: DataDir = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop after this long, such as 30m; the same command goes on.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a classifier by a recipe; interrupt it whenever you like, the same command goes on.

    Example -

      robustgen train fmnist-at --data-dir ~/data --out trained/fmnist-at
    """
    from robustgen.environment import tune_process
    from robustgen.train import load_recipe, parse_duration, train

    tune_process()
    folder = out or Path("trained") / load_recipe(recipe).name
    seconds = None if budget is None else parse_duration(budget)
    result = _with_progress(
        lambda progress: train(
            recipe, out=folder, data_dir=data_dir, device=device, budget_seconds=seconds, progress=progress
        )
    )
    for line in result.lines():
        print(line)


@app.command("list")
def list_command(
    kind: Annotated[str, typer.Argument(help="attacks, plans, classifiers, data, suites, recipes or flags.")],
    card_kind: Annotated[
        str | None, typer.Option("--kind", help="Of classifiers, only these: standard, robust or decoy.")
    ] = None,
    json_: Json = False,
) -> None:
    """List what robustgen knows by name.

    Example -

      robustgen list attacks
    """
    from robustgen import catalog

    rows = catalog.listing(kind, card_kind)
    if json_:
        print(json.dumps([{"name": name, "description": text} for name, text in rows]))
        return
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(help="Name of an attack, plan, classifier, data set, suite, recipe or flag.")],
) -> None:
    """Show everything about one name: parameters, source, card, protocol.

    Example -

      robustgen show apgd-t
    """
    from robustgen import catalog

    print(catalog.details(name))


@app.command("plot")
def plot_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` left.")],
    out: Annotated[Path | None, typer.Option(help="Where to put the pictures (default: the run folder).")] = None,
    n: Annotated[int, typer.Option("--n", help="Examples behind the curve of accuracy against eps.")] = 200,
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Draw accuracy against eps, and a grid of clean, adversarial and amplified difference.

    Example -

      robustgen plot runs/fmnist-test-1k-fmnist-at-0123abcd
    """
    from robustgen.environment import tune_process
    from robustgen.plot import plot_run

    tune_process()
    pictures = _with_progress(
        lambda progress: plot_run(
            run,
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
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` left.")],
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Check a finished run from its witnesses, without attacking again; exit code 1 when something is wrong.

    Example -

      robustgen verify runs/fmnist-test-1k-fmnist-at-0123abcd
    """
    from dataclasses import asdict

    from robustgen.environment import tune_process
    from robustgen.report import verification_lines
    from robustgen.verify import verify_run

    tune_process()
    found = verify_run(run, classifier=classifier, weights=weights, data_dir=data_dir, device=device)
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


def _with_progress(work: Callable[[Progress], Any]) -> Any:
    """Run some work with progress on stderr."""
    from robustgen.progress import RichBars, for_terminal

    progress = for_terminal()
    with progress if isinstance(progress, RichBars) else nullcontext():
        return work(progress)


# typer brings its own copy of click in some versions and imports click in others; BadParameter leads to the right one.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]


def main() -> None:
    """Entry point: exit codes 0 ok, 1 run failed, 2 bad request, 130 interrupted."""
    code = _run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = app(arguments or ["--help"], prog_name="robustgen", standalone_mode=False)
        code = code if isinstance(code, int) else 0
    except RobustgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except _USAGE_ERROR as error:
        print(f"error: {_usage(error)}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit:
        code = 0  # only when the reader of stdout left (as `head` does): nothing to tell it
    if code == 130:  # Ctrl-C: newer typers return this code, older ones raise Abort
        print("interrupted: what was finished is kept; the same command goes on from there.", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    """click's message with the command to ask for help."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "robustgen"
    message: str = error.format_message()
    return f"{message}{'' if message.endswith(('.', '?', ')')) else '.'} Type `{path} --help`."


if __name__ == "__main__":
    main()
