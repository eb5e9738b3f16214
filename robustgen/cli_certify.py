"""`robustgen certify-report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import app

__all__: list[str] = []


@app.command("certify-report")
def certify_report_command(
    logs: Annotated[list[Path], typer.Argument(help="Logs: idx label predict radius correct time, tabs between.")],
    radii: Annotated[str, typer.Option(help="With commas.")] = "0,0.25,0.5,0.75,1,1.25,1.5",
    format_: Annotated[str, typer.Option("--format", help="rich, md, csv, latex or json.")] = "rich",
    plot: Annotated[Path | None, typer.Option(help="A picture: certified accuracy against the radius.")] = None,
) -> None:
    """Certified accuracy at radii with intervals, average certified radius and abstentions, from certification logs.

    Example -

      robustgen certify-report sigma_0.25.tsv sigma_0.50.tsv --radii 0,0.5,1 --format md
    """
    from robustgen.certify.logs import read_log
    from robustgen.certify.report import draw, measured, parse_radii, render

    chosen = parse_radii(radii)
    read = [read_log(path) for path in logs]
    print(render(measured(read, chosen), format_))
    if plot is not None:
        draw(read, plot)
