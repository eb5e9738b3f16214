"""`robustgen reproduce purification`: purifiers against the adaptive ladder, rung by rung; a run folder a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from robustgen import durable, tables
from robustgen.errors import SpecError
from robustgen.fields import TEXT, WHOLE, Rule, check_fields, read_section
from robustgen.progress import Progress
from robustgen.purify.parse import describe, parse_purifier
from robustgen.record import RunRecord
from robustgen.reproduce.scales import in_folder, read_toml

__all__ = [
    "PurificationTable",
    "Row",
    "commands",
    "csv_table",
    "load_table",
    "markdown",
    "measured",
    "plot",
    "run_row",
    "write",
]

_PLAN = "adaptive"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One purifier before one classifier.

    Args:
        name: as shown.
        classifier, purifier: as typed for `robustgen eval`.
        n: the first so many examples.
    """

    name: str
    classifier: str
    purifier: str
    n: int

    def __post_init__(self) -> None:
        check_fields(self, "rows", _RULES)
        parse_purifier(self.purifier)

    @property
    def folder(self) -> str:
        """Name of its run folder: everything that it depends on, readable."""
        plain = "".join(c if c.isalnum() or c in ".-" else "-" for c in describe(parse_purifier(self.purifier)))
        return f"{plain}-{Path(self.classifier).stem}-{self.n}"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure from the literature, and what later work made of it."""

    name: str
    claimed: str
    corrected: str
    source: str


@dataclass(frozen=True, kw_only=True)
class PurificationTable:
    """What is run at one scale."""

    name: str
    title: str
    description: str
    data: str
    threat: str
    rows: tuple[Row, ...]
    published: tuple[Published, ...] = field(default_factory=tuple)
    gpu: bool = False


def load_table(name: str) -> PurificationTable:
    """The table at a scale, "laptop" or "paper", or a file ending in .toml.

    Raises:
        SpecError: no such scale, or a file that is none; the field is named.
    """
    content = read_toml(name, in_folder("purification"), "scale")
    rows = tuple(read_section(Row, "rows", row) for row in content.pop("rows", ()))
    if not rows or len({row.name for row in rows}) < len(rows):
        raise SpecError(f"scale {name}: needs [[rows]] with names that differ.")
    published = tuple(read_section(Published, "published", one) for one in content.pop("published", ()))
    table = {"name": Path(name).stem, **content, "rows": rows, "published": published}
    return read_section(PurificationTable, "table", table)


def run_row(
    table: PurificationTable, row: Row, out: Path, *, data_dir: Path | None, device: str,
    deadline: float | None,  # noqa: ARG001 -- a run that was begun goes on to its end
    progress: Progress,
) -> RunRecord:  # fmt: skip
    """The run of a row, or its record where it was finished before."""
    from robustgen.api import evaluate

    return evaluate(
        row.classifier, table.data, table.threat, plan=_PLAN, purify=row.purifier, n=row.n,
        out=out / "purification" / row.folder, data_dir=data_dir, device=device, progress=progress,
    )  # fmt: skip


def commands(table: PurificationTable, out: Path) -> str:
    """The rows as commands that can be typed one by one, with what an image costs."""
    lines = [f"# {table.title}: {table.description}"]
    for row in table.rows:
        evaluations = parse_purifier(row.purifier).evaluations
        where = out / "purification" / row.folder
        lines += [
            f"\n# {row.name}: {evaluations} evaluations of the generator a pass, about 4 with the gradient of each",
            f"robustgen eval {row.classifier} --data {table.data} --threat {table.threat} --purify {row.purifier} \\",
            f"  --plan {_PLAN} -n {row.n} --out {where}",
        ]
    return "\n".join(lines)


def measured(table: PurificationTable, found: Sequence[tuple[Row, RunRecord]]) -> dict[str, Any]:
    """Everything that is shown, as plain values: a row's scores, and what was left standing after each rung."""
    records = {row.name: record for row, record in found}
    rows = []
    for row in table.rows:
        shown: dict[str, Any] = {**asdict(row), "evaluations": parse_purifier(row.purifier).evaluations}
        if (record := records.get(row.name)) is not None:
            shown |= _figures(record)
        rows.append(shown)
    head = {key: getattr(table, key) for key in ("name", "title", "description", "data", "threat")}
    return {**head, "rows": rows, "published": [asdict(one) for one in table.published]}


def _figures(record: RunRecord) -> dict[str, Any]:
    left, ladder = record.clean_accuracy.value * record.n, []
    for attack in record.attacks:
        left -= attack.broken
        ladder.append({"rung": attack.name, "left": left / record.n, "seconds": attack.seconds})
    score = record.stochastic
    return {
        "clean": asdict(score.clean_single_shot if score else record.clean_accuracy),
        "ladder": ladder,
        "robust": asdict(record.robust_accuracy),
        "majority": asdict(score.majority) if score else None,
        "single_shot": asdict(score.single_shot) if score else None,
        "worst_of_n": asdict(score.worst_of_n) if score else None,
        "clean_worst_of_n": asdict(score.clean_worst_of_n) if score else None,
        "protocols": {name: asdict(value) for name, value in score.protocols.items()} if score else {},
        "queries": (record.forwards + record.backwards) / record.n,
        "seconds": record.seconds,
        "flags": list(record.flags),
    }


def markdown(held: dict[str, Any]) -> str:
    """Four tables: scores, the ladder, protocols, and the literature."""
    done = [row for row in held["rows"] if "ladder" in row]
    told = f"**{held['title']}** ({held['data']}, {held['threat']}). {held['description']}"
    parts = [told, _scores(held["rows"]), "Left standing after each rung, %:", _ladder(done)]
    random = [row for row in done if row["protocols"]]
    if random:
        parts += ["The same final images by each published protocol:", _protocols(random)]
    if held["published"]:
        header = ("published", "claimed, %", "later found, %", "source")
        rows = [(one["name"], one["claimed"], one["corrected"] or "-", one["source"]) for one in held["published"]]
        parts.append("From the literature (CIFAR-10, not comparable with the figures above):")
        parts.append(tables.markdown_table(header, rows))
    return "\n\n".join(parts)


def _scores(rows: Sequence[dict[str, Any]]) -> str:
    header = ("purifier", "before", "n", "evaluations", "clean", "robust when judged", "majority of fresh draws",
              "one pass", "worst of 10", "worst of 10, clean", "minutes")  # fmt: skip
    lines = []
    for row in rows:
        cells = [row["name"], row["classifier"], str(row["n"]), str(row["evaluations"])]
        if "ladder" in row:
            keys = ("clean", "robust", "majority", "single_shot", "worst_of_n", "clean_worst_of_n")
            cells += [_cell(row[key]) for key in keys] + [f"{row['seconds'] / 60:.0f}"]
        else:
            cells += ["not run yet"] + [""] * 6
        lines.append(cells)
    return tables.markdown_table(header, lines)


def _cell(figure: dict[str, float] | None) -> str:
    return "-" if figure is None else tables.interval_cell(figure)


def _ladder(rows: Sequence[dict[str, Any]]) -> str:
    rungs = list(dict.fromkeys(step["rung"] for row in rows for step in row["ladder"]))
    lines = []
    for row in rows:
        left = {step["rung"]: f"{100 * step['left']:.1f}" for step in row["ladder"]}
        lines.append([f"{row['name']} before {row['classifier']}", *(left.get(rung, "-") for rung in rungs)])
    return tables.markdown_table(("purifier", *rungs), lines)


def _protocols(rows: Sequence[dict[str, Any]]) -> str:
    names = list(rows[0]["protocols"])
    lines = [
        [f"{row['name']} before {row['classifier']}", *(_cell(row["protocols"].get(name)) for name in names)]
        for row in rows
    ]
    return tables.markdown_table(("purifier", *names), lines)


def csv_table(held: dict[str, Any]) -> str:
    """A line a row and rung, in fractions of 1."""
    header = ("purifier", "classifier", "n", "rung", "left", "seconds")
    rows = [
        (row["purifier"], row["classifier"], row["n"], step["rung"], step["left"], step["seconds"])
        for row in held["rows"]
        for step in row.get("ladder", ())
    ]
    return tables.csv_table(header, rows)


def plot(held: dict[str, Any], path: Path) -> None:
    """What is left standing after each rung, a line a row."""
    from matplotlib.figure import Figure  # of the extra "report"

    rows = [row for row in held["rows"] if "ladder" in row]
    rungs = list(dict.fromkeys(step["rung"] for row in rows for step in row["ladder"]))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        left = {"clean": row["clean"]["value"]} | {step["rung"]: step["left"] for step in row["ladder"]}
        places = [k for k, rung in enumerate(["clean", *rungs]) if rung in left]
        shown = [100 * left[rung] for rung in ["clean", *rungs] if rung in left]
        axes.plot(places, shown, "os^D"[place // 10 % 4] + "-", label=f"{row['name']} before {row['classifier']}")
    axes.set_xticks(range(len(rungs) + 1), ["clean", *rungs], rotation=30, ha="right")
    axes.set(ylabel="left standing, %", ylim=(0, 100))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def write(held: dict[str, Any], found: Sequence[tuple[Row, RunRecord]], out: Path) -> None:
    """OUT/purification.json, .md, .csv, and .png where matplotlib is there."""
    durable.write_json(out / "purification.json", held)
    durable.replace(out / "purification.md", (markdown(held) + "\n").encode())
    durable.replace(out / "purification.csv", csv_table(held).encode())
    if find_spec("matplotlib") is not None and found:
        plot(held, out / "purification.png")


_RULES: dict[str, Rule] = {
    "rows.name": TEXT,
    "rows.classifier": TEXT,
    "rows.purifier": TEXT,
    "rows.n": WHOLE,
}
