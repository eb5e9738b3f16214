"""Pages of the site that nobody writes by hand: command line, modules, files that a run leaves, stored results.

They are made when the site is built, so that they cannot fall behind the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from robustgen.benchmarks.tables import RESULTS, markdown_table

__all__ = [
    "HOMES",
    "api_pages",
    "command_line",
    "linked_files",
    "modules_of",
    "public_modules",
    "schemas",
    "site_links",
    "site_place",
    "stored_results",
]

ROOT = Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "robustgen" / "schemas"

_COMMANDS = """# Command line

`robustgen COMMAND --help` prints the same. Exit codes: 0 done, 1 the run failed or a check found something wrong, 2 the
request makes no sense, 130 interrupted. `robustgen --install-completion` completes commands in the shell.
"""
_FILES = """# Files of a run

Made from the JSON Schemas that come with the package and that the tests hold every file to. What the files are for:
[what a run leaves](../records.md), [what a certification leaves](../certification.md#what-a-certification-leaves).
"""
_RESULTS = """# Stored results

Every table of figures in these pages is rendered from one of these files by `python -m robustgen.benchmarks.render`.
"""

# Page of the API -> title, and what stands there: packages, or modules of robustgen/ itself. Every module that offers
# names has one home here, which a test checks; the command line and the scripts of benchmarks/ have pages of their own.
HOMES: dict[str, tuple[str, tuple[str, ...]]] = {
    "python": ("From Python", ("api", "compat", "spec", "example", "record", "errors")),
    "models": (
        "Classifiers",
        ("classifier", "classifiers", "cards", "nets", "published_nets", "ablation", "precision", "weights",
         "robustbench_zoo", "remote", "surrogates", "defended", "decoys", "usercode"),
    ),
    "data": ("Data", ("dataset", "data", "files", "corruptions", "suites", "adversarials", "interchange")),
    "threats": ("Threat models and goals", ("threat", "patch_threat", "eps", "goals", "class_images", "targets")),
    "attacks": ("Attacks and plans", ("attacks", "registry", "own_plans", "stages", "all_targets")),
    "engine": (
        "Engine and judge",
        ("engine", "oracle", "judge", "rng", "evaluation", "jobs", "prepare", "request", "inspection", "health",
         "flags", "ranks", "environment", "memory", "progress", "journal", "durable", "witnesses"),
    ),
    "results": (
        "What runs say",
        ("runs", "statistics", "distances", "queries", "scoring", "detection", "compare", "transfer", "verify",
         "verification", "verify_remote", "verify_targets", "report", "tables", "plot", "plot_distances",
         "plot_queries", "plot_targets", "plot_transfer", "catalog", "doctor", "fields", "scaffold", "forge",
         "forge_report"),
    ),
    "purify": ("Purification", ("purify", "purify_files")),
    "certify": ("Certification", ("certify",)),
    "generator": ("Generators", ("generator",)),
    "training": ("Training and tables of papers", ("training", "reproduce")),
    "patches": ("Patches", ("patch", "detectors")),
    "service": ("Service", ("service",)),
    "leaderboard": ("Leaderboard", ("leaderboard",)),
}  # fmt: skip


@cache
def public_modules() -> dict[str, Path]:
    """Dotted name -> file of every module that offers names by `__all__`, but the command line and benchmarks/."""
    found = {}
    folders = {"robustgen": ROOT / "robustgen"}
    folders |= {f"robustgen.{name}": ROOT / name for name in ("attacks", "leaderboard", "purify")}
    for package, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            if name != "robustgen" and not parts[-1].startswith(("cli", "__main__")) and _offers(path):
                found[name] = path
    return found


def _offers(path: Path) -> bool:
    """Whether a file sets `__all__` to a list with something in it; nothing is imported."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and target.id == "__all__":
            return bool(getattr(getattr(node, "value", None), "elts", ()))
    return False


def modules_of(page: str) -> list[str]:
    """Dotted names of the modules on a page of the API, in the order of `HOMES`."""
    held = public_modules()
    return [
        name
        for home in HOMES[page][1]
        for name in held
        if name == f"robustgen.{home}" or name.startswith(f"robustgen.{home}.")
    ]


def api_pages() -> dict[str, str]:
    """Path in the site -> Markdown, for mkdocstrings to fill in from the docstrings."""
    from robustgen import _LAZY

    pages = {}
    for page, (title, _) in HOMES.items():
        parts = [f"# {title}", ""]
        if page == "python":
            parts += ["These names can be imported from `robustgen` itself:", ""]
            parts += [f"- `robustgen.{name}` is [`{home}.{name}`][{home}.{name}]" for name, home in _LAZY.items()]
        parts += [f"\n::: {module}" for module in modules_of(page)]
        pages[f"reference/api/{page}.md"] = "\n".join(parts) + "\n"
    return pages


def command_line() -> str:
    """Every command with its help, examples, arguments and options, from the application itself."""
    import typer

    from robustgen.cli import app

    parts = [_COMMANDS]
    for name, command in _commands("robustgen", typer.main.get_command(app)):
        text, examples = _help(command)
        parts += [f"{'#' * len(name.split())} {name}", "", text, ""]
        if examples:
            parts += ["```sh", *examples, "```", ""]
        rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
        if rows:
            parts += [markdown_table(("", "default", "meaning"), rows), ""]
    return "\n".join(parts)


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """The commands below one, in the order in which help lists them; click's own types differ between versions."""
    for short, child in getattr(command, "commands", {}).items():
        yield f"{name} {short}", child
        yield from _commands(f"{name} {short}", child)


def _help(command: Any) -> tuple[str, list[str]]:
    """Help without its examples, safe as Markdown; the examples, one command a line."""
    text, _, shown = inspect.cleandoc(command.help or "").partition("\nExample")
    return _plain(text.strip()), [line.strip() for line in shown.splitlines()[1:] if line.strip()]


def _parameter(parameter: Any) -> tuple[str, str, str]:
    """Name as it is typed, default, meaning."""
    option = parameter.param_type_name == "option"
    name = ", ".join((*parameter.opts, *parameter.secondary_opts)) if option else parameter.name.upper()
    default = parameter.default
    shown = "" if default is None or callable(default) or isinstance(default, bool) else str(default)
    if parameter.required:
        shown = "needed"
    return f"`{name}`", _plain(shown), _plain(getattr(parameter, "help", None) or "")


def _plain(text: str) -> str:
    """Text in which <...> stays what it is."""
    return text.replace("<", "&lt;").replace(">", "&gt;")


def schemas() -> str:
    """The files that runs leave, field by field, from their JSON Schemas."""
    parts = [_FILES]
    for path in sorted(SCHEMAS.glob("*.schema.json")):
        schema = json.loads(path.read_text(encoding="utf-8"))
        name = path.name.removesuffix(".schema.json")
        parts += [f"## {name}", "", f"{schema['title']}: {_plain(schema.get('description', ''))}", ""]
        parts += [f"[{path.name}](../files/robustgen/schemas/{path.name})", ""]
        needed = set(schema.get("required", ()))
        rows = [
            (f"`{field}`", _type(rule), "yes" if field in needed else "no", _plain(rule.get("description", "")))
            for field, rule in schema.get("properties", {}).items()
        ]
        if rows:
            parts += [markdown_table(("field", "type", "always there", "meaning"), rows), ""]
    return "\n".join(parts)


def _type(rule: Mapping[str, Any]) -> str:
    """The type of a field as a reader says it."""
    if "const" in rule:
        return f"always {rule['const']}"
    if "$ref" in rule:
        return str(rule["$ref"]).rpartition("/")[2]
    given = rule.get("type")
    if given is None and (choices := rule.get("anyOf") or rule.get("oneOf")):
        return " or ".join(_type(choice) for choice in choices)
    return " or ".join(given) if isinstance(given, list) else str(given or "any")


def stored_results() -> str:
    """What was measured, by which command, when and where; every table of README and docs is made from one of these."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result.get("environment", {})
        command = f"`{result['command']}`" if "command" in result else "not kept"
        rows.append((
            f"[{path.stem}](../files/benchmarks/results/{path.name})", command, result.get("date", "not kept"),
            machine.get("processor", "not kept"),
        ))  # fmt: skip
    return f"{_RESULTS}\n{markdown_table(('result', 'command', 'date', 'processor'), rows)}\n"


_LINK = re.compile(r"(\]\()(?!https?://|mailto:|#)([^)#\s]+)((?:#[^)\s]*)?\))")
_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def site_place(path: str) -> str:
    """Where a file of the repository stands in the site.

    Args:
        path: relative to the root of the repository, with /.

    Returns:
        The path in the site, with #anchor where it is a part of a page. Files that are no page stand below files/.
    """
    if path in _PAGES:
        return _PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "benchmarks/results":
        return "reference/results.md"
    module = "robustgen." + path.removesuffix(".py").replace("/", ".").removeprefix("robustgen.")
    for page in HOMES if path.endswith(".py") else ():
        if module in modules_of(page):
            return f"reference/api/{page}.md#{module}"
    return f"files/{path}" if posixpath.splitext(path)[1] else f"files/{path}.txt"


def site_links(text: str, source: str) -> str:
    """The Markdown of a document with its relative links as they are in the site.

    Args:
        text: the document.
        source: its path, relative to the root of the repository, with /.
    """
    here = posixpath.dirname(site_place(source))

    def there(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / path).exists():
            return match[0]  # mkdocs says that it leads nowhere, and on which page
        place, _, anchor = site_place(path).partition("#")
        tail = f"#{anchor})" if anchor else match[3]
        return f"{match[1]}{posixpath.relpath(place, here or '.')}{tail}"

    fenced = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if k % 2 else _LINK.sub(there, part) for k, part in enumerate(fenced))


def linked_files() -> list[str]:
    """Files of the repository that are no pages and that the site carries along, relative to its root."""
    folders = [*sorted(SCHEMAS.glob("*.json")), *sorted(RESULTS.glob("*.json"))]
    return ["LICENSE", "robustgen/zoo/data/NOTICE-fashion-mnist.txt", *(str(p.relative_to(ROOT)) for p in folders)]
