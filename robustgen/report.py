"""A record as people read it: a rich table on a terminal, plain text in a pipe. Nothing here computes a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from robustgen.distances import DistanceSummary
from robustgen.errors import SpecError
from robustgen.flags import FLAGS
from robustgen.queries import QuerySummary
from robustgen.record import RunRecord, StochasticScore
from robustgen.statistics import Estimate, examples_needed
from robustgen.tables import aligned

if TYPE_CHECKING:
    from robustgen.compare import Comparison
    from robustgen.transfer import TransferMatrix
    from robustgen.verification import Verification

__all__ = [
    "comparison_lines",
    "flag_meaning",
    "power_rows",
    "print_record",
    "record_lines",
    "stochastic_rows",
    "transfer_lines",
    "verification_lines",
]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} %  [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def flag_meaning(flag: str) -> str:
    """When it is raised and what to do, in one line; a flag of a newer version has only its name."""
    known = FLAGS.get(flag)
    return f"{known.raised_if}; {known.what_to_do}" if known else "see the record"


def _headline(record: RunRecord) -> list[tuple[str, str]]:
    spec = record.spec
    return [
        ("classifier", f"{spec['classifier']}  (weights {spec['weights_sha256'][:12]})"),
        ("data", f"{spec['data']}, {record.n} examples"),
        ("threat", spec["threat"]),
        *(
            [("attacked", ", ".join(s.rpartition(" ")[0] for s in spec["surrogates"]))]
            if spec.get("surrogates")
            else []
        ),
        ("clean accuracy", _percent(record.clean_accuracy)),
        *_targets(record),
        *_distances(record),
        *([("robust accuracy", _percent(record.robust_accuracy))] if record.nearest is None else []),
        *_queries(record),
        *_stochastic(record),
    ]


def _targets(record: RunRecord) -> list[tuple[str, str]]:
    """Of a run with a goal: how often the target was reached; towards all classes as a matrix where it fits."""
    found = record.targets
    if found is None:
        return []
    attacked, reached = (sum(map(sum, table)) for table in (found.attacked, found.reached))
    share = "nothing was attacked" if found.success is None else f"{_percent(found.success)} of {attacked}"
    told = [("goal", record.spec["goal"]), ("target reached", f"{share} ({reached} reached, {found.skipped} skipped)")]
    return told + [(f"  label {name}", row) for name, row in _matrix(record)]


def _matrix(record: RunRecord) -> list[tuple[str, str]]:
    """A row a label, with percentages for each class; only where a line holds them."""
    found = record.targets
    if found is None or record.spec["goal"] != "all" or len(found.attacked[0]) > _WIDEST:
        return []
    rows: list[tuple[str, str]] = [("to", "".join(f"{target:>5}" for target in range(len(found.attacked[0]))))]
    for row, label in enumerate(found.labels):
        rates = [found.rate(row, target) for target in range(len(found.attacked[row]))]
        rows.append((str(label), "".join("    -" if rate is None else f"{100 * rate:>5.0f}" for rate in rates)))
    return rows


def _distances(record: RunRecord) -> list[tuple[str, str]]:
    """Of a run without an eps: the nearest adversarial image of each example, and what each attack found."""
    if record.nearest is None:
        return []
    found, unit = record.nearest, " pixels" if record.spec["threat"] == "l0" else ""
    attacked = f"{found.attacked} attacked, {found.misclassified} misclassified already (distance 0)"
    told = [("attacked", attacked), ("nearest of all", _quartiles(found.distance, unit))]
    return told + [(f"  {name}", _quartiles(row, unit)) for name, row in (record.distances or {}).items()]


def _quartiles(row: DistanceSummary, unit: str) -> str:
    shown = ["inf" if d is None else f"{d:.4g}" for d in (row.median, row.q25, row.q75)]
    return f"median {shown[0]}{unit}  [quartiles {shown[1]}, {shown[2]}], found for {100 * row.success:.2f} %"


def _queries(record: RunRecord) -> list[tuple[str, str]]:
    """Of a run of attacks that see answers only: what each broke, and with how many queries."""
    if record.queries is None:
        return []
    head = ("queries", f"{record.queries.misclassified} misclassified already (0 queries, not counted below)")
    rows = record.queries.attacks
    return [head, *((f"  {a.name}", _budget(rows[a.name])) for a in record.attacks if a.name in rows)]


def _budget(row: QuerySummary) -> str:
    broke = f"broke {100 * row.success:.2f} % of {row.attacked} within {row.most}"
    return broke if row.median is None else f"{broke}; where it did, median {row.median}, mean {row.mean:.0f}"


def _stochastic(record: RunRecord) -> list[tuple[str, str]]:
    """The figures of a randomised classifier, each on the final images with fresh noise."""
    score = record.stochastic
    if score is None:
        return []
    return stochastic_rows(score)


def stochastic_rows(score: StochasticScore) -> list[tuple[str, str]]:
    """Each figure with what it is on clean images, then what published protocols make of the same images."""
    rows = (
        ("single shot", score.single_shot, score.clean_single_shot),
        (f"majority of {score.votes}", score.majority, score.clean_majority),
        (f"worst of {score.resubmissions}", score.worst_of_n, score.clean_worst_of_n),
    )
    told = [(f"  {name}", f"{_percent(ours)}  (clean images: {100 * clean.value:.2f})") for name, ours, clean in rows]
    return told + [(f"  as {name}", _percent(value)) for name, value in score.protocols.items()]


def _attack_table(record: RunRecord) -> list[tuple[str, ...]]:
    """Header, a row an attack and the totals; what an attack leaves when run alone only where that was measured.

    Dashes for one that nothing was left for, or too much to be worth it: it asked nothing and found nothing.
    """
    n, free = record.n, record.nearest is not None
    alone = not free and any(a.robust_accuracy is not None for a in record.attacks)
    table = [("attack", "nearest" if free else "broke", *(("robust alone",) if alone else ()), *_COSTS)]
    for a in record.attacks:
        own = ("-" if a.robust_accuracy is None else str(a.robust_accuracy),) if alone else ()
        costs = (f"{a.forwards / n:.1f}", f"{a.backwards / n:.1f}", f"{a.seconds:.1f}")
        ran = a.forwards > 0 or a.broken > 0
        table.append((a.name, *((str(a.broken), *own, *costs) if ran else "-" * (4 + len(own)))))
    totals = (f"{record.forwards / n:.1f}", f"{record.backwards / n:.1f}", f"{record.seconds:.1f}")
    own = (str(record.robust_accuracy),) if alone else ()
    return [*table, ("all", str(sum(a.broken for a in record.attacks)), *own, *totals)]


_WIDEST = 20  # classes that a line shows
_COSTS = ("forwards/example", "backwards/example", "seconds")


def _footer(record: RunRecord) -> list[str]:
    lines = [
        f"plan {record.spec['protocol'].partition(':')[0]}: every attack and parameter stands in record.json",
        f"searched in {record.spec['precision']}, judged in float32, seed {record.spec['seed']}",
    ]
    lines += [f"FLAG {flag}: {flag_meaning(flag)}" for flag in record.flags]
    lines += [f"note: {note}" for note in record.notes]
    return [*lines, f"record: {record.run}"]


def record_lines(record: RunRecord) -> list[str]:
    """Plain text, aligned with spaces."""
    lines = [f"{name:<16} {value}" for name, value in _headline(record)]
    return [*lines, "", *aligned(_attack_table(record)), "", *_footer(record)]


def verification_lines(found: Verification) -> list[str]:
    """What was checked, then what is wrong."""
    lines = [f"checked  {line}" for line in found.checked]
    lines += [f"WRONG    {line}" for line in found.wrong]
    if found.doubtful:
        shown = ", ".join(map(str, found.doubtful[:5]))
        lines.append(f"note     {found.doubt}: {len(found.doubtful)} examples ({shown})")
    lines += [f"NOT CHECKED  {line}" for line in found.unchecked]
    holds = "what could be checked holds" if found.unchecked else f"every figure follows from its {found.evidence}"
    verdict = holds if found.holds else f"{len(found.wrong)} contradictions"
    return [*lines, f"{found.run}: {verdict}"]


def comparison_lines(found: Comparison) -> list[str]:
    """A table, best first, and who changed side against the best."""
    table = [("run", "classifier", "plan", "clean", "robust", "only here", "only best", "p")]
    for row in found.rows:
        best = row is found.rows[0]
        test = ("", "", "best") if best else (str(len(row.only_here)), str(len(row.only_best)), _p_value(row.p_value))
        names = (row.run.rpartition("/")[2], row.classifier, row.plan)
        table.append((*names, str(row.clean), str(row.robust), *test))
    ties = [row.run.rpartition("/")[2] for row in found.rows[1:] if row.tie]
    tied = f"tied with the best at the 5 % level: {', '.join(ties) or 'none'} (exact McNemar test, Holm's correction)"
    lines = [f"{found.data}, {found.n} examples, {found.threat}", "", *aligned(table, left=3), "", tied]
    for row in found.rows[1:]:
        for ids, where in ((row.only_here, "here"), (row.only_best, "in the best")):
            shown = ", ".join(map(str, ids[:12])) + (", ..." if len(ids) > 12 else "")
            lines.append(f"{row.run.rpartition('/')[2]}: robust only {where}: {shown or 'none'}")
    return lines


def transfer_lines(found: TransferMatrix) -> list[str]:
    """A line a surrogate, a column a target: share broken of what the target classifies right."""
    table = [("attacked", *found.names)]
    for row in found.rows:
        cells = [found.at(row, name) for name in found.names]
        table.append((row, *("-" if c is None or c.success is None else str(c.success) for c in cells)))
    right = [next(c.attacked for c in found.cells if c.target == name) for name in found.names]
    table.append(("classified right", *(f"{k} of {found.n}" for k in right)))
    flagged = [f"{name}: {flag}: {flag_meaning(flag)}" for name, flags in found.flags.items() for flag in flags]
    head = f"{found.data}, {found.n} examples, {found.threat}; share broken of what the target classifies right"
    return [head, "", *aligned(table), "", *(flagged or ["flags: none"]), found.protocol]


def _p_value(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def power_rows(difference: float, power: float) -> list[tuple[float, int]]:
    """(share of examples on which two classifiers differ, examples needed) for a difference in points."""
    if not 0 < difference < 100:
        raise SpecError(f"--difference is in points, above 0 and below 100, got {difference:g}.")
    share = difference / 100
    shares = sorted({share, *(s for s in (0.02, 0.05, 0.1, 0.2, 0.4) if s > share)})
    return [(s, examples_needed(share, s, power=power)) for s in shares]


def print_record(record: RunRecord, console: Console) -> None:
    """The record on a terminal, or plain lines where the output is no terminal."""
    if not console.is_terminal:
        for line in record_lines(record):
            print(line)
        return
    head = Table.grid(padding=(0, 2))
    for name, value in _headline(record):
        style = "bold green" if name == "robust accuracy" else ""
        head.add_row(f"[dim]{name}[/dim]", f"[{style}]{_plain(value)}[/]" if style else _plain(value))
    table = Table(show_edge=False, pad_edge=False, header_style="dim", show_footer=True)
    header, *rows, totals = _attack_table(record)
    for name, total in zip(header, totals, strict=True):
        table.add_column(name, _plain(total), justify="left" if name == "attack" else "right")
    for row in rows:
        table.add_row(*map(_plain, row))
    for part in (head, "", table, ""):
        console.print(part)
    for line in _footer(record):
        style = "bold yellow" if line.startswith("FLAG") else "dim"
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Square brackets of an interval are no markup."""
    return text.replace("[", r"\[")
