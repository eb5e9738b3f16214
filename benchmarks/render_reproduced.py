"""The blocks of tables that `robustgen reproduce` made, each shown by the experiment's own Markdown."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from robustgen.benchmarks.reproduced import RENDERED_BY, stored_name
from robustgen.benchmarks.tables import RESULTS, load_result, source

__all__ = ["reproduced_blocks"]


def reproduced_blocks() -> dict[str, Callable[[], str]]:
    """Block name -> maker, for the tables whose results are stored: `reproduced_wang2023_amount` and the like."""
    stored = [table for table in RENDERED_BY if (RESULTS / f"{stored_name(table)}.json").is_file()]
    return {stored_name(table).replace("-", "_"): _maker(table) for table in stored}


def _maker(table: str) -> Callable[[], str]:
    def made() -> str:
        result = load_result(stored_name(table))
        shown: str = import_module(RENDERED_BY[table]).markdown(result["held"])
        return f"{shown}\n\n{source(result)}"

    return made
