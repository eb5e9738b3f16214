"""Pictures of purifiers: noised and purified images at several t, and accuracy against t."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustgen import durable
from robustgen.api import evaluate
from robustgen.data import load_data, parse_ids
from robustgen.dataset import Dataset
from robustgen.errors import SpecError
from robustgen.files import read_image
from robustgen.generator.denoiser import to_generator_range
from robustgen.generator.grid import save_grid
from robustgen.generator.load import load_generator
from robustgen.progress import Progress
from robustgen.purify.base import Purifier, run_chain
from robustgen.purify.levels import Level
from robustgen.purify.parse import describe, parse_purifier
from robustgen.rng import ExampleRng

__all__ = ["at_levels", "curve", "draw_curve", "parse_levels", "purified_to_picture"]


def parse_levels(text: str) -> tuple[float, ...]:
    """Times t* with commas.

    Raises:
        SpecError: not numbers in (0, 1].
    """
    try:
        levels = tuple(float(part) for part in text.split(","))
    except ValueError:
        levels = ()
    if not levels or not all(0 < t <= 1 for t in levels):
        raise SpecError(f"--levels must be times in (0, 1] with commas, such as 0.05,0.1,0.2, got '{text}'.")
    return levels


def at_levels(purifier: str, levels: Sequence[float]) -> list[tuple[float, Purifier]]:
    """The purifier at each t; whatever it says of t, sigma or step gives way.

    Raises:
        SpecError: it has no setting t.
    """
    if not hasattr(parse_purifier(purifier), "t"):
        raise SpecError(f"{purifier} has no t to vary; take diffpure.")
    name, _, rest = purifier.partition(":")
    kept = [part for part in rest.split(",") if part and not re.match(r"\s*(t|sigma|step)\s*=", part)]
    return [(t, parse_purifier(f"{name}:{','.join([f't={t:g}', *kept])}")) for t in levels]


def purified_to_picture(
    purifier: str, levels: Sequence[float], *, image: Path | None, data: str, data_dir: Path | None, ids: str,
    seed: int, out: Path,
) -> None:  # fmt: skip
    """A grid: the images, then for each t a row of noised ones and a row of purified ones.

    Raises:
        SpecError: images of another size than the generator's, or a purifier without t.
    """
    chosen = at_levels(purifier, levels)
    denoiser = load_generator(str(chosen[0][1].generator), precision="float32").denoiser
    x, rows = _images(image, data, data_dir, ids, denoiser.shape)
    rng, shown = ExampleRng.of(seed, rows), [to_generator_range(x)]
    with torch.no_grad():
        for t, one in chosen:
            chain = one.chain(denoiser, rng)
            sigma = Level(f"{t:g}").generator_sigma
            noise = rng.normal(x.shape[1:], "diffuse")
            shown += [to_generator_range(x) + sigma * noise, to_generator_range(run_chain(chain, x))]
    save_grid(torch.cat(shown), out, len(x))


def _images(
    image: Path | None, data: str, data_dir: Path | None, ids: str, shape: tuple[int, int, int]
) -> tuple[Tensor, list[int]]:
    if image is not None:
        one = torch.from_numpy(read_image(image, shape[0]))
        if tuple(one.shape) != shape:
            raise SpecError(f"{image} is {tuple(one.shape)}, this generator makes {shape}; resize it first.")
        return one[None], [0]
    dataset: Dataset = load_data(data, data_dir=data_dir)
    if dataset.shape != shape:
        raise SpecError(f"{data} has images {dataset.shape}, this generator makes {shape}; name one with generator=.")
    rows = parse_ids(ids, None, len(dataset), dataset.name)
    return dataset.batch(rows)[0], list(rows)


def curve(
    classifier: str, purifier: str, levels: Sequence[float], *, attacks: str, eot: int, n: int, out: Path,
    options: dict[str, Any], progress: Progress, told: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Clean and robust accuracy at each t, a run folder each; what is finished is only read.

    Args:
        classifier, purifier, levels: what is attacked.
        attacks, eot, n: how, as in `evaluate`.
        out: folder for the runs, curve.json and curve.png.
        options: others of `evaluate`.
        progress: told how the work goes.
        told: called with the rows so far after each level.
    """
    held: dict[str, Any] = {"classifier": classifier, "purifier": purifier, "attacks": attacks, "eot": eot, "n": n}
    held["rows"] = []
    for t, one in at_levels(purifier, levels):
        record = evaluate(
            classifier, purify=describe(one), attacks=attacks, eot=eot if one.stochastic else None, n=n,
            out=out / f"t-{t:g}", progress=progress, **options,
        )  # fmt: skip
        score = record.stochastic
        held["threat"] = record.spec["threat"]
        held["rows"].append({
            "t": t, "clean": _plain(score.clean_single_shot if score else record.clean_accuracy),
            "robust": _plain(score.single_shot if score else record.robust_accuracy),
            "worst": _plain(score.worst_of_n) if score else None, "seconds": record.seconds,
        })  # fmt: skip
        told(held)
        durable.write_json(out / "curve.json", held)
    return held


def _plain(estimate: Any) -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}


def draw_curve(held: dict[str, Any], path: Path) -> None:
    """Accuracy against t: clean, robust in one pass, and robust against ten submissions."""
    from matplotlib.figure import Figure  # of the extra "report"

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    t = [row["t"] for row in held["rows"]]
    styles = (("clean", "clean images", "#666666"), ("robust", "attacked, one pass", "#0072B2"),
              ("worst", "attacked, worst of 10", "#D55E00"))  # fmt: skip
    for key, label, colour in styles:
        rows = [row[key] for row in held["rows"]]
        if any(row is None for row in rows):
            continue
        value = [100 * row["value"] for row in rows]
        below, above = (
            [abs(v - 100 * row[end]) for v, row in zip(value, rows, strict=True)] for end in ("low", "high")
        )
        axes.errorbar(t, value, [below, above], fmt="o-", capsize=3, color=colour, label=label)
    axes.set(xlabel="t*, how far the image is diffused", ylabel="accuracy, %", ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    axes.set_title(f"{held['purifier']} before {held['classifier']}, {held['threat']}, n = {held['n']}", fontsize=9)
    figure.savefig(path, dpi=150)
