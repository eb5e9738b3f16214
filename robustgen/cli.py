"""The command line. Commands import what they need when they run, so that `robustgen --help` needs no torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen import __version__
from robustgen.cli_options import DataDir, Device, Json, Weights, app, show_record, with_progress
from robustgen.errors import RobustgenError, SpecError

__all__ = ["app", "main"]


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
        str,
        typer.Argument(
            help="Name, card file, torchvision:NAME, robustbench:NAME, python:MODULE_OR_FILE.py:FUNCTION, or "
            "http://HOST:PORT."
        ),
    ] = "fmnist-at",
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set by name, folder:PATH or npz:PATH (default: the classifier's own, or the embedded images)."
        ),
    ] = None,
    threat: Annotated[
        str | None,
        typer.Option(help="Such as linf:8/255, l2:0.5, l1:12 or patch:6x6; linf, l2, l1, l0 with --report distance."),
    ] = None,
    report: Annotated[
        str, typer.Option(help="accuracy inside the eps of --threat, or distance of the nearest adversarial images.")
    ] = "accuracy",
    plan: Annotated[
        str | None,
        typer.Option(
            help="Plan by name or TOML file (default: rapid; adaptive, nearest, queries or patches where they fit)."
        ),
    ] = None,
    attacks: Annotated[str | None, typer.Option(help="Instead of a plan: pgd:steps=20:restarts=2,square")] = None,
    goal: Annotated[
        str | None,
        typer.Option(help="Class to reach: targeted:CLASS, least-likely, next or all (default: any wrong class)."),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(help="Most images an attack may send for one example; for attacks that see answers only."),
    ] = None,
    surrogates: Annotated[
        str | None, typer.Option(help="Attack these (NAME,NAME) instead, by their mean logits; the classifier judges.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="Of an http:// target: what it is asked under; more with commas, one by one.")
    ] = None,
    total_queries: Annotated[int | None, typer.Option(help="Of an http:// target: most images in this call.")] = None,
    total_seconds: Annotated[float | None, typer.Option(help="Of an http:// target: when to stop.")] = None,
    purify: Annotated[
        str | None, typer.Option(help="Put a purifier in front: diffpure:t=0.1,steps=20 (`list purifiers`).")
    ] = None,
    gradient: Annotated[
        str, typer.Option(help="How gradients cross it: full, surrogate, adjoint, bpda or none.")
    ] = "full",
    eot: Annotated[int | None, typer.Option(help="Draws of a random defence behind each gradient.")] = None,
    start_from: Annotated[
        Path | None, typer.Option(help="Run folder whose witnesses are tried first, as a transfer attack.")
    ] = None,
    suite: Annotated[str | None, typer.Option(help="Data, ids, threat, plan and seed of a published suite.")] = None,
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples.")] = None,
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

      robustgen eval fmnist-standard --purify diffpure:t=0.1,steps=5 -n 50

      robustgen eval fmnist-at-l2 --threat l2 --report distance --attacks fmn,ddn -n 200

      robustgen eval fmnist-standard --goal all -n 100

      robustgen eval fmnist-standard --threat patch:6x6 -n 100

      robustgen eval fmnist-standard --threat linf:0.05 --queries 1000 --attacks square,bandits,hopskipjump -n 50

      robustgen eval fmnist-standard --plan transfer --surrogates fmnist-at,fmnist-at-l2 -n 100

      robustgen eval http://127.0.0.1:8000 --threat linf:0.05 --queries 500 --attacks hopskipjump -n 10
    """
    from robustgen.prepare import prepare
    from robustgen.request import Request

    if plan is not None and attacks is not None:
        raise SpecError("--plan and --attacks exclude each other; drop one of them.")
    asked = {"data": data, "threat": threat, "plan": plan, "attacks": attacks, "ids": ids, "n": n, "seed": seed,
             "eot": eot, "goal": goal, "queries": queries, "surrogates": surrogates,
             "account": account, "total_queries": total_queries, "total_seconds": total_seconds}  # fmt: skip
    given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
    if suite is not None:
        from robustgen.suites import load_suite

        given = load_suite(suite).request(given)
    if start_from is not None:
        from robustgen.adversarials import Adversarials

        given["start"] = Adversarials.of_run(start_from)
    request = Request(
        classifier=classifier, precision=precision, weights=weights, data_dir=data_dir, purify=purify,
        gradient=gradient, report=report, **given,
    )  # fmt: skip
    from robustgen.environment import tune_process
    from robustgen.jobs import run_job
    from robustgen.ranks import joined_ranks

    tune_process()
    with joined_ranks() as ranks:
        record = with_progress(
            lambda progress: run_job(
                prepare(request, device=device, batch_size=batch_size, out=out, ranks=ranks), progress, ranks
            ),
            silent=not ranks.first,
        )
        if not ranks.first:
            return
    show_record(record, json_)


@app.command("train")
def train_command(
    recipe: Annotated[str, typer.Argument(help="Recipe by name (fmnist-at, fmnist-standard) or TOML file.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for checkpoints and the result (default: trained/<name>).")
    ] = None,
    generated: Annotated[
        str | None, typer.Option(help="Generated images and their shares of every batch: a.npz:0.5,b.npz:0.2.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Classifier that labels generated images without labels.")] = None,
    seed: Annotated[int | None, typer.Option(help="Instead of the recipe's.")] = None,
    data_dir: DataDir = None,
    budget: Annotated[
        str | None, typer.Option(help="Stop after this long, such as 30m; the same command goes on.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Train a classifier by a recipe; interrupt it whenever you like, the same command goes on.

    `torchrun --nproc-per-node 8 -m robustgen train ...` shares each batch among processes.

    Examples -

      robustgen train fmnist-at --data-dir ~/data --out trained/fmnist-at

      robustgen train fmnist-at --generated fmnist-50k.npz:0.7 --data-dir ~/data
    """
    from robustgen.environment import tune_process
    from robustgen.ranks import joined_ranks
    from robustgen.training.train import load_recipe, parse_duration, train

    tune_process()
    given = load_recipe(recipe).changed(generated=generated, labels=labels, seed=seed)
    folder = out or Path("trained") / given.name
    seconds = None if budget is None else parse_duration(budget)
    with joined_ranks() as ranks:
        result = with_progress(
            lambda progress: train(
                given,
                out=folder,
                data_dir=data_dir,
                device=device,
                budget_seconds=seconds,
                progress=progress,
                ranks=ranks,
            ),
            silent=not ranks.first,
        )
    for line in result.lines() if ranks.first else ():
        print(line)


@app.command("list")
def list_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="attacks, plans, classifiers, data, purifiers, generators, samplers, methods, suites, recipes, "
            "tables, corruptions, detectors or flags."
        ),
    ],
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
    name: Annotated[
        str,
        typer.Argument(
            help="Name of an attack, plan, classifier, purifier, generator, sampler, data set, suite, recipe, "
            "corruption, detector or flag."
        ),
    ],
) -> None:
    """Show everything about one name: parameters, source, card, protocol.

    Example -

      robustgen show apgd-t
    """
    from robustgen import catalog

    print(catalog.details(name))


from robustgen import (  # noqa: E402, F401 -- these register their commands
    cli_certify,
    cli_corruptions,
    cli_detector,
    cli_doctor,
    cli_forge,
    cli_generator,
    cli_leaderboard,
    cli_new,
    cli_patch,
    cli_purify,
    cli_reproduce,
    cli_runs,
    cli_serve,
    cli_submit,
    cli_transfer,
)

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
