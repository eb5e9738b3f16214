"""`robustgen new`: begin an attack, a purifier or a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import app

__all__: list[str] = []


@app.command("new")
def new_command(
    kind: Annotated[str, typer.Argument(help="attack, purifier or classifier.")],
    name: Annotated[str, typer.Argument(help="Small letters, digits and -, as it will be typed.")],
    out: Annotated[
        Path, typer.Option(help="Root of a checkout of robustgen, or the folder to write into.")
    ] = Path(),
) -> None:  # fmt: skip
    """Write one file and one test to begin with: they run, and their test passes.

    In a checkout of robustgen they go to attacks/ or purify/ and tests/. Anywhere else an attack or a purifier becomes
    a package with an entry point, which robustgen finds once it is installed, and a classifier a file for python:.

    Examples -

      robustgen new attack my-attack

      robustgen new classifier my-net --out models
    """
    from robustgen.scaffold import write_new

    written = write_new(kind, name, out)
    for path in written.paths:
        print(path)
    print("next:")
    for line in written.advice:
        print(f"  {line}")
