"""`robustgen doctor`: what is installed, found and in the way."""

from __future__ import annotations

import json
import textwrap

import typer

from robustgen.cli_options import DataDir, Json, app

__all__: list[str] = []


@app.command("doctor")
def doctor_command(data_dir: DataDir = None, json_: Json = False) -> None:
    """Look at versions, device, precision, memory, data, weights and conflicts; exit code 1 when something is wrong.

    Examples -

      robustgen doctor

      robustgen doctor --json --data-dir ~/data
    """
    from dataclasses import asdict

    from robustgen.doctor import examine
    from robustgen.environment import tune_process

    tune_process()
    findings = examine(data_dir)
    wrong = sum(finding.level == "wrong" for finding in findings)
    if json_:
        print(json.dumps({"ok": not wrong, "findings": [asdict(finding) for finding in findings]}))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.level:<5}  {finding.name:<{width}}  {finding.value}")
            if finding.advice and finding.level != "ok":
                print(textwrap.indent(finding.advice, " " * (width + 9)))
        print(f"{wrong} of {len(findings)} wrong." if wrong else "nothing is wrong.")
    if wrong:
        raise typer.Exit(1)
