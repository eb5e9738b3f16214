"""`robustgen new`: the one file and the one test of an attack, a purifier or a classifier, ready to run."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from robustgen.durable import disk_errors, replace
from robustgen.errors import SpecError, unknown_name

__all__ = ["KINDS", "Written", "write_new"]

KINDS = {"attack": "attacks", "purifier": "purify", "classifier": None}
"""What can be made -> the folder of this repository in which it lives; None for what lives with its user."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, and what to type next, one command or sentence a line."""

    paths: tuple[Path, ...]
    advice: tuple[str, ...]


def write_new(kind: str, name: str, folder: Path) -> Written:
    """Write the files; none of them may be there yet.

    In a checkout of robustgen an attack or a purifier becomes one file in its folder and one in tests/. Anywhere else
    it becomes a package of one module with an entry point, in a folder of its own. A classifier becomes a file for
    `python:FILE.py:make` and its test.

    Args:
        kind: a key of `KINDS`.
        name: small letters, digits and -, as it will be typed on the command line.
        folder: the root of the checkout, or where to write.

    Raises:
        SpecError: a kind or name that will not do, or a file that is there already.
    """
    if kind not in KINDS:
        raise unknown_name("kind", kind, KINDS)
    _check_name(kind, name)
    module = name.replace("-", "_")
    words = {"name": name, "kind": kind, "Class": "".join(part.capitalize() for part in name.split("-"))}
    home = KINDS[kind]
    if home is None:
        texts = {folder / f"{module}.py": kind, folder / f"test_{module}.py": f"test_{kind}"}
        words |= {"module": module, "file": f"{module}.py"}
        where = folder / f"{module}.py"
        advice = [f"robustgen eval python:{where}:make --attacks pgd -n 100", f"pytest {folder / f'test_{module}.py'}"]
    elif _is_checkout(folder):
        texts = {folder / home / f"{module}.py": kind, folder / "tests" / f"test_{module}.py": f"test_{kind}"}
        words["module"] = f"robustgen.{home}.{module}"
        advice = [f"pytest {folder / 'tests' / f'test_{module}.py'}", *_for_contract(kind, name)]
    else:
        root, module = folder / f"robustgen-{name}", f"robustgen_{module}"
        texts = {
            root / "pyproject.toml": "pyproject", root / f"{module}.py": kind,
            root / f"test_{module}.py": f"test_{kind}",
        }  # fmt: skip
        words["module"] = module
        use = f"--attacks {name}" if kind == "attack" else f"--purify {name}"
        advice = [f"pip install -e {root}", f"robustgen eval {use} -n 100", f"pytest {root}"]
    for path in texts:
        if path.exists():
            raise SpecError(f"{path} is there already; choose another name, or remove it.")
    for path, template in texts.items():
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            replace(path, _filled(template, words, checkout=home is not None and _is_checkout(folder)).encode())
    return Written(tuple(texts), tuple(advice))


def _check_name(kind: str, name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name.replace("-", "_")):
        raise SpecError(f"'{name}' must be small letters, digits and -, beginning with a letter, such as my-{kind}.")
    if KINDS[kind] is None:
        return
    from robustgen.purify.base import PURIFIERS
    from robustgen.registry import ATTACKS

    if name in (ATTACKS if kind == "attack" else PURIFIERS):
        raise SpecError(f"{kind} '{name}' is there already; see `robustgen show {name}`, and choose another name.")


def _is_checkout(folder: Path) -> bool:
    """Whether it is the root of this repository."""
    return all((folder / name).is_dir() for name in ("robustgen", "attacks", "purify", "tests"))


def _for_contract(kind: str, name: str) -> list[str]:
    if kind != "attack":
        return []
    return [f'add to INSTANCES in tests/test_attacks.py:  "{name}": ("{name}:steps=10", ("linf", "l2", "l1")),']


def _filled(template: str, words: dict[str, str], *, checkout: bool) -> str:
    """A template with its words; in the checkout robustgen is sorted as the package of the project itself."""
    text = Template((files("robustgen") / "templates" / f"{template}.txt").read_text(encoding="utf-8")).substitute(
        words
    )
    return _own_package_last(text) if checkout else text


def _own_package_last(text: str) -> str:
    """The imports of robustgen below those of others, after a blank line, as isort has those of one's own package."""
    lines = text.splitlines()
    heads = [k for k, line in enumerate(lines) if re.match(r"(import|from) (?!__future__)", line)]
    block = range(heads[0], heads[-1] + 1)
    groups: tuple[list[str], ...] = ([], [], [])
    for k in block:
        if lines[k]:
            groups[_rank(lines[k])].append(lines[k])
    own = sorted(groups[2], key=lambda line: (line.startswith("from"), line.split()[1]))
    kept = [group for group in (groups[0], groups[1], own) if group]
    joined = [line for k, group in enumerate(kept) for line in (*([""] if k else []), *group)]
    return "\n".join([*lines[: heads[0]], *joined, *lines[heads[-1] + 1 :]]) + "\n"


def _rank(line: str) -> int:
    package = line.split()[1].partition(".")[0]
    return 2 if package == "robustgen" else 1 if package in ("torch", "pytest") else 0
