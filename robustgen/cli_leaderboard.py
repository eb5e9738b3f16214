"""`robustgen leaderboard`: published figures and our own on one checkable board."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustgen.cli_options import DataDir, Device, app
from robustgen.errors import SpecError

if TYPE_CHECKING:
    from robustgen.leaderboard.entries import Claimed as Claim

__all__ = ["ClaimBy", "ClaimUnder", "Claimed", "ClaimedN", "Entries", "claim_of", "leaderboard_app", "own_folder"]

leaderboard_app = typer.Typer(
    name="leaderboard",
    help="Boards of published figures and of our own entries.\n\n"
    "Try it: robustgen leaderboard table --data cifar10 --threat linf:8/255",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(leaderboard_app)

Entries = Annotated[Path | None, typer.Option(help="Folder of cards (default: those that come with robustgen).")]
Origin = Annotated[
    bool | None, typer.Option("--published/--ours", help="Only published figures, or only our own (default: both).")
]
Claimed = Annotated[
    float | None, typer.Option(help="Robust accuracy claimed, in percent (default: that of the classifier's card).")
]
ClaimedN = Annotated[int | None, typer.Option(help="Images behind the claim.")]
ClaimBy = Annotated[str | None, typer.Option(help="Where the claim stands: a paper or an address.")]
ClaimUnder = Annotated[str, typer.Option(help="Which attack the claim names.")]
Format = Annotated[str, typer.Option("--format", help="rich, md, csv, latex or json.")]


@leaderboard_app.command("boards")
def boards_command(entries: Entries = None) -> None:
    """List the boards: data set, threat model, how many entries.

    Example -

      robustgen leaderboard boards
    """
    from robustgen.leaderboard.boards import board_names, make_board
    from robustgen.leaderboard.entries import load_entries
    from robustgen.tables import aligned

    held = load_entries(entries)
    rows = [("data", "threat", "published", "of which listed", "ours")]
    for data, threat in board_names(held):
        found = make_board(data, threat, held, unlisted=True).rows
        published = [row for row in found if row.origin == "published"]
        listed = sum(row.listed for row in published)
        rows.append((data, threat, str(len(published)), str(listed), str(len(found) - len(published))))
    print("\n".join(aligned(rows, left=2)))


@leaderboard_app.command("table")
def table_command(
    data: Annotated[str, typer.Option(help="Data set of the board, such as cifar10.")],
    threat: Annotated[
        str | None, typer.Option(help="Such as linf:8/255, l2:0.5 or corruptions (default: the only one of the data).")
    ] = None,
    origin: Origin = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Also published entries without weights, which the README leaves out.")
    ] = False,
    format_: Format = "rich",
    entries: Entries = None,
) -> None:
    """Show a board, ranked as RobustBench's README ranks it, with what that lacks: intervals, ties, claims, flags.

    Examples -

      robustgen leaderboard table --data cifar10 --threat linf:8/255

      robustgen leaderboard table --data imagenet --threat linf:4/255 --all

      robustgen leaderboard table --data cifar10 --threat l2:0.5 --format md
    """
    from robustgen.leaderboard.boards import find_board, make_board
    from robustgen.leaderboard.entries import load_entries
    from robustgen.leaderboard.table import check_format, print_table, show_board

    check_format(format_)
    held = load_entries(entries)
    found, of = find_board(data, threat, held)
    board = make_board(found, of, held, published=origin is not False, ours=origin is not True, unlisted=all_)
    if not board.rows:
        what = "published figures" if origin else "entries of our own"
        raise SpecError(f"the board of {found} under {of} has no {what}; drop --{'published' if origin else 'ours'}.")
    if format_ == "rich":
        print_table(board)
    else:
        print(show_board(board, format_))


@leaderboard_app.command("claims")
def claims_command(
    data: Annotated[str | None, typer.Option(help="Only of this data set (default: all boards).")] = None,
    threat: Annotated[str | None, typer.Option(help="Only of this threat model; needs --data.")] = None,
    origin: Origin = None,
    format_: Format = "rich",
    entries: Entries = None,
) -> None:
    """Show what was claimed beside what was measured, the largest overclaim first.

    Examples -

      robustgen leaderboard claims --data cifar10 --threat linf:8/255

      robustgen leaderboard claims --ours
    """
    from robustgen.leaderboard.boards import find_board
    from robustgen.leaderboard.claims import claims_of, show_claims
    from robustgen.leaderboard.entries import load_entries
    from robustgen.leaderboard.table import check_format

    check_format(format_)
    if threat is not None and data is None:
        raise SpecError("--threat needs --data; type for example --data cifar10 --threat linf:8/255.")
    held = load_entries(entries)
    asked = None if data is None else find_board(data, threat, held)
    print(show_claims(claims_of(held, asked, published=origin is not False, ours=origin is not True), format_))


@leaderboard_app.command("build")
def build_command(
    out: Annotated[Path, typer.Argument(help="Folder for the pages; open its index.html, no server needed.")],
    entries: Entries = None,
) -> None:
    """Write the boards as a static site: sort, filter, search, link, plot, and a page of each entry of ours.

    Example -

      robustgen leaderboard build site
    """
    from robustgen.leaderboard.build import build_site
    from robustgen.leaderboard.entries import load_entries

    written = build_site(out, load_entries(entries))
    size = sum(path.stat().st_size for path in written)
    print(f"{out / 'index.html'}: {len(written)} files, {size / 1e6:.2f} MB")


@leaderboard_app.command("add")
def add_command(
    run: Annotated[Path, typer.Argument(help="Run folder that `robustgen eval` or `robustgen certify` left.")],
    name: Annotated[str | None, typer.Option(help="Of the card (default: data, classifier, identity).")] = None,
    claimed: Claimed = None,
    claimed_n: ClaimedN = None,
    claimed_by: ClaimBy = None,
    claimed_under: ClaimUnder = "not stated",
    entries: Entries = None,
    data_dir: DataDir = None,
    device: Device = "auto",
) -> None:
    """Make a card from a finished run: verified from what it left, with the command that runs it again.

    Examples -

      robustgen leaderboard add runs/fmnist-test-1k-fmnist-at-0123abcd

      robustgen leaderboard add runs/certify-fmnist-test-1k-fmnist-standard-4567cdef

      robustgen leaderboard add RUN --entries my-board --claimed 79.2 --claimed-n 1000 --claimed-by "our paper"
    """
    claim = claim_of(claimed, claimed_n, claimed_by, claimed_under)
    folder = own_folder(entries)
    from robustgen.environment import tune_process
    from robustgen.leaderboard.add import add_run

    tune_process()
    print(add_run(run, folder, name=name, claimed=claim, data_dir=data_dir, device=device))


def claim_of(claimed: float | None, n: int | None, by: str | None, under: str) -> Claim | None:
    """The claim that was typed, all of it or none."""
    from robustgen.leaderboard.entries import Claimed

    given = (claimed, n, by)
    if all(part is None for part in given):
        return None
    if claimed is None or n is None or by is None:
        raise SpecError("a claim needs --claimed, --claimed-n and --claimed-by; give all three or none.")
    if not 0 <= claimed <= 100:
        raise SpecError(f"--claimed is in percent, from 0 to 100, got {claimed:g}.")
    return Claimed(value=claimed / 100, n=n, protocol=under, source=by)


def own_folder(entries: Path | None) -> Path:
    """Where cards are written: the folder that was named, else that of this checkout."""
    from robustgen.leaderboard.entries import ENTRIES

    if entries is None and not (ENTRIES.parent.parent / "pyproject.toml").is_file():
        raise SpecError("an installed robustgen keeps its own cards only; say where yours go with --entries FOLDER.")
    return entries or ENTRIES
