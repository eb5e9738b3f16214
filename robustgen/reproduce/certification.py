"""`robustgen reproduce certification`: base classifiers under randomized smoothing, side by side on the same images."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from robustgen import durable, tables
from robustgen.certify.design import PROFILES
from robustgen.certify.logs import CertificationLog
from robustgen.certify.report import draw
from robustgen.certify.request import CertificationRequest, certify_request
from robustgen.certify.run import as_log, read_certificates
from robustgen.errors import SpecError
from robustgen.fields import (
    POSITIVE,
    TEXT,
    WHOLE,
    Rule,
    check_fields,
    each,
    number,
    one_of,
    or_none,
    read_section,
    text,
)
from robustgen.progress import Progress
from robustgen.reproduce.scales import in_folder, read_toml
from robustgen.statistics import mcnemar
from robustgen.training.recipe import load_recipe

__all__ = [
    "CertificationTable",
    "Certified",
    "Comparison",
    "Row",
    "commands",
    "csv_table",
    "load_table",
    "markdown",
    "measured",
    "run_row",
    "write",
]  # fmt: skip

_LEVEL = 0.05  # of the paired test


@dataclass(frozen=True, kw_only=True)
class Row:
    """One smoothed classifier.

    Args:
        name: as shown.
        sigma: of the noise, in pixels of [0, 1].
        classifier: as typed for `robustgen certify`; None where a recipe trains it.
        recipe: trains it first, in the folder of the table.
        denoise: the generator in front; None for none.
    """

    name: str
    sigma: float
    classifier: str | None = None
    recipe: str | None = None
    denoise: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "rows", _RULES)
        if (self.classifier is None) == (self.recipe is None):
            raise SpecError(f"rows: {self.name} needs either classifier or recipe.")

    @property
    def folder(self) -> str:
        """Name of its run folder: everything that differs between rows, readable."""
        made_of = [part for part in (self.denoise, self.classifier, self.recipe) if part is not None]
        plain = [Path(part).name.removesuffix(".json").removesuffix(".toml") for part in made_of]
        return "-".join([*plain, f"{self.sigma:g}"])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question for the paired test: does one row certify more images at a radius than another one?"""

    text: str
    better: str
    than: str
    radius: float


@dataclass(frozen=True, kw_only=True)
class Published:
    """A line of a paper: certified accuracy in percent at radii, None where it gives none."""

    name: str
    data: str
    source: str
    radii: tuple[float, ...]
    certified: tuple[float, ...]
    acr: float | None = None


@dataclass(frozen=True, kw_only=True)
class CertificationTable:
    """What is run at one scale; see `robustgen certify` for the fields it shares with it."""

    name: str
    title: str
    description: str
    data: str
    n: int
    radii: tuple[float, ...]
    samples: int
    profile: str = "exact"
    alpha: float = 0.001
    rows: tuple[Row, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    published: tuple[Published, ...] = field(default_factory=tuple)
    gpu: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "table", _RULES)
        names = {row.name for row in self.rows}
        if not names or len(names) < len(self.rows):
            raise SpecError("table: needs [[rows]] with names that differ.")
        for one in self.comparisons:
            if {one.better, one.than} - names:
                raise SpecError(f"comparisons: '{one.text}' names a row that there is not; rows: {', '.join(names)}.")


@dataclass(frozen=True, kw_only=True)
class Certified:
    """A finished row: its log and what it took."""

    log: CertificationLog
    samples: int
    precision: str
    seconds: float


def load_table(name: str) -> CertificationTable:
    """The table at a scale, "laptop" or "paper", or a file ending in .toml.

    Raises:
        SpecError: no such scale, or a file that is none; the field is named.
    """
    content = read_toml(name, in_folder("certification"), "scale")
    kinds: dict[str, type] = {"rows": Row, "comparisons": Comparison, "published": Published}
    parts: dict[str, Any] = {
        key: tuple(read_section(kind, key, one) for one in content.pop(key, ())) for key, kind in kinds.items()
    }
    return read_section(CertificationTable, "table", {"name": Path(name).stem, **content, **parts})


def run_row(
    table: CertificationTable, row: Row, out: Path, *, data_dir: Path | None, device: str, deadline: float | None,
    progress: Progress,
) -> Certified | None:  # fmt: skip
    """Train what has to be trained, then certify; None where the deadline, by `time.monotonic`, ended the training."""
    from robustgen.training.train import train

    begun, classifier = time.monotonic(), row.classifier
    if row.recipe is not None:
        recipe = load_recipe(row.recipe)
        where = out / "classifiers" / recipe.name
        classifier = str(where / f"{recipe.name}.json")
        if not Path(classifier).is_file():
            left = None if deadline is None else max(1.0, deadline - begun)
            trained = train(
                recipe, out=where, data_dir=data_dir, device=device, budget_seconds=left, progress=progress
            )  # fmt: skip
            if not trained.finished:
                return None
    assert classifier is not None  # a row has one or a recipe
    folder = out / "certification" / row.folder
    record = certify_request(
        _request(table, row, classifier, data_dir), out=folder, batch_size=1000, device=device, progress=progress
    )
    log = as_log(read_certificates(folder), row.name)
    return Certified(
        log=log, samples=record["samples"], precision=record["spec"]["precision"], seconds=time.monotonic() - begun
    )


def _request(table: CertificationTable, row: Row, classifier: str, data_dir: Path | None) -> CertificationRequest:
    return CertificationRequest(
        classifier=classifier, sigma=row.sigma, denoise=row.denoise, profile=table.profile, alpha=table.alpha,
        radii=",".join(f"{radius:g}" for radius in table.radii), samples=table.samples, data=table.data, n=table.n,
        data_dir=data_dir,
    )  # fmt: skip


def commands(table: CertificationTable, out: Path) -> str:
    """The rows as commands that can be typed one by one."""
    lines = [f"# {table.title}: {table.description}"]
    for row in table.rows:
        lines.append(f"\n# {row.name}, sigma {row.sigma:g}: at most {table.samples:,} draws an image")
        classifier = row.classifier
        if row.recipe is not None:
            name = load_recipe(row.recipe).name
            where = out / "classifiers" / name
            lines.append(f"robustgen train {row.recipe} --out {where}")
            classifier = str(where / f"{name}.json")
        denoise = "" if row.denoise is None else f" --denoise {row.denoise}"
        radii = ",".join(f"{radius:g}" for radius in table.radii)
        lines += [
            f"robustgen certify {classifier} --sigma {row.sigma:g}{denoise} --profile {table.profile} \\",
            f"  --radii {radii} --samples {table.samples} --alpha {table.alpha:g} --data {table.data} -n {table.n} \\",
            f"  --out {out / 'certification' / row.folder}",
        ]
    return "\n".join(lines)


def measured(table: CertificationTable, found: Sequence[tuple[Row, Certified]]) -> dict[str, Any]:
    """Everything that is shown, as plain values."""
    done = {row.name: one for row, one in found}
    rows = []
    for row in table.rows:
        shown: dict[str, Any] = asdict(row)
        if (one := done.get(row.name)) is not None:
            shown |= _figures(one, table.radii)
        rows.append(shown)
    keys = ("name", "title", "description", "data", "n", "radii", "samples", "profile", "alpha")
    return {
        **{key: getattr(table, key) for key in keys}, "rows": rows,
        "comparisons": [_compared(one, done) for one in table.comparisons],
        "published": [asdict(one) for one in table.published],
    }  # fmt: skip


def _figures(one: Certified, radii: Sequence[float]) -> dict[str, Any]:
    reached = one.log.radius * one.log.right
    half = 1.96 * float(reached.std(ddof=1)) / math.sqrt(len(reached)) if len(reached) > 1 else 0.0
    return {
        "certified": [{"radius": radius, **asdict(one.log.certified(radius))} for radius in radii],
        "acr": {"value": one.log.acr, "low": max(0.0, one.log.acr - half), "high": one.log.acr + half},
        "abstained": asdict(one.log.abstained),
        "samples": one.samples / len(one.log),
        "precision": one.precision,
        "seconds": one.seconds,
    }


def _compared(asked: Comparison, done: Mapping[str, Certified]) -> dict[str, Any]:
    """Counts of images that just one of two rows certifies, the exact McNemar test on them, and the verdict."""
    if asked.better not in done or asked.than not in done:
        return {**asdict(asked), "verdict": "not run yet"}
    better, than = (_held(done[name].log, asked.radius) for name in (asked.better, asked.than))
    only, other = int((better & ~than).sum()), int((than & ~better).sum())
    p = mcnemar(only, other)
    verdict = "undecided at this n" if p > _LEVEL else "holds" if only > other else "does not hold"
    difference = float(better.mean() - than.mean())
    return {**asdict(asked), "difference": difference, "only_better": only, "only_than": other, "p_value": p,
            "verdict": verdict}  # fmt: skip


def _held(log: CertificationLog, radius: float) -> npt.NDArray[np.bool_]:
    held: npt.NDArray[np.bool_] = log.right & (log.radius >= radius)
    return held


def markdown(held: dict[str, Any]) -> str:
    """Three tables: certified accuracy, the paired tests, and the literature."""
    told = (
        f"**{held['title']}** ({held['data']}, n = {held['n']}). {held['description']} At most {held['samples']:,} "
        f"draws an image, profile `{held['profile']}`, alpha = {held['alpha']:g}; certified accuracy in %, "
        "intervals of 95 %."
    )
    radii = held["radii"]
    header = ["base classifier", "sigma", *(f"r = {radius:g}" for radius in radii), "ACR", "abstained", "draws"]
    lines = []
    for row in held["rows"]:
        cells = [row["name"], f"{row['sigma']:g}"]
        if "certified" in row:
            acr = row["acr"]
            cells += [tables.interval_cell(one) for one in row["certified"]]
            cells += [f"{acr['value']:.3f} [{acr['low']:.3f}, {acr['high']:.3f}]"]
            cells += [f"{100 * row['abstained']['value']:.1f}", f"{row['samples']:,.0f}"]
        else:
            cells += ["not run yet"] + [""] * (len(header) - 3)
        lines.append(cells)
    parts = [told, tables.markdown_table(header, lines)]
    if held["comparisons"]:
        parts += ["Paired on the same images, exact McNemar test:", _comparisons(held["comparisons"])]
    if held["published"]:
        parts += ["From the literature (other data, not comparable with the figures above):", _published(held)]
    return "\n\n".join(parts)


def _comparisons(asked: Sequence[dict[str, Any]]) -> str:
    lines = []
    for one in asked:
        cells = [one["text"], f"{one['radius']:g}"]
        if "p_value" in one:
            only = f"{one['only_better']} / {one['only_than']}"
            cells += [f"{100 * one['difference']:+.1f}", only, f"{one['p_value']:.2g}"]
        else:
            cells += ["", "", ""]
        lines.append([*cells, f"**{one['verdict']}**"])
    return tables.markdown_table(("claim", "radius", "difference, points", "only there", "p", "verdict"), lines)


def _published(held: dict[str, Any]) -> str:
    radii = sorted({radius for one in held["published"] for radius in one["radii"]})
    lines = []
    for one in held["published"]:
        at = dict(zip(one["radii"], one["certified"], strict=True))
        acr = "" if one["acr"] is None else f"{one['acr']:.3f}"
        cells = [f"{at[radius]:g}" if radius in at else "" for radius in radii]
        lines.append([one["name"], one["data"], *cells, acr, one["source"]])
    return tables.markdown_table(
        ("published", "data", *(f"r = {radius:g}" for radius in radii), "ACR", "source"), lines
    )


def csv_table(held: dict[str, Any]) -> str:
    """A line a row and radius, in fractions of 1."""
    lines = [
        [row["name"], row["sigma"], row["denoise"] or "", one["radius"], one["value"], one["low"], one["high"]]
        for row in held["rows"]
        for one in row.get("certified", ())
    ]
    return tables.csv_table(("base", "sigma", "denoise", "radius", "certified", "low", "high"), lines)


def write(held: dict[str, Any], found: Sequence[tuple[Row, Certified]], out: Path) -> None:
    """OUT/certification.json, .md, .csv, and .png where matplotlib is there."""
    durable.write_json(out / "certification.json", held)
    durable.replace(out / "certification.md", (markdown(held) + "\n").encode())
    durable.replace(out / "certification.csv", csv_table(held).encode())
    if find_spec("matplotlib") is not None and found:
        draw([one.log for _, one in found], out / "certification.png")


_RULES: dict[str, Rule] = {
    "rows.name": TEXT,
    "rows.sigma": POSITIVE,
    "rows.classifier": (or_none(text), "a text"),
    "rows.recipe": (or_none(text), "a text"),
    "rows.denoise": (or_none(text), "a text"),
    "table.n": WHOLE,
    "table.samples": WHOLE,
    "table.profile": one_of(*PROFILES),
    "table.radii": (each(number(0, math.inf)), "a list of numbers >= 0"),
    "table.alpha": (number(0, 1, open_low=True), "a number in (0, 1)"),
}
