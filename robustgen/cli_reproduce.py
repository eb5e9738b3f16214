"""`robustgen reproduce`."""

from __future__ import annotations

import json
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustgen.cli_options import DataDir, Device, Json, app, with_progress
from robustgen.errors import SpecError

if TYPE_CHECKING:
    from robustgen.progress import Progress

__all__ = ["reproduce_command"]

# experiments whose rows stand alone -> the module that has load_table, commands, run_row, measured, write and markdown
_BY_ROWS = {
    **{name: f"robustgen.reproduce.{name}" for name in ("purification", "certification")},
    "board": "robustgen.leaderboard.rerun",
}


@app.command("reproduce")
def reproduce_command(
    table: Annotated[
        str, typer.Argument(help="A name (robustgen list tables), purification, certification, board, or TOML.")
    ],
    scale: Annotated[str, typer.Option(help="laptop, paper, or a TOML file; of board a folder of cards.")] = "laptop",
    out: Annotated[
        Path, typer.Option(help="Folder of all that is made; tables share what they have in common.")
    ] = Path("reproduced"),
    budget: Annotated[
        str | None, typer.Option(help="Stop after this long, such as 2h; the same command goes on.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, and what it takes.")] = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Reproduce a table of a paper: arms, several seeds each, intervals, and a verdict for each claim.

    Examples -

      robustgen reproduce wang2023-amount --data-dir ~/data

      robustgen reproduce wang2023-amount --scale paper --dry-run

      robustgen reproduce purification

      robustgen reproduce certification --budget 2h

      robustgen reproduce board
    """
    from robustgen.environment import tune_process
    from robustgen.fields import parse_duration

    if table in _BY_ROWS:
        _by_rows(table, scale, out, budget, dry_run=dry_run, data_dir=data_dir, device=device, as_json=json_)
        return
    from robustgen.reproduce import report
    from robustgen.reproduce.costs import commands, describe_training
    from robustgen.reproduce.experiment import load_scale, load_table
    from robustgen.reproduce.runner import Runner

    tune_process()
    at = load_scale(scale)
    chosen = at.fit(load_table(table))
    if dry_run:
        print(commands(chosen, at, out))
        return
    seconds = None if budget is None else parse_duration(budget)
    if at.gpu and device in ("auto", "cpu") and not _has_gpu():
        raise SpecError(
            f"--scale {at.name} needs a GPU ({at.resources}); there is none here. See the commands with --dry-run, or "
            "take --scale laptop."
        )
    deadline = None if seconds is None else time.monotonic() + seconds
    training = describe_training(chosen, at)

    def run(progress: Progress) -> dict[str, Any]:
        runner = Runner(
            chosen, at, out, data_dir=data_dir, device=device, progress=progress, deadline=deadline
        )  # fmt: skip
        held = report.result(chosen, at, [], training=training)
        found = []
        for outcome in runner.outcomes():
            found.append(outcome)
            held = report.result(chosen, at, found, training=training, distances=runner.distances())
            report.write(held, out)
        return held

    held = with_progress(run, silent=json_)
    print(json.dumps(held) if json_ else report.markdown(held))
    if not json_ and any(row["seeds"] < len(at.seeds) for row in held["rows"]):
        print(f"\nNot all arms are run; the same command goes on from {out}.")


def _by_rows(
    name: str, scale: str, out: Path, budget: str | None, *, dry_run: bool, data_dir: Path | None, device: str,
    as_json: bool,
) -> None:  # fmt: skip
    """An experiment of rows that stand alone; between two rows it looks at the clock."""
    from robustgen.environment import tune_process
    from robustgen.fields import parse_duration
    from robustgen.reproduce.sharing import in_turn

    experiment = import_module(_BY_ROWS[name])
    chosen = experiment.load_table(scale)
    if dry_run:
        print(experiment.commands(chosen, out))
        return
    if chosen.gpu and device in ("auto", "cpu") and not _has_gpu():
        raise SpecError(
            f"--scale {chosen.name} needs a GPU, and there is none here. See the commands with --dry-run, or take "
            "--scale laptop."
        )
    deadline = None if budget is None else time.monotonic() + parse_duration(budget)
    tune_process()
    found: list[tuple[Any, Any]] = []

    def run(progress: Progress) -> dict[str, Any]:
        def work(row: Any) -> Any:
            if deadline is not None and time.monotonic() >= deadline:
                return None
            return experiment.run_row(
                chosen, row, out, data_dir=data_dir, device=device, deadline=deadline, progress=progress
            )

        for row, result in in_turn(chosen.rows, work, lambda row: progress.note(row.name)):
            found.append((row, result))
            experiment.write(experiment.measured(chosen, found), found, out)
        held: dict[str, Any] = experiment.measured(chosen, found)
        return held

    held = with_progress(run, silent=as_json)
    print(json.dumps(held) if as_json else experiment.markdown(held))
    if not as_json and len(found) < len(chosen.rows):
        print(f"\nNot all rows are run; the same command goes on from {out}.")


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
