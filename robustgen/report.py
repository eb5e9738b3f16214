"""A record as people read it: a rich table on a terminal, plain text in a pipe. Nothing here computes a figure."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from robustgen.health import FLAGS
from robustgen.record import RunRecord
from robustgen.statistics import Estimate

__all__ = ["print_record", "record_lines"]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.2f} %  [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def _headline(record: RunRecord) -> list[tuple[str, str]]:
    spec = record.spec
    return [
        ("classifier", f"{spec['classifier']}  (weights {spec['weights_sha256'][:12]})"),
        ("data", f"{spec['data']}, {record.n} examples"),
        ("threat", spec["threat"]),
        ("clean accuracy", _percent(record.clean_accuracy)),
        ("robust accuracy", _percent(record.robust_accuracy)),
    ]


def _attack_rows(record: RunRecord) -> list[tuple[str, ...]]:
    """Name, how many it broke, forwards and backwards per example of the whole run, seconds."""
    return [
        (a.name, str(a.broken), f"{a.forwards / record.n:.1f}", f"{a.backwards / record.n:.1f}", f"{a.seconds:.1f}")
        for a in record.attacks
    ]


_COLUMNS = ("attack", "broke", "forwards/example", "backwards/example", "seconds")


def _footer(record: RunRecord) -> list[str]:
    lines = [
        f"{record.spec['protocol']}",
        f"searched in {record.spec['precision']}, judged in float32, seed {record.spec['seed']}",
    ]
    lines += [
        f"FLAG {flag}: {FLAGS[flag].raised_if}; {FLAGS[flag].what_to_do}" for flag in record.flags if flag in FLAGS
    ]
    lines += [f"note: {note}" for note in record.notes]
    return [*lines, f"record: {record.run}"]


def record_lines(record: RunRecord) -> list[str]:
    """Plain text, aligned with spaces."""
    lines = [f"{name:<16} {value}" for name, value in _headline(record)]
    total = ("all", str(sum(a.broken for a in record.attacks)), *_totals(record))
    table = [_COLUMNS, *_attack_rows(record), total]
    widths = [max(len(row[k]) for row in table) for k in range(len(_COLUMNS))]
    lines.append("")
    for row in table:
        cells = [
            cell.ljust(w) if k == 0 else cell.rjust(w) for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells))
    return [*lines, "", *_footer(record)]


def _totals(record: RunRecord) -> tuple[str, str, str]:
    n = record.n
    return f"{record.forwards / n:.1f}", f"{record.backwards / n:.1f}", f"{record.seconds:.1f}"


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
    totals = ("all", str(sum(a.broken for a in record.attacks)), *_totals(record))
    for name, total in zip(_COLUMNS, totals, strict=True):
        table.add_column(name, total, justify="left" if name == "attack" else "right")
    for row in _attack_rows(record):
        table.add_row(*row)
    for part in (head, "", table, ""):
        console.print(part)
    for line in _footer(record):
        style = "bold yellow" if line.startswith("FLAG") else "dim"
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _plain(text: str) -> str:
    """Square brackets of an interval are no markup."""
    return text.replace("[", r"\[")
