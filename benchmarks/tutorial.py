"""Run docs/tutorial.md as a reader would, and keep what it printed: `python -m robustgen.benchmarks.tutorial`.

Its blocks fenced as sh are typed in a temporary folder, one command after the other. What a block printed is kept under
the name of the results block that follows it, from which the page is rendered.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustgen.benchmarks.tables import RESULTS, load_result, source

__all__ = ["PAGE", "Step", "steps", "tutorial_blocks"]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "tutorial.md"
_STEP = re.compile(r"^```sh\n(.*?)^```$(?:\n+<!-- results: (tutorial_\w+) -->)?", flags=re.MULTILINE | re.DOTALL)
_PICTURES = {"first/examples.png": "tutorial-examples.png"}


@dataclass(frozen=True, slots=True)
class Step:
    """Commands that stand together, as words, and the name of what they print; None where nothing is kept."""

    name: str | None
    commands: tuple[tuple[str, ...], ...]


def steps(text: str) -> list[Step]:
    """The commands of a page; blocks with any other than `robustgen`, such as the installation, are left out.

    Args:
        text: the page.
    """
    found = []
    for block, name in _STEP.findall(text):
        lines = [shlex.split(line) for line in block.splitlines()]
        if all(words[0] == "robustgen" for words in lines):
            found.append(Step(name or None, tuple(map(tuple, lines))))
    return found


def tutorial_blocks() -> dict[str, Callable[[], str]]:
    """Block name -> maker, for what is stored."""
    if not (RESULTS / "tutorial.json").is_file():
        return {}
    result = load_result("tutorial")
    return {"tutorial_source": lambda: source(result)} | {name: _maker(step) for name, step in result["steps"].items()}


def _maker(step: dict[str, Any]) -> Callable[[], str]:
    return lambda: f"```text\n{step['printed'].rstrip()}\n```"


def _type(words: tuple[str, ...], folder: Path) -> tuple[str, float]:
    """What a command prints on stdout, and its seconds with the start of Python."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 -- our page
    if done.returncode:
        raise SystemExit(f"{shlex.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout, time.perf_counter() - begun


def main() -> None:
    """Type everything, store what was printed and the picture."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    from robustgen.benchmarks.harness import store

    kept: dict[str, Any] = {}
    os.environ["COLUMNS"] = "110"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step in steps(PAGE.read_text(encoding="utf-8")):
            printed, seconds = [], 0.0
            for words in step.commands:
                said, took = _type(words, folder)
                several = len(step.commands) > 1
                printed.append(f"$ {shlex.join(words)}\n{said.rstrip()}\n" if several else said)
                seconds += took
                print(f"{took:5.1f} s  {shlex.join(words)}")
            if step.name is not None:
                kept[step.name] = {"printed": "\n".join(printed), "seconds": round(seconds, 1)}
        for made, picture in _PICTURES.items():
            shutil.copy(folder / made, PAGE.parent / picture)
    print(store("tutorial", {"what": "Each command in a Python of its own, its start included.", "steps": kept}))


if __name__ == "__main__":
    main()
