"""`robustgen corruptions`: accuracy under common corruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []


@app.command("corruptions")
def corruptions_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-at",
    data: Annotated[
        str | None,
        typer.Option(help="Data to corrupt here; or cifar10-c or cifar100-c, the published files below --data-dir."),
    ] = None,
    types: Annotated[str | None, typer.Option(help="Such as fog,snow (default: all of `list corruptions`).")] = None,
    severities: Annotated[str, typer.Option(help="From 1 to 5, with commas.")] = "1,2,3,4,5",
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples.")] = None,
    ids: Annotated[str | None, typer.Option(help="These examples: 0-99,205 or a file of ids.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    baseline: Annotated[
        Path | None, typer.Option(help="Folder of another classifier's measurement, for the mean corruption error.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: runs/corruptions-<data>-<classifier>).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images classified at once; changes no figure.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Measure accuracy under fifteen corruptions in five severities, and draw them; the same command goes on.

    Every cell is a run folder that `robustgen verify` checks.

    Examples -

      robustgen corruptions fmnist-at -n 200

      robustgen corruptions fmnist-standard --baseline runs/corruptions-fmnist-test-1k-fmnist-at --types fog,snow

      robustgen corruptions robustbench:Standard --data cifar10-c --data-dir ~/data
    """
    from robustgen.corruptions.kinds import CORRUPTIONS
    from robustgen.corruptions.suite import CorruptionRequest, measure_corruptions
    from robustgen.environment import tune_process
    from robustgen.errors import SpecError

    try:
        levels = tuple(int(level) for level in severities.split(","))
    except ValueError:
        raise SpecError(f"--severities must be numbers with commas, such as 1,3,5, got '{severities}'.") from None
    chosen = tuple(CORRUPTIONS) if types is None else tuple(name.strip() for name in types.split(","))
    request = CorruptionRequest(
        classifier=classifier, data=data, types=chosen, severities=levels, n=n, ids=ids, seed=seed, baseline=baseline,
        weights=weights, data_dir=data_dir,
    ).checked()  # fmt: skip
    tune_process()
    found, folder = with_progress(
        lambda progress: measure_corruptions(request, out=out, device=device, batch_size=batch_size, progress=progress),
        silent=json_,
    )
    picture = _draw(request, found, folder)
    if json_:
        print(json.dumps({**found, "folder": str(folder)}))
        return
    for line in _lines(found):
        print(line)
    print(f"record: {folder}, picture: {picture}")


def _draw(request: Any, found: dict[str, Any], folder: Path) -> Path:
    """The picture of the types and severities that were measured."""
    from robustgen.corruptions.picture import draw_corruptions
    from robustgen.spec import expand_ids

    rows = [(name, [request.source(name, level) for level in found["severities"]]) for name in found["types"]]
    path = folder / "corruptions.png"
    draw_corruptions(
        rows, None if request.published else found["data"], found["severities"], expand_ids(found["ids"])[:5], path,
        request.data_dir,
    )  # fmt: skip
    return path


def _lines(found: dict[str, Any]) -> list[str]:
    """A row a type, a column a severity, and the mean of each row; in percent."""
    from robustgen.statistics import Estimate
    from robustgen.tables import aligned

    held = {(cell["type"], cell["severity"]): 100 * cell["accuracy"]["value"] for cell in found["cells"]}
    levels = found["severities"]
    rows = [["accuracy in %", *(f"severity {level}" for level in levels), "mean"]]
    for name in found["types"]:
        row = [held[name, level] for level in levels]
        rows.append([name, *(f"{value:.1f}" for value in row), f"{sum(row) / len(row):.1f}"])
    clean = [] if found["clean"] is None else [f"clean accuracy  {Estimate(**found['clean'])}"]
    error = [] if found["mce"] is None else [f"mean corruption error  {found['mce']:.1f} % of {found['baseline']}"]
    return [*aligned(rows), *clean, f"mean accuracy   {Estimate(**found['mean'])}, {found['n']} examples", *error]
