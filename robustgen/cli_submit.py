"""`robustgen submit` and `robustgen leaderboard accept`: a run goes to the keeper of a board, who checks it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_leaderboard import (
    ClaimBy,
    Claimed,
    ClaimedN,
    ClaimUnder,
    Entries,
    claim_of,
    leaderboard_app,
    own_folder,
)
from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []


@app.command("submit")
def submit_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` or `robustgen certify` left.")],
    licence: Annotated[str, typer.Option(help="Of what you send: MIT, CC-BY-4.0, ..., or a text file.")],
    out: Annotated[Path | None, typer.Option(help="The archive (default: NAME.zip here).")] = None,
    name: Annotated[str | None, typer.Option(help="Of the card (default: data, classifier, identity).")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Of one that is not ours: its card (.json), or python:FILE.py:FUNCTION.")
    ] = None,
    weights: Weights = None,
    claimed: Claimed = None,
    claimed_n: ClaimedN = None,
    claimed_by: ClaimBy = None,
    claimed_under: ClaimUnder = "not stated",
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Verify a run and make one archive of it: card, licence, record, examples, witnesses, and a network of yours.

    Examples -

      robustgen submit runs/fmnist-test-1k-fmnist-at-0123abcd --licence CC-BY-4.0

      robustgen submit RUN --licence MIT --classifier mine.json
    """
    from robustgen.environment import tune_process
    from robustgen.leaderboard.submit import submit_run

    claim = claim_of(claimed, claimed_n, claimed_by, claimed_under)
    tune_process()
    made = submit_run(
        run, out, licence=licence, name=name, claimed=claim, classifier=classifier, weights=weights,
        data_dir=data_dir, device=device,
    )  # fmt: skip
    if json_:
        told = {"archive": str(made.path), "sha256": made.sha256, "members": made.members, "name": made.card.name}
        print(json.dumps(told))
        return
    for member, size in made.members.items():
        print(f"{size:>12,}  {member}")
    print(f"{sum(made.members.values()):>12,}  bytes in {len(made.members)} files: {made.path}, sha256 {made.sha256}")
    if made.card.origin is not None and made.card.origin.code:
        print("Your classifier is code, which is not in the archive: say where the keeper can read it.")
    print("Next: send it to the keeper of the board, who runs")
    print(f"  robustgen leaderboard accept {made.path.name}")


@leaderboard_app.command("accept")
def accept_command(
    archive: Annotated[Path, typer.Argument(help="What `robustgen submit` made, of whoever it comes.")],
    check: Annotated[int, typer.Option(help="Robust examples to attack again, or certificates to test.")] = 50,
    draws: Annotated[int, typer.Option(help="Of fresh noise, for each certificate.")] = 1000,
    seed: Annotated[int | None, typer.Option(help="Of choice and attack (default: one that nobody knows).")] = None,
    name: Annotated[str | None, typer.Option(help="Of the card (default: its own).")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Code that you trust to be run for it: python:FILE.py:FUNCTION.")
    ] = None,
    entries: Entries = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Check a submission, measure it again, and file it; exit code 1 says why not, 2 that it is none.

    Examples -

      robustgen leaderboard accept fmnist-test-1k-fmnist-at-0123abcd.zip

      robustgen leaderboard accept FILE.zip --entries my-board --check 200
    """
    from robustgen.environment import tune_process
    from robustgen.leaderboard.accept import Asked, accept
    from robustgen.tables import aligned

    asked = Asked(check=check, draws=draws, seed=seed, name=name, trusted=classifier)
    folder = own_folder(entries)
    tune_process()
    found = with_progress(
        lambda progress: accept(archive, folder, asked, data_dir=data_dir, device=device, progress=progress),
        silent=json_,
    )
    if json_:
        checks = [{"check": one.name, "outcome": one.outcome, "told": one.told} for one in found.checks]
        card = None if found.card is None else str(found.card)
        print(json.dumps({"archive": str(archive), "accepted": card is not None, "card": card, "checks": checks}))
    else:
        table = aligned([(one.name, one.outcome, one.told) for one in found.checks], left=3)
        print("\n".join(line.rstrip() for line in table))
        print(f"accepted: {found.card}" if found.card is not None else f"not accepted: {found.reason}.")
    if found.card is None:
        raise typer.Exit(1)
