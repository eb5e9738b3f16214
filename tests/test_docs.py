"""README and docs/: links lead somewhere, no figure stands in prose, and the site's reference is complete."""

from __future__ import annotations

import posixpath
import re
from itertools import pairwise
from pathlib import Path

import pytest
import typer

from robustgen.benchmarks.reference import (
    HOMES,
    api_pages,
    command_line,
    linked_files,
    modules_of,
    public_modules,
    schemas,
    site_links,
    site_place,
    stored_results,
)
from robustgen.benchmarks.render import DOCUMENTS
from robustgen.benchmarks.site import foreign
from robustgen.benchmarks.tutorial import PAGE, steps
from robustgen.cli import _run, app
from tests.helpers import ROOT

PAGES = [*DOCUMENTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
BLOCK = re.compile(r"<!-- results: \w+ -->.*?<!-- end -->", flags=re.DOTALL)
FENCE = re.compile(r"^```.*?^```$", flags=re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`[^`\n]*`")

# A number with a unit in prose is taken for a measured figure. Those below are none: levels, settings, arithmetic.
_UNITS = r"%|×|[KMG]iB|[kMG]B", r"images/s|times as|times faster|seconds|minutes|hours|points"
FIGURE = re.compile(rf"(?<![\w.])\d[\d,.]*(?:\s?(?:{_UNITS[0]})|\s(?:{_UNITS[1]}))")
LEVELS = {"95 %", "5 %"}
NO_FIGURES = {
    "corruptions.md": {"1 %"},
    "leaderboard.md": {"1 GB", "2 %"},
    "patches.md": {"100 %", "12 %", "1 MB"},
    "plans.md": {"70 %", "35 %", "20 %", "40 %", "2 %"},
    "purification.md": {"99 %", "2 GiB"},
    "service.md": {"8 MiB"},
}


def slug(heading: str) -> str:
    """The anchor of a heading, as mkdocs and git hosts make it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())


def anchors(path: Path) -> set[str]:
    """The anchors of a page."""
    return {
        slug(line) for line in re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link points at a file of the repository, and at a heading of it where it names one."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for target, anchor in re.findall(r"\]\((?!https?://|mailto:)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda path: path.name)
def test_no_figure_in_prose(page: Path) -> None:
    """Outside of rendered blocks no number with a unit stands that could be a result."""
    text = CODE.sub("", FENCE.sub("", BLOCK.sub("", page.read_text(encoding="utf-8"))))
    assert set(FIGURE.findall(text)) - LEVELS == NO_FIGURES.get(page.name, set())


def test_every_public_module_has_one_page() -> None:
    """Nothing that offers names is missing from the reference, and nothing stands there twice."""
    placed = [module for page in HOMES for module in modules_of(page)]
    assert sorted(public_modules()) == sorted(placed), "give a new module a home in HOMES of benchmarks/reference.py"
    pages = "".join(api_pages().values())
    assert all(f"::: {module}\n" in pages for module in placed)


def test_every_command_and_option_is_in_the_reference() -> None:
    """The page has a heading for each command and a line for each of its options; < and > are no tags."""
    page = command_line()
    found = 0

    def look(name: str, command: object) -> None:
        nonlocal found
        for short, child in getattr(command, "commands", {}).items():
            part = re.search(rf"^#+ {name} {short}\n(.*?)(?=^#+ |\Z)", page, flags=re.DOTALL | re.MULTILINE)
            assert part is not None, f"{name} {short}"
            for parameter in child.params:
                if parameter.param_type_name == "option" and parameter.name != "help":
                    assert f"`{', '.join((*parameter.opts, *parameter.secondary_opts))}`" in part[1]
                    found += 1
            look(f"{name} {short}", child)

    look("robustgen", typer.main.get_command(app))
    assert found > 100
    assert "<data>" not in FENCE.sub("", page)


def test_reference_of_files_and_results() -> None:
    """Each field of each schema, and each stored result with the command that made it."""
    page = schemas()
    assert "| `weights_sha256` | string | yes | Hash of its weights. |" in page
    assert page.count("\n## ") == len(list((ROOT / "robustgen" / "schemas").glob("*.json")))
    table = stored_results()
    assert "`python -m robustgen.benchmarks.ranks`" in table
    assert all((ROOT / name).is_file() for name in linked_files())


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "docs/plans.md#rapid-and-strong", "plans.md#rapid-and-strong"),
        ("README.md", "LICENSE", "files/LICENSE.txt"),
        ("README.md", "benchmarks/results", "reference/results.md"),
        ("CONTRIBUTING.md", "attacks/pgd.py", "reference/api/attacks.md#robustgen.attacks.pgd"),
        ("docs/records.md", "../robustgen/schemas/spec.schema.json", "files/robustgen/schemas/spec.schema.json"),
        ("docs/how-to/attack.md", "../../CONTRIBUTING.md#add-an-attack", "../contributing.md#add-an-attack"),
        ("docs/how-to/attack.md", "../plans.md", "../plans.md"),
        ("docs/plans.md", "no-such-page.md", "no-such-page.md"),
    ],
)
def test_links_of_the_site(source: str, link: str, expected: str) -> None:
    """A link between files of the repository leads to the same thing in the site; code is left alone."""
    assert site_links(f"see [this]({link})", source) == f"see [this]({expected})"
    assert site_links(f"```\n[this]({link})\n```", source) == f"```\n[this]({link})\n```"
    assert posixpath.dirname(site_place(source)) in ("", "how-to")


def test_what_a_page_fetches_from_elsewhere_is_found(tmp_path: Path) -> None:
    """Scripts, pictures, fonts and style sheets of other places are named; links and own files are not."""
    clean = '<a href="https://example.org">x</a><script src="a.js"></script><link rel="stylesheet" href="a.css">'
    (tmp_path / "a.html").write_text(clean, encoding="utf-8")
    (tmp_path / "a.css").write_text("p { background: url('b.png') }", encoding="utf-8")
    assert foreign(tmp_path) == []
    (tmp_path / "b.html").write_text('<img src="//cdn.example.org/x.png"><link rel="preconnect" href="https://f.org">')
    (tmp_path / "b.css").write_text("@import 'https://f.org/c.css'; p { src: url(https://f.org/d.woff) }")
    assert foreign(tmp_path) == [
        "b.css: https://f.org/c.css", "b.css: https://f.org/d.woff", "b.html: //cdn.example.org/x.png",
        "b.html: https://f.org",
    ]  # fmt: skip


def test_steps_of_the_tutorial() -> None:
    """Commands are read from the page in order, with the name under which their output is kept."""
    found = steps("```sh\nrobustgen eval --n 5\n```\n\n<!-- results: tutorial_a -->\n\n```sh\npip install x\n```\n")
    assert [(step.name, step.commands) for step in found] == [("tutorial_a", (("robustgen", "eval", "--n", "5"),))]
    assert len(steps(PAGE.read_text(encoding="utf-8"))) >= 8


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of the page, on fewer images, in its order; what the page says of the outcome is so."""
    monkeypatch.chdir(tmp_path)
    smaller = {"-n": "4", "--n": "8", "--samples": "100", "--steps": "5"}
    for step in steps(PAGE.read_text(encoding="utf-8")):
        for words in step.commands:
            given = [smaller.get(before, word) for before, word in pairwise(words)]
            assert _run(given) == 0, (words, capsys.readouterr().err)
            if "decoy-quantise" in words:
                assert "FLAG zero-gradient" in capsys.readouterr().out
    made = ("first/record.json", "first/examples.png", "bag-patch/patch.png", "site/index.html")
    assert all((tmp_path / name).is_file() for name in made)
