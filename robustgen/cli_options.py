"""What the modules of the command line share: the application, options that several commands take, progress."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from robustgen.progress import Progress
    from robustgen.record import RunRecord

__all__ = ["DataDir", "Device", "Json", "Weights", "app", "show_record", "with_progress"]

app = typer.Typer(
    name="robustgen",
    help="Robustness claims that anybody can check: attack a classifier, keep the evidence.\n\n"
    "Try it: robustgen eval    (bundled classifier, embedded images, under a minute, no download)",
    no_args_is_help=True,
    add_completion=True,  # --install-completion and --show-completion
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of the table.")]
DataDir = Annotated[Path | None, typer.Option(help="Folder of full data sets (default: $ROBUSTGEN_DATA).")]
Weights = Annotated[Path | None, typer.Option(help="Weights (.safetensors, or .pt without code) to use instead.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]


def with_progress(work: Callable[[Progress], Any], *, silent: bool = False) -> Any:
    """Run some work with progress on stderr."""
    from robustgen.progress import RichBars, Silent, for_terminal

    progress = Silent() if silent else for_terminal()
    with progress if isinstance(progress, RichBars) else nullcontext():
        return work(progress)


def show_record(record: RunRecord, as_json: bool) -> None:
    """A finished run on stdout: the table, or one JSON object."""
    if as_json:
        print(json.dumps(record.to_json()))
        return
    from rich.console import Console

    from robustgen.report import print_record

    print_record(record, Console())
