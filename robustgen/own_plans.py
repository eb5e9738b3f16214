"""A plan from a file, and the copy of it that a run keeps, so that the run can go on when the file is another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from robustgen import durable
from robustgen.attacks.plan_files import PLAN_FILE, read_plan, stored_plan
from robustgen.journal import saved_spec

if TYPE_CHECKING:
    from robustgen.attacks.plans import Plan
    from robustgen.request import Request

__all__ = ["keep_plan", "with_stored_plan"]


def with_stored_plan(request: Request, out: Path | None) -> tuple[Request, list[str]]:
    """The request with its plan read, and notes: from the copy in the run folder where that run goes on.

    The copy counts where the file is gone, and where it was changed before the run was finished. A finished run is not
    the changed plan's, and is refused for it as any other run would be.

    Raises:
        SpecError: no such file, or no plan in it.
    """
    if not isinstance(request.plan, str) or not request.plan.endswith(".toml") or request.attacks is not None:
        return request, []
    path = Path(request.plan)
    held = None if out is None else _held(out)
    if held is None or out is None:
        return replace(request, plan=read_plan(path)), []
    if not path.is_file():
        told = f"{path} is gone; the copy in {out / PLAN_FILE} is used."
    elif path.read_bytes() == held.source or (out / "record.json").is_file():
        return replace(request, plan=read_plan(path)), []
    else:
        told = f"{path} was changed since this run began; the copy in {out / PLAN_FILE} is used."
    return replace(request, plan=held), [told]


def _held(out: Path) -> Plan | None:
    """The plan of the run that lies there, if it is one from a file."""
    spec = saved_spec(out)
    if spec is None or not spec.plan_sha256 or not (out / PLAN_FILE).is_file():
        return None
    held = stored_plan(out, spec.plan)
    return held if held.sha256 == spec.plan_sha256 else None


def keep_plan(folder: Path, plan: Plan) -> None:
    """Put the copy into a run folder, once."""
    if plan.source is not None and not (folder / PLAN_FILE).is_file():
        with durable.disk_errors(folder):
            durable.replace(folder / PLAN_FILE, plan.source)
